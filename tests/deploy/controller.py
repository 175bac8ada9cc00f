"""A model of the AWS Load Balancer Controller: objects in, load balancer and target groups out.

It knows what the files in deploy/ use. `recorded.yaml` has what version 3.5.0 of the controller
builds from the same and from broken objects; `test_controller` compares the two.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any, Final

PREFIX: Final = "alb.ingress.kubernetes.io/"
ALB_GATEWAY: Final = "gateway.k8s.aws/alb"
Objects = tuple[Any, ...]

_DEFAULT_PATH: Final = {"GRPC": "/AWS.ALB/healthcheck", "HTTP1": "/", "HTTP2": "/"}
_DEFAULT_CODES: Final = {"GRPC": "12", "HTTP1": "200", "HTTP2": "200"}
_NOT_FOUND: Final = "respond 404"
_NOT_DUALSTACK: Final = "unsupported IPv6 configuration, lb not dual-stack"


class RefusedError(Exception):
    """The controller would refuse the objects; the message is the controller's."""


def build(objects: Objects) -> dict[str, Any]:
    """Return the load balancer that the controller would create.

    Raises:
        RefusedError: If it would refuse the objects.
    """
    if any(thing["kind"] == "Ingress" for thing in objects):
        return _Ingresses(objects).build()
    return _Gateway(objects).build()


def _of_kind(objects: Objects, kind: str) -> list[Any]:
    return [thing for thing in objects if thing["kind"] == kind]


def _service(objects: Objects, name: str) -> Any:
    return next(
        found for found in _of_kind(objects, "Service") if found["metadata"]["name"] == name
    )


def _target_port(service: Any, port: int) -> int:
    found = next(found for found in service["spec"]["ports"] if found["port"] == port)
    return int(found.get("targetPort", port))


def _family(service: Any) -> str:
    return "ipv6" if service["spec"].get("ipFamilies", ["IPv4"])[0] == "IPv6" else "ipv4"


def _port(text: str) -> int | str:
    return int(text) if text.isdigit() else text


def _redirect(port: int | str) -> str:
    return f"redirect to HTTPS:{port} (HTTP_301)"


def _balancer(
    scheme: str,
    addresses: str,
    listeners: Mapping[int, dict[str, str]],
    rules: list[dict[str, Any]],
    groups: Mapping[str, Any],
) -> dict[str, Any]:
    everywhere = ["0.0.0.0/0"] + (["::/0"] if addresses == "dualstack" else [])
    for number, rule in enumerate(rules):
        earlier = [found for found in rules[:number] if found["listener"] == rule["listener"]]
        rule["priority"] = len(earlier) + 1
    return {
        "scheme": scheme,
        "addresses": addresses,
        "open_to": [f"{port} from {cidr}" for port in sorted(listeners) for cidr in everywhere],
        "listeners": {str(port): listeners[port] for port in sorted(listeners)},
        "rules": rules,
        "target_groups": dict(sorted(groups.items())),
    }


class _Ingresses:
    """One group of Ingresses."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        self._members = sorted(_of_kind(objects, "Ingress"), key=self._order)
        parameters = _of_kind(objects, "IngressClassParams")
        self._parameters = parameters[0]["spec"] if parameters else {}

    def build(self) -> dict[str, Any]:
        """Return the load balancer of the group."""
        addresses = self._of_group("ip-address-type", "ipAddressType", "ipv4")
        listeners: dict[int, dict[str, str]] = {}
        rules: list[dict[str, Any]] = []
        groups: dict[str, Any] = {}
        for member in self._members:
            for port, protocol in self._ports(member):
                listeners[port] = {"protocol": protocol, "default": _NOT_FOUND}
        secure = self._of_group("ssl-redirect", "sslRedirectPort", "")
        for port, listener in sorted(listeners.items()):
            if secure and listener["protocol"] == "HTTP":
                listener["default"] = _redirect(secure)
                continue
            for member in self._members:
                if port in dict(self._ports(member)):
                    rules += self._rules(member, port)
                    groups[member["metadata"]["name"]] = self._group(member, addresses)
        scheme = self._of_group("scheme", "scheme", "internal")
        return _balancer(scheme, addresses, listeners, rules, groups)

    @staticmethod
    def _order(member: Any) -> tuple[int, str]:
        return int(_annotation(member, "group.order", "0")), member["metadata"]["name"]

    def _of_group(self, annotation: str, parameter: str, default: str) -> str:
        held = [_annotation(member, annotation, "") for member in self._members]
        of_members = set(filter(None, held)) or {default}
        if len(of_members) > 1:
            raise RefusedError(f"conflicting {annotation}: {sorted(of_members)}")
        return str(self._parameters.get(parameter, of_members.pop()))

    def _ports(self, member: Any) -> list[tuple[int, str]]:
        secure = _annotation(member, "certificate-arn", "")
        default = '[{"HTTPS": 443}]' if secure else '[{"HTTP": 80}]'
        listed = json.loads(_annotation(member, "listen-ports", default))
        return [(port, protocol) for entry in listed for protocol, port in entry.items()]

    def _rules(self, member: Any, port: int) -> Iterator[dict[str, Any]]:
        for rule in member["spec"]["rules"]:
            for path in rule["http"]["paths"]:
                conditions = []
                name = path["backend"]["service"]["name"]
                for extra in json.loads(_annotation(member, f"conditions.{name}", "[]")):
                    header = extra["httpHeaderConfig"]
                    values = ", ".join(header["values"])
                    conditions.append(f"{extra['field']} {header['httpHeaderName']}: {values}")
                if "host" in rule:
                    conditions.append(f"host-header: {rule['host']}")
                pattern = path["path"]
                match path["pathType"]:
                    case "Prefix":
                        pattern = f"{pattern.rstrip('/')}/*"
                    case "ImplementationSpecific":
                        pass
                    case unknown:
                        raise RefusedError(f"unsupported pathType: {unknown}")
                conditions.append(f"path-pattern: {pattern}")
                yield {
                    "listener": port,
                    "priority": 0,
                    "if": conditions,
                    "then": f"forward to {member['metadata']['name']}",
                }

    def _group(self, member: Any, addresses: str) -> dict[str, Any]:
        backend = member["spec"]["rules"][0]["http"]["paths"][0]["backend"]["service"]
        service = _service(self._objects, backend["name"])
        family = _family(service)
        if family == "ipv6" and addresses != "dualstack":
            where = f"{member['metadata']['namespace']}/{member['metadata']['name']}"
            raise RefusedError(f"ingress: {where}: {_NOT_DUALSTACK}")
        protocol = _annotation(member, "backend-protocol", "HTTP")
        version = _annotation(member, "backend-protocol-version", "HTTP1")
        check = {
            "port": _port(_annotation(member, "healthcheck-port", "traffic-port")),
            "protocol": _annotation(member, "healthcheck-protocol", protocol),
            "path": _annotation(member, "healthcheck-path", _DEFAULT_PATH[version]),
            "codes": _annotation(member, "success-codes", _DEFAULT_CODES[version]),
            "interval": int(_annotation(member, "healthcheck-interval-seconds", "15")),
            "timeout": int(_annotation(member, "healthcheck-timeout-seconds", "5")),
            "healthy": int(_annotation(member, "healthy-threshold-count", "2")),
            "unhealthy": int(_annotation(member, "unhealthy-threshold-count", "2")),
        }
        pairs = filter(None, _annotation(member, "target-group-attributes", "").split(","))
        return _target_group(
            _annotation(member, "target-type", "instance"),
            (protocol, version, family),
            (service, backend["port"]["number"]),
            check,
            dict(pair.split("=", 1) for pair in pairs),
        )


def _annotation(member: Any, name: str, default: str) -> str:
    held: str = member["metadata"].get("annotations", {}).get(f"{PREFIX}{name}", default)
    return held


def _target_group(
    kind: str,
    speaks: tuple[str, str, str],
    to: tuple[Any, int],
    check: dict[str, Any],
    attributes: dict[str, str],
) -> dict[str, Any]:
    protocol, version, family = speaks
    service, port = to
    target = _target_port(service, port)
    opened = [target] + ([check["port"]] if check["port"] not in {target, "traffic-port"} else [])
    return {
        "type": kind,
        "port": target,
        "protocol": protocol,
        "version": version,
        "addresses": family,
        "health_check": check | {"matcher": "grpc" if version == "GRPC" else "http"},
        "attributes": attributes,
        "service": f"{service['metadata']['name']}:{port}",
        "opened": opened,
    }


class _Gateway:
    """One Gateway of an ALB and the routes that are attached to it."""

    def __init__(self, objects: Objects) -> None:
        self._objects = objects
        (self._gateway,) = _of_kind(objects, "Gateway")
        name = self._gateway["spec"]["infrastructure"]["parametersRef"]["name"]
        configurations = _of_kind(objects, "LoadBalancerConfiguration")
        self._configuration = next(
            found["spec"] for found in configurations if found["metadata"]["name"] == name
        )

    def build(self) -> dict[str, Any]:
        """Return the load balancer of the Gateway."""
        listeners: dict[int, dict[str, str]] = {}
        rules: list[tuple[Any, dict[str, Any]]] = []
        groups: dict[str, Any] = {}
        for listener in self._gateway["spec"]["listeners"]:
            port = listener["port"]
            listeners[port] = {"protocol": listener["protocol"], "default": _NOT_FOUND}
            for route in [
                *_of_kind(self._objects, "GRPCRoute"),
                *_of_kind(self._objects, "HTTPRoute"),
            ]:
                if self._attached(route, listener["name"]):
                    rules += self._rules(route, port)
                    if any("backendRefs" in rule for rule in route["spec"]["rules"]):
                        groups[route["metadata"]["name"]] = self._group(route)
        rules.sort(key=lambda pair: pair[0])
        scheme = self._configuration.get("scheme", "internal")
        addresses = self._configuration.get("ipAddressType", "ipv4")
        return _balancer(scheme, addresses, listeners, [rule for _, rule in rules], groups)

    def _attached(self, route: Any, listener: str) -> bool:
        name = self._gateway["metadata"]["name"]
        return any(
            parent["name"] == name and parent.get("sectionName", listener) == listener
            for parent in route["spec"]["parentRefs"]
        )

    @staticmethod
    def _rules(route: Any, port: int) -> Iterator[tuple[Any, dict[str, Any]]]:
        """Yield each rule, with the key that it is sorted by."""
        hosts = route["spec"].get("hostnames", [])
        for rule in route["spec"]["rules"]:
            for match in rule["matches"]:
                if route["kind"] == "GRPCRoute":
                    method = match["method"]
                    pattern = f"/{method['service']}/{method.get('method', '*')}"
                else:
                    pattern = f"{match['path']['value'].rstrip('/')}/*"
                then = f"forward to {route['metadata']['name']}"
                for each in rule.get("filters", []):
                    then = _redirect(each["requestRedirect"]["port"])
                conditions = [f"host-header: {', '.join(hosts)}"] if hosts else []
                conditions.append(f"path-pattern: {pattern}")
                key = (port, not hosts, -len(pattern))
                yield key, {"listener": port, "priority": 0, "if": conditions, "then": then}

    def _group(self, route: Any) -> dict[str, Any]:
        reference = route["spec"]["rules"][0]["backendRefs"][0]
        held = [
            found["spec"]
            for found in _of_kind(self._objects, "TargetGroupConfiguration")
            if found["spec"]["targetReference"]["name"] == reference["name"]
        ]
        properties = self._properties(route, held[0] if held else {})
        kind = properties.get("targetType", "instance")
        service = _service(self._objects, reference["name"])
        if kind == "instance" and service["spec"].get("type") == "ClusterIP":
            raise RefusedError(
                "TargetGroup port is empty. When using Instance targets, your service must be of "
                "type 'NodePort' or 'LoadBalancer'"
            )
        family, addresses = _family(service), self._configuration.get("ipAddressType")
        if family == "ipv6" and addresses != "dualstack":
            raise RefusedError(_NOT_DUALSTACK)
        protocol = properties.get("protocol", "HTTP")
        default = "GRPC" if route["kind"] == "GRPCRoute" else "HTTP1"
        version = properties.get("protocolVersion", default)
        given = properties.get("healthCheckConfig", {})
        matcher = given.get("matcher", {})
        check = {
            "port": _port(given.get("healthCheckPort", "traffic-port")),
            "protocol": given.get("healthCheckProtocol", protocol),
            "path": given.get("healthCheckPath", _DEFAULT_PATH[version]),
            "codes": matcher.get("grpcCode" if version == "GRPC" else "httpCode")
            or _DEFAULT_CODES[version],
            "interval": given.get("healthCheckInterval", 15),
            "timeout": given.get("healthCheckTimeout", 5),
            "healthy": given.get("healthyThresholdCount", 3),
            "unhealthy": given.get("unhealthyThresholdCount", 3),
        }
        attributes = {
            each["key"]: each["value"] for each in properties.get("targetGroupAttributes", [])
        }
        speaks = (protocol, version, family)
        return _target_group(kind, speaks, (service, reference["port"]), check, attributes)

    @staticmethod
    def _properties(route: Any, configuration: Any) -> dict[str, Any]:
        properties: dict[str, Any] = dict(configuration.get("defaultConfiguration", {}))
        for found in configuration.get("routeConfigurations", []):
            one = found["routeIdentifier"]
            named = (one["kind"], one["namespace"], one["name"])
            metadata = route["metadata"]
            if named == (route["kind"], metadata["namespace"], metadata["name"]):
                properties |= found["targetGroupProps"]
        return properties
