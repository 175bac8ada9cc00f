"""Gateways, fakes, raw HTTP/2 and processes for tests."""
