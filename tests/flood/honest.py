"""Honest callers, an ALB and a kubelet, that verify every answer."""

import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import h2.exceptions

from tests.support import wire
from tests.support.stopwatch import delays

PAUSE: Final = 0.1
RIGHT: Final = "0 " + wire.framed(b"\x08\1").hex()


class Wait:
    """A wait that begins now, without the time spent waiting for a free processor.

    Attackers on this machine use processors that real attackers, on other machines, would not use,
    and the machine may have other work. So one delay is subtracted: the longest time for which a
    thread of ghealth or of the caller was ready to run but did not run.

    Args:
        pid: The server's process id.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = self._delays()
        self.began = time.monotonic()

    @property
    def seconds(self) -> float:
        """The seconds so far, without the longest delay of a thread."""
        passed = time.monotonic() - self.began
        grown = (delay - self._before.get(task, 0) for task, delay in self._delays().items())
        return max(0.0, passed - max(grown, default=0.0))

    def _delays(self) -> dict[str, float]:
        return delays(self._pid) | delays(os.getpid())


@dataclass
class Caller:
    """Checks repeatedly, each time on a new connection.

    Args:
        name: The caller's name in messages.
        message: The request with its gRPC frame header.
        headers: The headers of each check, besides the usual ones.
        without: The usual headers that it does not send.
        waits: The start of each check by the monotonic clock, and the seconds until its answer,
            without the time that ghealth or the caller waited for a free processor.
        wrong: The answers that were not expected.
    """

    name: str
    message: bytes
    headers: Sequence[tuple[str, str]]
    without: Sequence[str] = ()
    waits: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def longest(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Return the longest wait, in seconds, of the checks that began in a period."""
        return max((wait for at, wait in self.waits if since <= at < until), default=0.0)

    async def ask(self, port: int, pid: int, over: asyncio.Event) -> None:
        """Check until it is over."""
        while not over.is_set():
            wait = Wait(pid)
            try:
                reply = await wire.call(
                    port, self.message, headers=self.headers, without=self.without
                )
                answer = f"{reply.code} {reply.data.hex()}"
            except (OSError, AssertionError, h2.exceptions.ProtocolError) as error:
                answer = repr(error)
            self.waits.append((wait.began, wait.seconds))
            if answer != RIGHT and not over.is_set():
                self.wrong.append(f"{self.name} {answer}")
            await asyncio.sleep(PAUSE)


def callers() -> tuple[Caller, Caller]:
    """Return an ALB, and a kubelet that checks `liveness`."""
    alb = (
        ("host", "AWSALB"),
        ("content-length", "5"),
        ("user-agent", "ELB-HealthChecker/2.0"),
        ("accept-encoding", "gzip, compressed"),
    )
    kubelet = (("user-agent", "kube-probe/1.33 grpc-go/1.71.0"),)
    liveness = wire.framed(b"\x0a\x08liveness")
    return (
        Caller("ALB", wire.EMPTY_MESSAGE, alb, without=(":authority",)),
        Caller("liveness", liveness, kubelet),
    )
