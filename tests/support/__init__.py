"""What ghealth, Envoy and the callers of both need in a test."""
