"""The metrics: counted by prometheus-client as events come in, rendered for each scrape."""

import time
from collections import Counter as Tally
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from typing import Final, get_args

from prometheus_client import (
    CONTENT_TYPE_PLAIN_0_0_4,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    Metric,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from ghealth import __version__
from ghealth.events import (
    OTHER,
    ConnectionsCut,
    CutReason,
    DrainStarted,
    Event,
    ProbeCompleted,
    RequestAnswered,
    StatusChanged,
)
from ghealth.health import GATEWAY, LIVENESS, Health, Result
from ghealth.observe.callers import caller_of

UNKNOWN: Final = "unknown"
"""The label of every service that is not configured, so that no caller can add a label."""

_GATEWAY_LABEL: Final = "gateway"
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_OPENMETRICS: Final = "application/openmetrics-text"


def label_of(service: str) -> str:
    """Return the label of a configured service: its name, or `gateway` for the empty one.

    Prometheus treats an empty label as none. A configured name that is another service's label
    gets a prefix.

    Args:
        service: The service's name.
    """
    if service == GATEWAY:
        return _GATEWAY_LABEL
    return f"service {service}" if service in (_GATEWAY_LABEL, UNKNOWN) else service


def result_of(health: Health) -> Result:
    """Return the result that a completed probe counts as."""
    return Result.OK if health.serving else health.reason.kind.result


class Metrics(Collector):
    """A sink that counts events. Its labels are bounded, whatever callers send.

    Args:
        services: The names of all services.
        probe_timeout: Seconds that a probe may take.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        services: Collection[str],
        *,
        probe_timeout: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._now = now
        self._labels = {service: label_of(service) for service in services}
        self._registry = registry = CollectorRegistry()
        counter, gauge = partial(Counter, registry=registry), partial(Gauge, registry=registry)
        self._serving = gauge(
            "ghealth_serving", "Whether the service is reported as serving.", ["service"]
        )
        self._probes = counter("ghealth_probes", "Probes by result.", ["service", "result"])
        self._durations = Histogram(
            "ghealth_probe_duration_seconds",
            "Duration of probes.",
            ["service"],
            buckets=sorted({*_BUCKETS, probe_timeout / 2, probe_timeout}),
            registry=registry,
        )
        gauge("ghealth_probe_timeout_seconds", "Time limit of a probe.").set(probe_timeout)
        self._checks = counter(
            "ghealth_checks",
            "Checks by caller and answer: a status, or the gRPC code of an error.",
            ["caller", "service", "answer"],
        )
        self._watchers = gauge("ghealth_watchers", "Open watches.", ["service"])
        self._changes = counter(
            "ghealth_status_changes", "Changes of the service's status.", ["service"]
        )
        self._successes = gauge(
            "ghealth_last_success_timestamp_seconds",
            "When the target was last ready, 0 if it never was.",
            ["service"],
        )
        self._cuts = counter(
            "ghealth_connections_cut", "Connections that were cut, by reason.", ["reason"]
        )
        self._draining = gauge(
            "ghealth_draining",
            "Whether ghealth drains: every service but liveness is reported as not serving.",
        )
        build = Info("ghealth_build", "The version that is running, always 1.", registry=registry)
        build.info({"version": __version__})
        ProcessCollector(registry=registry)
        # The counters start with the value 0, so that the first event shows in a rate.
        for reason in get_args(CutReason):
            self._cuts.labels(reason)
        for service, label in self._labels.items():
            if service != LIVENESS:
                for result in Result:
                    self._probes.labels(label, result)
                for metric in (self._durations, self._changes, self._successes):
                    metric.labels(label)

    def __call__(self, event: Event) -> None:
        """Count an event."""
        match event:
            case ProbeCompleted():
                self._count_probe(event)
            case RequestAnswered():
                self._count_answer(event)
            case StatusChanged():
                if event.previous is not None and event.is_new_status:
                    self._changes.labels(self._labels[event.service]).inc()
            case ConnectionsCut():
                self._cuts.labels(event.reason).inc(event.count)
            case DrainStarted():
                self._draining.set(1)

    def _count_probe(self, event: ProbeCompleted) -> None:
        label = self._labels[event.service]
        self._probes.labels(label, result_of(event.health)).inc()
        self._durations.labels(label).observe(event.seconds)
        if event.health.serving:
            self._successes.labels(label).set(self._now())

    def _count_answer(self, event: RequestAnswered) -> None:
        """Count an answer to a check; messages of watches and lists are not counted."""
        if event.method not in ("Check", OTHER):
            return
        # A path that ghealth does not serve is answered from the gateway's health.
        service = GATEWAY if event.method == OTHER else event.service
        label = UNKNOWN if service is None else self._labels.get(service, UNKNOWN)
        self._checks.labels(caller_of(event.user_agent), label, event.answer.name).inc()

    def render(
        self, accept: str, healths: Mapping[str, Health], watchers: Mapping[str, int]
    ) -> tuple[str, bytes]:
        """Render all metrics as they are now. It may run in a thread while events are counted.

        Args:
            accept: The request's `Accept` header: OpenMetrics if it is preferred, otherwise the
                Prometheus text format.
            healths: The health of every service, as a caller gets it now.
            watchers: The number of open watches by the service name in the request.

        Returns:
            The content type and the content.
        """
        for service, health in healths.items():
            self._serving.labels(self._labels[service]).set(health.serving)
        open_watches = Tally(dict.fromkeys([*self._labels.values(), UNKNOWN], 0))
        for service, count in watchers.items():
            open_watches[self._labels.get(service, UNKNOWN)] += count
        for label, count in open_watches.items():
            self._watchers.labels(label).set(count)
        if _prefers_openmetrics(accept):
            content = openmetrics.generate_latest(self)  # type: ignore[no-untyped-call]
            return openmetrics.CONTENT_TYPE_LATEST, content
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics without the creation times, which would double the series."""
        for family in self._registry.collect():
            family.samples = [
                sample for sample in family.samples if not sample.name.endswith("_created")
            ]
            yield family


def _prefers_openmetrics(accept: str) -> bool:
    """Return whether an `Accept` header prefers OpenMetrics (RFC 9110, 12.5.1).

    `choose_encoder` of prometheus-client takes the first type that it knows and ignores `q`.
    """
    qualities: dict[str, float] = {}
    for media_range in accept.lower().split(","):
        name, *parameters = (part.strip() for part in media_range.split(";"))
        values = dict(parameter.partition("=")[::2] for parameter in parameters)
        # A value may be quoted (RFC 9110, 5.6.6).
        if name == _OPENMETRICS and not values.get("version", "1.").strip('"').startswith("1."):
            continue
        try:
            quality = float(values.get("q", "1"))
        except ValueError:
            continue
        qualities[name] = max(quality, qualities.get(name, 0.0))
    text = next(
        (qualities[name] for name in ("text/plain", "text/*", "*/*") if name in qualities), 0
    )
    return 0 < qualities.get(_OPENMETRICS, 0) >= text
