"""What is in deploy/observability fits what ghealth tells."""

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

from ghealth.metrics import Metrics
from ghealth.status import ALIVE, GATEWAY, LIVENESS

FOLDER = Path(__file__).parents[2] / "deploy" / "observability"
DASHBOARD = json.loads((FOLDER / "dashboard.json").read_text())
RULE, MONITOR, SCRAPE = (
    yaml.safe_load((FOLDER / name).read_text())
    for name in ("prometheusrule.yaml", "podmonitor.yaml", "prometheus.yaml")
)
PORT = "ghealth-metrics"


def exposition() -> str:
    metrics = Metrics([GATEWAY, LIVENESS], probe_timeout=3.0)
    metrics.answered("Check", "ELB-HealthChecker/2.0", GATEWAY, "SERVING", "")
    _, content = metrics.rendered("", {GATEWAY: ALIVE, LIVENESS: ALIVE}, {})
    return content.decode()


def series() -> dict[str, set[str]]:
    """Tell the names of all series, and the labels that each has beside the scrape's own."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(exposition()):
        for sample in family.samples:
            found.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    return found


def alerts() -> list[dict[str, Any]]:
    (group,) = RULE["spec"]["groups"]
    rules: list[dict[str, Any]] = group["rules"]
    return rules


def expressions() -> Iterator[tuple[str, str]]:
    for panel in DASHBOARD["panels"]:
        for target in panel["targets"]:
            yield panel["title"], target["expr"]
    for variable in DASHBOARD["templating"]["list"]:
        query = variable["query"]
        if variable["type"] == "query":
            yield variable["name"], query["query"]
    for rule in alerts():
        yield rule["alert"], rule["expr"]


@pytest.mark.parametrize(
    "expression", [expr for _, expr in expressions()], ids=[name for name, _ in expressions()]
)
def test_every_query_names_what_there_is(expression: str) -> None:
    """Each metric of a panel or an alert is one that ghealth tells, with the labels asked for."""
    known = series()
    names = re.findall(r"\b(?:ghealth|process)_\w+", expression)
    assert names
    assert set(names) <= set(known)
    labels = set(re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", expression))
    for listed in re.findall(r"\b(?:by|on)\s*\(([\w, ]+)\)", expression):
        labels |= set(re.split(r",\s*", listed))
    assert labels <= set().union(*(known[name] for name in names))


def test_every_metric_of_ghealths_own_is_on_the_dashboard() -> None:
    """What is counted is shown."""
    shown = " ".join(expression for _, expression in expressions())
    own = {name.removesuffix("_sum").removesuffix("_count") for name in series()}
    for name in own:
        assert name in shown or name.startswith("process_"), name


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    """Panels have numbers, places that do not overlap, queries, and the data source chosen."""
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


def test_the_alerts_are_those_that_matter() -> None:
    """Each has a severity and says what is wrong and what it means."""
    assert {rule["alert"] for rule in alerts()} == {
        "GhealthNotServing",
        "GhealthFlapping",
        "GhealthNobodyAsks",
        "GhealthDefaultPath",
        "GhealthSlowProbes",
    }
    for rule in alerts():
        assert rule["labels"]["severity"] in ("info", "warning", "critical")
        assert set(rule["annotations"]) == {"summary", "description"}


def test_both_kinds_of_prometheus_scrape_the_same_port() -> None:
    """The port has a name that Kubernetes takes, and a scrape has time for a silent gateway."""
    (endpoint,) = MONITOR["spec"]["podMetricsEndpoints"]
    (job,) = SCRAPE["scrape_configs"]
    assert endpoint["port"] == job["relabel_configs"][0]["regex"] == PORT
    assert len(PORT) <= 15
    assert endpoint["path"] == "/metrics"
    assert endpoint["scrapeTimeout"] == job["scrape_timeout"] == "10s"


def promtool(*arguments: str, folder: Path, said: str = "") -> subprocess.CompletedProcess[str]:
    found = shutil.which("promtool")
    if found is None:
        assert "CI" not in os.environ, "CI must have promtool"
        pytest.skip("no promtool on this machine")
    return subprocess.run(
        [found, *arguments],
        cwd=folder,
        input=said,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_alerts_do_what_they_say(tmp_path: Path) -> None:
    """Prometheus' own tool takes the rules, and each fires when it should and not otherwise."""
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(RULE["spec"]))
    shutil.copy(FOLDER / "rules_test.yaml", tmp_path)
    for command in (("check", "rules", "rules.yaml"), ("test", "rules", "rules_test.yaml")):
        done = promtool(*command, folder=tmp_path)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "SUCCESS" in done.stdout


def test_every_alert_is_tested() -> None:
    """No alert is left out of the tests of the rules."""
    tests = yaml.safe_load((FOLDER / "rules_test.yaml").read_text())["tests"]
    fired = {
        case["alertname"]
        for test in tests
        for case in test["alert_rule_test"]
        if case["exp_alerts"]
    }
    assert fired == {rule["alert"] for rule in alerts()}


def test_names_and_units_are_prometheus_conventions(tmp_path: Path) -> None:
    """Prometheus' own linter finds nothing."""
    done = promtool("check", "metrics", folder=tmp_path, said=exposition())
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_scrape_configuration_is_one(tmp_path: Path) -> None:
    """Prometheus' own tool takes it; Debian's knows no Kubernetes, so the pods are made up."""
    (job,) = SCRAPE["scrape_configs"]
    assert job.pop("kubernetes_sd_configs") == [{"role": "pod"}]
    made_up = {"scrape_configs": [job | {"static_configs": [{"targets": ["127.0.0.1:25022"]}]}]}
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(made_up))
    done = promtool("check", "config", "prometheus.yaml", folder=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_for_operators_explains_every_alert() -> None:
    """Whoever is woken by one finds it in docs/operations.md, and none that there is not."""
    page = (FOLDER.parent.parent / "docs" / "operations.md").read_text()
    assert set(re.findall(r"`(Ghealth\w+)`", page)) == {rule["alert"] for rule in alerts()}
