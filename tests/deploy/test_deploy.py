"""Breaks each value that a rule is about, and expects a fault."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import pytest
import yaml

from tests.deploy import names, recipes, rules, schemas, targets, tools
from tests.deploy.__main__ import commands, texts
from tests.deploy.recipes import Recipe

Path = tuple[str | int, ...]
Faults = Callable[[Recipe], Iterable[str]]

REMOVED: Final = object()

FREE: Final = {
    "certificate-arn",
    "cidr",
    "credentialName",
    "groupID",
    "interval",
    "kind",
    "name",
    "scrapeTimeout",
    "targetGroupARN",
}
"""Where the value is the user's; that there is one is checked all the same."""


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    tools.prepare()


@pytest.fixture(scope="session")
def rendered(_tools: None) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in recipes.all_recipes()}


def leaves(thing: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield every value of an object and where it is."""
    match thing:
        case dict():
            for key, value in thing.items():
                yield from leaves(value, (*at, key))
        case list():
            for number, value in enumerate(thing):
                yield from leaves(value, (*at, number))
        case _:
            yield at, thing


def changed(recipe: Recipe, number: int, at: Path, value: Any) -> Recipe:
    """Copy a recipe with one value of one of its objects changed or removed."""
    objects = copy.deepcopy(recipe.objects)
    holder = objects[number]
    for key in at[:-1]:
        holder = holder[key]
    if value is REMOVED:
        del holder[at[-1]]
    else:
        holder[at[-1]] = value
    return Recipe(**{**vars(recipe), "objects": objects})


def other(value: Any) -> Any:
    """Make another value of the same type."""
    match value:
        case bool():
            return not value
        case int():
            return value * 2 + 1
        case _:
            return f"{value}x"


def survivors(recipe: Recipe, number: int, part: Path, faults: Faults = rules.faults) -> list[str]:
    """Break every value of a part of an object; return each that no rule noticed."""
    thing = recipe.objects[number]
    for key in part:
        thing = thing[key]
    found = []
    for at, value in leaves(thing, part):
        free = str(at[-1]).rpartition("/")[2] in FREE
        found += [
            f"{at}: {'removed' if broken is REMOVED else broken}"
            for broken in ((REMOVED,) if free else (REMOVED, other(value)))
            if not list(faults(changed(recipe, number, at, broken)))
        ]
    return found


def gateway_of(recipe: Recipe) -> tuple[int, Any]:
    """Find the gateway among the objects, and its number."""
    return next(
        (number, thing)
        for number, thing in enumerate(recipe.objects)
        if thing["kind"] == "Deployment"
        and thing["metadata"].get("labels", {}).get("istio") == "ingressgateway"
    )


def sidecar_of(recipe: Recipe) -> tuple[int, Path, Any]:
    """Find ghealth's container: the object's number, where it is there, and itself."""
    number, gateway = gateway_of(recipe)
    containers = gateway["spec"]["template"]["spec"]["initContainers"]
    index = next(i for i, found in enumerate(containers) if found["name"] == "ghealth")
    return number, (*TEMPLATE, "spec", "initContainers", index), containers[index]


PODS: Final = (
    *(
        f"Helm {version}: {what}"
        for version in (3, 4)
        for what in (
            "native, drain",
            "native, drain over a gateway's values",
            "native over a gateway's values",
            "post-renderer over a gateway's values",
        )
    ),
    "kustomize/example",
    "kustomize/native, drain on istioctl",
    "kustomize/native, drain, tls on istioctl",
    "kustomize/native, drain on an existing gateway",
    "kustomize/native, drain, tls on an existing gateway",
    "kustomize/native on an existing gateway",
    "gateway-api",
)
TEMPLATE: Final = ("spec", "template")
NATIVE: Final = "Helm 4: native, drain"


def test_what_is_in_deploy_has_no_fault(rendered: dict[str, Recipe]) -> None:
    """Every recipe follows the rules: the mutations below start from what is right."""
    assert [fault for recipe in rendered.values() for fault in rules.faults(recipe)] == []
    assert set(PODS) == {name for name, recipe in rendered.items() if recipe.has_pods}


def test_the_defaults_are_ghealths() -> None:
    """Ports, paths and times that the rules add up are ghealth's own defaults."""
    held = rules.ask_ghealth(frozenset()).stdout
    for expected in (
        f"GHEALTH_LISTEN=[::]:{rules.PORT}",
        f"GHEALTH_PROBE_URL=http://localhost:{rules.READINESS_PORT}{rules.READINESS_PATH}",
    ):
        assert expected in held
    for name, seconds in (
        ("DRAIN_DELAY", rules.DRAIN_DELAY),
        ("SHUTDOWN_GRACE", rules.SHUTDOWN_GRACE),
    ):
        assert re.search(rf"GHEALTH_{name}={seconds:g}s?\n", held)


@pytest.mark.parametrize("name", PODS)
def test_every_value_of_the_sidecar_is_checked(rendered: dict[str, Recipe], name: str) -> None:
    """No value of ghealth's container can be changed or removed without a fault."""
    number, at, _ = sidecar_of(rendered[name])
    assert survivors(rendered[name], number, at) == []


@pytest.mark.parametrize("name", PODS)
def test_every_value_of_the_pod_that_ghealth_needs_is_checked(
    rendered: dict[str, Recipe], name: str
) -> None:
    """Nor can the pod's annotations, the rollout, the preStop hook or the grace period."""
    recipe = rendered[name]
    number, gateway = gateway_of(recipe)
    annotations = gateway["spec"]["template"]["metadata"]["annotations"]
    ours = [key for key in annotations if key != "inject.istio.io/templates"]
    assert len(ours) == 1 + recipe.injected
    parts: list[Path] = [(*TEMPLATE, "metadata", "annotations", key) for key in ours]
    parts += [("spec", "strategy"), (*TEMPLATE, "spec", "terminationGracePeriodSeconds")]
    containers = gateway["spec"]["template"]["spec"]["containers"]
    proxy = next(i for i, found in enumerate(containers) if found["name"] == "istio-proxy")
    hook = (*TEMPLATE, "spec", "containers", proxy, "lifecycle", "preStop")
    kind = "sleep" if recipe.drains else "exec"
    parts.append((*hook, kind))
    if not recipe.by_chart:
        parts.append((*TEMPLATE, "spec", "enableServiceLinks"))
    if recipe.tls:
        parts.append((*TEMPLATE, "spec", "volumes"))
    assert [found for part in parts for found in survivors(recipe, number, part)] == []


@pytest.mark.parametrize("name", PODS)
def test_a_hook_has_one_handler(rendered: dict[str, Recipe], name: str) -> None:
    """A second preStop handler, which the API server refuses, is a fault."""
    recipe = rendered[name]
    number, gateway = gateway_of(recipe)
    containers = gateway["spec"]["template"]["spec"]["containers"]
    proxy = next(i for i, found in enumerate(containers) if found["name"] == "istio-proxy")
    hook = (*TEMPLATE, "spec", "containers", proxy, "lifecycle", "preStop")
    for handler in ("exec", "httpGet") if recipe.drains else ("sleep",):
        assert rules.faults(changed(recipe, number, (*hook, handler), {"seconds": 30}))


def test_the_drain_adds_up(rendered: dict[str, Recipe]) -> None:
    """preStop, drain, DRAIN_DELAY, SHUTDOWN_GRACE and 5 s fit; one second less does not."""
    recipe = rendered[NATIVE]
    number, _ = gateway_of(recipe)
    at = (*TEMPLATE, "spec", "terminationGracePeriodSeconds")
    assert rules.faults(changed(recipe, number, at, 66)) == []
    assert rules.faults(changed(recipe, number, at, 65))


@pytest.mark.parametrize(
    ("variable", "value", "noticed"),
    [
        ("GHEALTH_DRAIN_DELAY", "5", "only delayed"),
        ("GHEALTH_SHUTDOWN_GRACE", "30", "terminationGracePeriodSeconds"),
        ("GHEALTH_CACHE_TLL", "1", "no setting"),
        ("GHEALTH_CACHE_TTL", "soon", "GHEALTH_CACHE_TTL"),
        ("GHEALTH_TLS_LISTEN", "[::]:25023", "not expected"),
        ("CACHE_TTL", "1", "no setting"),
        ("GHEALTH_CACHE_TTL", 1, "no string"),
    ],
)
def test_the_environment_is_ghealths(
    rendered: dict[str, Recipe], variable: str, value: object, noticed: str
) -> None:
    """A variable that does not exist, that ghealth refuses, or that breaks the drain is a fault."""
    recipe = rendered[NATIVE]
    number, at, sidecar = sidecar_of(recipe)
    kept = [entry for entry in sidecar["env"] if entry["name"] != variable]
    broken = changed(recipe, number, (*at, "env"), [*kept, {"name": variable, "value": value}])
    assert noticed in "\n".join(rules.faults(broken))


@pytest.mark.parametrize("probe", ["readinessProbe", "startupProbe"])
def test_no_further_probe(rendered: dict[str, Recipe], probe: str) -> None:
    """A readiness or startup probe on ghealth is a fault, and so is a limit of its CPU."""
    recipe = rendered[NATIVE]
    number, at, _ = sidecar_of(recipe)
    grpc = {"grpc": {"port": rules.PORT}}
    assert rules.faults(changed(recipe, number, (*at, probe), grpc))
    assert rules.faults(changed(recipe, number, (*at, "resources", "limits", "cpu"), "100m"))


def service_of(rendered: dict[str, Recipe]) -> Any:
    return targets.service_of(rendered[NATIVE])


@pytest.mark.parametrize("folder", targets.BUILT)
def test_the_controller_builds_what_is_promised(rendered: dict[str, Recipe], folder: str) -> None:
    """From each recipe the controller builds the promised load balancer and target groups."""
    assert list(targets.faults(rendered[f"aws/{folder}"], service_of(rendered))) == []


@pytest.mark.parametrize("folder", [name for name in targets.BUILT if name != "gateway-api"])
def test_every_value_of_the_ingresses_is_checked(rendered: dict[str, Recipe], folder: str) -> None:
    """No annotation and no part of a rule can be changed or removed without a fault."""
    recipe, service = rendered[f"aws/{folder}"], service_of(rendered)
    of_ways = names.ways(list(rendered.values()))

    def faults(broken: Recipe) -> Iterator[str]:
        yield from targets.faults(broken, service)
        yield from names.object_faults(broken, of_ways)

    for number, thing in enumerate(recipe.objects):
        if thing["kind"] == "Ingress":
            part: tuple[Path, ...] = (("metadata", "annotations"), ("spec", "rules"))
            found = [left for at in part for left in survivors(recipe, number, at, faults)]
            assert found == []


def test_every_value_of_the_gateway_api_is_checked(rendered: dict[str, Recipe]) -> None:
    """No value of the LoadBalancerConfiguration, the routes or the target groups, either."""
    recipe, service = rendered["aws/gateway-api"], service_of(rendered)
    of_ways = names.ways(list(rendered.values()))

    def faults(broken: Recipe) -> Iterator[str]:
        yield from targets.faults(broken, service)
        yield from names.object_faults(broken, of_ways)

    for number, thing in enumerate(recipe.objects):
        match thing["kind"]:
            case "TargetGroupConfiguration":
                parts: list[Path] = [("spec",)]
            case "LoadBalancerConfiguration":
                parts = [("spec", "scheme")]
            case "GRPCRoute" | "HTTPRoute":
                rule = ("spec", "rules", 0)
                parts = [("spec", "parentRefs", 0, "name")]
                if "backendRefs" in thing["spec"]["rules"][0]:
                    parts.append((*rule, "backendRefs"))
                if thing["kind"] == "GRPCRoute":
                    parts += [("spec", "hostnames"), (*rule, "matches", 0, "method", "service")]
            case _:
                parts = []
        assert [left for at in parts for left in survivors(recipe, number, at, faults)] == []


def test_an_annotation_is_a_string(rendered: dict[str, Recipe]) -> None:
    """An annotation that is a number, such as 25021 without quotes in YAML, is a fault."""
    recipe = rendered["aws/ingress"]
    for number, thing in enumerate(recipe.objects):
        for key, value in thing["metadata"]["annotations"].items():
            if value.isdigit():
                at = ("metadata", "annotations", key)
                broken = changed(recipe, number, at, int(value))
                assert list(targets.faults(broken, service_of(rendered)))


@pytest.mark.parametrize("path", ["/*", "/grpc.*", "/grpc.health.v1.*"])
def test_nothing_but_the_packages_is_published(rendered: dict[str, Recipe], path: str) -> None:
    """A path that opens reflection and health of the backends to the internet is a fault."""
    recipe = rendered["aws/ingress"]
    number = next(
        i for i, thing in enumerate(recipe.objects) if thing["metadata"]["name"].endswith("grpc")
    )
    at = ("spec", "rules", 0, "http", "paths", 0, "path")
    assert list(targets.faults(changed(recipe, number, at, path), service_of(rendered)))


@pytest.mark.parametrize(
    "name",
    [
        "aws/targetgroupbinding",
        "aws/end-to-end-tls/istio-gateway",
        "aws/ingress/ingressclass",
        "networkpolicy",
        "observability/podmonitor",
        "kustomize/tls/certificate",
    ],
)
def test_every_value_of_the_other_objects_is_checked(
    rendered: dict[str, Recipe], name: str
) -> None:
    """The bindings, the policy, the monitor, the certificate, Istio's Gateway and the class."""
    for number, _ in enumerate(rendered[name].objects):
        assert survivors(rendered[name], number, ("spec",)) == []


def test_a_class_keeps_its_controller(rendered: dict[str, Recipe]) -> None:
    """EKS Auto Mode's class has another controller; `alb` is in no kustomization."""
    recipe = rendered["aws/auto-mode"]
    number = next(i for i, it in enumerate(recipe.objects) if it["kind"] == "IngressClass")
    assert survivors(recipe, number, ("spec", "controller")) == []
    for folder in ("ingress", "end-to-end-tls", "tls-health", "dualstack"):
        assert {it["kind"] for it in rendered[f"aws/{folder}"].objects} == {"Ingress"}


def test_auto_mode_has_no_group_annotation(rendered: dict[str, Recipe]) -> None:
    """EKS Auto Mode takes the group from the class; the annotation is a fault there."""
    recipe = rendered["aws/auto-mode"]
    number = next(i for i, it in enumerate(recipe.objects) if it["kind"] == "Ingress")
    at = ("metadata", "annotations", "alb.ingress.kubernetes.io/group.name")
    assert list(targets.faults(changed(recipe, number, at, "x"), service_of(rendered)))


def test_the_gateway_names_its_parameters(rendered: dict[str, Recipe]) -> None:
    """A Gateway that does not name the ConfigMap, or one elsewhere, has no ghealth."""
    recipe = rendered["gateway-api"]
    assert survivors(recipe, 0, ("spec", "infrastructure", "parametersRef")) == []
    assert rules.faults(changed(recipe, 1, ("metadata", "namespace"), "elsewhere"))
    assert rules.faults(changed(recipe, 1, ("data", "service"), "spec: {type: ClusterIP}"))


@pytest.mark.parametrize(
    ("kind", "part"),
    [
        ("PodDisruptionBudget", ("spec", "unhealthyPodEvictionPolicy")),
        ("PodDisruptionBudget", ("spec", "minAvailable")),
        ("HorizontalPodAutoscaler", ("spec", "metrics")),
    ],
)
def test_nodes_can_go_away(rendered: dict[str, Recipe], kind: str, part: Path) -> None:
    """Budget and autoscaler of the gateway: what a crashing pod may block, when it scales out."""
    seen = 0
    for name in ("kustomize/example", "gateway-api"):
        for number, thing in enumerate(rendered[name].objects):
            if thing["kind"] == kind:
                seen += 1
                assert survivors(rendered[name], number, part) == []
    assert seen


def test_the_example_passes_pod_security_restricted(rendered: dict[str, Recipe]) -> None:
    """Without the pod's seccompProfile, a container's context or the spread there is a fault."""
    recipe = rendered["kustomize/example"]
    number, gateway = gateway_of(recipe)
    pod = (*TEMPLATE, "spec")
    assert survivors(recipe, number, (*pod, "securityContext", "seccompProfile")) == []
    proxy = gateway["spec"]["template"]["spec"]["containers"][0]["securityContext"]
    for name in ("allowPrivilegeEscalation", "capabilities", "runAsNonRoot"):
        assert name in proxy
        at = (*pod, "containers", 0, "securityContext", name)
        assert rules.faults(changed(recipe, number, at, REMOVED))
    assert rules.faults(changed(recipe, number, (*pod, "topologySpreadConstraints"), []))


def test_a_component_touches_the_gateway_alone(rendered: dict[str, Recipe]) -> None:
    """A ghealth in another Deployment is a fault, and so is a Service with a load balancer."""
    recipe = rendered["kustomize/native, drain on istioctl"]
    number = next(i for i, it in enumerate(recipe.objects) if it["metadata"]["name"] == "istiod")
    image = (*TEMPLATE, "spec", "containers", 0, "image")
    assert rules.faults(changed(recipe, number, image, "registry.example.com/ghealth"))
    recipe = rendered["kustomize/example"]
    number = next(i for i, it in enumerate(recipe.objects) if it["kind"] == "Service")
    assert rules.faults(changed(recipe, number, ("spec", "type"), "LoadBalancer"))


@pytest.mark.parametrize(
    ("name", "kind", "at", "value"),
    [
        ("networkpolicy", "NetworkPolicy", ("metadata", "namespace"), "istio-system"),
        (
            "networkpolicy",
            "NetworkPolicy",
            ("spec", "podSelector", "matchLabels", "istio"),
            "ingress",
        ),
        (
            "observability/podmonitor",
            "PodMonitor",
            ("spec", "namespaceSelector", "matchNames"),
            ["istio-system"],
        ),
        (
            "observability/podmonitor",
            "PodMonitor",
            ("spec", "selector", "matchLabels", "istio"),
            "ingress",
        ),
        ("aws/targetgroupbinding", "TargetGroupBinding", ("spec", "serviceRef", "port"), 8443),
        (
            "aws/targetgroupbinding",
            "TargetGroupBinding",
            ("spec", "serviceRef", "name"),
            "ingress-istio",
        ),
        (
            "aws/gateway-api",
            "TargetGroupConfiguration",
            ("spec", "targetReference", "name"),
            "ingress-istio",
        ),
        ("aws/end-to-end-tls/istio-gateway", "Gateway", ("spec", "selector", "istio"), "ingress"),
        ("kustomize/tls/certificate", "Certificate", ("spec", "dnsNames"), ["ghealth.svc"]),
        ("gateway-api", "Service", ("spec", "selector", "istio"), "ingress"),
        ("gateway-api", "HorizontalPodAutoscaler", ("spec", "scaleTargetRef", "name"), "ingress"),
        ("kustomize/example", "Service", ("spec", "selector", "istio"), "ingress"),
    ],
)
def test_names_fit_every_way_to_install(
    rendered: dict[str, Recipe], name: str, kind: str, at: Path, value: object
) -> None:
    """A selector, name, namespace or port that one way's gateway does not have is a fault."""
    of_ways = names.ways(list(rendered.values()))
    recipe = rendered[name]
    assert list(names.object_faults(recipe, of_ways)) == []
    number = next(i for i, it in enumerate(recipe.objects) if it["kind"] == kind)
    assert list(names.object_faults(changed(recipe, number, at, value), of_ways))


def test_a_gateway_of_the_gateway_api_has_the_names(rendered: dict[str, Recipe]) -> None:
    """Without the annotation and the label, Service and pods have Istio's own names."""
    assert {way.workload for way in names.ways(list(rendered.values()))} == {recipes.GATEWAY}
    (recipe,) = (found for found in rendered.values() if found.name == "gateway-api")
    number, _ = gateway_of(recipe)
    renamed = changed(recipe, number, ("metadata", "name"), "ingress-istio")
    way = names.Way.of(renamed)
    policy = rendered["networkpolicy"]
    assert list(names.object_faults(renamed, [way]))
    unlabelled = names.Way("x", way.namespace, way.workload, way.service, way.ports, {})
    assert list(names.object_faults(policy, [unlabelled]))


@pytest.mark.parametrize(
    "command",
    [
        "kubectl -n istio-system port-forward POD 25022",
        "kubectl --namespace istio-ingress rollout status deployment/ingress",
        "kubectl -n istio-ingress exec deploy/istio-ingressgateway --container health -- true",
        "kubectl -n istio-ingress get pods -l istio=ingress",
        "kubectl -n istio-ingress port-forward POD 25024",
    ],
)
def test_commands_fit_every_way_to_install(rendered: dict[str, Recipe], command: str) -> None:
    """A command in a page that names another namespace, Deployment or container is a fault."""
    of_ways = names.ways(list(rendered.values()))
    assert list(names.text_faults(commands(), of_ways)) == []
    for text in (f"```sh\n{command}\n```\n", f"see `{command}`\n"):
        assert list(names.text_faults({"x": text}, of_ways))


UNCOMMENT: Final = re.compile(
    r"^( *)# ((?:- |  )(?:name|value|containerPort|protocol|port): [^#\n]*)", re.MULTILINE
)
"""Lines of YAML that are offered as comments."""


@pytest.mark.parametrize(
    "file", ["helm/values-native.yaml", "kustomize/ghealth-native/deployment.yaml"]
)
def test_the_commented_lines_fit(rendered: dict[str, Recipe], file: str) -> None:
    """Without comment marks, the probes and the admin port are settings, and scraped by name."""
    text = UNCOMMENT.sub(r"\1\2", (recipes.DEPLOY / file).read_text())
    parsed = yaml.safe_load(text)
    spec = parsed.get("spec", {}).get("template", {}).get("spec", parsed)
    (sidecar,) = spec["initContainers"]
    held = {entry["name"]: entry["value"] for entry in sidecar["env"]}
    assert held["GHEALTH_PROBE_URL"].split(",") == [
        f"http://localhost:{rules.READINESS_PORT}{rules.READINESS_PATH}",
        "http://localhost:15000/ready",
    ]
    assert held["GHEALTH_ADMIN_LISTEN"] == f"[::]:{rules.ADMIN_PORT}"
    assert set(held) <= rules.known_settings()
    (monitor,) = rendered["observability/podmonitor"].objects
    (scraped,) = monitor["spec"]["podMetricsEndpoints"]
    assert {"name": scraped["port"], "containerPort": rules.ADMIN_PORT} in sidecar["ports"]
    gateway = UNCOMMENT.sub(r"\1\2", (recipes.DEPLOY / "gateway-api" / "gateway.yaml").read_text())
    assert all(line.strip() in gateway for line in text.splitlines() if "GHEALTH_" in line)


def test_the_target_of_the_autoscaler_is_one_number() -> None:
    """The values file and docs/nodes.md have the target that the rules compute."""
    assert rules.SCALE_OUT == -(-80 * 100 // 150)
    target = f"targetCPUUtilizationPercentage: {rules.SCALE_OUT} "
    assert target in texts()["helm/values-native.yaml"]
    assert f"| {rules.SCALE_OUT} % |" in commands()["docs/nodes.md"]


def test_terraform_becomes_the_promised_target_groups() -> None:
    """Every value of a target group in main.tf can be broken, and is a fault then."""
    text = (recipes.DEPLOY / "aws" / "terraform" / "main.tf").read_text()
    assert list(targets.terraform_faults(text)) == []
    section = text[
        text.index('resource "aws_lb_target_group" "grpc"') : text.index("# The smaller")
    ]
    lines = [line for line in section.splitlines() if "=" in line and "vpc_id" not in line]
    assert len(lines) == 28
    for line in lines:
        name, _, value = line.partition("=")
        broken = f"{name}= {value.strip()}1" if value.strip().isdigit() else f'{name}= "x"'
        assert list(targets.terraform_faults(text.replace(line, broken))), line
        assert list(targets.terraform_faults(text.replace(line, ""))), line
    assert list(targets.terraform_faults(text.replace("matcher  ", "matchers ")))
    assert list(targets.terraform_faults(text.replace('"25021"]', "]")))


def test_the_cli_creates_the_promised_target_groups() -> None:
    """Every option of target-groups.sh can be broken, and is a fault then."""
    text = (recipes.DEPLOY / "aws" / "target-groups.sh").read_text()
    assert list(targets.cli_faults(text)) == []
    lines = [line for line in text.splitlines() if line.startswith("    --")]
    checked = [line for line in lines if "vpc-id" not in line and "--query" not in line]
    assert len(checked) == 26
    for line in checked:
        number = lines.index(line)
        broken = text.replace(line, f"{line.removesuffix(chr(92)).rstrip()}1 {chr(92)}")
        assert list(targets.cli_faults(broken)), (number, line)
        misspelt = text.replace(line, line.replace("--", "--x-"))
        assert list(targets.cli_faults(misspelt)), line


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("networkpolicy.yaml", "# ONLY where", "# Where"),
        ("helm/values-native.yaml", "DELETE its", "keep the"),
        ("gateway-api/gateway.yaml", "DELETES its", "keeps the"),
        ("kustomize/example/gateway.yaml", "deletes the load balancer", "keeps it"),
        ("helm/values-native.yaml", "GHEALTH_DRAIN_DELAY", "GHEALTH_DRAIN_DELAYS"),
        ("aws/targetgroupbinding.yaml", "25021", "25022"),
        ("README.md", "25021", "25012"),
        ("observability/podmonitor.yaml", "GHEALTH_ADMIN_LISTEN", "GHEALTH_ADMIN_LISTENS"),
        ("README.md", "(aws/ingress)", "(aws/ingresses)"),
    ],
)
def test_the_texts_are_checked(file: str, before: str, after: str) -> None:
    """A missing warning, an invented variable or another port is a fault in any file."""
    read = texts()
    assert list(rules.text_faults(read)) == []
    assert before in read[file]
    assert list(rules.text_faults(read | {file: read[file].replace(before, after)}))


def test_every_value_of_the_compose_file_is_checked() -> None:
    """Ports, mounts, the image's version and how ghealth shares the pod."""
    read = texts()
    compose, envoy = (yaml.safe_load(read[f"local/{name}.yaml"]) for name in ("compose", "envoy"))
    assert list(rules.compose_faults(compose, envoy)) == []
    parts: list[Path] = [("services", "ghealth")]
    parts += [("services", "gateway", part) for part in ("ports", "volumes", "image")]
    for part in parts:
        thing = compose
        for key in part:
            thing = thing[key]
        for at, value in leaves(thing, part):
            recipe = changed(Recipe("local", (compose,)), 0, at, other(value))
            assert list(rules.compose_faults(recipe.objects[0], envoy)), at


def test_schemas_refuse_what_is_unknown(rendered: dict[str, Recipe]) -> None:
    """A misspelt field, a type that is wrong, or a field newer than its Kubernetes is a fault."""
    recipe = rendered[NATIVE]
    number, at, _ = sidecar_of(recipe)
    assert list(schemas.kubernetes(changed(recipe, number, (*at, "livenesProbe"), {})))
    assert list(schemas.kubernetes(changed(recipe, number, (*at, "env", 0, "value"), 0)))
    assert list(schemas.kubernetes(Recipe(**{**vars(recipe), "oldest": "1.25"})))
    if schemas.SCHEMAS.is_dir():
        values = recipes.values("native")
        assert list(schemas.chart("values", values | {"initContainer": []}))
        group = rendered["aws/gateway-api"]
        index = next(
            i for i, it in enumerate(group.objects) if it["kind"] == "TargetGroupConfiguration"
        )
        assert list(schemas.custom(changed(group, index, ("spec", "healthCheck"), {})))
        assert list(schemas.custom(changed(group, index, ("apiVersion",), "gateway.k8s.aws/v2")))
