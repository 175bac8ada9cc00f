"""Honest callers, an ALB and a kubelet, that verify every answer."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import h2.exceptions

from tests.support import wire
from tests.support.stopwatch import delays

PAUSE: Final = 0.1
RIGHT: Final = wire.framed(b"\x08\1")


@dataclass
class Caller:
    """Checks repeatedly, each time on a new connection.

    Attackers on this machine use processors that real attackers, on other machines, would not use,
    and the machine may have other work. So one delay is subtracted from each wait: the longest time
    for which a thread of ghealth or of the caller was ready to run but did not run.

    Args:
        name: The caller's name in messages.
        check: Makes one check of a port.
        waits: The start of each check by the monotonic clock, and the seconds until its answer,
            without the delay.
        wrong: The answers that were not expected.
    """

    name: str
    check: Callable[[int], Awaitable[wire.Reply]]
    waits: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def longest(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Return the longest wait, in seconds, of the checks that began in a period."""
        return max((wait for at, wait in self.waits if since <= at < until), default=0.0)

    async def ask(self, port: int, pid: int, over: asyncio.Event) -> None:
        """Check until it is over."""
        while not over.is_set():
            before, began = delays(pid) | delays(os.getpid()), time.monotonic()
            try:
                reply = await self.check(port)
                problem = "" if (reply.code, reply.data) == (0, RIGHT) else str(reply)
            except (OSError, AssertionError, h2.exceptions.ProtocolError) as error:
                problem = repr(error)
            passed, after = time.monotonic() - began, delays(pid) | delays(os.getpid())
            delay = max((after[thread] - before.get(thread, 0) for thread in after), default=0.0)
            self.waits.append((began, max(0.0, passed - delay)))
            if problem and not over.is_set():
                self.wrong.append(f"{self.name} {problem}")
            await asyncio.sleep(PAUSE)


def callers() -> tuple[Caller, Caller]:
    """Return an ALB, and a kubelet that checks `liveness`."""
    alb = (("host", "AWSALB"), ("content-length", "5"), ("user-agent", "ELB-HealthChecker/2.0"))
    encodings = ("accept-encoding", "gzip, compressed")
    kubelet = (("user-agent", "kube-probe/1.33 grpc-go/1.71.0"),)
    call = partial(wire.call, without=(":authority",), headers=(*alb, encodings))
    liveness = wire.framed(b"\x0a\x08liveness")
    return (
        Caller("ALB", lambda port: call(port, wire.EMPTY_MESSAGE)),
        Caller("liveness", lambda port: wire.call(port, liveness, headers=kubelet)),
    )
