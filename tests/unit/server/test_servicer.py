import asyncio
import functools
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, Mock

import grpc
import pytest
from grpc_health.v1 import health_pb2

from ghealth.checker import Checker
from ghealth.events import RequestAnswered
from ghealth.health import GATEWAY, POLICIES, REASON_KEY
from ghealth.probe import Probe, ProbeResult, WithTimeout
from ghealth.server import reflection, servicer
from ghealth.server.guard import Guard, NoConnections
from ghealth.server.limits import OPTIONS
from ghealth.server.servicer import SERVICE_NAME, AllPaths, HealthServicer
from tests.support import wire
from tests.support.fakes import READY, SICK, FakeContext, FakeProbe, Recorder, hanging
from tests.support.running import asking
from tests.support.virtual import in_virtual_time
from tests.support.wire import EMPTY_MESSAGE as EMPTY

REQUEST = health_pb2.HealthCheckRequest
SERVING, NOT_SERVING, SERVICE_UNKNOWN = (
    health_pb2.HealthCheckResponse(status=number) for number in (1, 2, 3)
)

CHECK, WATCH, LIST = METHODS = [f"/{SERVICE_NAME}/{name}" for name in ("Check", "Watch", "List")]
V1, V1ALPHA = (f"/{name}/ServerReflectionInfo" for name in (reflection.V1, reflection.V1ALPHA))
ALB_PATH = "/AWS.ALB/healthcheck"

GRPC = [("user-agent", "grpc-go/1.70.0")]
ALB = [("user-agent", "ELB-HealthChecker/2.0")]

UNKNOWN = wire.framed(REQUEST(service="x").SerializeToString())
LIVENESS = wire.framed(REQUEST(service="liveness").SerializeToString())
MALFORMED = wire.framed(b"\xff")
PROTO = [("content-type", "application/grpc+proto")]


class Served:
    """A servicer and its parts; `serve` adds the port of a real server, and its client."""

    port: int
    stub: Any

    def __init__(
        self, probe: Any = None, *, policy: Any = "auto", max_watches: int = 100, **more: Probe
    ) -> None:
        self.probe = probe or FakeProbe()
        self.recorder = emit = Recorder()
        probes = {GATEWAY: self.probe, **more}
        self.checker = Checker(probes, cache_ttl=0, watch_interval=1, emit=emit)
        nothing = NoConnections()
        self.guard = Guard(max_watches=1, descriptors=1, limit=1, emit=emit, connections=nothing)
        decide = functools.partial(POLICIES[policy], status_callers=("grpc-", "Envoy/HC"))
        self.health = HealthServicer(
            self.checker, policy=decide, max_watches=max_watches, guard=self.guard, emit=emit
        )

    async def call(self, *data: bytes, **options: Any) -> wire.Reply:
        return await wire.call(self.port, *data, **options)

    def method(self, path: str) -> Callable[[FakeContext], Awaitable[bytes]]:
        """Return what gRPC would call for a path, for a loop with virtual time."""
        called: Any = SimpleNamespace(method=path)
        method: Any = AllPaths(self.health).service(called)
        return functools.partial(method.stream_stream or method.stream_unary, None)


@asynccontextmanager
async def serve(*, reflects: bool = True, **options: Any) -> AsyncGenerator[Served, None]:
    served = Served(**options)
    server = grpc.aio.server(options=OPTIONS)
    if reflects:
        server.add_generic_rpc_handlers(reflection.handlers(served.health.guarded))
    server.add_generic_rpc_handlers((AllPaths(served.health),))
    served.port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with asking(served.port) as served.stub, asyncio.timeout(60):
        yield served
    served.health.end_streams()
    await server.stop(1)
    await served.checker.close()


@pytest.fixture
async def served() -> AsyncGenerator[Served, None]:
    """A server whose gateway is ready."""
    async with serve() as made:
        yield made


async def aborted(call: Awaitable[bytes], context: FakeContext) -> Any:
    """Await a call that is aborted, and return the code and the message that the caller gets."""
    with pytest.raises(grpc.aio.AbortError):
        await call
    return context.told


# What is answered.


async def test_check_of_an_unknown_service_is_not_found(served: Served) -> None:
    """A name that is not configured is answered NOT_FOUND, with trailers only."""
    reply = await served.call(UNKNOWN)
    assert (reply.code, reply.headers["grpc-message"]) == (5, "unknown service")
    assert (reply.data, reply.blocks) == (b"", 1)


async def test_list_is_a_snapshot() -> None:
    """List returns the status of every service."""
    async with serve(sick=FakeProbe(SICK)) as served:
        listed = await served.stub.List(health_pb2.HealthListRequest())
    assert dict(listed.statuses) == {"": SERVING, "sick": NOT_SERVING, "liveness": SERVING}


@pytest.mark.parametrize(("services", "code"), [(100, 0), (101, 8)])
async def test_a_list_of_too_many_services_is_refused(services: int, code: int) -> None:
    """A List of more than 100 services, the gateway and `liveness` too, is refused (gRFC A90)."""
    more: dict[str, Any] = {f"service-{n}": FakeProbe() for n in range(services - 2)}
    async with serve(**more) as served:
        assert (await served.call(EMPTY, path=LIST)).code == code


@pytest.mark.parametrize("path", [LIST, V1, V1ALPHA])
@pytest.mark.parametrize(
    ("policy", "headers", "code"),
    [("auto", ALB, 14), ("auto", GRPC, 0), ("code", GRPC, 14), ("status", ALB, 0)],
)
async def test_list_and_reflection_are_no_health_to_callers_that_look_at_the_code(
    path: str, policy: str, headers: list[tuple[str, str]], code: int
) -> None:
    """During a failure or the drain, only callers that read messages get OK on these paths."""
    async with serve(policy=policy) as served:

        async def answer() -> tuple[int, str]:
            reply = await served.call(EMPTY, path=path, headers=headers)
            assert (reply.data != b"") == (reply.code == 0)
            return reply.code, reply.headers.get(REASON_KEY, "")

        assert await answer() == (0, "")
        served.probe.says = SICK
        assert await answer() == (code, "gateway answered 503" if code else "")
        served.checker.drain()
        assert await answer() == (code, "draining" if code else "")


@pytest.mark.parametrize(
    "path", ["/", "*", ALB_PATH, f"{CHECK}/", CHECK.lower(), "Check", V1, V1ALPHA]
)
async def test_no_unknown_path_is_healthy_while_the_gateway_is_not(path: str) -> None:
    """A path that is not served is answered 12 while ready and 14 otherwise, whatever is sent.

    The codes 0 and 12 are the ones in matchers of target groups. Disabled reflection is not served.
    """
    async with serve(policy="status", reflects=False) as served:

        async def answers() -> set[tuple[int, str]]:
            messages = ((), (b"",), (EMPTY,), (MALFORMED,))
            replies = [await served.call(*data, path=path, headers=GRPC) for data in messages]
            return {(reply.code, reply.headers["grpc-message"]) for reply in replies}

        assert await answers() == {(12, "gateway answered 200")}
        served.probe.says = SICK
        assert await answers() == {(14, "gateway answered 503")}
        served.probe.says = ZeroDivisionError()
        assert await answers() == {(14, "internal error")}
        served.checker.drain()
        assert await answers() == {(14, "draining")}
    assert {method for method, *_ in served.recorder.answers} == {"other"}


@pytest.mark.parametrize(
    ("path", "data", "headers", "answer"),
    [
        (CHECK, LIVENESS, ALB, ("Check", "liveness", "SERVING", "")),
        (CHECK, EMPTY, ALB, ("Check", "", "UNAVAILABLE", "gateway answered 503")),
        (CHECK, EMPTY, GRPC, ("Check", "", "NOT_SERVING", "gateway answered 503")),
        (CHECK, UNKNOWN, GRPC, ("Check", "x", "NOT_FOUND", "unknown service")),
        (CHECK, MALFORMED, ALB, ("Check", None, "INVALID_ARGUMENT", "malformed message")),
        (WATCH, EMPTY, ALB, ("Watch", None, "RESOURCE_EXHAUSTED", "too many watches")),
        (LIST, EMPTY, ALB, ("List", None, "UNAVAILABLE", "gateway answered 503")),
        (ALB_PATH, b"", ALB, ("other", None, "UNAVAILABLE", "gateway answered 503")),
        (V1ALPHA, EMPTY, GRPC, ("reflection", None, "OK", "")),
    ],
)
async def test_the_reason_is_in_the_event_and_in_a_trailer(
    path: str, data: bytes, headers: list[tuple[str, str]], answer: tuple[str, str | None, str, str]
) -> None:
    """Sinks get each answer, and `ghealth-reason` has its reason, with the code OK too."""
    async with serve(probe=FakeProbe(SICK), max_watches=0) as served:
        reply = await served.call(data, path=path, headers=headers)
    method, *rest = answer
    assert served.recorder.answers == [(method, headers[0][1], *rest)]
    events = [one for one in served.recorder.events if isinstance(one, RequestAnswered)]
    assert [event.path for event in events] == [path]
    assert reply.headers.get(REASON_KEY, "") == answer[-1]


async def test_a_custom_reason_cannot_break_an_answer() -> None:
    """A custom probe's text is shortened and made printable, because gRPC refuses others."""
    text = "disk \u00fcber\r\n" + "x" * 500
    async with serve(probe=FakeProbe(ProbeResult.because(text, ready=False))) as served:
        reply = await served.call(EMPTY, headers=ALB)
    assert (reply.code, reply.headers[REASON_KEY]) == (14, "disk ?ber??" + "x" * 189)


@pytest.mark.parametrize("path", METHODS)
async def test_a_bug_in_answering_reads_as_not_serving(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """An exception is logged, and the caller gets UNAVAILABLE without the exception's text."""
    for name in ("check", "watch"):
        broken = Mock(side_effect=ZeroDivisionError("a secret"))
        monkeypatch.setattr(served.checker, name, broken)
    reply = await served.call(EMPTY, path=path)
    assert (reply.code, reply.headers["grpc-message"]) == (14, "internal error")
    assert caplog.messages == ["answering failed"]
    assert [answer for *_, answer, _ in served.recorder.answers] == ["UNAVAILABLE"]


# Every form of request.


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ([], {}),
        ([b""], {}),
        ([EMPTY], {"without": [":authority"], "headers": [("host", "AWSALB")]}),
        ([EMPTY], {"headers": [("grpc-timeout", "5S"), ("content-length", "5")]}),
        ([EMPTY], {"headers": [("accept-encoding", "gzip, compressed")]}),
        ([EMPTY], {"without": ["content-type"], "headers": PROTO}),
        ([EMPTY], {"trailers": [("x-trailer", "y")]}),
        ([wire.gzipped(b"")], {"headers": [("grpc-encoding", "gzip")]}),
    ],
)
async def test_every_form_of_request_is_answered(
    served: Served, monkeypatch: pytest.MonkeyPatch, data: list[bytes], options: dict[str, Any]
) -> None:
    """The form of a request does not change its answer, which waits for no missing message."""
    monkeypatch.setattr(servicer, "MESSAGE_TIMEOUT", 3600)
    codes = []
    for served.probe.says in (READY, SICK):
        for path in (CHECK, LIST, ALB_PATH):
            codes.append((await served.call(*data, path=path, **options)).code)
    assert codes == [0, 0, 12, 14, 14, 14]


async def test_a_request_that_never_comes_is_an_invalid_argument(served: Served) -> None:
    """A caller that sends no message, or a part of one, and does not end its request is refused."""
    messages = ((), (b"\0\0\0\0\5ab",))
    calls = [served.call(*m, ends=False, path=path) for path in METHODS for m in messages]
    replies = await asyncio.gather(*calls)
    refusals = {(reply.code, reply.headers["grpc-message"]) for reply in replies}
    assert refusals == {(3, "no message within 1 s")}
    assert served.probe.attempts == 0


@pytest.mark.parametrize(
    ("path", "message"),
    [(CHECK, b"\xff"), (CHECK, b"\x0a\x01\xff"), (WATCH, b"\xff"), (LIST, b"\x07"), (V1, b"\xff")],
)
async def test_a_malformed_message_is_an_invalid_argument(
    served: Served, caplog: pytest.LogCaptureFixture, path: str, message: bytes
) -> None:
    """Bytes that are not a request of the method are refused, and nothing is logged."""
    reply = await served.call(wire.framed(message), path=path)
    assert (reply.code, reply.headers["grpc-message"]) == (3, "malformed message")
    assert caplog.records == []


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS", "DELETE"])
async def test_other_http_methods_never_reach_ghealth(served: Served, method: str) -> None:
    """They get HTTP 200 and grpc-status 13 from gRPC's core (docs/callers.md)."""
    reply = await served.call(without=(":method",), headers=[(":method", method)])
    assert (reply.headers[":status"], reply.code) == ("200", 13)
    assert served.recorder.events == []


@pytest.mark.parametrize("path", [*METHODS, "/" + "x" * 20_000])
async def test_headers_before_the_acknowledgement_are_refused(served: Served, path: str) -> None:
    """20 KB of headers in the first flight, which gRPC accepts, are refused without a probe."""
    huge = [(f"x-{number}", "y" * 2000) for number in range(10)] if path in METHODS else []
    reply = await served.call(EMPTY, path=path, headers=huge)
    assert (reply.code, reply.headers["grpc-message"]) == (8, "headers too large")
    assert served.probe.attempts == 0


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
        (CHECK, None, 1.04, True, 0.99, NO_TIME),
        (CHECK, b"", None, True, 3.0, LATE),
        (ALB_PATH, b"", None, True, 3.0, LATE),
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
    clock = asyncio.get_running_loop().time
    probe = hanging() if hangs else FakeProbe(SICK)
    context = FakeContext(message, deadline=deadline)
    started = clock()
    call = Served(WithTimeout(probe, 3, clock=clock)).method(path)(context)
    assert await aborted(call, context) == told
    assert clock() - started == pytest.approx(after, abs=0.001)


async def test_a_caller_is_answered_before_its_deadline(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the gateway hangs, the answer comes before the deadline, and the probe continues."""
    monkeypatch.setattr(servicer, "DEADLINE_MARGIN", 19.5)  # 20 s are enough on slow machines
    served.probe.gate.clear()
    assert await served.stub.Check(REQUEST(), timeout=20) == NOT_SERVING
    assert served.probe.under_way == 1


@in_virtual_time
async def test_a_caller_with_a_short_deadline_gets_the_answer_of_its_policy() -> None:
    """Without a request before the deadline, a caller that reads messages gets NOT_SERVING."""
    context = FakeContext(None, deadline=0.5)
    message = await Served(policy="status").method(CHECK)(context)
    assert message == NOT_SERVING.SerializeToString()
    assert context.trailers == ((REASON_KEY, "no answer before the caller's deadline"),)


@in_virtual_time
async def test_a_read_that_takes_too_long_is_not_cancelled() -> None:
    """The call is answered and the read continues: a cancelled one leaks memory in grpcio."""
    before = asyncio.all_tasks()
    context = FakeContext(None)
    assert await aborted(Served().method(CHECK)(context), context) == NO_MESSAGE
    await asyncio.sleep(1)
    assert len(asyncio.all_tasks() - before) == 1


# Callers that leave.

GONE = grpc.aio.InternalError("Failed to send or receive")
STOPPED = grpc.aio.BaseError("Server already stopped.")


@pytest.mark.parametrize(
    ("path", "cannot", "error"),
    [(CHECK, "read", STOPPED), (CHECK, "abort", GONE), (WATCH, "write", GONE)],
)
async def test_a_caller_that_is_gone_ends_a_call_as_cancelled(
    path: str, cannot: str, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    """If the caller has left, or the server has stopped, a call is cancelled and not logged."""
    context = FakeContext(b"")
    setattr(context, cannot, AsyncMock(side_effect=error))
    with pytest.raises(asyncio.CancelledError):
        await Served(FakeProbe(SICK)).method(path)(context)
    assert caplog.records == []


async def test_a_call_counts_until_its_answer_is_sent(served: Served) -> None:
    """A call counts while it waits, and not after it was answered, refused or dropped."""
    served.probe.gate.clear()
    checking = asyncio.ensure_future(served.stub.Check(REQUEST()))
    while not served.probe.under_way:
        await served.stub.Check(REQUEST(service="liveness"))
    assert served.guard._calls
    served.probe.gate.set()
    await checking
    await served.call(UNKNOWN)
    await served.call(EMPTY, path="/")
    await wire.vanish(served.port)
    watching = served.stub.Watch(REQUEST())
    await watching.read()
    watching.cancel()
    while served.guard._calls:
        await served.stub.Check(REQUEST(service="liveness"))


# Watches.


async def test_watch_of_an_unknown_service_stays_open(served: Served) -> None:
    """A Watch of an unknown name gets SERVICE_UNKNOWN and ends only with the server."""
    watching = served.stub.Watch(REQUEST(service="x"))
    assert await watching.read() == SERVICE_UNKNOWN
    served.checker.drain()
    after = asyncio.create_task(watching.read())
    assert await served.stub.Check(REQUEST(service="liveness")) == SERVING
    assert not after.done()
    served.health.end_streams()
    with pytest.raises(grpc.aio.AioRpcError, match="draining"):
        await after
    assert await watching.code() is grpc.StatusCode.UNAVAILABLE


async def test_too_many_watchers_are_refused_and_checks_are_not() -> None:
    """A Watch above the limit of all connections is refused until another Watch ends."""
    async with serve(max_watches=1) as served, asking(served.port) as other:
        first = other.Watch(REQUEST())
        assert await first.read() == SERVING
        assert await served.stub.Watch(REQUEST()).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert await served.stub.Check(REQUEST()) == SERVING
        first.cancel()
        told = None
        while told != SERVING:  # until the server has ended the first
            with suppress(grpc.aio.AioRpcError):
                told = await served.stub.Watch(REQUEST()).read()


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
    watch = Served(max_watches=1).method(WATCH)
    first, second = FakeContext(b""), FakeContext(b"")
    async with under_way(watch(first), watch(second)):
        assert len(first.sent) == 1
        assert second.sent == []
        assert second.told == (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many watches")


@in_virtual_time
async def test_a_watcher_that_stops_reading_holds_up_nobody() -> None:
    """While a message to one watcher cannot be sent, another watcher gets every change."""
    probe = FakeProbe()
    watch = Served(probe).method(WATCH)
    stalled, reading = FakeContext(b"", reads=False), FakeContext(b"")
    async with under_way(watch(stalled), watch(reading)):
        for probe.says in (SICK, READY):
            await asyncio.sleep(1)
    told = [health_pb2.HealthCheckResponse.FromString(message) for message in reading.sent]
    assert told == [SERVING, NOT_SERVING, SERVING]
    assert len(stalled.sent) == 1


@in_virtual_time
async def test_watchers_are_counted_by_service() -> None:
    """An open watch counts for its service, and sinks receive each message and the end."""
    served = Served()
    watch, x = served.method(WATCH), REQUEST(service="x").SerializeToString()
    async with under_way(watch(FakeContext(b""))):
        async with under_way(watch(FakeContext(x))):
            assert served.health.watches == {"": 1, "x": 1}
        assert served.health.watches == {"": 1}
        served.health.end_streams()
        await asyncio.sleep(1)
        assert served.health.watches == {}
    told = [(service, name) for _, _, service, name, _ in served.recorder.answers]
    assert told == [("", "SERVING"), ("x", "SERVICE_UNKNOWN"), ("", "UNAVAILABLE")]


# Reflection streams.


async def echo(requests: AsyncIterator[Any], _: object) -> AsyncGenerator[Any, None]:
    """Answer like a reflection servicer: one reply for each request."""
    async for request in requests:
        yield request


def reflecting(probe: Probe) -> Callable[[FakeContext], Awaitable[bytes]]:
    """Return a method that answers reflection by `echo`."""
    return functools.partial(Served(probe).health.guarded("/reflection", echo), None)


@in_virtual_time
async def test_a_silent_reflection_stream_ends() -> None:
    """A stream without a request ends after REFLECTION_TIMEOUT and then does not count."""
    reflect = reflecting(FakeProbe())
    one_more = FakeContext(None)
    async with under_way(*[reflect(FakeContext(None)) for _ in range(servicer.MAX_REFLECTIONS)]):
        await asyncio.sleep(servicer.REFLECTION_TIMEOUT - 1)
        refused = (grpc.StatusCode.RESOURCE_EXHAUSTED, "too many calls")
        assert await aborted(reflect(one_more), one_more) == refused
        await asyncio.sleep(1)
    assert await reflect(FakeContext(None)) == b""


@in_virtual_time
async def test_a_reflection_stream_does_not_end_with_ok_after_a_failure() -> None:
    """If the gateway fails while a stream is open, the stream ends with UNAVAILABLE."""
    probe = FakeProbe()
    reflect = reflecting(probe)
    context = FakeContext(None)
    stream = asyncio.ensure_future(reflect(context))
    await asyncio.sleep(0.5)
    probe.says = SICK
    unavailable = (grpc.StatusCode.UNAVAILABLE, "gateway answered 503")
    assert await aborted(stream, context) == unavailable
