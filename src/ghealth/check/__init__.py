"""The client side: a gRPC health check, and the health check of an AWS ALB."""
