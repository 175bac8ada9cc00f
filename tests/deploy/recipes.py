"""Renders what is in deploy/ as its users do."""

import copy
import functools
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.deploy import tools

DEPLOY: Final = tools.ROOT / "deploy"

NAMESPACE, GATEWAY = "istio-ingress", "istio-ingressgateway"
LABEL: Final = {"istio": "ingressgateway"}
IMAGE: Final = "registry.example.com/ghealth"

# A gateway that has settings.
PROXY_CONFIG, GRACE = "holdApplicationUntilProxyStarts: true\n", 600
HOOK: Final = {"exec": {"command": ["sh", "-c", "sleep 20"]}}
STRATEGY: Final = {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}

_CHART: Final = Path(__file__).parent / "chart"

Objects = list[Any]


@dataclass(frozen=True)
class Way:
    """A way to add ghealth to a gateway.

    Args:
        render: Returns the objects, from a copy of deploy/.
        drains: Whether the gateway's drain is set too; otherwise it must stay as it was.
        injected: Whether Istio's injector completes the pod.
        by_chart: Whether Istio's chart makes the Deployment; it has no value for some fields.
        complete: Whether the Service is rendered too.
        adds: Further components.
    """

    render: Callable[[Path], Objects]
    drains: bool = True
    injected: bool = True
    by_chart: bool = False
    complete: bool = False
    adds: tuple[str, ...] = ()


@functools.cache
def objects(deploy: Path, way: str) -> Objects:
    """Render a way from a copy of deploy/."""
    return WAYS[way].render(deploy)


@functools.cache
def kustomization(deploy: Path, name: str) -> Objects:
    """Render a directory of deploy/."""
    return tools.render("kustomize", "build", str(deploy / name))


@functools.cache
def file(deploy: Path, name: str) -> Objects:
    """Read a file with objects."""
    return list(yaml.safe_load_all((deploy / name).read_text()))


def of_kind(found: Objects, kind: str) -> Any:
    """Return the one object of a kind."""
    (one,) = (thing for thing in found if thing["kind"] == kind)
    return one


def _deployment(labels: dict[str, str], **pod: Any) -> Any:
    """Return a gateway's Deployment before the injector."""
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [{"name": "istio-proxy", "image": "auto"}]} | pod,
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": GATEWAY, "namespace": NAMESPACE, "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "template": template},
    }


def _existing() -> Any:
    """Return the Deployment of a gateway that has settings."""
    deployment = _deployment(LABEL, terminationGracePeriodSeconds=GRACE)
    deployment["spec"]["strategy"] = STRATEGY
    template = deployment["spec"]["template"]
    template["metadata"]["annotations"] = {"proxy.istio.io/config": PROXY_CONFIG}
    template["spec"]["containers"][0]["lifecycle"] = {"preStop": HOOK}
    return copy.deepcopy(deployment)  # nothing is shared: YAML would have anchors


_EXISTING_VALUES: Final = {
    "lifecycle": {"preStop": HOOK},
    "podAnnotations": {"proxy.istio.io/config": PROXY_CONFIG},
    "terminationGracePeriodSeconds": GRACE,
    "strategy": STRATEGY,
}


def _helm(version: int, *values: str, existing: bool = True, renderer: bool = False) -> Way:
    """Render the chart that stands in for Istio's, with values of deploy/ or the post-renderer."""

    def render(deploy: Path) -> Objects:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            base = {"service": {"type": "ClusterIP"}} | (_EXISTING_VALUES if existing else {})
            (folder / "base.yaml").write_text(yaml.safe_dump(base))
            command = [f"helm{version}", "template", GATEWAY, str(_CHART)]
            command += [f"--namespace={NAMESPACE}", f"--values={folder}/base.yaml"]
            command += [f"--values={deploy}/helm/values-{name}.yaml" for name in values]
            plugin = deploy / "helm" / "post-renderer"
            if renderer and version == 3:
                command.append(f"--post-renderer={plugin}/ghealth.sh")
            elif renderer:
                tools.prepare()
                held = os.environ | {"HELM_DATA_HOME": scratch}
                tools.run("helm4", "plugin", "install", str(plugin), environment=held)
                command.append("--post-renderer=ghealth")
            return tools.render(*command, HELM_DATA_HOME=scratch)

    return Way(render, "drain" in values or renderer, by_chart=not renderer, complete=not existing)


def _kustomize(base: Callable[[], Objects], *adds: str, flow: bool | None = False) -> Way:
    """Render a gateway with components in it, and with the image of a mirror."""

    def render(deploy: Path) -> Objects:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch).resolve()
            components = ("ghealth-native", *adds)
            mirror = {"newName": "registry.example.org/ghealth", "digest": "sha256:" + "1" * 64}
            kustomization = {
                "resources": ["base.yaml"],
                "components": [
                    os.path.relpath(deploy / "kustomize" / name, folder) for name in components
                ],
                "images": [{"name": IMAGE} | mirror],
            }
            text = yaml.safe_dump_all(base(), default_flow_style=flow)
            (folder / "base.yaml").write_text(text)
            (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
            return tools.render("kustomize", "build", str(folder))

    return Way(render, drains="drain" in adds, adds=adds)


def _istioctl() -> Objects:
    """Return a gateway with an init container, beside another Deployment."""
    istiod = _deployment({"app": "istiod"})
    istiod["metadata"]["name"] = "istiod"
    fetch = {"name": "fetch", "image": "registry.example.com/fetch"}
    return [_deployment(LABEL | {"app": GATEWAY}, initContainers=[fetch]), istiod]


def _made(version: str, kind: str, spec: Any) -> Any:
    return {"apiVersion": version, "kind": kind, "metadata": {}, "spec": spec}


def _gateway_api(deploy: Path) -> Objects:
    """Merge the ConfigMap into what Istio creates, by a strategic merge as it does.

    Names and labels are as in pilot/pkg/config/kube/gatewaycommon and kube-gateway.yaml of Istio
    1.30: the Gateway's name and class, unless an annotation has another; labels of
    `infrastructure`, and the Gateway's name. The Deployment starts with the hook that
    `global.proxy.lifecycle` can put there.
    """
    gateway, config = file(deploy, "gateway-api/gateway.yaml")
    metadata, spec = gateway["metadata"], gateway["spec"]
    default = f"{metadata['name']}-{spec['gatewayClassName']}"
    name = metadata.get("annotations", {}).get("gateway.istio.io/name-override", default)
    selector = {"gateway.networking.k8s.io/gateway-name": metadata["name"]}
    identity = {"name": name, "namespace": metadata["namespace"]}
    labels = spec["infrastructure"].get("labels", {}) | selector
    deployment = _existing()
    deployment["metadata"]["labels"] = labels
    deployment["spec"]["selector"]["matchLabels"] = selector
    deployment["spec"]["template"]["metadata"] = {"labels": dict(labels)}
    ports = [{"name": found["name"], "port": found["port"]} for found in spec["listeners"]]
    selects = {"selector": {"matchLabels": selector}}
    scales = {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name}}
    serves = {"type": "ClusterIP", "selector": selector, "ports": ports}
    made = {
        "deployment": deployment,
        "horizontalPodAutoscaler": _made("autoscaling/v2", "HorizontalPodAutoscaler", scales),
        "podDisruptionBudget": _made("policy/v1", "PodDisruptionBudget", selects),
        "service": _made("v1", "Service", serves),
    }
    for thing in made.values():
        thing["metadata"] |= identity
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "made.yaml").write_text(yaml.safe_dump_all(copy.deepcopy([*made.values()])))
        patches = []
        for key, text in config["data"].items():
            head = {part: made[key][part] for part in ("apiVersion", "kind")}
            patch = copy.deepcopy(head | {"metadata": identity}) | yaml.safe_load(text)
            patches.append({"patch": yaml.safe_dump(patch)})
        whole = {"resources": ["made.yaml"], "patches": patches}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(whole))
        return [gateway, config, *tools.render("kustomize", "build", str(folder))]


def _existing_gateway() -> Objects:
    return [_existing()]


WAYS: Final[dict[str, Way]] = {
    "Helm 3": _helm(3, "native", "drain", existing=False),
    "Helm 4": _helm(4, "native", "drain", existing=False),
    "Helm 3 over a gateway's values": _helm(3, "native", "drain"),
    "Helm 4 over a gateway's values, without drain": _helm(4, "native"),
    "post-renderer of Helm 3": _helm(3, renderer=True),
    "post-renderer of Helm 4": _helm(4, renderer=True),
    "kustomize/example": Way(
        lambda deploy: kustomization(deploy, "kustomize/example"), complete=True
    ),
    "kustomize on istioctl's": _kustomize(_istioctl, "drain"),
    "kustomize on a gateway": _kustomize(_existing_gateway, "drain", "tls"),
    "kustomize without drain": _kustomize(_existing_gateway),
    "kustomize on flow style, istio=ingress": _kustomize(
        lambda: [_deployment({"istio": "ingress"})], "drain", "tls", flow=True
    ),
    "kustomize with traffic-probe": _kustomize(_existing_gateway, "drain", "traffic-probe"),
    "kustomize with traffic-probe-tls": _kustomize(
        _existing_gateway, "drain", "traffic-probe", "traffic-probe-tls"
    ),
    "Gateway API": Way(_gateway_api, injected=False, complete=True),
}
