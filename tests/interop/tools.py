"""The callers that are not Python, built and installed from what the lock files pin."""

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
"""For ghealth and its callers: no settings but the suite's, and no proxy between them."""

BUILD_PATIENCE: Final = 1200.0
"""Seconds; where nothing is cached, the kubelet's code takes minutes."""


class Tool(Enum):
    """What a caller may need of this machine."""

    PYTHON = "Python"
    GO = "Go"
    NODE = "Node.js"
    CURL = "curl with HTTP/2"


class BuildError(Exception):
    """A tool is there, but did not do what it should; the text is what it said."""


def prepare() -> frozenset[Tool]:
    """Build and install the callers that this machine has the tools for, and tell these tools.

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


def _run(*command: str, where: Path = _HERE) -> str:
    done = subprocess.run(
        command, cwd=where, capture_output=True, text=True, timeout=BUILD_PATIENCE, check=False
    )
    if done.returncode:
        raise BuildError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
