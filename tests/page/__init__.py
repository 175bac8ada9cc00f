"""The status page in a real browser: `make page-test`."""
