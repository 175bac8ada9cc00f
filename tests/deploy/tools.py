"""The tools that are not Python, built from what the lock file pins."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
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


def render(*command: str, **variables: str) -> list[Any]:
    """Return the objects that a command prints.

    Args:
        command: Its words.
        variables: What its environment has in addition.

    Raises:
        ToolError: If it fails.
    """
    prepare()
    printed = run(*command, environment=os.environ | variables)
    return [found for found in yaml.safe_load_all(printed) if found]


def run(
    *command: str, environment: Mapping[str, str] = os.environ, where: Path = ROOT, given: str = ""
) -> str:
    """Run a command with the tools in PATH, and return what it prints.

    Args:
        command: Its words.
        environment: Its variables.
        where: Its directory.
        given: Its standard input.

    Raises:
        ToolError: If it fails.
    """
    path = f"{_BUILT}:{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"
    done = subprocess.run(
        command,
        cwd=where,
        env={**environment, "PATH": path},
        input=given,
        capture_output=True,
        text=True,
        timeout=_TIMEOUT,
        check=False,
    )
    if done.returncode:
        raise ToolError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
