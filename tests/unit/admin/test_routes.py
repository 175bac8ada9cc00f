import asyncio
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from ghealth import __version__
from ghealth.admin import Admin, page, routes
from ghealth.checker import Checker
from ghealth.events import ConnectionsCut, DrainStarted, Event, Method, RequestAnswered, fan_out
from ghealth.health import LIVENESS, Answer, Code, Reason, ReasonKind, Status
from ghealth.observe.metrics import Metrics
from ghealth.probe import ProbeResult
from ghealth.settings import Row
from tests.support.fakes import READY, SICK, FakeProbe
from tests.unit.admin.test_http import exchange, get

ALB, GRPC = "ELB-HealthChecker/2.0", "grpc-go/1.70.0"
ROWS = (Row("GHEALTH_PROBE_URL", "http://***@x/?***", "http://localhost/", "Where to probe"),)


@pytest.fixture(autouse=True)
def _host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "gw-7f9c")


class Running:
    """An admin port that serves."""

    def __init__(self, port: int, checker: Checker, emit: Callable[[Event], None]) -> None:
        self.port = port
        self.checker = checker
        self.emit = emit

    def answered(
        self, method: Method, user_agent: str, service: str | None, answer: Answer, path: str = "/x"
    ) -> None:
        self.emit(
            RequestAnswered(
                method=method, path=path, user_agent=user_agent, service=service, answer=answer
            )
        )

    async def ask(self, path: str, *headers: str) -> tuple[int, str]:
        """Return the status code and the body."""
        head, _, body = (await exchange(self.port, get(path, *headers))).partition(b"\r\n\r\n")
        return int(head.split()[1]), body.decode()

    async def body(self, path: str, *headers: str) -> str:
        status, body = await self.ask(path, *headers)
        assert status == 200
        return body

    async def history(self) -> Any:
        return json.loads(await self.body("/history.json"))


@asynccontextmanager
async def run(
    targets: Mapping[str, FakeProbe], *, cache_ttl: float = 60.0, **watchers: int
) -> AsyncGenerator[Running, None]:
    """Serve an admin port beside a checker of these targets."""
    urls = {name: [f"http://{name or 'gateway'}/ready"] for name in targets}
    admin = Admin(ROWS, urls | {LIVENESS: []}, probe_timeout=3.0)
    emit = fan_out(admin.sinks)
    checker = Checker(targets, cache_ttl=cache_ttl, watch_interval=1.0, emit=emit)
    open_watches = {watchers_of.replace("gateway", ""): n for watchers_of, n in watchers.items()}
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with admin.serving([bound], checker, lambda: open_watches):
            yield Running(bound.getsockname()[1], checker, emit)
    await checker.close()


async def test_the_state_and_its_reasons_are_served() -> None:
    """Services, callers, probes, changes and settings, on the page and for programs."""
    gateway = FakeProbe(SICK)
    async with run({"": gateway}, gateway=1, y=2) as running:
        reason = SICK.reason
        unavailable = Answer(Code.UNAVAILABLE, reason=reason)
        running.answered("Check", ALB, "", unavailable)
        not_found = Answer(Code.NOT_FOUND, reason=Reason(ReasonKind.UNKNOWN_SERVICE))
        running.answered("Check", "<b>é", "x", not_found)
        running.answered("Watch", GRPC, "", Answer(Code.OK, Status.NOT_SERVING, reason))
        running.answered("List", GRPC, None, Answer(Code.OK))
        running.emit(ConnectionsCut(address="10.0.0.1", count=25, reason="calls"))
        history = await running.history()
        html = await running.body("/")
        metrics = await running.body("/metrics")
        assert await running.body("/livez") == "ok\n"
        assert (await running.ask("/favicon.ico"))[0] == 404
    assert gateway.attempts == 1  # shared with callers while fresh
    assert history["version"] == __version__
    assert history["host"] == "gw-7f9c"
    assert history["draining"] is False
    assert history["draining_since"] is None
    gateway_now, liveness_now = history["services"]
    since = gateway_now.pop("since")
    assert since == history["changes"][0]["time"]
    assert gateway_now == {
        "service": "",
        "status": "NOT_SERVING",
        "reason": "gateway answered 503",
        "targets": ["http://gateway/ready"],
        "watchers": 1,
    }
    assert (liveness_now["status"], liveness_now["targets"]) == ("SERVING", [])
    (probe,) = history["probes"]
    assert (probe["result"], probe["reason"]) == ("status", "gateway answered 503")
    (cut,) = history["cuts"]
    del cut["time"]
    assert cut == {"address": "10.0.0.1", "count": 25, "reason": "calls"}
    listed, watched, asked, checked = history["answers"]
    assert (listed["method"], listed["reason"], listed["good"]) == ("List", "", True)
    assert (watched["caller"], watched["answer"]) == ("grpc", "NOT_SERVING")
    assert (asked["service"], asked["answer"]) == (None, "NOT_FOUND")
    assert re.fullmatch(r"<b>\?+", asked["user_agent"])
    del checked["time"]
    assert checked == {
        "caller": "alb",
        "user_agent": ALB,
        "method": "Check",
        "path": "/x",
        "service": "",
        "answer": "UNAVAILABLE",
        "good": False,
        "reason": "gateway answered 503",
        "concludes": "unhealthy",
    }
    assert history["settings"] == [
        {
            "variable": "GHEALTH_PROBE_URL",
            "value": "http://***@x/?***",
            "default": "http://localhost/",
        }
    ]
    assert ">gw-7f9c is not serving: gateway</h1>" in html
    assert "&lt;b&gt;?" in html
    assert 'ghealth_serving{service="gateway"} 0.0' in metrics
    assert 'answer="UNAVAILABLE",caller="alb",service="gateway"} 1.0' in metrics
    assert 'ghealth_watchers{service="unknown"} 2.0' in metrics


async def test_every_kind_of_caller_is_listed() -> None:
    """What it asked for and got last, how often, and what it concludes, if it ever asked."""
    async with run({"": FakeProbe()}) as running:
        for _ in range(3):
            running.answered("Check", ALB, "", Answer(Code.OK, Status.SERVING, READY.reason))
        unimplemented = Answer(Code.UNIMPLEMENTED, reason=READY.reason)
        running.answered("other", ALB, None, unimplemented, "/AWS.ALB/healthcheck\n")
        history = await running.history()
    alb, replay, *_ = history["callers"]
    assert alb.pop("last_asked") == history["answers"][0]["time"]
    assert alb == {
        "caller": "alb",
        "last_five_minutes": 4,
        "user_agent": ALB,
        "method": "other",
        "path": "/AWS.ALB/healthcheck?",
        "service": None,
        "answer": "UNIMPLEMENTED",
        "good": True,
        "reason": "gateway answered 200",
        "concludes": "matcher 12: healthy, 0: unhealthy",
    }
    assert replay == {"caller": "alb (ghealth check)", "last_five_minutes": 0, "last_asked": None}
    assert len(history["callers"]) == 7


async def test_the_history_has_the_keys_that_are_documented() -> None:
    """docs/operations.md names every key, and no other."""
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    table = text.partition("`/history.json` is one object:")[2].partition("\n\n")[2]
    table = table.partition("\n\n")[0]
    rows = {
        keys: re.findall(r"`(\w+)`", meaning)
        for _, keys, meaning, _ in (row.split("|") for row in table.splitlines() if "`" in row)
    }
    async with run({"": FakeProbe(SICK)}) as running:
        running.answered("Check", ALB, "", Answer(Code.UNAVAILABLE, reason=SICK.reason))
        running.emit(ConnectionsCut(address="10.0.0.1", count=25, reason="calls"))
        history = await running.history()
    assert sorted(re.findall(r"`(\w+)`", " ".join(rows))) == sorted(history)
    for keys, inner in rows.items():
        if inner:
            (key,) = re.findall(r"`(\w+)`", keys)
            assert sorted(inner) == sorted(history[key][0])


async def test_a_scrape_checks_as_a_caller_does() -> None:
    """No gauge is older than `CACHE_TTL`, also where nothing else asks."""
    gateway = FakeProbe()
    async with run({"": gateway}, cache_ttl=0.0) as running:
        for probes in (1, 2):
            metrics = await running.body("/metrics")
            assert 'ghealth_serving{service="gateway"} 1.0' in metrics
            assert gateway.attempts == probes


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [
        (None, 5.0),
        ("10", 5.0),
        ("inf", 5.0),
        ("nan", 5.0),
        ("x", 5.0),
        ("2", 1.5),
        ("1.5", 1.0),
        ("0.4", 0.2),
        ("0", 0.0),
        ("-1", 0.0),
    ],
)
def test_a_scrape_has_the_scrapers_own_time_limit(limit: str | None, seconds: float) -> None:
    """Half a second of it is left for the answer, and it is never more than 5 s."""
    headers = {} if limit is None else {"x-prometheus-scrape-timeout-seconds": limit}
    assert routes._scrape_timeout(headers) == seconds


async def test_a_scrape_of_a_hanging_gateway_comes_in_time() -> None:
    """The sample that an alert needs is there: the gateway is not serving."""
    gateway = FakeProbe()
    gateway.gate.clear()
    async with run({"": gateway}) as running:
        started = time.monotonic()
        limit = "X-Prometheus-Scrape-Timeout-Seconds: 0.7"
        metrics = await running.body("/metrics", limit)
        assert time.monotonic() - started < routes.CHECK_TIMEOUT
    assert 'ghealth_serving{service="gateway"} 0.0' in metrics
    assert 'ghealth_serving{service="liveness"} 1.0' in metrics


@pytest.mark.parametrize("path", ["/history.json", "/", "/readyz"])
async def test_no_request_waits_long_for_a_hanging_gateway(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets what a caller with that deadline gets."""
    monkeypatch.setattr(routes, "CHECK_TIMEOUT", 0.1)
    gateway = FakeProbe()
    gateway.gate.clear()
    async with run({"": gateway}) as running:
        _, body = await running.ask(path)
    assert "no answer before the caller&#39;s deadline" in body.replace("'", "&#39;")


async def test_accept_decides_the_format_of_the_metrics() -> None:
    """OpenMetrics for a client that prefers it, with its content type."""
    async with run({"": FakeProbe()}) as running:
        accept = "Accept: text/plain;q=0.5, application/openmetrics-text"
        answer = await exchange(running.port, get("/metrics", accept))
    assert b"\r\nContent-Type: application/openmetrics-text; version=1.0.0;" in answer
    assert answer.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    ("query", "status", "body"),
    [
        ("", 200, "gateway answered 200\n"),
        ("?", 200, "gateway answered 200\n"),
        ("?service=", 200, "gateway answered 200\n"),
        ("?other=1", 200, "gateway answered 200\n"),
        ("?service=liveness", 200, "ghealth is running\n"),
        ("?service=a%20b/%C3%A9", 503, "gateway answered 503\n"),
        ("?service=a+b/%C3%A9", 503, "gateway answered 503\n"),
        ("?service=own", 503, "two lines\n"),
        ("?service=none", 404, "unknown service\n"),
        ("?service=%ff", 404, "unknown service\n"),
        ("?service=&service=liveness", 400, "expected one service\n"),
    ],
)
async def test_readyz_reports_a_service(query: str, status: int, body: str) -> None:
    """The status code shows whether the service is serving, and the body is the reason."""
    own = ProbeResult.because("two\nlines", ready=False)
    targets = {"": FakeProbe(), "a b/é": FakeProbe(SICK), "own": FakeProbe(own)}
    async with run(targets) as running:
        assert await running.ask(f"/readyz{query}") == (status, body)


async def test_draining_is_served_everywhere() -> None:
    """The page, the history, the metrics and `/readyz` show the drain; `liveness` is serving."""
    async with run({"": FakeProbe()}) as running:
        assert (await running.ask("/readyz"))[0] == 200
        running.checker.drain()
        running.emit(DrainStarted(seconds=5))
        history = await running.history()
        metrics = await running.body("/metrics")
        html = await running.body("/")
        assert await running.ask("/readyz") == (503, "draining\n")
        assert (await running.ask("/readyz?service=liveness"))[0] == 200
    assert history["draining"] is True
    assert history["draining_since"] == history["changes"][0]["time"]
    assert [(change["status"], change["reason"]) for change in history["changes"]] == [
        ("NOT_SERVING", "draining"),
        ("SERVING", "gateway answered 200"),
    ]
    assert "ghealth_draining 1.0" in metrics
    assert 'ghealth_serving{service="gateway"} 0.0' in metrics
    assert "Draining since" in html
    assert "is draining</h1>" in html


async def test_refresh_can_be_switched_off() -> None:
    """A link of the page stops it, and another starts it again."""
    async with run({"": FakeProbe()}) as running:
        refreshing, still = [await running.body(f"/?refresh={word}") for word in ("on", "off")]
        assert f'http-equiv="refresh" content="{page.REFRESH}"' in refreshing
        assert 'href="/?refresh=off"' in refreshing
        assert 'http-equiv="refresh"' not in still
        assert 'href="/"' in still
        answer = await exchange(running.port, get("/"))
    assert b"\r\nContent-Security-Policy: default-src 'none';" in answer


async def test_bytes_that_are_not_utf_8_are_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel accepts any in a host name, and the environment in a setting."""
    monkeypatch.setattr(socket, "gethostname", lambda: "gw\udcff")
    rows = (Row("GHEALTH_TLS_CERT_FILE", "/c\udcff.pem", "", ""),)
    admin = Admin(rows, {"": []}, probe_timeout=3.0)
    checker = Checker({"": FakeProbe()}, cache_ttl=1.0, watch_interval=1.0, emit=lambda _: None)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        async with admin.serving([bound], checker, dict):
            history, html = [
                (await exchange(bound.getsockname()[1], get(path))).partition(b"\r\n\r\n")[2]
                for path in ("/history.json", "/")
            ]
    await checker.close()
    assert json.loads(history)["host"] == "gw?"
    assert json.loads(history)["settings"][0]["value"] == "/c\udcff.pem"
    assert b"gw? is serving" in html
    assert b"/c\\udcff.pem" in html


async def test_rendering_does_not_hold_up_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes tens of milliseconds with many services, so one thread does it."""
    threads = []

    def noted(render: Callable[..., Any]) -> Callable[..., Any]:
        def run_noted(*arguments: Any, **options: Any) -> Any:
            threads.append(threading.get_ident())
            return render(*arguments, **options)

        return run_noted

    monkeypatch.setattr(page, "render", noted(page.render))
    monkeypatch.setattr(Metrics, "render", noted(Metrics.render))
    monkeypatch.setattr(routes, "_as_json", noted(routes._as_json))
    async with run({"": FakeProbe()}) as running:
        await asyncio.gather(*map(running.body, ("/", "/metrics", "/history.json")))
    assert len(threads) == 3
    assert len(set(threads)) == 1
    assert threading.get_ident() not in threads


def test_the_template_engine_is_imported_for_the_first_page() -> None:
    """A ghealth whose page is never opened does not pay for it."""
    script = "import sys; import ghealth.admin; print('jinja2' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"
