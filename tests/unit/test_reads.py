import asyncio
from typing import Any, NoReturn

import grpc
import pytest

from ghealth.checker import Checker
from ghealth.health import POLICIES
from ghealth.server import servicer
from ghealth.server.servicer import SERVICE_NAME, HealthServicer
from tests.support.fakes import Recorder, guard_of


class SilentContext:
    """A call whose message does not come before `sent` is set."""

    def __init__(self) -> None:
        self.sent = asyncio.Event()
        self.codes: list[grpc.StatusCode] = []
        self.reads: list[asyncio.Task[Any]] = []

    async def read(self) -> bytes:
        task = asyncio.current_task()
        assert task is not None
        self.reads.append(task)
        await self.sent.wait()
        return b""

    async def abort(self, code: grpc.StatusCode, *_: object) -> NoReturn:
        self.codes.append(code)
        raise grpc.aio.AbortError

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return ()

    def peer(self) -> str:
        return "ipv4:127.0.0.1:1"

    def add_done_callback(self, callback: object) -> None:
        pass

    def time_remaining(self) -> None:
        return None


async def test_a_read_that_takes_too_long_is_not_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The call is answered and the read continues: a cancelled one leaks memory in grpcio."""
    monkeypatch.setattr(servicer, "MESSAGE_TIMEOUT", 0.01)
    checker = Checker({}, cache_ttl=1, watch_interval=1, emit=lambda _: None)
    health = HealthServicer(
        checker,
        policy=lambda found, agent: POLICIES["auto"](found, agent, ()),
        max_watches=1,
        guard=guard_of(Recorder()),
        emit=lambda _: None,
    )
    answer: Any = health.handler(f"/{SERVICE_NAME}/Check")
    context = SilentContext()
    with pytest.raises(grpc.aio.AbortError):
        await answer.stream_unary(None, context)
    assert context.codes == [grpc.StatusCode.INVALID_ARGUMENT]
    assert [read.done() for read in context.reads] == [False]
    context.sent.set()
    await asyncio.wait(context.reads)
    assert not context.reads[0].cancelled()
