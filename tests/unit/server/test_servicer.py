import asyncio
import contextlib
import functools
import time
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth.checker import Checker
from ghealth.events import RequestAnswered
from ghealth.health import GATEWAY, POLICIES, REASON_KEY, Status
from ghealth.probe import Probe, ProbeResult, WithTimeout
from ghealth.server import reflection, servicer
from ghealth.server.guard import Guard
from ghealth.server.limits import MAX_WATCHES_PER_CONNECTION, OPTIONS
from ghealth.server.servicer import SERVICE_NAME, AllPaths, HealthServicer
from tests.support import wire
from tests.support.fakes import READY, SICK, FakeContext, FakeProbe, Recorder, guard_of
from tests.support.virtual import in_virtual_time

SERVING = health_pb2.HealthCheckResponse(status=1)
NOT_SERVING = health_pb2.HealthCheckResponse(status=2)
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse(status=3)


@dataclass
class Served:
    """A servicer in a real server, and the parts that tests use."""

    port: int
    checker: Checker
    health: HealthServicer
    guard: Guard
    recorder: Recorder
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
        probe: Probe,
        *,
        policy: Any = "auto",
        max_watches: int = 100,
        more: dict[str, Probe] | None = None,
        reflects: bool = True,
    ) -> AsyncGenerator[Served, None]:
        recorder = Recorder()
        checker = Checker(
            {GATEWAY: probe, **(more or {})}, cache_ttl=0, watch_interval=0.01, emit=recorder
        )
        grpc_server = grpc.aio.server(options=OPTIONS)
        choose = functools.partial(POLICIES[policy], status_callers=("grpc-", "Envoy/HC"))
        guard = guard_of(recorder)
        health = HealthServicer(
            checker, policy=choose, max_watches=max_watches, guard=guard, emit=recorder
        )
        if reflects:
            grpc_server.add_generic_rpc_handlers(reflection.handlers(health.guarded))
        grpc_server.add_generic_rpc_handlers((AllPaths(health),))
        port = grpc_server.add_insecure_port("127.0.0.1:0")
        await grpc_server.start()
        async with connected(port) as stub, asyncio.timeout(60):
            yield Served(port, checker, health, guard, recorder, stub)
        health.end_streams()
        await grpc_server.stop(1)
        await checker.close()

    return serving


@asynccontextmanager
async def connected(port: int) -> AsyncGenerator[Any, None]:
    """Connect to a server, with a connection that no other channel of this process uses."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def failing(call: Any) -> tuple[grpc.StatusCode, str | None]:
    """Await a call that fails, and return its code and message."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details()


def test_statuses_have_the_numbers_of_health_proto() -> None:
    """Status has the names and numbers of health.proto."""
    numbers = health_pb2.HealthCheckResponse.ServingStatus
    assert {status.name: status.value for status in Status} == dict(numbers.items())


def test_every_method_of_health_proto_is_answered() -> None:
    """health.proto has Check, Watch and List, and no other method."""
    methods = health_pb2.DESCRIPTOR.services_by_name["Health"].methods_by_name
    assert set(methods) == {"Check", "Watch", "List"}
    assert SERVICE_NAME == "grpc.health.v1.Health"


async def test_check_returns_the_status(serve: Serve) -> None:
    """A Check is answered OK with the status of its service."""
    async with serve(FakeProbe(), more={"sick": FakeProbe(SICK)}) as served:
        assert await served.check() == SERVING
        assert await served.check("sick") == NOT_SERVING
        assert await served.check("liveness") == SERVING


async def test_check_of_an_unknown_service_is_not_found(serve: Serve) -> None:
    """A name that is not configured is answered NOT_FOUND, with trailers only."""
    async with serve(FakeProbe()) as served:
        assert await failing(served.check("x")) == (grpc.StatusCode.NOT_FOUND, "unknown service")
        message = health_pb2.HealthCheckRequest(service="x").SerializeToString()
        reply = await wire.call(served.port, b"\0\0\0\0" + bytes([len(message)]) + message)
    assert (reply.code, reply.data, reply.blocks) == (5, b"", 1)


NO_MESSAGE: tuple[bytes, ...] = ()
GRPC_CLIENT = [("user-agent", "grpc-go/1.70.0")]
ALB = [("user-agent", "ELB-HealthChecker/2.0")]
TONIC = [("user-agent", "tonic/0.12.3")]
ALB_PATH = "/AWS.ALB/healthcheck"
LIST = f"/{SERVICE_NAME}/List"
REFLECTION = tuple(f"/{name}/ServerReflectionInfo" for name in (reflection.V1, reflection.V1ALPHA))


@pytest.mark.parametrize("method", ["Check", "List"])
@pytest.mark.parametrize("data", [NO_MESSAGE, (b"",), (wire.EMPTY_MESSAGE,)])
async def test_a_request_without_a_message_is_answered(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, method: str, data: tuple[bytes, ...]
) -> None:
    """A request without DATA, with an empty DATA frame or with an empty message is answered."""
    monkeypatch.setattr(servicer, "MESSAGE_TIMEOUT", 3600)  # the answer must not wait for it
    async with serve(FakeProbe()) as served:
        reply = await wire.call(served.port, *data, path=f"/{SERVICE_NAME}/{method}")
    assert reply.code == 0
    assert len(reply.data) > 5


@pytest.mark.parametrize("method", ["Check", "Watch", "List"])
@pytest.mark.parametrize("data", [NO_MESSAGE, (b"\0\0\0\0\5ab",)])
async def test_a_request_that_never_comes_is_an_invalid_argument(
    serve: Serve, method: str, data: tuple[bytes, ...]
) -> None:
    """A caller that neither sends a message nor ends its request is refused after 1 s."""
    probe = FakeProbe()
    async with serve(probe) as served:
        started = time.monotonic()
        reply = await wire.call(
            served.port, *data, ends=False, path=f"/{SERVICE_NAME}/{method}", headers=GRPC_CLIENT
        )
        assert time.monotonic() - started >= servicer.MESSAGE_TIMEOUT
    assert (reply.code, reply.headers["grpc-message"]) == (3, "no message within 1 s")
    assert probe.attempts == 0


HALF_A_SECOND_OF_TWENTY = [("grpc-timeout", "20S")]


@pytest.fixture
def _half_a_second_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make ghealth answer 0.5 s after a call with a deadline of 20 s, also on slow machines."""
    monkeypatch.setattr(servicer, "DEADLINE_MARGIN", 19.5)


@pytest.mark.usefixtures("_half_a_second_is_left")
async def test_a_request_that_never_comes_is_answered_within_its_deadline(serve: Serve) -> None:
    """If the deadline is before MESSAGE_TIMEOUT, the answer is UNAVAILABLE before the deadline."""
    async with serve(FakeProbe()) as served:
        reply = await wire.call(served.port, ends=False, headers=HALF_A_SECOND_OF_TWENTY)
    assert (reply.code, reply.headers["grpc-message"]) == (
        14,
        "no answer before the caller's deadline",
    )


def servicer_of(probe: FakeProbe, *, max_watches: int = 1) -> HealthServicer:
    checker = Checker(
        {GATEWAY: WithTimeout(probe, 3, clock=asyncio.get_running_loop().time)},
        cache_ttl=0,
        watch_interval=1,
        emit=Recorder(),
    )
    policy = functools.partial(POLICIES["code"], status_callers=())
    return HealthServicer(
        checker,
        policy=policy,
        max_watches=max_watches,
        guard=guard_of(Recorder()),
        emit=Recorder(),
    )


def method_of(
    path: str, probe: FakeProbe, max_watches: int = 1
) -> Callable[[FakeContext], Coroutine[Any, Any, Any]]:
    """Return the method that gRPC would call for a path."""
    paths = AllPaths(servicer_of(probe, max_watches=max_watches))
    called: Any = SimpleNamespace(method=path)
    method: Any = paths.service(called)
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
    """If the caller has disconnected, the call ends as cancelled and nothing is logged."""
    with pytest.raises(asyncio.CancelledError):
        await method_of(path, FakeProbe(SICK))(FakeContext(b"", cannot=cannot))
    assert [record for record in caplog.records if record.exc_info] == []


HUGE = [(f"x-{number}", "y" * 2000) for number in range(10)]


@pytest.mark.parametrize("method", ["Check", "Watch", "List"])
async def test_headers_before_the_acknowledgement_are_refused(serve: Serve, method: str) -> None:
    """20 KB of headers in the first flight, which gRPC accepts, are refused without a probe."""
    probe = FakeProbe()
    async with serve(probe) as served:
        path = f"/{SERVICE_NAME}/{method}"
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE, path=path, headers=HUGE)
        long = await wire.call(served.port, wire.EMPTY_MESSAGE, path="/" + "x" * 20_000)
    for refused in (reply, long):
        assert (refused.code, refused.headers["grpc-message"]) == (8, "headers too large")
    assert probe.attempts == 0


async def test_a_call_counts_until_its_answer_is_sent(serve: Serve) -> None:
    """A call counts while it waits, and not after it was answered, refused or dropped."""
    probe = FakeProbe()
    probe.gate.clear()
    async with serve(probe) as served:
        checking = asyncio.create_task(served.check())
        while not probe.under_way:
            await served.check("liveness")
        assert len(served.guard._calls) >= 1
        probe.gate.set()
        await checking
        await failing(served.check("x"))
        await wire.call(served.port, wire.EMPTY_MESSAGE, path="/")
        await wire.vanish(served.port)
        watching = served.watch()
        await watching.read()
        watching.cancel()
        while len(served.guard._calls):
            await served.stub.Check(health_pb2.HealthCheckRequest(service="liveness"))


@in_virtual_time
async def test_a_watcher_whose_message_hangs_does_not_delay_others() -> None:
    """While a message to one watcher cannot be sent, another watcher gets every change."""
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


NO_MESSAGE_CAME = (grpc.StatusCode.INVALID_ARGUMENT, "no message within 1 s")
NO_TIME = (grpc.StatusCode.UNAVAILABLE, "no answer before the caller's deadline")
LATE = (grpc.StatusCode.UNAVAILABLE, "no answer within 3 s")


@pytest.mark.parametrize(
    ("message", "deadline", "hangs", "after", "told"),
    [
        (None, None, False, 1.0, NO_MESSAGE_CAME),
        (None, 10.0, False, 1.0, NO_MESSAGE_CAME),
        (None, 0.5, False, 0.45, NO_TIME),
        (None, 0.01, False, 0.0, NO_TIME),
        (b"", 0.5, True, 0.45, NO_TIME),
        (b"", None, True, 3.0, LATE),
        (None, None, True, 1.0, NO_MESSAGE_CAME),
        (None, 1.04, True, 0.99, NO_TIME),
        (b"", 2.0, True, 1.95, NO_TIME),
    ],
)
@in_virtual_time
async def test_when_a_caller_is_answered(
    message: bytes | None, deadline: float | None, hangs: bool, after: float, told: Any
) -> None:
    """A caller is answered after MESSAGE_TIMEOUT, PROBE_TIMEOUT or 50 ms before its deadline."""
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
async def test_a_caller_that_disconnects_before_an_error_is_not_logged(
    serve: Serve, caplog: pytest.LogCaptureFixture, path: str, data: tuple[bytes, ...]
) -> None:
    """If a caller disconnects before an error can be sent to it, no exception is logged."""
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
    """Bytes that are not a request of the method are refused without a probe."""
    if method == "List" and message.startswith(b"\x0a"):
        message = b"\x07"  # List has no fields, so it accepts unknown ones
    probe = FakeProbe()
    async with serve(probe) as served:
        frame = b"\0" + len(message).to_bytes(4, "big") + message
        reply = await wire.call(served.port, frame, path=f"/{SERVICE_NAME}/{method}")
    assert (reply.code, reply.headers["grpc-message"]) == (3, "malformed message")
    assert probe.attempts == 0


@pytest.mark.usefixtures("_half_a_second_is_left")
async def test_a_caller_is_answered_before_its_deadline(serve: Serve) -> None:
    """While the gateway hangs, the answer is "not serving" just before the caller's deadline."""
    probe = FakeProbe()
    probe.gate.clear()
    async with serve(probe) as served:
        assert await served.check(timeout=20) == NOT_SERVING
        for path, code in ((wire.CHECK, 14), (LIST, 14), (ALB_PATH, 14)):
            reply = await wire.call(
                served.port, wire.EMPTY_MESSAGE, path=path, headers=HALF_A_SECOND_OF_TWENTY
            )
            assert reply.code == code
        reply = await wire.call(
            served.port,
            wire.EMPTY_MESSAGE,
            path=LIST,
            headers=[*HALF_A_SECOND_OF_TWENTY, *GRPC_CLIENT],
        )
        assert reply.code == 0
        assert probe.under_way == 1


async def test_watch_sends_changes_and_list_a_snapshot(serve: Serve) -> None:
    """Watch sends each change of its service; List returns the status of every service."""
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
    """A Watch of an unknown name gets SERVICE_UNKNOWN and ends only with the server."""
    async with serve(FakeProbe()) as served:
        watching = served.watch("x")
        assert await watching.read() == SERVICE_UNKNOWN
        served.checker.drain()
        after = asyncio.create_task(watching.read())
        assert await served.check("liveness") == SERVING
        assert not after.done()
        served.health.end_streams()
        assert await failing(after) == (grpc.StatusCode.UNAVAILABLE, "draining")


async def test_watch_goes_through_drain(serve: Serve) -> None:
    """In the drain, an open Watch gets NOT_SERVING, and later ends with UNAVAILABLE."""
    async with serve(FakeProbe()) as served:
        watching = served.watch()
        assert await watching.read() == SERVING
        served.checker.drain()
        assert await watching.read() == NOT_SERVING
        served.health.end_streams()
        assert await failing(watching.read()) == (grpc.StatusCode.UNAVAILABLE, "draining")


async def test_too_many_watchers_are_refused_and_checks_are_not(serve: Serve) -> None:
    """A Watch above the limit gets RESOURCE_EXHAUSTED until another Watch ends."""
    async with serve(FakeProbe(), max_watches=1) as served:
        first = served.watch()
        assert await first.read() == SERVING
        refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches")
        assert await failing(served.watch().read()) == refused
        assert await served.check() == SERVING
        first.cancel()
        told = None
        while told != SERVING:  # until the server has ended the first
            with contextlib.suppress(grpc.aio.AioRpcError):
                told = await served.watch().read()


async def test_a_watcher_that_stops_reading_holds_up_nobody(serve: Serve) -> None:
    """A watcher that does not read does not delay another watcher."""
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
    """A List of more than 100 services is answered RESOURCE_EXHAUSTED (gRFC A90)."""
    many = {f"service-{n}": FakeProbe() for n in range(99)}
    async with serve(FakeProbe(), more=many) as served:
        code, _ = await failing(served.stub.List(health_pb2.HealthListRequest()))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    many.pop("service-0")
    async with serve(FakeProbe(), more=many) as served:
        listed = await served.stub.List(health_pb2.HealthListRequest())
    assert len(listed.statuses) == 100


async def test_a_caller_that_disconnects_does_not_affect_others(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """If the callers of a Check and a Watch disconnect, others are answered; nothing is logged."""
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
    """An exception is logged, and the caller gets UNAVAILABLE without the exception's text."""

    def broken(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("a secret")

    async with serve(FakeProbe()) as served:
        monkeypatch.setattr(served.checker, "check", broken)
        monkeypatch.setattr(served.checker, "watch", broken)
        path = f"/{SERVICE_NAME}/{method}"
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE, path=path)
    assert (reply.code, reply.headers["grpc-message"]) == (14, "internal error")
    assert [record.getMessage() for record in caplog.records] == ["answering failed"]


BY_POLICY = [
    ("auto", "grpc-go/1.70.0", 0),
    ("auto", "ELB-HealthChecker/2.0", 14),
    ("auto", "tonic/0.12.3", 14),
    ("auto", "", 14),
    ("status", "ELB-HealthChecker/2.0", 0),
    ("code", "grpc-go/1.70.0", 14),
]


@pytest.mark.parametrize(("policy", "user_agent", "code"), BY_POLICY)
async def test_a_check_is_answered_by_policy(
    serve: Serve, policy: str, user_agent: str, code: int
) -> None:
    """The policy and the user agent decide whether NOT_SERVING is a message or a gRPC code."""
    headers = [("user-agent", user_agent)] if user_agent else []
    async with serve(FakeProbe(SICK), policy=policy) as served:
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE, headers=headers)
    assert reply.code == code
    assert reply.data == (b"\0\0\0\0\2\x08\2" if code == 0 else b"")
    assert reply.headers["grpc-message"] == ("" if code == 0 else "gateway answered 503")
    assert reply.headers[REASON_KEY] == "gateway answered 503"


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
    """The form of a request does not change its answer."""
    options = dict(FORMS[form])
    data = options.pop("data", wire.EMPTY_MESSAGE)
    async with serve(FakeProbe(says)) as served:
        reply = await wire.call(served.port, data, path=path, **options)
    assert reply.code == (12 if path == ALB_PATH and code == 0 else code)


@pytest.mark.parametrize("missing", ["te", ":authority"])
async def test_a_request_that_is_not_grpc_is_reset(serve: Serve, missing: str) -> None:
    """A request that is not valid gRPC is reset by gRPC's core, so its caller does not wait."""
    async with serve(FakeProbe()) as served:
        with pytest.raises(AssertionError, match="the server reset the call"):
            await wire.call(served.port, wire.EMPTY_MESSAGE, without=(missing,))


@pytest.mark.parametrize(
    ("method", "is_answered"), [("HEAD", True), ("OPTIONS", True), ("GET", False), ("PUT", False)]
)
async def test_other_http_methods_never_reach_ghealth(
    serve: Serve, method: str, is_answered: bool
) -> None:
    """HEAD and OPTIONS get HTTP 200 and grpc-status 13 from gRPC's core, others are reset.

    docs/callers.md describes what callers that look at the HTTP status conclude.
    """
    async with serve(FakeProbe(SICK)) as served:
        call = wire.call(served.port, without=(":method",), headers=[(":method", method)])
        if is_answered:
            reply = await call
            assert (reply.headers[":status"], reply.code) == ("200", 13)
        else:
            with pytest.raises(AssertionError, match="the server reset the call"):
                await call
    assert served.recorder.events == []


@pytest.mark.parametrize("policy", POLICIES)
async def test_the_albs_default_path_is_12_only_while_ready(serve: Serve, policy: str) -> None:
    """The answer is 12 while ready and 14 otherwise, for every policy, message and caller."""
    probe = FakeProbe()
    async with serve(probe, policy=policy) as served:
        for data in [(), (b"",), (wire.EMPTY_MESSAGE,), (b"\0\0\0\0\1\xff",)]:
            reply = await wire.call(served.port, *data, path=ALB_PATH)
            assert (reply.code, reply.headers["grpc-message"]) == (12, "gateway answered 200")
        probe.says = SICK
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE, path=ALB_PATH, headers=GRPC_CLIENT)
        assert (reply.code, reply.headers["grpc-message"]) == (14, "gateway answered 503")
        served.checker.drain()
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE, path=ALB_PATH)
        assert (reply.code, reply.headers["grpc-message"]) == (14, "draining")


UNKNOWN_PATHS = (
    "/",
    "*",
    "//",
    "/healthz/ready",
    ALB_PATH,
    "/AWS.ALB/Healthcheck",
    "/grpc.health.v1.Health",
    "/grpc.health.v1.Health/",
    "/grpc.health.v1.Health/check",
    "/grpc.health.v1.Health/Chekc",
    "/grpc.health.v1.Health/Check/",
    "/grpc.health.v2.Health/Check",
    "Check",
    "List",
    *REFLECTION,
    f"/{reflection.V1}/Other",
)


@pytest.mark.parametrize("path", UNKNOWN_PATHS)
async def test_no_unknown_path_is_healthy_while_the_gateway_is_not(serve: Serve, path: str) -> None:
    """A path that is not served is answered 12 while ready and 14 otherwise.

    The codes 0 and 12 are the ones in matchers of target groups. Disabled reflection is not served.
    """
    probe = FakeProbe()
    async with serve(WithTimeout(probe, 0.05), reflects=False) as served:

        async def answer() -> tuple[int, str, str]:
            reply = await wire.call(served.port, wire.EMPTY_MESSAGE, path=path, headers=ALB)
            return reply.code, reply.headers["grpc-message"], reply.headers[REASON_KEY]

        while (await answer())[0] != 12:
            pass  # a busy machine may need more than one probe
        probe.says = SICK
        assert await answer() == (14, "gateway answered 503", "gateway answered 503")
        probe.says = ZeroDivisionError()
        assert await answer() == (14, "internal error", "internal error")
        probe.gate.clear()
        assert await answer() == (14, "no answer within 0.05 s", "no answer within 0.05 s")
        served.checker.drain()
        assert await answer() == (14, "draining", "draining")
    assert {event.method for event in answers_of(served)} == {"other"}
    assert {event.path for event in answers_of(served)} == {path}


def answers_of(served: Served) -> list[RequestAnswered]:
    return [event for event in served.recorder.events if isinstance(event, RequestAnswered)]


@pytest.mark.parametrize("path", [LIST, *REFLECTION])
@pytest.mark.parametrize(
    ("policy", "headers", "code"),
    [
        ("auto", ALB, 14),
        ("auto", TONIC, 14),
        ("auto", [], 14),
        ("code", GRPC_CLIENT, 14),
        ("auto", GRPC_CLIENT, 0),
        ("status", ALB, 0),
    ],
)
async def test_list_and_reflection_are_no_health_to_callers_that_look_at_the_code(
    serve: Serve, path: str, policy: str, headers: list[tuple[str, str]], code: int
) -> None:
    """During a failure or the drain, only callers that read messages get OK on these paths."""
    probe = FakeProbe()
    async with serve(probe, policy=policy) as served:

        async def answer() -> tuple[int, str]:
            data = wire.EMPTY_MESSAGE
            reply = await wire.call(served.port, data, path=path, headers=headers)
            assert (reply.data != b"") == (reply.code == 0)
            return reply.code, reply.headers.get(REASON_KEY, "")

        assert await answer() == (0, "")
        probe.says = SICK
        assert await answer() == (code, "gateway answered 503" if code else "")
        served.checker.drain()
        assert await answer() == (code, "draining" if code else "")


UNKNOWN = wire.framed(health_pb2.HealthCheckRequest(service="x").SerializeToString())


@pytest.mark.parametrize(
    ("method", "data", "headers", "code", "reason"),
    [
        ("Check", wire.EMPTY_MESSAGE, GRPC_CLIENT, 0, "gateway answered 503"),
        ("Check", wire.EMPTY_MESSAGE, ALB, 14, "gateway answered 503"),
        ("Check", UNKNOWN, GRPC_CLIENT, 5, "unknown service"),
        ("Check", b"\0\0\0\0\1\xff", ALB, 3, "malformed message"),
        ("Watch", wire.EMPTY_MESSAGE, GRPC_CLIENT, 8, "too many watches"),
        ("List", wire.EMPTY_MESSAGE, ALB, 14, "gateway answered 503"),
    ],
)
async def test_the_reason_is_in_a_trailer(
    serve: Serve, method: str, data: bytes, headers: list[tuple[str, str]], code: int, reason: str
) -> None:
    """Each answer with a reason has it in the trailer `ghealth-reason`, with code OK too."""
    async with serve(FakeProbe(SICK), max_watches=0) as served:
        path = f"/{SERVICE_NAME}/{method}"
        reply = await wire.call(served.port, data, path=path, headers=headers)
    assert (reply.code, reply.headers[REASON_KEY]) == (code, reason)


async def test_serving_has_no_reason(serve: Serve) -> None:
    """An answer SERVING has no trailer `ghealth-reason`."""
    async with serve(FakeProbe()) as served:
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE)
    assert REASON_KEY not in reply.headers


@pytest.mark.parametrize("headers", [ALB, GRPC_CLIENT])
async def test_a_custom_reason_cannot_break_an_answer(
    serve: Serve, headers: list[tuple[str, str]]
) -> None:
    """A custom probe's text is shortened and made printable, because gRPC refuses others."""
    text = "disk \u00fcber\r\n" + "x" * 500
    probe = FakeProbe(ProbeResult.because(text, ready=False))
    async with serve(probe) as served:
        reply = await wire.call(served.port, wire.EMPTY_MESSAGE, headers=headers)
    assert reply.code == (14 if headers == ALB else 0)
    assert reply.headers[REASON_KEY] == "disk ?ber??" + "x" * 189


async def test_sinks_receive_every_answer(serve: Serve) -> None:
    """The event of each kind of answer has the method, caller, service, answer and reason."""
    async with serve(FakeProbe(SICK), max_watches=0) as served:
        for data, method, headers in [
            (wire.EMPTY_MESSAGE, "Check", ALB),
            (wire.EMPTY_MESSAGE, "Check", GRPC_CLIENT),
            (UNKNOWN, "Check", []),
            (b"\0\0\0\0\1\xff", "Check", ALB),
            (wire.EMPTY_MESSAGE, "List", GRPC_CLIENT),
            (wire.EMPTY_MESSAGE, "Watch", GRPC_CLIENT),
        ]:
            path = f"/{SERVICE_NAME}/{method}"
            await wire.call(served.port, data, path=path, headers=headers)
        await wire.call(served.port, path=ALB_PATH, headers=ALB)
        await wire.call(served.port, wire.EMPTY_MESSAGE, path=REFLECTION[0], headers=GRPC_CLIENT)
    assert served.recorder.answers == [
        ("Check", "ELB-HealthChecker/2.0", "", "UNAVAILABLE", "gateway answered 503"),
        ("Check", "grpc-go/1.70.0", "", "NOT_SERVING", "gateway answered 503"),
        ("Check", "", "x", "NOT_FOUND", "unknown service"),
        ("Check", "ELB-HealthChecker/2.0", None, "INVALID_ARGUMENT", "malformed message"),
        ("List", "grpc-go/1.70.0", None, "OK", ""),
        ("Watch", "grpc-go/1.70.0", None, "RESOURCE_EXHAUSTED", "too many watches"),
        ("other", "ELB-HealthChecker/2.0", None, "UNAVAILABLE", "gateway answered 503"),
        ("reflection", "grpc-go/1.70.0", None, "OK", ""),
    ]
    assert [event.path for event in answers_of(served)] == [
        *["/grpc.health.v1.Health/Check"] * 4,
        LIST,
        "/grpc.health.v1.Health/Watch",
        ALB_PATH,
        REFLECTION[0],
    ]


async def test_watchers_are_counted_by_service(serve: Serve) -> None:
    """An open watch counts for its service, and sinks receive each message and the end."""
    async with serve(FakeProbe()) as served:
        watches = [served.watch(), served.watch(), served.watch("x")]
        for watch in watches:
            await watch.read()
        assert served.health.watches == {"": 2, "x": 1}
        # A client can read a message before gRPC reports that it is sent.
        while sum(method == "Watch" for method, *_ in served.recorder.answers) < len(watches):
            await served.check()
        watches[0].cancel()
        watches[2].cancel()
        while served.health.watches != {"": 1}:
            await served.check()
        served.health.end_streams()
        assert await watches[1].code() is grpc.StatusCode.UNAVAILABLE
        assert served.health.watches == {}
    sent = [
        (service, answer)
        for method, _, service, answer, _ in served.recorder.answers
        if method == "Watch"
    ]
    assert Counter(sent) == {
        ("", "SERVING"): 2,
        ("x", "SERVICE_UNKNOWN"): 1,
        ("", "UNAVAILABLE"): 1,
    }


async def test_watches_are_limited_for_each_connection_and_in_total(
    serve: Serve,
) -> None:
    """24 watches on a connection and `max_watches` in total are accepted, and Checks after that."""
    per_connection = MAX_WATCHES_PER_CONNECTION
    refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches")
    async with (
        serve(FakeProbe(), max_watches=per_connection + 2) as served,
        connected(served.port) as second,
    ):
        request = health_pb2.HealthCheckRequest()
        first = [served.watch() for _ in range(per_connection)]
        assert [await watch.read() for watch in first] == [SERVING] * per_connection
        assert await failing(served.watch().read()) == refused
        other = [second.Watch(request) for _ in range(2)]
        assert [await watch.read() for watch in other] == [SERVING] * 2
        assert await failing(second.Watch(request).read()) == refused
        assert await served.check() == SERVING
        assert await second.Check(request) == SERVING


@in_virtual_time
async def test_simultaneous_watches_cannot_exceed_the_limit() -> None:
    """Watches are counted before their messages are read."""
    watch = method_of("/grpc.health.v1.Health/Watch", FakeProbe(), max_watches=1)
    contexts = [FakeContext(b""), FakeContext(b"")]
    watching = [asyncio.create_task(watch(context)) for context in contexts]
    await asyncio.sleep(0.5)
    assert [len(context.sent) for context in contexts] == [1, 0]
    assert contexts[1].told == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches")
    for task in watching:
        task.cancel()
    await asyncio.wait(watching)


async def echo(requests: AsyncIterator[Any], _: object) -> AsyncGenerator[Any, None]:
    """Answer like a reflection servicer: one reply for each request."""
    async for request in requests:
        yield request


@in_virtual_time
async def test_a_silent_reflection_stream_ends() -> None:
    """A stream without a request ends after REFLECTION_TIMEOUT and then does not count."""
    probe = FakeProbe()
    reflect: Any = servicer_of(probe).guarded("/reflection", echo)
    streams = [FakeContext(None) for _ in range(servicer.MAX_REFLECTIONS)]
    started = asyncio.get_running_loop().time()
    open_: list[asyncio.Task[bytes]] = [
        asyncio.create_task(reflect(None, stream)) for stream in streams
    ]
    await asyncio.sleep(0.5)
    one_more = FakeContext(None)
    with pytest.raises(grpc.aio.AbortError):
        await reflect(None, one_more)
    assert one_more.told == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls")
    await asyncio.wait(open_)
    ended = asyncio.get_running_loop().time()
    assert ended - started == pytest.approx(servicer.REFLECTION_TIMEOUT, abs=0.01)
    assert await reflect(None, FakeContext(None)) == b""


@in_virtual_time
async def test_reflection_streams_end_with_the_server() -> None:
    """At the stop, an open stream ends at once, and so does one that begins later."""
    health = servicer_of(FakeProbe())
    reflect: Any = health.guarded("/reflection", echo)
    open_: asyncio.Task[bytes] = asyncio.create_task(reflect(None, FakeContext(None)))
    await asyncio.sleep(0.5)
    started = asyncio.get_running_loop().time()
    health.end_streams()
    assert await open_ == b""
    assert await reflect(None, FakeContext(None)) == b""
    health.end_streams()
    assert asyncio.get_running_loop().time() == started


async def test_malformed_reflection_is_an_invalid_argument(
    serve: Serve, caplog: pytest.LogCaptureFixture
) -> None:
    """Bytes that are not a reflection request are refused, and nothing is logged."""
    async with serve(FakeProbe()) as served:
        for path in REFLECTION:
            reply = await wire.call(served.port, b"\0\0\0\0\1\xff", path=path)
            assert (reply.code, reply.headers["grpc-message"]) == (3, "malformed message")
    assert caplog.records == []


async def test_a_call_after_the_stop_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """If the server has stopped during a call, the call is not answered and nothing is logged."""

    async def gone(*_: object, **__: object) -> Any:
        raise grpc.aio.BaseError("Server already stopped.")

    health = servicer_of(FakeProbe())
    context = FakeContext(b"")
    context.read = gone  # type: ignore[method-assign]
    method: Any = health.handler(wire.CHECK)
    with pytest.raises(asyncio.CancelledError):
        await method.stream_unary(None, context)
    assert context.told is None
    assert caplog.records == []


async def test_a_list_during_the_start_of_the_drain_is_not_ok(serve: Serve) -> None:
    """A List that waits for a slow service when the drain begins is answered UNAVAILABLE."""
    slow = FakeProbe()
    slow.gate.clear()
    async with serve(FakeProbe(), policy="code", more={"slow": slow}) as served:
        listing = asyncio.create_task(
            wire.call(served.port, wire.EMPTY_MESSAGE, path=f"/{SERVICE_NAME}/List")
        )
        while not slow.under_way:
            await served.check("liveness")
        served.checker.drain()
        reply = await listing
    assert (reply.code, reply.headers["grpc-message"]) == (14, "draining")


@pytest.mark.usefixtures("_half_a_second_is_left")
async def test_a_caller_with_a_short_deadline_gets_the_answer_of_its_policy(serve: Serve) -> None:
    """Without a request before the deadline, a caller that reads messages gets NOT_SERVING."""
    headers = [*HALF_A_SECOND_OF_TWENTY, ("user-agent", "grpc-go/1.70.0")]
    async with serve(FakeProbe()) as served:
        reply = await wire.call(served.port, ends=False, headers=headers)
    assert (reply.code, reply.data[-2:]) == (0, b"\x08\2")
    assert reply.headers["ghealth-reason"] == "no answer before the caller's deadline"


@in_virtual_time
async def test_a_reflection_stream_does_not_end_with_ok_after_a_failure() -> None:
    """If the gateway fails while a stream is open, the stream ends with UNAVAILABLE."""
    probe = FakeProbe()
    reflect: Any = servicer_of(probe).guarded("/reflection", echo)
    stream = FakeContext(None)
    open_: asyncio.Task[bytes] = asyncio.create_task(reflect(None, stream))
    await asyncio.sleep(0.5)
    probe.says = SICK
    with pytest.raises(grpc.aio.AbortError):
        await open_
    assert stream.told == (grpc.StatusCode.UNAVAILABLE, "gateway answered 503")


@in_virtual_time
async def test_a_read_that_takes_too_long_is_not_cancelled() -> None:
    """The call is answered and the read continues: a cancelled one leaks memory in grpcio."""
    reads: list[asyncio.Task[Any] | None] = []
    sent = asyncio.Event()

    async def read() -> bytes:
        reads.append(asyncio.current_task())
        await sent.wait()
        return b""

    context = FakeContext(None)
    context.read = read  # type: ignore[method-assign]
    with pytest.raises(grpc.aio.AbortError):
        await method_of(wire.CHECK, FakeProbe())(context)
    assert context.told == NO_MESSAGE_CAME
    (reading,) = reads
    assert reading is not None
    assert not reading.done()
    sent.set()
    await reading
