"""Puts faults into a copy of deploy/: the fact that each one concerns must fail."""

import inspect
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tests.deploy import recipes, schemas, tools
from tests.deploy import test_facts as facts

VALUES, PATCH, GATEWAY_API = facts.SIDECARS
DRAIN, EXAMPLE = "helm/values-drain.yaml", "kustomize/example/gateway.yaml"
COMPONENT, PROBE = "kustomize/ghealth-native/kustomization.yaml", "kustomize/traffic-probe"
ON_GRPC, ON_HTTP = "aws/ingress/ingress-grpc.yaml", "aws/ingress/ingress-http.yaml"
BINDING, POLICY = "aws/targetgroupbinding.yaml", "networkpolicy.yaml"
TERRAFORM, CLI = "aws/terraform/main.tf", "aws/target-groups.sh"
MONITOR, COMPOSE = "observability/podmonitor.yaml", "local/compose.yaml"

TRIED_BY: Final = {
    VALUES: "Helm 4",
    DRAIN: "Helm 3",
    PATCH: "kustomize on istioctl's",
    GATEWAY_API: "Gateway API",
    f"{PROBE}/deployment.yaml": "kustomize with traffic-probe",
    f"{PROBE}-tls/deployment.yaml": "kustomize with traffic-probe-tls",
}
"""The way to install that a file is tried by; others by the example."""

NOTICED: Final = (AssertionError, LookupError, ValueError, tools.ToolError, pytest.fail.Exception)

Fault = tuple[str, str, str]
FAULTS: Final[dict[Callable[..., None], list[Fault]]] = {
    facts.test_ghealth_is_a_native_sidecar: [
        (PATCH, "port: 25021", "port: 25012"),
        (PATCH, "service: liveness", "service: ''"),
        (PATCH, "periodSeconds: 1\n", "periodSeconds: 5\n"),
        (PATCH, "restartPolicy: Always", "restartPolicy: OnFailure"),
        (PATCH, "FallbackToLogsOnError", "File"),
        (PATCH, "memory: 192Mi", "memory: 64Mi"),
        (VALUES, "@sha256:" + "0" * 64, ":latest"),
        (VALUES, "startupProbe:", "readinessProbe:"),
        (VALUES, "initContainers:", "additionalContainers:"),
        (COMPONENT, "ingressgateway,ingress", "ingressgateways"),
        (f"{PROBE}/deployment.yaml", ":80/", ":8080/"),
        (f"{PROBE}-tls/deployment.yaml", "mountPath: /etc/ghealth/traffic-ca", "mountPath: /ca"),
    ],
    facts.test_ghealth_accepts_its_environment: [
        (VALUES, "GHEALTH_DRAIN_DELAY", "GHEALTH_DRAIN_DELAYS"),
        (PATCH, 'value: "0"', "value: soon"),
        (f"{PROBE}/deployment.yaml", '\'{"Host"', "'{Host"),
    ],
    facts.test_a_rollout_stops_at_a_ghealth_that_does_not_start: [
        (VALUES, "minReadySeconds: 10", "minReadySeconds: 0"),
        (PATCH, "minReadySeconds: 10", "minReadySeconds: 0"),
        (GATEWAY_API, "minReadySeconds: 10", "minReadySeconds: 0"),
    ],
    facts.test_the_pod_drains: [
        (VALUES, 'Probers: "false"', 'Probers: "true"'),
        (PATCH, "enableServiceLinks: false", "enableServiceLinks: true"),
        (DRAIN, "seconds: 30", "seconds: 10"),
        (DRAIN, "Seconds: 70", "Seconds: 60"),
        (DRAIN, "Duration: 30s", "Duration: 5s"),
        (GATEWAY_API, "exec: null", "exec: {command: [sleep]}"),
        (f"{PROBE}-tls/deployment.yaml", "127.0.0.1", "10.0.0.1"),
    ],
    facts.test_names_fit_the_other_files: [
        (GATEWAY_API, "name-override: istio-ingressgateway", "name-override: ingress"),
        (GATEWAY_API, "istio: ingressgateway", "istio: ingress"),
        (EXAMPLE, "type: ClusterIP", "type: LoadBalancer"),
        (EXAMPLE, "targetPort: 443", "targetPort: 8443"),
    ],
    facts.test_kubernetes_knows_every_field: [
        (PATCH, "capabilities:", "capability:"),
        (EXAMPLE, "replicas: 2", "replicas: two"),
    ],
    facts.test_nodes_can_go_away: [(EXAMPLE, "AlwaysAllow", "IfHealthyBudget")],
    facts.test_a_gateway_scales_out_as_before: [
        (GATEWAY_API, "Utilization: 54", "Utilization: 80")
    ],
    facts.test_the_gateway_names_its_parameters: [
        (GATEWAY_API, "name: ingress-ghealth\n  l", "name: ghealth\n  l")
    ],
    facts.test_the_example_passes_pod_security_restricted: [
        (EXAMPLE, "runAsNonRoot: true", "runAsNonRoot: false")
    ],
    facts.test_a_post_renderer_that_adds_nothing_fails: [
        ("helm/post-renderer/ghealth.sh", "exit 1", "exit 0")
    ],
    facts.test_the_controller_was_given_the_same_objects: [
        (ON_GRPC, 'healthcheck-port: "25021"', 'healthcheck-port: "15021"'),
        (ON_GRPC, 'healthcheck-port: "25021"', "healthcheck-port: 25021"),
        (ON_GRPC, "Health/Check", "Health/check"),
        (ON_GRPC, 'success-codes: "0"', 'success-codes: "12"'),
        (ON_GRPC, 'group.order: "1"', 'group.order: "3"'),
        (ON_GRPC, "path: /your.package.*", "path: /*"),
        (ON_HTTP, "healthcheck-path: /healthz/ready", "healthcheck-path: /"),
    ],
    facts.test_terraform_makes_the_same_target_groups: [
        (TERRAFORM, '"25021"\n', '"15021"\n'),
        (TERRAFORM, "priority     = 1", "priority     = 3"),
        (TERRAFORM, '"25021"]', "]"),
    ],
    facts.test_the_cli_makes_the_same_target_groups: [
        (CLI, "GrpcCode=0", "GrpcCode=0-99"),
        (CLI, "--health-check-path", "--healthcheck-path"),
        (CLI, "Value=60", "Value=30"),
    ],
    facts.test_bindings_open_the_ports: [
        (BINDING, "port: 25021", "port: 15021"),
        (BINDING, "    port: 80\n  net", "    port: 443\n  net"),
    ],
    facts.test_other_objects: [
        ("aws/end-to-end-tls/istio-gateway.yaml", '["*"]', "[grpc.example.com]"),
        (POLICY, "istio: ingressgateway", "istio: ingress"),
        (f"{PROBE}/route.yaml", "exact:", "prefix:"),
        (f"{PROBE}/route.yaml", "[shop.example.com]", "[www.example.com]"),
        (f"{PROBE}/telemetry.yaml", "response.code != 200", "true"),
    ],
    facts.test_the_pod_monitor_selects_the_pods: [(MONITOR, "istio-ingress", "istio-system")],
    facts.test_the_compose_file_is_a_pod: [(COMPOSE, "read_only: true", "read_only: false")],
    facts.test_settings_and_ports_exist: [
        (BINDING, "25021", "25031"),
        ("README.md", "GHEALTH_DRAIN_DELAY", "GHEALTH_DRAIN_TIME"),
    ],
    facts.test_what_deletes_a_load_balancer_has_a_warning: [
        (POLICY, "# ONLY where", "# Where"),
        (VALUES, "DELETE its", "keep the"),
    ],
    facts.test_lines_that_are_offered_as_comments_fit: [
        (VALUES, "#   value: http://localhost:15021", "#   value: http://localhost:15020"),
        (PATCH, "#   containerPort: 25022", "#   containerPort: 25021"),
    ],
    facts.test_commands_fit_the_recipes: [
        ("README.md", "--container ghealth", "--container health"),
        ("README.md", "deployment/istio-ingressgateway", "deployment/ingress"),
    ],
}

if schemas.SCHEMAS.is_dir():
    FAULTS[facts.test_the_values_are_the_charts] = [(VALUES, "minReadySeconds", "minReadySecond")]


@pytest.mark.parametrize(
    ("fact", "fault"),
    [(fact, fault) for fact, of_fact in FAULTS.items() for fault in of_fact],
    ids=lambda part: part.__name__ if callable(part) else f"{part[0]}: {part[2].strip()}",
)
def test_a_fault_is_noticed(tmp_path: Path, fact: Callable[..., None], fault: Fault) -> None:
    """With the fault, the fact fails, or what it needs cannot be rendered."""
    name, before, after = fault
    broken = tmp_path / "deploy"
    shutil.copytree(recipes.DEPLOY, broken)
    text = (broken / name).read_text()
    assert before in text
    (broken / name).write_text(text.replace(before, after))
    way = TRIED_BY.get(name, "kustomize/example")
    arguments = {"deploy": broken, "way": way, "folder": "ingress", "name": name}
    wanted = inspect.signature(fact).parameters
    with pytest.raises(NOTICED):
        fact(**{key: value for key, value in arguments.items() if key in wanted})
