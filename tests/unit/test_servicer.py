import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth import servicer
from ghealth.answers import POLICIES
from ghealth.checker import Checker
from ghealth.servicer import SERVICE_NAME, HealthServicer
from ghealth.status import GATEWAY, Status
from tests.support import wire
from tests.support.fakes import READY, SICK, FakeContext, FakeProbe, Notes
from tests.support.virtual import in_virtual_time

SERVING = health_pb2.HealthCheckResponse(status=1)
NOT_SERVING = health_pb2.HealthCheckResponse(status=2)
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse(status=3)


@dataclass
class Served:
    """A servicer behind a real server, and what a test needs to get at."""

    port: int
    checker: Checker
    health: HealthServicer
    notes: Notes
    stub: Any

    async def check(self, service: str = "", **options: Any) -> Any:
        request = health_pb2.HealthCheckRequest(service=service)
        return await self.stub.Check(request, **options)

    def watch(self, service: str = "", **options: Any) -> Any:
        return self.stub.Watch(health_pb2.HealthCheckRequest(service=service), **options)


Serve = Callable[..., Any]


@pytest.fixture
def serve() -> Serve:
    @asynccontextmanager
    async def serving(
        probe: FakeProbe,
        *,
        policy: str = "auto",
        max_watches: int = 100,
        more: dict[str, FakeProbe] | None = None,
    ) -> AsyncGenerator[Served, None]:
        notes = Notes()
        checker = Checker(
            {GATEWAY: probe, **(more or {})},
            probe_timeout=60,
            cache_ttl=0,
            watch_interval=0.01,
            observer=notes,
        )
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        answer = functools.partial(POLICIES[policy], status_callers=("grpc-", "Envoy/HC"))
        health = HealthServicer(checker, answer=answer, max_watches=max_watches, observer=notes)
        server.add_generic_rpc_handlers(health.handlers())
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(30):
            yield Served(port, checker, health, notes, health_pb2_grpc.HealthStub(channel))
        checker.end_watches()
        await server.stop(1)
        await checker.close()

    return serving


async def failing(call: Any) -> tuple[grpc.StatusCode, str | None]:
    """Await a call that fails, and tell how."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details()


def test_the_numbers_are_health_protos() -> None:
    """Status has the numbers and names that go over the wire."""
    numbers = health_pb2.HealthCheckResponse.ServingStatus
    assert {status.name: status.value for status in Status} == dict(numbers.items())


def test_every_method_of_health_proto_is_answered() -> None:
    """The service has Check, Watch and List, and no method is missing."""
    methods = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name
    assert set(methods) == {"Check", "Watch", "List"}
    assert SERVICE_NAME == "grpc.health.v1.Health"


async def test_check_tells_the_status(serve: Serve) -> None:
    """A Check is answered OK with the status of its service."""
    async with serve(FakeProbe(), more={"sick": FakeProbe(SICK)}) as served:
        assert await served.check() == SERVING
        assert await served.check("sick") == NOT_SERVING
        assert await served.check("liveness") == SERVING


async def test_check_of_an_unknown_service_is_not_found(serve: Serve) -> None:
    """A name that nobody configured is NOT_FOUND with trailers alone (trap 4)."""
    async with serve(FakeProbe()) as served:
        assert await failing(served.check("x")) == (grpc.StatusCode.NOT_FOUND, "unknown service")
        message = health_pb2.HealthCheckRequest(service="x").SerializeToString()
        reply = await wire.call(served.port, b"\0\0\0\0" + bytes([len(message)]) + message)
    assert (reply.code, reply.data, reply.blocks) == (5, b"", 1)


NO_MESSAGE: tuple[bytes, ...] = ()


@pytest.mark.parametrize("method", ["Check", "List"])
@pytest.mark.parametrize("data", [NO_MESSAGE, (b"",), (wire.EMPTY_MESSAGE,)])
async def test_a_request_without_a_message_is_answered(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, method: str, data: tuple[bytes, ...]
) -> None:
    """Trap 1: END_STREAM on the headers, an empty DATA frame and an empty message mean the same."""
    monkeypatch.setattr(servicer, "MESSAGE_PATIENCE", 3600)  # nothing is waited for
    async with serve(FakeProbe()) as served:
        reply = await wire.call(served.port, *data, path=f"/{SERVICE_NAME}/{method}")
    assert reply.code == 0
    assert len(reply.data) > 5


@pytest.mark.parametrize("data", [NO_MESSAGE, (b"\0\0\0\0\5ab",)])
async def test_a_request_that_never_comes_is_taken_as_empty(
    serve: Serve, data: tuple[bytes, ...]
) -> None:
    """A caller that neither sends a message nor ends its side is answered after a second."""
    async with serve(FakeProbe()) as served:
        started = time.monotonic()
        reply = await wire.call(served.port, *data, ends=False)
        assert time.monotonic() - started >= servicer.MESSAGE_PATIENCE
    assert (reply.code, reply.data) == (0, b"\0\0\0\0\2\x08\1")


HALF_A_SECOND_OF_TWENTY = [("grpc-timeout", "20S")]


@pytest.fixture
def _half_a_second_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answer so far ahead of a deadline of 20 s that no machine is too slow to keep it."""
    monkeypatch.setattr(servicer, "ANSWER_AHEAD", 19.5)


@pytest.mark.usefixtures("_half_a_second_is_left")
async def test_a_request_that_never_comes_is_answered_within_its_deadline(serve: Serve) -> None:
    """If the deadline comes first, nobody knows what was to be asked: not serving, in time."""
    async with serve(FakeProbe()) as served:
        reply = await wire.call(served.port, ends=False, headers=HALF_A_SECOND_OF_TWENTY)
    assert (reply.code, reply.headers["grpc-message"]) == (
        14,
        "no answer before the caller's deadline",
    )


def method_of(
    path: str, probe: FakeProbe, max_watches: int = 1
) -> Callable[[FakeContext], Coroutine[Any, Any, Any]]:
    """Find what answers a path, as gRPC does."""
    checker = Checker(
        {GATEWAY: probe}, probe_timeout=3, cache_ttl=0, watch_interval=1, observer=Notes()
    )
    answer = functools.partial(POLICIES["code"], status_callers=())
    service = HealthServicer(checker, answer=answer, max_watches=max_watches, observer=Notes())
    asked: Any = SimpleNamespace(method=path)
    found: Any = (handler.service(asked) for handler in service.handlers())
    (method,) = filter(None, found)
    return functools.partial(method.stream_stream or method.stream_unary, None)


@pytest.mark.parametrize(
    ("path", "cannot"),
    [
        ("/grpc.health.v1.Health/Check", "read"),
        ("/grpc.health.v1.Health/Check", "abort"),
        ("/grpc.health.v1.Health/Watch", "read"),
        ("/grpc.health.v1.Health/Watch", "write"),
        ("/grpc.health.v1.Health/List", "read"),
        ("/AWS.ALB/healthcheck", "abort"),
    ],
)
async def test_a_caller_that_is_gone_ends_a_call_as_cancelled(
    path: str, cannot: str, caplog: pytest.LogCaptureFixture
) -> None:
    """What gRPC cannot send or receive any more is no bug of ours: no line, no further answer."""
    with pytest.raises(asyncio.CancelledError):
        await method_of(path, FakeProbe(SICK))(FakeContext(b"", cannot=cannot))
    assert [record for record in caplog.records if record.exc_info] == []


@in_virtual_time
async def test_a_watcher_whose_message_hangs_holds_up_no_other() -> None:
    """Trap 8: nothing is held while a watcher is told, and drain reaches all the others."""
    probe = FakeProbe()
    watch = method_of("/grpc.health.v1.Health/Watch", probe, max_watches=2)
    stalled, reading = FakeContext(b"", reads=False), FakeContext(b"")
    watching = [asyncio.create_task(watch(context)) for context in (stalled, reading)]
    await asyncio.sleep(0.5)
    for says in (SICK, READY):
        probe.says = says
        await asyncio.sleep(1)
    told = [health_pb2.HealthCheckResponse.FromString(message) for message in reading.sent]
    assert told == [SERVING, NOT_SERVING, SERVING]
    assert len(stalled.sent) == 1
    for task in watching:
        task.cancel()
    await asyncio.wait(watching)


NO_TIME = (grpc.StatusCode.UNAVAILABLE, "no answer before the caller's deadline")
UNREAD = (grpc.StatusCode.UNAVAILABLE, "gateway answered 503")
LATE = (grpc.StatusCode.UNAVAILABLE, "no answer within 3 s")


@pytest.mark.parametrize(
    ("message", "deadline", "hangs", "after", "told"),
    [
        (None, None, False, 1.0, UNREAD),
        (None, 10.0, False, 1.0, UNREAD),
        (None, 0.5, False, 0.45, NO_TIME),
        (None, 0.01, False, 0.0, NO_TIME),
        (b"", 0.5, True, 0.45, NO_TIME),
        (b"", None, True, 3.0, LATE),
        (None, None, True, 4.0, LATE),
        (None, 2.0, True, 1.95, NO_TIME),
    ],
)
@in_virtual_time
async def test_when_a_caller_is_answered(
    message: bytes | None, deadline: float | None, hangs: bool, after: float, told: Any
) -> None:
    """A message has 1 s to come, an attempt PROBE_TIMEOUT, and all ends 50 ms before a deadline."""
    probe = FakeProbe(SICK)
    if hangs:
        probe.gate.clear()
    context = FakeContext(message, deadline=deadline)
    started = asyncio.get_running_loop().time()
    with pytest.raises(grpc.aio.AbortError):
        await method_of(wire.CHECK, probe)(context)
    assert asyncio.get_running_loop().time() - started == pytest.approx(after, abs=0.001)
    assert context.told == told


@pytest.mark.parametrize("path", [wire.CHECK, "/AWS.ALB/healthcheck"])
@pytest.mark.parametrize("data", [(), (wire.EMPTY_MESSAGE,)])
async def test_a_caller_that_vanishes_from_a_sick_gateway_is_no_bug(
    serve: Serve, caplog: pytest.LogCaptureFixture, path: str, data: tuple[bytes, ...]
) -> None:
    """Whoever hangs up before its error can be sent leaves no line in the log."""
    async with serve(FakeProbe(SICK)) as served:
        await wire.call(served.port, wire.EMPTY_MESSAGE)
        for _ in range(30):
            await wire.vanish(served.port, *data, path=path)
        await wire.call(served.port, wire.EMPTY_MESSAGE)
    assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("method", ["Check", "Watch", "List"])
@pytest.mark.parametrize("message", [b"\xff", b"\x0a\x05ab", b"\x0a\x01\xff"])
async def test_a_malformed_message_is_an_invalid_argument(
    serve: Serve, method: str, message: bytes
) -> None:
    """What is no request of the method is refused by name, and nothing is probed for it."""
    if method == "List" and message.startswith(b"\x0a"):
        message = b"\x07"  # List has no fields: only what is no message at all is malformed
    probe = FakeProbe()
    async with serve(probe) as served:
        frame = b"\0" + len(message).to_bytes(4, "big") + message
        reply = await wire.call(served.port, frame, path=f"/{SERVICE_NAME}/{method}")
    assert (reply.code, reply.headers["grpc-message"]) == (3, "malformed message")
    assert probe.attempts == 0


@pytest.mark.usefixtures("_half_a_second_is_left")
async def test_a_caller_is_answered_before_its_deadline(serve: Serve) -> None:
    """A hanging gateway reads NOT_SERVING just before the caller's own deadline."""
    probe = FakeProbe()
    probe.gate.clear()
    async with serve(probe) as served:
        assert await served.check(timeout=20) == NOT_SERVING
        for path, code in ((wire.CHECK, 14), (f"/{SERVICE_NAME}/List", 0), (ALB_PATH, 14)):
            reply = await wire.call(
                served.port, wire.EMPTY_MESSAGE, path=path, headers=HALF_A_SECOND_OF_TWENTY
            )
            assert reply.code == code
        assert probe.under_way == 1


async def test_watch_tells_changes_and_list_a_snapshot(serve: Serve) -> None:
    """Watch goes through the changes of its service; List has every service."""
    probe = FakeProbe()
    async with serve(probe, more={"sick": FakeProbe(SICK)}) as served:
        watching = served.watch()
        assert await watching.read() == SERVING
        assert await served.stub.List(health_pb2.HealthListRequest()) == (
            health_pb2.HealthListResponse(
                statuses={"": SERVING, "sick": NOT_SERVING, "liveness": SERVING}
            )
        )
        probe.says = SICK
        assert await watching.read() == NOT_SERVING
        watching.cancel()


async def test_watch_of_an_unknown_service_stays_open(serve: Serve) -> None:
    """A Watch of an unknown name says SERVICE_UNKNOWN and ends only with the server."""
    async with serve(FakeProbe()) as served:
        watching = served.watch("x")
        assert await watching.read() == SERVICE_UNKNOWN
        served.checker.drain()
        after = asyncio.create_task(watching.read())
        assert await served.check("liveness") == SERVING
        assert not after.done()
        served.checker.end_watches()
        assert await failing(after) == (grpc.StatusCode.UNAVAILABLE, "draining")


async def test_watch_goes_through_drain(serve: Serve) -> None:
    """Drain reaches an open Watch as NOT_SERVING; its end is an error that clients retry."""
    async with serve(FakeProbe()) as served:
        watching = served.watch()
        assert await watching.read() == SERVING
        served.checker.drain()
        assert await watching.read() == NOT_SERVING
        served.checker.end_watches()
        assert await failing(watching.read()) == (grpc.StatusCode.UNAVAILABLE, "draining")


async def test_too_many_watchers_are_refused_and_checks_are_not(serve: Serve) -> None:
    """Trap 18: a watcher over the limit has RESOURCE_EXHAUSTED; a place that is left is free."""
    async with serve(FakeProbe(), max_watches=1) as served:
        first = served.watch()
        assert await first.read() == SERVING
        refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches")
        assert await failing(served.watch().read()) == refused
        assert await served.check() == SERVING
        first.cancel()
        told = None
        while told != SERVING:  # until the server has noticed
            with contextlib.suppress(grpc.aio.AioRpcError):
                told = await served.watch().read()


async def test_a_watcher_that_stops_reading_holds_up_nobody(serve: Serve) -> None:
    """Trap 8: each watcher writes for itself."""
    probe = FakeProbe()
    async with serve(probe) as served:
        stalled = served.watch()
        assert await stalled.read() == SERVING
        reading = served.watch()
        for says, told in [(SICK, NOT_SERVING), (FakeProbe().says, SERVING)] * 20:
            assert await reading.read() == (SERVING if told == NOT_SERVING else NOT_SERVING)
            probe.says = says
        reading.cancel()
        stalled.cancel()


async def test_a_list_of_too_many_services_is_refused(serve: Serve) -> None:
    """More services than others accept in one List are RESOURCE_EXHAUSTED (gRFC A90)."""
    many = {f"service-{n}": FakeProbe() for n in range(99)}
    async with serve(FakeProbe(), more=many) as served:
        code, _ = await failing(served.stub.List(health_pb2.HealthListRequest()))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    many.pop("service-0")
    async with serve(FakeProbe(), more=many) as served:
        listed = await served.stub.List(health_pb2.HealthListRequest())
    assert len(listed.statuses) == 100


async def test_a_caller_that_vanishes_leaves_nothing_and_is_no_bug(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """A Check or Watch whose caller hangs up ends quietly, and the others go on."""
    probe = FakeProbe()
    probe.gate.clear()
    async with serve(probe) as served:
        leaving = asyncio.create_task(served.check())
        watching = served.watch()
        await served.check("liveness")
        leaving.cancel()
        watching.cancel()
        await served.check("liveness")
        probe.gate.set()
        assert await served.check() == SERVING
    assert caplog.records == []


@pytest.mark.parametrize("method", ["Check", "Watch", "List"])
async def test_a_bug_in_answering_reads_as_not_serving(
    serve: Serve,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    method: str,
) -> None:
    """Trap 3: an exception is logged, and the caller reads UNAVAILABLE without its text."""

    def broken(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("a secret")

    async with serve(FakeProbe()) as served:
        monkeypatch.setattr(served.checker, "check", broken)
        monkeypatch.setattr(served.checker, "watch", broken)
        path = f"/{SERVICE_NAME}/{method}"
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE, path=path)
    assert (reply.code, reply.headers["grpc-message"]) == (14, "internal error")
    assert [record.getMessage() for record in caplog.records] == ["answering failed"]


ALB_PATH = "/AWS.ALB/healthcheck"
BY_POLICY = [
    ("auto", "grpc-go/1.70.0", 0),
    ("auto", "ELB-HealthChecker/2.0", 14),
    ("auto", "", 14),
    ("status", "ELB-HealthChecker/2.0", 0),
    ("code", "grpc-go/1.70.0", 14),
]


@pytest.mark.parametrize(("policy", "user_agent", "code"), BY_POLICY)
async def test_a_check_is_answered_by_policy(
    serve: Serve, policy: str, user_agent: str, code: int
) -> None:
    """NOT_SERVING is a status or a code with the reason, by policy and user agent."""
    headers = [("user-agent", user_agent)] if user_agent else []
    async with serve(FakeProbe(SICK), policy=policy) as served:
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE, headers=headers)
    assert reply.code == code
    assert reply.data == (b"\0\0\0\0\2\x08\2" if code == 0 else b"")
    assert reply.headers["grpc-message"] == ("" if code == 0 else "gateway answered 503")


FORMS: dict[str, dict[str, Any]] = {
    "host instead of :authority": {"without": (":authority",), "headers": [("host", "AWSALB")]},
    "a deadline": {"headers": [("grpc-timeout", "5S")]},
    "content-length": {"headers": [("content-length", "5")]},
    "accept-encoding": {"headers": [("accept-encoding", "gzip, compressed")]},
    "application/grpc+proto": {
        "without": ("content-type",),
        "headers": [("content-type", "application/grpc+proto")],
    },
    "trailing metadata": {"trailers": [("x-trailer", "y")]},
    "gzip": {"headers": [("grpc-encoding", "gzip")], "data": wire.gzipped(b"")},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("says", "code"), [(READY, 0), (SICK, 14)])
@pytest.mark.parametrize("path", [wire.CHECK, ALB_PATH])
async def test_every_form_of_request_is_answered(
    serve: Serve, path: str, says: Any, code: int, form: str
) -> None:
    """However a caller puts it, the answer is the truth, and on Check never 1 or 12."""
    options = dict(FORMS[form])
    data = options.pop("data", wire.EMPTY_MESSAGE)
    async with serve(FakeProbe(says)) as served:
        reply = await wire.call(served.port, data, path=path, **options)
    assert reply.code == (12 if path == ALB_PATH and code == 0 else code)


@pytest.mark.parametrize("missing", ["te", ":authority"])
async def test_what_grpc_refuses_is_refused_at_once(serve: Serve, missing: str) -> None:
    """A request that is no gRPC at all is reset by gRPC's core: no answer, but no hang either."""
    async with serve(FakeProbe()) as served:
        with pytest.raises(AssertionError, match="the server reset the call"):
            await wire.call(served.port, wire.EMPTY_MESSAGE, without=(missing,))


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_albs_default_path_is_honest(serve: Serve, policy: str) -> None:
    """12 when ready and 14 when not, to every caller, whatever the policy and the message."""
    probe = FakeProbe()
    async with serve(probe, policy=policy) as served:
        for data in [(), (b"",), (wire.EMPTY_MESSAGE,), (b"\0\0\0\0\1\xff",)]:
            reply = await wire.call(served.port, *data, path=ALB_PATH)
            assert (reply.code, reply.headers["grpc-message"]) == (12, "gateway answered 200")
        probe.says = SICK
        reader = [("user-agent", "grpc-go/1.70.0")]
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE, path=ALB_PATH, headers=reader)
        assert (reply.code, reply.headers["grpc-message"]) == (14, "gateway answered 503")
        served.checker.drain()
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE, path=ALB_PATH)
        assert (reply.code, reply.headers["grpc-message"]) == (14, "draining")


async def test_whoever_asks_on_the_default_path_is_advised_once(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """One line recommends the path and matcher that can be read by everyone."""
    async with serve(FakeProbe()) as served:
        for _ in range(3):
            await wire.call(served.port, wire.EMPTY_MESSAGE, path=ALB_PATH)
    (line,) = caplog.records
    assert "/grpc.health.v1.Health/Check and the matcher 0" in line.getMessage()


async def test_an_observer_learns_what_each_caller_is_told(serve: Serve) -> None:
    """Who asked, by which method, about what, what it got and why, for every kind of answer."""
    alb = [("user-agent", "ELB-HealthChecker/2.0")]
    client = [("user-agent", "grpc-go/1.70.0")]
    unknown = wire.framed(health_pb2.HealthCheckRequest(service="x").SerializeToString())
    async with serve(FakeProbe(SICK), max_watches=0) as served:
        for data, method, headers in [
            (wire.EMPTY_MESSAGE, "Check", alb),
            (wire.EMPTY_MESSAGE, "Check", client),
            (unknown, "Check", []),
            (b"\0\0\0\0\1\xff", "Check", alb),
            (wire.EMPTY_MESSAGE, "List", client),
            (wire.EMPTY_MESSAGE, "Watch", client),
        ]:
            path = f"/{SERVICE_NAME}/{method}"
            await wire.call(served.port, data, path=path, headers=headers)
        await wire.call(served.port, path=ALB_PATH, headers=alb)
    assert served.notes.answers == [
        ("Check", "ELB-HealthChecker/2.0", "", "UNAVAILABLE", "gateway answered 503"),
        ("Check", "grpc-go/1.70.0", "", "NOT_SERVING", "gateway answered 503"),
        ("Check", "", "x", "NOT_FOUND", "unknown service"),
        ("Check", "ELB-HealthChecker/2.0", None, "INVALID_ARGUMENT", "malformed message"),
        ("List", "grpc-go/1.70.0", None, "OK", ""),
        ("Watch", "grpc-go/1.70.0", None, "RESOURCE_EXHAUSTED", "too many watches"),
        ("healthcheck", "ELB-HealthChecker/2.0", "", "UNAVAILABLE", "gateway answered 503"),
    ]


async def test_watchers_are_counted_by_service(serve: Serve) -> None:
    """Each watch counts for its service while it is open, and an observer learns its messages."""
    async with serve(FakeProbe()) as served:
        watches = [served.watch(), served.watch(), served.watch("x")]
        for watch in watches:
            await watch.read()
        assert served.health.watchers == {"": 2, "x": 1}
        watches[0].cancel()
        watches[2].cancel()
        while served.health.watchers != {"": 1}:
            await served.check()
        served.checker.end_watches()
        assert await watches[1].code() is grpc.StatusCode.UNAVAILABLE
        assert served.health.watchers == {}
    told = [
        (service, answer)
        for method, _, service, answer, _ in served.notes.answers
        if method == "Watch"
    ]
    assert Counter(told) == {
        ("", "SERVING"): 2,
        ("x", "SERVICE_UNKNOWN"): 1,
        (None, "UNAVAILABLE"): 1,
    }


async def test_a_call_whose_caller_is_gone_ends_as_a_cancelled_one() -> None:
    """What gRPC raises when it can neither send nor receive is no bug: nobody is told of it."""
    notes = Notes()

    async def gone(_: object) -> bytes:
        raise grpc.aio.InternalError("the caller is gone")

    with pytest.raises(asyncio.CancelledError):
        await servicer._answering("Check", gone, notes)(None, Any)  # type: ignore[arg-type]
    assert notes.answers == []
