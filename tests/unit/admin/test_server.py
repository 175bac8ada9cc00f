"""The admin port of a whole ghealth."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx
import pytest

from tests.support import wire
from tests.support.events import ALB
from tests.support.fakes import SICK, FakeProbe
from tests.support.running import run
from tests.unit.admin.test_routes import client

ADMIN: dict[str, Any] = {"admin_listen": "localhost:0"}


async def history_of(admin: httpx.AsyncClient) -> Any:
    return (await admin.get("/history.json")).json()


async def test_calls_and_probes_are_on_the_page() -> None:
    """What an ALB got, and why; settings and targets have their secrets masked."""
    gateway, paths = FakeProbe(SICK), (wire.CHECK, "/AWS.ALB/healthcheck")
    url = "http://user:s3cr3t@localhost:1/ready?token=s3cr3t"
    settings = {"probe_url": url, "services": json.dumps({"other": url}), "cache_ttl": "60"}
    async with (
        run(probes={"": gateway}, **ADMIN, **settings) as running,
        client(running.ports.admin) as admin,
    ):
        for path in paths:
            await wire.call(running.port, path=path, headers=[("user-agent", ALB)])
        history = await history_of(admin)
        pages = [(await admin.get(path)).text for path in ("/", "/metrics")]
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
    with suppress(asyncio.CancelledError):  # the end of the drain is not awaited
        async with (
            run(probes={"": FakeProbe()}, drain_delay=60, **ADMIN) as running,
            client(running.ports.admin) as admin,
        ):
            assert (await history_of(admin))["draining"] is False
            running.stop.set_result(True)
            while not (history := await history_of(admin))["draining"]:
                pass
            html, metrics, ready, alive = [
                (await admin.get(path)).text
                for path in ("/", "/metrics", "/readyz", "/readyz?service=liveness")
            ]
            running.task.cancel()
    assert history["draining_since"] is not None
    changes = [(change["status"], change["reason"]) for change in history["changes"]]
    assert changes == [("NOT_SERVING", "draining"), ("SERVING", "gateway answered 200")]
    assert 'is draining</h1>\n<p class="bad">Draining since' in html
    assert "ghealth_draining 1.0" in metrics
    assert 'ghealth_serving{service="gateway"} 0.0' in metrics
    assert (ready, alive) == ("draining\n", "ghealth is running\n")


async def test_it_is_closed_in_the_end() -> None:
    """The port ends with ghealth."""
    async with run(**ADMIN) as running:
        pass
    async with client(running.ports.admin) as late:
        with pytest.raises(httpx.ConnectError):
            await late.get("/livez")


async def test_it_listens_on_both_loopbacks() -> None:
    """`localhost` is 127.0.0.1 and ::1, on one port."""
    async with run(**ADMIN) as running, httpx.AsyncClient(trust_env=False) as admin:
        for host in ("127.0.0.1", "[::1]"):
            url = f"http://{host}:{running.ports.admin}/livez"
            assert (await admin.get(url)).text == "ok\n"
