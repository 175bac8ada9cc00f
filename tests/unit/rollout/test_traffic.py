import asyncio
from random import Random

from bench.rollout.alb import TargetGroup
from bench.rollout.traffic import Caller
from tests.support import frames
from tests.support.peers import target
from tests.unit.rollout.test_alb_model import RULES

GOAWAY = frames.frame(frames.Kind.GOAWAY, bytes(8))
"""It leaves all calls out, and a client may make them again."""


async def test_a_request_that_the_target_drops_fails_and_is_not_repeated() -> None:
    """Errors, HTTP 502: no answer comes, and an ALB is not known to repeat the request."""
    calls = []

    async def goes_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(len(frames.PREFACE))
        writer.write(frames.settings())
        received = bytearray()
        while data := await reader.read(65536):
            received += data
            dropped = [kind for kind, *_ in frames.taken(received) if kind == frames.Kind.HEADERS]
            calls.extend(dropped)
            writer.write(GOAWAY * len(dropped))

    async with target(goes_away, reads=False) as dropping:
        group = TargetGroup(1, RULES, lambda _: asyncio.sleep(0, result=True), Random(1))
        group.register("127.0.0.1")
        caller = Caller(group, 1, dropping.port)
        await caller.call(0, stream=False)
    assert [outcome.result for outcome in caller.outcomes] == ["UNAVAILABLE"]
    assert len(calls) == 1
