"""Renders what is in deploy/ as its users do."""

import copy
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from tests.deploy import tools

DEPLOY: Final = tools.ROOT / "deploy"

OLDEST: Final = "1.29"
"""The first Kubernetes with native sidecars, unless switched off."""

SLEEP_ACTION: Final = "1.30"
"""The first Kubernetes with the preStop action `sleep`, unless switched off."""

NAMESPACE: Final = "istio-ingress"
GATEWAY: Final = "istio-ingressgateway"

EXISTING_PROXY_CONFIG: Final = "holdApplicationUntilProxyStarts: true\n"
EXISTING_GRACE: Final = 600
EXISTING_HOOK: Final = {"exec": {"command": ["sh", "-c", "sleep 20"]}}
EXISTING_STRATEGY: Final = {"maxUnavailable": 1, "maxSurge": 0}


@dataclass(frozen=True)
class Recipe:
    """Objects that are applied together.

    Args:
        name: Its name in reports.
        objects: The rendered objects.
        oldest: The first version of Kubernetes that it is for.
        has_pods: Whether there is a gateway with ghealth in it.
        drains: Whether the recipe sets how the pod drains; otherwise it must leave that alone.
        existing: Whether it is rendered over a gateway that has settings.
        injected: Whether Istio's injector completes the pod.
        by_chart: Whether Istio's chart makes the Deployment; it has no value for some fields.
        complete: Whether Service and Deployment are in it, as a way to install a gateway.
        tls: Whether ghealth serves TLS too.
    """

    name: str
    objects: tuple[Any, ...]
    oldest: str = OLDEST
    has_pods: bool = False
    drains: bool = True
    existing: bool = False
    injected: bool = True
    by_chart: bool = False
    complete: bool = False
    tls: bool = False


def values(kind: str) -> Any:
    """Read a file of Helm values, `native` or `drain`."""
    return yaml.safe_load(_values_file(kind).read_text())


def _values_file(kind: str) -> Path:
    return DEPLOY / "helm" / f"values-{kind}.yaml"


def all_recipes() -> list[Recipe]:
    """Render every combination."""
    return [*_helm(), *_kustomize(), _gateway_api(), *_aws()]


def _deployment(name: str, *, existing: bool = False, **spec: Any) -> Any:
    """Return a gateway's Deployment like those of Istio, before the injector."""
    labels = {"app": name, "istio": "ingressgateway"}
    proxy: dict[str, Any] = {"name": "istio-proxy", "image": "auto"}
    deployment: dict[str, Any] = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {"containers": [proxy]} | spec,
            },
        },
    }
    if existing:
        proxy["lifecycle"] = {"preStop": copy.deepcopy(EXISTING_HOOK)}
        template = deployment["spec"]["template"]
        template["metadata"]["annotations"] = {"proxy.istio.io/config": EXISTING_PROXY_CONFIG}
        template["spec"]["terminationGracePeriodSeconds"] = EXISTING_GRACE
        deployment["spec"]["strategy"] = {"rollingUpdate": dict(EXISTING_STRATEGY)}
    return deployment


_EXISTING_VALUES: Final = {
    "lifecycle": {"preStop": EXISTING_HOOK},
    "podAnnotations": {"proxy.istio.io/config": EXISTING_PROXY_CONFIG},
    "terminationGracePeriodSeconds": EXISTING_GRACE,
    "strategy": {"rollingUpdate": EXISTING_STRATEGY},
}


def _helm() -> Iterator[Recipe]:
    """Render the values over the chart's own, and over a gateway's, and the post-renderer."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        existing = folder / "existing.yaml"
        existing.write_text(yaml.safe_dump(_EXISTING_VALUES))
        service = folder / "service.yaml"
        service.write_text("service: {type: ClusterIP}\n")
        native, drain = _values_file("native"), _values_file("drain")
        for version in (3, 4):
            name = f"Helm {version}"
            objects = tools.helm(version, service, native, drain)
            yield Recipe(
                f"{name}: native, drain",
                tuple(objects),
                SLEEP_ACTION,
                has_pods=True,
                by_chart=True,
                complete=True,
            )
            objects = tools.helm(version, service, existing, native, drain)
            yield Recipe(
                f"{name}: native, drain over a gateway's values",
                tuple(objects),
                SLEEP_ACTION,
                has_pods=True,
                existing=True,
                by_chart=True,
            )
            objects = tools.helm(version, service, existing, native)
            yield Recipe(
                f"{name}: native over a gateway's values",
                tuple(objects),
                has_pods=True,
                drains=False,
                existing=True,
                by_chart=True,
            )
            objects = tools.helm(version, service, existing, renderer=True, home=folder / name)
            yield Recipe(
                f"{name}: post-renderer over a gateway's values",
                tuple(objects),
                SLEEP_ACTION,
                has_pods=True,
                existing=True,
            )


_IMAGE: Final = "registry.example.com/ghealth"
_OTHER_IMAGE: Final = "registry.example.org/mirror/ghealth"
_OTHER_DIGEST: Final = "sha256:" + "1" * 64


def _kustomize() -> Iterator[Recipe]:
    example = DEPLOY / "kustomize" / "example"
    objects = tuple(tools.kustomize(example))
    name = "kustomize/example"
    yield Recipe(name, objects, SLEEP_ACTION, has_pods=True, complete=True)
    fetch = {"name": "fetch", "image": "registry.example.com/fetch"}
    istiod = _deployment("istiod")
    istiod["metadata"]["labels"] = istiod["spec"]["selector"]["matchLabels"] = {"app": "istiod"}
    istiod["spec"]["template"]["metadata"]["labels"] = {"app": "istiod"}
    bases = {
        # What istioctl installs: a Deployment among others, with its own containers.
        "istioctl": [_deployment(GATEWAY, initContainers=[fetch]), istiod],
        "an existing gateway": [_deployment(GATEWAY, existing=True)],
    }
    for base, parts in bases.items():
        existing = base != "istioctl"
        text = yaml.safe_dump_all(copy.deepcopy(parts))
        yield Recipe(
            f"kustomize/native, drain on {base}",
            _with_components(text, "ghealth-native", "drain"),
            SLEEP_ACTION,
            has_pods=True,
            existing=existing,
        )
        yield Recipe(
            f"kustomize/native, drain, tls on {base}",
            _with_components(text, "ghealth-native", "drain", "tls"),
            SLEEP_ACTION,
            has_pods=True,
            existing=existing,
            tls=True,
        )
    text = yaml.safe_dump(_deployment(GATEWAY, existing=True))
    yield Recipe(
        "kustomize/native on an existing gateway",
        _with_components(text, "ghealth-native"),
        has_pods=True,
        drains=False,
        existing=True,
    )
    certificate = DEPLOY / "kustomize" / "tls" / "certificate.yaml"
    yield Recipe("kustomize/tls/certificate", (yaml.safe_load(certificate.read_text()),))


def _with_components(base: str, *names: str) -> tuple[Any, ...]:
    """Render a gateway with components in it, and with the image of a mirror."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        kustomization = {
            "resources": ["base.yaml"],
            "components": [os.path.relpath(DEPLOY / "kustomize" / name, folder) for name in names],
            "images": [{"name": _IMAGE, "newName": _OTHER_IMAGE, "digest": _OTHER_DIGEST}],
        }
        (folder / "base.yaml").write_text(base)
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return tuple(tools.kustomize(folder))


def _gateway_api() -> Recipe:
    """Merge the ConfigMap into what Istio creates, by a strategic merge as it does.

    Names and labels are as in pilot/pkg/config/kube/gatewaycommon and kube-gateway.yaml of Istio
    1.30: the Gateway's name and class, unless an annotation has another; labels of
    `infrastructure`, and the Gateway's name. The Deployment starts with the hook that
    `global.proxy.lifecycle` can put there.
    """
    file = DEPLOY / "gateway-api" / "gateway.yaml"
    gateway, config = yaml.safe_load_all(file.read_text())
    metadata, spec = gateway["metadata"], gateway["spec"]
    default = f"{metadata['name']}-{spec['gatewayClassName']}"
    annotations = metadata.get("annotations") or {}
    name = annotations.get("gateway.istio.io/name-override", default)
    selector = {"gateway.networking.k8s.io/gateway-name": metadata["name"]}
    labels = spec["infrastructure"].get("labels", {}) | selector
    deployment = _deployment(name)
    deployment["metadata"]["labels"] = labels
    deployment["spec"]["selector"]["matchLabels"] = selector
    deployment["spec"]["template"]["metadata"]["labels"] = labels
    proxy = deployment["spec"]["template"]["spec"]["containers"][0]
    proxy["lifecycle"] = {"preStop": copy.deepcopy(EXISTING_HOOK)}
    identity = {"name": name, "namespace": metadata["namespace"]}
    base = {
        "deployment": deployment,
        "horizontalPodAutoscaler": {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": identity,
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
                "maxReplicas": 1,
            },
        },
        "podDisruptionBudget": {
            "apiVersion": "policy/v1",
            "kind": "PodDisruptionBudget",
            "metadata": identity,
            "spec": {"selector": {"matchLabels": selector}},
        },
    }
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": identity,
        "spec": {
            "type": "ClusterIP",
            "selector": selector,
            "ports": [
                {"name": found["name"], "port": found["port"]} for found in spec["listeners"]
            ],
        },
    }
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "base.yaml").write_text(yaml.safe_dump_all([*base.values(), service]))
        patches = []
        for key, text in config["data"].items():
            head = {part: base[key][part] for part in ("apiVersion", "kind")}
            head["metadata"] = {"name": name, "namespace": metadata["namespace"]}
            (folder / f"{key}.yaml").write_text(yaml.safe_dump(head | yaml.safe_load(text)))
            patches.append({"path": f"{key}.yaml"})
        kustomization = {"resources": ["base.yaml"], "patches": patches}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        merged = tools.kustomize(folder)
    return Recipe(
        "gateway-api",
        (gateway, config, *merged),
        SLEEP_ACTION,
        has_pods=True,
        injected=False,
        complete=True,
    )


def _aws() -> Iterator[Recipe]:
    for folder in (
        "ingress",
        "end-to-end-tls",
        "tls-health",
        "dualstack",
        "auto-mode",
        "gateway-api",
    ):
        yield Recipe(f"aws/{folder}", tuple(tools.kustomize(DEPLOY / "aws" / folder)))
    for file in (
        "aws/ingress/ingressclass.yaml",
        "aws/end-to-end-tls/istio-gateway.yaml",
        "aws/targetgroupbinding.yaml",
        "networkpolicy.yaml",
        "observability/podmonitor.yaml",
    ):
        objects = tuple(yaml.safe_load_all((DEPLOY / file).read_text()))
        yield Recipe(file.removesuffix(".yaml"), objects)
