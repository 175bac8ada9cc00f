"""Fakes of the parts, with gates instead of delays."""

import asyncio
from collections.abc import Callable
from typing import Any

import grpc

from ghealth.events import Event, ProbeCompleted, RequestAnswered
from ghealth.health import Health, Reason, ReasonKind
from ghealth.probe import ProbeResult


def answered(code: int) -> Reason:
    """Return the reason of a response with a status code."""
    return Reason(ReasonKind.ANSWERED, str(code))


READY = ProbeResult(ready=True, reason=answered(200))
SICK = ProbeResult(ready=False, reason=answered(503))


class FakeProbe:
    """A probe with a given result, which it returns when its gate opens.

    Args:
        says: The result of the next probes; an exception is raised instead.
    """

    def __init__(self, says: ProbeResult | BaseException = READY) -> None:
        self.says = says
        self.attempts = 0
        self.under_way = 0
        self.gate = asyncio.Event()
        self.gate.set()

    async def __call__(self) -> ProbeResult:
        self.attempts += 1
        self.under_way += 1
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        if isinstance(self.says, BaseException):
            raise self.says
        return self.says


def hanging() -> FakeProbe:
    """Make a probe that has no result until its gate opens."""
    probe = FakeProbe()
    probe.gate.clear()
    return probe


class Recorder:
    """A sink that records events."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.events.append(event)

    @property
    def probes(self) -> list[tuple[str, Health, float]]:
        """The probes, as service, health and seconds."""
        return [
            (event.service, event.health, event.seconds)
            for event in self.events
            if isinstance(event, ProbeCompleted)
        ]

    @property
    def answers(self) -> list[tuple[str, str, str | None, str, str]]:
        """The answers, as method, user agent, service, the answer's name and its reason."""
        return [
            (
                event.method,
                event.user_agent,
                event.service,
                event.answer.name,
                "" if event.answer.reason is None else str(event.answer.reason),
            )
            for event in self.events
            if isinstance(event, RequestAnswered)
        ]


class FakeContext:
    """A call, as gRPC passes it to a handler.

    Args:
        message: The caller's message; None if it never sends one.
        deadline: Seconds until its deadline, from now.
        reads: Whether the caller reads; otherwise sending hangs.
    """

    def __init__(
        self, message: bytes | None, *, deadline: float | None = None, reads: bool = True
    ) -> None:
        self.told: tuple[grpc.StatusCode, str] | None = None
        self.sent: list[bytes] = []
        self.trailers: tuple[tuple[str, str], ...] = ()
        self._reads = reads
        self._message = message
        self._ends = None if deadline is None else _now() + deadline

    async def read(self) -> bytes:
        """Receive the caller's message."""
        if self._message is None:
            await asyncio.Event().wait()
        return self._message or b""

    async def write(self, message: bytes) -> None:
        """Send a message."""
        self.sent.append(message)
        if not self._reads:
            await asyncio.Event().wait()

    async def abort(
        self, code: grpc.StatusCode, reason: str, trailers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        """End the call."""
        self.told = (code, reason)
        self.trailers = trailers
        raise grpc.aio.AbortError

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        """Ignore what is to be called when the answer is sent."""

    def set_trailing_metadata(self, trailers: tuple[tuple[str, str], ...]) -> None:
        """Send trailers at the end of the call."""
        self.trailers = trailers

    def peer(self) -> str:
        """Return the caller's connection."""
        return "ipv4:127.0.0.1:1"

    def time_remaining(self) -> float | None:
        """Return the seconds until the deadline."""
        return None if self._ends is None else self._ends - _now()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the headers."""
        return ()


def _now() -> float:
    return asyncio.get_running_loop().time()
