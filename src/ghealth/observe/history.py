"""A sink that remembers the last events, in bounded memory."""

import time
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

from ghealth.events import (
    ConnectionsCut,
    DrainStarted,
    Event,
    ProbeCompleted,
    RequestAnswered,
    StatusChanged,
)
from ghealth.health import LIVENESS, Status
from ghealth.observe.callers import Caller, caller_of
from ghealth.printable import MAX_USER_AGENT

HISTORY_SIZE: Final = 50
"""Number of events of each kind that are kept."""

RECENT: Final = 300
"""Seconds over which answers are counted for each kind of caller."""

_STEP: Final = 10
"""Resolution of the count, in seconds."""

EventT = TypeVar("EventT", ProbeCompleted, StatusChanged, RequestAnswered, ConnectionsCut)


@dataclass(frozen=True, slots=True)
class Recorded(Generic[EventT]):
    """An event and its time, in seconds since 1970."""

    time: float
    event: EventT


class History:
    """Remembers the last `HISTORY_SIZE` events of each kind.

    Args:
        services: The names of all services.
        now: Seconds since 1970.
        clock: Seconds on a monotonic clock.

    Attributes:
        probes: The last probes, latest first.
        changes: The last changes of a status or its reason, latest first.
        answers: The last answers, latest first; texts from callers are cut to little more than is
            shown of them.
        cuts: The last clients whose connections were cut, latest first.
        last: The last answer to each kind of caller: frequent callers push no rare one out.
        draining_since: When the drain started, in seconds since 1970; None if it has not.
    """

    def __init__(
        self,
        services: Collection[str],
        *,
        now: Callable[[], float] = time.time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.probes: deque[Recorded[ProbeCompleted]] = deque(maxlen=HISTORY_SIZE)
        self.changes: deque[Recorded[StatusChanged]] = deque(maxlen=HISTORY_SIZE)
        self.answers: deque[Recorded[RequestAnswered]] = deque(maxlen=HISTORY_SIZE)
        self.cuts: deque[Recorded[ConnectionsCut]] = deque(maxlen=HISTORY_SIZE)
        self.last: dict[Caller, Recorded[RequestAnswered]] = {}
        self.draining_since: float | None = None
        self._services = frozenset(services)
        self._now = now
        self._clock = clock
        self._since: dict[str, tuple[Status, float]] = {LIVENESS: (Status.SERVING, now())}
        self._counts: deque[tuple[int, Counter[Caller]]] = deque(maxlen=RECENT // _STEP)

    def recent(self, caller: Caller) -> int:
        """Return the number of answers to a kind of caller in the last `RECENT` seconds."""
        oldest = self._clock() // _STEP - RECENT // _STEP
        return sum(counts[caller] for step, counts in self._counts if step > oldest)

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
        """Record an event."""
        now = self._now()
        match event:
            case ProbeCompleted():
                self.probes.appendleft(Recorded(now, event))
            case RequestAnswered():
                self._record_answer(event, now)
            case StatusChanged():
                self.changes.appendleft(Recorded(now, event))
                if event.is_new_status:
                    self._since[event.service] = (event.health.status, now)
            case ConnectionsCut():
                self.cuts.appendleft(Recorded(now, event))
            case DrainStarted():
                self.draining_since = now

    def _record_answer(self, event: RequestAnswered, now: float) -> None:
        caller = caller_of(event.user_agent)
        # One character more than is shown, to detect that the text was cut.
        agent, path = event.user_agent[: MAX_USER_AGENT + 1], event.path[: MAX_USER_AGENT + 1]
        service = event.service if event.service in self._services else None
        if (agent, path, service) != (event.user_agent, event.path, event.service):
            event = replace(event, user_agent=agent, path=path, service=service)
        self.last[caller] = recorded = Recorded(now, event)
        self.answers.appendleft(recorded)
        step = int(self._clock() // _STEP)
        if not self._counts or self._counts[-1][0] != step:
            self._counts.append((step, Counter()))
        self._counts[-1][1][caller] += 1
