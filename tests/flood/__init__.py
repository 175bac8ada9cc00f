"""Floods against a ghealth process in a memory control group: `make flood`."""
