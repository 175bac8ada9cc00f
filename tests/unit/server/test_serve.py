import asyncio
import codecs
import functools
import logging
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext, suppress
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth.probe import Probe
from ghealth.server import guard, listen, servicer
from ghealth.server import serve as serving_module
from ghealth.server.limits import MAX_WATCHES_PER_CONNECTION, OPTIONS, RESERVED_STREAMS
from ghealth.server.listen import ListenError
from ghealth.server.serve import Ports, serve
from ghealth.settings import Settings
from tests.support import frames, wire
from tests.support.fakes import FakeProbe
from tests.support.peers import Target, answers, is_silent, nobody, target
from tests.support.stopwatch import Stopwatch
from tests.support.virtual import in_virtual_time

CHECK = health_pb2.HealthCheckRequest
GRPC_CLIENT = [("user-agent", "grpc-go/1")]
ALB = [("user-agent", "ELB-HealthChecker/2.0")]


class Running:
    """A server that runs in this process, and a client of its first port."""

    stub: Any

    def __init__(self, settings: Settings, probes: dict[str, Probe] | None) -> None:
        loop = asyncio.get_running_loop()
        self.started: asyncio.Future[Ports] = loop.create_future()
        self.stop: asyncio.Future[bool] = loop.create_future()
        self.task = asyncio.create_task(
            serve(
                settings,
                shutdown_trigger=lambda: self.stop,
                on_started=self.started.set_result,
                probes=probes,
            )
        )

    @property
    def ports(self) -> Ports:
        return self.started.result()

    @property
    def port(self) -> int:
        return self.ports.listen[0]

    async def status(self, service: str = "") -> int:
        """Check a service."""
        reply = await self.stub.Check(CHECK(service=service))
        return int(reply.status)

    async def ended(self, *, drains: bool) -> None:
        """Stop the server, and wait for its end."""
        self.stop.set_result(drains)
        await self.task


@asynccontextmanager
async def run(
    *gateways: Target, probes: dict[str, Probe] | None = None, **values: Any
) -> AsyncGenerator[Running, None]:
    """Run a server that probes the gateways, on a free port, for at most a minute."""
    urls = {"probe_url": ",".join(map(url_of, gateways))} if gateways else {}
    defaults = {"listen": "127.0.0.1:0", "admin_listen": "off"}
    running = Running(Settings.model_validate(defaults | urls | values), probes)
    async with asyncio.timeout(60):
        await asyncio.wait((running.task, running.started), return_when=asyncio.FIRST_COMPLETED)
        if running.task.done():
            await running.task
        async with asking(running.port) as running.stub:
            yield running
        if not running.stop.done():
            await running.ended(drains=False)
        await running.task


@asynccontextmanager
async def asking(port: int, host: str = "127.0.0.1") -> AsyncGenerator[Any, None]:
    # By default, the channels of a process share connections; this one must have a separate one.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"{host}:{port}", options=options) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def url_of(gateway: Target) -> str:
    return f"http://127.0.0.1:{gateway.port}/"


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "event", "") == event]


# What it serves, and where.


async def test_each_service_has_its_own_target() -> None:
    """The status of one gateway is not that of another, nor of the process."""
    async with (
        target(answers(200)) as well,
        target(answers(503)) as sick,
        run(well, services={"other": url_of(sick)}) as running,
    ):
        assert await running.status() == 1
        assert await running.status("other") == 2
        assert await running.status("liveness") == 1


@pytest.mark.parametrize(("reflection", "code"), [(True, 0), (False, 14)])
async def test_reflection_can_be_disabled(reflection: bool, code: int) -> None:
    """Without REFLECTION its path is one that is not served."""
    async with run(reflection=reflection, answer="status") as running:
        reply = await wire.call(running.port, wire.EMPTY_MESSAGE, path=frames.REFLECTION)
    assert reply.code == code


async def test_not_serving_until_the_first_good_answer() -> None:
    """Before the gateway listens, ghealth answers already, and with NOT_SERVING."""
    with nobody() as port:
        async with run(probe_url=f"http://127.0.0.1:{port}/") as running:
            assert await running.status() == 2


async def test_it_listens_on_every_address() -> None:
    """All addresses in LISTEN answer, port 0 is a free port, and `[::]` includes IPv4."""
    async with run(listen="127.0.0.1:0,[::1]:0,[::]:0") as running:
        one, two, three = running.ports.listen
        assert running.ports == Ports((one, two, three), (), None)
        for host, port in [
            ("127.0.0.1", one),
            ("[::1]", two),
            ("[::1]", three),
            ("127.0.0.1", three),
        ]:
            async with asking(port, host) as stub:
                assert (await stub.Check(CHECK(service="liveness"))).status == 1


async def test_a_free_admin_port_is_reported() -> None:
    """With port 0, `on_started` gets the number of the admin port."""
    async with run(admin_listen="127.0.0.1:0") as running:
        assert running.ports.admin not in (None, 0)


async def test_two_servers_do_not_share_a_port() -> None:
    """A second ghealth cannot listen on the same port, and its error has the cause."""
    async with run() as running:
        with pytest.raises(ListenError) as raised:
            async with run(listen=f"127.0.0.1:{running.port}"):
                pass
    assert str(raised.value) == f"cannot listen on 127.0.0.1:{running.port}: Address already in use"


async def test_grpc_itself_does_not_share_a_port(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of another ghealth cannot be bound by gRPC, even without the check before it."""
    async with run() as running:
        trial = SimpleNamespace(getsockname=lambda: ("127.0.0.1", running.port), close=lambda: None)
        monkeypatch.setattr(listen, "bind", lambda _: [trial])
        with pytest.raises(ListenError) as raised:
            async with run(listen=f"127.0.0.1:{running.port}"):
                pass
    assert str(raised.value) == f"cannot listen on 127.0.0.1:{running.port}"


@pytest.mark.parametrize(
    ("values", "headers", "expected"),
    [
        ({}, GRPC_CLIENT, (0, b"\2")),
        ({}, ALB, (14, b"")),
        ({"answer": "code"}, GRPC_CLIENT, (14, b"")),
        ({"status_callers": "ELB-"}, ALB, (0, b"\2")),
        ({"probe_success_codes": "404"}, GRPC_CLIENT, (0, b"\1")),
    ],
)
async def test_the_settings_of_answers_reach_the_server(
    values: dict[str, Any], headers: list[tuple[str, str]], expected: tuple[int, bytes]
) -> None:
    """Each of these settings changes the answer while the gateway answers 404."""
    async with target(answers(404)) as gateway, run(gateway, **values) as running:
        reply = await wire.call(running.port, wire.EMPTY_MESSAGE, headers=headers)
    assert (reply.code, reply.data[-1:]) == expected


async def test_the_settings_of_the_probe_reach_the_gateway() -> None:
    """The probe sends PROBE_HEADERS, and a watched service is probed every WATCH_INTERVAL."""
    values: dict[str, Any] = {
        "probe_headers": {"X-Key": "k"},
        "watch_interval": 0.01,
        "cache_ttl": 0,
    }
    async with target(answers(200)) as gateway, run(gateway, **values) as running:
        watching = running.stub.Watch(CHECK())
        await watching.read()
        while len(gateway.requests) < 70:  # at an interval of 1 s, this would time out
            await running.status("liveness")
        watching.cancel()
    assert b"X-Key: k" in gateway.requests[0]


async def test_max_watches_reaches_the_server() -> None:
    """With MAX_WATCHES=0 a Watch is refused and a Check is answered."""
    async with run(max_watches=0) as running:
        assert await running.status("liveness") == 1
        assert await running.stub.Watch(CHECK()).code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_step_of_the_wall_clock_changes_no_freshness(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A step of a day forwards or backwards makes no result stale, and keeps none fresh."""
    real = time.time
    async with target(answers(200)) as gateway:
        async with run(gateway, cache_ttl=60) as running:
            for step in (0, 86_400, -86_400):
                monkeypatch.setattr(time, "time", lambda step=step: real() + step)
                assert await running.status() == 1
            assert len(gateway.requests) == 1
        async with run(gateway, cache_ttl=0.1) as running:
            await running.status()
            monkeypatch.setattr(time, "time", lambda: real() - 2 * 86_400)
            while len(gateway.requests) < 3:
                await running.status()


# A program around it.


async def test_embedded_mistakes_are_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of the exception has the lines that the command prints; nothing is opened."""
    monkeypatch.setenv("SSL_CERT_FILE", "/gone")
    with pytest.raises(ValueError, match="reserved") as raised:
        async with run(
            listen="192.0.2.1:1", probe_url="https://gw/", probes={"liveness": FakeProbe()}
        ):
            pass
    found = [line.split(":")[0] for line in str(raised.value).splitlines()]
    assert found == ["probes", "SSL_CERT_FILE"]


async def test_custom_probes(caplog: pytest.LogCaptureFixture) -> None:
    """Custom probes replace those of the settings, add services, and have the same timeout."""
    caplog.set_level(logging.INFO)
    hanging = FakeProbe()
    hanging.gate.clear()
    probes: dict[str, Probe] = {"": FakeProbe(), "slow": hanging}
    services = {"other": "http://127.0.0.1:1/"}
    async with run(probes=probes, services=services, probe_timeout=0.5) as running:
        assert await running.status() == 1
        for service, reason in [
            ("slow", "no answer within 0.5 s"),
            ("other", "connection refused"),
        ]:
            data = wire.framed(CHECK(service=service).SerializeToString())
            reply = await wire.call(running.port, data)
            assert reply.headers["ghealth-reason"] == reason
    (started,) = lines(caplog, "started")
    assert vars(started)["fields"]["probes"] == ["http://127.0.0.1:1/"]


async def test_with_custom_probes_alone_no_url_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """If all probes are custom, the line at startup has no URL."""
    caplog.set_level(logging.INFO)
    async with run(probes={"": FakeProbe()}):
        pass
    (started,) = lines(caplog, "started")
    assert "probes" not in started.getMessage()
    assert "15021" not in started.getMessage()


async def test_embedding_touches_neither_signals_nor_the_executor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """serve() sets no signal handler, and neither uses nor replaces the loop's executor."""

    def forbidden(*_: object, **__: object) -> Any:
        raise AssertionError("touched")

    async with target(answers(200)) as gateway:
        for name in ("signal", "set_wakeup_fd"):
            monkeypatch.setattr(signal, name, forbidden)
        for name in ("add_signal_handler", "run_in_executor", "set_default_executor"):
            monkeypatch.setattr(asyncio.get_running_loop(), name, forbidden)
        url = f"http://localhost:{gateway.port}/"
        async with run(listen="localhost:0", probe_url=url, drain_delay=0.1) as running:
            assert (await wire.call(running.port, wire.EMPTY_MESSAGE)).code == 0
            await running.ended(drains=True)
        monkeypatch.undo()


async def test_the_event_loop_runs_before_grpcs_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """The threads that gRPC starts have a lower priority; those of a program around it have not."""
    ended = threading.Event()
    grpcs, programs = (threading.Thread(target=ended.wait, daemon=True) for _ in range(2))

    def starting(thread: threading.Thread, function: Any) -> Any:
        def started(*args: Any, **options: Any) -> Any:
            thread.start()
            return function(*args, **options)

        return started

    monkeypatch.setattr(grpc.aio, "server", starting(grpcs, grpc.aio.server))
    sockets = starting(programs, listen.admin_sockets)  # called just after
    monkeypatch.setattr(serving_module, "admin_sockets", sockets)
    async with run():
        of = functools.partial(os.getpriority, os.PRIO_PROCESS)
        assert of(grpcs.native_id or 0) == min(19, of(0) + serving_module.GRPC_NICENESS)
        assert of(programs.native_id or 0) == of(0)
    serving_module._lower_priority([2**22])  # it has ended
    ended.set()


# What it logs.


async def test_a_path_that_is_not_recommended_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One log line names the path, however often it is checked."""
    async with target(answers(200)) as gateway, run(gateway) as running:
        for _ in range(3):
            await wire.call(running.port, wire.EMPTY_MESSAGE, path="/AWS.ALB/healthcheck")
    (line,) = lines(caplog, "path_not_recommended")
    assert " checks /AWS.ALB/healthcheck: " in line.getMessage()


@pytest.mark.parametrize(
    ("answer", "callers", "warnings"),
    [("auto", "grpc-", 0), ("code", "ELB-", 0), ("status", "grpc-", 1), ("auto", "grpc-,ELB-", 1)],
)
async def test_settings_that_give_up_the_promise_are_warned_of(
    caplog: pytest.LogCaptureFixture, answer: str, callers: str, warnings: int
) -> None:
    """A warning is logged at startup if an ALB would get OK from a gateway that is not ready."""
    async with run(answer=answer, status_callers=callers):
        pass
    found = [line.levelno for line in lines(caplog, "alb_answer_unsafe")]
    assert found == [logging.WARNING] * warnings


@pytest.mark.parametrize(("timeout", "warned"), [("5s", False), ("5001ms", True)])
async def test_a_long_timeout_of_the_probe_is_warned_of(
    caplog: pytest.LogCaptureFixture, timeout: str, warned: bool
) -> None:
    """3000, meant as milliseconds, is 50 minutes; a load balancer waits 5 s by default."""
    async with run(probe_timeout=timeout):
        pass
    found = [(line.levelno, line.getMessage()) for line in lines(caplog, "probe_timeout_long")]
    expected = (
        "a probe may take 5.001 s (GHEALTH_PROBE_TIMEOUT), longer than a load balancer waits by "
        "default, 5 s"
    )
    assert found == [(logging.WARNING, expected)] * warned


async def test_a_caller_that_goes_away_leaves_no_line_of_grpcs(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """grpc.aio's lines about an answer that cannot be sent are dropped, its others are kept."""
    async with run():
        for name in ("grpc._cython.cygrpc", "asyncio"):
            for error in (grpc.aio.InternalError("Failed execute_batch"), None, ValueError()):
                logging.getLogger(name).error("%s", error, exc_info=error)
    assert [record.getMessage() for record in caplog.records] == ["None", ""] * 2


# How it ends.


async def test_drain_reaches_every_caller_and_then_it_ends() -> None:
    """For DRAIN_DELAY all services but `liveness` are NOT_SERVING, then the server stops."""
    async with (
        target(answers(200)) as gateway,
        run(gateway, drain_delay=1, shutdown_grace=3600) as running,
    ):
        watching = running.stub.Watch(CHECK())
        assert (await watching.read()).status == 1
        ending = asyncio.create_task(running.ended(drains=True))
        assert (await watching.read()).status == 2
        assert await running.status() == 2
        assert await running.status("liveness") == 1
        assert await watching.code() is grpc.StatusCode.UNAVAILABLE
        await ending


async def test_without_drain_the_delay_is_skipped() -> None:
    """The stop skips DRAIN_DELAY, and an open Watch or a hanging gateway does not delay it."""
    hours: dict[str, Any] = {"probe_timeout": 3600, "drain_delay": 3600, "shutdown_grace": 3600}
    async with (
        target(is_silent) as gateway,
        target(is_silent) as other,
        run(gateway, services={"other": url_of(other)}, **hours) as running,
    ):
        watching = asyncio.create_task(running.stub.Watch(CHECK()).read())
        checking = running.stub.Check(CHECK(service="other"))
        while not (gateway.requests and other.requests):  # until both probes hang
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
        target(answers(200)) as gateway,
        run(gateway, shutdown_grace=3600) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        call: Any = channel.stream_stream(frames.REFLECTION)()
        await call.write(b"\x3a\x00")  # list_services
        assert b"grpc.health.v1.Health" in await call.read()
        await running.ended(drains=False)
        assert await call.code() is grpc.StatusCode.OK


async def test_a_hundred_watchers_learn_of_drain_at_once() -> None:
    """Every watcher gets NOT_SERVING within 100 ms of the signal, and no watch delays the end."""
    async with (
        target(answers(200)) as gateway,
        run(gateway, drain_delay=1, shutdown_grace=3600) as running,
        AsyncExitStack() as connections,
    ):
        stubs = [await connections.enter_async_context(asking(running.port)) for _ in range(5)]
        watching = [stub.Watch(CHECK()) for stub in stubs for _ in range(20)]
        for watch in watching:
            assert (await watch.read()).status == 1
        told = [asyncio.create_task(watch.read()) for watch in watching]
        ending = asyncio.create_task(running.ended(drains=True))
        taking = Stopwatch()
        assert [reply.status for reply in await asyncio.gather(*told)] == [2] * 100
        assert taking.seconds < 0.1
        await ending


class Stubborn:
    """A fake server, servicer and guard; it stops when its connections were cut `cuts` times."""

    def __init__(self, *, answering: bool, cuts: float) -> None:
        self.answering = answering
        self.cuts = cuts
        self.stopped = asyncio.Event()
        if not cuts:
            self.stopped.set()

    async def stop(self, _grace: float) -> None:
        await self.stopped.wait()

    def cut_all(self) -> None:
        self.cuts -= 1
        if self.cuts == 0:
            self.stopped.set()


@pytest.mark.parametrize(
    ("answering", "cuts", "seconds"),
    [
        (False, 0, 0),
        (True, 0, 0),
        (False, 1, 0.25),
        (False, 3, 0.45),
        (True, 1, 10.25),
        (False, 1e9, 5.25),
    ],
)
@in_virtual_time
async def test_connections_that_keep_the_server_from_stopping_are_cut(
    answering: bool, cuts: float, seconds: float
) -> None:
    """Connections are cut 0.25 s after the last answer or the grace; the stop ends 5 s later."""
    stubborn: Any = Stubborn(answering=answering, cuts=cuts)
    started = asyncio.get_running_loop().time()
    await serving_module._stop(stubborn, stubborn, stubborn, 10)
    took = asyncio.get_running_loop().time() - started
    assert took == pytest.approx(seconds, abs=0.11)


# What one client may use.


async def closed(port: int, sent: bytes) -> None:
    """Connect from a separate IP address, and wait until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
    writer.write(sent)
    with suppress(ConnectionResetError):
        while await reader.read(65536):
            pass
    writer.close()


async def test_a_path_that_is_not_utf_8_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """It is not served; for gRPC's own task alone, an error of decoding is not raised."""

    def decode() -> None:
        with pytest.raises(UnicodeDecodeError):
            b"\xff".decode()

    request = frames.hello() + frames.call(frames.block("/path"), 1, end=True)
    async with run(probes={"": FakeProbe()}) as running:
        for path in (b"/p\xffth", b"\xc3\x28\xf0\x9f", b"/\xed\xa0\x80x"):
            reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
            writer.write(request.replace(b"/path", path))
            async with asyncio.timeout(20):
                await reader.readuntil(b"grpc-status")
            writer.close()
            assert await running.status() == 1
        decode()
        await asyncio.to_thread(decode)
        with pytest.raises(UnicodeEncodeError):
            "\ud800".encode()
    assert codecs.lookup_error("strict") is codecs.strict_errors
    assert [record for record in caplog.records if record.exc_info] == []


async def test_a_header_that_is_not_utf_8_is_logged_by_nobody(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Any caller can send one, so it is not an error of ghealth's."""
    request = frames.hello() + frames.call(frames.block(frames.CHECK, [("name", "x")]), 1, end=True)
    async with run(probes={"": FakeProbe()}) as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(request.replace(b"\x04name", b"\x04n\xffme"))
        async with asyncio.timeout(20):
            await reader.readuntil(b"grpc-status")
        writer.close()
    assert [record for record in caplog.records if record.exc_info] == []


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


async def test_a_silent_connection_is_closed() -> None:
    """A connection that sends nothing is closed within 20 s, not after gRPC's default of 120 s."""
    async with run() as running, asyncio.timeout(20):
        await closed(running.port, b"")


async def test_an_idle_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The option has an effect: a connection without calls is closed after the idle time."""
    idle = "grpc.max_connection_idle_ms"
    options = dict(OPTIONS)
    assert idle in options
    monkeypatch.setattr(serving_module, "OPTIONS", tuple((options | {idle: 100}).items()))
    async with run() as running:
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
    """Checks are answered on a connection that has its maximum number of watches."""
    async with run() as running:
        request = CHECK(service="liveness")
        watching = [running.stub.Watch(request) for _ in range(MAX_WATCHES_PER_CONNECTION)]
        for watch in watching:
            assert (await watch.read()).status == 1
        checks = [running.status("liveness") for _ in range(RESERVED_STREAMS)]
        assert await asyncio.gather(*checks) == [1] * len(checks)
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
    async with run() as running:
        small, large = (
            running.stub.Check(CHECK(service="liveness"), metadata=[("x-flood", "x" * size)])
            for size in (3 * 1024, 5 * 1024)
        )
        assert await small.code() is grpc.StatusCode.OK
        assert await large.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_server_pings_its_clients() -> None:
    """A connection whose client does not answer a ping is closed after 30 s to 60 s."""
    options = dict(OPTIONS)
    alive = options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"]
    assert 30_000 <= alive <= 60_000


PING_FLOOR = "grpc.http2.min_ping_interval_without_data_ms"
PINGS = 12
TEMPO = 100
"""Real intervals are divided by this number, so that the tests take less time."""


async def is_cut_off(intervals: Sequence[float], **options: int) -> bool:
    """Ping an idle server at these intervals, and return whether it closes the connection."""
    server = grpc.aio.server(options=list(options.items()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(frames.hello() + frames.SETTINGS_ACK)
    received, kinds = bytearray(), Counter[int]()
    async with asyncio.timeout(30):
        for number, interval in enumerate(intervals, 1):
            writer.write(frames.frame(frames.Kind.PING, bytes(8)))
            while kinds[frames.Kind.PING] < number and not kinds[frames.Kind.GOAWAY]:
                received += await reader.read(1000)
                kinds.update(kind for kind, *_ in frames.taken(received))
            await asyncio.sleep(interval)
    writer.close()
    await server.stop(0)
    return bool(kinds[frames.Kind.GOAWAY])


async def test_a_client_that_pings_every_ten_seconds_is_not_cut_off() -> None:
    """Pings at grpc-go's shortest interval are accepted, even if jitter makes them early.

    The interval and the server's minimum are divided by `TEMPO`.
    """
    jitter = random.Random(1)
    intervals = [10 / TEMPO * jitter.uniform(0.8, 1.2) for _ in range(PINGS)]
    options = dict(OPTIONS)
    options[PING_FLOOR] //= TEMPO
    assert not await is_cut_off(intervals, **options)


async def test_a_client_that_floods_with_pings_is_cut_off() -> None:
    """The option has an effect: refused pings are accepted with a lower minimum interval."""
    options = dict(OPTIONS)
    assert await is_cut_off([0.02] * 6, **options)
    assert not await is_cut_off([0.02] * 6, **options | {PING_FLOOR: 1})
