"""Breaks each value that a rule is about, and sees a fault."""

import copy
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml

from tests.deploy import recipes, rules, schemas, tools
from tests.deploy.__main__ import texts
from tests.deploy.recipes import Recipe

Path = tuple[str | int, ...]

REMOVED: Final = object()

FREE: Final = {
    "name",
    "namespace",
    "host",
    "certificate-arn",
    "scheme",
    "targetGroupARN",
    "cidr",
    "groupID",
}
"""Where the value is the user's; that there is one is checked all the same."""


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    tools.prepare()


@pytest.fixture(scope="session")
def rendered(_tools: None) -> dict[str, Recipe]:
    return {recipe.name: recipe for recipe in recipes.all_recipes()}


def leaves(thing: Any, at: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Tell every value of an object and where it is."""
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


def survivors(recipe: Recipe, number: int, part: Path) -> list[str]:
    """Break every value of a part of an object; tell each that no rule noticed."""
    thing = recipe.objects[number]
    for key in part:
        thing = thing[key]
    found = []
    for at, value in leaves(thing, part):
        free = str(at[-1]).rpartition("/")[2] in FREE
        found += [
            f"{at}: {'removed' if broken is REMOVED else broken}"
            for broken in ((REMOVED,) if free else (REMOVED, other(value)))
            if not rules.faults(changed(recipe, number, at, broken))
        ]
    return found


def gateway_of(recipe: Recipe) -> tuple[int, Any]:
    """Find the gateway among the objects, and its number."""
    return next(
        (number, thing)
        for number, thing in enumerate(recipe.objects)
        if thing["kind"] == "Deployment" and thing["metadata"].get("labels")
    )


PODS: Final = (
    "helm/native",
    "helm/container",
    "kustomize/example",
    "kustomize/native on example",
    "kustomize/container on example",
    "kustomize/native on istioctl",
    "kustomize/container on istioctl",
    "gateway-api",
)
TEMPLATE: Final = ("spec", "template")


def test_what_is_in_deploy_has_no_fault(rendered: dict[str, Recipe]) -> None:
    """Every recipe follows the rules: the mutations below start from what is right."""
    assert [fault for recipe in rendered.values() for fault in rules.faults(recipe)] == []
    assert set(PODS) == {name for name, recipe in rendered.items() if recipe.native is not None}


@pytest.mark.parametrize("name", PODS)
def test_every_value_of_the_sidecar_is_checked(rendered: dict[str, Recipe], name: str) -> None:
    """No value of ghealth's container can be changed or removed without a fault."""
    number, gateway = gateway_of(rendered[name])
    place = "initContainers" if rendered[name].native else "containers"
    containers = gateway["spec"]["template"]["spec"][place]
    index = next(i for i, found in enumerate(containers) if found["name"] == "ghealth")
    assert survivors(rendered[name], number, (*TEMPLATE, "spec", place, index)) == []


@pytest.mark.parametrize("name", PODS)
def test_every_value_of_the_pod_that_ghealth_needs_is_checked(
    rendered: dict[str, Recipe], name: str
) -> None:
    """Nor can the pod's annotations, the rollout, the preStop sleep or the grace period."""
    recipe = rendered[name]
    number, gateway = gateway_of(recipe)
    annotations = gateway["spec"]["template"]["metadata"]["annotations"]
    ours = [key for key in annotations if key != "inject.istio.io/templates"]
    assert len(ours) == 1 + recipe.injected + (not recipe.native)
    parts: list[Path] = [(*TEMPLATE, "metadata", "annotations", key) for key in ours]
    parts += [("spec", "strategy"), (*TEMPLATE, "spec", "terminationGracePeriodSeconds")]
    containers = gateway["spec"]["template"]["spec"]["containers"]
    proxy = next(i for i, found in enumerate(containers) if found["name"] == "istio-proxy")
    parts.append((*TEMPLATE, "spec", "containers", proxy, "lifecycle"))
    if not recipe.by_chart:
        parts.append((*TEMPLATE, "spec", "enableServiceLinks"))
    assert [found for part in parts for found in survivors(recipe, number, part)] == []


@pytest.mark.parametrize(("name", "least"), [("helm/native", 66), ("helm/container", 126)])
def test_the_drain_adds_up(rendered: dict[str, Recipe], name: str, least: int) -> None:
    """preStop, drain, DRAIN_DELAY, SHUTDOWN_GRACE and 5 s fit; one second less does not."""
    recipe = rendered[name]
    at = (*TEMPLATE, "spec", "terminationGracePeriodSeconds")
    assert rules.faults(changed(recipe, 0, at, least)) == []
    assert rules.faults(changed(recipe, 0, at, least - 1))


@pytest.mark.parametrize(
    ("name", "variable", "value", "noticed"),
    [
        ("helm/native", "GHEALTH_DRAIN_DELAY", "5", "only delayed"),
        ("helm/container", "GHEALTH_DRAIN_DELAY", "59", "while Envoy still serves"),
        ("helm/native", "GHEALTH_SHUTDOWN_GRACE", "30", "terminationGracePeriodSeconds"),
        ("helm/native", "GHEALTH_CACHE_TLL", "1", "no setting"),
        ("helm/native", "GHEALTH_CACHE_TTL", "soon", "takes seconds"),
        ("helm/native", "CACHE_TTL", "1", "no setting"),
        ("helm/native", "GHEALTH_CACHE_TTL", 1, "no string"),
    ],
)
def test_the_environment_is_ghealths(
    rendered: dict[str, Recipe], name: str, variable: str, value: object, noticed: str
) -> None:
    """A variable that does not exist, that ghealth refuses, or that breaks the drain is a fault."""
    recipe = rendered[name]
    spec = recipe.objects[0]["spec"]["template"]["spec"]
    place = "initContainers" if recipe.native else "containers"
    index = next(i for i, found in enumerate(spec[place]) if found["name"] == "ghealth")
    kept = [entry for entry in spec[place][index]["env"] if entry["name"] != variable]
    at = (*TEMPLATE, "spec", place, index, "env")
    broken = changed(recipe, 0, at, [*kept, {"name": variable, "value": value}])
    assert noticed in "\n".join(rules.faults(broken))


@pytest.mark.parametrize("name", ["helm/native", "helm/container"])
@pytest.mark.parametrize("probe", ["readinessProbe", "startupProbe"])
def test_no_further_probe(rendered: dict[str, Recipe], name: str, probe: str) -> None:
    """A readiness or startup probe on ghealth is a fault, and so is a limit of its CPU."""
    recipe = rendered[name]
    place = "initContainers" if recipe.native else "containers"
    spec = recipe.objects[0]["spec"]["template"]["spec"]
    index = next(i for i, found in enumerate(spec[place]) if found["name"] == "ghealth")
    at = (*TEMPLATE, "spec", place, index)
    grpc = {"grpc": {"port": rules.PORT}}
    assert rules.faults(changed(recipe, 0, (*at, probe), grpc))
    assert rules.faults(changed(recipe, 0, (*at, "resources", "limits", "cpu"), "100m"))


@pytest.mark.parametrize("name", ["aws/ingress", "aws/end-to-end-tls"])
def test_every_value_of_the_ingresses_is_checked(rendered: dict[str, Recipe], name: str) -> None:
    """No annotation and no part of a rule can be changed or removed without a fault."""
    recipe = rendered[name]
    for number, thing in enumerate(recipe.objects):
        parts: tuple[Path, ...] = (("spec",),)
        if thing["kind"] == "Ingress":
            parts = (("metadata", "annotations"), ("spec",))
        assert [found for part in parts for found in survivors(recipe, number, part)] == []


def test_an_annotation_is_a_string(rendered: dict[str, Recipe]) -> None:
    """A number where an annotation belongs, which YAML makes of 25021, is a fault."""
    recipe = rendered["aws/ingress"]
    for number, thing in enumerate(recipe.objects):
        for key, value in thing["metadata"].get("annotations", {}).items():
            if value.isdigit():
                at = ("metadata", "annotations", key)
                assert rules.faults(changed(recipe, number, at, int(value)))


@pytest.mark.parametrize("path", ["/*", "/grpc.*", "/grpc.health.v1.*"])
def test_nothing_but_the_packages_is_published(rendered: dict[str, Recipe], path: str) -> None:
    """A path that opens reflection and health of the backends to the internet is a fault."""
    recipe = rendered["aws/ingress"]
    number = next(
        i for i, thing in enumerate(recipe.objects) if thing["metadata"]["name"].endswith("grpc")
    )
    at = ("spec", "rules", 0, "http", "paths", 0, "path")
    assert rules.faults(changed(recipe, number, at, path))


@pytest.mark.parametrize(
    "name", ["aws/gateway-api/targetgroupconfiguration", "aws/targetgroupbinding", "networkpolicy"]
)
def test_every_value_of_the_other_objects_is_checked(
    rendered: dict[str, Recipe], name: str
) -> None:
    """The target groups of the Gateway API, the binding, and the policy."""
    assert survivors(rendered[name], 0, ("spec",)) == []


def test_the_gateway_names_its_parameters(rendered: dict[str, Recipe]) -> None:
    """A Gateway that does not name the ConfigMap, or one elsewhere, has no ghealth."""
    recipe = rendered["gateway-api"]
    assert survivors(recipe, 0, ("spec", "infrastructure")) == []
    assert rules.faults(changed(recipe, 1, ("metadata", "namespace"), "elsewhere"))
    assert rules.faults(changed(recipe, 1, ("data", "service"), "spec: {type: ClusterIP}"))


def test_a_component_touches_the_gateway_alone(rendered: dict[str, Recipe]) -> None:
    """A ghealth in another Deployment is a fault, and so is a Service with a load balancer."""
    recipe = rendered["kustomize/native on istioctl"]
    number = next(i for i, it in enumerate(recipe.objects) if it["metadata"]["name"] == "istiod")
    image = (*TEMPLATE, "spec", "containers", 0, "image")
    assert rules.faults(changed(recipe, number, image, "registry.example.com/ghealth"))
    recipe = rendered["kustomize/example"]
    number = next(i for i, it in enumerate(recipe.objects) if it["kind"] == "Service")
    assert rules.faults(changed(recipe, number, ("spec", "type"), "LoadBalancer"))


@pytest.mark.parametrize(
    ("file", "before", "after"),
    [
        ("networkpolicy.yaml", "# ONLY where", "# Where"),
        ("helm/values-native.yaml", "# DELETE its", "# keep the"),
        ("gateway-api/gateway.yaml", "DELETE its", "keep the"),
        ("kustomize/example/gateway.yaml", "it deletes that one", "nothing happens"),
        ("helm/values-native.yaml", "GHEALTH_DRAIN_DELAY", "GHEALTH_DRAIN_DELAYS"),
        ("aws/targetgroupbinding.yaml", "25021", "25022"),
        ("README.md", "25021", "25012"),
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
    recipe = rendered["helm/native"]
    at = (*TEMPLATE, "spec", "initContainers", 0)
    assert list(schemas.kubernetes(changed(recipe, 0, (*at, "livenesProbe"), {})))
    assert list(schemas.kubernetes(changed(recipe, 0, (*at, "env", 0, "value"), 0)))
    assert list(schemas.kubernetes(Recipe(**{**vars(recipe), "oldest": "1.25"})))
    if schemas.SCHEMAS.is_dir():
        values = recipes.values("native")
        assert list(schemas.chart("values", values | {"initContainer": []}))
        group = rendered["aws/gateway-api/targetgroupconfiguration"]
        assert list(schemas.custom(changed(group, 0, ("spec", "healthCheck"), {})))
        assert list(schemas.custom(changed(group, 0, ("apiVersion",), "gateway.k8s.aws/v2")))
