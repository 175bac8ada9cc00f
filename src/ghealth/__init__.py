"""ghealth: a gRPC health server that tells the truth about an HTTP-only gateway."""

__version__ = "0.1.0"
