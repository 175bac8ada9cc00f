"""ghealth: gRPC health checks for a gateway that offers only HTTP readiness.

`serve` runs the server inside an asyncio program, with `Settings`. A `Probe` decides the health of
a service by returning a `ProbeResult`. Everything else is private.
"""

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ghealth.probe import Probe, ProbeResult
    from ghealth.server.serve import serve
    from ghealth.settings import Settings

__all__ = ["Probe", "ProbeResult", "Settings", "serve"]
__version__ = "0.1.0"

# gRPC's core reads this when it is imported. Otherwise it writes a line to standard error for each
# failed handshake, and untrusted clients could fill that pipe.
os.environ["GRPC_VERBOSITY"] = "NONE"

_MODULES = {
    "Probe": "probe",
    "ProbeResult": "probe",
    "Settings": "settings",
    "serve": "server.serve",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use: `ghealth --version` needs none of them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)
