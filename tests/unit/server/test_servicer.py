import asyncio
import contextlib
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth.checker import Checker
from ghealth.events import RequestAnswered
from ghealth.health import GATEWAY, POLICIES, REASON_KEY
from ghealth.probe import Probe, ProbeResult, WithTimeout
from ghealth.server import reflection, servicer
from ghealth.server.limits import MAX_WATCHES_PER_CONNECTION, OPTIONS
from ghealth.server.servicer import SERVICE_NAME, AllPaths, HealthServicer
from tests.support import wire
from tests.support.fakes import READY, SICK, FakeContext, FakeProbe, Recorder, guard_of
from tests.support.virtual import in_virtual_time

SERVING = health_pb2.HealthCheckResponse(status=1)
NOT_SERVING = health_pb2.HealthCheckResponse(status=2)
SERVICE_UNKNOWN = health_pb2.HealthCheckResponse(status=3)

CHECK, WATCH, LIST = METHODS = tuple(
    f"/{SERVICE_NAME}/{name}" for name in ("Check", "Watch", "List")
)
REFLECTION = tuple(f"/{name}/ServerReflectionInfo" for name in (reflection.V1, reflection.V1ALPHA))
ALB_PATH = "/AWS.ALB/healthcheck"

GRPC_CLIENT = [("user-agent", "grpc-go/1.70.0")]
ALB = [("user-agent", "ELB-HealthChecker/2.0")]

UNKNOWN = wire.framed(health_pb2.HealthCheckRequest(service="x").SerializeToString())
LIVENESS = wire.framed(health_pb2.HealthCheckRequest(service="liveness").SerializeToString())
MALFORMED = wire.framed(b"\xff")


class Served:
    """A servicer and its parts; `serve` adds the port of a real server, and its client."""

    port: int
    stub: Any

    def __init__(
        self,
        probe: Probe,
        *,
        more: dict[str, Probe] | None = None,
        policy: Any = "auto",
        max_watches: int = 100,
        watch_interval: float = 0.01,
    ) -> None:
        self.recorder = Recorder()
        self.checker = Checker(
            {GATEWAY: probe, **(more or {})},
            cache_ttl=0,
            watch_interval=watch_interval,
            emit=self.recorder,
        )
        self.guard = guard_of(self.recorder)
        self.health = HealthServicer(
            self.checker,
            policy=functools.partial(POLICIES[policy], status_callers=("grpc-", "Envoy/HC")),
            max_watches=max_watches,
            guard=self.guard,
            emit=self.recorder,
        )

    async def check(self, service: str = "", **options: Any) -> Any:
        return await self.stub.Check(health_pb2.HealthCheckRequest(service=service), **options)

    def watch(self, service: str = "") -> Any:
        return self.stub.Watch(health_pb2.HealthCheckRequest(service=service))

    async def call(self, *data: bytes, **options: Any) -> wire.Reply:
        return await wire.call(self.port, *data, **options)


@asynccontextmanager
async def serve(
    probe: Probe, *, reflects: bool = True, **options: Any
) -> AsyncGenerator[Served, None]:
    served = Served(probe, **options)
    server = grpc.aio.server(options=OPTIONS)
    if reflects:
        server.add_generic_rpc_handlers(reflection.handlers(served.health.guarded))
    server.add_generic_rpc_handlers((AllPaths(served.health),))
    served.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with connected(served.port) as served.stub, asyncio.timeout(60):
        yield served
    served.health.end_streams()
    await server.stop(1)
    await served.checker.close()


@asynccontextmanager
async def connected(port: int) -> AsyncGenerator[Any, None]:
    """Connect to a server, with a connection that no other channel of this process uses."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def failing(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str | None]:
    """Await a call that fails, and return its code and message."""
    with pytest.raises(grpc.aio.AioRpcError) as raised:
        await call
    return raised.value.code(), raised.value.details()


def method_of(path: str, probe: Probe, **options: Any) -> Callable[[Any], Awaitable[bytes]]:
    """Return the method that gRPC would call for a path, for a loop with virtual time."""
    timed = WithTimeout(probe, 3, clock=asyncio.get_running_loop().time)
    paths = AllPaths(Served(timed, watch_interval=1, **{"policy": "code", **options}).health)
    called: Any = SimpleNamespace(method=path)
    method: Any = paths.service(called)
    return functools.partial(method.stream_stream or method.stream_unary, None)


async def aborted(call: Awaitable[bytes], context: FakeContext) -> Any:
    """Await a call that is aborted, and return the code and the message that the caller gets."""
    with pytest.raises(grpc.aio.AbortError):
        await call
    return context.told


# What is answered.


async def test_check_of_an_unknown_service_is_not_found() -> None:
    """A name that is not configured is answered NOT_FOUND, with trailers only."""
    async with serve(FakeProbe()) as served:
        reply = await served.call(UNKNOWN)
    assert (reply.code, reply.headers["grpc-message"]) == (5, "unknown service")
    assert (reply.data, reply.blocks) == (b"", 1)


async def test_list_is_a_snapshot() -> None:
    """List returns the status of every service."""
    async with serve(FakeProbe(), more={"sick": FakeProbe(SICK)}) as served:
        listed = await served.stub.List(health_pb2.HealthListRequest())
    assert dict(listed.statuses) == {"": SERVING, "sick": NOT_SERVING, "liveness": SERVING}


async def test_a_list_of_too_many_services_is_refused() -> None:
    """A List of more than 100 services is answered RESOURCE_EXHAUSTED (gRFC A90)."""
    many: dict[str, Probe] = {f"service-{n}": FakeProbe() for n in range(99)}
    async with serve(FakeProbe(), more=many) as served:
        code, _ = await failing(served.stub.List(health_pb2.HealthListRequest()))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    many.pop("service-0")
    async with serve(FakeProbe(), more=many) as served:
        assert len((await served.stub.List(health_pb2.HealthListRequest())).statuses) == 100


@pytest.mark.parametrize("path", [LIST, *REFLECTION])
@pytest.mark.parametrize(
    ("policy", "headers", "code"),
    [("auto", ALB, 14), ("auto", GRPC_CLIENT, 0), ("code", GRPC_CLIENT, 14), ("status", ALB, 0)],
)
async def test_list_and_reflection_are_no_health_to_callers_that_look_at_the_code(
    path: str, policy: str, headers: list[tuple[str, str]], code: int
) -> None:
    """During a failure or the drain, only callers that read messages get OK on these paths."""
    probe = FakeProbe()
    async with serve(probe, policy=policy) as served:

        async def answer() -> tuple[int, str]:
            reply = await served.call(wire.EMPTY_MESSAGE, path=path, headers=headers)
            assert (reply.data != b"") == (reply.code == 0)
            return reply.code, reply.headers.get(REASON_KEY, "")

        assert await answer() == (0, "")
        probe.says = SICK
        assert await answer() == (code, "gateway answered 503" if code else "")
        served.checker.drain()
        assert await answer() == (code, "draining" if code else "")


@pytest.mark.parametrize(
    "path",
    [
        "/",
        "*",
        "/healthz/ready",
        ALB_PATH,
        "/grpc.health.v1.Health",
        "/grpc.health.v1.Health/",
        "/grpc.health.v1.Health/check",
        "/grpc.health.v1.Health/Check/",
        "/grpc.health.v2.Health/Check",
        "Check",
        *REFLECTION,
        f"/{reflection.V1}/Other",
    ],
)
async def test_no_unknown_path_is_healthy_while_the_gateway_is_not(path: str) -> None:
    """A path that is not served is answered 12 while ready and 14 otherwise.

    The codes 0 and 12 are the ones in matchers of target groups. Disabled reflection is not served.
    """
    probe = FakeProbe()
    async with serve(WithTimeout(probe, 0.05), reflects=False) as served:

        async def answer() -> tuple[int, str]:
            reply = await served.call(wire.EMPTY_MESSAGE, path=path)
            return reply.code, reply.headers["grpc-message"]

        while (await answer())[0] != 12:
            pass  # a busy machine may need more than one probe
        probe.says = SICK
        assert await answer() == (14, "gateway answered 503")
        probe.says = ZeroDivisionError()
        assert await answer() == (14, "internal error")
        probe.gate.clear()
        assert await answer() == (14, "no answer within 0.05 s")
        served.checker.drain()
        assert await answer() == (14, "draining")
    assert {method for method, *_ in served.recorder.answers} == {"other"}


@pytest.mark.parametrize("data", [(), (b"",), (wire.EMPTY_MESSAGE,), (MALFORMED,)])
async def test_the_message_to_an_unknown_path_does_not_matter(data: tuple[bytes, ...]) -> None:
    """12 while ready and 14 otherwise, for callers and a policy that read messages too."""
    probe = FakeProbe()
    async with serve(probe, policy="status") as served:
        reply = await served.call(*data, path=ALB_PATH, headers=GRPC_CLIENT)
        assert (reply.code, reply.headers["grpc-message"]) == (12, "gateway answered 200")
        probe.says = SICK
        reply = await served.call(*data, path=ALB_PATH, headers=GRPC_CLIENT)
        assert (reply.code, reply.headers["grpc-message"]) == (14, "gateway answered 503")


@pytest.mark.parametrize(
    ("path", "data", "headers", "answer"),
    [
        (CHECK, LIVENESS, ALB, ("Check", "liveness", "SERVING", "")),
        (CHECK, wire.EMPTY_MESSAGE, ALB, ("Check", "", "UNAVAILABLE", "gateway answered 503")),
        (
            CHECK,
            wire.EMPTY_MESSAGE,
            GRPC_CLIENT,
            ("Check", "", "NOT_SERVING", "gateway answered 503"),
        ),
        (CHECK, UNKNOWN, GRPC_CLIENT, ("Check", "x", "NOT_FOUND", "unknown service")),
        (CHECK, MALFORMED, ALB, ("Check", None, "INVALID_ARGUMENT", "malformed message")),
        (WATCH, wire.EMPTY_MESSAGE, ALB, ("Watch", None, "RESOURCE_EXHAUSTED", "too many watches")),
        (LIST, wire.EMPTY_MESSAGE, ALB, ("List", None, "UNAVAILABLE", "gateway answered 503")),
        (LIST, wire.EMPTY_MESSAGE, GRPC_CLIENT, ("List", None, "OK", "")),
        (ALB_PATH, b"", ALB, ("other", None, "UNAVAILABLE", "gateway answered 503")),
        (REFLECTION[0], wire.EMPTY_MESSAGE, GRPC_CLIENT, ("reflection", None, "OK", "")),
    ],
)
async def test_the_reason_is_in_the_event_and_in_a_trailer(
    path: str, data: bytes, headers: list[tuple[str, str]], answer: tuple[str, str | None, str, str]
) -> None:
    """Sinks get each answer, and `ghealth-reason` has its reason, with the code OK too."""
    async with serve(FakeProbe(SICK), max_watches=0) as served:
        reply = await served.call(data, path=path, headers=headers)
    method, *rest = answer
    assert served.recorder.answers == [(method, headers[0][1], *rest)]
    events = [one for one in served.recorder.events if isinstance(one, RequestAnswered)]
    assert [event.path for event in events] == [path]
    assert reply.headers.get(REASON_KEY, "") == answer[-1]


async def test_a_custom_reason_cannot_break_an_answer() -> None:
    """A custom probe's text is shortened and made printable, because gRPC refuses others."""
    text = "disk \u00fcber\r\n" + "x" * 500
    async with serve(FakeProbe(ProbeResult.because(text, ready=False))) as served:
        reply = await served.call(wire.EMPTY_MESSAGE, headers=ALB)
    assert (reply.code, reply.headers[REASON_KEY]) == (14, "disk ?ber??" + "x" * 189)


@pytest.mark.parametrize("path", METHODS)
async def test_a_bug_in_answering_reads_as_not_serving(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """An exception is logged, and the caller gets UNAVAILABLE without the exception's text."""

    def broken(*_: object, **__: object) -> Any:
        raise ZeroDivisionError("a secret")

    async with serve(FakeProbe()) as served:
        monkeypatch.setattr(served.checker, "check", broken)
        monkeypatch.setattr(served.checker, "watch", broken)
        reply = await served.call(wire.EMPTY_MESSAGE, path=path)
    assert (reply.code, reply.headers["grpc-message"]) == (14, "internal error")
    assert [record.getMessage() for record in caplog.records] == ["answering failed"]
    assert [answer for *_, answer, _ in served.recorder.answers] == ["UNAVAILABLE"]


# Every form of request.


@pytest.mark.parametrize("path", [CHECK, LIST])
@pytest.mark.parametrize("data", [(), (b"",), (wire.EMPTY_MESSAGE,)])
async def test_a_request_without_a_message_is_answered(
    monkeypatch: pytest.MonkeyPatch, path: str, data: tuple[bytes, ...]
) -> None:
    """A request without DATA, with an empty DATA frame or with an empty message is answered."""
    monkeypatch.setattr(servicer, "MESSAGE_TIMEOUT", 3600)  # the answer must not wait for it
    async with serve(FakeProbe()) as served:
        reply = await served.call(*data, path=path)
    assert reply.code == 0
    assert len(reply.data) > 5


@pytest.mark.parametrize("path", METHODS)
async def test_a_request_that_never_comes_is_an_invalid_argument(path: str) -> None:
    """A caller that sends no message, or a part of one, and does not end its request is refused."""
    probe = FakeProbe()
    async with serve(probe) as served:
        replies = await asyncio.gather(
            served.call(ends=False, path=path), served.call(b"\0\0\0\0\5ab", ends=False, path=path)
        )
    for reply in replies:
        assert (reply.code, reply.headers["grpc-message"]) == (3, "no message within 1 s")
    assert probe.attempts == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (CHECK, b"\xff"),
        (CHECK, b"\x0a\x05ab"),
        (CHECK, b"\x0a\x01\xff"),
        (WATCH, b"\xff"),
        (LIST, b"\x07"),
        *((path, b"\xff") for path in REFLECTION),
    ],
)
async def test_a_malformed_message_is_an_invalid_argument(
    caplog: pytest.LogCaptureFixture, path: str, message: bytes
) -> None:
    """Bytes that are not a request of the method are refused, and nothing is logged."""
    async with serve(FakeProbe()) as served:
        reply = await served.call(wire.framed(message), path=path)
    assert (reply.code, reply.headers["grpc-message"]) == (3, "malformed message")
    assert caplog.records == []


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (wire.EMPTY_MESSAGE, {"without": (":authority",), "headers": [("host", "AWSALB")]}),
        (wire.EMPTY_MESSAGE, {"headers": [("grpc-timeout", "5S")]}),
        (wire.EMPTY_MESSAGE, {"headers": [("content-length", "5")]}),
        (wire.EMPTY_MESSAGE, {"headers": [("accept-encoding", "gzip, compressed")]}),
        (
            wire.EMPTY_MESSAGE,
            {
                "without": ("content-type",),
                "headers": [("content-type", "application/grpc+proto")],
            },
        ),
        (wire.EMPTY_MESSAGE, {"trailers": [("x-trailer", "y")]}),
        (wire.gzipped(b""), {"headers": [("grpc-encoding", "gzip")]}),
    ],
)
async def test_every_form_of_request_is_answered(data: bytes, options: dict[str, Any]) -> None:
    """The form of a request does not change its answer."""
    probe = FakeProbe()
    async with serve(probe) as served:
        codes = []
        for probe.says in (READY, SICK):
            for path in (CHECK, ALB_PATH):
                codes.append((await served.call(data, path=path, **options)).code)
    assert codes == [0, 12, 14, 14]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
async def test_other_http_methods_never_reach_ghealth(method: str) -> None:
    """HEAD and OPTIONS get HTTP 200 and grpc-status 13 from gRPC's core (docs/callers.md)."""
    async with serve(FakeProbe(SICK)) as served:
        reply = await served.call(without=(":method",), headers=[(":method", method)])
    assert (reply.headers[":status"], reply.code) == ("200", 13)
    assert served.recorder.events == []


@pytest.mark.parametrize("path", [*METHODS, "/" + "x" * 20_000])
async def test_headers_before_the_acknowledgement_are_refused(path: str) -> None:
    """20 KB of headers in the first flight, which gRPC accepts, are refused without a probe."""
    huge = [(f"x-{number}", "y" * 2000) for number in range(10)] if path in METHODS else []
    probe = FakeProbe()
    async with serve(probe) as served:
        reply = await served.call(wire.EMPTY_MESSAGE, path=path, headers=huge)
    assert (reply.code, reply.headers["grpc-message"]) == (8, "headers too large")
    assert probe.attempts == 0


# When it is answered.

NO_MESSAGE = (grpc.StatusCode.INVALID_ARGUMENT, "no message within 1 s")
NO_TIME = (grpc.StatusCode.UNAVAILABLE, "no answer before the caller's deadline")
LATE = (grpc.StatusCode.UNAVAILABLE, "no answer within 3 s")


@pytest.mark.parametrize(
    ("path", "message", "deadline", "hangs", "after", "told"),
    [
        (CHECK, None, None, False, 1.0, NO_MESSAGE),
        (CHECK, None, 10.0, False, 1.0, NO_MESSAGE),
        (CHECK, None, 0.5, False, 0.45, NO_TIME),
        (CHECK, None, 0.01, False, 0.0, NO_TIME),
        (CHECK, b"", None, True, 3.0, LATE),
        (CHECK, None, 1.04, True, 0.99, NO_TIME),
        (CHECK, b"", 2.0, True, 1.95, NO_TIME),
        (LIST, b"", 2.0, True, 1.95, NO_TIME),
        (ALB_PATH, b"", 2.0, True, 1.95, NO_TIME),
    ],
)
@in_virtual_time
async def test_when_a_caller_is_answered(
    path: str, message: bytes | None, deadline: float | None, hangs: bool, after: float, told: Any
) -> None:
    """A caller is answered after MESSAGE_TIMEOUT, PROBE_TIMEOUT or 50 ms before its deadline."""
    probe = FakeProbe(SICK)
    if hangs:
        probe.gate.clear()
    context = FakeContext(message, deadline=deadline)
    started = asyncio.get_running_loop().time()
    assert await aborted(method_of(path, probe)(context), context) == told
    assert asyncio.get_running_loop().time() - started == pytest.approx(after, abs=0.001)


async def test_a_caller_is_answered_before_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the gateway hangs, the answer comes before the deadline, and the probe continues."""
    monkeypatch.setattr(servicer, "DEADLINE_MARGIN", 19.5)  # 20 s are enough on slow machines
    probe = FakeProbe()
    probe.gate.clear()
    async with serve(probe) as served:
        assert await served.check(timeout=20) == NOT_SERVING
        assert probe.under_way == 1


@in_virtual_time
async def test_a_caller_with_a_short_deadline_gets_the_answer_of_its_policy() -> None:
    """Without a request before the deadline, a caller that reads messages gets NOT_SERVING."""
    context = FakeContext(None, deadline=0.5)
    message = await method_of(CHECK, FakeProbe(), policy="status")(context)
    assert message == NOT_SERVING.SerializeToString()
    assert context.trailers == ((REASON_KEY, "no answer before the caller's deadline"),)


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
    assert await aborted(method_of(CHECK, FakeProbe())(context), context) == NO_MESSAGE
    (reading,) = reads
    assert reading is not None
    assert not reading.done()
    sent.set()
    await reading


# Callers that leave.


@pytest.mark.parametrize(
    ("path", "cannot"),
    [(CHECK, "read"), (CHECK, "abort"), (WATCH, "write"), (ALB_PATH, "abort")],
)
async def test_a_caller_that_is_gone_ends_a_call_as_cancelled(
    path: str, cannot: str, caplog: pytest.LogCaptureFixture
) -> None:
    """If the caller has disconnected, the call ends as cancelled and nothing is logged."""
    with pytest.raises(asyncio.CancelledError):
        await method_of(path, FakeProbe(SICK))(FakeContext(b"", cannot=cannot))
    assert caplog.records == []


async def test_a_call_after_the_stop_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """If the server has stopped during a call, the call is not answered and nothing is logged."""

    async def gone() -> bytes:
        raise grpc.aio.BaseError("Server already stopped.")

    context = FakeContext(b"")
    context.read = gone  # type: ignore[method-assign]
    with pytest.raises(asyncio.CancelledError):
        await method_of(CHECK, FakeProbe())(context)
    assert context.told is None
    assert caplog.records == []


@pytest.mark.parametrize("data", [(), (wire.EMPTY_MESSAGE,)])
async def test_a_caller_that_disconnects_before_an_error_is_not_logged(
    caplog: pytest.LogCaptureFixture, data: tuple[bytes, ...]
) -> None:
    """If a caller disconnects before an error can be sent to it, no exception is logged."""
    async with serve(FakeProbe(SICK)) as served:
        for _ in range(30):
            await wire.vanish(served.port, *data)
            await wire.vanish(served.port, *data, path=ALB_PATH)
        await served.call(wire.EMPTY_MESSAGE)
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_call_counts_until_its_answer_is_sent() -> None:
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
        await served.call(wire.EMPTY_MESSAGE, path="/")
        await wire.vanish(served.port)
        watching = served.watch()
        await watching.read()
        watching.cancel()
        while len(served.guard._calls):
            await served.check("liveness")


# Watches.

TOO_MANY_WATCHES = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches")


async def test_watch_of_an_unknown_service_stays_open() -> None:
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


async def test_too_many_watchers_are_refused_and_checks_are_not() -> None:
    """A Watch above the limit gets RESOURCE_EXHAUSTED until another Watch ends."""
    async with serve(FakeProbe(), max_watches=1) as served:
        first = served.watch()
        assert await first.read() == SERVING
        assert await failing(served.watch().read()) == TOO_MANY_WATCHES
        assert await served.check() == SERVING
        first.cancel()
        told = None
        while told != SERVING:  # until the server has ended the first
            with contextlib.suppress(grpc.aio.AioRpcError):
                told = await served.watch().read()


async def test_watches_are_limited_for_each_connection_and_in_total() -> None:
    """24 watches on a connection and `max_watches` in total are accepted."""
    most = MAX_WATCHES_PER_CONNECTION + 2
    request = health_pb2.HealthCheckRequest()
    async with (
        serve(FakeProbe(), max_watches=most) as served,
        connected(served.port) as second,
    ):
        first = [served.watch() for _ in range(MAX_WATCHES_PER_CONNECTION)]
        assert [await watch.read() for watch in first] == [SERVING] * len(first)
        assert await failing(served.watch().read()) == TOO_MANY_WATCHES
        other = [second.Watch(request) for _ in range(2)]
        assert [await watch.read() for watch in other] == [SERVING] * 2
        assert await failing(second.Watch(request).read()) == TOO_MANY_WATCHES


@asynccontextmanager
async def under_way(*calls: Awaitable[bytes]) -> AsyncGenerator[None, None]:
    """Run calls in the block, until each of them waits, and cancel them at its end."""
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0.5)
    yield
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)


@in_virtual_time
async def test_simultaneous_watches_cannot_exceed_the_limit() -> None:
    """Watches are counted before their messages are read."""
    watch = method_of(WATCH, FakeProbe(), max_watches=1)
    first, second = FakeContext(b""), FakeContext(b"")
    async with under_way(watch(first), watch(second)):
        assert len(first.sent) == 1
        assert (second.sent, second.told) == ([], TOO_MANY_WATCHES)


@in_virtual_time
async def test_a_watcher_that_stops_reading_holds_up_nobody() -> None:
    """While a message to one watcher cannot be sent, another watcher gets every change."""
    probe = FakeProbe()
    watch = method_of(WATCH, probe)
    stalled, reading = FakeContext(b"", reads=False), FakeContext(b"")
    async with under_way(watch(stalled), watch(reading)):
        for probe.says in (SICK, READY):
            await asyncio.sleep(1)
    told = [health_pb2.HealthCheckResponse.FromString(message) for message in reading.sent]
    assert told == [SERVING, NOT_SERVING, SERVING]
    assert len(stalled.sent) == 1


async def test_watchers_are_counted_by_service() -> None:
    """An open watch counts for its service, and sinks receive each message and the end."""

    def sent() -> set[tuple[str | None, str]]:
        answers = served.recorder.answers
        return {(service, name) for method, _, service, name, _ in answers if method == "Watch"}

    async with serve(FakeProbe()) as served:
        gateway, unknown = served.watch(), served.watch("x")
        await gateway.read()
        await unknown.read()
        assert served.health.watches == {"": 1, "x": 1}
        while len(sent()) < 2:  # a client can read a message before gRPC reports that it is sent
            await served.check()
        unknown.cancel()
        while served.health.watches != {"": 1}:
            await served.check()
        served.health.end_streams()
        assert await gateway.code() is grpc.StatusCode.UNAVAILABLE
        assert served.health.watches == {}
    assert sent() == {("", "SERVING"), ("", "UNAVAILABLE"), ("x", "SERVICE_UNKNOWN")}


# Reflection streams.


async def echo(requests: AsyncIterator[Any], _: object) -> AsyncGenerator[Any, None]:
    """Answer like a reflection servicer: one reply for each request."""
    async for request in requests:
        yield request


def reflecting(probe: Probe) -> tuple[HealthServicer, Callable[[Any], Awaitable[bytes]]]:
    """Return a servicer, and its method that answers reflection by `echo`."""
    health = Served(probe, policy="code").health
    return health, functools.partial(health.guarded("/reflection", echo), None)


@in_virtual_time
async def test_a_silent_reflection_stream_ends() -> None:
    """A stream without a request ends after REFLECTION_TIMEOUT and then does not count."""
    _, reflect = reflecting(FakeProbe())
    started = asyncio.get_running_loop().time()
    streams = [
        asyncio.ensure_future(reflect(FakeContext(None))) for _ in range(servicer.MAX_REFLECTIONS)
    ]
    await asyncio.sleep(0.5)
    one_more = FakeContext(None)
    refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls")
    assert await aborted(reflect(one_more), one_more) == refused
    await asyncio.wait(streams)
    took = asyncio.get_running_loop().time() - started
    assert took == pytest.approx(servicer.REFLECTION_TIMEOUT, abs=0.01)
    assert await reflect(FakeContext(None)) == b""


@in_virtual_time
async def test_reflection_streams_end_with_the_server() -> None:
    """At the stop, an open stream ends at once, and so does one that begins later."""
    health, reflect = reflecting(FakeProbe())
    stream = asyncio.ensure_future(reflect(FakeContext(None)))
    await asyncio.sleep(0.5)
    stopped = asyncio.get_running_loop().time()
    health.end_streams()
    assert await stream == b""
    assert await reflect(FakeContext(None)) == b""
    health.end_streams()
    assert asyncio.get_running_loop().time() == stopped


@in_virtual_time
async def test_a_reflection_stream_does_not_end_with_ok_after_a_failure() -> None:
    """If the gateway fails while a stream is open, the stream ends with UNAVAILABLE."""
    probe = FakeProbe()
    _, reflect = reflecting(probe)
    context = FakeContext(None)
    stream = asyncio.ensure_future(reflect(context))
    await asyncio.sleep(0.5)
    probe.says = SICK
    unavailable = (grpc.StatusCode.UNAVAILABLE, "gateway answered 503")
    assert await aborted(stream, context) == unavailable
