import subprocess
import sys

import pytest

import ghealth
from ghealth import probe, settings
from ghealth.server import serve


def test_the_public_names_can_be_imported() -> None:
    """Everything else is private."""
    public = [probe.Probe, probe.ProbeResult, settings.Settings, serve.serve]
    assert [getattr(ghealth, name) for name in ghealth.__all__] == public


def test_other_names_are_not_there() -> None:
    """A misspelt name is an error as for any module."""
    with pytest.raises(AttributeError, match="module 'ghealth' has no attribute 'server_'"):
        _ = ghealth.server_


def test_the_package_alone_imports_no_library() -> None:
    """`ghealth --version` does not wait for gRPC or pydantic, and gRPC is quiet later."""
    program = "import sys, os, ghealth.cli; print(os.environ['GRPC_VERBOSITY'], *sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    verbosity, *modules = done.stdout.split()
    assert verbosity == "NONE"
    assert "ghealth.output" in modules
    assert not {"grpc", "pydantic", "httpx", "asyncio"} & set(modules)
