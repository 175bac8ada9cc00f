"""The admin port of a whole ghealth."""

import asyncio
import json
import logging
import socket
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from ghealth.probe import ProbeResult
from ghealth.server.listen import ListenError
from ghealth.server.serve import Ports, serve
from ghealth.settings import Settings
from tests.support import wire
from tests.support.fakes import SICK, FakeProbe
from tests.support.processes import run as run_process
from tests.support.processes import server
from tests.unit.admin.test_http import exchange, get

ALB = [("user-agent", "ELB-HealthChecker/2.0")]


class Running:
    """A ghealth in this process.

    Args:
        ports: Its ports.
        stop: Ends it: True drains first.
        task: Its task.
    """

    def __init__(
        self, ports: Ports, stop: "asyncio.Future[bool]", task: "asyncio.Task[None]"
    ) -> None:
        self.port = ports.listen[0]
        self.admin_port = ports.admin
        self.stop = stop
        self.task = task

    async def body(self, path: str) -> str:
        assert self.admin_port is not None
        head, _, body = (await exchange(self.admin_port, get(path))).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 "), head
        return body.decode()

    async def history(self) -> Any:
        return json.loads(await self.body("/history.json"))


@asynccontextmanager
async def run(gateway: FakeProbe, **settings: str) -> AsyncGenerator[Running, None]:
    """Serve until the end of the block; the probe of the gateway is a fake."""
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[bool] = loop.create_future()
    started: asyncio.Future[Ports] = loop.create_future()

    async def trigger() -> bool:
        return await stop

    serving = serve(
        Settings.model_validate({"listen": "127.0.0.1:0"} | settings),
        shutdown_trigger=trigger,
        probes={"": gateway},
        on_started=started.set_result,
    )
    task = asyncio.create_task(serving)
    await asyncio.wait((task, started), return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        await task
    yield Running(started.result(), stop, task)
    if not stop.done():
        stop.set_result(False)
    with suppress(asyncio.CancelledError):
        await task


async def test_calls_and_probes_are_on_the_page() -> None:
    """What an ALB got, and why; settings and targets have their secrets masked."""
    gateway = FakeProbe(SICK)
    url = "http://user:s3cr3t@localhost:1/ready?token=s3cr3t"
    settings = {"probe_url": url, "services": json.dumps({"other": url}), "cache_ttl": "60"}
    async with run(gateway, admin_listen="127.0.0.1:0", **settings) as running:
        await wire.call(running.port, wire.EMPTY_MESSAGE, headers=ALB)
        await wire.call(running.port, path="/AWS.ALB/healthcheck", headers=ALB)
        history = await running.history()
        pages = await running.body("/") + await running.body("/metrics") + json.dumps(history)
    assert gateway.attempts == 1
    assert [(a["caller"], a["path"], a["answer"], a["reason"]) for a in history["answers"]] == [
        ("alb", "/AWS.ALB/healthcheck", "UNAVAILABLE", "gateway answered 503"),
        ("alb", wire.CHECK, "UNAVAILABLE", "gateway answered 503"),
    ]
    targets = {service["service"]: service["targets"] for service in history["services"]}
    assert targets["other"] == ["http://***@localhost:1/ready?***"]
    assert "s3cr3t" not in pages


async def test_it_answers_while_draining_and_is_closed_then() -> None:
    """The status page shows the drain; the port ends with the process."""
    settings = {"admin_listen": "127.0.0.1:0", "drain_delay": "60s"}
    async with run(FakeProbe(), **settings) as running:
        assert (await running.history())["draining"] is False
        running.stop.set_result(True)
        while not (history := await running.history())["draining"]:
            pass
        assert history["draining_since"] is not None
        running.task.cancel()
        await asyncio.wait((running.task,))
        assert running.admin_port is not None
        with pytest.raises(ConnectionRefusedError):
            await exchange(running.admin_port, get("/livez"))


async def test_off_opens_no_port() -> None:
    """With `ADMIN_LISTEN=off` there is nothing but gRPC."""
    async with run(FakeProbe(), admin_listen="off") as running:
        assert running.admin_port is None


@pytest.mark.parametrize("host", ["[::]", "localhost"])
async def test_it_listens_on_both_loopbacks(host: str) -> None:
    """`[::]` serves IPv4 too, and `localhost` is 127.0.0.1 and ::1, on one port."""
    async with run(FakeProbe(), admin_listen=f"{host}:0") as running:
        for address in ("127.0.0.1", "::1"):
            reader, writer = await asyncio.open_connection(address, running.admin_port)
            writer.write(get("/livez"))
            assert (await reader.read()).endswith(b"ok\n")
            writer.close()


@asynccontextmanager
async def taken_port() -> AsyncGenerator[str, None]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield f"127.0.0.1:{taken.getsockname()[1]}"


async def test_a_taken_port_that_was_set_is_a_mistake() -> None:
    """The error names it, and nothing is left open; as a command it is one line and code 2."""
    async with taken_port() as address:
        with pytest.raises(ListenError, match=f"cannot listen on {address}: Address already in"):
            async with run(FakeProbe(), admin_listen=address):
                pass
        done = await asyncio.to_thread(run_process, LISTEN="127.0.0.1:0", ADMIN_LISTEN=address)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ghealth: cannot listen on {address}: Address already in use\n"


@pytest.mark.xdist_group("port-25022")
async def test_a_taken_default_port_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """Health checks are answered all the same."""
    with socket.socket() as taken:
        with suppress(OSError):  # another program on this machine has it
            taken.bind(("127.0.0.1", 25022))
            taken.listen()
        async with run(FakeProbe(ProbeResult.because("fine", ready=True))) as running:
            assert running.admin_port is None
            reply = await wire.call(running.port, wire.EMPTY_MESSAGE, headers=ALB)
    assert reply.code == 0
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert [record.__dict__["event"] for record in warnings] == ["admin_unavailable"]


def test_the_first_line_says_where_it_is() -> None:
    """A person or a program finds the page without knowing the port."""
    with server(ADMIN_LISTEN="127.0.0.1:0") as ghealth:
        address = ghealth.started["admin_listen"][0]
        assert f"http://{address}/" in ghealth.started["message"]
        answer = asyncio.run(exchange(ghealth.admin_port, get("/livez")))
    assert answer.endswith(b"\r\n\r\nok\n")
