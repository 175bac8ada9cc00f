"""A sink that remembers the last events, in bounded memory."""

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from ghealth.events import DrainStarted, Event, ProbeCompleted, RequestAnswered
from ghealth.health import DRAINING, LIVENESS, Health, Status
from ghealth.observe.callers import Caller, caller_of
from ghealth.printable import MAX_USER_AGENT
from ghealth.transitions import Transitions

HISTORY_SIZE: Final = 50
"""Number of probes, of answers and of transitions that are kept."""

RECENT: Final = 300
"""Seconds over which answers are counted for each kind of caller."""

_STEP: Final = 10
"""Resolution of the count, in seconds."""

EventT = TypeVar("EventT", ProbeCompleted, RequestAnswered)


@dataclass(frozen=True, slots=True)
class Recorded(Generic[EventT]):
    """An event and its time.

    Args:
        time: Seconds since 1970.
        event: The event; texts from callers are cut to little more than is shown of them.
    """

    time: float
    event: EventT


@dataclass(frozen=True, slots=True)
class Change:
    """A transition of a service's status.

    Args:
        time: Seconds since 1970.
        service: The service's name.
        health: Its health from then on.
        held_seconds: How long the previous status lasted; None for the first one.
    """

    time: float
    service: str
    health: Health
    held_seconds: float | None


@dataclass(frozen=True, slots=True)
class CallerSummary:
    """The calls of one kind of caller.

    Args:
        caller: The kind.
        last: The last answer that one of them got; None if there was none.
        recent: The number of answers in the last `RECENT` seconds.
    """

    caller: Caller
    last: Recorded[RequestAnswered] | None
    recent: int


class _RecentCount:
    """Counts events within the last `RECENT` seconds, in steps of `_STEP` seconds."""

    def __init__(self) -> None:
        self._counts: deque[tuple[int, int]] = deque(maxlen=RECENT // _STEP)

    def add(self, now: float) -> None:
        """Count one event now."""
        step, count = int(now // _STEP), 0
        if self._counts and self._counts[-1][0] == step:
            count = self._counts.pop()[1]
        self._counts.append((step, count + 1))

    def total(self, now: float) -> int:
        """Return the number of recent events."""
        oldest = now // _STEP - RECENT // _STEP
        return sum(count for step, count in self._counts if step > oldest)


class History:
    """Remembers the last `HISTORY_SIZE` events of each kind, and a summary for each caller kind.

    Args:
        services: The names of all services.
        now: Seconds since 1970.
        clock: Seconds on a monotonic clock.
    """

    def __init__(
        self,
        services: Collection[str],
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._services = frozenset(services)
        self._now = now
        self._clock = clock
        self._draining_since: float | None = None
        self._transitions = Transitions[Status]()
        self._since: dict[str, tuple[Status, float]] = {LIVENESS: (Status.SERVING, now())}
        self._probes: deque[Recorded[ProbeCompleted]] = deque(maxlen=HISTORY_SIZE)
        self._answers: deque[Recorded[RequestAnswered]] = deque(maxlen=HISTORY_SIZE)
        self._changes: deque[Change] = deque(maxlen=HISTORY_SIZE)
        # Kept per kind, so that frequent callers cannot push a rare one out.
        self._last: dict[Caller, Recorded[RequestAnswered]] = {}
        self._recent = {caller: _RecentCount() for caller in Caller}

    @property
    def probes(self) -> list[Recorded[ProbeCompleted]]:
        """The last probes, latest first."""
        return list(reversed(self._probes))

    @property
    def answers(self) -> list[Recorded[RequestAnswered]]:
        """The last answers, latest first."""
        return list(reversed(self._answers))

    @property
    def changes(self) -> list[Change]:
        """The last transitions, latest first."""
        return list(reversed(self._changes))

    @property
    def callers(self) -> list[CallerSummary]:
        """A summary for each kind of caller, also for those that never asked."""
        now = self._clock()
        return [
            CallerSummary(caller, self._last.get(caller), recent.total(now))
            for caller, recent in self._recent.items()
        ]

    @property
    def draining_since(self) -> float | None:
        """When the drain started, in seconds since 1970; None if it has not."""
        return self._draining_since

    def since(self, service: str, status: Status) -> float | None:
        """Return the time since which a service has had a status.

        Args:
            service: The name of a configured service.
            status: Its status now.

        Returns:
            Seconds since 1970; None if the last probe found another status.
        """
        found, since = self._since.get(service, (None, 0.0))
        return since if found is status else None

    def __call__(self, event: Event) -> None:
        """Record an event.

        Args:
            event: What happened.
        """
        now = self._now()  # one moment for all that follows from an event
        match event:
            case ProbeCompleted():
                self._probes.append(Recorded(now, event))
                # A probe that ends during the drain does not change the status.
                if self._draining_since is None:
                    self._record_status(event.service, event.health, now)
            case RequestAnswered():
                self._record_answer(event, now)
            case DrainStarted():
                self._draining_since = now
                for service in sorted(self._services - {LIVENESS}):
                    self._record_status(service, DRAINING, now)

    def _record_answer(self, event: RequestAnswered, now: float) -> None:
        caller = caller_of(event.user_agent)
        kept = replace(
            event,
            # One character more than is shown, to detect that the text was cut.
            user_agent=event.user_agent[: MAX_USER_AGENT + 1],
            path=event.path[: MAX_USER_AGENT + 1],
            service=event.service if event.service in self._services else None,
        )
        recorded = Recorded(now, kept)
        self._answers.append(recorded)
        self._last[caller] = recorded
        self._recent[caller].add(self._clock())

    def _record_status(self, service: str, health: Health, now: float) -> None:
        transition = self._transitions.record(service, health.status, self._clock())
        if transition is not None:
            held = None if transition.previous is None else transition.held_seconds
            self._since[service] = (health.status, now)
            self._changes.append(Change(now, service, health, held))
