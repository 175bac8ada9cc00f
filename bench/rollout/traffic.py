"""Calls through a target group at a steady rate, independent of earlier calls."""

import asyncio
from collections.abc import AsyncIterator
from random import Random
from typing import Any, Final, NamedTuple

import grpc

from bench.rollout.alb import Target, TargetGroup
from bench.rollout.numbers import SCALE, TRAFFIC

RATE: Final = 15.0
"""Unary calls per second of this machine, for each target group."""

SHORTEST, LONGEST = 0.001, 0.5
"""Seconds that a unary call takes, not scaled: up to 2.5 of the cluster's."""

STREAM_EVERY, MESSAGES_EVERY = 1.5, 0.5
STREAM_SECONDS: Final = (2.0, 16.0)

DEADLINE: Final = 15.0
"""The cluster's seconds that a client waits beyond what its call takes."""

OPTIONS: Final = (
    ("grpc.enable_retries", 0),  # an ALB is not known to repeat a request
    ("grpc.use_local_subchannel_pool", 1),  # each node has separate connections
    ("grpc.enable_http_proxy", 0),
)


async def start_service() -> tuple[grpc.aio.Server, int]:
    """Start the service behind the gateways; return it, and its port."""

    async def answer(request: bytes, _: Any) -> AsyncIterator[bytes]:
        """Send messages for the seconds in the request; only one if they are few."""
        left = float(request)
        while left > 0:
            await asyncio.sleep(min(left, MESSAGES_EVERY))
            left -= MESSAGES_EVERY
            yield request

    server = grpc.aio.server()
    handler: Any = grpc.unary_stream_rpc_method_handler(answer)
    service = grpc.method_handlers_generic_handler("echo.Echo", {"Call": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    return server, port


class Outcome(NamedTuple):
    """The result of a call.

    Args:
        at: When it was made, on the loop's clock.
        stream: Whether it was a long one.
        result: The name of a gRPC code, or "503" if there was no target.
    """

    at: float
    stream: bool
    result: str


class Caller:
    """The clients of one target group, and the ALB's connections to its targets.

    Args:
        group: Where calls go.
        seed: Decides the calls: the same for every target group of a run.
        port: Where the targets serve calls.
    """

    def __init__(self, group: TargetGroup, seed: int, port: int = TRAFFIC) -> None:
        self.outcomes: list[Outcome] = []
        self._group = group
        self._port = port
        self._random = Random(seed)
        self._channels: dict[Target, grpc.aio.Channel] = {}

    async def run(self) -> None:
        """Call until cancelled; calls that are open then have no outcome."""
        loop = asyncio.get_running_loop()
        due = next_stream = loop.time()
        async with asyncio.TaskGroup() as calls:
            while True:
                await asyncio.sleep(due - loop.time())
                seconds = SHORTEST * (LONGEST / SHORTEST) ** self._random.random()
                calls.create_task(self.call(seconds, stream=False))
                if due >= next_stream:
                    next_stream += STREAM_EVERY
                    seconds = self._random.uniform(*STREAM_SECONDS)
                    calls.create_task(self.call(seconds, stream=True))
                due += self._random.uniform(0.5, 1.5) / RATE

    async def call(self, seconds: float, *, stream: bool) -> None:
        """Make a call, which the service answers for a number of seconds.

        Errors, HTTP 503: there is no target. HTTP 502: a connection that is refused, reset or ended
        with a request outstanding.
        """
        at = asyncio.get_running_loop().time()
        target = self._group.node().pick()
        result = await self._forward(target, seconds) if target else "503"
        self.outcomes.append(Outcome(at, stream, result))

    async def _forward(self, target: Target, seconds: float) -> str:
        if target not in self._channels:
            address = f"{target.address}:{self._port}"
            self._channels[target] = grpc.aio.insecure_channel(address, OPTIONS)
        method: Any = self._channels[target].unary_stream("/echo.Echo/Call")
        call = method(f"{seconds}".encode(), timeout=seconds + DEADLINE / SCALE)
        target.calls.add(call)
        try:
            async for _ in call:
                pass
        except (grpc.RpcError, asyncio.CancelledError):  # the second if the node ends the call
            if (task := asyncio.current_task()) and task.cancelling():
                raise
        finally:
            target.calls.discard(call)
        return str((await call.code()).name)
