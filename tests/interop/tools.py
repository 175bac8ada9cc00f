"""The callers that are not in Python, built and installed from lock files."""

import os
import shutil
import subprocess
import sys
from enum import Enum
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent
GHEALTH: Final = Path(sys.prefix) / "bin" / "ghealth"
GO_PROGRAMS: Final = _HERE / ".bin"
NODE_SCRIPT: Final = _HERE / "node" / "ask.js"

ENVIRONMENT: Final = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("GHEALTH_") and not name.lower().endswith("_proxy")
}
"""The environment of ghealth and its callers: only the suite's settings, and no proxy."""

BUILD_TIMEOUT: Final = 1200.0
"""Seconds; without a cache, the kubelet's code takes minutes to build."""


class Tool(Enum):
    """Tools that callers need on this machine."""

    PYTHON = "Python"
    GO = "Go"
    NODE = "Node.js"
    CURL = "curl with HTTP/2"


class BuildError(Exception):
    """A tool failed; the message is its output."""


def is_installed(tool: Tool) -> bool:
    """Return whether this machine has a tool."""
    match tool:
        case Tool.GO:
            return shutil.which("go") is not None
        case Tool.NODE:
            return shutil.which("node") is not None and shutil.which("npm") is not None
        case Tool.CURL:
            return shutil.which("curl") is not None and "HTTP2" in _run("curl", "--version").split()
        case _:
            return True


def prepare() -> None:
    """Build and install the callers that this machine has the tools for.

    Raises:
        BuildError: If one of them fails.
    """
    if is_installed(Tool.GO):
        _run("go", "build", "-o", f"{GO_PROGRAMS}/", "./cmd/...", "tool", where=_HERE / "go")
    if is_installed(Tool.NODE):
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
        _run("npm", "ci", *quiet, where=NODE_SCRIPT.parent)


def build_probe() -> None:
    """Build grpc-health-probe.

    Raises:
        BuildError: If that fails.
        FileNotFoundError: If this machine has no Go toolchain.
    """
    package = "github.com/grpc-ecosystem/grpc-health-probe"
    _run("go", "build", "-o", f"{GO_PROGRAMS}/", package, where=_HERE / "go")


def _run(*command: str, where: Path = _HERE) -> str:
    done = subprocess.run(
        command, cwd=where, capture_output=True, text=True, timeout=BUILD_TIMEOUT, check=False
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


if __name__ == "__main__":
    print("Building the callers, which takes minutes the first time.", file=sys.stderr)
    try:
        prepare()
    except BuildError as error:
        sys.exit(str(error))
