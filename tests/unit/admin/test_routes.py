import asyncio
import re
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest

from ghealth import __version__
from ghealth.admin import Admin, page, routes
from ghealth.admin.routes import Watchers
from ghealth.checker import Checker
from ghealth.events import Event, fan_out
from ghealth.health import LIVENESS
from ghealth.observe.callers import describe
from ghealth.observe.metrics import Metrics
from ghealth.probe import ProbeResult
from ghealth.settings import Row
from tests.support.events import ALB, GRPC, NOT_FOUND, OK, UNAVAILABLE, UNIMPLEMENTED, cut, request
from tests.support.fakes import SICK, FakeProbe, hanging

ROWS = (
    Row("GHEALTH_PROBE_URL", "http://***@x/?***", "http://localhost/", "Where to probe"),
    Row("GHEALTH_TLS_CERT_FILE", "/c\udcff.pem", "", ""),
)
EVENTS: list[Event] = [
    request(UNAVAILABLE),
    request(UNIMPLEMENTED, ALB, "other", path="/other\n", service=None),
    request(NOT_FOUND, "<b>é", service="x"),
    request(OK, GRPC, "List", service=None),
    cut(25),
]


def client(port: int | None) -> httpx.AsyncClient:
    """Make a client of an admin port."""
    no_certificates = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # to load them takes long
    url = f"http://127.0.0.1:{port}"
    return httpx.AsyncClient(base_url=url, trust_env=False, verify=no_certificates, timeout=20)


@asynccontextmanager
async def run(
    targets: Mapping[str, FakeProbe], watchers: Watchers = dict
) -> AsyncGenerator[httpx.AsyncClient, None]:
    """Serve an admin port beside a checker of these targets, after answers to several callers."""
    urls = {name: [f"http://{name or 'gateway'}/ready"] for name in targets}
    admin = Admin(ROWS, urls | {LIVENESS: []}, probe_timeout=3.0)
    emit = fan_out(admin.sinks)
    checker = Checker(targets, cache_ttl=0.0, watch_interval=1.0, emit=emit)
    for event in EVENTS:
        emit(event)
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port = bound.getsockname()[1]
        async with admin.serving([bound], checker, watchers), client(port) as running:
            yield running
    await checker.close()


@pytest.fixture
async def busy(monkeypatch: pytest.MonkeyPatch) -> AsyncGenerator[httpx.AsyncClient, None]:
    """Serve beside a gateway that is not ready."""
    monkeypatch.setattr(socket, "gethostname", lambda: "gw\udcff")
    async with run({"": FakeProbe(SICK)}, lambda: {"": 1, "y": 2}) as running:
        yield running


async def test_the_state_and_its_reasons_are_served(busy: httpx.AsyncClient) -> None:
    """Services, callers, probes, changes and settings, on the page and for programs."""
    history = (await busy.get("/history.json")).json()
    assert (history["version"], history["host"]) == (__version__, "gw?")
    assert (history["draining"], history["draining_since"]) == (False, None)
    gateway, liveness = history["services"]
    since = history["changes"][0]["time"]
    status = {"service": "", "status": "NOT_SERVING", "reason": "gateway answered 503"}
    watched = {"targets": ["http://gateway/ready"], "since": since, "watchers": 1}
    assert gateway == status | watched
    assert (liveness["status"], liveness["targets"]) == ("SERVING", [])
    (probe,) = history["probes"]
    assert (probe["result"], probe["reason"]) == ("status", "gateway answered 503")
    (cuts,) = history["cuts"]
    assert cuts == {"time": cuts["time"], "address": "10.0.0.1", "count": 25, "reason": "calls"}
    listed, unknown, _, checked = history["answers"]
    assert checked == describe(request(UNAVAILABLE)) | {"time": checked["time"]}
    assert (listed["method"], listed["reason"]) == ("List", "")
    assert (unknown["user_agent"], unknown["service"]) == ("<b>?", None)
    url, _ = history["settings"]
    assert list(url.values()) == ["GHEALTH_PROBE_URL", "http://***@x/?***", "http://localhost/"]


async def test_the_page_and_the_metrics_show_the_state(busy: httpx.AsyncClient) -> None:
    """They are made of the same events and statuses as the history."""
    html, metrics = await busy.get("/"), (await busy.get("/metrics")).text
    policy = "Content-Security-Policy"
    assert html.headers[policy] == page.headers()[policy]
    assert ">gw? is not serving: gateway</h1>" in html.text
    assert 'answer="UNAVAILABLE",caller="alb",service="gateway"} 1.0' in metrics
    assert 'ghealth_watchers{service="unknown"} 2.0' in metrics


async def test_there_is_no_other_path(busy: httpx.AsyncClient) -> None:
    """A browser's request for an icon is a 404."""
    assert (await busy.get("/favicon.ico")).status_code == 404


async def test_every_kind_of_caller_is_listed(busy: httpx.AsyncClient) -> None:
    """What it asked for and got last, how often, and what it concludes, if it ever asked."""
    history = (await busy.get("/history.json")).json()
    alb, replay, *others = history["callers"]
    last = history["answers"][2]
    last["last_asked"] = last.pop("time")
    assert alb == last | {"last_five_minutes": 2}
    assert replay == {"caller": "alb (ghealth check)", "last_five_minutes": 0, "last_asked": None}
    assert len(others) == 5


async def test_the_history_has_the_keys_that_are_documented(busy: httpx.AsyncClient) -> None:
    """docs/operations.md names every key, and no other."""
    text = (Path(__file__).parents[3] / "docs" / "operations.md").read_text()
    table = text.partition("`/history.json` is one object:")[2].split("\n\n")[1]
    history = (await busy.get("/history.json")).json()
    documented = []
    for row in table.splitlines()[2:]:
        keys, inner = (re.findall(r"`(\w+)`", cell) for cell in row.split("|")[1:3])
        documented += keys
        if inner:
            assert sorted(inner) == sorted(history[keys[0]][0])
    assert sorted(documented) == sorted(history)


async def test_a_scrape_checks_as_a_caller_does() -> None:
    """No gauge is older than `CACHE_TTL`, also where nothing else asks."""
    gateway = FakeProbe()
    async with run({"": gateway}) as running:
        for probes in (1, 2):
            assert 'serving{service="gateway"} 1.0' in (await running.get("/metrics")).text
            assert gateway.attempts == probes


@pytest.mark.parametrize(
    ("limit", "seconds"),
    [("10", 5), ("nan", 5), ("x", 5), ("2", 1.5), ("1.5", 1), ("0.4", 0.2), ("0", 0), ("-1", 0)],
)
def test_a_scrape_has_the_scrapers_own_time_limit(limit: str, seconds: float) -> None:
    """Half a second of it is left for the answer, and it is never more than 5 s."""
    assert routes._scrape_timeout({"x-prometheus-scrape-timeout-seconds": limit}) == seconds
    assert routes._scrape_timeout({}) == 5


async def test_a_scrape_of_a_hanging_gateway_comes_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sample that an alert needs is there: the gateway is not serving."""
    monkeypatch.setattr(routes, "CHECK_TIMEOUT", 1000)
    async with run({"": hanging()}) as running:
        limit = {"X-Prometheus-Scrape-Timeout-Seconds": "0.7"}
        metrics = (await running.get("/metrics", headers=limit)).text
    assert 'ghealth_serving{service="gateway"} 0.0' in metrics
    assert 'ghealth_serving{service="liveness"} 1.0' in metrics


@pytest.mark.parametrize("path", ["/history.json", "/", "/readyz"])
async def test_no_request_waits_long_for_a_hanging_gateway(
    path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It gets what a caller with that deadline gets."""
    monkeypatch.setattr(routes, "CHECK_TIMEOUT", 0.1)
    async with run({"": hanging()}) as running:
        text = (await running.get(path)).text
    assert "no answer before the caller's deadline" in unescape(text)


async def test_accept_decides_the_format_of_the_metrics(busy: httpx.AsyncClient) -> None:
    """OpenMetrics for a client that prefers it, with its content type."""
    accept = {"Accept": "text/plain;q=0.5, application/openmetrics-text"}
    response = await busy.get("/metrics", headers=accept)
    assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1")
    assert response.text.endswith("# EOF\n")


@pytest.mark.parametrize(
    ("query", "status", "body"),
    [
        ("", 200, "gateway answered 200\n"),
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
        response = await running.get(f"/readyz{query}")
    assert (response.status_code, response.text) == (status, body)


async def test_refresh_can_be_switched_off(busy: httpx.AsyncClient) -> None:
    """A link of the page stops it, and another starts it again."""
    on, off = [await busy.get(f"/?refresh={word}") for word in ("on", "off")]
    assert f'http-equiv="refresh" content="{page.REFRESH}"' in on.text
    assert 'http-equiv="refresh"' not in off.text
    assert 'href="/"' in off.text


async def test_bytes_that_are_not_utf_8_are_shown(busy: httpx.AsyncClient) -> None:
    """The kernel accepts any in a host name, and the environment in a setting."""
    history, html = [await busy.get(path) for path in ("/history.json", "/")]
    assert history.json()["settings"][1]["value"] == "/c\udcff.pem"
    assert "/c\\udcff.pem" in html.text


async def test_rendering_does_not_hold_up_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes tens of milliseconds with many services, so one thread does it."""
    threads: list[str] = []
    waiting, finish = asyncio.Semaphore(0), threading.Event()

    def slow(render: Callable[..., Any]) -> Callable[..., Any]:
        def run_slowly(*arguments: Any, **options: Any) -> Any:
            threads.append(threading.current_thread().name)
            finish.wait(2)
            return render(*arguments, **options)

        return run_slowly

    def watchers() -> dict[str, int]:  # called just before a rendering is queued
        waiting.release()
        return {}

    for owner, name in ((page, "render"), (Metrics, "render"), (routes, "_as_json")):
        monkeypatch.setattr(owner, name, slow(getattr(owner, name)))
    async with run({"": FakeProbe()}, watchers) as running:
        paths = ("/", "/metrics", "/history.json")
        rendered = [asyncio.ensure_future(running.get(path)) for path in paths]
        for _ in rendered:
            await waiting.acquire()
        assert (await running.get("/livez")).text == "ok\n"
        finish.set()
        await asyncio.gather(*rendered)
    assert threads == ["admin_0"] * 3


def test_the_template_engine_is_imported_for_the_first_page() -> None:
    """A ghealth whose page is never opened does not pay for it."""
    script = "import sys; import ghealth.admin; sys.exit('jinja2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
