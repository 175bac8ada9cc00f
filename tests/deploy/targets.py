"""The target groups that the documentation promises, compared with what each recipe becomes."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import botocore.loaders
import hcl2

from tests.deploy import controller, recipes, tools
from tests.deploy.recipes import DEPLOY, Recipe
from tests.deploy.rules import (
    ALB_GOES_ON,
    DEREGISTRATION,
    PORT,
    READINESS_PATH,
    READINESS_PORT,
    TLS_PORT,
    differences,
)

GRPC, HTTP = "istio-ingress-grpc", "istio-ingress-http"
BUILT: Final = ("ingress", "end-to-end-tls", "tls-health", "dualstack", "auto-mode", "gateway-api")
"""The recipes that the controller builds a load balancer from."""

_TIMES: Final = {"interval": 10, "timeout": 5, "healthy": 2, "unhealthy": 2}
_DELAY: Final = {"deregistration_delay.timeout_seconds": str(DEREGISTRATION)}
_CHECKS: Final[dict[str, dict[str, Any]]] = {
    GRPC: _TIMES
    | {
        "port": PORT,
        "protocol": "HTTP",
        "path": "/grpc.health.v1.Health/Check",
        "codes": "0",
        "matcher": "grpc",
    },
    HTTP: _TIMES
    | {
        "port": READINESS_PORT,
        "protocol": "HTTP",
        "path": READINESS_PATH,
        "codes": "200",
        "matcher": "http",
    },
}


def promised(name: str, *, tls: bool = False, tls_health: bool = False) -> dict[str, Any]:
    """Return a target group of the documentation.

    Args:
        name: `GRPC` or `HTTP`.
        tls: Whether requests go to the gateway with TLS.
        tls_health: Whether the gRPC health check does too.
    """
    port = 443 if tls else 80
    check = _CHECKS[name]
    if tls_health and name == GRPC:
        check = check | {"port": TLS_PORT, "protocol": "HTTPS"}
    return {
        "type": "ip",
        "port": port,
        "protocol": "HTTPS" if tls else "HTTP",
        "version": "GRPC" if name == GRPC else "HTTP1",
        "addresses": "ipv4",
        "health_check": check,
        "attributes": _DELAY,
        "service": f"{recipes.GATEWAY}:{port}",
        "opened": [port, check["port"]],
    }


def _balancer(folder: str) -> dict[str, Any]:
    """Return the load balancer that a recipe must become."""
    tls = folder in {"end-to-end-tls", "tls-health"}
    everywhere = ["0.0.0.0/0"] + (["::/0"] if folder == "dualstack" else [])
    redirect = "redirect to HTTPS:443 (HTTP_301)"
    pattern = "/your.package.*"
    default, rules = redirect, []
    if folder == "gateway-api":
        pattern, default = "/your.package.Service/*", "respond 404"
        rules = [{"listener": 80, "priority": 1, "if": ["path-pattern: /*"], "then": redirect}]
    of_grpc = ["host-header: grpc.example.com", f"path-pattern: {pattern}"]
    return {
        "scheme": "internet-facing",
        "addresses": "dualstack" if folder == "dualstack" else "ipv4",
        "open_to": [f"{port} from {cidr}" for port in (80, 443) for cidr in everywhere],
        "listeners": {
            "80": {"protocol": "HTTP", "default": default},
            "443": {"protocol": "HTTPS", "default": "respond 404"},
        },
        "rules": [
            *rules,
            {"listener": 443, "priority": 1, "if": of_grpc, "then": f"forward to {GRPC}"},
            {
                "listener": 443,
                "priority": 2,
                "if": ["path-pattern: /*"],
                "then": f"forward to {HTTP}",
            },
        ],
        "target_groups": {
            name: promised(name, tls=tls, tls_health=folder == "tls-health")
            for name in (GRPC, HTTP)
        },
    }


def faults(recipe: Recipe, service: Any) -> Iterator[str]:
    """Compare what the controller builds from a recipe with what is promised.

    Args:
        recipe: One of `aws/`.
        service: The gateway's, which the recipe names.
    """
    folder = recipe.name.removeprefix("aws/")
    if recipe.has_pods or folder not in BUILT:
        return
    classes = [thing for thing in recipe.objects if thing["kind"] == "IngressClass"]
    if classes and folder != "auto-mode":
        yield f"{recipe.name}: brings an IngressClass, which the controller's chart creates too"
    for thing in recipe.objects:
        if thing["kind"] == "Ingress":
            found = list(_annotation_faults(recipe.name, thing))
            yield from found
            if found:
                return
        if thing["kind"] == "TargetGroupConfiguration":
            yield from _configuration_faults(recipe.name, thing)
    try:
        built = controller.build((*recipe.objects, service))
    except (controller.RefusedError, LookupError, StopIteration, TypeError, ValueError) as error:
        yield f"{recipe.name}: the controller would refuse it: {error!r}"
        return
    for fault in differences(_balancer(folder), built, "load balancer"):
        yield f"{recipe.name}: {fault}"


_KNOWN_ANNOTATIONS: Final = frozenset(
    {
        "backend-protocol",
        "backend-protocol-version",
        "certificate-arn",
        "group.name",
        "group.order",
        "healthcheck-interval-seconds",
        "healthcheck-path",
        "healthcheck-port",
        "healthcheck-protocol",
        "healthcheck-timeout-seconds",
        "healthy-threshold-count",
        "ip-address-type",
        "listen-ports",
        "scheme",
        "ssl-redirect",
        "success-codes",
        "target-group-attributes",
        "target-type",
        "unhealthy-threshold-count",
    }
)
"""Those used here, of docs/guide/ingress/annotations.md in the controller's repository (v3.5.0)."""

_SAID: Final = _KNOWN_ANNOTATIONS - {"backend-protocol-version", "ip-address-type", "ssl-redirect"}
"""Set in each Ingress, although some are the controller's defaults: those have changed before."""


def _annotation_faults(where: str, ingress: Any) -> Iterator[str]:
    """Find annotations that the controller ignores, and those that are missing or no strings."""
    automatic = ingress["spec"].get("ingressClassName") == "istio-ingress"
    annotations = ingress["metadata"]["annotations"]
    needed = _SAID - ({"certificate-arn", "group.name", "scheme"} if automatic else set())
    if ingress["metadata"]["name"] == GRPC:
        needed |= {"backend-protocol-version"}
    if where == "aws/dualstack":
        needed |= {"ip-address-type"}
    for name in sorted(needed):
        if not annotations.get(f"{controller.PREFIX}{name}"):
            yield f"{where}: {ingress['metadata']['name']} has no {name}"
    if not automatic and annotations.get(f"{controller.PREFIX}group.name") != "istio-ingress":
        yield f"{where}: group.name is another, so it would be another load balancer"
    for name, value in annotations.items():
        if name.removeprefix(controller.PREFIX) not in _KNOWN_ANNOTATIONS:
            yield f"{where}: the controller knows no annotation {name}"
        if not isinstance(value, str):
            yield f"{where}: {name} is no string"
        if automatic and name == f"{controller.PREFIX}group.name":
            yield f"{where}: EKS Auto Mode ignores {name}"


def _configuration_faults(where: str, thing: Any) -> Iterator[str]:
    """Each block must be complete: a route's block replaces the default one as a whole."""
    spec = thing["spec"]
    blocks = [spec.get("defaultConfiguration", {})]
    blocks += [found.get("targetGroupProps", {}) for found in spec.get("routeConfigurations", [])]
    check = {
        "healthCheckInterval",
        "healthCheckPath",
        "healthCheckPort",
        "healthCheckProtocol",
        "healthCheckTimeout",
        "healthyThresholdCount",
        "matcher",
        "unhealthyThresholdCount",
    }
    for number, block in enumerate(blocks):
        said = {"targetType", "healthCheckConfig", "targetGroupAttributes"}
        said |= {"protocolVersion"} if number else set()
        missing = [*sorted(said - set(block))]
        given = block.get("healthCheckConfig", {})
        missing += sorted(check - {name for name, value in given.items() if value})
        for name in missing:
            yield f"{where}: block {number} of the target groups does not say {name}"


TERRAFORM: Final = {
    "aws_lb_target_group": {
        "deregistration_delay",
        "health_check",
        "name",
        "port",
        "protocol",
        "protocol_version",
        "target_type",
        "vpc_id",
    },
    "health_check": {
        "healthy_threshold",
        "interval",
        "matcher",
        "path",
        "port",
        "protocol",
        "timeout",
        "unhealthy_threshold",
    },
    "aws_lb_listener_rule": {"action", "condition", "listener_arn", "priority"},
    "aws_vpc_security_group_ingress_rule": {
        "for_each",
        "from_port",
        "ip_protocol",
        "referenced_security_group_id",
        "security_group_id",
        "to_port",
    },
}
"""The arguments that are used, each found in the AWS provider's pages under website/docs/r:
lb_target_group, lb_listener_rule and vpc_security_group_ingress_rule."""


def terraform_faults(text: str) -> Iterator[str]:
    """Compare the resources of main.tf with what is promised."""
    resources: dict[tuple[str, str], Any] = {}
    for block in _plain(hcl2.loads(text))["resource"]:
        for kind, named in block.items():
            for name, body in named.items():
                resources[kind, name] = body
    for (kind, name), body in resources.items():
        for argument in sorted(set(body) - TERRAFORM.get(kind, set())):
            yield f"terraform: {kind}.{name}: the provider documents no {argument}, or not here"
    for name, promise in (("grpc", GRPC), ("http", HTTP)):
        body = resources.get(("aws_lb_target_group", name), {})
        (check,) = body.get("health_check", [{}])
        for argument in sorted(set(check) - TERRAFORM["health_check"]):
            yield f"terraform: health_check: the provider documents no {argument}"
        expected = _of_api(promise)
        found = {
            "name": body.get("name"),
            "type": body.get("target_type"),
            "port": body.get("port"),
            "protocol": body.get("protocol"),
            "version": body.get("protocol_version"),
            "check port": check.get("port"),
            "check protocol": check.get("protocol"),
            "path": check.get("path"),
            "codes": check.get("matcher"),
            "interval": check.get("interval"),
            "timeout": check.get("timeout"),
            "healthy": check.get("healthy_threshold"),
            "unhealthy": check.get("unhealthy_threshold"),
        }
        yield from differences(expected, found, f"terraform: {name}")
        delay = body.get("deregistration_delay")
        yield from differences(2 * ALB_GOES_ON, delay, f"terraform: {name}.deregistration_delay")
        rule = resources.get(("aws_lb_listener_rule", name), {})
        (action,) = rule.get("action", [{}])
        target = f"${{aws_lb_target_group.{name}.arn}}"
        forward = {"type": "forward", "target_group_arn": target}
        yield from differences(forward, action, f"terraform: rule {name}")
        priority = 1 if name == "grpc" else 2
        yield from differences(priority, rule.get("priority"), f"terraform: rule {name}.priority")
    opened = resources.get(("aws_vpc_security_group_ingress_rule", "gateway"), {})
    for port in (80, READINESS_PORT, PORT):
        if f'"{port}"' not in str(opened.get("for_each")):
            yield f"terraform: {port} is not opened"


def _plain(thing: Any) -> Any:
    """Take the quotes and marks off that python-hcl2 leaves."""
    match thing:
        case dict():
            return {
                _plain(key): _plain(value)
                for key, value in thing.items()
                if not str(key).startswith("__")
            }
        case list():
            return [_plain(value) for value in thing]
        case str() if len(thing) > 1 and thing[0] == thing[-1] == '"':
            return thing[1:-1]
        case _:
            return thing


def _of_api(name: str) -> dict[str, Any]:
    """Return a promised target group in the order and types of AWS' API."""
    group = promised(name)
    check = group["health_check"]
    return {
        "name": name,
        "type": group["type"],
        "port": group["port"],
        "protocol": group["protocol"],
        "version": group["version"],
        "check port": str(check["port"]),
        "check protocol": check["protocol"],
        "path": check["path"],
        "codes": check["codes"],
        "interval": check["interval"],
        "timeout": check["timeout"],
        "healthy": check["healthy"],
        "unhealthy": check["unhealthy"],
    }


_COMMON_OPTIONS: Final = frozenset({"output", "query"})
"""Of every command of the AWS CLI."""


def cli_faults(text: str) -> Iterator[str]:
    """Compare the commands of target-groups.sh with AWS' own description of its API."""
    model = botocore.loaders.Loader().load_service_model("elbv2", "service-2")
    commands = re.findall(r"aws elbv2 ((?:[^\\\n]|\\\n)*)", text)
    created: dict[str, dict[str, str]] = {}
    for command in commands:
        operation, *words = shlex.split(command.replace("\\\n", " ").rstrip(")"))
        words = words[: words.index(">")] if ">" in words else words
        options = dict(_options(words))
        action = model["operations"][_camel(operation)]
        members = model["shapes"][action["input"]["shape"]]["members"]
        for option in options:
            if _camel(option) not in members and option not in _COMMON_OPTIONS:
                yield f"target-groups.sh: {operation} has no --{option}"
        if operation == "create-target-group":
            created[options.get("name", "")] = options
        if operation == "modify-target-group-attributes":
            delay = f"Key=deregistration_delay.timeout_seconds,Value={DEREGISTRATION}"
            held = options.get("attributes")
            yield from differences(delay, held, "target-groups.sh: attributes")
    for name in (GRPC, HTTP):
        options = created.get(name, {})
        matcher = "GrpcCode=" if name == GRPC else "HttpCode="
        found = {
            "name": options.get("name"),
            "type": options.get("target-type"),
            "port": options.get("port"),
            "protocol": options.get("protocol"),
            "version": options.get("protocol-version"),
            "check port": options.get("health-check-port"),
            "check protocol": options.get("health-check-protocol"),
            "path": options.get("health-check-path"),
            "codes": options.get("matcher", "").removeprefix(matcher),
            "interval": options.get("health-check-interval-seconds"),
            "timeout": options.get("health-check-timeout-seconds"),
            "healthy": options.get("healthy-threshold-count"),
            "unhealthy": options.get("unhealthy-threshold-count"),
        }
        expected = {key: str(value) for key, value in _of_api(name).items()}
        yield from differences(expected, found, f"target-groups.sh: {name}")


def _options(words: list[str]) -> Iterator[tuple[str, str]]:
    for number, word in enumerate(words):
        if word.startswith("--"):
            yield word.removeprefix("--"), words[number + 1]


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


def file_faults(folder: Path = DEPLOY / "aws") -> list[str]:
    """Check the files for Terraform and the AWS CLI."""
    terraform = (folder / "terraform" / "main.tf").read_text()
    return [*terraform_faults(terraform), *cli_faults((folder / "target-groups.sh").read_text())]


def service_of(recipe: Recipe) -> Any:
    """Return the gateway's Service of a complete recipe."""
    return next(thing for thing in recipe.objects if thing["kind"] == "Service")


def table(service: Any) -> str:
    """Return the target groups of each recipe, a line each."""
    lines = []
    for folder in BUILT:
        objects = tuple(_kustomized(folder))
        for name, group in controller.build((*objects, service))["target_groups"].items():
            check = group["health_check"]
            lines.append(
                f"{folder:<15}{name:<20}{group['protocol']} {group['version']:<6}"
                f"{check['protocol']} {check['port']} {check['path']} {check['codes']}"
            )
    return "\n".join(lines)


def _kustomized(folder: str) -> list[Any]:
    found: list[Any] = tools.kustomize(DEPLOY / "aws" / folder)
    return found
