"""Conclusions of real callers of a real ghealth beside a real Envoy."""

import os

# Some handshakes fail, and gRPC's core would write a line for each.
os.environ["GRPC_VERBOSITY"] = "NONE"
