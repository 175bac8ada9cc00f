import asyncio
import logging
import socket
import threading
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import h2.connection
import h2.events
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth import server
from ghealth.address import Address
from ghealth.environment import load
from ghealth.server import ListenError, serve
from ghealth.settings import Settings
from tests.support import wire
from tests.support.peers import Target, answers, is_silent, nobody, target
from tests.support.stopwatch import Stopwatch

figures = logging.getLogger(__name__)
"""Shown by `pytest --log-cli-level=info`."""

CHECK = health_pb2.HealthCheckRequest
LIVENESS = health_pb2.HealthCheckRequest(service="liveness")


class Running:
    """A server under way in this process, and the trigger that stops it."""

    def __init__(self) -> None:
        self.ports: list[int] = []
        self.started = asyncio.Event()
        self.stop: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self.task: asyncio.Task[None] | None = None

    @property
    def port(self) -> int:
        return self.ports[0]

    def note(self, ports: Any) -> None:
        self.ports = list(ports)
        self.started.set()

    async def ended(self, *, drains: bool) -> float:
        """Pull the trigger, and tell how long the end took."""
        started = time.monotonic()
        self.stop.set_result(drains)
        assert self.task is not None
        await self.task
        return time.monotonic() - started


def settings_of(monkeypatch: pytest.MonkeyPatch, **variables: str) -> Settings:
    for name, value in ({"LISTEN": "127.0.0.1:0"} | variables).items():
        monkeypatch.setenv(f"GHEALTH_{name}", value)
    settings = load()
    assert isinstance(settings, Settings), settings
    return settings


Run = Callable[..., Any]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    @asynccontextmanager
    async def running(**variables: str) -> AsyncGenerator[Running, None]:
        made = Running()

        async def trigger() -> bool:
            return await made.stop

        async with asyncio.timeout(60):
            made.task = asyncio.create_task(
                serve(
                    settings_of(monkeypatch, **variables),
                    shutdown_trigger=trigger,
                    on_started=made.note,
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
    async with grpc.aio.insecure_channel(f"{host}:{port}") as channel:
        yield health_pb2_grpc.HealthStub(channel)


def url_of(gateway: Target) -> str:
    return f"http://127.0.0.1:{gateway.port}/"


async def test_the_parts_work_together(run: Run) -> None:
    """Each service asks its own target, and reflection is on unless switched off."""
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
    """Trap 10: it listens and answers before the gateway does, and never with SERVING."""
    with nobody() as port:
        settings = {"PROBE_URL": f"http://127.0.0.1:{port}/"}
        async with run(**settings) as running, asking(running.port) as stub:
            assert (await stub.Check(CHECK())).status == 2


async def test_twenty_callers_cause_at_most_two_attempts(run: Run) -> None:
    """Callers that come together share the attempts."""
    async with (
        target(answers(200)) as gateway,
        run(PROBE_URL=url_of(gateway), CACHE_TTL="60") as running,
        asking(running.port) as stub,
    ):
        replies = await asyncio.gather(*(stub.Check(CHECK()) for _ in range(20)))
        assert {reply.status for reply in replies} == {1}
    assert len(gateway.requests) <= 2


async def test_it_listens_on_every_address(run: Run) -> None:
    """Several addresses, free ports among them, all answer; `[::]` answers on IPv4 too."""
    async with run(LISTEN="127.0.0.1:0,[::1]:0,[::]:0") as running:
        one, two, three = running.ports
        for host, port in [
            ("127.0.0.1", one),
            ("[::1]", two),
            ("[::1]", three),
            ("127.0.0.1", three),
        ]:
            async with asking(port, host) as stub:
                assert (await stub.Check(LIVENESS)).status == 1


@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "0.0.0.0"),
        ("127.0.0.1", "[::]"),
        ("127.0.0.1", "localhost"),
        ("::1", "[::1]"),
        ("::1", "[::]"),
    ],
)
async def test_a_taken_port_is_a_mistake(run: Run, held: str, wanted: str) -> None:
    """Trap 5: no port is shared, nor half of a name's or wildcard's addresses settled for."""
    async with target(is_silent, host=held) as other:
        with pytest.raises(ListenError) as raised:
            async with run(LISTEN=f"{wanted}:{other.port}"):
                pass
    assert str(raised.value) == (f"cannot listen on {wanted}:{other.port}: Address already in use")


async def test_two_servers_do_not_share_a_port(run: Run) -> None:
    """Trap 5: a second ghealth on the same port is refused."""
    async with run() as running:
        with pytest.raises(ListenError, match="Address already in use"):
            async with run(LISTEN=f"127.0.0.1:{running.port}"):
                pass


async def test_what_grpc_refuses_is_a_mistake_too(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port taken between the trial and gRPC's own bind ends in the same way."""
    monkeypatch.setattr(server, "_try_to_bind", lambda _: None)
    async with target(is_silent) as other:
        with pytest.raises(ListenError) as raised:
            async with run(LISTEN=f"127.0.0.1:{other.port}"):
                pass
    assert str(raised.value) == f"cannot listen on 127.0.0.1:{other.port}"


async def test_an_address_of_another_machine_is_a_mistake(run: Run) -> None:
    """What is not this machine's, or no name at all, is told with its reason."""
    with pytest.raises(ListenError, match=r"192\.0\.2\.1:25021: Cannot assign"):
        async with run(LISTEN="192.0.2.1:25021"):
            pass

    with pytest.raises(ListenError, match=r"cannot listen on gateway\.invalid:25021: "):
        async with run(LISTEN="gateway.invalid:25021"):
            pass


def test_a_node_without_ipv6_is_tried_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel has no IPv6, `[::]` is tried as gRPC will bind it: on IPv4."""
    real = socket.socket

    def without_ipv6(family: int, *rest: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(97, "Address family not supported by protocol")
        return real(family, *rest)

    with real() as holder:
        holder.bind(("0.0.0.0", 0))
        holder.listen()
        port = holder.getsockname()[1]
        monkeypatch.setattr(socket, "socket", without_ipv6)
        with pytest.raises(ListenError, match="Address already in use"):
            server._try_to_bind(Address("::", port))
    server._try_to_bind(Address("::", port))
    with pytest.raises(ListenError, match="not supported"):
        server._try_to_bind(Address("::1", port))


async def test_drain_says_so_to_everyone_and_then_ends(run: Run) -> None:
    """After the trigger: NOT_SERVING to all but `liveness` for DRAIN_DELAY, then the end."""
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
    """Trap 6: an open Watch and a hanging gateway lengthen neither the delay nor the grace."""
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
            while not (gateway.requests and other.requests):  # until both hang
                await stub.Check(LIVENESS)
            assert await running.ended(drains=False) < 20
            assert (await checking).status == 2
            assert (await watching).status == 2


async def test_a_silent_connection_is_closed(run: Run) -> None:
    """Trap 16: who connects and says nothing is let go after seconds, not after two minutes."""
    async with run() as running:
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        started = time.monotonic()
        while await reader.read(100):
            pass
        assert time.monotonic() - started < 20
        writer.close()


PING_FLOOR = "grpc.http2.min_ping_interval_without_data_ms"


async def told_to_calm_down(options: list[tuple[str, int]], pings: int, every: float) -> bool:
    """Ping an idle server, and tell whether it had enough of it."""
    grpc_server = grpc.aio.server(options=options)
    port = grpc_server.add_insecure_port("127.0.0.1:0")
    await grpc_server.start()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    enough = False
    async with asyncio.timeout(10):
        for number in range(pings):
            connection.ping(number.to_bytes(8, "big"))
            writer.write(connection.data_to_send())
            answered = False
            while not (answered or enough):
                events = connection.receive_data(await reader.read(1000))
                answered = any(isinstance(event, h2.events.PingAckReceived) for event in events)
                enough = any(isinstance(event, h2.events.ConnectionTerminated) for event in events)
            if enough:
                break
            await asyncio.sleep(every)
    writer.close()
    await grpc_server.stop(0)
    return enough


async def test_the_ping_floor_is_the_one_that_works() -> None:
    """Trap 17: the option's name is read by gRPC: with a low floor, frequent pings are welcome."""
    options = dict(server.options(100))
    assert await told_to_calm_down(list(options.items()), pings=6, every=0.02)
    low = options | {PING_FLOOR: 10}
    assert PING_FLOOR in options
    assert not await told_to_calm_down(list(low.items()), pings=6, every=0.02)


@pytest.mark.parametrize(
    ("size", "code"),
    [
        (1024, grpc.StatusCode.NOT_FOUND),
        (16 * 1024 + 1, grpc.StatusCode.RESOURCE_EXHAUSTED),
    ],
)
async def test_a_message_has_a_bounded_size(run: Run, size: int, code: grpc.StatusCode) -> None:
    """A request that is no name of a service is refused before it is taken in."""
    async with run() as running, asking(running.port) as stub:
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await stub.Check(CHECK(service="x" * size))
    assert raised.value.code() is code


@pytest.mark.parametrize(("size", "refused"), [(4 * 1024, False), (17 * 1024, True)])
async def test_headers_have_a_bounded_size(run: Run, size: int, refused: bool) -> None:
    """A few KiB of headers are taken, a flood of them is refused."""
    async with run() as running, asking(running.port) as stub:
        call = stub.Check(LIVENESS, metadata=[("x-flood", "x" * size)])
        code = await call.code()
    assert code is (grpc.StatusCode.RESOURCE_EXHAUSTED if refused else grpc.StatusCode.OK)


async def test_a_connection_full_of_watches_has_room_for_a_check(run: Run) -> None:
    """Trap 18: with all watches of MAX_WATCHES on one connection, a Check on it is answered."""
    async with run(MAX_WATCHES="120") as running, asking(running.port) as stub:
        watching = [stub.Watch(LIVENESS) for _ in range(120)]
        for watch in watching:
            assert (await watch.read()).status == 1
        assert (await stub.Check(LIVENESS)).status == 1
        for watch in watching:
            watch.cancel()


async def test_an_idle_connection_is_let_go(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The option's name is read by gRPC: a connection without calls ends after the idle time."""
    idle = "grpc.max_connection_idle_ms"
    options = dict(server.options(100))
    assert idle in options
    monkeypatch.setattr(server, "options", lambda _: list((options | {idle: 100}).items()))
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
    """Within 100 ms of the signal every watcher has NOT_SERVING, and none lengthens the end."""
    async with (
        target(answers(200)) as gateway,
        run(PROBE_URL=url_of(gateway), DRAIN_DELAY="1", SHUTDOWN_GRACE="10") as running,
        asking(running.port) as stub,
    ):
        watching = [stub.Watch(CHECK()) for _ in range(watchers)]
        for watch in watching:
            assert (await watch.read()).status == 1
        told = [asyncio.create_task(watch.read()) for watch in watching]
        ending = asyncio.create_task(running.ended(drains=True))
        taking = Stopwatch()
        assert [reply.status for reply in await asyncio.gather(*told)] == [2] * watchers
        told_in, wall = taking.seconds, taking.on_the_wall
        took = await ending
        figures.info("%d watchers told in %.3f s, the end in %.3f s", watchers, wall, took)
        assert told_in < 0.1
        assert 1 <= took < 10


async def refuses_or_answers(port: int, user_agent: str) -> tuple[int, int]:
    """Check as a caller of that name, and tell the code and the status."""
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
    """Each setting shows in what a caller gets: the gateway answers 404 here."""
    async with target(answers(404)) as gateway, run(PROBE_URL=url_of(gateway), **variables) as ran:
        assert await refuses_or_answers(ran.port, user_agent) == expected


async def test_the_settings_of_the_probe_reach_the_gateway(run: Run) -> None:
    """Headers are sent, and watchers look as often as they are told to."""
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
    """With MAX_WATCHES 0 nobody may watch, and everybody may check."""
    async with run(MAX_WATCHES="0") as running, asking(running.port) as stub:
        assert (await stub.Check(LIVENESS)).status == 1
        code = await stub.Watch(LIVENESS).code()
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_a_hanging_name_does_not_take_the_threads_of_others(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Services are independent: one whose name never resolves leaves look-ups for the others."""
    real, hung_up = socket.getaddrinfo, threading.Event()

    def look_up(host: Any, *rest: Any, **options: Any) -> Any:
        if host == "slow.example":
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
                pass  # a starved machine may need more than one attempt's time, but a thread it has
            hung_up.set()


async def test_grpc_itself_does_not_share_a_port(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 5: gRPC's own bind of a port that another ghealth has is refused."""
    monkeypatch.setattr(server, "_try_to_bind", lambda _: None)
    async with run() as running:
        with pytest.raises(ListenError):
            async with run(LISTEN=f"127.0.0.1:{running.port}"):
                pass


def test_dead_peers_are_looked_for() -> None:
    """Trap 17: the server pings, and lets go of who does not answer, within a minute."""
    options = dict(server.options(100))
    alive = options["grpc.keepalive_time_ms"] + options["grpc.keepalive_timeout_ms"]
    assert 30_000 <= alive <= 60_000


async def test_a_step_of_the_wall_clock_changes_no_freshness(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clock that is set a day on or back makes no answer stale, and keeps none fresh."""
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
