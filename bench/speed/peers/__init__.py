"""The programs that ghealth is compared with."""
