"""Rules for the rendered objects, beyond the schemas.

Most rules are an expected object: the rendered one is compared with it, field by field.
"""

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Final

from tests.deploy import recipes
from tests.deploy.recipes import Recipe

PREFIX: Final = "GHEALTH_"
LIVENESS: Final = "liveness"
PORT, ADMIN_PORT, TLS_PORT = 25021, 25022, 25023
READINESS_PORT, READINESS_PATH = 15021, "/healthz/ready"
DRAIN_DELAY, SHUTDOWN_GRACE = 5.0, 1.0
"""ghealth's defaults; `test_the_defaults_are_ghealths` compares them with its own."""

CONTRACT: Final = frozenset(
    f"{PREFIX}{name}"
    for name in (
        "ADMIN_LISTEN",
        "TLS_LISTEN",
        "TLS_CERT_FILE",
        "TLS_KEY_FILE",
        "TLS_CLIENT_CA_FILE",
    )
)
"""Settings of the contract; those that ghealth does not have yet are not checked."""

_DEPLOY: Final = recipes.DEPLOY

ANY: Final = object()
"""Expected where the user chooses the value, but there must be one."""

ALB_GOES_ON: Final = 30
"""Seconds for which an ALB may still send new requests, and open ones may continue."""

DEREGISTRATION: Final = 2 * ALB_GOES_ON
"""Seconds after which an ALB ends open requests: preStop + drain (docs/rollouts.md)."""

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
        "terminationGracePeriodSeconds": 5,
    },
    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "192Mi"}},
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
_ROLLOUT: Final = {
    "type": "RollingUpdate",
    "rollingUpdate": {"maxUnavailable": 0, "maxSurge": "25%"},
}
_TLS: Final = {
    "ports": [
        {"name": "grpc-health-tls", "containerPort": TLS_PORT},
        {"name": "grpc-health", "containerPort": PORT},
    ],
    "volumeMounts": [{"name": "ghealth-tls", "mountPath": "/etc/ghealth/tls", "readOnly": True}],
}
_TLS_VOLUMES: Final = [
    {"name": "ghealth-tls", "secret": {"secretName": "ghealth-tls", "defaultMode": 0o444}}
]
_TLS_ENVIRONMENT: Final = {
    "GHEALTH_TLS_LISTEN": f"[::]:{TLS_PORT}",
    "GHEALTH_TLS_CERT_FILE": "/etc/ghealth/tls/tls.crt",
    "GHEALTH_TLS_KEY_FILE": "/etc/ghealth/tls/tls.key",
}
_PINNED: Final = re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}")
_DRAIN: Final = re.compile(r"terminationDrainDuration: (\d+)s\n")

_BINDING: Final = {
    "targetGroupARN": ANY,
    "targetType": "ip",
    "serviceRef": {"name": recipes.GATEWAY, "port": 80},
}
_POLICY: Final = {
    "podSelector": {"matchLabels": {"istio": "ingressgateway"}},
    "policyTypes": ["Ingress"],
    "ingress": [
        {
            # IPv4 and IPv6 of the load balancer's subnets, and of the nodes'.
            "from": [{"ipBlock": {"cidr": ANY}}] * 4,
            "ports": [{"protocol": "TCP", "port": PORT}],
        }
    ],
}
_GATEWAY_TLS: Final = {
    "selector": {"istio": "ingressgateway"},
    "servers": [
        {
            # An ALB sends no SNI.
            "hosts": ["*"],
            "port": {"number": 443, "name": "https", "protocol": "HTTPS"},
            "tls": {"mode": "SIMPLE", "credentialName": ANY},
        }
    ],
}
_MONITOR: Final = {
    "namespaceSelector": {"matchNames": [recipes.NAMESPACE]},
    "selector": {"matchLabels": {"istio": "ingressgateway"}},
    "podMetricsEndpoints": [
        {"port": "ghealth-metrics", "path": "/metrics", "interval": ANY, "scrapeTimeout": ANY}
    ],
}
_CERTIFICATE: Final = {
    "secretName": "ghealth-tls",
    "dnsNames": [f"{recipes.GATEWAY}.{recipes.NAMESPACE}.svc"],
    "privateKey": {"algorithm": "ECDSA", "rotationPolicy": "Always"},
    "issuerRef": {"kind": ANY, "name": ANY},
}
_OF_KIND: Final = {
    ("networking.k8s.io", "NetworkPolicy"): _POLICY,
    ("networking.istio.io", "Gateway"): _GATEWAY_TLS,
    ("monitoring.coreos.com", "PodMonitor"): _MONITOR,
    ("cert-manager.io", "Certificate"): _CERTIFICATE,
}
_BUDGET: Final = {"minAvailable": 1, "unhealthyPodEvictionPolicy": "AlwaysAllow", "selector": ANY}
_CONTROLLERS: Final = {"alb": "ingress.k8s.aws/alb", "istio-ingress": "eks.amazonaws.com/alb"}

SCALE_OUT: Final = 54
"""Percent of 150m at which a gateway scales out that did at 80 % of 100m before ghealth."""


def differences(expected: Any, actual: Any, at: str) -> Iterator[str]:
    """Return where an object is not as expected.

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
    """Return all mistakes in a recipe."""
    found: list[str] = []
    gateways = [thing for thing in recipe.objects if _is_gateway(thing)]
    if recipe.has_pods:
        if len(gateways) != 1:
            found.append("there is not one gateway")
        for deployment in gateways:
            found += _pod_faults(recipe, deployment)
            found += _existing_faults(recipe, deployment)
    for thing in recipe.objects:
        found += _object_faults(recipe, thing)
    bindings = [thing for thing in recipe.objects if thing["kind"] == "TargetGroupBinding"]
    if bindings:
        found += _binding_faults({it["metadata"]["name"]: it["spec"] for it in bindings})
    return [f"{recipe.name}: {fault}" for fault in found]


def _object_faults(recipe: Recipe, thing: Any) -> Iterator[str]:
    kind = thing["kind"]
    expected = _OF_KIND.get((thing["apiVersion"].partition("/")[0], kind))
    if expected:
        yield from differences(expected, thing["spec"], kind)
    match kind:
        case "PodDisruptionBudget":
            yield from differences(_BUDGET, thing["spec"], kind)
        case "IngressClass":
            controller = _CONTROLLERS.get(thing["metadata"]["name"])
            yield from differences(
                controller, thing["spec"].get("controller"), f"{kind}.controller"
            )
        case "Deployment" if not _is_gateway(thing) and "ghealth" in str(thing):
            yield f"{thing['metadata']['name']} is no gateway, but has ghealth"
        case "Service" if thing["spec"].get("type") != "ClusterIP":
            yield "Service.spec.type: behind an ALB it is ClusterIP"
        case "ConfigMap":
            yield from _parameters_faults(recipe, thing)
        case "HorizontalPodAutoscaler":
            yield from _autoscaler_faults(thing)
        case "Namespace":
            yield from _restricted_faults(recipe, thing)


def _is_gateway(thing: Any) -> bool:
    labels = thing["metadata"].get("labels", {})
    is_gateway: bool = labels.get("istio") == "ingressgateway"
    return is_gateway and bool(thing["kind"] == "Deployment")


def _binding_faults(bindings: Mapping[str, Any]) -> Iterator[str]:
    """Each target group has a binding, and it opens the traffic's port and the check's."""
    ports = {"istio-ingress-grpc": PORT, "istio-ingress-http": READINESS_PORT}
    if set(bindings) != set(ports):
        yield "there is not one TargetGroupBinding for gRPC and one for HTTP"
        return
    for name, port in ports.items():
        opened = [{"protocol": "TCP", "port": 80}, {"protocol": "TCP", "port": port}]
        source = {"securityGroup": {"groupID": ANY}}
        networking = {"ingress": [{"from": [source], "ports": opened}]}
        yield from differences(_BINDING | {"networking": networking}, bindings[name], name)


def _autoscaler_faults(autoscaler: Any) -> Iterator[str]:
    (metric,) = autoscaler["spec"]["metrics"]
    target = {"type": "Utilization", "averageUtilization": SCALE_OUT}
    expected = {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    yield from differences(expected, metric, "HorizontalPodAutoscaler.metrics")


def _restricted_faults(recipe: Recipe, namespace: Any) -> Iterator[str]:
    """Compare a namespace and its pods with PodSecurity `restricted`."""
    labels = namespace["metadata"].get("labels", {})
    enforced = {"pod-security.kubernetes.io/enforce": "restricted"}
    yield from differences(enforced, labels, "Namespace.labels")
    for deployment in filter(_is_gateway, recipe.objects):
        pod = deployment["spec"]["template"]["spec"]
        seccomp = {"type": "RuntimeDefault"}
        found = pod.get("securityContext", {}).get("seccompProfile")
        yield from differences(seccomp, found, "pod.securityContext.seccompProfile")
        for container in [*pod["containers"], *pod.get("initContainers", [])]:
            context = container.get("securityContext", {})
            for name, value in (
                ("allowPrivilegeEscalation", False),
                ("runAsNonRoot", True),
                ("capabilities", {"drop": ["ALL"]}),
            ):
                at = f"{container.get('name')}.securityContext.{name}"
                yield from differences(value, context.get(name), at)
        spread = pod.get("topologySpreadConstraints", [])
        keys = [found.get("topologyKey") for found in spread]
        expected = ["topology.kubernetes.io/zone", "kubernetes.io/hostname"]
        yield from differences(expected, keys, "pod.topologySpreadConstraints")


def _existing_faults(recipe: Recipe, deployment: Any) -> Iterator[str]:
    """A recipe keeps the gateway's settings, except those that it documents as overwritten."""
    if not recipe.existing or recipe.drains:
        return
    template = deployment["spec"]["template"]
    held = {
        "preStop": template["spec"]["containers"][0].get("lifecycle", {}).get("preStop"),
        "proxy.istio.io/config": template["metadata"]["annotations"].get("proxy.istio.io/config"),
        "grace": template["spec"].get("terminationGracePeriodSeconds"),
    }
    expected = {
        "preStop": recipes.EXISTING_HOOK,
        "proxy.istio.io/config": recipes.EXISTING_PROXY_CONFIG,
        "grace": recipes.EXISTING_GRACE,
    }
    yield from differences(expected, held, "existing gateway")


def _pod_faults(recipe: Recipe, deployment: Any) -> Iterator[str]:
    template = deployment["spec"]["template"]
    pod = template["spec"]
    sidecars = [found for found in pod.get("initContainers", []) if found.get("name") == "ghealth"]
    if len(sidecars) != 1 or any(found.get("name") == "ghealth" for found in pod["containers"]):
        yield "ghealth is not once in initContainers and nowhere else"
        return
    sidecar = sidecars[0]
    expected = _SIDECAR | {"restartPolicy": "Always"} | (_TLS if recipe.tls else {})
    yield from differences(expected, sidecar, "ghealth")
    if not _PINNED.fullmatch(sidecar.get("image", "")):
        yield "ghealth.image is not pinned by its digest"
    if recipe.tls:
        yield from differences(_TLS_VOLUMES, pod.get("volumes"), "volumes")

    annotations = template["metadata"].get("annotations", {})
    expected = {"proxy.istio.io/config": ANY}
    if recipe.injected:
        expected["sidecar.istio.io/rewriteAppHTTPProbers"] = "false"
    ours = {key: value for key, value in annotations.items() if key != "inject.istio.io/templates"}
    yield from differences(expected, ours, "annotations")
    yield from differences(_ROLLOUT, deployment["spec"].get("strategy"), "strategy")
    if not recipe.by_chart:
        yield from differences(_LINKS, {"enableServiceLinks": pod.get("enableServiceLinks")}, "pod")
    yield from _environment_faults(sidecar.get("env") or [], tls=recipe.tls)
    if recipe.drains:
        yield from _drain_faults(sidecar, pod, annotations)


def _environment_faults(entries: list[Any], *, tls: bool) -> Iterator[str]:
    """Return the mistakes that ghealth finds in the environment."""
    given = {entry.get("name", ""): entry.get("value") for entry in entries}
    if not all(isinstance(value, str) for value in given.values()):
        yield "ghealth.env has a value that is no string"
        return
    for name in sorted(set(given) - known_settings()):
        yield f"ghealth.env: {name} is no setting"
    held = {name: value for name, value in given.items() if name in _TLS_ENVIRONMENT}
    yield from differences(_TLS_ENVIRONMENT if tls else {}, held, "ghealth.env")
    coming = CONTRACT - ghealths_settings()
    asked = {name: value for name, value in given.items() if name not in coming | set(held)}
    if mistakes := ask_ghealth(frozenset(asked.items())).stderr.strip():
        yield f"ghealth.env: {mistakes}"


def known_settings() -> frozenset[str]:
    """Return the settings of ghealth, and those of the contract that it will have."""
    return ghealths_settings() | CONTRACT


def ghealths_settings() -> frozenset[str]:
    """Return the settings that ghealth itself knows."""
    return frozenset(re.findall(rf"{PREFIX}[A-Z0-9_]+", ask_ghealth(frozenset()).stdout))


@functools.cache
def ask_ghealth(given: frozenset[tuple[str, str]]) -> "subprocess.CompletedProcess[str]":
    """Run `ghealth settings` in an environment."""
    held = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    command = (sys.executable, "-m", "ghealth", "settings")
    environment = held | dict(given)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def _seconds(sidecar: Any, name: str, default: float) -> float:
    held = [entry["value"] for entry in sidecar["env"] if entry.get("name") == f"{PREFIX}{name}"]
    return float(held[0].removesuffix("s")) if held else default


def _drain_faults(sidecar: Any, pod: Any, annotations: Mapping[str, str]) -> Iterator[str]:
    """Add up the end of a pod: the parts must fit into the grace period."""
    proxy = next(found for found in pod["containers"] if found.get("name") == "istio-proxy")
    hook = proxy.get("lifecycle", {}).get("preStop", {})
    handlers = {name: handler for name, handler in hook.items() if handler is not None}
    match handlers:
        case {"sleep": {"seconds": int(sleep), **others}} if len(handlers) == 1 and not others:
            pass
        case _:
            yield f"istio-proxy.lifecycle: not one preStop handler, sleep, but {sorted(handlers)}"
            return
    drain = _DRAIN.fullmatch(annotations.get("proxy.istio.io/config", ""))
    if not drain:
        yield "annotations.proxy.istio.io/config has no terminationDrainDuration"
        return
    try:
        delay = _seconds(sidecar, "DRAIN_DELAY", DRAIN_DELAY)
        grace = _seconds(sidecar, "SHUTDOWN_GRACE", SHUTDOWN_GRACE)
    except (AttributeError, KeyError, TypeError, ValueError):
        yield "ghealth.env has no seconds to add up"
        return
    alive = sleep + int(drain[1])
    if sleep < ALB_GOES_ON:
        yield f"istio-proxy.lifecycle: {sleep} s do not cover an ALB that goes on sending"
    if int(drain[1]) < ALB_GOES_ON:
        yield f"terminationDrainDuration: {drain[1]} s do not cover what an ALB sent last"
    if delay:
        yield "DRAIN_DELAY: SIGTERM comes after Envoy has stopped; the pod's end is only delayed"
    needed = alive + delay + grace + SPARE
    if not needed <= pod.get("terminationGracePeriodSeconds", 30) <= needed + 10:
        yield f"terminationGracePeriodSeconds is not the {needed:g} s that add up, rounded up"


def _parameters_faults(recipe: Recipe, config: Any) -> Iterator[str]:
    """A Gateway must name its parameters, and these must not change a Service's type."""
    gateway = next(found for found in recipe.objects if found["kind"] == "Gateway")
    named = {"group": "", "kind": "ConfigMap", "name": config["metadata"]["name"]}
    found = gateway["spec"].get("infrastructure", {}).get("parametersRef")
    yield from differences(named, found, "Gateway.infrastructure.parametersRef")
    spaces = (gateway["metadata"].get("namespace"), config["metadata"].get("namespace"))
    yield from differences(*spaces, "ConfigMap.namespace")
    if set(config["data"]) != {"deployment", "horizontalPodAutoscaler", "podDisruptionBudget"}:
        yield "ConfigMap.data: not Deployment, autoscaler and budget, and nothing of the Service"


def text_faults(texts: Mapping[str, str]) -> Iterator[str]:
    """Return the mistakes in the text of the files.

    Args:
        texts: Each file of deploy/, by its path from there.
    """
    known = known_settings() | {f"{PREFIX}PORT"}  # what Kubernetes injects
    for name, text in texts.items():
        for variable in sorted(set(re.findall(rf"{PREFIX}[A-Z0-9_]+", text)) - known):
            yield f"{name}: {variable} is no setting"
        for link in re.findall(r"\]\(([^):#]+)\)", text):
            if not (_DEPLOY / name).parent.joinpath(link).exists():
                yield f"{name}: {link} is not there"
        ports = {str(PORT)}
        ports |= {str(ADMIN_PORT)} if "ADMIN_LISTEN" in text or "admin port" in text else set()
        ports |= {str(TLS_PORT)} if "TLS" in text or "kustomize/tls" in text else set()
        for port in sorted(set(re.findall(r"\b25\d{3}\b", text)) - ports):
            yield f"{name}: {port} is not the port"
        for found in re.finditer(
            r"^[ #]*(?:networking.istio.io/service-)?type: (ClusterIP|LoadBalancer|NodePort)$",
            text,
            re.MULTILINE,
        ):
            above = text[: found.start()].splitlines()[-4:]
            if not any("delete" in line.lower() for line in above if line.lstrip().startswith("#")):
                yield f"{name}: a Service's type is turned without a word of what that deletes"
        if "kind: NetworkPolicy" in text and not text.startswith(
            "# ONLY where a NetworkPolicy already"
        ):
            yield f"{name}: does not begin by saying that alone it makes the pods default-deny"


def compose_faults(compose: Any, envoy: Any) -> Iterator[str]:
    """Return the mistakes in the gateway of the compose file.

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
