"""The admin port of a whole ghealth."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from ghealth.server.serve import Ports, serve
from ghealth.settings import Settings
from tests.support import wire
from tests.support.events import ALB
from tests.support.fakes import SICK, FakeProbe
from tests.unit.admin.test_routes import client


@dataclass
class Running:
    """A ghealth in this process, and a client of its admin port."""

    ports: Ports
    drain: Callable[[], None]
    admin: httpx.AsyncClient

    async def history(self) -> Any:
        return (await self.admin.get("/history.json")).json()


@asynccontextmanager
async def run(gateway: FakeProbe, **settings: str) -> AsyncGenerator[Running, None]:
    """Serve until the end of the block; the probe of the gateway is a fake."""
    drains = asyncio.Event()
    started: asyncio.Future[Ports] = asyncio.get_running_loop().create_future()
    ports = {"listen": "127.0.0.1:0", "admin_listen": "localhost:0", "drain_delay": "60s"}
    serving = serve(
        Settings.model_validate(ports | settings),
        shutdown_trigger=drains.wait,
        probes={"": gateway},
        on_started=started.set_result,
    )
    async with asyncio.timeout(60):
        task = asyncio.create_task(serving)
        async with client((await started).admin) as admin:
            yield Running(started.result(), drains.set, admin)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_calls_and_probes_are_on_the_page() -> None:
    """What an ALB got, and why; settings and targets have their secrets masked."""
    gateway, paths = FakeProbe(SICK), (wire.CHECK, "/AWS.ALB/healthcheck")
    url = "http://user:s3cr3t@localhost:1/ready?token=s3cr3t"
    settings = {"probe_url": url, "services": json.dumps({"other": url}), "cache_ttl": "60"}
    async with run(gateway, **settings) as running:
        for path in paths:
            await wire.call(running.ports.listen[0], path=path, headers=[("user-agent", ALB)])
        history = await running.history()
        pages = [(await running.admin.get(path)).text for path in ("/", "/metrics")]
    assert gateway.attempts == 1
    answers = [(a["caller"], a["path"], a["answer"], a["reason"]) for a in history["answers"]]
    got = ("UNAVAILABLE", "gateway answered 503")
    assert answers == [("alb", path, *got) for path in reversed(paths)]
    (targets,) = [row["targets"] for row in history["services"] if row["service"] == "other"]
    assert targets == ["http://***@localhost:1/ready?***"]
    assert "GHEALTH_PROBE_URL" in {row["variable"] for row in history["settings"]}
    assert "s3cr3t" not in f"{history} {pages}"


async def test_draining_is_served_everywhere() -> None:
    """The page, the history, the metrics and `/readyz` show the drain; `liveness` is serving."""
    async with run(FakeProbe()) as running:
        assert (await running.history())["draining"] is False
        running.drain()
        while not (history := await running.history())["draining"]:
            pass
        html, metrics, ready, alive = [
            (await running.admin.get(path)).text
            for path in ("/", "/metrics", "/readyz", "/readyz?service=liveness")
        ]
    assert history["draining_since"] is not None
    changes = [(change["status"], change["reason"]) for change in history["changes"]]
    assert changes == [("NOT_SERVING", "draining"), ("SERVING", "gateway answered 200")]
    assert 'is draining</h1>\n<p class="bad">Draining since' in html
    assert "ghealth_draining 1.0" in metrics
    assert 'ghealth_serving{service="gateway"} 0.0' in metrics
    assert (ready, alive) == ("draining\n", "ghealth is running\n")


async def test_it_is_closed_in_the_end() -> None:
    """The port ends with ghealth."""
    async with run(FakeProbe()) as running:
        pass
    async with client(running.ports.admin) as late:
        with pytest.raises(httpx.ConnectError):
            await late.get("/livez")


async def test_it_listens_on_both_loopbacks() -> None:
    """`localhost` is 127.0.0.1 and ::1, on one port."""
    async with run(FakeProbe()) as running:
        for host in ("127.0.0.1", "[::1]"):
            url = f"http://{host}:{running.ports.admin}/livez"
            assert (await running.admin.get(url)).text == "ok\n"
