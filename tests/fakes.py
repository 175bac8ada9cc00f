"""Doubles of the parts, with gates instead of delays."""

import asyncio

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
