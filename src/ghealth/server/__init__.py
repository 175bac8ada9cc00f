"""The gRPC server, and what joins all parts."""
