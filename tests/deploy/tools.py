"""The tools that are not Python, built from what the lock file pins."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]

_BUILT: Final = Path(__file__).parent / ".bin"
_PATIENCE: Final = 1200.0
"""Seconds; where nothing is cached, most goes into downloads."""


class ToolError(Exception):
    """A tool is missing, or did not do what it should; the text says which."""


def prepare() -> None:
    """Build kustomize and actionlint.

    Raises:
        ToolError: If that fails, or there is no Go to build them with.
    """
    if not shutil.which("go"):
        raise ToolError("make deploy-check needs Go, to build kustomize and actionlint with")
    _run("go", "build", "-o", f"{_BUILT}/", "tool", where=_BUILT.parent / "go")


def kustomize(folder: Path) -> list[Any]:
    """Render a kustomization.

    Raises:
        ToolError: If it cannot be rendered.
    """
    return list(yaml.safe_load_all(_run(str(_BUILT / "kustomize"), "build", str(folder))))


def lint() -> list[str]:
    """Tell what hadolint and actionlint have against the Dockerfile and the workflows."""
    workflows = map(str, sorted((ROOT / ".github" / "workflows").glob("*.y*ml")))
    commands = [
        [str(Path(sys.prefix) / "bin" / "hadolint"), "Dockerfile"],
        [str(_BUILT / "actionlint"), "-shellcheck=", "-pyflakes=", *workflows],
    ]
    faults = []
    for command in commands:
        try:
            _run(*command)
        except ToolError as error:
            faults.append(str(error))
    return faults


def _run(*command: str, where: Path = ROOT) -> str:
    done = subprocess.run(
        command, cwd=where, capture_output=True, text=True, timeout=_PATIENCE, check=False
    )
    if done.returncode:
        raise ToolError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    return done.stdout
