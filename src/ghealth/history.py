"""What happened lately: the last attempts, answers and changes, in bounded memory."""

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, NamedTuple

from ghealth.callers import LONGEST_USER_AGENT, caller_of
from ghealth.changes import Changes
from ghealth.observer import Observer
from ghealth.status import DRAINING, LIVENESS, Health, Status

KEPT: Final = 50
"""How many of each are kept."""


@dataclass(frozen=True, slots=True)
class Probed:
    """One attempt.

    Args:
        time: When it ended, in seconds since 1970.
        service: The service whose target was asked.
        health: What it found.
        seconds: How long it took.
    """

    time: float
    service: str
    health: Health
    seconds: float


class Answered(NamedTuple):  # which takes a third of the time that a frozen dataclass takes
    """What one caller was told.

    Args:
        time: When, in seconds since 1970.
        method: What it called.
        caller: Its kind.
        user_agent: The beginning of what it sent, one character more than is shown of it.
        service: The known service that it asked for, None for any other.
        answer: The status or gRPC code that it got, by its name.
        reason: Why.
    """

    time: float
    method: str
    caller: str
    user_agent: str
    service: str | None
    answer: str
    reason: str


@dataclass(frozen=True, slots=True)
class Changed:
    """A status that is another than before.

    Args:
        time: When, in seconds since 1970.
        service: Whose.
        health: What it is since.
        held_seconds: How long the one before held; None if there was none.
    """

    time: float
    service: str
    health: Health
    held_seconds: float | None


class History(Observer):
    """Remembers the last `KEPT` of each.

    Args:
        services: The names of all services.
        now: Seconds since 1970.
        clock: Seconds on a clock that nobody can set back.
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
        self._drains = False
        self._statuses = Changes[Status]()
        self._since: dict[str, tuple[Status, float]] = {LIVENESS: (Status.SERVING, now())}
        self._probed: deque[Probed] = deque(maxlen=KEPT)
        self._answered: deque[Answered] = deque(maxlen=KEPT)
        self._changed: deque[Changed] = deque(maxlen=KEPT)

    @property
    def probes(self) -> list[Probed]:
        """The last attempts, latest first."""
        return list(reversed(self._probed))

    @property
    def answers(self) -> list[Answered]:
        """The last answers, latest first."""
        return list(reversed(self._answered))

    @property
    def changes(self) -> list[Changed]:
        """The last changes of status, latest first."""
        return list(reversed(self._changed))

    def since(self, service: str, status: Status) -> float | None:
        """Tell since when a service has a status.

        Args:
            service: A known one.
            status: What it is now.

        Returns:
            Seconds since 1970; None if no attempt has found that status last.
        """
        found, since = self._since.get(service, (None, 0.0))
        return since if found is status else None

    def probed(self, service: str, health: Health, seconds: float) -> None:
        """Remember an attempt, and the change that it brought."""
        self._probed.append(Probed(self._now(), service, health, seconds))
        if not self._drains:  # what an attempt finds that was under way changes nothing any more
            self._note(service, health)

    def answered(
        self, method: str, user_agent: str, service: str | None, answer: str, reason: str
    ) -> None:
        """Remember an answer, and no more of what the caller sent than is shown."""
        kept = user_agent[: LONGEST_USER_AGENT + 1]
        known = service if service in self._services else None
        self._answered.append(
            Answered(self._now(), method, caller_of(user_agent), kept, known, answer, reason)
        )

    def draining(self) -> None:
        """Remember that nothing serves from now on, `liveness` excepted."""
        self._drains = True
        for service in sorted(self._services - {LIVENESS}):
            self._note(service, DRAINING)

    def _note(self, service: str, health: Health) -> None:
        change = self._statuses.change(service, health.status, self._clock())
        if change is not None:
            now = self._now()
            held = None if change.previous is None else change.held_seconds
            self._since[service] = (health.status, now)
            self._changed.append(Changed(now, service, health, held))
