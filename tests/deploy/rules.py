"""What has to be true of the rendered objects, beyond what a schema says.

Most rules are an expected object: what it has is compared, field by field.
"""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ghealth.environment import PREFIX, defaults
from ghealth.status import LIVENESS
from tests.deploy.recipes import Recipe

_DEFAULTS: Final = defaults()
PORT: Final = _DEFAULTS.listen[0].port
OPERATORS_PORT: Final = 25022
"""Where the files about METRICS_LISTEN have it; it has no default."""
READINESS_PORT: Final = _DEFAULTS.target.port

_DEPLOY: Final = Path(__file__).parents[2] / "deploy"

ANY: Final = object()
"""Expected where the value is the user's, but there has to be one."""

ALB_GOES_ON: Final = 30
"""Seconds for which an ALB may go on sending new requests, and old ones may go on."""

DEREGISTRATION: Final = 2 * ALB_GOES_ON
"""Seconds after which an ALB cuts what it sent: preStop + drain (docs/rollouts.md)."""

SPARE: Final = 5
"""Seconds of the grace period that are left over for the runtime."""

_SIDECAR: Final = {
    "name": "ghealth",
    "image": ANY,
    "env": ANY,
    "ports": [{"name": "grpc-health", "containerPort": PORT}],
    "livenessProbe": {
        "grpc": {"port": PORT, "service": LIVENESS},
        "periodSeconds": 10,
        "timeoutSeconds": 5,
        "failureThreshold": 6,
    },
    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "128Mi"}},
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}
_LINKS: Final = {"enableServiceLinks": False}
_ROLLOUT: Final = {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}}
_PINNED: Final = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_DRAIN: Final = re.compile(r"terminationDrainDuration: (\d+)s\n")

_ALB: Final = "alb.ingress.kubernetes.io/"
_OF_BOTH: Final = {
    "target-type": "ip",
    "group.name": "istio-ingress",
    "scheme": ANY,
    "certificate-arn": ANY,
    "healthcheck-protocol": "HTTP",
    "healthcheck-interval-seconds": "10",
    "healthcheck-timeout-seconds": "5",
    "healthy-threshold-count": "2",
    "unhealthy-threshold-count": "2",
    "target-group-attributes": f"deregistration_delay.timeout_seconds={DEREGISTRATION}",
}
_OF_GRPC: Final = {
    "group.order": "1",
    "listen-ports": '[{"HTTPS": 443}]',
    "backend-protocol-version": "GRPC",
    "healthcheck-port": str(PORT),
    "healthcheck-path": "/grpc.health.v1.Health/Check",
    "success-codes": "0",
}
_OF_HTTP: Final = {
    "group.order": "2",
    "listen-ports": '[{"HTTP": 80}, {"HTTPS": 443}]',
    "ssl-redirect": "443",
    "healthcheck-port": str(READINESS_PORT),
    "healthcheck-path": _DEFAULTS.target.path,
    "success-codes": "200",
}

_CHECKS: Final = {
    "healthCheckProtocol": "HTTP",
    "healthCheckInterval": 10,
    "healthCheckTimeout": 5,
    "healthyThresholdCount": 2,
    "unhealthyThresholdCount": 2,
}
_DEREGISTRATION: Final = [
    {"key": "deregistration_delay.timeout_seconds", "value": f"{DEREGISTRATION}"}
]
_TARGET_GROUPS: Final = {
    "targetReference": {"name": "istio-ingressgateway"},
    "defaultConfiguration": {
        "targetType": "ip",
        "healthCheckConfig": _CHECKS
        | {
            "healthCheckPort": str(READINESS_PORT),
            "healthCheckPath": _DEFAULTS.target.path,
            "matcher": {"httpCode": "200"},
        },
        "targetGroupAttributes": _DEREGISTRATION,
    },
    "routeConfigurations": [
        {
            "routeIdentifier": {"kind": "GRPCRoute", "namespace": ANY, "name": ANY},
            "targetGroupProps": {
                "targetType": "ip",
                "protocolVersion": "GRPC",
                "healthCheckConfig": _CHECKS
                | {
                    "healthCheckPort": str(PORT),
                    "healthCheckPath": "/grpc.health.v1.Health/Check",
                    "matcher": {"grpcCode": "0"},
                },
                "targetGroupAttributes": _DEREGISTRATION,
            },
        }
    ],
}
_BINDING: Final = {
    "targetGroupARN": ANY,
    "targetType": "ip",
    "serviceRef": {"name": "istio-ingressgateway", "port": 443},
    "networking": {
        "ingress": [
            {
                "from": [{"securityGroup": {"groupID": ANY}}],
                "ports": [{"protocol": "TCP", "port": 443}, {"protocol": "TCP", "port": PORT}],
            }
        ]
    },
}
_POLICY: Final = {
    "podSelector": {"matchLabels": {"istio": "ingressgateway"}},
    "policyTypes": ["Ingress"],
    "ingress": [
        {
            "from": [{"ipBlock": {"cidr": ANY}}],
            "ports": [{"protocol": "TCP", "port": PORT}],
        }
    ],
}
_OF_KIND: Final = {
    "TargetGroupConfiguration": _TARGET_GROUPS,
    "TargetGroupBinding": _BINDING,
    "NetworkPolicy": _POLICY,
    "IngressClass": {"controller": "ingress.k8s.aws/alb"},
}


def differences(expected: Any, actual: Any, at: str) -> Iterator[str]:
    """Tell where an object is not as expected.

    Args:
        expected: The object; `ANY` in it stands for whatever is not empty.
        actual: What there is.
        at: Where in the recipe both are.
    """
    match expected, actual:
        case dict(), dict():
            for key in {**expected, **actual}:
                below = f"{at}.{key}"
                if key not in expected:
                    yield f"{below} is not expected"
                elif key not in actual:
                    yield f"{below} is missing"
                else:
                    yield from differences(expected[key], actual[key], below)
        case list(), list() if len(expected) == len(actual):
            for number, pair in enumerate(zip(expected, actual, strict=True)):
                yield from differences(*pair, f"{at}[{number}]")
        case _:
            wrong = (
                not actual
                if expected is ANY
                else (expected, type(expected))
                != (
                    actual,
                    type(actual),
                )
            )
            if wrong:
                yield f"{at} is {actual!r}, not {'something' if expected is ANY else expected!r}"


def faults(recipe: Recipe) -> list[str]:
    """Tell all that is wrong with a recipe."""
    found: list[str] = []
    gateways = [thing for thing in recipe.objects if _is_gateway(thing)]
    if recipe.native is not None:
        if len(gateways) != 1:
            found.append("there is not one gateway")
        for deployment in gateways:
            found += _pod_faults(recipe, deployment)
    for thing in recipe.objects:
        kind = thing["kind"]
        if kind in _OF_KIND:
            found += differences(_OF_KIND[kind], thing["spec"], kind)
        if kind == "Deployment" and not _is_gateway(thing) and "ghealth" in str(thing):
            found.append(f"{thing['metadata']['name']} is no gateway, but has ghealth")
        if kind == "Service" and thing["spec"].get("type") != "ClusterIP":
            found.append("Service.spec.type: behind an ALB it is ClusterIP")
        if kind == "ConfigMap":
            found += _parameters_faults(recipe, thing)
    ingresses = [thing for thing in recipe.objects if thing["kind"] == "Ingress"]
    if ingresses:
        found += _ingress_faults(ingresses)
    return [f"{recipe.name}: {fault}" for fault in found]


def _is_gateway(thing: Any) -> bool:
    labels = thing["metadata"].get("labels", {})
    is_gateway: bool = labels.get("istio") == "ingressgateway"
    return is_gateway and bool(thing["kind"] == "Deployment")


def _pod_faults(recipe: Recipe, deployment: Any) -> Iterator[str]:
    template = deployment["spec"]["template"]
    pod = template["spec"]
    place, other = "initContainers", "containers"
    if not recipe.native:
        place, other = other, place
    sidecars = [found for found in pod.get(place, []) if found.get("name") == "ghealth"]
    if len(sidecars) != 1 or any(found.get("name") == "ghealth" for found in pod.get(other, [])):
        yield f"ghealth is not once in {place} and nowhere else"
        return
    sidecar = sidecars[0]
    native = {"restartPolicy": "Always"} if recipe.native else {}
    yield from differences(_SIDECAR | native, sidecar, "ghealth")
    if not _PINNED.fullmatch(sidecar.get("image", "")):
        yield "ghealth.image is not pinned by its digest"

    annotations = template["metadata"].get("annotations", {})
    expected: dict[str, Any] = {"proxy.istio.io/config": ANY}
    if recipe.injected:
        expected["sidecar.istio.io/rewriteAppHTTPProbers"] = "false"
    if not recipe.native:
        expected["kubectl.kubernetes.io/default-container"] = "istio-proxy"
    ours = {key: value for key, value in annotations.items() if key != "inject.istio.io/templates"}
    yield from differences(expected, ours, "annotations")
    yield from differences(_ROLLOUT, deployment["spec"].get("strategy"), "strategy")
    if not recipe.by_chart:
        yield from differences(_LINKS, {"enableServiceLinks": pod.get("enableServiceLinks")}, "pod")
    yield from _environment_faults(sidecar.get("env") or [])
    yield from _drain_faults(recipe, sidecar, pod, annotations)


def _environment_faults(entries: list[Any]) -> Iterator[str]:
    """Ask ghealth itself what it makes of the environment."""
    given = {entry.get("name", ""): entry.get("value") for entry in entries}
    if not all(isinstance(value, str) for value in given.values()):
        yield "ghealth.env has a value that is no string"
        return
    known = {row.variable for row in _DEFAULTS.rows}
    for name in sorted(set(given) - known):
        yield f"ghealth.env: {name} is no setting"
    if mistakes := _mistakes(frozenset(given.items())):
        yield f"ghealth.env: {mistakes}"


@functools.cache
def _mistakes(given: frozenset[tuple[str, str]]) -> str:
    held = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    command = (sys.executable, "-m", "ghealth", "settings")
    environment = held | dict(given)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    return done.stderr.strip()


def _seconds(sidecar: Any, name: str, default: float) -> float:
    held = [entry["value"] for entry in sidecar["env"] if entry.get("name") == f"{PREFIX}{name}"]
    return float(held[0]) if held else default


def _drain_faults(
    recipe: Recipe, sidecar: Any, pod: Any, annotations: Mapping[str, str]
) -> Iterator[str]:
    """Add up the end of a pod: what each part takes has to fit into the grace period."""
    proxy = next(found for found in pod["containers"] if found.get("name") == "istio-proxy")
    match proxy.get("lifecycle"):
        case {"preStop": {"sleep": {"seconds": int(seconds)}}} if recipe.native:
            sleep = seconds
        case {"preStop": {"exec": {"command": ["sleep", str(seconds)]}}} if (
            seconds.isdigit() and not recipe.native
        ):
            sleep = int(seconds)
        case _:
            yield "istio-proxy.lifecycle: no preStop sleep, or none that its Kubernetes has"
            return
    drain = _DRAIN.fullmatch(annotations.get("proxy.istio.io/config", ""))
    if not drain:
        yield "annotations.proxy.istio.io/config has no terminationDrainDuration"
        return
    try:
        delay = _seconds(sidecar, "DRAIN_DELAY", _DEFAULTS.drain_delay)
        grace = _seconds(sidecar, "SHUTDOWN_GRACE", _DEFAULTS.shutdown_grace)
    except (KeyError, TypeError, ValueError):
        yield "ghealth.env has no seconds to add up"
        return
    alive = sleep + int(drain[1])
    if sleep < ALB_GOES_ON:
        yield f"istio-proxy.lifecycle: {sleep} s do not cover an ALB that goes on sending"
    if int(drain[1]) < ALB_GOES_ON:
        yield f"terminationDrainDuration: {drain[1]} s do not cover what an ALB sent last"
    if recipe.native and delay:
        yield "DRAIN_DELAY: SIGTERM comes when Envoy has gone; the pod's end is only delayed"
    if not recipe.native and delay < alive:
        yield f"DRAIN_DELAY: ghealth ends while Envoy still serves, {delay:g} s of {alive}"
    needed = alive + delay + grace + SPARE
    if not needed <= pod.get("terminationGracePeriodSeconds", 30) <= needed + 10:
        yield f"terminationGracePeriodSeconds is not the {needed:g} s that add up, rounded up"


def _parameters_faults(recipe: Recipe, config: Any) -> Iterator[str]:
    """A Gateway has to name its parameters, and these turn no Service's type by themselves."""
    gateway = next(found for found in recipe.objects if found["kind"] == "Gateway")
    named = {"group": "", "kind": "ConfigMap", "name": config["metadata"]["name"]}
    found = gateway["spec"].get("infrastructure", {}).get("parametersRef")
    yield from differences(named, found, "Gateway.infrastructure.parametersRef")
    spaces = (gateway["metadata"].get("namespace"), config["metadata"].get("namespace"))
    yield from differences(*spaces, "ConfigMap.namespace")
    if set(config["data"]) != {"deployment"}:
        yield "ConfigMap.data has more than the Deployment: a Service's type is the user's decision"


def _ingress_faults(ingresses: list[Any]) -> Iterator[str]:
    by_kind = {"grpc": _OF_GRPC, "http": _OF_HTTP}
    names = [found["metadata"]["name"].rpartition("-")[2] for found in ingresses]
    if sorted(names) != sorted(by_kind):
        yield "there is not one Ingress for gRPC and one for HTTP"
        return
    protocols = {
        found["metadata"]["annotations"].get(f"{_ALB}backend-protocol") for found in ingresses
    }
    if len(protocols) != 1 or not protocols <= {"HTTP", "HTTPS"}:
        yield f"backend-protocol is not one of HTTP and HTTPS for both, but {protocols}"
        return
    protocol = protocols.pop()
    backend = {
        "service": {
            "name": "istio-ingressgateway",
            "port": {"number": 443 if protocol == "HTTPS" else 80},
        }
    }
    for name, found in zip(names, ingresses, strict=True):
        expected = _OF_BOTH | by_kind[name] | {"backend-protocol": protocol}
        named = {f"{_ALB}{key}": value for key, value in expected.items()}
        yield from differences(named, found["metadata"]["annotations"], f"{name}.annotations")
        path = {"path": ANY, "pathType": "ImplementationSpecific", "backend": backend}
        rule: dict[str, Any] = {"host": ANY, "http": {"paths": [path]}}
        if name == "http":
            rule = {"http": {"paths": [path | {"path": "/", "pathType": "Prefix"}]}}
        spec = {"ingressClassName": "alb", "rules": [rule]}
        yield from differences(spec, found["spec"], f"{name}.spec")
        if name == "grpc" and not re.fullmatch(r"/(?!grpc\.)[\w.]+\.\*", str(_path(found))):
            yield "grpc.spec: the path is not that of one's own packages alone"


def _path(ingress: Any) -> Any:
    try:
        return ingress["spec"]["rules"][0]["http"]["paths"][0]["path"]
    except (KeyError, IndexError, TypeError):
        return None


def text_faults(texts: Mapping[str, str]) -> Iterator[str]:
    """Tell what is wrong with the files as people read them.

    Args:
        texts: Each file of deploy/, by its path from there.
    """
    known = {row.variable for row in _DEFAULTS.rows}
    for name, text in texts.items():
        for variable in sorted(set(re.findall(rf"{PREFIX}[A-Z0-9_]+", text)) - known):
            if variable != f"{PREFIX}PORT":  # what Kubernetes injects
                yield f"{name}: {variable} is no setting"
        for link in re.findall(r"\]\(([^):#]+)\)", text):
            if not (_DEPLOY / name).parent.joinpath(link).exists():
                yield f"{name}: {link} is not there"
        ports = {str(PORT)} | ({str(OPERATORS_PORT)} if "METRICS_LISTEN" in text else set())
        for port in sorted(set(re.findall(r"\b25\d{3}\b", text)) - ports):
            yield f"{name}: {port} is not the port"
        for found in re.finditer(
            r"^[ #]*type: (ClusterIP|LoadBalancer|NodePort)$", text, re.MULTILINE
        ):
            above = text[: found.start()].splitlines()[-4:]
            if not any("delete" in line.lower() for line in above if line.lstrip().startswith("#")):
                yield f"{name}: a Service's type is turned without a word of what that deletes"
        if "kind: NetworkPolicy" in text and not text.startswith(
            "# ONLY where a NetworkPolicy already"
        ):
            yield f"{name}: does not begin by saying that alone it makes the pods default-deny"


def compose_faults(compose: Any, envoy: Any) -> Iterator[str]:
    """Tell what is wrong with the gateway on one's own machine.

    Args:
        compose: compose.yaml.
        envoy: The configuration of its gateway.
    """
    admin = envoy["admin"]["address"]["socket_address"]["port_value"]
    listener = envoy["static_resources"]["listeners"][0]["address"]["socket_address"]["port_value"]
    if listener != READINESS_PORT:
        yield f"local/envoy.yaml listens on {listener}, not {READINESS_PORT}"
    gateway, ghealth = compose["services"]["gateway"], compose["services"]["ghealth"]
    published = {f"127.0.0.1:{port}:{port}" for port in (admin, READINESS_PORT, PORT)}
    if set(gateway["ports"]) != published:
        yield f"local/compose.yaml publishes {gateway['ports']}, not {sorted(published)}"
    mounted = ["./envoy.yaml:/etc/envoy/envoy.yaml:ro"]
    yield from differences(mounted, gateway["volumes"], "local/compose.yaml: gateway.volumes")
    expected = {
        "build": "../..",
        "network_mode": "service:gateway",
        "read_only": True,
        "cap_drop": ["ALL"],
    }
    yield from differences(expected, ghealth, "local/compose.yaml: ghealth")
    if not re.search(r":[\w.-]*v\d+\.\d+\.\d+$", gateway["image"]):
        yield f"local/compose.yaml: {gateway['image']} is not pinned to a version"
