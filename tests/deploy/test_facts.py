"""What must be true of deploy/, and of the commands and figures about it in the pages."""

import os
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from unittest import mock

import botocore.loaders
import hcl2
import pytest
import yaml

from ghealth.settings import Settings
from tests.deploy import recipes, schemas
from tests.deploy.recipes import GATEWAY, NAMESPACE, ROOT, WAYS, objects, of_kind
from tools.tables import DEFAULTS, MEMORY_LIMIT

VALUES, DRAIN_VALUES = "helm/values-native.yaml", "helm/values-drain.yaml"
PATCH, EXAMPLE = "kustomize/ghealth-native/deployment.yaml", "kustomize/example/gateway.yaml"
PROBE = "kustomize/traffic-probe/deployment.yaml"
PROBE_TLS = "kustomize/traffic-probe-tls/deployment.yaml"
GATEWAY_API, MONITOR = "gateway-api/gateway.yaml", "observability/podmonitor.yaml"
ON_GRPC, ON_HTTP = "aws/ingress/ingress-grpc.yaml", "aws/ingress/ingress-http.yaml"
BINDING, POLICY = "aws/targetgroupbinding.yaml", "networkpolicy.yaml"
TERRAFORM, CLI = "aws/terraform/main.tf", "aws/target-groups.sh"

Fact = Callable[..., None]
FAULTS: Final[list[tuple[Fact, str, str, str]]] = []

PORT, ADMIN_PORT, TLS_PORT = 25021, 25022, 25023
READINESS: Final = "http://localhost:15021/healthz/ready"
GRPC, HTTP = "istio-ingress-grpc", "istio-ingress-http"
LABEL: Final = {"istio": "ingressgateway"}

# An ALB may still send requests for 30 s after deregistration, and the last ones continue for 30 s:
# docs/rollouts.md.
PRESTOP, DRAIN, DRAIN_DELAY, SPARE = 30, 30, 0, 5
DEREGISTRATION: Final = f"Key=deregistration_delay.timeout_seconds,Value={PRESTOP + DRAIN}"

EXPECTED: Final = yaml.safe_load((Path(__file__).parent / "expected.yaml").read_text())
RECORDED: Final = {
    found["name"]: found
    for found in yaml.safe_load_all((Path(__file__).parent / "recorded.yaml").read_text())
}
EACH_WAY: Final = pytest.mark.parametrize("way", WAYS)
EACH_FOLDER: Final = pytest.mark.parametrize("folder", RECORDED)


@pytest.fixture(scope="session")
def deploy() -> Path:
    return recipes.DEPLOY


def fails_with(file: str, before: str, after: str) -> Callable[[Fact], Fact]:
    """Name a fault in a file of deploy/ that a fact must notice: `test_faults` puts it in."""

    def remember(fact: Fact) -> Fact:
        FAULTS.append((fact, file, before, after))
        return fact

    return remember


def read(deploy: Path) -> dict[str, str]:
    """Return each text in deploy/ by its name."""
    files = sorted(found for found in deploy.rglob("*") if found.is_file())
    return {str(found.relative_to(deploy)): found.read_text() for found in files}


def gateway(deploy: Path, way: str) -> tuple[Any, Any, Any, Any]:
    """Return the one Deployment that has ghealth, its pod, ghealth and istio-proxy."""
    deployments = (it for it in objects(deploy, way) if it["kind"] == "Deployment")
    (found,) = (it for it in deployments if "ghealth" in str(it))
    pod = found["spec"]["template"]["spec"]
    (sidecar,) = (it for it in pod["initContainers"] if it["name"] == "ghealth")
    (proxy,) = (it for it in pod["containers"] if it["name"] == "istio-proxy")
    return found, pod, sidecar, proxy


def environment(sidecar: Any) -> dict[str, str]:
    return {found["name"]: found["value"] for found in sidecar["env"]}


# The gateway's pod.


@fails_with(PATCH, "port: 25021", "port: 25012")
@fails_with(PATCH, "service: liveness", "service: ''")
@fails_with(PATCH, "periodSeconds: 1\n", "periodSeconds: 5\n")
@fails_with(PATCH, "restartPolicy: Always", "restartPolicy: OnFailure")
@fails_with(PATCH, "FallbackToLogsOnError", "File")
@fails_with(PATCH, "memory: 192Mi", "memory: 64Mi")
@fails_with(VALUES, "@sha256:" + "0" * 64, ":latest")
@fails_with(VALUES, "startupProbe:", "readinessProbe:")
@fails_with(VALUES, "initContainers:", "additionalContainers:")
@fails_with("kustomize/ghealth-native/kustomization.yaml", "gateway,ingress", "gateways")
@EACH_WAY
def test_ghealth_is_a_native_sidecar(deploy: Path, way: str) -> None:
    """Each way adds the same container: started before istio-proxy, confined, with two probes."""
    found, _, sidecar, _ = gateway(deploy, way)
    assert (found["metadata"]["namespace"], found["metadata"]["name"]) == (NAMESPACE, GATEWAY)
    varies = ("image", "env", "ports", "volumeMounts")
    same = {name: value for name, value in sidecar.items() if name not in varies}
    assert same == EXPECTED["sidecar"]
    assert sidecar["resources"]["limits"]["memory"] == f"{MEMORY_LIMIT}Mi"
    assert re.fullmatch(r"[^\s@]+@sha256:[0-9a-f]{64}", sidecar["image"])


@fails_with(PROBE, ":80/", ":8080/")
@fails_with(PROBE_TLS, "mountPath: /etc/ghealth/traffic-ca", "mountPath: /ca")
@fails_with(PROBE_TLS, "127.0.0.1", "10.0.0.1")
@EACH_WAY
def test_the_components_add_nothing_else(deploy: Path, way: str) -> None:
    """Environment, ports, mounts, volumes and aliases are those of the components."""
    _, pod, sidecar, _ = gateway(deploy, way)
    names = ("ghealth-native", *WAYS[way].adds)
    components = [EXPECTED["components"].get(name, {}) for name in names]

    def added(part: str) -> list[Any]:
        return [parts[part] for parts in components if part in parts]

    assert environment(sidecar) == {name: it[name] for it in added("env") for name in it}
    assert sidecar["ports"] == added("port")[::-1]
    assert sidecar.get("volumeMounts", []) == added("mount")
    assert pod.get("volumes", []) == added("volume")
    assert pod.get("hostAliases", []) == added("alias")


@fails_with(VALUES, "GHEALTH_DRAIN_DELAY", "GHEALTH_DRAIN_DELAYS")
@fails_with(PATCH, 'value: "0"', "value: soon")
@fails_with(PROBE, '\'{"Host"', "'{Host")
@EACH_WAY
def test_ghealth_accepts_its_environment(deploy: Path, way: str) -> None:
    """There is no mistake in its settings; files that are not here are left out."""
    _, _, sidecar, _ = gateway(deploy, way)
    given = {name: value for name, value in environment(sidecar).items() if "_TLS_" not in name}
    with mock.patch.dict(os.environ, given):
        assert Settings()


@fails_with(VALUES, "minReadySeconds: 10", "minReadySeconds: 0")
@fails_with(PATCH, "minReadySeconds: 10", "minReadySeconds: 0")
@fails_with(GATEWAY_API, "minReadySeconds: 10", "minReadySeconds: 0")
@EACH_WAY
def test_a_rollout_stops_at_a_ghealth_that_does_not_start(deploy: Path, way: str) -> None:
    """No old pod is deleted before a new one was ready for 10 s."""
    spec = gateway(deploy, way)[0]["spec"]
    rolling = {"maxUnavailable": 0, "maxSurge": "25%"}
    assert spec["strategy"] == {"type": "RollingUpdate", "rollingUpdate": rolling}
    assert spec["minReadySeconds"] == 10


@fails_with(DRAIN_VALUES, "seconds: 30", "seconds: 10")
@fails_with(DRAIN_VALUES, "Seconds: 70", "Seconds: 60")
@fails_with(DRAIN_VALUES, "Duration: 30s", "Duration: 5s")
@fails_with(GATEWAY_API, "exec: null", "exec: {command: [sleep]}")
@EACH_WAY
def test_the_pod_drains(deploy: Path, way: str) -> None:
    """Hook, drain and grace period fit; without the drain files, all stay as they were."""
    found, pod, _, proxy = gateway(deploy, way)
    config = found["spec"]["template"]["metadata"]["annotations"]["proxy.istio.io/config"]
    hook = {name: value for name, value in proxy["lifecycle"]["preStop"].items() if value}
    if "drain" in WAYS[way].adds:
        assert config == f"terminationDrainDuration: {DRAIN}s\n"
        assert hook == {"sleep": {"seconds": PRESTOP}}
        least = PRESTOP + DRAIN + DRAIN_DELAY + DEFAULTS.shutdown_grace + SPARE
        assert least <= pod["terminationGracePeriodSeconds"] == 70
    else:
        assert config == "holdApplicationUntilProxyStarts: true\n"
        assert hook == {"exec": {"command": ["sh", "-c", "sleep 20"]}}
        assert pod["terminationGracePeriodSeconds"] == 600


@fails_with(VALUES, 'Probers: "false"', 'Probers: "true"')
@fails_with(PATCH, "enableServiceLinks: false", "enableServiceLinks: true")
@EACH_WAY
def test_the_kubelet_checks_ghealth(deploy: Path, way: str) -> None:
    """Istio's injector leaves the probes alone, and no Service can inject GHEALTH_PORT."""
    found, pod, _, _ = gateway(deploy, way)
    annotations = found["spec"]["template"]["metadata"]["annotations"]
    expected = None if way == "Gateway API" else "false"  # which is not injected
    assert annotations.get("sidecar.istio.io/rewriteAppHTTPProbers") == expected
    assert way.startswith("Helm") or pod["enableServiceLinks"] is False  # no value of the chart


@fails_with(EXAMPLE, "AlwaysAllow", "IfHealthyBudget")
@pytest.mark.parametrize("way", ["kustomize/example", "Gateway API"])
def test_nodes_can_go_away(deploy: Path, way: str) -> None:
    """Pods that crash cannot block a node's drain."""
    assert of_kind(deploy, way, "PodDisruptionBudget")["spec"] == {
        "minAvailable": 1,
        "unhealthyPodEvictionPolicy": "AlwaysAllow",
        "selector": gateway(deploy, way)[0]["spec"]["selector"],
    }


@fails_with(GATEWAY_API, "Utilization: 54", "Utilization: 80")
def test_a_gateway_scales_out_as_before(deploy: Path) -> None:
    """54 % of 150m is 80 % of 100m, rounded up: in the autoscaler, the values and docs/nodes.md."""
    target = -(-80 * 100 // 150)
    (metric,) = of_kind(deploy, "Gateway API", "HorizontalPodAutoscaler")["spec"]["metrics"]
    utilization = {"type": "Utilization", "averageUtilization": target}
    assert metric["resource"] == {"name": "cpu", "target": utilization}
    values = (deploy / "helm" / "values-native.yaml").read_text()
    assert f"targetCPUUtilizationPercentage: {target} " in values
    assert f"| {target} % |" in (ROOT / "docs" / "nodes.md").read_text()


@fails_with(GATEWAY_API, "name-override: istio-ingressgateway", "name-override: ingress")
@fails_with(GATEWAY_API, "istio: ingressgateway", "istio: ingress")
@fails_with(GATEWAY_API, "name: ingress-ghealth\n  l", "name: ghealth\n  l")
def test_istio_makes_the_gateway_that_other_files_name(deploy: Path) -> None:
    """Name, label and ports are theirs; the ConfigMap is merged, and has nothing of the Service."""
    made, config = objects(deploy, GATEWAY_API)
    metadata, spec = made["metadata"], made["spec"]
    assert metadata["annotations"] == {"gateway.istio.io/name-override": GATEWAY}
    assert metadata["namespace"] == config["metadata"]["namespace"] == NAMESPACE
    reference = {"group": "", "kind": "ConfigMap", "name": config["metadata"]["name"]}
    assert spec["infrastructure"] == {"labels": LABEL, "parametersRef": reference}
    assert [listener["port"] for listener in spec["listeners"]] == [80, 443]
    assert set(config["data"]) == {"deployment", "horizontalPodAutoscaler", "podDisruptionBudget"}


@fails_with(EXAMPLE, "runAsNonRoot: true", "runAsNonRoot: false")
def test_the_example_passes_pod_security_restricted(deploy: Path) -> None:
    """The example's namespace enforces `restricted`, and its pods pass."""
    labels = of_kind(deploy, "kustomize/example", "Namespace")["metadata"]["labels"]
    assert labels == {"pod-security.kubernetes.io/enforce": "restricted"}
    _, pod, sidecar, proxy = gateway(deploy, "kustomize/example")
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    for name in ("allowPrivilegeEscalation", "capabilities", "runAsNonRoot"):
        assert proxy["securityContext"][name] == sidecar["securityContext"][name]


def test_the_example_is_what_other_files_name(deploy: Path) -> None:
    """Namespace, name and label are theirs; each version's pods spread over zones and nodes."""
    found, pod, _, _ = gateway(deploy, "kustomize/example")
    assert found["metadata"] == {"name": GATEWAY, "namespace": NAMESPACE, "labels": LABEL}
    labels = found["spec"]["template"]["metadata"]["labels"]
    assert labels == LABEL | {"sidecar.istio.io/inject": "true"}
    spread = {it["topologyKey"]: it["matchLabelKeys"] for it in pod["topologySpreadConstraints"]}
    zone, node = "topology.kubernetes.io/zone", "kubernetes.io/hostname"
    assert spread == {zone: ["pod-template-hash"], node: ["pod-template-hash"]}


def test_the_values_are_the_charts(deploy: Path) -> None:
    """Istio's chart knows every value; an unknown key would be refused."""
    for kind in ("native", "drain"):
        assert list(schemas.chart(*objects(deploy, f"helm/values-{kind}.yaml"))) == []


if schemas.SCHEMAS.is_dir():
    fails_with(VALUES, "minReadySeconds", "minReadySecond")(test_the_values_are_the_charts)


@fails_with("helm/post-renderer/ghealth.sh", "exit 1", "exit 0")
def test_a_post_renderer_that_adds_nothing_fails(deploy: Path) -> None:
    """Without a Deployment that has the label, the post-renderer prints a line and exits with 1."""
    base = "{apiVersion: v1, kind: ConfigMap, metadata: {name: x}}"
    script = f"{deploy}/helm/post-renderer/ghealth.sh 2>&1; echo $?"
    *_, error, code = recipes.run("sh", "-c", script, given=base).splitlines()
    assert "no Deployment has the label" in error
    assert code == "1"


# The load balancer.


@fails_with(ON_GRPC, 'healthcheck-port: "25021"', 'healthcheck-port: "15021"')
@fails_with(ON_GRPC, "Health/Check", "Health/check")
@fails_with(ON_GRPC, 'success-codes: "0"', 'success-codes: "12"')
@fails_with(ON_GRPC, 'group.order: "1"', 'group.order: "3"')
@fails_with(ON_GRPC, "path: /your.package.*", "path: /*")
@fails_with(ON_HTTP, "healthcheck-path: /healthz/ready", "healthcheck-path: /")
@fails_with(EXAMPLE, "type: ClusterIP", "type: LoadBalancer")
@fails_with(EXAMPLE, "targetPort: 443", "targetPort: 8443")
@EACH_FOLDER
def test_the_controller_was_given_the_same_objects(deploy: Path, folder: str) -> None:
    """What is rendered is what the controller was given, so it builds what is recorded."""
    found = [*objects(deploy, f"aws/{folder}"), of_kind(deploy, "kustomize/example", "Service")]
    if folder not in {"gateway-api", "auto-mode"}:
        found += objects(deploy, "aws/ingress/ingressclass.yaml")
    given = {(it["kind"], it["metadata"]["name"]): it for it in RECORDED[folder]["objects"]}
    assert {(it["kind"], it["metadata"]["name"]): it for it in found} == given


GROUPS: Final[dict[str, Any]] = {
    name: group["created"] for name, group in RECORDED["ingress"]["built"]["target_groups"].items()
}
"""The two target groups, in the options of `aws elbv2 create-target-group`."""


def test_the_health_checks_are_ghealths_and_the_gateways() -> None:
    """An ALB checks ghealth for gRPC and the gateway itself for HTTP, without TLS."""
    keys = ("health-check-port", "health-check-path", "matcher", "health-check-protocol")
    assert {name: tuple(map(group.get, keys)) for name, group in GROUPS.items()} == {
        GRPC: (PORT, "/grpc.health.v1.Health/Check", "GrpcCode=0", "HTTP"),
        HTTP: (15021, "/healthz/ready", "HttpCode=200", "HTTP"),
    }


@EACH_FOLDER
@pytest.mark.parametrize("name", [GRPC, HTTP])
def test_each_variant_makes_the_same_target_groups(folder: str, name: str) -> None:
    """But for TLS, of requests and of ghealth's check; both ports are opened."""
    created = dict(GROUPS[name])
    if folder in {"end-to-end-tls", "tls-health"}:
        created |= {"port": 443, "protocol": "HTTPS"}
    if (folder, name) == ("tls-health", GRPC):
        created |= {"health-check-port": TLS_PORT, "health-check-protocol": "HTTPS"}
    assert RECORDED[folder]["built"]["target_groups"][name] == {
        "created": created,
        "attributes": DEREGISTRATION,
        "addresses": "ipv4",
        "service": f"{GATEWAY}:{created['port']}",
        "opened": [created["port"], created["health-check-port"]],
    }


@EACH_FOLDER
def test_the_controller_matches_grpc_first(folder: str) -> None:
    """Host and packages of gRPC come first, then all else is HTTP; port 80 redirects."""
    built = RECORDED[folder]["built"]
    assert built["scheme"] == "internet-facing"
    assert built["addresses"] == ("dualstack" if folder == "dualstack" else "ipv4")
    assert [it["protocol"] for it in built["listeners"].values()] == ["HTTP", "HTTPS"]
    package = "/your.package.Service/*" if folder == "gateway-api" else "/your.package.*"
    grpc = ["host-header: grpc.example.com", f"path-pattern: {package}"]
    *of_80, first, second = (tuple(rule.values()) for rule in built["rules"])
    assert first == (443, 1, grpc, f"forward to {GRPC}")
    assert second == (443, 2, ["path-pattern: /*"], f"forward to {HTTP}")
    then = [built["listeners"]["80"]["default"], *(rule[-1] for rule in of_80)]
    assert then[-1] == "redirect to HTTPS:443 (HTTP_301)"


@fails_with(TERRAFORM, '"25021"\n', '"15021"\n')
@fails_with(TERRAFORM, "priority     = 1", "priority     = 3")
@fails_with(TERRAFORM, '"25021"]', "]")
def test_terraform_makes_the_same_target_groups(deploy: Path) -> None:
    """Terraform's groups and rules are those of the Ingresses; it opens the ports."""
    text = (deploy / "aws" / "terraform" / "main.tf").read_text()
    options = hcl2.SerializationOptions(strip_string_quotes=True, explicit_blocks=False)
    blocks = hcl2.loads(text, serialization_options=options)["resource"]
    found = {(kind, name): it for one in blocks for kind in one for name, it in one[kind].items()}
    for number, (short, name) in enumerate({"grpc": GRPC, "http": HTTP}.items(), 1):
        group = dict(GROUPS[name])
        # Terraform's words for a check are those of the CLI without what they begin and end with.
        of_check = [option for option in group if re.match("health|unhealthy|matcher", option)]
        words = {it: re.sub("^health-check-|-seconds$|-count$", "", it) for it in of_check}
        check = {words[it].replace("-", "_"): group.pop(it) for it in of_check}
        check |= {"port": str(check["port"]), "matcher": check["matcher"].partition("=")[2]}
        more = {"name": name, "vpc_id": "${var.vpc_id}", "deregistration_delay": PRESTOP + DRAIN}
        arguments = {option.replace("-", "_"): value for option, value in group.items()}
        expected = arguments | more | {"health_check": [check]}
        assert found["aws_lb_target_group", short] == expected
        rule = found["aws_lb_listener_rule", short]
        target = f"${{aws_lb_target_group.{short}.arn}}"
        assert rule["priority"] == number
        assert rule["action"] == [{"type": "forward", "target_group_arn": target}]
    opened = found["aws_vpc_security_group_ingress_rule", "gateway"]["for_each"]
    assert re.findall(r"\d+", opened) == ["80", "15021", str(PORT)]


@fails_with(CLI, "GrpcCode=0", "GrpcCode=0-99")
@fails_with(CLI, "--health-check-path", "--healthcheck-path")
@fails_with(CLI, "Value=60", "Value=30")
def test_the_cli_makes_the_same_target_groups(deploy: Path) -> None:
    """What target-groups.sh calls exists in AWS' own description of its API."""
    model = botocore.loaders.Loader().load_service_model("elbv2", "service-2")
    log = 'exec 3>&1 > /dev/null; aws() { echo "$*" >&3; echo arn; }; VPC_ID=vpc; . "$0"'
    called = recipes.run("sh", "-c", log, f"{deploy}/aws/target-groups.sh")
    created = {}
    for _, operation, *words in map(str.split, called.splitlines()):
        options = {name[2:]: value for name, value in zip(words[::2], words[1::2], strict=True)}
        named = {name.title().replace("-", "") for name in options}
        shape = model["operations"][operation.title().replace("-", "")]["input"]["shape"]
        assert named - {"Query", "Output"} <= set(model["shapes"][shape]["members"]), operation
        if operation == "create-target-group":
            created[options["name"]] = options
        if operation == "modify-target-group-attributes":
            assert options["attributes"] == DEREGISTRATION
    for name in (GRPC, HTTP):
        group = {option: str(value) for option, value in GROUPS[name].items()}
        assert created[name].items() >= group.items()


@fails_with(BINDING, "port: 25021", "port: 15021")
@fails_with(BINDING, "    port: 80\n  net", "    port: 443\n  net")
def test_bindings_open_the_ports(deploy: Path) -> None:
    """Each target group has a binding, which opens the port of requests and that of its check."""
    found = objects(deploy, BINDING)
    for name, binding in zip((GRPC, HTTP), found, strict=True):
        assert binding["metadata"] == {"name": name, "namespace": NAMESPACE}
        spec = binding["spec"]
        (rule,) = spec["networking"]["ingress"]
        assert [it["port"] for it in rule["ports"]] == [80, GROUPS[name]["health-check-port"]]
        assert spec["targetType"] == "ip"
        assert f"targetgroup/{name}/" in spec["targetGroupARN"]
        assert spec["serviceRef"] == {"name": GATEWAY, "port": 80}


# The other objects.


@fails_with("aws/end-to-end-tls/istio-gateway.yaml", '["*"]', "[grpc.example.com]")
@fails_with(POLICY, "istio: ingressgateway", "istio: ingress")
@fails_with("kustomize/traffic-probe/route.yaml", "exact:", "prefix:")
@fails_with("kustomize/traffic-probe/route.yaml", "[shop.example.com]", "[www.example.com]")
@fails_with("kustomize/traffic-probe/telemetry.yaml", "response.code != 200", "true")
@fails_with(MONITOR, "istio-ingress", "istio-system")
@pytest.mark.parametrize("name", EXPECTED["objects"])
def test_other_objects(deploy: Path, name: str) -> None:
    """Namespaces, selectors, ports, hosts and paths are those of the recipes."""
    (found,) = objects(deploy, name)
    given = {"namespace": found["metadata"].get("namespace"), "spec": found["spec"]}
    assert given == EXPECTED["objects"][name]


# The Ingresses as files too: kustomize makes strings of annotations that are numbers.
FILES: Final = (ON_GRPC, ON_HTTP, "aws/ingress/ingressclass.yaml", BINDING, GATEWAY_API)


@fails_with(PATCH, "capabilities:", "capability:")
@fails_with(EXAMPLE, "replicas: 2", "replicas: two")
@fails_with(ON_GRPC, 'healthcheck-port: "25021"', "healthcheck-port: 25021")
@pytest.mark.parametrize(
    "source", [*WAYS, *(f"aws/{name}" for name in RECORDED), *FILES, *EXPECTED["objects"]]
)
def test_kubernetes_knows_every_field(deploy: Path, source: str) -> None:
    """Fields and types exist in the oldest and the newest Kubernetes, and in custom resources."""
    found = objects(deploy, source)
    assert [fault for one in found for fault in schemas.faults(one)] == []


# Texts.


@fails_with(BINDING, "25021", "25031")
@fails_with("README.md", "GHEALTH_DRAIN_DELAY", "GHEALTH_DRAIN_TIME")
def test_settings_and_ports_exist(deploy: Path) -> None:
    """Every setting that a file names is ghealth's, and so is every port."""
    known = {row.variable: row.default for row in DEFAULTS.rows()}
    assert known["GHEALTH_LISTEN"] == f"[::]:{PORT}"
    assert known["GHEALTH_ADMIN_LISTEN"] == f"127.0.0.1:{ADMIN_PORT}"
    assert known["GHEALTH_PROBE_URL"] == READINESS
    by_kubernetes = {"GHEALTH_PORT"}
    for name, text in read(deploy).items():
        assert set(re.findall(r"GHEALTH_[A-Z0-9_]+", text)) <= {*known, *by_kubernetes}, name
        ports = set(map(int, re.findall(r"\b25\d{3}\b", text)))
        assert ports <= {PORT, ADMIN_PORT, TLS_PORT}, name


@fails_with(POLICY, "# ONLY where", "# Where")
@fails_with(VALUES, "DELETE its", "keep the")
def test_what_deletes_a_load_balancer_has_a_warning(deploy: Path) -> None:
    """So has a NetworkPolicy that closes the gateway if it is alone."""
    line = re.compile(r"^[ #]*(?:networking.istio.io/service-)?type: ClusterIP$", re.MULTILINE)
    before = [text[: at.start()] for text in read(deploy).values() for at in line.finditer(text)]
    assert ["DELETE" in "".join(text.splitlines()[-4:]).upper() for text in before] == [True] * 3
    policy = (deploy / "networkpolicy.yaml").read_text()
    assert policy.startswith("# ONLY where a NetworkPolicy already selects these pods")


UNCOMMENT: Final = re.compile(
    r"^( *)# ((?:- |  )(?:name|value|containerPort): [^#\n]*)", re.MULTILINE
)
"""Lines of YAML that are offered as comments."""


@fails_with(VALUES, "#   value: http://localhost:15021", "#   value: http://localhost:15020")
@fails_with(PATCH, "#   containerPort: 25022", "#   containerPort: 25021")
@pytest.mark.parametrize("name", [VALUES, PATCH, GATEWAY_API])
def test_lines_that_are_offered_as_comments_fit(deploy: Path, name: str) -> None:
    """Without comment marks, Envoy's `/ready` is probed, and the admin port scraped by its name."""
    text = UNCOMMENT.sub(r"\1\2", (deploy / name).read_text())
    (part,) = re.findall(r"^ *env:.*?(?=^ *startupProbe:)", text, re.MULTILINE | re.DOTALL)
    sidecar = yaml.safe_load(textwrap.dedent(part))
    assert environment(sidecar) == {
        "GHEALTH_DRAIN_DELAY": str(DRAIN_DELAY),
        "GHEALTH_PROBE_URL": f"{READINESS},http://localhost:15000/ready",
        "GHEALTH_ADMIN_LISTEN": f"[::]:{ADMIN_PORT}",
    }
    assert {"name": "ghealth-metrics", "containerPort": ADMIN_PORT} in sidecar["ports"]


COMMAND: Final = re.compile(
    r"^\s*(?:[$#] )?(kubectl (?:[^\\\n]|\\\n)*)$|`(kubectl [^`]+)`", re.MULTILINE
)
NAMED: Final = {
    r"(?:--namespace[= ]|-n[= ])([\w-]+)": {NAMESPACE, "monitoring"},
    r"\bdeploy(?:ment)?[/ ]([a-z][\w-]+)": {GATEWAY},
    r"(?:--container|-c)[= ]([\w-]+)": {"ghealth", "istio-proxy"},
    r"(?:-l|--selector)[= ]([\w./-]+=[\w-]+)": {"istio=ingressgateway"},
    r"port-forward.* (\d{5})": {str(ADMIN_PORT)},
}


@fails_with("README.md", "--container ghealth", "--container health")
@fails_with("README.md", "deployment/istio-ingressgateway", "deployment/ingress")
def test_commands_fit_the_recipes(deploy: Path) -> None:
    """The kubectl commands in all pages name their namespace, Deployment, containers and label."""
    pages = (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    texts = [*read(deploy).values(), *(page.read_text() for page in pages)]
    commands = [one or other for text in texts for one, other in COMMAND.findall(text)]
    assert len(commands) > 10
    for option, names in NAMED.items():
        for command in commands:
            files = re.compile(r"(?:--kustomize|-k|--filename|-f)[= ]\S+")
            assert set(re.findall(option, files.sub("", command))) <= names, command


@fails_with("local/compose.yaml", "read_only: true", "read_only: false")
def test_the_compose_file_is_a_pod(deploy: Path) -> None:
    """A ghealth shares the gateway's network, and is confined; the gateway is a pinned Envoy."""
    (compose,) = objects(deploy, "local/compose.yaml")
    found = compose["services"]["gateway"]
    assert found["ports"] == [f"127.0.0.1:{port}:{port}" for port in (15000, 15021, PORT)]
    assert found["volumes"] == ["./envoy.yaml:/etc/envoy/envoy.yaml:ro"]
    envoy = (deploy / "local" / "envoy.yaml").read_text()
    assert re.findall(r"port_value: (\d+)", envoy) == ["15000", "15021"]
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
    recipes.run("sh", "-c", f"{command} >&2")
