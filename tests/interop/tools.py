"""The callers that are not in Python, built and installed from lock files."""

import subprocess
import sys
from pathlib import Path
from typing import Final

from tests.support.processes import environment

_HERE: Final = Path(__file__).parent
_GO_PROGRAMS: Final = _HERE / ".bin"
NODE_SCRIPT: Final = _HERE / "node" / "ask.js"

_OURS: Final = environment()
ENVIRONMENT: Final = {
    **{name: value for name, value in _OURS.items() if not name.lower().endswith("_proxy")},
    "PATH": f"{_GO_PROGRAMS}:{sys.prefix}/bin:{_OURS['PATH']}",
}
"""The environment of callers: every program by its name, no settings of ghealth and no proxy."""


def build(*packages: str) -> None:
    """Build programs in Go. Without a cache, the kubelet's code takes minutes."""
    command = ["go", "build", "-o", f"{_GO_PROGRAMS}/", *packages]
    subprocess.run(command, cwd=_HERE / "go", check=True)


if __name__ == "__main__":
    print("Building the callers, which takes minutes the first time.", file=sys.stderr)
    build("./cmd/...", "tool")
    quiet = ("--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline")
    subprocess.run(["npm", "ci", *quiet], cwd=NODE_SCRIPT.parent, check=True)
