"""The operators' page in a real browser: `make page-test`."""
