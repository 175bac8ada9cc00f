import itertools
from collections.abc import Iterator
from typing import cast, get_args

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from ghealth import __version__
from ghealth.events import (
    ConnectionsCut,
    CutReason,
    DrainStarted,
    Event,
    Method,
    ProbeCompleted,
    RequestAnswered,
    StatusChanged,
)
from ghealth.health import (
    ALIVE,
    DRAINING,
    GATEWAY,
    LIVENESS,
    UNKNOWN_SERVICE,
    Answer,
    Code,
    Health,
    Reason,
    ReasonKind,
    Status,
)
from ghealth.observe.metrics import Metrics

UP = Health(Status.SERVING, Reason(ReasonKind.ANSWERED, "200"))
DOWN = Health(Status.NOT_SERVING, Reason(ReasonKind.ANSWERED, "503"))
REFUSED = Health(Status.NOT_SERVING, Reason(ReasonKind.REFUSED, position=(2, 3)))
SERVICES = (GATEWAY, "b", LIVENESS)
HEALTHS = {GATEWAY: UP, "b": DOWN, LIVENESS: ALIVE}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def metrics_of(*services: str) -> Metrics:
    return Metrics(services or SERVICES, probe_timeout=3.0, now=lambda: 1000.5)


def probed(service: str, health: Health, seconds: float) -> ProbeCompleted:
    return ProbeCompleted(service=service, health=health, seconds=seconds)


def changed(previous: Health | None, health: Health) -> StatusChanged:
    return StatusChanged(service=GATEWAY, previous=previous, health=health, held_seconds=1)


def answered(
    method: Method, user_agent: str, service: str | None, answer: Answer
) -> RequestAnswered:
    return RequestAnswered(
        method=method, path="/x", user_agent=user_agent, service=service, answer=answer
    )


def samples_of(metrics: Metrics, accept: str = "", **watchers: int) -> Samples:
    """Return all samples of a scrape, read by the format's own parser."""
    content_type, content = metrics.render(accept, HEALTHS, watchers)
    parse = openmetrics if content_type.startswith("application/openmetrics-text") else prometheus
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(content.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_events_are_counted(accept: str) -> None:
    """Probes, checks, changes of status (not of a reason alone), cut connections, last success."""
    metrics = metrics_of()
    metrics(probed(GATEWAY, UP, 0.004))
    metrics(probed(GATEWAY, DOWN, 1.5))
    metrics(probed("b", REFUSED, 0.001))
    for previous, health in ((None, UP), (UP, DOWN), (DOWN, DRAINING)):
        metrics(changed(previous, health))
    for count in (2, 3):
        metrics(ConnectionsCut(address="10.0.0.1", count=count, reason="calls"))
    unavailable = Answer(Code.UNAVAILABLE, reason=DOWN.reason)
    for _ in range(2):
        metrics(answered("Check", "ELB-HealthChecker/2.0", GATEWAY, unavailable))
    metrics(answered("other", "kube-probe/1", None, Answer(Code.UNIMPLEMENTED)))
    metrics(answered("Check", "x", None, Answer(Code.INVALID_ARGUMENT)))
    metrics(answered("Watch", "grpc-go/1", GATEWAY, Answer(Code.OK, Status.SERVING)))
    metrics(answered("List", "grpc-go/1", None, Answer(Code.OK)))
    metrics(answered("reflection", "grpc-go/1", None, Answer(Code.OK)))
    scraped = samples_of(metrics, accept, b=2, x=1, y=1)

    assert value(scraped, "ghealth_serving", service="gateway") == 1
    assert value(scraped, "ghealth_serving", service="b") == 0
    assert value(scraped, "ghealth_serving", service="liveness") == 1
    assert value(scraped, "ghealth_probes_total", service="gateway", result="ok") == 1
    assert value(scraped, "ghealth_probes_total", service="gateway", result="status") == 1
    assert value(scraped, "ghealth_probes_total", service="b", result="refused") == 1
    assert value(scraped, "ghealth_probes_total", service="b", result="timeout") == 0
    duration = "ghealth_probe_duration_seconds"
    buckets = {"0.0025": 0, "0.005": 1, "1.0": 1, "1.5": 2, "3.0": 2, "+Inf": 2}
    for bound, count in buckets.items():
        assert value(scraped, f"{duration}_bucket", service="gateway", le=bound) == count
    assert value(scraped, f"{duration}_bucket", service="b", le="0.001") == 1
    assert value(scraped, f"{duration}_sum", service="gateway") == 1.504
    assert value(scraped, f"{duration}_count", service="gateway") == 2
    assert value(scraped, "ghealth_probe_timeout_seconds") == 3
    checks = {labels: n for (name, labels), n in scraped.items() if name == "ghealth_checks_total"}
    assert {tuple(dict(labels).values()): n for labels, n in checks.items()} == {
        ("UNAVAILABLE", "alb", "gateway"): 2,
        ("UNIMPLEMENTED", "kubelet", "gateway"): 1,
        ("INVALID_ARGUMENT", "other", "unknown"): 1,
    }
    assert value(scraped, "ghealth_watchers", service="b") == 2
    assert value(scraped, "ghealth_watchers", service="gateway") == 0
    assert value(scraped, "ghealth_watchers", service="unknown") == 2
    assert value(scraped, "ghealth_status_changes_total", service="gateway") == 1
    assert value(scraped, "ghealth_status_changes_total", service="b") == 0
    assert value(scraped, "ghealth_connections_cut_total", reason="calls") == 5
    assert value(scraped, "ghealth_connections_cut_total", reason="connections") == 0
    assert value(scraped, "ghealth_last_success_timestamp_seconds", service="gateway") == 1000.5
    assert value(scraped, "ghealth_last_success_timestamp_seconds", service="b") == 0
    assert value(scraped, "ghealth_draining") == 0
    assert value(scraped, "ghealth_build_info", version=__version__) == 1
    assert value(scraped, "process_open_fds") > 0
    metrics(DrainStarted(seconds=5))
    assert value(samples_of(metrics, accept), "ghealth_draining") == 1


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_expected_series_exist_from_the_start(accept: str) -> None:
    """A first event shows in a rate, and there are no series of creation times."""
    scraped = samples_of(metrics_of(), accept)
    own = {name for name, _ in scraped if name.startswith("ghealth_")}
    assert own == {
        "ghealth_build_info",
        "ghealth_connections_cut_total",
        "ghealth_draining",
        "ghealth_last_success_timestamp_seconds",
        "ghealth_probe_duration_seconds_bucket",
        "ghealth_probe_duration_seconds_count",
        "ghealth_probe_duration_seconds_sum",
        "ghealth_probe_timeout_seconds",
        "ghealth_probes_total",
        "ghealth_serving",
        "ghealth_status_changes_total",
        "ghealth_watchers",
    }
    probes = [labels for name, labels in scraped if name == "ghealth_probes_total"]
    assert len(probes) == 2 * 9  # services with a probe, results
    cuts = {dict(labels)["reason"] for name, labels in scraped if name.endswith("_cut_total")}
    assert cuts == set(get_args(CutReason))


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_a_scrape_replaces_the_gauges_of_the_one_before(accept: str) -> None:
    """A watch that ended and a service that drains are not shown as they were."""
    metrics = metrics_of()
    samples_of(metrics, accept, b=2, x=1)
    metrics.render(accept, HEALTHS | {GATEWAY: DRAINING}, {})
    content = metrics.render(accept, HEALTHS | {GATEWAY: DRAINING}, {})[1].decode()
    assert 'ghealth_serving{service="gateway"} 0.0' in content
    assert 'ghealth_watchers{service="b"} 0.0' in content
    assert 'ghealth_watchers{service="unknown"} 0.0' in content


# Of Prometheus 3 and 2, in that order.
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0,"
    "application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PROMETHEUS_3, True),
        (PROMETHEUS_2, True),
        ("application/openmetrics-text", True),
        ("Application/OpenMetrics-Text ; Version=1.0.0", True),
        ("text/plain;q=0.5, application/openmetrics-text;q=0.5", True),
        ("*/*, application/openmetrics-text", True),
        ("text/plain;q=0.1, text/*, application/openmetrics-text;q=0.2", True),
        ("", False),
        ("*/*", False),
        ("application/json", False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", False),
        ("text/plain, application/openmetrics-text;q=0.9", False),
        ("text/plain;version=0.0.4;q=1, application/openmetrics-text;version=1.0.0;q=0.1", False),
        ("text/*, application/openmetrics-text;q=0.9", False),
        ("*/*, application/openmetrics-text;q=0.9", False),
        ("application/openmetrics-text;q=0", False),
        ("application/openmetrics-text;q=x", False),
        ("application/openmetrics-text;q=nan", False),
        ('application/openmetrics-text;version="1.0.0"', True),
        ('application/openmetrics-text;version="0.0.1"', False),
        ("application/openmetrics-text;version=0.0.1", False),
        ("application/openmetrics-text;version=2.0.0", False),
        ("application/openmetrics-text;version=x\0", False),
        (";;,=,q=1;q", False),
    ],
)
def test_accept_decides_the_format(accept: str, expected: bool) -> None:
    """OpenMetrics if it has the higher `q`, the Prometheus text format otherwise."""
    content_type, content = metrics_of().render(accept, HEALTHS, {})
    assert content_type == (
        "application/openmetrics-text; version=1.0.0; charset=utf-8"
        if expected
        else "text/plain; version=0.0.4; charset=utf-8"
    )
    assert content.endswith(b"# EOF\n") is expected


def hostile() -> Iterator[str]:
    """Make user agents that differ each time, look like known ones and need escaping."""
    for number in itertools.count():
        beginning = ("", "ELB-HealthChecker/", "kube-probe/", "Envoy/HC", "grpc-", "grpc_health_")
        yield beginning[number % 6] + f'{number}"}}\n{{}}\\ éx{number}' * (number % 50)


def test_no_caller_can_add_a_label() -> None:
    """After 10,000 different user agents and service names the series are those of the kinds."""
    metrics = metrics_of()
    not_found = Answer(Code.NOT_FOUND, reason=UNKNOWN_SERVICE.reason)
    serving = Answer(Code.OK, Status.SERVING)
    for number, user_agent in enumerate(itertools.islice(hostile(), 10_000)):
        metrics(answered("Check", user_agent, f"s{number}", not_found))
        metrics(answered("Check", user_agent, GATEWAY, serving))
        metrics(answered("other", user_agent, f"s{number}", Answer(Code.UNIMPLEMENTED)))
    scraped = samples_of(metrics, "", **{f"s{number}": 1 for number in range(100)})
    checks = [dict(labels) for name, labels in scraped if name == "ghealth_checks_total"]
    assert {labels["caller"] for labels in checks} == {"alb", "kubelet", "envoy", "grpc", "other"}
    assert {labels["service"] for labels in checks} == {"gateway", "unknown"}
    assert len(checks) == 15
    assert value(scraped, "ghealth_watchers", service="unknown") == 100


def test_a_configured_name_that_is_another_label_keeps_its_own_series() -> None:
    """The gateway is `gateway`, unknown names are `unknown`, and neither takes a service's."""
    metrics = metrics_of(GATEWAY, "gateway", "unknown", 'a"b\\c\n', LIVENESS)
    healths = {GATEWAY: UP, "gateway": DOWN, "unknown": DOWN, 'a"b\\c\n': DOWN, LIVENESS: ALIVE}
    _, content = metrics.render("", healths, {})
    (serving,) = [f for f in prometheus(content.decode()) if f.name == "ghealth_serving"]
    assert {sample.labels["service"]: sample.value for sample in serving.samples} == {
        "gateway": 1,
        "service gateway": 0,
        "service unknown": 0,
        'a"b\\c\n': 0,
        "liveness": 1,
    }


def test_an_event_of_a_new_kind_changes_nothing() -> None:
    """The core can have events that this sink does not count."""
    metrics = metrics_of()
    before = samples_of(metrics).keys()
    metrics(cast("Event", object()))
    assert samples_of(metrics).keys() == before
