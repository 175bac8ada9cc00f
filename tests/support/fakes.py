"""Doubles of the parts, with gates instead of delays."""

import asyncio

import grpc

from ghealth import reasons
from ghealth.observer import Observer
from ghealth.probe import ProbeResult
from ghealth.status import Health

READY = ProbeResult(ready=True, reason=reasons.answered(200))
SICK = ProbeResult(ready=False, reason=reasons.answered(503))


class FakeProbe:
    """A target that says what it is told to say, when it is told to.

    Args:
        says: The outcome of the next attempts; an exception is raised instead.
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


class Notes(Observer):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.attempts: list[tuple[str, Health, float]] = []
        self.answers: list[tuple[str, str, str | None, str, str]] = []
        self.drains = 0

    def probed(self, service: str, health: Health, seconds: float) -> None:
        self.attempts.append((service, health, seconds))

    def answered(
        self, method: str, user_agent: str, service: str | None, answer: str, reason: str
    ) -> None:
        self.answers.append((method, user_agent, service, answer, reason))

    def draining(self) -> None:
        self.drains += 1


class FakeContext:
    """A call, as gRPC lends it to a handler.

    Args:
        message: What the caller sent; None for one that never sends anything.
        deadline: Seconds that it leaves, counted from now.
        cannot: The method that raises, since the caller has hung up.
        reads: Whether it takes what it is sent; what is sent to one that does not hangs.
    """

    def __init__(
        self,
        message: bytes | None,
        *,
        deadline: float | None = None,
        cannot: str = "",
        reads: bool = True,
    ) -> None:
        self.told: tuple[grpc.StatusCode, str] | None = None
        self.sent: list[bytes] = []
        self._reads = reads
        self._message = message
        self._cannot = cannot
        self._ends = None if deadline is None else _now() + deadline

    async def read(self) -> bytes:
        """Take the caller's message."""
        self._try("read")
        if self._message is None:
            await asyncio.Event().wait()
        return self._message or b""

    async def write(self, message: bytes) -> None:
        """Send a message."""
        self._try("write")
        self.sent.append(message)
        if not self._reads:
            await asyncio.Event().wait()

    async def abort(self, code: grpc.StatusCode, reason: str) -> None:
        """End the call."""
        self._try("abort")
        self.told = (code, reason)
        raise grpc.aio.AbortError

    def time_remaining(self) -> float | None:
        """Tell the seconds until the deadline."""
        return None if self._ends is None else self._ends - _now()

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Tell the headers."""
        return ()

    def _try(self, name: str) -> None:
        if name == self._cannot:
            raise grpc.aio.InternalError("Failed to send or receive")


def _now() -> float:
    return asyncio.get_running_loop().time()
