"""The tools that are not Python, built from what the lock file pins."""

import os
import shutil
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


OLD_HELM: Final = 3
"""The last version that takes a script as post-renderer; later ones take a plugin's name."""


class ToolError(Exception):
    """A tool is missing or failed; the message names it."""


def prepare() -> None:
    """Build actionlint, Helm 3 and 4, and kustomize.

    Raises:
        ToolError: If that fails, or there is no Go to build them with.
    """
    if not shutil.which("go"):
        raise ToolError("make deploy-check needs Go, to build actionlint, helm and kustomize")
    for name, package in _TOOLS.items():
        _run("go", "build", "-o", str(_BUILT / name), package, where=_BUILT.parent / "go")


def kustomize(folder: Path) -> list[Any]:
    """Render a kustomization.

    Raises:
        ToolError: If it cannot be rendered.
    """
    return list(yaml.safe_load_all(_run(str(_BUILT / "kustomize"), "build", str(folder))))


def helm(
    version: int, *values: Path, renderer: bool = False, home: Path | None = None
) -> list[Any]:
    """Render the chart that stands in for Istio's.

    Args:
        version: Helm's major version.
        values: Files of values, in order.
        renderer: Whether to use the post-renderer of deploy/.
        home: Where Helm 4 keeps its plugins, if there is a post-renderer.

    Raises:
        ToolError: If it cannot be rendered.
    """
    command = [str(_BUILT / f"helm{version}"), "template", "istio-ingressgateway"]
    command += [str(_BUILT.parent / "chart"), "--namespace=istio-ingress"]
    command += [f"--values={file}" for file in values]
    if renderer and version > OLD_HELM:
        folder = str(ROOT / "deploy" / "helm" / "post-renderer")
        _run(str(_BUILT / "helm4"), "plugin", "install", folder, home=home)
        command += ["--post-renderer=ghealth"]
    elif renderer:
        command += [f"--post-renderer={ROOT}/deploy/helm/post-renderer/ghealth.sh"]
    return [found for found in yaml.safe_load_all(_run(*command, home=home)) if found]


def lint() -> list[str]:
    """Return what hadolint, actionlint and zizmor report about the Dockerfile and the workflows."""
    workflows = map(str, sorted((ROOT / ".github" / "workflows").glob("*.y*ml")))
    commands = [
        [str(Path(sys.prefix) / "bin" / "hadolint"), "Dockerfile"],
        [str(_BUILT / "actionlint"), "-shellcheck=", "-pyflakes=", *workflows],
        [str(Path(sys.prefix) / "bin" / "zizmor"), "--quiet", "--offline", ".github"],
    ]
    faults = []
    for command in commands:
        try:
            _run(*command)
        except ToolError as error:
            faults.append(str(error))
    return faults


def _run(*command: str, where: Path = ROOT, home: Path | None = None) -> str:
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
