"""Calls through a target group at a steady rate, independent of earlier calls."""

import asyncio
from dataclasses import dataclass
from random import Random
from typing import Final

from bench.rollout import numbers
from bench.rollout.alb import Node, Target, TargetGroup
from bench.rollout.contenders import Ports
from bench.rollout.echo import STREAM, WAIT
from bench.rollout.numbers import SCALE
from bench.rollout.upstream import Connection, open_connection

RATE: Final = 15.0
"""Unary calls per second of this machine, for each target group."""

SHORTEST, LONGEST = 0.001, 0.5
"""Seconds that a unary call takes, not scaled: up to 2.5 of the cluster's."""

STREAM_EVERY: Final = 1.5
STREAM_SECONDS: Final = (2.0, 16.0)

DEADLINE: Final = 15.0
"""The cluster's seconds that a client waits beyond what its call takes."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of a call.

    Args:
        at: When it was made, on the loop's clock.
        stream: Whether it was a long one.
        result: "ok", the code of the ALB's own error, "deadline", or "grpc N".
        host: The pod that it was sent to, if any.
    """

    at: float
    stream: bool
    result: str
    host: str


class Caller:
    """The clients of one target group, and the ALB's connections to its targets.

    Args:
        group: Where calls go.
        ports: Where pods listen.
        seed: Decides the calls: the same for every target group of a run.
    """

    def __init__(self, group: TargetGroup, ports: Ports, seed: int) -> None:
        self.outcomes: list[Outcome] = []
        self._group = group
        self._port = ports.traffic
        self._random = Random(seed)
        self._connections: dict[tuple[int, str], asyncio.Task[Connection]] = {}
        self._calls: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Call until cancelled."""
        loop = asyncio.get_running_loop()
        due = next_stream = loop.time()
        while True:
            await asyncio.sleep(due - loop.time())
            seconds = SHORTEST * (LONGEST / SHORTEST) ** self._random.random()
            self._begin(seconds, stream=False)
            if due >= next_stream:
                next_stream += STREAM_EVERY
                self._begin(self._random.uniform(*STREAM_SECONDS), stream=True)
            due += self._random.uniform(0.5, 1.5) / RATE

    async def finish(self) -> None:
        """Wait for the open unary calls, end the streams, and close."""
        await asyncio.sleep(LONGEST)
        for call in self._calls:
            call.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)
        for opening in self._connections.values():
            _close(opening)

    def _begin(self, seconds: float, *, stream: bool) -> None:
        call = asyncio.create_task(self._call(seconds, stream=stream))
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def _call(self, seconds: float, *, stream: bool) -> None:
        at = asyncio.get_running_loop().time()
        node = self._group.node()
        target = node.pick()
        # Errors, HTTP 503: there is no target.
        result = "503"
        if target is not None:
            target.in_flight += 1
            try:
                async with asyncio.timeout(seconds + DEADLINE / SCALE):
                    result = await self._forward(node, target, seconds, stream=stream)
            except TimeoutError:
                result = "deadline"
            finally:
                target.in_flight -= 1
        host = target.address if target else ""
        self.outcomes.append(Outcome(at, stream, result, host))

    async def _forward(self, node: Node, target: Target, seconds: float, *, stream: bool) -> str:
        """Forward a request; return the result as the client sees it.

        Errors, HTTP 502: a connection that is refused, reset or ended with a request outstanding.
        HTTP 504: no connection within 10 s, or no answer within the idle timeout.
        """
        try:
            async with asyncio.timeout(numbers.CONNECT_TIMEOUT / SCALE):
                connection = await self._connection(node, target)
        except TimeoutError:
            return "504"
        except OSError:
            return "502"
        message = f"{seconds:.4f}".encode()
        headers = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", STREAM if stream else WAIT),
            (":authority", "echo.example"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ]
        try:
            async with asyncio.timeout(seconds + numbers.IDLE_TIMEOUT / SCALE):
                answer = await connection.request(
                    headers, b"\0" + len(message).to_bytes(4, "big") + message
                )
        except TimeoutError:
            return "504"
        except ConnectionError:
            return "502"
        code = answer.get("grpc-status", "none")
        return "ok" if code == "0" else f"grpc {code}"

    async def _connection(self, node: Node, target: Target) -> Connection:
        """Return the node's connection to a target, or open one: an ALB reuses them."""
        key = (id(node), target.address)
        opening = self._connections.get(key)
        if opening is None or _is_useless(opening):
            opening = asyncio.create_task(open_connection(target.address, self._port))
            self._connections[key] = opening
            target.closed.append(lambda: _close(opening))
        return await asyncio.shield(opening)


def _is_useless(opening: "asyncio.Task[Connection]") -> bool:
    if not opening.done():
        return False
    return opening.cancelled() or bool(opening.exception()) or not opening.result().usable


def _close(opening: "asyncio.Task[Connection]") -> None:
    if not opening.done():
        opening.cancel()
    elif not opening.cancelled() and not opening.exception():
        opening.result().close()
