import asyncio
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ghealth import operators
from ghealth.server import ListenError
from tests.support import wire
from tests.support.peers import answers, is_silent, target
from tests.support.processes import PATIENCE, environment, server
from tests.support.processes import run as run_process
from tests.unit.test_docs import documented_keys
from tests.unit.test_http_port import exchange, get
from tests.unit.test_server import CHECK, Run, asking, run, url_of

__all__ = ["run"]  # the fixture

ON = {"METRICS_LISTEN": "127.0.0.1:0"}
ALB = [("user-agent", "ELB-HealthChecker/2.0")]
WATCHER = [("user-agent", "grpc-go/1.70.0")]


async def body(port: int, path: str) -> str:
    head, _, said = (await exchange(port, get(path))).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 "), head
    return said.decode()


async def history(port: int) -> Any:
    return json.loads(await body(port, "/history.json"))


async def test_it_tells_what_is_said_and_why(run: Run) -> None:
    """The state now, the gateway's answers, the callers' questions, changes and settings."""
    async with target(answers(503)) as gateway:
        secret = url_of(gateway).replace("//", "//user:secret@") + "?token=secret"
        async with run(PROBE_URL=secret, CACHE_TTL="60", **ON) as running:
            port = running.ports[-1]
            await wire.call(running.port, wire.EMPTY_MESSAGE, headers=ALB)
            unknown = wire.framed(b"\x0a\x01x")
            await wire.call(running.port, unknown, headers=[("user-agent", "<b>é")])
            async with asking(running.port) as stub:
                watch = stub.Watch(CHECK())
                await watch.read()
                told = await history(port)
                shown = await body(port, "/")
                metrics = await body(port, "/metrics")
                assert await body(port, "/livez") == "ok\n"
                assert b" 404 " in await exchange(port, get("/favicon.ico"))
                watch.cancel()
        assert len(gateway.requests) == 1  # it shares the callers' attempts
    assert told["draining"] is False
    gateway_now, liveness_now = told["services"]
    assert gateway_now["since"] == told["changes"][0]["time"] == told["probes"][0]["time"]
    del gateway_now["since"]
    assert gateway_now == {
        "service": "",
        "status": "NOT_SERVING",
        "reason": "gateway answered 503",
        "watchers": 1,
    }
    assert liveness_now["status"] == "SERVING"
    (probe,) = told["probes"]
    assert (probe["result"], probe["reason"]) == ("status", "gateway answered 503")
    watched, asked, checked = told["answers"]
    assert (watched["caller"], watched["method"], watched["answer"]) == (
        "grpc",
        "Watch",
        "NOT_SERVING",
    )
    assert (asked["service"], asked["answer"]) == (None, "NOT_FOUND")
    assert re.fullmatch(r"<b>\?+", asked["user_agent"])
    del checked["time"]
    assert checked == {
        "caller": "alb",
        "user_agent": "ELB-HealthChecker/2.0",
        "method": "Check",
        "service": "",
        "answer": "UNAVAILABLE",
        "good": False,
        "reason": "gateway answered 503",
        "concludes": "unhealthy",
    }
    values = {row["variable"]: row["value"] for row in told["settings"]}
    assert values["GHEALTH_PROBE_URL"] == url_of(gateway).replace("//", "//***@") + "?***"
    assert "secret" not in shown + metrics + json.dumps(told)
    assert "<b>NOT_SERVING</b>" in shown
    assert "&lt;b&gt;?" in shown
    assert 'ghealth_serving{service="gateway"} 0.0' in metrics
    assert 'answer="UNAVAILABLE",caller="alb",service="gateway"} 1.0' in metrics


async def test_the_history_has_the_keys_that_are_documented(run: Run) -> None:
    """docs/operations.md names every key, and no other."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    table = page.partition("`/history.json` is one object:")[2].partition("\n\nAsking")[0]
    rows = {
        keys: re.findall(r"`(\w+)`", meaning)
        for _, keys, meaning, _ in (line.split("|") for line in table.splitlines() if "`" in line)
    }
    async with target(answers(503)) as gateway, run(PROBE_URL=url_of(gateway), **ON) as running:
        await wire.call(running.port, wire.EMPTY_MESSAGE, headers=ALB)
        told = await history(running.ports[-1])
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(told)
    for keys, inner in rows.items():
        if inner:
            (key,) = re.findall(r"`(\w+)`", keys)
            assert sorted(inner) == sorted(told[key][0])


async def test_a_scrape_asks_when_nobody_else_does(run: Run) -> None:
    """No gauge is older than the freshness window: a scrape is a caller like any other."""
    async with (
        target(answers(200)) as gateway,
        run(PROBE_URL=url_of(gateway), CACHE_TTL="0", **ON) as running,
    ):
        for attempts in (1, 2):
            metrics = await body(running.ports[-1], "/metrics")
            assert 'ghealth_serving{service="gateway"} 1.0' in metrics
            assert len(gateway.requests) == attempts


async def test_a_scrape_does_not_wait_for_a_silent_gateway_for_long(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It tells what a caller of its patience is told."""
    monkeypatch.setattr(operators, "PATIENCE", 0.1)
    async with (
        target(is_silent) as gateway,
        run(PROBE_URL=url_of(gateway), PROBE_TIMEOUT="60", **ON) as running,
    ):
        (now, _) = (await history(running.ports[-1]))["services"]
    assert (now["status"], now["reason"], now["since"]) == (
        "NOT_SERVING",
        "no answer before the caller's deadline",
        None,
    )


async def test_while_draining_it_says_so(run: Run) -> None:
    """The operators' port answers until the drain is over, and then is closed."""
    async with (
        target(answers(200)) as gateway,
        run(PROBE_URL=url_of(gateway), DRAIN_DELAY="60", **ON) as running,
    ):
        port = running.ports[-1]
        async with asking(running.port) as stub:
            assert (await stub.Check(CHECK())).status == 1
            running.stop.set_result(True)
            while (await stub.Check(CHECK())).status == 1:
                pass
        told = await history(port)
        metrics = await body(port, "/metrics")
        assert "Draining: everyone" in await body(port, "/")
        running.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running.task
        with pytest.raises(ConnectionRefusedError):
            await exchange(port, get("/livez"))
        running.task = asyncio.create_task(asyncio.sleep(0))
    assert told["draining"] is True
    assert [(c["status"], c["reason"]) for c in told["changes"]] == [
        ("NOT_SERVING", "draining"),
        ("SERVING", "gateway answered 200"),
    ]
    assert "ghealth_draining 1.0" in metrics
    assert 'ghealth_serving{service="gateway"} 0.0' in metrics


@pytest.mark.parametrize("host", ["[::]", "both.example"])
async def test_it_listens_on_all_addresses_of_a_name(
    run: Run, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`[::]` serves IPv4 too, and a name all that it stands for, on one port."""
    real = socket.getaddrinfo

    def look_up(name: Any, *rest: Any, **options: Any) -> Any:
        names = ("127.0.0.1", "::1") if name == "both.example" else (name,)
        return [found for name in names for found in real(name, *rest, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    async with run(METRICS_LISTEN=f"{host}:0") as running:
        for address in ("127.0.0.1", "::1"):
            reader, writer = await asyncio.open_connection(address, running.ports[-1])
            writer.write(get("/livez"))
            assert (await reader.read()).endswith(b"ok\n")
            writer.close()


async def test_a_taken_operators_port_is_a_mistake(run: Run) -> None:
    """It is named, and nothing is left open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ListenError, match=f"cannot listen on {address}: Address already in"):
            async with run(METRICS_LISTEN=address):
                pass


def test_a_taken_operators_port_is_one_line_and_exit_code_2() -> None:
    """As for `LISTEN`."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run_process(LISTEN="127.0.0.1:0", METRICS_LISTEN=address)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"ghealth: cannot listen on {address}: Address already in use\n"


def test_without_the_extra_asking_for_it_is_a_mistake() -> None:
    """One line says what to install; what else is wrong is told with it."""
    script = (
        "import sys; sys.modules['prometheus_client'] = None; "
        "from ghealth.cli import main; sys.exit(main(['serve']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(METRICS_LISTEN="x", CACHE_TTL="y"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    name = "GHEALTH_METRICS_LISTEN"
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"ghealth: {name} needs packages that are not installed: pip install 'ghealth[metrics]'",
        "ghealth: GHEALTH_CACHE_TTL holds 'y', but takes seconds, from 0 to 3600",
        f"ghealth: {name} holds 'x', but takes host:port, such as [::]:25022",
    ]


def test_switched_off_it_costs_nothing() -> None:
    """Without `METRICS_LISTEN` a server that has answered has imported nothing of it."""
    script = """
import asyncio, sys
from ghealth.server import serve
from ghealth.environment import load
async def trigger():
    return False
asyncio.run(serve(load(), shutdown_trigger=trigger))
print(*sorted(sys.modules))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=environment(LISTEN="127.0.0.1:0"),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert "ghealth.checker" in loaded
    ours = {"operators", "metrics", "history", "page", "http_port"}
    assert not loaded & {"prometheus_client", *(f"ghealth.{name}" for name in ours)}


def test_the_start_tells_where_it_is() -> None:
    """The line about the start has the keys that README names, the operators' address too."""
    with server(METRICS_LISTEN="127.0.0.1:0") as ghealth:
        address = ghealth.started["metrics_listen"][0]
        assert asyncio.run(body(int(address.rpartition(":")[2]), "/livez")) == "ok\n"
        usual = {"time", "level", "event", "message"}
        assert set(ghealth.started) - usual == documented_keys()["started"]
        assert address in ghealth.started["message"]
