import re
from typing import cast, get_args

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from ghealth import __version__
from ghealth.events import CutReason, Event
from ghealth.health import ALIVE, DRAINING, GATEWAY, LIVENESS, Answer, Code, Result
from ghealth.observe.metrics import Metrics
from tests.support import events
from tests.support.events import DOWN, REFUSED, UNAVAILABLE, UP, changed, cut, probed, request

HEALTHS = {GATEWAY: UP, "b": DOWN, LIVENESS: ALIVE}
EVENTS: list[Event] = [
    probed(UP, 0.004),
    probed(DOWN, 1.5),
    probed(REFUSED, 0.001, service="b"),
    changed(None, UP),
    changed(UP, DOWN),
    changed(DOWN, DRAINING),
    cut(2),
    cut(3),
    request(UNAVAILABLE),
    request(UNAVAILABLE),
    request(events.UNIMPLEMENTED, events.KUBELET, "other", service=None),
    request(Answer(Code.INVALID_ARGUMENT), "x", service=None),
    request(user_agent=events.GRPC, method="Watch"),
    request(events.OK, events.GRPC, "List", service=None),
    request(events.OK, events.GRPC, "reflection", service=None),
]
COUNTED = """\
ghealth_checks_total{answer="INVALID_ARGUMENT",caller="other",service="unknown"} 1.0
ghealth_checks_total{answer="UNAVAILABLE",caller="alb",service="gateway"} 2.0
ghealth_checks_total{answer="UNIMPLEMENTED",caller="kubelet",service="gateway"} 1.0
ghealth_connections_cut_total{reason="calls"} 5.0
ghealth_connections_cut_total{reason="connections"} 0.0
ghealth_draining 0.0
ghealth_last_success_timestamp_seconds{service="b"} 0.0
ghealth_last_success_timestamp_seconds{service="gateway"} 1000.5
ghealth_probe_duration_seconds_bucket{le="0.001",service="b"} 1.0
ghealth_probe_duration_seconds_bucket{le="0.005",service="gateway"} 1.0
ghealth_probe_duration_seconds_bucket{le="1.5",service="gateway"} 2.0
ghealth_probe_duration_seconds_bucket{le="3.0",service="gateway"} 2.0
ghealth_probe_duration_seconds_count{service="gateway"} 2.0
ghealth_probe_duration_seconds_sum{service="gateway"} 1.504
ghealth_probe_timeout_seconds 3.0
ghealth_probes_total{result="ok",service="gateway"} 1.0
ghealth_probes_total{result="refused",service="b"} 1.0
ghealth_probes_total{result="status",service="gateway"} 1.0
ghealth_probes_total{result="timeout",service="b"} 0.0
ghealth_serving{service="b"} 0.0
ghealth_serving{service="gateway"} 1.0
ghealth_serving{service="liveness"} 1.0
ghealth_status_changes_total{service="gateway"} 1.0
ghealth_watchers{service="b"} 2.0
ghealth_watchers{service="unknown"} 2.0
"""


def metrics_of(*events: Event) -> Metrics:
    metrics = Metrics(HEALTHS, probe_timeout=3.0, now=lambda: 1000.5)
    for event in events:
        metrics(event)
    return metrics


def scraped(metrics: Metrics, accept: str = "", **watchers: int) -> set[str]:
    """Return the lines with ghealth's samples, of a scrape that the format's own parser reads."""
    content_type, content = metrics.render(accept, HEALTHS, watchers)
    parse = openmetrics if content_type.startswith("application/openmetrics-text") else prometheus
    assert list(parse(content.decode()))
    return {line for line in content.decode().splitlines() if line.startswith("ghealth_")}


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
in_both_formats = pytest.mark.parametrize("accept", ["", PROMETHEUS_3], ids=["text", "open"])


@in_both_formats
def test_events_are_counted(accept: str) -> None:
    """Probes, checks, changes of status (not of a reason alone), cut connections, last success."""
    lines = scraped(metrics_of(*EVENTS), accept, b=2, x=1, y=1)
    counted = set(COUNTED.splitlines())
    assert counted <= lines
    assert not [line for line in lines - counted if line.startswith("ghealth_checks")]


@in_both_formats
def test_expected_series_exist_from_the_start(accept: str) -> None:
    """A first event shows in a rate, and there are no series of creation times."""
    lines = scraped(metrics_of(), accept)
    names = {re.split("[{ ]", line)[0] for line in COUNTED.splitlines()}
    names = names - {"ghealth_checks_total"} | {"ghealth_build_info"}
    assert {re.split("[{ ]", line)[0] for line in lines} == names
    assert f'ghealth_build_info{{version="{__version__}"}} 1.0' in lines
    assert sum(line.startswith("ghealth_probes_total{") for line in lines) == 2 * len(Result)
    for reason in get_args(CutReason):
        assert f'ghealth_connections_cut_total{{reason="{reason}"}} 0.0' in lines


@in_both_formats
def test_a_scrape_replaces_the_gauges_of_the_one_before(accept: str) -> None:
    """A watch that ended and a service that drains are not shown as they were."""
    metrics = metrics_of()
    scraped(metrics, accept, b=2, x=1)
    _, content = metrics.render(accept, HEALTHS | {GATEWAY: DRAINING}, {})
    assert b'ghealth_serving{service="gateway"} 0.0\n' in content
    assert b'ghealth_watchers{service="b"} 0.0\n' in content
    assert b'ghealth_watchers{service="unknown"} 0.0\n' in content
    assert b"\nprocess_open_fds " in content


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS_3, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text ; Version=1.0.0", True),
        ("text/plain;q=0.5, application/openmetrics-text;q=0.5", True),
        ("*/*, application/openmetrics-text", True),
        ("text/plain;q=0.1, text/*, application/openmetrics-text;q=0.2", True),
        ("", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("text/plain, application/openmetrics-text;q=0.9", False),
        ("text/*, application/openmetrics-text;q=0.9", False),
        ("*/*, application/openmetrics-text;q=0.9", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x", False),
        ("application/openmetrics-text;q=nan", False),
        ('application/openmetrics-text;version="1.0.0"', True),
        ('application/openmetrics-text;version="0.0.1"', False),
        ("application/openmetrics-text;version=x\0", False),
        (";;,=,q=1;q", False),
    ],
)
def test_accept_decides_the_format(accept: str, expected: bool) -> None:
    """OpenMetrics if it has the higher `q`, the Prometheus text format otherwise."""
    content_type, content = metrics_of().render(accept, HEALTHS, {})
    text, own = "text/plain; version=0.0.4", "application/openmetrics-text; version=1.0.0"
    assert content_type == f"{own if expected else text}; charset=utf-8"
    assert content.endswith(b"# EOF\n") is expected


def test_no_caller_can_add_a_label() -> None:
    """After 10,000 different user agents and service names the series are those of the kinds."""
    metrics = metrics_of()
    known = ("", "ELB-HealthChecker/", "kube-probe/", "Envoy/HC", "grpc-")
    for number in range(10_000):
        agent, service = f'{known[number % 5]}{number}"}}\n{{}}\\ éx', f"s{number}"
        metrics(request(events.NOT_FOUND, agent, service=service))
        metrics(request(user_agent=agent))
        metrics(request(events.UNIMPLEMENTED, agent, "other", service=service))
    lines = scraped(metrics, "", **{f"s{number}": 1 for number in range(100)})
    labels = "|".join(re.findall(r"ghealth_checks_total{(.*)} ", "\n".join(lines)))
    assert set(re.findall(r'caller="(.*?)"', labels)) == {
        "alb",
        "kubelet",
        "envoy",
        "grpc",
        "other",
    }
    assert set(re.findall(r'service="(.*?)"', labels)) == {"gateway", "unknown"}
    assert labels.count("caller") == 5 * 3
    assert 'ghealth_watchers{service="unknown"} 100.0' in lines


def test_a_configured_name_that_is_another_label_keeps_its_own_series() -> None:
    """The gateway is `gateway`, unknown names are `unknown`, and neither takes a service's."""
    services = {GATEWAY: UP, "gateway": DOWN, "unknown": DOWN, 'a"b\\c\n': DOWN}
    _, content = Metrics(services, probe_timeout=3.0).render("", services, {})
    (serving,) = [f for f in prometheus(content.decode()) if f.name == "ghealth_serving"]
    values = {sample.labels["service"]: sample.value for sample in serving.samples}
    others = dict.fromkeys(("service gateway", "service unknown", 'a"b\\c\n'), 0)
    assert values == {"gateway": 1} | others


def test_an_event_of_a_new_kind_changes_nothing() -> None:
    """The core can have events that this sink does not count."""
    assert scraped(metrics_of(cast("Event", object()))) == scraped(metrics_of())
