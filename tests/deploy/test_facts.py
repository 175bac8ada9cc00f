"""What must be true of deploy/, and of the commands and figures about it in the pages."""

import functools
import json
import os
import re
import shlex
import sys
from pathlib import Path
from typing import Any, Final

import botocore.loaders
import hcl2
import pytest
import yaml

from tests.deploy import recipes, schemas, tools
from tests.deploy.recipes import GATEWAY, LABEL, NAMESPACE, WAYS, file, kustomization, of_kind
from tools.tables import MEMORY_LIMIT

PORT, ADMIN_PORT, TLS_PORT = 25021, 25022, 25023
READINESS: Final = "http://localhost:15021/healthz/ready"
GRPC, HTTP = "istio-ingress-grpc", "istio-ingress-http"

# An ALB may still send requests for 30 s after deregistration, and the last ones continue for 30 s:
# docs/rollouts.md.
PRESTOP, DRAIN, DRAIN_DELAY, SHUTDOWN_GRACE, SPARE = 30, 30, 0, 1, 5
GRACE: Final = 70
DEREGISTRATION: Final = PRESTOP + DRAIN

SIDECAR: Final = yaml.safe_load(f"""
name: ghealth
restartPolicy: Always
terminationMessagePolicy: FallbackToLogsOnError
ports: [{{name: grpc-health, containerPort: {PORT}}}]
startupProbe:
  grpc: {{port: {PORT}, service: liveness}}
  periodSeconds: 1
  failureThreshold: 60
  terminationGracePeriodSeconds: 5 # not the pod's
livenessProbe:
  grpc: {{port: {PORT}, service: liveness}}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
  terminationGracePeriodSeconds: 5
resources:
  requests: {{cpu: 50m, memory: 64Mi}}
  limits: {{memory: {MEMORY_LIMIT}Mi}} # none of the CPU: throttling delays answers
securityContext:
  allowPrivilegeEscalation: false
  capabilities: {{drop: [ALL]}}
  runAsNonRoot: true
  readOnlyRootFilesystem: true
  runAsUser: 65532
  runAsGroup: 65532
  seccompProfile: {{type: RuntimeDefault}}
""")
"""But for image, environment and mounts. It has no readinessProbe: a slow ghealth would leave every
Service."""

ENVIRONMENT: Final = yaml.safe_load(f"""
tls:
  GHEALTH_TLS_LISTEN: "[::]:{TLS_PORT}"
  GHEALTH_TLS_CERT_FILE: /etc/ghealth/tls/tls.crt
  GHEALTH_TLS_KEY_FILE: /etc/ghealth/tls/tls.key
traffic-probe:
  GHEALTH_PROBE_URL: {READINESS},http://localhost:80/ghealth-ready
  GHEALTH_PROBE_HEADERS: '{{"Host": "shop.example.com"}}'
traffic-probe-tls:
  GHEALTH_PROBE_URL: {READINESS},https://shop.example.com:443/ghealth-ready
  SSL_CERT_FILE: /etc/ghealth/traffic-ca/ca.crt
""")
VOLUMES: Final = yaml.safe_load("""
tls: {name: ghealth-tls, secret: {secretName: ghealth-tls, defaultMode: 0444}}
traffic-probe-tls: {name: ghealth-traffic-ca, configMap: {name: ghealth-traffic-ca}}
""")
"""What the components add."""

RECORDED: Final = {
    found["name"]: found
    for found in yaml.safe_load_all((Path(__file__).parent / "recorded.yaml").read_text())
}
EACH_WAY: Final = pytest.mark.parametrize("way", WAYS)
EACH_FOLDER: Final = pytest.mark.parametrize("folder", RECORDED)


@pytest.fixture(scope="session")
def deploy() -> Path:
    return recipes.DEPLOY


def read(deploy: Path) -> dict[str, str]:
    """Return each text in deploy/ by its name."""
    return {
        str(found.relative_to(deploy)): found.read_text()
        for found in sorted(deploy.rglob("*"))
        if found.is_file()
    }


def gateway(deploy: Path, way: str) -> Any:
    """Return the one Deployment that has ghealth."""
    found = recipes.objects(deploy, way)
    (one,) = (it for it in found if it["kind"] == "Deployment" and "ghealth" in str(it))
    return one


def pod_of(deploy: Path, way: str) -> tuple[Any, Any, Any]:
    """Return the pod of a way, its ghealth and its istio-proxy."""
    pod = gateway(deploy, way)["spec"]["template"]["spec"]
    (sidecar,) = (found for found in pod["initContainers"] if found["name"] == "ghealth")
    (proxy,) = (found for found in pod["containers"] if found["name"] == "istio-proxy")
    return pod, sidecar, proxy


# The gateway's pod.


@EACH_WAY
def test_ghealth_is_a_native_sidecar(deploy: Path, way: str) -> None:
    """Each way adds the same container: started before istio-proxy, confined, with two probes."""
    pod, sidecar, _ = pod_of(deploy, way)
    varies = ("image", "env", "volumeMounts")
    adds = WAYS[way].adds
    tls = [{"name": "grpc-health-tls", "containerPort": TLS_PORT}] if "tls" in adds else []
    assert {name: value for name, value in sidecar.items() if name not in varies} == SIDECAR | {
        "ports": [*tls, *SIDECAR["ports"]]
    }
    assert re.fullmatch(r"[^\s@]+@sha256:[0-9a-f]{64}", sidecar["image"])
    environment = {"GHEALTH_DRAIN_DELAY": str(DRAIN_DELAY)}
    for name in adds:
        environment |= ENVIRONMENT.get(name, {})
    assert {found["name"]: found["value"] for found in sidecar["env"]} == environment
    volumes = [VOLUMES[name] for name in adds if name in VOLUMES]
    assert pod.get("volumes", []) == volumes
    mounts = {found["name"]: found["mountPath"] for found in sidecar.get("volumeMounts", [])}
    assert set(mounts) == {found["name"] for found in volumes}
    for path in environment.values():
        if path.startswith("/"):  # the files are in what is mounted
            assert str(Path(path).parent) in mounts.values()
    assert all(found["readOnly"] for found in sidecar.get("volumeMounts", []))


@EACH_WAY
def test_ghealth_accepts_its_environment(deploy: Path, way: str) -> None:
    """`ghealth settings` finds no mistake, but for files that are not here."""
    _, sidecar, _ = pod_of(deploy, way)
    given = {found["name"]: found["value"] for found in sidecar["env"]}
    files = ("_TLS_", "SSL_")
    settings(frozenset(it for it in given.items() if not any(part in it[0] for part in files)))


@EACH_WAY
def test_a_rollout_stops_at_a_ghealth_that_does_not_start(deploy: Path, way: str) -> None:
    """No old pod is deleted before a new one was ready for 10 s."""
    spec = gateway(deploy, way)["spec"]
    rolling = {"maxUnavailable": 0, "maxSurge": "25%"}
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
    assert spec["minReadySeconds"] == 10


@EACH_WAY
def test_the_pod_drains(deploy: Path, way: str) -> None:
    """Hook, drain and grace period fit; without the drain files, all stay as they were."""
    template = gateway(deploy, way)["spec"]["template"]
    pod, _, proxy = pod_of(deploy, way)
    annotations = dict(template["metadata"]["annotations"])
    annotations.pop("inject.istio.io/templates", None)
    # The kubelet checks ghealth, not pilot-agent.
    by_kubelet = {"sidecar.istio.io/rewriteAppHTTPProbers": "false"} if WAYS[way].injected else {}
    drains = WAYS[way].drains
    config = f"terminationDrainDuration: {DRAIN}s\n" if drains else recipes.PROXY_CONFIG
    assert annotations == by_kubelet | {"proxy.istio.io/config": config}
    hook = {name: value for name, value in proxy["lifecycle"]["preStop"].items() if value}
    assert hook == ({"sleep": {"seconds": PRESTOP}} if drains else recipes.HOOK)
    assert pod["terminationGracePeriodSeconds"] == (GRACE if drains else recipes.GRACE)
    assert GRACE >= PRESTOP + DRAIN + DRAIN_DELAY + SHUTDOWN_GRACE + SPARE
    assert WAYS[way].by_chart or pod["enableServiceLinks"] is False
    alias = [{"ip": "127.0.0.1", "hostnames": ["shop.example.com"]}]
    assert pod.get("hostAliases", []) == (alias if "traffic-probe-tls" in WAYS[way].adds else [])


@EACH_WAY
def test_names_fit_the_other_files(deploy: Path, way: str) -> None:
    """Namespace, Deployment, Service and label of the pods are those that all files name."""
    found = gateway(deploy, way)
    metadata = found["metadata"]
    assert (metadata["namespace"], metadata["name"]) == (NAMESPACE, GATEWAY)
    labels = found["spec"]["template"]["metadata"]["labels"]
    assert ("istio=ingress" in way) or labels.items() >= LABEL.items()
    if WAYS[way].complete:
        service = of_kind(recipes.objects(deploy, way), "Service")
        assert service["metadata"] == {"namespace": NAMESPACE, "name": GATEWAY}
        assert service["spec"]["type"] == "ClusterIP"
        assert service["spec"]["selector"].items() <= labels.items()
        ports = {it["port"]: it.get("targetPort", it["port"]) for it in service["spec"]["ports"]}
        assert ports.items() >= {80: 80, 443: 443}.items()


@EACH_WAY
def test_kubernetes_knows_every_field(deploy: Path, way: str) -> None:
    """Fields and types exist in the oldest and the newest Kubernetes."""
    found = recipes.objects(deploy, way)
    assert [fault for one in found for fault in schemas.faults(one)] == []


@pytest.mark.parametrize("way", ["kustomize/example", "Gateway API"])
def test_nodes_can_go_away(deploy: Path, way: str) -> None:
    """Pods that crash cannot block a node's drain."""
    budget = of_kind(recipes.objects(deploy, way), "PodDisruptionBudget")["spec"]
    assert budget == {
        "minAvailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": gateway(deploy, way)["spec"]["selector"],
    }


def test_a_gateway_scales_out_as_before(deploy: Path) -> None:
    """54 % of 150m is 80 % of 100m, rounded up: in the autoscaler, the values and docs/nodes.md."""
    target = -(-80 * 100 // 150)
    scaler = of_kind(recipes.objects(deploy, "Gateway API"), "HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"]["name"] == GATEWAY
    (metric,) = scaler["metrics"]
    assert metric["resource"]["name"] == "cpu"
    assert metric["resource"]["target"]["averageUtilization"] == target
    values = (deploy / "helm" / "values-native.yaml").read_text()
    assert f"targetCPUUtilizationPercentage: {target} " in values
    assert f"| {target} % |" in (tools.ROOT / "docs" / "nodes.md").read_text()


def test_the_gateway_names_its_parameters(deploy: Path) -> None:
    """Istio merges the ConfigMap that the Gateway names; it has nothing of the Service."""
    gateway, config = file(deploy, "gateway-api/gateway.yaml")
    reference = {"group": "", "kind": "ConfigMap", "name": config["metadata"]["name"]}
    assert gateway["spec"]["infrastructure"]["parametersRef"] == reference
    assert gateway["metadata"]["namespace"] == config["metadata"]["namespace"]
    assert set(config["data"]) == {"deployment", "horizontalPodAutoscaler", "podDisruptionBudget"}


def test_the_example_passes_pod_security_restricted(deploy: Path) -> None:
    """The example's namespace enforces `restricted`, its pods pass, and they spread."""
    found = kustomization(deploy, "kustomize/example")
    labels = of_kind(found, "Namespace")["metadata"]["labels"]
    assert labels == {"pod-security.kubernetes.io/enforce": "restricted"}
    pod, sidecar, proxy = pod_of(deploy, "kustomize/example")
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for name in ("allowPrivilegeEscalation", "capabilities", "runAsNonRoot"):
        assert proxy["securityContext"][name] == sidecar["securityContext"][name]
    spread = {it["topologyKey"]: it["matchLabelKeys"] for it in pod["topologySpreadConstraints"]}
    zone, node = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
    assert spread == {key: ["pod-template-hash"] for key in (zone, node)}


def test_the_values_are_the_charts(deploy: Path) -> None:
    """Istio's chart knows every value; an unknown key would be refused."""
    for kind in ("native", "drain"):
        assert list(schemas.chart(file(deploy, f"helm/values-{kind}.yaml")[0])) == []


def test_a_post_renderer_that_adds_nothing_fails(deploy: Path) -> None:
    """Without a Deployment that has the label, the post-renderer prints a line and exits with 1."""
    tools.prepare()
    base = "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}}"
    with pytest.raises(tools.ToolError, match="no Deployment has the label"):
        tools.run(f"{deploy}/helm/post-renderer/ghealth.sh", given=base)


# The load balancer.

AUTO_MODE: Final = {
    "eks.amazonaws.com/v1": "elbv2.k8s.aws/v1beta1",
    "eks.amazonaws.com/alb": "ingress.k8s.aws/alb",
    "eks.amazonaws.com": "elbv2.k8s.aws",
    "certificateARNs": "certificateArn",
}
"""Names of EKS Auto Mode, and of the controller."""


@EACH_FOLDER
def test_the_controller_was_given_the_same_objects(deploy: Path, folder: str) -> None:
    """What is rendered is what the controller was given, so it builds what is recorded."""
    given = {(it["kind"], it["metadata"]["name"]): it for it in RECORDED[folder]["objects"]}
    found = kustomization(deploy, f"aws/{folder}")
    if folder == "auto-mode":
        (params,) = (it for it in found if it["kind"] == "IngressClassParams")
        assert params["apiVersion"] == "eks.amazonaws.com/v1"
        assert of_kind(found, "IngressClass")["spec"]["controller"] == "eks.amazonaws.com/alb"
        text = json.dumps(found)
        for theirs, recorded in AUTO_MODE.items():
            text = text.replace(f'"{theirs}"', f'"{recorded}"')
        found = json.loads(text)
    elif folder != "gateway-api":
        found = [*found, *file(deploy, "aws/ingress/ingressclass.yaml")]
    service = given.pop(("Service", GATEWAY))
    assert {(it["kind"], it["metadata"]["name"]): it for it in found} == given
    assert {it["port"]: it["targetPort"] for it in service["spec"]["ports"]} == {80: 80, 443: 443}
    if folder != "auto-mode":
        # The files too: kustomize makes strings of annotations that are numbers.
        halves = [file(deploy, f"aws/ingress/ingress-{half}.yaml")[0] for half in ("grpc", "http")]
        assert [fault for it in (*found, *halves) for fault in schemas.faults(it)] == []


CHECKS: Final = yaml.safe_load(f"""
{GRPC}: {{port: {PORT}, path: /grpc.health.v1.Health/Check, codes: "0", matcher: grpc}}
{HTTP}: {{port: 15021, path: /healthz/ready, codes: "200", matcher: http}}
""")
TIMES: Final = {"interval": 10, "timeout": 5, "healthy": 2, "unhealthy": 2}


def group(name: str, *, tls: bool = False, tls_health: bool = False) -> dict[str, Any]:
    """Return a target group that the documentation promises."""
    port = 443 if tls else 80
    check = {"protocol": "HTTP"} | CHECKS[name] | TIMES
    if tls_health and name == GRPC:
        check |= {"port": TLS_PORT, "protocol": "HTTPS"}
    return {
        "type": "ip",
        "port": port,
        "protocol": "HTTPS" if tls else "HTTP",
        "version": "GRPC" if name == GRPC else "HTTP1",
        "addresses": "ipv4",
        "health_check": check,
        "attributes": {"deregistration_delay.timeout_seconds": str(DEREGISTRATION)},
        "service": f"{GATEWAY}:{port}",
        "opened": [port, check["port"]],
    }


@EACH_FOLDER
def test_the_controller_builds_what_is_promised(folder: str) -> None:
    """Two target groups with their health checks; gRPC is matched first, by host and packages."""
    built = RECORDED[folder]["built"]
    assert built["scheme"] == "internet-facing"
    assert built["addresses"] == ("dualstack" if folder == "dualstack" else "ipv4")
    protocols = {port: of["protocol"] for port, of in built["listeners"].items()}
    assert protocols == {"80": "HTTP", "443": "HTTPS"}
    redirect = "redirect to HTTPS:443 (HTTP_301)"
    on_80 = [built["listeners"]["80"]["default"]]
    on_80 += [rule["then"] for rule in built["rules"] if rule["listener"] == 80]
    assert redirect in on_80
    package = "/your.package.Service/*" if folder == "gateway-api" else "/your.package.*"
    rules = [rule for rule in built["rules"] if rule["listener"] == 443]
    assert [(rule["priority"], rule["if"], rule["then"]) for rule in rules] == [
        (1, ["host-header: grpc.example.com", f"path-pattern: {package}"], f"forward to {GRPC}"),
        (2, ["path-pattern: /*"], f"forward to {HTTP}"),
    ]
    tls = folder in {"end-to-end-tls", "tls-health"}
    promised = {
        name: group(name, tls=tls, tls_health=folder == "tls-health") for name in (GRPC, HTTP)
    }
    assert built["target_groups"] == promised


ARGUMENTS: Final = {
    "name": ("name", "name"),
    "type": ("target_type", "target-type"),
    "port": ("port", "port"),
    "protocol": ("protocol", "protocol"),
    "version": ("protocol_version", "protocol-version"),
    "health_check.port": ("port", "health-check-port"),
    "health_check.protocol": ("protocol", "health-check-protocol"),
    "health_check.path": ("path", "health-check-path"),
    "health_check.codes": ("matcher", "matcher"),
    "health_check.interval": ("interval", "health-check-interval-seconds"),
    "health_check.timeout": ("timeout", "health-check-timeout-seconds"),
    "health_check.healthy": ("healthy_threshold", "healthy-threshold-count"),
    "health_check.unhealthy": ("unhealthy_threshold", "unhealthy-threshold-count"),
}
"""A target group's values: arguments of Terraform's aws_lb_target_group, options of the AWS CLI."""


def values(name: str) -> dict[str, Any]:
    """Return the values of a target group by their names in `ARGUMENTS`."""
    promised = group(name)
    check = {f"health_check.{key}": value for key, value in promised["health_check"].items()}
    found = {"name": name} | promised | check
    return {key: found[key] for key in ARGUMENTS}


def test_terraform_makes_the_same_target_groups(deploy: Path) -> None:
    """Terraform's groups and rules are those of the Ingresses; it opens the ports."""
    text = (deploy / "aws" / "terraform" / "main.tf").read_text()
    found: dict[str, dict[str, Any]] = {}
    options = hcl2.SerializationOptions(strip_string_quotes=True, explicit_blocks=False)
    for block in hcl2.loads(text, serialization_options=options)["resource"]:
        for kind, named in block.items():
            found.setdefault(kind, {}).update(named)
    for number, (short, name) in enumerate({"grpc": GRPC, "http": HTTP}.items(), 1):
        made = found["aws_lb_target_group"][short]
        (check,) = made.pop("health_check")
        assert made.pop("vpc_id") == "${var.vpc_id}"
        assert made.pop("deregistration_delay") == DEREGISTRATION
        expected: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
        for key, value in values(name).items():
            of_check = key.startswith("health_check.")
            expected[of_check][ARGUMENTS[key][0]] = value
        assert made == expected[0]
        assert check == expected[1] | {"port": str(expected[1]["port"])}
        rule = found["aws_lb_listener_rule"][short]
        assert rule["priority"] == number
        target = f"${{aws_lb_target_group.{short}.arn}}"
        assert rule["action"] == [{"type": "forward", "target_group_arn": target}]
    opened = found["aws_vpc_security_group_ingress_rule"]["gateway"]["for_each"]
    assert re.findall(r"\d+", opened) == ["80", "15021", str(PORT)]


def test_the_cli_makes_the_same_target_groups(deploy: Path) -> None:
    """The options of target-groups.sh are those of AWS' own description of its API."""
    text = (deploy / "aws" / "target-groups.sh").read_text()
    model = botocore.loaders.Loader().load_service_model("elbv2", "service-2")
    created = {}
    for command in re.findall(r"aws elbv2 ((?:[^\\\n]|\\\n)*)", text):
        operation, *words = shlex.split(command.replace("\\\n", " ").rstrip(")"))
        words = words[: words.index(">")] if ">" in words else words
        names = [word.removeprefix("--") for word in words[::2]]
        options = dict(zip(names, words[1::2], strict=True))
        known = model["shapes"][model["operations"][_camel(operation)]["input"]["shape"]]["members"]
        assert {_camel(name) for name in names} - {"Query", "Output"} <= set(known), operation
        if operation == "create-target-group":
            created[options["name"]] = options
        if operation == "modify-target-group-attributes":
            delay = f"Key=deregistration_delay.timeout_seconds,Value={DEREGISTRATION}"
            assert options["attributes"] == delay
    assert set(created) == {GRPC, HTTP}
    for name, options in created.items():
        expected = {ARGUMENTS[key][1]: str(value) for key, value in values(name).items()}
        expected["matcher"] = f"{'Grpc' if name == GRPC else 'Http'}Code={expected['matcher']}"
        assert {option: options.get(option) for option in expected} == expected


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("-"))


def test_bindings_open_the_ports(deploy: Path) -> None:
    """Each target group has a binding, which opens the port of requests and that of its check."""
    for name, found in zip((GRPC, HTTP), file(deploy, "aws/targetgroupbinding.yaml"), strict=True):
        assert found["metadata"] == {"name": name, "namespace": NAMESPACE}
        (rule,) = found["spec"]["networking"]["ingress"]
        assert [it["port"] for it in rule["ports"]] == group(name)["opened"]
        assert found["spec"]["targetType"] == "ip"
        assert f"targetgroup/{name}/" in found["spec"]["targetGroupARN"]
        assert found["spec"]["serviceRef"] == {"name": GATEWAY, "port": 80}


# The other objects: file and specification, with the user's values.

OTHERS: Final = yaml.safe_load("""
networkpolicy.yaml:
  podSelector: {matchLabels: {istio: ingressgateway}}
  policyTypes: [Ingress]
  ingress:
    - from: # IPv4 and IPv6 of the load balancer's subnets, and of the nodes'
        - ipBlock: {cidr: 10.0.0.0/24}
        - ipBlock: {cidr: "2001:db8:0:1::/64"}
        - ipBlock: {cidr: 10.0.16.0/20}
        - ipBlock: {cidr: "2001:db8:0:2::/64"}
      ports: [{protocol: TCP, port: 25021}]
aws/end-to-end-tls/istio-gateway.yaml:
  selector: {istio: ingressgateway}
  servers:
    - hosts: ["*"] # an ALB sends no SNI
      port: {number: 443, name: https, protocol: HTTPS}
      tls: {mode: SIMPLE, credentialName: ingress-certificate}
kustomize/tls/certificate.yaml:
  secretName: ghealth-tls
  dnsNames: [istio-ingressgateway.istio-ingress.svc]
  privateKey: {algorithm: ECDSA, rotationPolicy: Always}
  issuerRef: {kind: ClusterIssuer, name: internal}
kustomize/traffic-probe/route.yaml:
  hosts: [shop.example.com]
  gateways: [istio-ingress/ingress]
  http: [{match: [{uri: {exact: /ghealth-ready}}], directResponse: {status: 200}}]
kustomize/traffic-probe/telemetry.yaml:
  selector: {matchLabels: {istio: ingressgateway}}
  accessLogging:
    - providers: [{name: envoy}]
      filter:
        expression: >-
          !has(request.url_path) || request.url_path != "/ghealth-ready" || response.code != 200
""")


@pytest.mark.parametrize("name", OTHERS)
def test_other_objects(deploy: Path, name: str) -> None:
    """Selectors, ports, hosts and paths are those of the recipes."""
    (found,) = file(deploy, name)
    assert found["spec"] == OTHERS[name]
    assert found["metadata"]["namespace"] == NAMESPACE
    assert list(schemas.faults(found)) == []


def test_the_pod_monitor_selects_the_pods(deploy: Path) -> None:
    """Namespace, label and port are those of the recipes."""
    (found,) = file(deploy, "observability/podmonitor.yaml")
    assert found["spec"]["namespaceSelector"] == {"matchNames": [NAMESPACE]}
    assert found["spec"]["selector"] == {"matchLabels": LABEL}
    (scraped,) = found["spec"]["podMetricsEndpoints"]
    assert (scraped["port"], scraped["path"]) == ("ghealth-metrics", "/metrics")


# Texts.


@functools.cache
def settings(given: frozenset[tuple[str, str]] = frozenset()) -> dict[str, str]:
    """Return each setting with its default, if ghealth accepts an environment."""
    held = {name: value for name, value in os.environ.items() if not name.startswith("GHEALTH_")}
    command = [sys.executable, "-m", "ghealth", "settings", "--output", "json"]
    printed = tools.run(*command, environment=held | dict(given))
    return {found["variable"]: found["default"] for found in json.loads(printed)}


def test_settings_and_ports_exist(deploy: Path) -> None:
    """Every setting that a file names is ghealth's, and so is every port."""
    known = settings()
    assert known["GHEALTH_LISTEN"] == f"[::]:{PORT}"
    assert known["GHEALTH_ADMIN_LISTEN"] == f"127.0.0.1:{ADMIN_PORT}"
    assert known["GHEALTH_PROBE_URL"] == READINESS
    assert known["GHEALTH_SHUTDOWN_GRACE"] in {f"{SHUTDOWN_GRACE}s", str(SHUTDOWN_GRACE)}
    by_kubernetes = {"GHEALTH_PORT"}
    for name, text in read(deploy).items():
        assert set(re.findall(r"GHEALTH_[A-Z0-9_]+", text)) <= {*known, *by_kubernetes}, name
        ports = set(map(int, re.findall(r"\b25\d{3}\b", text)))
        assert ports <= {PORT, ADMIN_PORT, TLS_PORT}, name


def test_what_deletes_a_load_balancer_has_a_warning(deploy: Path) -> None:
    """So has a NetworkPolicy that closes the gateway if it is alone."""
    kind = re.compile(r"^[ #]*(?:networking.istio.io/service-)?type: ClusterIP$", re.MULTILINE)
    warned = 0
    for name, text in read(deploy).items():
        for found in kind.finditer(text):
            assert "DELETE" in "".join(text[: found.start()].splitlines()[-4:]).upper(), name
            warned += 1
    assert warned == 3
    policy = (deploy / "networkpolicy.yaml").read_text()
    assert policy.startswith("# ONLY where a NetworkPolicy already selects these pods")


UNCOMMENT: Final = re.compile(
    r"^( *)# ((?:- |  )(?:name|value|containerPort): [^#\n]*)", re.MULTILINE
)
"""Lines of YAML that are offered as comments."""

SIDECARS: Final = (
    "helm/values-native.yaml",
    "kustomize/ghealth-native/deployment.yaml",
    "gateway-api/gateway.yaml",
)


@pytest.mark.parametrize("name", SIDECARS)
def test_lines_that_are_offered_as_comments_fit(deploy: Path, name: str) -> None:
    """Without comment marks, Envoy's `/ready` is probed, and the admin port scraped by its name."""
    text = UNCOMMENT.sub(r"\1\2", (deploy / name).read_text())
    *_, parsed = yaml.safe_load_all(text)
    if name.startswith("gateway-api"):
        parsed = yaml.safe_load(parsed["data"]["deployment"])
    pod = parsed.get("spec", {}).get("template", {}).get("spec", parsed)
    (sidecar,) = pod["initContainers"]
    assert {found["name"]: found["value"] for found in sidecar["env"]} == {
        "GHEALTH_DRAIN_DELAY": str(DRAIN_DELAY),
        "GHEALTH_PROBE_URL": f"{READINESS},http://localhost:15000/ready",
        "GHEALTH_ADMIN_LISTEN": f"[::]:{ADMIN_PORT}",
    }
    assert {"name": "ghealth-metrics", "containerPort": ADMIN_PORT} in sidecar["ports"]


COMMAND: Final = re.compile(
    r"^\s*(?:[$#] )?(kubectl (?:[^\\\n]|\\\n)*)$|`(kubectl [^`]+)`", re.MULTILINE
)


def test_commands_fit_the_recipes(deploy: Path) -> None:
    """Each kubectl command in a page names their namespace, Deployment, containers and label."""
    texts = read(deploy)
    for page in (tools.ROOT / "README.md", *(tools.ROOT / "docs").glob("*.md")):
        texts[f"../{page.name}"] = page.read_text()
    patterns = {
        r"(?:--namespace[= ]|-n[= ])([\w-]+)": {NAMESPACE, "monitoring"},
        r"\bdeploy(?:ment)?[/ ]([a-z][\w-]+)": {GATEWAY},
        r"(?:--container|-c)[= ]([\w-]+)": {"ghealth", "istio-proxy"},
        r"(?:-l|--selector)[= ]([\w./-]+=[\w-]+)": {"istio=ingressgateway"},
        r"port-forward.* (\d{5})": {str(ADMIN_PORT)},
    }
    seen = 0
    for name, text in texts.items():
        for found in COMMAND.finditer(text):
            command = re.sub(r"(?:--kustomize|-k|--filename|-f)[= ]\S+", "", found[1] or found[2])
            for pattern, allowed in patterns.items():
                named = set(re.findall(pattern, command))
                assert named <= allowed, f"{name}: {command}"
                seen += len(named)
    assert seen > 10


def test_the_compose_file_is_a_pod(deploy: Path) -> None:
    """A ghealth shares the gateway's network, and is confined; the gateway is a pinned Envoy."""
    (compose,), (envoy,) = file(deploy, "local/compose.yaml"), file(deploy, "local/envoy.yaml")
    found = compose["services"]["gateway"]
    admin = envoy["admin"]["address"]["socket_address"]["port_value"]
    (listener,) = envoy["static_resources"]["listeners"]
    assert listener["address"]["socket_address"]["port_value"] == 15021
    published = [f"127.0.0.1:{port}:{port}" for port in (admin, 15021, PORT)]
    assert found["ports"] == published
    assert found["volumes"] == ["./envoy.yaml:/etc/envoy/envoy.yaml:ro"]
    assert re.search(r":[\w.-]*v\d+\.\d+\.\d+$", found["image"])
    confined = {"read_only": True, "cap_drop": ["ALL"], "network_mode": "service:gateway"}
    assert compose["services"]["ghealth"] == {"build": "../.."} | confined


@pytest.mark.parametrize(
    "command",
    [
        "hadolint Dockerfile",
        "actionlint -shellcheck= -pyflakes= .github/workflows/*.yml",
        "zizmor --quiet --offline .github",
    ],
)
def test_linters_find_nothing(command: str) -> None:
    """The Dockerfile and the workflows have no fault that a linter knows."""
    tools.prepare()
    tools.run("sh", "-c", command)
