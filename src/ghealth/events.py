"""Events, and the sinks that receive them: the log, the metrics and the history."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from ghealth.health import Answer, Health

_log = logging.getLogger(__name__)

Method = Literal["Check", "Watch", "List", "reflection", "other"]
"""The method of a call; `other` is any path that ghealth does not serve."""

OTHER: Final = "other"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCompleted:
    """A probe has a result.

    Args:
        service: The service that was probed.
        health: The health that follows from the result.
        seconds: How long the probe took.
    """

    service: str
    health: Health
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StatusChanged:
    """A service has another status, or the same status for another reason.

    Args:
        service: The service.
        previous: Its health before; None for the first one.
        health: Its health from now on.
        held_seconds: How long the previous status lasted. If only the reason changed, how long the
            previous reason did. 0 for the first one.
    """

    service: str
    previous: Health | None
    health: Health
    held_seconds: float

    @property
    def is_new_status(self) -> bool:
        """Whether the status is another one, and not only the reason."""
        return self.previous is None or self.previous.status is not self.health.status


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestAnswered:
    """A caller got an answer. For a Watch there is one for each message and one for its end.

    Args:
        method: The method that was called.
        path: The path that was called.
        user_agent: The caller's user agent, empty if it sent none.
        service: The service name in the request; None if there is none or it was not read.
        answer: The answer.
    """

    method: Method
    path: str
    user_agent: str
    service: str | None
    answer: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class DrainStarted:
    """From now on every service but `liveness` is NOT_SERVING.

    Args:
        seconds: How long ghealth still answers.
    """

    seconds: float


CutReason = Literal["calls", "connections", "memory"]
"""What was short: room for calls, descriptors for connections, or memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionsCut:
    """Connections of an address were cut.

    Args:
        address: The clients' address.
        count: How many of its connections were cut.
        reason: What was short.
    """

    address: str
    count: int
    reason: CutReason


Event = ProbeCompleted | StatusChanged | RequestAnswered | DrainStarted | ConnectionsCut

Sink = Callable[[Event], None]
"""Receives each event while a call is answered: it must be fast, use bounded memory and not wait.
Texts from callers are as long as gRPC's limits allow."""


def fan_out(sinks: Sequence[Sink]) -> Sink:
    """Combine sinks. What one of them raises is logged and changes no answer.

    Args:
        sinks: They receive each event in this order.
    """

    def emit(event: Event) -> None:
        for sink in sinks:
            try:
                sink(event)
            except Exception:
                _log.exception("a sink failed", extra={"event": "internal_error"})

    return emit


def log_event(logger: logging.Logger, level: int, event: str, text: str, **fields: object) -> None:
    """Log one event as one line.

    Args:
        logger: The logger.
        level: The level, as in `logging`.
        event: The stable name of the event: the JSON key `event`.
        text: The event in words: the JSON key `message`.
        fields: Further JSON keys.
    """
    logger.log(level, "%s", text, extra={"event": event, "fields": fields})
