import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth.client import ExitCode, Finding, Question, check, timed, watch


class Scripted(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Says what it is told to say: a status, or a code with details."""

    def __init__(self, *says: int | tuple[grpc.StatusCode, str]) -> None:
        self.says = list(says)
        self.metadata: dict[str, Any] = {}

    def Check(self, request: Any, context: Any) -> Any:
        del request
        self.metadata = dict(context.invocation_metadata())
        return self._say(self.says[0], context)

    def Watch(self, request: Any, context: Any) -> Any:
        del request
        while self.says:
            yield self._say(self.says.pop(0), context)

    def _say(self, what: int | tuple[grpc.StatusCode, str], context: Any) -> Any:
        if isinstance(what, tuple):
            context.abort(*what)
        return health_pb2.HealthCheckResponse(status=what)


@contextmanager
def serving(servicer: Scripted | None) -> Iterator[Question]:
    """Serve on a free port, and tell what to ask there."""
    server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])
    if servicer is not None:
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield Question(f"127.0.0.1:{port}", service="s", connect_timeout=20, rpc_timeout=20)
    finally:
        server.stop(None).wait()


ABORTED = grpc.StatusCode.ABORTED
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("says", "code", "text"),
    [
        (1, 0, "status: SERVING"),
        (2, 4, 'service unhealthy (responded with "NOT_SERVING")'),
        (0, 4, 'service unhealthy (responded with "UNKNOWN")'),
        (99, 4, 'service unhealthy (responded with "99")'),
        (
            (UNAVAILABLE, "gateway answered 503"),
            4,
            'service unhealthy (responded with "UNAVAILABLE": gateway answered 503)',
        ),
        (
            (UNAVAILABLE, "upstream connect error"),
            3,
            "health rpc failed: UNAVAILABLE: upstream connect error",
        ),
        ((ABORTED, "because"), 3, "health rpc failed: ABORTED: because"),
        (
            (grpc.StatusCode.NOT_FOUND, ""),
            3,
            'health rpc failed: NOT_FOUND: the server knows no service "s"',
        ),
    ],
)
async def test_what_is_said_becomes_an_exit_code(says: Any, code: int, text: str) -> None:
    """Exit codes are grpc-health-probe's, and UNAVAILABLE with ghealth's reason is not serving."""
    with serving(Scripted(says)) as question:
        assert await check(question) == Finding(ExitCode(code), text)


async def test_a_server_without_health_is_told_so() -> None:
    """UNIMPLEMENTED is explained."""
    with serving(None) as question:
        assert await check(question) == Finding(
            ExitCode.RPC_FAILED,
            "health rpc failed: UNIMPLEMENTED: this server does not implement "
            "grpc.health.v1.Health",
        )


async def test_nobody_there_is_no_connection() -> None:
    """A refused connection ends with the connection's exit code after the connection's time."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        addr = f"127.0.0.1:{held.getsockname()[1]}"
        found = await check(Question(addr, service="", connect_timeout=0.1, rpc_timeout=1))
    assert found == Finding(ExitCode.NO_CONNECTION, f'failed to connect to "{addr}" within 0.1 s')


async def test_a_server_that_hangs_is_an_rpc_that_failed() -> None:
    """The answer's time is bounded apart from the connection's."""

    class Hanging(Scripted):
        def Check(self, request: Any, context: Any) -> Any:
            del request
            left = threading.Event()
            context.add_callback(left.set)
            left.wait(60)

    with serving(Hanging()) as question:
        assert await check(replace(question, rpc_timeout=0.5)) == Finding(
            ExitCode.RPC_FAILED, "health rpc failed: DEADLINE_EXCEEDED: no answer within 0.5 s"
        )


async def test_proxy_variables_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 11: a check of one's own machine does not go through a proxy."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    servicer = Scripted(1)
    with serving(servicer) as question:
        assert (await check(question)).code is ExitCode.SERVING
    assert str(servicer.metadata["user-agent"]).startswith("ghealth/")


class EnoughError(Exception):
    """Ends a watch that would go on for ever."""


async def codes_of(question: Question, pause: Callable[[], Awaitable[None]]) -> list[int]:
    """Follow a watch until a pause raises, and tell the exit codes that its lines stand for."""
    codes: list[int] = []
    with contextlib.suppress(EnoughError):
        async for finding in watch(question, pause=pause):
            codes.append(finding.code)
    return codes


async def test_watch_goes_on_through_failures_and_tells_changes_only() -> None:
    """A watch tells each change, the loss of the server included, and connects anew."""
    servicer = Scripted(1, (UNAVAILABLE, "draining"))
    rounds: Iterator[list[Any]] = iter([[(UNAVAILABLE, "draining")], [1, 2]])

    async def pause() -> None:
        says = next(rounds, None)
        if says is None:
            raise EnoughError
        servicer.says = says

    with serving(servicer) as question:
        assert await codes_of(question, pause) == [0, 4, 0, 4]


async def test_watch_of_nobody_is_no_connection() -> None:
    """A watch says once that nobody is there, and goes on."""
    question = Question("127.0.0.1:1", service="", connect_timeout=0.05, rpc_timeout=1)
    rounds = iter(range(2))

    async def pause() -> None:
        if next(rounds, None) is None:
            raise EnoughError

    assert await codes_of(question, pause) == [ExitCode.NO_CONNECTION]


def test_a_change_is_told_with_its_time() -> None:
    """Lines of a watch begin with the time in UTC."""
    time, _, text = timed(Finding(ExitCode.SERVING, "status: SERVING")).partition(" ")
    assert text == "status: SERVING"
    assert time.endswith("Z")
