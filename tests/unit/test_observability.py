"""The files in deploy/observability fit the metrics that exist."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from ghealth.health import ALIVE, GATEWAY, LIVENESS
from ghealth.observe.metrics import Metrics
from tests.support.events import request

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "observability"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULE, MONITOR, SCRAPE, TESTS = (
    yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    for name in ("prometheusrule", "podmonitor", "prometheus", "rules_test")
)
(GROUP,) = RULE["spec"]["groups"]
ALERTS = {rule["alert"]: rule for rule in GROUP["rules"]}
PANELS = {
    f"{panel['title']} {target['refId']}": target["expr"]
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
}
VARIABLES = {v["name"]: v["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"}
QUERIES = PANELS | VARIABLES | {name: rule["expr"] for name, rule in ALERTS.items()}


def exposition() -> str:
    metrics = Metrics([GATEWAY, LIVENESS], probe_timeout=3.0)
    metrics(request())
    return metrics.render("", {GATEWAY: ALIVE, LIVENESS: ALIVE}, {})[1].decode()


SERIES = {"up": {"job", "instance"}}  # Prometheus' own
"""All series, with their labels and those of a scrape."""
for family in text_string_to_metric_families(exposition()):
    for sample in family.samples:
        SERIES.setdefault(sample.name, {"job", "instance"}).update(sample.labels)


@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_every_query_names_metrics_that_exist(query: str) -> None:
    """Each metric of a panel or an alert exists, with the labels in the query."""
    names = set(re.findall(r"\b(?:ghealth_\w+|process_\w+|up\b)", query))
    assert names
    assert names <= set(SERIES)
    labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", query))
    for listed in re.findall(r"\b(?:by|on)\s*\(([\w, ]+)\)", query):
        labels |= set(re.split(r",\s*", listed))
    assert labels <= set().union(*(SERIES[name] for name in names))


def test_every_metric_of_ghealth_is_on_the_dashboard() -> None:
    """A metric is on a panel or in an alert."""
    own = {re.sub("_(sum|count)$", "", name) for name in SERIES if name.startswith("ghealth_")}
    assert not [name for name in own if name not in str(QUERIES)]


def test_panels_have_their_places() -> None:
    """Different ids, places that do not overlap, descriptions, and the chosen data source."""
    assert DASHBOARD["schemaVersion"] >= 39
    cells = []
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        for x in range(place["x"], place["x"] + place["w"]):
            cells += [(x, y) for y in range(place["y"], place["y"] + place["h"])]
        assert panel["description"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert len(set(cells)) == len(cells)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


@pytest.mark.parametrize("rule", ALERTS.values(), ids=ALERTS)
def test_every_alert_has_a_severity_and_a_description(rule: dict[str, Any]) -> None:
    """Each has a summary, too."""
    assert rule["labels"]["severity"] in ("info", "warning", "critical")
    assert set(rule["annotations"]) == {"summary", "description"}


def test_both_kinds_of_prometheus_scrape_the_same_port() -> None:
    """The port has a name that Kubernetes accepts, and a scrape has time for a hanging gateway."""
    (endpoint,), (job,) = MONITOR["spec"]["podMetricsEndpoints"], SCRAPE["scrape_configs"]
    assert endpoint["port"] == job["relabel_configs"][0]["regex"] == "ghealth-metrics"
    assert endpoint["path"] == "/metrics"
    assert endpoint["scrapeTimeout"] == job["scrape_timeout"] == "10s"


def promtool(folder: Path, *arguments: str, text: str = "", **files: Any) -> str:
    """Run promtool in a folder with these files, and return its output."""
    found = shutil.which("promtool")
    if found is None:
        assert "CI" not in os.environ, "CI must have promtool"
        pytest.skip("no promtool on this machine")
    for name, content in files.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(content, width=10_000))
    done = subprocess.run(
        [found, *arguments], cwd=folder, input=text, capture_output=True, text=True, check=False
    )
    shown = done.stdout + done.stderr
    assert done.returncode == 0, shown
    return shown


def test_the_alerts_fire_when_they_should(tmp_path: Path) -> None:
    """Promtool accepts the rules, and the tests in rules_test.yaml pass."""
    shutil.copy(FOLDER / "rules_test.yaml", tmp_path)
    assert "SUCCESS" in promtool(tmp_path, "check", "rules", "rules.yaml", rules=RULE["spec"])
    assert "SUCCESS" in promtool(tmp_path, "test", "rules", "rules_test.yaml")


def test_every_alert_is_tested() -> None:
    """Each alert fires in a test in rules_test.yaml."""
    cases = [case for test in TESTS["tests"] for case in test["alert_rule_test"]]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(ALERTS)


def test_the_queries_of_the_dashboard_are_promql(tmp_path: Path) -> None:
    """Promtool parses each of them, with values for Grafana's variables."""
    rules = []
    for number, query in enumerate(PANELS.values()):
        filled = re.sub(r"\$(job|instance)", ".*", query).replace("$__rate_interval", "5m")
        rules.append({"record": f"panel:{number}", "expr": filled})
    panels = {"groups": [{"name": "panels", "rules": rules}]}
    promtool(tmp_path, "check", "rules", "panels.yaml", panels=panels)


def test_names_and_units_follow_prometheus_conventions(tmp_path: Path) -> None:
    """Promtool's linter finds nothing."""
    assert promtool(tmp_path, "check", "metrics", text=exposition()) == ""


def test_the_scrape_configuration_is_valid(tmp_path: Path) -> None:
    """Promtool accepts it; Debian's has no Kubernetes, so the pods are made up."""
    (job,) = SCRAPE["scrape_configs"]
    made_up = {**job, "static_configs": [{"targets": ["127.0.0.1:25022"]}]}
    assert made_up.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    config = {"scrape_configs": [made_up]}
    promtool(tmp_path, "check", "config", "prometheus.yaml", prometheus=config)


def test_every_alert_is_documented() -> None:
    """docs/operations.md explains each alert, and names no other."""
    page = (ROOT / "docs" / "operations.md").read_text()
    assert set(re.findall(r"`(Ghealth\w+)`", page)) == set(ALERTS)
