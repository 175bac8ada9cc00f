"""The callers that are not in Python, built and installed from lock files."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

_HERE: Final = Path(__file__).parent
_GO_PROGRAMS: Final = _HERE / ".bin"
NODE_SCRIPT: Final = _HERE / "node" / "ask.js"

GO, NODE, CURL = "go", "npm", "curl"
"""Programs that callers need on this machine."""

ENVIRONMENT: Final = {
    name: value
    for name, value in os.environ.items()
    if not name.startswith("GHEALTH_") and not name.lower().endswith("_proxy")
} | {"PATH": f"{_GO_PROGRAMS}:{sys.prefix}/bin:{os.environ['PATH']}"}
"""The environment of callers: every program by its name, no settings of ghealth and no proxy."""


def build(*packages: str) -> None:
    """Build programs in Go. Without a cache, the kubelet's code takes minutes."""
    command = ["go", "build", "-o", f"{_GO_PROGRAMS}/", *packages]
    subprocess.run(command, cwd=_HERE / "go", check=True)


if __name__ == "__main__":
    print("Building the callers, which takes minutes the first time.", file=sys.stderr)
    if shutil.which(GO):
        build("./cmd/...", "tool")
    if shutil.which(NODE):
        quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
        subprocess.run([NODE, "ci", *quiet], cwd=NODE_SCRIPT.parent, check=True)
