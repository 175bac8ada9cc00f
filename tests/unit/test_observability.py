"""The files in deploy/observability fit the metrics that exist."""

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ghealth.events import RequestAnswered
from ghealth.health import ALIVE, GATEWAY, LIVENESS, Answer, Code, Status
from ghealth.observe.metrics import Metrics

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULE, MONITOR, SCRAPE = (
    yaml.safe_load((FOLDER / name).read_text())
    for name in ("prometheusrule.yaml", "podmonitor.yaml", "prometheus.yaml")
)
PORT = "ghealth-metrics"


def exposition() -> str:
    metrics = Metrics([GATEWAY, LIVENESS], probe_timeout=3.0)
    metrics(
        RequestAnswered(
            method="Check",
            path="/grpc.health.v1.Health/Check",
            user_agent="ELB-HealthChecker/2.0",
            service=GATEWAY,
            answer=Answer(Code.OK, Status.SERVING),
        )
    )
    _, content = metrics.render("", {GATEWAY: ALIVE, LIVENESS: ALIVE}, {})
    return content.decode()


def series() -> dict[str, set[str]]:
    """Return the names of all series, each with its labels and those of the scrape.

    `up` is Prometheus' own.
    """
    found: dict[str, set[str]] = {"up": {"job", "instance"}}
    for family in text_string_to_metric_families(exposition()):
        for sample in family.samples:
            found.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    return found


def alerts() -> list[dict[str, Any]]:
    (group,) = RULE["spec"]["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def panel_expressions() -> Iterator[str]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield target["expr"]


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            yield variable["name"], variable["query"]
    for rule in alerts():
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(
    "expression", [expr for _, expr in expressions()], ids=[name for name, _ in expressions()]
)
def test_every_query_names_metrics_that_exist(expression: str) -> None:
    """Each metric of a panel or an alert exists, with the labels in the query."""
    known = series()
    names = re.findall(r"\b(?:ghealth_\w+|process_\w+|up\b)", expression)
    assert names
    assert set(names) <= set(known)
    labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression))
    for listed in re.findall(r"\b(?:by|on)\s*\(([\w, ]+)\)", expression):
        labels |= set(re.split(r",\s*", listed))
    assert labels <= set().union(*(known[name] for name in names))


def test_every_metric_of_ghealth_is_on_the_dashboard() -> None:
    """A metric is on a panel or in an alert."""
    shown = " ".join(expression for _, expression in expressions())
    own = {name.removesuffix("_sum").removesuffix("_count") for name in series()}
    for name in own:
        assert name in shown or name.startswith(("process_", "up")), name


def test_panels_have_their_places() -> None:
    """Different ids, places that do not overlap, descriptions, and the chosen data source."""
    assert DASHBOARD["schemaVersion"] >= 39
    numbers = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(set(numbers)) == len(numbers)
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (place["x"] + across, place["y"] + down)
            for across in range(place["w"])
            for down in range(place["h"])
        }
        assert max(x for x, _ in cells) < 24
        assert not cells & taken
        taken |= cells
        assert panel["description"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}


def test_every_alert_has_a_severity_and_a_description() -> None:
    """There are these alerts, and each has a summary and a description."""
    assert {rule["alert"] for rule in alerts()} == {
        "GhealthAbsent",
        "GhealthNotScraped",
        "GhealthNotServing",
        "GhealthConnectionsCut",
        "GhealthFlapping",
        "GhealthNobodyAsks",
        "GhealthDefaultPath",
        "GhealthSlowProbes",
    }
    for rule in alerts():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_both_kinds_of_prometheus_scrape_the_same_port() -> None:
    """The port has a name that Kubernetes accepts, and a scrape has time for a hanging gateway."""
    (endpoint,) = MONITOR["spec"]["podMetricsEndpoints"]
    (job,) = SCRAPE["scrape_configs"]
    assert endpoint["port"] == job["relabel_configs"][0]["regex"] == PORT
    assert len(PORT) <= 15
    assert endpoint["path"] == "/metrics"
    assert endpoint["scrapeTimeout"] == job["scrape_timeout"] == "10s"


def promtool(*arguments: str, folder: Path, text: str = "") -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        assert "CI" not in os.environ, "CI must have promtool"
        pytest.skip("no promtool on this machine")
    return subprocess.run(
        [found, *arguments],
        cwd=folder,
        input=text,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """Promtool accepts the rules, and the tests in rules_test.yaml pass."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULE["spec"]))
    shutil.copy(FOLDER / "rules_test.yaml", tmp_path)
    for command in (("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")):
        done = promtool(*command, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


def test_every_alert_is_tested() -> None:
    """Each alert fires in a test in rules_test.yaml."""
    tests = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in alerts()}


def test_the_queries_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    """Promtool parses each of them, with values for Grafana's variables."""
    rules = [
        {"record": f"panel:{number}", "expr": expression}
        for number, expression in enumerate(panel_expressions())
    ]
    text = yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]})
    (tmp_path / "panels.yaml").write_text(
        text.replace("$__rate_interval", "5m").replace("$job", ".*").replace("$instance", ".*")
    )
    done = promtool("check", "rules", "panels.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_names_and_units_follow_prometheus_conventions(tmp_path: Path) -> None:
    """Promtool's linter finds nothing."""
    done = promtool("check", "metrics", folder=tmp_path, text=exposition())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_scrape_configuration_is_valid(tmp_path: Path) -> None:
    """Promtool accepts it; Debian's has no Kubernetes, so the pods are made up."""
    (job,) = SCRAPE["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    made_up = {"scrape_configs": [job | {"static_configs": [{"targets": ["127.0.0.1:25022"]}]}]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(made_up))
    done = promtool("check", "config", "prometheus.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_documented() -> None:
    """docs/operations.md explains each alert, and names no other."""
    page = (FOLDER.parent.parent / "docs" / "operations.md").read_text()
    assert set(re.findall(r"`(Ghealth\w+)`", page)) == {rule["alert"] for rule in alerts()}
