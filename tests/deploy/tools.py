"""The tools that are not Python, built from what the lock file pins."""

import functools
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]

_BUILT: Final = Path(__file__).parent / ".bin"
_TIMEOUT: Final = 1200.0
"""Seconds; most is spent on downloads and compiling, if nothing is cached."""

_TOOLS: Final = {
    "actionlint": "github.com/rhysd/actionlint/cmd/actionlint",
    "helm3": "helm.sh/helm/v3/cmd/helm",
    "helm4": "helm.sh/helm/v4/cmd/helm",
    "kustomize": "sigs.k8s.io/kustomize/kustomize/v5",
}


class ToolError(Exception):
    """A tool is missing or failed; the message names it."""


@functools.cache
def prepare() -> None:
    """Build the tools.

    Raises:
        ToolError: If that fails, or there is no Go to build them with.
    """
    if not shutil.which("go"):
        raise ToolError("make deploy-check needs Go, to build actionlint, helm and kustomize")
    for name, package in _TOOLS.items():
        run("go", "build", "-o", str(_BUILT / name), package, where=_BUILT.parent / "go")


def render(*command: str, home: Path | None = None) -> list[Any]:
    """Return the objects that a command prints.

    Raises:
        ToolError: If it fails.
    """
    prepare()
    return [found for found in yaml.safe_load_all(run(*command, home=home)) if found]


def run(*command: str, where: Path = ROOT, home: Path | None = None) -> str:
    """Run a command with the tools in PATH, and return what it prints.

    Args:
        command: Its words.
        where: Its directory.
        home: Where Helm 4 keeps its plugins.

    Raises:
        ToolError: If it fails.
    """
    environment = os.environ | {"PATH": f"{_BUILT}:{os.environ['PATH']}"}
    if home:
        environment["HELM_DATA_HOME"] = str(home)
    done = subprocess.run(
        command,
        cwd=where,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise ToolError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
