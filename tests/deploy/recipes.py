"""Renders what is in deploy/ as its users do."""

import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.deploy import tools

DEPLOY: Final = tools.ROOT / "deploy"
NAMESPACE, GATEWAY = "istio-ingress", "istio-ingressgateway"

_HERE: Final = Path(__file__).parent
_MIRROR: Final = {
    "name": "registry.example.com/ghealth",
    "newName": "registry.example.org/ghealth",
    "digest": "sha256:" + "1" * 64,
}

Objects = list[Any]


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
    return tools.render("kustomize", "build", str(deploy / source))


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
                tools.run("helm4", "plugin", "install", plugin, HELM_DATA_HOME=data)
            words = [option.format(deploy=deploy) for option in options]
            command = (f"helm{version}", "template", GATEWAY, f"{_HERE}/chart", *words)
            return tools.render(*command, f"--namespace={NAMESPACE}", HELM_DATA_HOME=data)

    return Way(render, adds)


def _kustomize(deploy: Path, **kustomization: Any) -> Objects:
    """Build a kustomization that has the gateways here and deploy/kustomize beside it."""
    with tempfile.TemporaryDirectory() as scratch:
        shutil.copytree(_HERE / "gateways", scratch, dirs_exist_ok=True)
        shutil.copytree(deploy / "kustomize", Path(scratch) / "kustomize")
        (Path(scratch) / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return tools.render("kustomize", "build", scratch)


def _components(gateway: str, *adds: str) -> Way:
    """Add components to a gateway, and the image of a mirror."""
    components = [f"kustomize/{name}" for name in ("ghealth-native", *adds)]
    parts = {"resources": [gateway], "components": components, "images": [_MIRROR]}
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
_DRAIN: Final = "--values={deploy}/helm/values-drain.yaml"

WAYS: Final[dict[str, Way]] = {
    "Helm 3": _helm(3, _NATIVE, _DRAIN),
    "Helm 4": _helm(4, _NATIVE, _DRAIN),
    "Helm 3 over a gateway's values": _helm(3, _GIVEN, _NATIVE, _DRAIN),
    "Helm 4 over a gateway's values, without drain": _helm(4, _GIVEN, _NATIVE, adds=()),
    "post-renderer of Helm 3": _helm(
        3, _GIVEN, "--post-renderer={deploy}/helm/post-renderer/ghealth.sh"
    ),
    "post-renderer of Helm 4": _helm(4, _GIVEN, "--post-renderer=ghealth"),
    "kustomize/example": Way(
        lambda deploy: tools.render("kustomize", "build", f"{deploy}/kustomize/example")
    ),
    "kustomize on istioctl's": _components("istioctl.yaml", "drain"),
    "kustomize on a gateway": _components("existing.yaml", "drain", "tls"),
    "kustomize without drain": _components("existing.yaml"),
    "kustomize on flow style, istio=ingress": _components("flow.yaml", "drain", "tls"),
    "kustomize with traffic-probe": _components("existing.yaml", "drain", "traffic-probe"),
    "kustomize with traffic-probe-tls": _components(
        "existing.yaml", "drain", "traffic-probe", "traffic-probe-tls"
    ),
    "Gateway API": Way(_gateway_api),
}
