"""What ghealth is measured beside."""
