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


def prepare() -> frozenset[Tool]:
    """Build and install the callers that this machine has the tools for; return these tools.

    Raises:
        BuildError: If one of them fails.
    """
    tools = {Tool.PYTHON}
    if shutil.which("go"):
        _run("go", "build", "-o", f"{GO_PROGRAMS}/", "./cmd/...", "tool", where=_HERE / "go")
        tools.add(Tool.GO)
    if shutil.which("node") and shutil.which("npm"):
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
        _run("npm", "ci", *quiet, where=NODE_SCRIPT.parent)
        tools.add(Tool.NODE)
    if shutil.which("curl") and "HTTP2" in _run("curl", "--version").split():
        tools.add(Tool.CURL)
    return frozenset(tools)


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
