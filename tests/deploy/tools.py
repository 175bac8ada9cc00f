"""The tools that are not Python, built from what the lock file pins."""

import functools
import os
import subprocess
import sys
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


@functools.cache
def _build() -> str:
    """Return a PATH with the tools."""
    for name, package in _TOOLS.items():
        command = ("go", "build", "-o", str(_BUILT / name), package)
        subprocess.run(command, cwd=_BUILT.parent / "go", timeout=_TIMEOUT, check=True)
    return f"{_BUILT}:{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"


def run(*command: str, given: str = "", **variables: str) -> str:
    """Run a command with the tools in PATH, and return what it prints.

    Args:
        command: Its words.
        given: Its standard input.
        variables: What its environment has in addition.

    Raises:
        subprocess.CalledProcessError: If it fails; pytest reports what it wrote to stderr.
    """
    environment = os.environ | {"PATH": _build()} | variables
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        input=given,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def render(*command: str, **variables: str) -> list[Any]:
    """Return the objects that a command prints, which `run` runs."""
    return [found for found in yaml.safe_load_all(run(*command, **variables)) if found]
