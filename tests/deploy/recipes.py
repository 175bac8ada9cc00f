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

OLDEST_NATIVE: Final = "1.29"
"""The first Kubernetes that runs native sidecars unless told not to."""

OLDEST: Final = "1.25"
"""The oldest whose schema is at hand."""


@dataclass(frozen=True)
class Recipe:
    """Objects that are applied together.

    Args:
        name: What to call it in a fault.
        objects: As they are rendered.
        oldest: The first version of Kubernetes that it is for.
        native: Whether ghealth is a native sidecar in it; None if it has no pods.
        injected: Whether Istio's injector fills the pod in.
        by_chart: Whether Istio's chart makes the Deployment; it has no value for some fields.
    """

    name: str
    objects: tuple[Any, ...]
    oldest: str = OLDEST
    native: bool | None = None
    injected: bool = True
    by_chart: bool = False


def values(kind: str) -> Any:
    """Read a file of Helm values, `native` or `container`."""
    return yaml.safe_load((DEPLOY / "helm" / f"values-{kind}.yaml").read_text())


def all_recipes() -> list[Recipe]:
    """Render every combination."""
    return [*_helm(), *_kustomize(), _gateway_api(), *_aws()]


def _deployment(name: str, **spec: Any) -> Any:
    """Make a gateway's Deployment as those of Istio look, before the injector."""
    labels = {"istio": "ingressgateway"}
    proxy = {"name": "istio-proxy", "image": "auto"}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": [proxy]} | spec},
        },
    }


def as_the_chart(given: Any) -> Any:
    """Put values where Istio's gateway chart puts them; a stand-in, for the chart is not at hand.

    Raises:
        KeyError: If there is a value that this does not know.
    """
    given = copy.deepcopy(given)
    deployment = _deployment("istio-ingressgateway")
    template = deployment["spec"]["template"]
    pod = template["spec"]
    pod["containers"][0]["lifecycle"] = given.pop("lifecycle", {})
    pod["containers"] += given.pop("additionalContainers", [])
    pod["initContainers"] = given.pop("initContainers", [])
    pod["terminationGracePeriodSeconds"] = given.pop("terminationGracePeriodSeconds", 30)
    template["metadata"]["annotations"] = given.pop("podAnnotations", {})
    deployment["spec"]["strategy"] = given.pop("strategy", {})
    if given:
        raise KeyError(f"the stand-in for the chart does not know {', '.join(given)}")
    return deployment


def _helm() -> Iterator[Recipe]:
    for kind, oldest in (("native", OLDEST_NATIVE), ("container", OLDEST)):
        deployment = as_the_chart(values(kind))
        native = kind == "native"
        yield Recipe(f"helm/{kind}", (deployment,), oldest, native=native, by_chart=True)


_IMAGE: Final = "registry.example.com/ghealth"
_OTHER_IMAGE: Final = "registry.example.org/mirror/ghealth"
_OTHER_DIGEST: Final = "sha256:" + "1" * 64


def _kustomize() -> Iterator[Recipe]:
    example = DEPLOY / "kustomize" / "example"
    yield Recipe("kustomize/example", tuple(tools.kustomize(example)), OLDEST_NATIVE, native=True)
    fetch = {"name": "fetch", "image": "registry.example.com/fetch"}
    bases = {
        "example": (example / "gateway.yaml").read_text(),
        # What istioctl installs: a Deployment among others, with containers of its own.
        "istioctl": yaml.safe_dump_all(
            [
                _deployment("istio-ingressgateway", initContainers=[fetch]),
                _deployment("istiod") | {"metadata": {"name": "istiod"}},
            ]
        ),
    }
    for kind, oldest in (("native", OLDEST_NATIVE), ("container", OLDEST)):
        for base, text in bases.items():
            objects = _with_component(kind, text)
            yield Recipe(f"kustomize/{kind} on {base}", objects, oldest, native=kind == "native")


def _with_component(kind: str, base: str) -> tuple[Any, ...]:
    """Render a gateway with a component in it, and with the image of a mirror."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch).resolve()
        component = os.path.relpath(DEPLOY / "kustomize" / f"ghealth-{kind}", folder)
        kustomization = {
            "resources": ["base.yaml"],
            "components": [component],
            "images": [{"name": _IMAGE, "newName": _OTHER_IMAGE, "digest": _OTHER_DIGEST}],
        }
        (folder / "base.yaml").write_text(base)
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return tuple(tools.kustomize(folder))


def _gateway_api() -> Recipe:
    """Merge the ConfigMap into a Deployment as Istio does, by a strategic merge."""
    gateway, config = yaml.safe_load_all((DEPLOY / "gateway-api" / "gateway.yaml").read_text())
    patch = yaml.safe_load(config["data"]["deployment"])
    identity = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "ingress"}}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "base.yaml").write_text(yaml.safe_dump(_deployment("ingress")))
        (folder / "patch.yaml").write_text(yaml.safe_dump(identity | patch))
        kustomization = {"resources": ["base.yaml"], "patches": [{"path": "patch.yaml"}]}
        (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        merged = tools.kustomize(folder)
    objects = (gateway, config, *merged)
    return Recipe("gateway-api", objects, OLDEST_NATIVE, native=True, injected=False)


def _aws() -> Iterator[Recipe]:
    for folder in ("ingress", "end-to-end-tls"):
        yield Recipe(f"aws/{folder}", tuple(tools.kustomize(DEPLOY / "aws" / folder)))
    for file in (
        "aws/gateway-api/targetgroupconfiguration.yaml",
        "aws/targetgroupbinding.yaml",
        "networkpolicy.yaml",
    ):
        objects = tuple(yaml.safe_load_all((DEPLOY / file).read_text()))
        yield Recipe(file.removesuffix(".yaml"), objects)
