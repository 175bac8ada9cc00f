import itertools
from collections.abc import Iterator

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus

from ghealth import __version__
from ghealth.metrics import Metrics
from ghealth.status import ALIVE, GATEWAY, LIVENESS, Health, Status

UP = Health(Status.SERVING, "gateway answered 200")
DOWN = Health(Status.NOT_SERVING, "gateway answered 503")
SERVICES = (GATEWAY, "b", LIVENESS)
HEALTHS = {GATEWAY: UP, "b": DOWN, LIVENESS: ALIVE}

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def metrics_of(*services: str) -> Metrics:
    return Metrics(services or SERVICES, probe_timeout=3.0, now=lambda: 1000.5)


def samples_of(metrics: Metrics, accept: str = "", **watchers: int) -> Samples:
    """Tell all samples of a scrape, read by the format's own parser."""
    content_type, content = metrics.rendered(accept, HEALTHS, watchers)
    parse = openmetrics if content_type.startswith("application/openmetrics-text") else prometheus
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(content.decode())
        for sample in family.samples
    }


def value(samples: Samples, name: str, **labels: str) -> float:
    return samples[name, tuple(sorted(labels.items()))]


OPENMETRICS = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"


@pytest.mark.parametrize("accept", ["", OPENMETRICS, "application/openmetrics-text; version=x\0"])
def test_what_happens_is_counted(accept: str) -> None:
    """Attempts by result and duration, checks by caller and answer, changes, the last success."""
    metrics = metrics_of()
    metrics.probed(GATEWAY, UP, 0.004)
    metrics.probed(GATEWAY, DOWN, 1.5)
    metrics.probed("b", Health(Status.NOT_SERVING, "connection refused"), 0.001)
    metrics.answered("Check", "ELB-HealthChecker/2.0", GATEWAY, "UNAVAILABLE", "")
    metrics.answered("Check", "ELB-HealthChecker/2.0", GATEWAY, "UNAVAILABLE", "")
    metrics.answered("healthcheck", "kube-probe/1", GATEWAY, "UNIMPLEMENTED", "")
    metrics.answered("Check", "x", None, "INVALID_ARGUMENT", "")
    metrics.answered("Watch", "grpc-go/1", GATEWAY, "SERVING", "")
    metrics.answered("List", "grpc-go/1", None, "OK", "")
    told = samples_of(metrics, accept, b=2, x=1, y=1)

    assert value(told, "ghealth_serving", service="gateway") == 1
    assert value(told, "ghealth_serving", service="b") == 0
    assert value(told, "ghealth_serving", service="liveness") == 1
    assert value(told, "ghealth_probes_total", service="gateway", result="ok") == 1
    assert value(told, "ghealth_probes_total", service="gateway", result="status") == 1
    assert value(told, "ghealth_probes_total", service="b", result="refused") == 1
    assert value(told, "ghealth_probes_total", service="b", result="timeout") == 0
    duration = "ghealth_probe_duration_seconds"
    buckets = {"0.0025": 0, "0.005": 1, "1.0": 1, "1.5": 2, "3.0": 2, "+Inf": 2}
    for bound, count in buckets.items():
        assert value(told, f"{duration}_bucket", service="gateway", le=bound) == count
    assert value(told, f"{duration}_bucket", service="b", le="0.001") == 1
    assert value(told, f"{duration}_sum", service="gateway") == 1.504
    assert value(told, f"{duration}_count", service="gateway") == 2
    assert value(told, "ghealth_probe_timeout_seconds") == 3
    checks = {labels: n for (name, labels), n in told.items() if name == "ghealth_checks_total"}
    assert {tuple(dict(labels).values()): n for labels, n in checks.items()} == {
        ("UNAVAILABLE", "alb", "gateway"): 2,
        ("UNIMPLEMENTED", "kubelet", "gateway"): 1,
        ("INVALID_ARGUMENT", "other", "unknown"): 1,
    }
    assert value(told, "ghealth_watchers", service="b") == 2
    assert value(told, "ghealth_watchers", service="gateway") == 0
    assert value(told, "ghealth_watchers", service="unknown") == 2
    assert value(told, "ghealth_status_changes_total", service="gateway") == 1
    assert value(told, "ghealth_status_changes_total", service="b") == 0
    assert value(told, "ghealth_last_success_timestamp_seconds", service="gateway") == 1000.5
    assert value(told, "ghealth_last_success_timestamp_seconds", service="b") == 0
    assert value(told, "ghealth_draining") == 0
    assert value(told, "ghealth_build_info", version=__version__) == 1
    assert value(told, "process_open_fds") > 0
    metrics.draining()
    assert value(samples_of(metrics, accept), "ghealth_draining") == 1


def hostile() -> Iterator[str]:
    """Make user agents that differ each time and look like known ones, with all that escapes."""
    for number in itertools.count():
        beginning = ("", "ELB-HealthChecker/", "kube-probe/", "Envoy/HC", "grpc-", "grpc_health_")
        yield beginning[number % 6] + f'{number}"}}\n{{}}\\ éx{number}' * (number % 50)


def test_no_caller_makes_the_labels_grow() -> None:
    """After 10,000 distinct user agents and service names the series are those of the kinds."""
    metrics = metrics_of()
    for number, user_agent in enumerate(itertools.islice(hostile(), 10_000)):
        metrics.answered("Check", user_agent, f"s{number}", "NOT_FOUND", "unknown service")
        metrics.answered("Check", user_agent, GATEWAY, "SERVING", "")
    told = samples_of(metrics, "", **{f"s{number}": 1 for number in range(100)})
    checks = [dict(labels) for name, labels in told if name == "ghealth_checks_total"]
    assert {labels["caller"] for labels in checks} == {"alb", "kubelet", "envoy", "grpc", "other"}
    assert {labels["service"] for labels in checks} == {"gateway", "unknown"}
    assert len(checks) == 10
    assert value(told, "ghealth_watchers", service="unknown") == 100


def test_a_configured_name_that_is_another_label_keeps_its_own_series() -> None:
    """The gateway is `gateway`, strangers' names are `unknown`, and neither takes a service's."""
    metrics = metrics_of(GATEWAY, "gateway", "unknown", 'a"b\\c\n', LIVENESS)
    healths = {GATEWAY: UP, "gateway": DOWN, "unknown": DOWN, 'a"b\\c\n': DOWN, LIVENESS: ALIVE}
    _, content = metrics.rendered("", healths, {})
    (serving,) = [f for f in prometheus(content.decode()) if f.name == "ghealth_serving"]
    assert {sample.labels["service"]: sample.value for sample in serving.samples} == {
        "gateway": 1,
        "service gateway": 0,
        "service unknown": 0,
        'a"b\\c\n': 0,
        "liveness": 1,
    }
