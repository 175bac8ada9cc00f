import asyncio
import codecs
import functools
import logging
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AsyncExitStack, nullcontext
from typing import Any
from unittest.mock import Mock

import grpc
import pytest

from ghealth.server import guard, listen, servicer
from ghealth.server import serve as serving_module
from ghealth.server.limits import MAX_WATCHES_PER_CONNECTION, OPTIONS, RESERVED_STREAMS
from ghealth.server.listen import ListenError
from ghealth.server.serve import GRPC_NICENESS
from tests.support import frames, wire
from tests.support.fakes import FakeProbe, hanging
from tests.support.frames import Kind
from tests.support.peers import answers, is_silent, target
from tests.support.running import CHECK, asking, closed, run
from tests.support.stopwatch import Stopwatch
from tests.support.virtual import in_virtual_time

GRPC = [("user-agent", "grpc-go/1")]
ALB = [("user-agent", "ELB-HealthChecker/2.0")]


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "event", "") == event]


# What it serves, and where.


@pytest.mark.parametrize(("tries", "why"), [(True, ": Address already in use"), (False, "")])
async def test_two_servers_do_not_share_a_port(
    monkeypatch: pytest.MonkeyPatch, tries: bool, why: str
) -> None:
    """A second ghealth cannot listen on the same port, even if it does not try it before gRPC."""
    async with run() as running:
        if not tries:
            trial = Mock(getsockname=lambda: ("127.0.0.1", running.port))
            monkeypatch.setattr(listen, "bind", lambda _: [trial])
        address = f"127.0.0.1:{running.port}"
        with pytest.raises(ListenError, match=f"^cannot listen on {address}{why}$"):
            async with run(listen=address):
                pass


@pytest.mark.parametrize(
    ("values", "path", "headers", "code", "end"),
    [
        ({}, frames.CHECK, GRPC, 0, b"\2"),
        ({}, frames.CHECK, ALB, 14, b""),
        ({"answer": "code"}, frames.CHECK, GRPC, 14, b""),
        ({"status_callers": "ELB-"}, frames.CHECK, ALB, 0, b"\2"),
        ({"probe_success_codes": "404"}, frames.CHECK, GRPC, 0, b"\1"),
        ({"max_watches": 0}, frames.WATCH, GRPC, 8, b""),
        ({}, frames.REFLECTION, GRPC, 0, b""),
        ({"reflection": False}, frames.REFLECTION, GRPC, 14, b""),
    ],
)
async def test_the_settings_of_answers_reach_the_server(
    values: dict[str, Any], path: str, headers: list[tuple[str, str]], code: int, end: bytes
) -> None:
    """Each of these settings changes an answer while the gateway answers 404."""
    async with target(answers(404)) as gateway, run(gateway, **values) as running:
        reply = await wire.call(running.port, wire.EMPTY_MESSAGE, path=path, headers=headers)
    assert (reply.code, reply.data.endswith(end)) == (code, True)


async def test_the_settings_of_the_probe_reach_the_gateway() -> None:
    """The probe sends PROBE_HEADERS, and a watched service is probed every WATCH_INTERVAL."""
    values: dict[str, Any] = {"watch_interval": 0.01, "cache_ttl": 0}
    values["probe_headers"] = {"X-Key": "k"}
    async with target(answers(200)) as gateway, run(gateway, **values) as running:
        watching = running.stub.Watch(CHECK())
        await watching.read()
        while len(gateway.requests) < 70:  # at an interval of 1 s, this would time out
            await running.status("liveness")
        watching.cancel()
    assert b"X-Key: k" in gateway.requests[0]


async def test_a_step_of_the_wall_clock_changes_no_freshness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of a day forwards or backwards makes no result stale, and keeps none fresh."""
    real = time.time
    async with target(answers(200)) as gateway:
        for ttl, most in ((60, 1), (0.1, 3)):
            gateway.requests.clear()
            async with run(gateway, cache_ttl=ttl) as running:
                for step in (0, 86_400, -86_400):
                    monkeypatch.setattr(time, "time", lambda step=step: real() + step)
                    assert await running.status() == 1
                while len(gateway.requests) < most:
                    await running.status()
                assert len(gateway.requests) == most


# A program around it.


async def test_embedded_mistakes_are_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of the exception has the lines that the command prints; nothing is opened."""
    monkeypatch.setenv("SSL_CERT_FILE", "/gone")
    reserved = "probes: 'liveness' is reserved; expected other names"
    probes: dict[str, Any] = {"liveness": FakeProbe()}
    with pytest.raises(ValueError, match=f"^{reserved}\nSSL_CERT_FILE: /gone: "):
        async with run(listen="192.0.2.1:1", probe_url="https://gw/", probes=probes):
            pass


async def test_custom_probes(caplog: pytest.LogCaptureFixture) -> None:
    """Custom probes replace those of the settings, add services, and have the same timeout."""
    caplog.set_level(logging.INFO)
    other = "http://127.0.0.1:1/"
    reasons = {"slow": "no answer within 0.5 s", "other": "connection refused"}
    probes = {"": FakeProbe(), "slow": hanging()}
    async with run(probes=probes, services={"other": other}, probe_timeout=0.5) as running:
        assert await running.status() == 1
        for service, reason in reasons.items():
            data = wire.framed(CHECK(service=service).SerializeToString())
            assert (await wire.call(running.port, data)).headers["ghealth-reason"] == reason
    assert vars(lines(caplog, "started")[0])["fields"]["probes"] == [other]


async def test_with_custom_probes_alone_no_url_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """If all probes are custom, the line at startup has no URL."""
    caplog.set_level(logging.INFO)
    async with run(probes={"": FakeProbe()}):
        assert "probes" not in lines(caplog, "started")[0].getMessage()


async def test_embedding_touches_neither_signals_nor_the_executor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """serve() sets no signal handler, and neither uses nor replaces the loop's executor."""
    touched = Mock(side_effect=AssertionError("touched"))
    async with target(answers(200)) as gateway:
        for name in ("signal", "set_wakeup_fd"):
            monkeypatch.setattr(signal, name, touched)
        for name in ("add_signal_handler", "run_in_executor", "set_default_executor"):
            monkeypatch.setattr(asyncio.get_running_loop(), name, touched)
        url = f"http://localhost:{gateway.port}/"
        async with run(listen="localhost:0", probe_url=url, drain_delay=0.1) as running:
            assert (await wire.call(running.port, wire.EMPTY_MESSAGE)).code == 0
            await running.ended(drains=True)
        monkeypatch.undo()


async def test_the_event_loop_runs_before_grpcs_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that gRPC starts have a lower priority; those of a program around it have not."""
    ended = threading.Event()
    grpcs = threading.Thread(target=ended.wait, daemon=True)
    create, priority = grpc.aio.server, functools.partial(os.getpriority, os.PRIO_PROCESS)
    usual = priority(0)

    def server(**options: Any) -> Any:
        grpcs.start()
        return create(**options)

    monkeypatch.setattr(grpc.aio, "server", server)
    async with run():
        assert priority(0) == usual
        assert priority(grpcs.native_id or 0) == min(19, usual + GRPC_NICENESS)
    serving_module._lower_priority([2**22])  # it has ended
    ended.set()


# What it logs.


UNSAFE = "an ALB gets OK from a gateway that is not ready"
LONG = "a probe may take 5.001 s (GHEALTH_PROBE_TIMEOUT)"


@pytest.mark.parametrize(
    ("values", "warnings"),
    [
        ({}, []),
        ({"answer": "code", "status_callers": "ELB-"}, []),
        ({"answer": "status"}, [UNSAFE]),
        ({"status_callers": "grpc-,ELB-"}, [UNSAFE]),
        ({"probe_timeout": "5s"}, []),
        ({"probe_timeout": "5001ms"}, [LONG]),
    ],
)
async def test_settings_that_give_up_the_promise_are_warned_of(
    caplog: pytest.LogCaptureFixture, values: dict[str, Any], warnings: list[str]
) -> None:
    """A warning is logged at startup if an ALB would get OK, or no answer, from a sick gateway.

    3000, meant as milliseconds, is 50 minutes; a load balancer waits 5 s by default.
    """
    caplog.set_level(logging.WARNING)
    async with run(**values):
        pass
    assert [message.partition(",")[0] for message in caplog.messages] == warnings


async def test_a_caller_that_goes_away_leaves_no_line_of_grpcs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """grpc.aio's lines about an answer that cannot be sent are dropped, its others are kept."""
    async with run():
        for name in ("grpc._cython.cygrpc", "asyncio"):
            for error in (grpc.aio.InternalError("Failed execute_batch"), None, ValueError()):
                logging.getLogger(name).error("%s", error, exc_info=error)
    assert caplog.messages == ["None", ""] * 2


# How it ends.


async def test_drain_reaches_a_hundred_watchers_and_every_check() -> None:
    """For DRAIN_DELAY all services but `liveness` are NOT_SERVING, for watches within 100 ms.

    Then the server stops, and no watch delays it.
    """
    values: dict[str, Any] = {"probes": {"": FakeProbe()}, "drain_delay": 2, "shutdown_grace": 3600}
    async with run(**values) as running, AsyncExitStack() as connections:
        stubs = [await connections.enter_async_context(asking(running.port)) for _ in range(5)]
        watching = [stub.Watch(CHECK()) for stub in stubs for _ in range(20)]
        assert [(await watch.read()).status for watch in watching] == [1] * 100
        told = asyncio.gather(*(watch.read() for watch in watching))
        ending = asyncio.create_task(running.ended(drains=True))
        taking = Stopwatch()
        assert [reply.status for reply in await told] == [2] * 100
        assert taking.seconds < 0.1
        assert [await running.status(), await running.status("liveness")] == [2, 1]
        assert {await watch.code() for watch in watching} == {grpc.StatusCode.UNAVAILABLE}
        await ending


async def test_without_drain_the_delay_is_skipped() -> None:
    """The stop skips DRAIN_DELAY, and an open Watch or a hanging gateway does not delay it."""
    hours: dict[str, Any] = {"probe_timeout": 3600, "drain_delay": 3600, "shutdown_grace": 3600}
    async with target(is_silent) as gateway, run(gateway, **hours) as running:
        watching = asyncio.create_task(running.stub.Watch(CHECK()).read())
        checking = running.stub.Check(CHECK())
        while not gateway.requests:  # until the probe hangs
            await running.status("liveness")
        await running.ended(drains=False)
        assert (await checking).status == 2
        assert (await watching).status == 2


async def test_an_open_reflection_stream_does_not_lengthen_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A silent reflection stream is ended at the stop, even if SHUTDOWN_GRACE is an hour."""
    monkeypatch.setattr(servicer, "REFLECTION_TIMEOUT", 3600)
    async with (
        run(probes={"": FakeProbe()}, shutdown_grace=3600) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        call: Any = channel.stream_stream(frames.REFLECTION)()
        await call.write(b"\x3a\x00")  # list_services
        assert b"grpc.health.v1.Health" in await call.read()
        await running.ended(drains=False)
        assert await call.code() is grpc.StatusCode.OK


@pytest.mark.parametrize(
    ("answering", "cuts", "seconds"),
    [(True, 0, 0), (False, 1, 0.25), (False, 3, 0.45), (True, 1, 10.25), (False, 1e9, 5.25)],
)
@in_virtual_time
async def test_connections_that_keep_the_server_from_stopping_are_cut(
    answering: bool, cuts: float, seconds: float
) -> None:
    """Connections are cut 0.25 s after the last answer or the grace; the stop ends 5 s later."""
    stopped = asyncio.Event()

    def cut_all() -> None:
        if stubborn.cut_all.call_count == cuts:
            stopped.set()

    stubborn: Any = Mock(answering=answering, stop=lambda _: stopped.wait())
    stubborn.cut_all.side_effect = cut_all
    if not cuts:
        stopped.set()
    started = asyncio.get_running_loop().time()
    await serving_module._stop(stubborn, stubborn, stubborn, 10)
    took = asyncio.get_running_loop().time() - started
    assert took == pytest.approx(seconds, abs=0.11)


# What one client may use.


@pytest.mark.parametrize(
    ("text", "other"),
    [
        (b"/path", b"/p\xffth"),
        (b"/path", b"\xc3\x28\xf0\x9fh"),
        (b"/path", b"/\xed\xa0\x80h"),
        (b"\x04name", b"\x04n\xffme"),
    ],
)
async def test_a_path_or_a_header_that_is_not_utf_8_ends_nothing(
    caplog: pytest.LogCaptureFixture, text: bytes, other: bytes
) -> None:
    """The call is answered, the server continues, and it is not an error in the log."""
    request = frames.hello() + frames.call(frames.block("/path", [("name", "x")]), 1, end=True)
    async with run(probes={"": FakeProbe()}) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(request.replace(text, other))
        await reader.readuntil(b"grpc-status")
        writer.close()
        assert await running.status() == 1
    assert [record for record in caplog.records if record.exc_info] == []


async def test_errors_of_decoding_are_raised_as_usual() -> None:
    """For all but gRPC's own task they are raised, and after the stop for it, too."""

    def decode() -> None:
        with pytest.raises(UnicodeDecodeError):
            b"\xff".decode()

    async with run():
        decode()
        await asyncio.to_thread(decode)
        with pytest.raises(UnicodeEncodeError):
            "\ud800".encode()
    assert codecs.lookup_error("strict") is codecs.strict_errors


async def test_if_grpc_ends_by_itself_so_does_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error in its task that accepts calls is raised: later calls would all be refused."""
    monkeypatch.setattr(serving_module, "_paths_that_are_not_utf_8", nullcontext)
    # gRPC raises the same error in a second task, which nothing awaits.
    monkeypatch.setattr(asyncio.get_running_loop(), "call_exception_handler", lambda _context: None)
    request = frames.hello() + frames.call(frames.block("/path"), 1, end=True)
    with pytest.raises(UnicodeDecodeError):  # noqa: PT012 - the server ends the block
        async with run(probes={"": FakeProbe()}) as running:
            await closed(running.port, request.replace(b"/path", b"/p\xffth"))
            await running.task


Options = Callable[[dict[str, int]], None]


@pytest.fixture
def change(monkeypatch: pytest.MonkeyPatch) -> Options:
    """Change some of gRPC's options that ghealth sets, to see that they have an effect."""

    def change(values: dict[str, int]) -> None:
        options = dict(OPTIONS)
        assert values.keys() <= options.keys()
        monkeypatch.setattr(serving_module, "OPTIONS", tuple((options | values).items()))

    return change


async def test_an_idle_connection_is_closed(change: Options) -> None:
    """A connection without calls is closed after the idle time."""
    change({"grpc.max_connection_idle_ms": 100})
    async with run() as running:
        await closed(running.port, frames.hello() + frames.SETTINGS_ACK)


async def test_a_client_that_answers_no_ping_is_closed(change: Options) -> None:
    """A client that has vanished is found within a minute, here within 0.2 s."""
    keepalive, timeout = "grpc.keepalive_time_ms", "grpc.http2.ping_timeout_ms"
    assert dict(OPTIONS)[keepalive] + dict(OPTIONS)[timeout] <= 60_000
    change({keepalive: 100, timeout: 100})
    async with run() as running, asyncio.timeout(20):
        await closed(running.port, frames.hello() + frames.SETTINGS_ACK)


async def test_a_flood_of_calls_costs_its_sender_the_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client with too many open calls is cut, and another client's Watch stays open."""
    monkeypatch.setattr(guard, "MAX_CALLS", 20)
    monkeypatch.setattr(servicer, "MESSAGE_TIMEOUT", 3600)
    headers = frames.block(frames.CHECK)
    calls = [frames.call(headers, stream, None, end=False) for stream in range(1, 60, 2)]
    async with run(max_watches=1) as running:
        watching = running.stub.Watch(CHECK(service="liveness"))
        assert (await watching.read()).status == 1
        await closed(running.port, frames.hello() + b"".join(calls))
        assert await running.status("liveness") == 1
        assert not watching.done()
        watching.cancel()
    (line,) = lines(caplog, "connections_cut")
    assert line.getMessage() == "cut 1 connections of 127.0.0.2: too many calls"


async def test_a_connection_full_of_watches_has_room_for_a_check() -> None:
    """Of 25 watches on a connection one is refused, and checks are answered beside the others."""
    async with run() as running:
        request = CHECK(service="liveness")
        watching = [running.stub.Watch(request) for _ in range(MAX_WATCHES_PER_CONNECTION)]
        assert {(await watch.read()).status for watch in watching} == {1}
        assert await running.stub.Watch(request).code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        checks = [running.status("liveness") for _ in range(RESERVED_STREAMS)]
        assert await asyncio.gather(*checks) == [1] * RESERVED_STREAMS
        for watch in watching:
            watch.cancel()


async def test_a_message_has_a_bounded_size() -> None:
    """A request of more than 16 KiB is refused before ghealth reads it."""
    async with run() as running:
        small, large = CHECK(service="x" * 1024), CHECK(service="x" * (16 * 1024 + 1))
        assert await running.stub.Check(small).code() is grpc.StatusCode.NOT_FOUND
        assert await running.stub.Check(large).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_headers_have_a_bounded_size() -> None:
    """3 KiB of headers are accepted, 5 KiB are refused."""
    async with run(probes={"": FakeProbe()}) as running:
        for kib, code in ((3, grpc.StatusCode.OK), (5, grpc.StatusCode.RESOURCE_EXHAUSTED)):
            headers = [("x-flood", "x" * kib * 1024)]
            assert await running.stub.Check(CHECK(), metadata=headers).code() is code


PING_FLOOR = "grpc.http2.min_ping_interval_without_data_ms"


async def is_cut_off(intervals: Iterable[float]) -> bool:
    """Ping an idle server at these intervals, and return whether it closes the connection."""
    received, kinds = bytearray(), list[int]()
    async with run() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(frames.hello() + frames.SETTINGS_ACK)
        for number, interval in enumerate(intervals, 1):
            writer.write(frames.frame(Kind.PING, bytes(8)))
            while kinds.count(Kind.PING) < number and Kind.GOAWAY not in kinds:
                received += await reader.read(1000)
                kinds += [kind for kind, *_ in frames.taken(received)]
            await asyncio.sleep(interval)
        writer.close()
    return Kind.GOAWAY in kinds


async def test_a_client_that_pings_every_ten_seconds_is_not_cut_off(change: Options) -> None:
    """Pings at grpc-go's shortest interval are accepted, even if jitter makes them early.

    The interval and the server's minimum are a hundredth of the real ones.
    """
    jitter = random.Random(1)
    change({PING_FLOOR: dict(OPTIONS)[PING_FLOOR] // 100})
    assert not await is_cut_off(0.1 * jitter.uniform(0.8, 1.2) for _ in range(12))


async def test_a_client_that_floods_with_pings_is_cut_off(change: Options) -> None:
    """The option has an effect: refused pings are accepted with a lower minimum interval."""
    assert await is_cut_off([0.02] * 6)
    change({PING_FLOOR: 1})
    assert not await is_cut_off([0.02] * 6)
