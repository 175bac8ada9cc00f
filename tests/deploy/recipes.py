"""Renders what is in deploy/ as its users do."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
DEPLOY: Final = ROOT / "deploy"
NAMESPACE, GATEWAY = "istio-ingress", "istio-ingressgateway"

_HERE: Final = Path(__file__).parent
_TIMEOUT: Final = 1200.0
"""Seconds; most is spent on downloads and compiling, if nothing is cached."""

_TOOLS: Final = {
    "actionlint": "github.com/rhysd/actionlint/cmd/actionlint",
    "helm3": "helm.sh/helm/v3/cmd/helm",
    "helm4": "helm.sh/helm/v4/cmd/helm",
    "kustomize": "sigs.k8s.io/kustomize/kustomize/v5",
}
_MIRROR: Final = {
    "name": "registry.example.com/ghealth",
    "newName": "registry.example.org/ghealth",
    "digest": "sha256:" + "1" * 64,
}

Objects = list[Any]


@functools.cache
def _path() -> str:
    """Build the tools from what the lock file pins, and return a PATH with them."""
    for name, package in _TOOLS.items():
        command = ("go", "build", "-o", str(_HERE / ".bin" / name), package)
        subprocess.run(command, cwd=_HERE / "go", timeout=_TIMEOUT, check=True)
    return f"{_HERE / '.bin'}:{Path(sys.prefix) / 'bin'}:{os.environ['PATH']}"


def run(*command: str, given: str = "", **variables: str) -> str:
    """Run a command with the tools in PATH, and return what it prints.

    Args:
        command: Its words.
        given: Its standard input.
        variables: What its environment has in addition.

    Raises:
        subprocess.CalledProcessError: If it fails; pytest reports what it wrote to stderr.
    """
    environment = os.environ | {"PATH": _path()} | variables
    pipes: dict[str, Any] = {"input": given, "stdout": subprocess.PIPE, "text": True}
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=_TIMEOUT, check=True, **pipes)
    return str(done.stdout)


def _rendered(*command: str, **variables: str) -> Objects:
    return [found for found in yaml.safe_load_all(run(*command, **variables)) if found]


@dataclass(frozen=True)
class Way:
    """A way to add ghealth to a gateway.

    Args:
        render: Returns the objects, from a copy of deploy/.
        adds: What is added beside ghealth; without `drain` the gateway's drain must stay as it was.
    """

    render: Callable[[Path], Objects]
    adds: tuple[str, ...] = ("drain",)


@functools.cache
def objects(deploy: Path, source: str) -> Objects:
    """Return the objects of a way, or of a file or a kustomization in a copy of deploy/."""
    if source in WAYS:
        return WAYS[source].render(deploy)
    if source.endswith(".yaml"):
        return list(yaml.safe_load_all((deploy / source).read_text()))
    return _rendered("kustomize", "build", str(deploy / source))


def of_kind(deploy: Path, source: str, kind: str) -> Any:
    """Return the one object of a kind."""
    (one,) = (thing for thing in objects(deploy, source) if thing["kind"] == kind)
    return one


def _helm(version: int, *options: str, adds: tuple[str, ...] = ("drain",)) -> Way:
    """Render the chart that stands in for Istio's."""

    def render(deploy: Path) -> Objects:
        with tempfile.TemporaryDirectory() as data:
            if "--post-renderer=ghealth" in options:
                plugin = str(deploy / "helm" / "post-renderer")
                run("helm4", "plugin", "install", plugin, HELM_DATA_HOME=data)
            words = [option.format(deploy=deploy) for option in options]
            command = (f"helm{version}", "template", GATEWAY, f"{_HERE}/chart", *words)
            return _rendered(*command, f"--namespace={NAMESPACE}", HELM_DATA_HOME=data)

    return Way(render, adds)


def _kustomize(deploy: Path, **kustomization: Any) -> Objects:
    """Build a kustomization that has the gateways here and deploy/kustomize beside it."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(_HERE / "gateways", scratch, dirs_exist_ok=True)
        shutil.copytree(deploy / "kustomize", Path(scratch) / "kustomize")
        (Path(scratch) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return _rendered("kustomize", "build", scratch)


def _components(gateway: str, *adds: str) -> Way:
    """Add components to a gateway, and the image of a mirror."""
    components = [f"kustomize/{name}" for name in ("ghealth-native", *adds)]
    parts = {"resources": [f"{gateway}.yaml"], "components": components, "images": [_MIRROR]}
    return Way(lambda deploy: _kustomize(deploy, **parts), adds)


def _gateway_api(deploy: Path) -> Objects:
    """Merge the ConfigMap into what Istio creates, by a strategic merge as it does."""
    made = yaml.safe_load_all((_HERE / "gateways" / "gateway-api.yaml").read_text())
    by_kind = {thing["kind"].lower(): thing for thing in made}
    data = of_kind(deploy, "gateway-api/gateway.yaml", "ConfigMap")["data"]
    patches = [
        {"patch": yaml.safe_dump(by_kind[kind.lower()] | yaml.safe_load(text))}
        for kind, text in data.items()
    ]
    return _kustomize(deploy, resources=["gateway-api.yaml"], patches=patches)


_GIVEN: Final = f"--values={_HERE}/chart/existing.yaml"
_NATIVE: Final = "--values={deploy}/helm/values-native.yaml"
_SCRIPT: Final = "--post-renderer={deploy}/helm/post-renderer/ghealth.sh"
_DRAIN: Final = "--values={deploy}/helm/values-drain.yaml"

WAYS: Final[dict[str, Way]] = {
    "Helm 3": _helm(3, _NATIVE, _DRAIN),
    "Helm 4": _helm(4, _NATIVE, _DRAIN),
    "Helm 3 over a gateway's values": _helm(3, _GIVEN, _NATIVE, _DRAIN),
    "Helm 4 over a gateway's values, without drain": _helm(4, _GIVEN, _NATIVE, adds=()),
    "post-renderer of Helm 3": _helm(3, _GIVEN, _SCRIPT),
    "post-renderer of Helm 4": _helm(4, _GIVEN, "--post-renderer=ghealth"),
    "kustomize/example": Way(
        lambda deploy: _rendered("kustomize", "build", f"{deploy}/kustomize/example")
    ),
    "kustomize on istioctl's": _components("istioctl", "drain"),
    "kustomize on a gateway": _components("existing", "drain", "tls"),
    "kustomize without drain": _components("existing"),
    "kustomize on flow style, istio=ingress": _components("flow", "drain", "tls"),
    "kustomize with traffic-probe": _components("existing", "drain", "traffic-probe"),
    "kustomize with traffic-probe-tls": _components(
        "existing", "drain", "traffic-probe", "traffic-probe-tls"
    ),
    "Gateway API": Way(_gateway_api),
}
