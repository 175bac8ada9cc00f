"""The metrics, counted as things happen and rendered when somebody asks.

Counting is a few additions to plain numbers, since every answer waits for it: the library's own
counters take locks. The library renders, and tells about the process.
"""

import bisect
import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Final

from prometheus_client import CONTENT_TYPE_PLAIN_0_0_4, Metric, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from ghealth import __version__
from ghealth.callers import caller_of
from ghealth.changes import Changes
from ghealth.observer import Observer
from ghealth.reasons import Result, result_of
from ghealth.status import GATEWAY, LIVENESS, Health, Status

UNKNOWN: Final = "unknown"
"""The label of all services that nobody configured, so that no caller can add one."""

_GATEWAY_LABEL: Final = "gateway"
_CHECKS: Final = ("Check", "healthcheck")
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


def label_of(service: str) -> str:
    """Tell the label of a service that is known: its name, and `gateway` for the empty one.

    An empty label is none to Prometheus. A configured name that is another's label gets a word
    put before it.

    Args:
        service: Its name.
    """
    if service == GATEWAY:
        return _GATEWAY_LABEL
    return f"service {service}" if service in (_GATEWAY_LABEL, UNKNOWN) else service


class _Durations:
    """A histogram of seconds.

    Args:
        bounds: The upper bounds of its buckets, ascending.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[bisect.bisect_left(self._bounds, seconds)] += 1
        self.sum += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Tell each bound and how many were not above it."""
        names = (*map(str, self._bounds), "+Inf")
        return list(zip(names, itertools.accumulate(map(float, self._counts)), strict=True))


class Metrics(Observer):
    """Counts what happens, in a set of labels that no caller can make grow.

    Args:
        services: The names of all services.
        probe_timeout: Seconds that an attempt may take.
        now: Seconds since 1970.
    """

    def __init__(
        self,
        services: Collection[str],
        *,
        probe_timeout: float,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._labels = {service: label_of(service) for service in services}
        self._probe_timeout = probe_timeout
        self._now = now
        self._process = ProcessCollector(registry=None)
        self._draining = False
        # What is asked for over and over has a number from the start, so that a first time shows
        # in a rate too.
        probed = [service for service in services if service != LIVENESS]
        bounds = tuple(sorted({*_BUCKETS, probe_timeout / 2, probe_timeout}))
        self._durations = {service: _Durations(bounds) for service in probed}
        self._probes = Counter({(service, result): 0 for service in probed for result in Result})
        self._successes = dict.fromkeys(probed, 0.0)
        self._status = Changes[Status]()
        self._changes = Counter(dict.fromkeys(probed, 0))
        self._checks: Counter[tuple[str, str, str]] = Counter()

    def probed(self, service: str, health: Health, seconds: float) -> None:
        """Count an attempt."""
        now = self._now()
        ready = health.status is Status.SERVING
        self._probes[service, result_of(health.reason, ready=ready)] += 1
        self._durations[service].add(seconds)
        if ready:
            self._successes[service] = now
        change = self._status.change(service, health.status, now)
        if change is not None and change.previous is not None:
            self._changes[service] += 1

    def answered(
        self,
        method: str,
        user_agent: str,
        service: str | None,
        answer: str,
        reason: str,  # noqa: ARG002
    ) -> None:
        """Count a check: what watches and lists are told is no answer to one."""
        if method in _CHECKS:
            label = UNKNOWN if service is None else self._labels.get(service, UNKNOWN)
            self._checks[caller_of(user_agent), label, answer] += 1

    def draining(self) -> None:
        """Take note of the drain."""
        self._draining = True

    def rendered(
        self, accept: str, healths: Mapping[str, Health], watchers: Mapping[str, int]
    ) -> tuple[str, bytes]:
        """Render all metrics as they are now. It may run in a thread while counting goes on.

        Args:
            accept: The header of this name; OpenMetrics for who names it, Prometheus' own text
                for all others.
            healths: The health of every service, as a caller is told it now.
            watchers: How many watch each service, by the names that they gave.

        Returns:
            The content type and the content.
        """
        scrape = _Scrape([*self.families(healths, watchers), *self._process.collect()])
        if "application/openmetrics-text" in accept:
            content = openmetrics.generate_latest(scrape)  # type: ignore[no-untyped-call]
            return openmetrics.CONTENT_TYPE_LATEST, content
        return CONTENT_TYPE_PLAIN_0_0_4, generate_latest(scrape)

    def families(
        self, healths: Mapping[str, Health], watchers: Mapping[str, int]
    ) -> Iterator[Metric]:
        """Tell ghealth's own metrics.

        Args:
            healths: As for `rendered`.
            watchers: The same.
        """
        serving = GaugeMetricFamily(
            "ghealth_serving", "Whether a caller is told that it serves.", labels=["service"]
        )
        for service, health in healths.items():
            serving.add_metric([self._labels[service]], health.status is Status.SERVING)
        yield serving

        probes = CounterMetricFamily(
            "ghealth_probes", "Attempts by what they came to.", labels=["service", "result"]
        )
        for (service, result), count in self._probes.items():
            probes.add_metric([self._labels[service], result], count)
        yield probes

        durations = HistogramMetricFamily(
            "ghealth_probe_duration_seconds", "How long attempts took.", labels=["service"]
        )
        for service, histogram in self._durations.items():
            durations.add_metric([self._labels[service]], histogram.buckets(), histogram.sum)
        yield durations

        yield GaugeMetricFamily(
            "ghealth_probe_timeout_seconds",
            "How long one attempt may take.",
            value=self._probe_timeout,
        )

        checks = CounterMetricFamily(
            "ghealth_checks",
            "Checks by who asked and what it got: a status, or the gRPC code of an error.",
            labels=["caller", "service", "answer"],
        )
        for labels, count in list(self._checks.items()):  # at once, while it may grow
            checks.add_metric(labels, count)
        yield checks

        watching = GaugeMetricFamily(
            "ghealth_watchers", "Watches that are open.", labels=["service"]
        )
        open_watches = Counter(dict.fromkeys([*self._labels.values(), UNKNOWN], 0))
        for service, count in watchers.items():
            open_watches[self._labels.get(service, UNKNOWN)] += count
        for label, count in open_watches.items():
            watching.add_metric([label], count)
        yield watching

        changes = CounterMetricFamily(
            "ghealth_status_changes",
            "Attempts that found another status than the one before.",
            labels=["service"],
        )
        for service, count in self._changes.items():
            changes.add_metric([self._labels[service]], count)
        yield changes

        successes = GaugeMetricFamily(
            "ghealth_last_success_timestamp_seconds",
            "When the target last said that it is ready, 0 if it never did.",
            labels=["service"],
        )
        for service, moment in self._successes.items():
            successes.add_metric([self._labels[service]], moment)
        yield successes

        yield GaugeMetricFamily(
            "ghealth_draining",
            "Whether it drains: everyone is told that nothing serves, `liveness` excepted.",
            value=self._draining,
        )
        yield InfoMetricFamily(
            "ghealth_build", "What is running, always 1.", value={"version": __version__}
        )


class _Scrape(Collector):
    """What one scrape gets, in the form that the library renders.

    Args:
        families: All metrics.
    """

    def __init__(self, families: list[Metric]) -> None:
        self._families = families

    def collect(self) -> list[Metric]:
        """Tell all metrics."""
        return self._families
