"""Resolves every selector, name, namespace and port in deploy/ and docs/.

They must fit the gateway of each way to install one: what Helm, kustomize and the Gateway API make.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from tests.deploy import recipes
from tests.deploy.recipes import Recipe
from tests.deploy.rules import ADMIN_PORT, PORT, READINESS_PORT, TLS_PORT

_CONTAINERS: Final = frozenset({"ghealth", "istio-proxy"})
_OUTSIDE: Final = frozenset({"kube-system", "monitoring"})
"""Namespaces of others, which a command may name."""


@dataclass(frozen=True)
class Way:
    """A gateway as one way to install it makes it."""

    name: str
    namespace: str
    workload: str
    service: str
    ports: frozenset[int]
    labels: Mapping[str, str]

    @classmethod
    def of(cls, recipe: Recipe) -> "Way":
        """Take the names from rendered objects."""
        deployment = next(
            thing
            for thing in recipe.objects
            if thing["kind"] == "Deployment" and "ghealth" in str(thing)
        )
        service = next(thing for thing in recipe.objects if thing["kind"] == "Service")
        return cls(
            recipe.name,
            deployment["metadata"]["namespace"],
            deployment["metadata"]["name"],
            service["metadata"]["name"],
            frozenset(found["port"] for found in service["spec"]["ports"]),
            deployment["spec"]["template"]["metadata"]["labels"],
        )


def ways(rendered: list[Recipe]) -> list[Way]:
    """Return each way to install a gateway."""
    return [Way.of(recipe) for recipe in rendered if recipe.complete]


def _walk(thing: Any, at: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield at, thing
    match thing:
        case dict():
            for key, value in thing.items():
                yield from _walk(value, (*at, str(key)))
        case list():
            for value in thing:
                yield from _walk(value, at)


def object_faults(recipe: Recipe, of_ways: list[Way]) -> Iterator[str]:
    """Compare what the objects of a recipe refer to with the gateways."""
    others = [way for way in of_ways if way.name != recipe.name] if recipe.complete else of_ways
    for thing in recipe.objects:
        where = f"{recipe.name}: {thing['kind']} {thing['metadata'].get('name')}"
        for at, value in _walk(thing):
            for way in others:
                for fault in _reference_faults(thing, at, value, way):
                    yield f"{where}: {'.'.join(at)}: {fault} ({way.name})"
        if recipe.complete:
            yield from _selector_faults(recipe, thing, where)


def _reference_faults(thing: Any, at: tuple[str, ...], value: Any, way: Way) -> Iterator[str]:
    kind, last = thing["kind"], at[-1:]
    if at == ("metadata", "namespace") and value != way.namespace:
        yield f"namespace {value}, not {way.namespace}"
    if last == ("matchNames",) and way.namespace not in value:
        yield f"namespaces {value}, not {way.namespace}"
    selects = kind in {"NetworkPolicy", "PodMonitor"} and last == ("matchLabels",)
    selects = selects and "namespaceSelector" not in at
    selects = selects or (
        thing["apiVersion"].startswith("networking.istio.io") and at == ("spec", "selector")
    )
    if selects and not value.items() <= way.labels.items():
        yield f"selects {value}, the pod has {dict(way.labels)}"
    if last == ("service",) and isinstance(value, dict) and "port" in value:
        yield from _service_faults(value.get("name"), value["port"].get("number"), way)
    if last in {("backendRefs",), ("serviceRef",)} and isinstance(value, dict):
        yield from _service_faults(value.get("name"), value.get("port"), way)
    if last == ("targetReference",) and value.get("name") != way.service:
        yield f"Service {value.get('name')}, not {way.service}"
    if last == ("dnsNames",) and f"{way.service}.{way.namespace}.svc" not in value:
        yield f"names {value}"


def _service_faults(name: object, port: object, way: Way) -> Iterator[str]:
    if name != way.service:
        yield f"Service {name}, not {way.service}"
    elif port not in way.ports:
        yield f"port {port}, the Service has {sorted(way.ports)}"


def _selector_faults(recipe: Recipe, thing: Any, where: str) -> Iterator[str]:
    """Within a complete recipe, selectors and references must meet its own pod."""
    way = Way.of(recipe)
    spec = thing.get("spec", {})
    match thing["kind"]:
        case "Service":
            selector = spec["selector"]
        case "Deployment" | "PodDisruptionBudget":
            selector = spec["selector"]["matchLabels"]
        case "HorizontalPodAutoscaler":
            selector = {}
            if spec["scaleTargetRef"]["name"] != way.workload:
                yield f"{where}: scales {spec['scaleTargetRef']['name']}, not {way.workload}"
        case _:
            selector = {}
    if not selector.items() <= way.labels.items():
        yield f"{where}: selects {selector}, the pod has {dict(way.labels)}"


_COMMAND: Final = re.compile(
    r"^\s*(?:[$#] )?(kubectl (?:[^\\\n]|\\\n)*)$|`(kubectl [^`]+)`", re.MULTILINE
)


def text_faults(texts: Mapping[str, str], of_ways: list[Way]) -> Iterator[str]:
    """Compare the commands in files with the gateways.

    Args:
        texts: Files by name.
        of_ways: The gateways.
    """
    for name, text in texts.items():
        for found in _COMMAND.finditer(text):
            command = found[1] or found[2]
            for fault in _command_faults(command, of_ways):
                yield f"{name}: `{command}`: {fault}"
        for namespaces in re.findall(r"matchNames: \[([^\]]*)\]", text):
            if namespaces != recipes.NAMESPACE:
                yield f"{name}: scrapes {namespaces}, not {recipes.NAMESPACE}"


def _command_faults(command: str, of_ways: list[Way]) -> Iterator[str]:
    for way in of_ways:
        for fault in _names_faults(command, way):
            yield f"{fault} ({way.name})"
    for container in re.findall(r"(?:--container|-c)[= ]([\w-]+)", command):
        if container not in _CONTAINERS:
            yield f"no container {container}"
    if "port-forward" in command:
        for port in map(int, re.findall(r"\b(\d{5})\b", command)):
            if port not in {PORT, ADMIN_PORT, TLS_PORT, READINESS_PORT}:
                yield f"nothing listens on {port}"


def _names_faults(command: str, way: Way) -> Iterator[str]:
    for namespace in re.findall(r"(?:--namespace[= ]|-n[= ]?)([\w-]+)", command):
        if namespace not in _OUTSIDE | {way.namespace}:
            yield f"namespace {namespace}, not {way.namespace}"
    applied = re.sub(r"(?:--kustomize|-k|--filename|-f)[= ]\S+", "", command)
    for workload in re.findall(r"\bdeploy(?:ment)?[/ ]([a-z][\w-]+)", applied):
        if workload != way.workload:
            yield f"Deployment {workload}, not {way.workload}"
    for key, value in re.findall(r"(?:-l|--selector)[= ]([\w./-]+)=([\w-]+)", command):
        if way.labels.get(key) != value:
            yield f"selects {key}={value}, the pod has {dict(way.labels)}"
