import asyncio
import functools
import gc
import logging
import os
import random
import signal
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from types import SimpleNamespace
from typing import Any

import grpc
import h2.connection
import h2.events
import h2.settings
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth.probe import Probe, ProbeResult
from ghealth.server import guard, listen, servicer
from ghealth.server import listen as listening
from ghealth.server import serve as serving_module
from ghealth.server.limits import MAX_WATCHES_PER_CONNECTION, OPTIONS, RESERVED_STREAMS
from ghealth.server.listen import ListenError
from ghealth.server.serve import Ports, serve
from ghealth.settings import Settings, load
from tests.support import wire
from tests.support.peers import Target, answers, is_silent, nobody, target
from tests.support.stopwatch import Stopwatch
from tests.support.virtual import in_virtual_time

figures = logging.getLogger(__name__)
"""Logs measurements; `pytest --log-cli-level=info` shows them."""

CHECK = health_pb2.HealthCheckRequest
LIVENESS = health_pb2.HealthCheckRequest(service="liveness")


class Running:
    """A server that runs in this process, and the trigger that stops it."""

    def __init__(self) -> None:
        self.ports = Ports((), (), None)
        self.started = asyncio.Event()
        self.stop: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return self.ports.listen[0]

    def note(self, ports: Ports) -> None:
        self.ports = ports
        self.started.set()

    async def ended(self, *, drains: bool) -> float:
        """Stop the server, and return how many seconds that took."""
        started = time.monotonic()
        self.stop.set_result(drains)
        assert self.task is not None
        await self.task
        return time.monotonic() - started


def settings_of(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    defaults = {"LISTEN": "127.0.0.1:0", "ADMIN_LISTEN": "off"}
    for name, value in (defaults | variables).items():
        monkeypatch.setenv(f"GHEALTH_{name}", value)
    settings = load()
    assert isinstance(settings, Settings), settings
    return settings


Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    @asynccontextmanager
    async def running(
        probes: dict[str, Probe] | None = None, **variables: str
    ) -> AsyncGenerator[Running, None]:
        made = Running()

        async def trigger() -> bool:
            return await made.stop

        async with asyncio.timeout(60):
            made.task = asyncio.create_task(
                serve(
                    settings_of(monkeypatch, **variables),
                    shutdown_trigger=trigger,
                    on_started=made.note,
                    probes=probes,
                )
            )
            waiting = asyncio.create_task(made.started.wait())
            await asyncio.wait((made.task, waiting), return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if made.task.done():
                await made.task
            yield made
            if not made.stop.done():
                made.stop.set_result(False)
            await made.task

    return running


@asynccontextmanager
async def asking(port: int, host: str = "127.0.0.1") -> AsyncGenerator[Any, None]:
    # By default, the channels of a process share connections; this one must have a separate one.
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"{host}:{port}", options=options) as channel:
        yield health_pb2_grpc.HealthStub(channel)


def url_of(gateway: Target) -> str:
    return f"http://127.0.0.1:{gateway.port}/"


async def test_the_parts_work_together(run: Run) -> None:
    """Each service has its own target, and reflection is enabled unless it is disabled."""
    async with target(answers(200)) as well, target(answers(503)) as sick:
        services = f'{{"other": "{url_of(sick)}"}}'
        async with run(PROBE_URL=url_of(well), SERVICES=services) as running:
            async with asking(running.port) as stub:
                assert (await stub.Check(CHECK())).status == 1
                assert (await stub.Check(CHECK(service="other"))).status == 2
                assert (await stub.Check(LIVENESS)).status == 1
            assert await reflects(running.port)
    async with run(REFLECTION="false") as running:
        assert not await reflects(running.port)


async def reflects(port: int) -> bool:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        call: Any = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        )()
        await call.done_writing()
        return await call.code() is grpc.StatusCode.OK


async def test_not_serving_until_the_first_good_answer(run: Run) -> None:
    """Before the gateway listens, ghealth answers already, and with NOT_SERVING."""
    with nobody() as port:
        settings = {"PROBE_URL": f"http://127.0.0.1:{port}/"}
        async with run(**settings) as running, asking(running.port) as stub:
            assert (await stub.Check(CHECK())).status == 2


async def test_twenty_callers_cause_at_most_two_probes(run: Run) -> None:
    """Simultaneous callers share probes."""
    async with (
        target(answers(200)) as gateway,
        run(PROBE_URL=url_of(gateway), CACHE_TTL="60") as running,
        asking(running.port) as stub,
    ):
        replies = await asyncio.gather(*(stub.Check(CHECK()) for _ in range(20)))
        assert {reply.status for reply in replies} == {1}
    assert len(gateway.requests) <= 2


async def test_it_listens_on_every_address(run: Run) -> None:
    """All addresses in LISTEN answer, port 0 is a free port, and `[::]` includes IPv4."""
    async with run(LISTEN="127.0.0.1:0,[::1]:0,[::]:0") as running:
        one, two, three = running.ports.listen
        assert running.ports == Ports((one, two, three), (), None)
        for host, port in [
            ("127.0.0.1", one),
            ("[::1]", two),
            ("[::1]", three),
            ("127.0.0.1", three),
        ]:
            async with asking(port, host) as stub:
                assert (await stub.Check(LIVENESS)).status == 1


async def test_a_taken_port_is_a_mistake(run: Run) -> None:
    """A port in use is an error with its cause."""
    async with target(is_silent) as other:
        with pytest.raises(ListenError) as raised:
            async with run(LISTEN=f"127.0.0.1:{other.port}"):
                pass
    assert str(raised.value) == f"cannot listen on 127.0.0.1:{other.port}: Address already in use"


async def test_two_servers_do_not_share_a_port(run: Run) -> None:
    """A second ghealth cannot listen on the same port."""
    async with run() as running:
        with pytest.raises(ListenError, match="Address already in use"):
            async with run(LISTEN=f"127.0.0.1:{running.port}"):
                pass


async def test_grpc_itself_does_not_share_a_port(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port of another ghealth cannot be bound by gRPC, even without the check before it."""
    async with run() as running:
        trial = SimpleNamespace(getsockname=lambda: ("127.0.0.1", running.port), close=lambda: None)
        monkeypatch.setattr(listen, "bind", lambda _: [trial])
        with pytest.raises(ListenError) as raised:
            async with run(LISTEN=f"127.0.0.1:{running.port}"):
                pass
        assert str(raised.value) == f"cannot listen on 127.0.0.1:{running.port}"


async def test_embedded_mistakes_are_a_value_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text of the exception has the lines that the command prints; nothing is opened."""
    monkeypatch.setenv("SSL_CERT_FILE", "/gone")
    settings = Settings.model_validate({"listen": "192.0.2.1:1", "probe_url": "https://gw/"})
    with pytest.raises(ValueError, match="reserved") as raised:
        await serve(settings, shutdown_trigger=asyncio.Event().wait, probes={"liveness": Own()})
    assert [line.split(":")[0] for line in str(raised.value).splitlines()] == [
        "probes",
        "SSL_CERT_FILE",
    ]


async def test_drain_reaches_every_caller_and_then_it_ends(run: Run) -> None:
    """For DRAIN_DELAY all services but `liveness` are NOT_SERVING, then the server stops."""
    async with (
        target(answers(200)) as gateway,
        run(PROBE_URL=url_of(gateway), DRAIN_DELAY="2", SHUTDOWN_GRACE="20") as running,
        asking(running.port) as stub,
    ):
        watching = stub.Watch(CHECK())
        assert (await watching.read()).status == 1
        ending = asyncio.create_task(running.ended(drains=True))
        assert (await watching.read()).status == 2
        assert (await stub.Check(CHECK())).status == 2
        assert (await stub.Check(LIVENESS)).status == 1
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await watching.read()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
        assert 2 <= await ending < 20


async def test_without_drain_the_delay_is_skipped(run: Run) -> None:
    """The stop skips DRAIN_DELAY, and an open Watch or a hanging gateway does not delay it."""
    async with target(is_silent) as gateway, target(is_silent) as other:
        settings = {
            "PROBE_URL": url_of(gateway),
            "SERVICES": f'{{"other": "{url_of(other)}"}}',
            "PROBE_TIMEOUT": "50",
        }
        async with (
            run(DRAIN_DELAY="20", SHUTDOWN_GRACE="20", **settings) as running,
            asking(running.port) as stub,
        ):
            watching = asyncio.create_task(stub.Watch(CHECK()).read())
            checking = stub.Check(CHECK(service="other"))
            while not (gateway.requests and other.requests):  # until both probes hang
                await stub.Check(LIVENESS)
            assert await running.ended(drains=False) < 20
            assert (await checking).status == 2
            assert (await watching).status == 2


async def test_a_silent_connection_is_closed(run: Run) -> None:
    """A connection that sends nothing is closed within 20 s, not after gRPC's default of 120 s."""
    async with run() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        started = time.monotonic()
        while await reader.read(100):
            pass
        assert time.monotonic() - started < 20
        writer.close()


PING_FLOOR = "grpc.http2.min_ping_interval_without_data_ms"
PINGS = 12
TEMPO = 100
"""Real intervals are divided by this number, so that the tests take less time."""


async def is_cut_off(options: dict[str, int], intervals: Sequence[float]) -> bool:
    """Ping an idle server at these intervals, and return whether it closes the connection."""
    grpc_server = grpc.aio.server(options=list(options.items()))
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    cut_off = False
    async with asyncio.timeout(30):
        for number, interval in enumerate(intervals):
            connection.ping(number.to_bytes(8, "big"))
            writer.write(connection.data_to_send())
            answered = False
            while not (answered or cut_off):
                events = connection.receive_data(await reader.read(1000))
                answered = any(isinstance(event, h2.events.PingAckReceived) for event in events)
                cut_off = any(isinstance(event, h2.events.ConnectionTerminated) for event in events)
            if cut_off:
                break
            await asyncio.sleep(interval)
    writer.close()
    await grpc_server.stop(0)
    return cut_off


async def test_a_client_that_pings_every_ten_seconds_is_not_cut_off() -> None:
    """Pings at grpc-go's shortest interval are accepted, even if jitter makes them early.

    The interval and the server's minimum are divided by `TEMPO`.
    """
    jitter = random.Random(1)
    intervals = [10 / TEMPO * jitter.uniform(0.8, 1.2) for _ in range(PINGS)]
    options = dict(OPTIONS)
    options[PING_FLOOR] //= TEMPO
    assert not await is_cut_off(options, intervals)


async def test_a_client_that_floods_with_pings_is_cut_off() -> None:
    """The option has an effect: refused pings are accepted with a lower minimum interval."""
    options = dict(OPTIONS)
    assert await is_cut_off(options, [0.02] * 6)
    assert not await is_cut_off(options | {PING_FLOOR: 1}, [0.02] * 6)


@pytest.mark.parametrize(
    ("size", "code"),
    [
        (1024, grpc.StatusCode.NOT_FOUND),
        (16 * 1024 + 1, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_message_has_a_bounded_size(run: Run, size: int, code: grpc.StatusCode) -> None:
    """A request of more than 16 KiB is refused before ghealth reads it."""
    async with run() as running, asking(running.port) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(CHECK(service="x" * size))
    assert raised.value.code() is code


@pytest.mark.parametrize(("size", "refused"), [(3 * 1024, False), (5 * 1024, True)])
async def test_headers_have_a_bounded_size(run: Run, size: int, refused: bool) -> None:
    """3 KiB of headers are accepted, 5 KiB are refused."""
    async with run() as running, asking(running.port) as stub:
        call = stub.Check(LIVENESS, metadata=[("x-flood", "x" * size)])
        code = await call.code()
    assert code is (grpc.StatusCode.RESOURCE_EXHAUSTED if refused else grpc.StatusCode.OK)


async def test_a_connection_full_of_watches_has_room_for_a_check(run: Run) -> None:
    """Checks are answered on a connection that has its maximum number of watches."""
    async with run() as running, asking(running.port) as stub:
        watching = [stub.Watch(LIVENESS) for _ in range(MAX_WATCHES_PER_CONNECTION)]
        for watch in watching:
            assert (await watch.read()).status == 1
        checks = [stub.Check(LIVENESS) for _ in range(RESERVED_STREAMS)]
        assert [reply.status for reply in await asyncio.gather(*checks)] == [1] * len(checks)
        for watch in watching:
            watch.cancel()


async def test_an_idle_connection_is_closed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option has an effect: a connection without calls is closed after the idle time."""
    idle = "grpc.max_connection_idle_ms"
    options = dict(OPTIONS)
    assert idle in options
    monkeypatch.setattr(serving_module, "OPTIONS", tuple((options | {idle: 100}).items()))
    async with run() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        connection = h2.connection.H2Connection()
        connection.initiate_connection()
        writer.write(connection.data_to_send())
        while not reader.at_eof():
            await reader.read(1000)
        writer.close()


@pytest.mark.parametrize("watchers", [0, 100])
async def test_a_hundred_watchers_learn_of_drain_at_once(run: Run, watchers: int) -> None:
    """Every watcher gets NOT_SERVING within 100 ms of the signal, and no watch delays the end."""
    async with (
        target(answers(200)) as gateway,
        run(PROBE_URL=url_of(gateway), DRAIN_DELAY="1", SHUTDOWN_GRACE="10") as running,
        AsyncExitStack() as connections,
    ):
        stubs = [await connections.enter_async_context(asking(running.port)) for _ in range(5)]
        watching = [stub.Watch(CHECK()) for stub in stubs for _ in range(watchers // len(stubs))]
        for watch in watching:
            assert (await watch.read()).status == 1
        told = [asyncio.create_task(watch.read()) for watch in watching]
        ending = asyncio.create_task(running.ended(drains=True))
        taking = Stopwatch()
        assert [reply.status for reply in await asyncio.gather(*told)] == [2] * watchers
        told_in, wall = taking.seconds, taking.on_the_wall
        took = await ending
        figures.info("NOT_SERVING to %d watchers in %.3f s, end after %.3f s", watchers, wall, took)
        assert told_in < 0.1
        assert 1 <= took < 10


async def refuses_or_answers(port: int, user_agent: str) -> tuple[int, int]:
    """Check with a user agent; return the gRPC code, and the status or 0 without a message."""
    reply = await wire.call(port, wire.EMPTY_MESSAGE, headers=[("user-agent", user_agent)])
    return reply.code, reply.data[-1] if reply.data else 0


@pytest.mark.parametrize(
    ("variables", "user_agent", "expected"),
    [
        ({}, "grpc-go/1", (0, 2)),
        ({}, "ELB-HealthChecker/2.0", (14, 0)),
        ({"ANSWER": "code"}, "grpc-go/1", (14, 0)),
        ({"ANSWER": "status"}, "ELB-HealthChecker/2.0", (0, 2)),
        ({"STATUS_CALLERS": "ELB-"}, "ELB-HealthChecker/2.0", (0, 2)),
        ({"STATUS_CALLERS": "ELB-"}, "grpc-go/1", (14, 0)),
        ({"PROBE_SUCCESS_CODES": "404"}, "grpc-go/1", (0, 1)),
    ],
)
async def test_the_settings_of_answers_reach_the_server(
    run: Run, variables: dict[str, str], user_agent: str, expected: tuple[int, int]
) -> None:
    """Each of these settings changes the answer while the gateway answers 404."""
    async with target(answers(404)) as gateway, run(PROBE_URL=url_of(gateway), **variables) as ran:
        assert await refuses_or_answers(ran.port, user_agent) == expected


async def test_the_settings_of_the_probe_reach_the_gateway(run: Run) -> None:
    """The probe sends PROBE_HEADERS, and a watched service is probed every WATCH_INTERVAL."""
    async with (
        target(answers(200)) as gateway,
        run(
            PROBE_URL=url_of(gateway),
            PROBE_HEADERS='{"X-Key": "k"}',
            WATCH_INTERVAL="0.01",
            CACHE_TTL="0",
        ) as running,
        asking(running.port) as stub,
    ):
        watching = stub.Watch(CHECK())
        await watching.read()
        while len(gateway.requests) < 100:
            await stub.Check(LIVENESS)
        watching.cancel()
    assert b"X-Key: k" in gateway.requests[0]


async def test_max_watches_reaches_the_server(run: Run) -> None:
    """With MAX_WATCHES=0 a Watch is refused and a Check is answered."""
    async with run(MAX_WATCHES="0") as running, asking(running.port) as stub:
        assert (await stub.Check(LIVENESS)).status == 1
        code = await stub.Watch(LIVENESS).code()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_hanging_look_up_does_not_use_up_the_threads(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many hanging look-ups for one service do not prevent the look-up for another service."""
    real, hung_up = socket.getaddrinfo, threading.Event()

    def look_up(host: Any, *rest: Any, **options: Any) -> Any:
        needs_name_server = not options.get("flags", 0) & socket.AI_NUMERICHOST
        if host == "slow.example" and needs_name_server:
            hung_up.wait(60)
        return real("127.0.0.1" if host == "fast.example" else host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with target(answers(200)) as gateway:
        services = (
            f'{{"slow": "http://slow.example/", "fast": "http://fast.example:{gateway.port}/"}}'
        )
        async with (
            run(SERVICES=services, PROBE_TIMEOUT="0.2", CACHE_TTL="0") as running,
            asking(running.port) as stub,
        ):
            for _ in range(12):
                assert (await stub.Check(CHECK(service="slow"))).status == 2
            while (await stub.Check(CHECK(service="fast"))).status != 1:
                pass  # a busy machine may need several probes
            hung_up.set()


async def test_a_look_up_that_fails_too_late_is_no_bug(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A look-up that fails after the probe has timed out causes no error in the log."""
    hung_up, failed = threading.Event(), threading.Event()

    def look_up(*_: Any, flags: int = 0, **__: Any) -> Any:
        if flags & socket.AI_NUMERICHOST:
            raise socket.gaierror
        hung_up.wait(60)
        failed.set()
        raise socket.gaierror

    async with run(PROBE_URL="http://slow.example/", PROBE_TIMEOUT="0.1") as running:
        monkeypatch.setattr(socket, "getaddrinfo", look_up)
        reply = await wire.call(running.port, wire.EMPTY_MESSAGE)
        assert reply.headers["ghealth-reason"] == "no answer within 0.1 s"
        hung_up.set()
        await asyncio.to_thread(failed.wait)
        monkeypatch.undo()
    gc.collect()
    await asyncio.sleep(0)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


def test_the_server_pings_its_clients() -> None:
    """A connection whose client does not answer a ping is closed after 30 s to 60 s."""
    options = dict(OPTIONS)
    alive = options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"]
    assert 30_000 <= alive <= 60_000


async def test_a_step_of_the_wall_clock_changes_no_freshness(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of a day forwards or backwards makes no result stale, and keeps none fresh."""
    real = time.time
    async with target(answers(200)) as gateway:
        async with (
            run(PROBE_URL=url_of(gateway), CACHE_TTL="60") as running,
            asking(running.port) as stub,
        ):
            for step in (0, 86_400, -86_400):
                monkeypatch.setattr(time, "time", lambda step=step: real() + step)
                assert (await stub.Check(CHECK())).status == 1
            assert len(gateway.requests) == 1
        async with (
            run(PROBE_URL=url_of(gateway), CACHE_TTL="0.1") as running,
            asking(running.port) as stub,
        ):
            await stub.Check(CHECK())
            monkeypatch.setattr(time, "time", lambda: real() - 2 * 86_400)
            while len(gateway.requests) < 3:
                await stub.Check(CHECK())


async def test_an_open_reflection_stream_does_not_lengthen_the_end(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A silent reflection stream is ended at the stop, even if SHUTDOWN_GRACE is an hour."""
    monkeypatch.setattr(servicer, "REFLECTION_TIMEOUT", 3600)
    async with (
        target(answers(200)) as gateway,
        run(PROBE_URL=url_of(gateway), SHUTDOWN_GRACE="3600") as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):
        call: Any = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
        )()
        await call.write(b"\x3a\x00")  # list_services
        assert b"grpc.health.v1.Health" in await call.read()
        assert await running.ended(drains=False) < 20
        assert await call.code() is grpc.StatusCode.OK


def lines(caplog: pytest.LogCaptureFixture, event: str) -> list[logging.LogRecord]:
    return [record for record in caplog.records if getattr(record, "event", "") == event]


@pytest.mark.parametrize("path", ["/AWS.ALB/healthcheck", "/"])
async def test_a_path_that_is_not_recommended_is_logged_once(
    run: Run, caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """One log line names the path, and recommends a path and a matcher for the target group."""
    async with target(answers(200)) as gateway, run(PROBE_URL=url_of(gateway)) as running:
        for _ in range(3):
            await wire.call(running.port, wire.EMPTY_MESSAGE, path=path)
    (line,) = lines(caplog, "path_not_recommended")
    assert f" checks {path}: " in line.getMessage()
    assert "/grpc.health.v1.Health/Check with the matcher 0" in line.getMessage()


@pytest.mark.parametrize(
    ("variables", "warned"),
    [
        ({}, False),
        ({"ANSWER": "code", "STATUS_CALLERS": "ELB-"}, False),
        ({"ANSWER": "status"}, True),
        ({"STATUS_CALLERS": "grpc-,ELB-HealthChecker"}, True),
    ],
)
async def test_settings_that_give_up_the_promise_are_warned_of(
    run: Run, caplog: pytest.LogCaptureFixture, variables: dict[str, str], warned: bool
) -> None:
    """A warning is logged at startup if an ALB would get OK from a gateway that is not ready."""
    async with run(**variables):
        pass
    assert [line.levelno for line in lines(caplog, "alb_answer_unsafe")] == (
        [logging.WARNING] if warned else []
    )


@pytest.mark.parametrize(("timeout", "warned"), [("5s", False), ("5001ms", True)])
async def test_a_long_timeout_of_the_probe_is_warned_of(
    run: Run, caplog: pytest.LogCaptureFixture, timeout: str, warned: bool
) -> None:
    """3000, meant as milliseconds, is 50 minutes; a load balancer waits 5 s by default."""
    async with run(PROBE_TIMEOUT=timeout):
        pass
    found = [(line.levelno, line.getMessage()) for line in lines(caplog, "probe_timeout_long")]
    expected = (
        "a probe may take 5.001 s (GHEALTH_PROBE_TIMEOUT), longer than a load balancer waits by "
        "default, 5 s"
    )
    assert found == ([(logging.WARNING, expected)] if warned else [])


async def test_a_caller_that_goes_away_leaves_no_line_of_grpcs(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """grpc.aio's lines about an answer that cannot be sent are dropped, its others are kept."""
    async with run():
        for name in ("grpc._cython.cygrpc", "asyncio"):
            for error in (grpc.aio.InternalError("Failed execute_batch"), None, ValueError()):
                logging.getLogger(name).error("%s", error, exc_info=error)
    assert [record.getMessage() for record in caplog.records] == ["None", ""] * 2


async def test_the_event_loop_runs_before_grpcs_threads(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The threads that gRPC starts have a lower priority; those of a program around it have not."""
    ended = threading.Event()
    threads = [threading.Thread(target=ended.wait, daemon=True) for _ in range(2)]
    create, bind = grpc.aio.server, listening.admin_sockets

    def server(**options: Any) -> Any:
        threads[0].start()
        return create(**options)

    def sockets(settings: Settings) -> Any:
        threads[1].start()
        return bind(settings)

    monkeypatch.setattr(grpc.aio, "server", server)
    monkeypatch.setattr(serving_module, "admin_sockets", sockets)
    async with run():
        of = functools.partial(os.getpriority, os.PRIO_PROCESS)
        lower = min(19, of(0) + serving_module.GRPC_NICENESS)
        assert [of(thread.native_id or 0) for thread in threads] == [lower, of(0)]
    serving_module._lower_priority([2**22])  # it has ended
    ended.set()


class Greedy:
    """A client, with a separate IP address, to which no answer can be sent: its window is 0."""

    def __init__(self) -> None:
        self.connection = h2.connection.H2Connection()
        self.streams: list[int] = []

    async def connect(self, port: int) -> None:
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", port, local_addr=("127.0.0.2", 0)
        )
        self.connection.initiate_connection()
        self.connection.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 0})
        self._send()

    def call(self, *, ends: bool = True) -> None:
        stream = self.connection.get_next_available_stream_id()
        self.connection.send_headers(stream, list(wire.USUAL))
        if ends:
            self.connection.send_data(stream, wire.EMPTY_MESSAGE, end_stream=True)
        self.streams.append(stream)
        self._send()

    async def closed(self) -> bytes:
        """Wait until the server closes the connection, and return the data that it sent."""
        found = b""
        with suppress(ConnectionResetError):
            while received := await self.reader.read(65536):
                found += received
        self.writer.close()
        return found

    def _send(self) -> None:
        self.writer.write(self.connection.data_to_send())


async def test_a_flood_of_calls_costs_its_sender_the_connection(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A client with too many open calls is cut, and another client's Watch stays open."""
    monkeypatch.setattr(guard, "MAX_CALLS", 20)
    monkeypatch.setattr(servicer, "MESSAGE_TIMEOUT", 3600)
    greedy = Greedy()
    async with run(MAX_WATCHES="1") as running, asking(running.port) as stub:
        watching = stub.Watch(LIVENESS)
        assert (await watching.read()).status == 1
        await greedy.connect(running.port)
        for _ in range(30):
            greedy.call(ends=False)
        await greedy.closed()
        assert (await stub.Check(LIVENESS)).status == 1
        assert not watching.done()
        watching.cancel()
    (line,) = lines(caplog, "connections_cut")
    assert line.getMessage() == "cut 1 connections of 127.0.0.2: too many calls"


class Stubborn:
    """A fake server, servicer and guard; it stops when its connections were cut `cuts` times."""

    def __init__(self, *, answering: bool = False, cuts: float = 0) -> None:
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
        (False, 0, 0.0),
        (True, 0, 0.0),
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


class Own:
    """A custom probe of a program that calls serve()."""

    def __init__(self, *, ready: bool = True, raises: bool = False, hangs: bool = False) -> None:
        self.result = ProbeResult.because("disk is full", ready=ready)
        self.raises = raises
        self.hangs = hangs

    async def __call__(self) -> ProbeResult:
        if self.raises:
            raise ZeroDivisionError
        if self.hangs:
            await asyncio.Event().wait()
        return self.result


async def test_custom_probes(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Custom probes replace those of the settings, add services, and have the same timeout."""
    caplog.set_level(logging.INFO)
    probes: dict[str, Probe] = {
        "disk": Own(ready=False),
        "": Own(),
        "bug": Own(raises=True),
        "slow": Own(hangs=True),
    }
    services = '{"other": "http://127.0.0.1:1/"}'
    async with run(probes=probes, SERVICES=services, PROBE_TIMEOUT="0.5") as running:
        for service, code, reason in [
            ("", 0, None),
            ("disk", 14, "disk is full"),
            ("bug", 14, "internal error"),
            ("slow", 14, "no answer within 0.5 s"),
            ("other", 14, "connection refused"),
        ]:
            data = wire.framed(CHECK(service=service).SerializeToString())
            reply = await wire.call(running.port, data)
            assert (reply.code, reply.headers.get("ghealth-reason")) == (code, reason)
    (started,) = lines(caplog, "started")
    assert vars(started)["fields"]["probes"] == ["http://127.0.0.1:1/"]


async def test_with_custom_probes_alone_no_url_is_logged(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    """If all probes are custom, the line at startup has no URL."""
    caplog.set_level(logging.INFO)
    async with run(probes={"": Own()}):
        pass
    (started,) = lines(caplog, "started")
    assert "probes" not in started.getMessage()
    assert "15021" not in started.getMessage()


async def test_embedding_touches_neither_signals_nor_the_executor(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """serve() sets no signal handler, and neither uses nor replaces the loop's executor."""
    loop = asyncio.get_running_loop()

    def forbidden(*_: object, **__: object) -> Any:
        raise AssertionError("touched")

    async with target(answers(200)) as gateway:
        monkeypatch.setattr(signal, "signal", forbidden)
        monkeypatch.setattr(signal, "set_wakeup_fd", forbidden)
        for name in ("add_signal_handler", "run_in_executor", "set_default_executor"):
            monkeypatch.setattr(loop, name, forbidden)
        url = f"http://localhost:{gateway.port}/"
        async with run(LISTEN="localhost:0", PROBE_URL=url, DRAIN_DELAY="0.1") as running:
            assert (await wire.call(running.port, wire.EMPTY_MESSAGE)).code == 0
            await running.ended(drains=True)
        monkeypatch.undo()


async def test_a_free_admin_port_is_reported(run: Run) -> None:
    """With port 0, `on_started` gets the number of the admin port."""
    async with run(ADMIN_LISTEN="127.0.0.1:0") as running:
        assert running.ports.admin not in (None, 0)
