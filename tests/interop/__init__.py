"""Conclusions of real callers of a real ghealth beside a real Envoy."""
