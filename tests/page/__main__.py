"""Opens the status page in a real browser: checks it, or takes its pictures.

The browser is a headless Chromium that takes commands by its DevTools protocol over a pipe. The
page is that of a real ghealth, beside a gateway that becomes ready and not ready, with callers of
several kinds.
"""

import argparse
import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import interrupt, wire
from tests.support.gateway import READY, SICK, Agent

DOCS = Path(__file__).parents[2] / "docs"
GHEALTH = str(Path(sys.prefix) / "bin" / "ghealth")
TIMEOUT = 30.0
ALB = [("user-agent", "ELB-HealthChecker/2.0")]
EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

FLAGS = (
    "--headless",
    "--no-sandbox",  # as root
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


@dataclass(frozen=True, slots=True)
class Screen:
    """A screen of the browser.

    Args:
        width: In pixels.
        height: In pixels.
        scheme: The colours, `light` or `dark`.
        is_phone: Whether it is a phone.
    """

    width: int
    height: int
    scheme: str = "light"
    is_phone: bool = False


DESK, DARK = Screen(1280, 900), Screen(1280, 900, "dark")
PHONE, SMALL = Screen(390, 844, is_phone=True), Screen(320, 600, "dark", is_phone=True)


class Browser:
    """A headless Chromium with one empty page.

    Args:
        profile: An empty folder for its files.
    """

    def __init__(self, profile: str) -> None:
        chromium = shutil.which("chromium")
        if chromium is None:
            raise SystemExit("no chromium on this machine: apt-get install chromium")
        commands, self._commands = os.pipe()
        self._replies, replies = os.pipe()
        self._process = subprocess.Popen(
            [
                "/bin/bash",  # dash knows no descriptors beyond 9
                "-c",
                f'exec "$0" "$@" 3<&{commands} 4>&{replies}',
                chromium,
                *FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(commands, replies),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(replies)
        self._numbers = itertools.count(1)
        self._session: str | None = None
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        attached = self.do("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._commands, json.dumps(command).encode() + b"\0")
        while (reply := self._next()).get("id") != number:
            self.events.append(reply)
        if "error" in reply:
            raise RuntimeError(f"{method}: {reply['error']}")
        return reply["result"]

    def open(self, url: str, screen: Screen) -> None:
        """Open a page and wait until it is loaded."""
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=screen.width,
            height=screen.height,
            deviceScaleFactor=1,
            mobile=screen.is_phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": screen.scheme}
        self.do("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self.do("Page.navigate", url=url)
        while all(event.get("method") != "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        return self.do("Runtime.evaluate", expression=expression)["result"]["value"]

    def picture(self) -> bytes:
        """Return a picture of the visible part as PNG."""
        return base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(TIMEOUT)
        os.close(self._commands)
        os.close(self._replies)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._replies, 1 << 20)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        reply: dict[str, Any] = json.loads(message)
        return reply


def ask(port: int, user_agent: str, service: str = "") -> None:
    """Make one Check by a gRPC client."""
    options = [("grpc.primary_user_agent", user_agent)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with suppress(grpc.RpcError):
            stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT)


def ask_as_alb(port: int, path: str = wire.CHECK) -> None:
    """Make one health check as an ALB does."""
    asyncio.run(wire.call(port, wire.EMPTY_MESSAGE, path=path, headers=ALB))


@dataclass(frozen=True, slots=True)
class Story:
    """A running ghealth with some history.

    Args:
        page: The address of its status page.
        port: The port of gRPC.
        process: The process.
    """

    page: str
    port: int
    process: "subprocess.Popen[str]"


@contextmanager
def story(states: tuple[str, ...], services: int = 0) -> Iterator[Story]:
    """Run a ghealth beside a gateway that has these states in turn, and let callers check it.

    Args:
        states: The states of the gateway.
        services: The number of further services, all serving.
    """
    with ExitStack() as stack:
        agent, other = stack.enter_context(Agent()), stack.enter_context(Agent())
        more = {f"service-{n}": f"http://127.0.0.1:{other.port}/{n}" for n in range(services)}
        kept = {name: value for name, value in os.environ.items() if name[:8] != "GHEALTH_"}
        process = subprocess.Popen(
            [GHEALTH],
            env=kept
            | {
                "GHEALTH_LISTEN": "127.0.0.1:0",
                "GHEALTH_ADMIN_LISTEN": "127.0.0.1:0",
                "GHEALTH_PROBE_URL": f"http://user:s3cr3t@127.0.0.1:{agent.port}/healthz/ready",
                "GHEALTH_SERVICES": json.dumps(more),
                "GHEALTH_CACHE_TTL": "0.2",
                "GHEALTH_DRAIN_DELAY": "60",
                "GHEALTH_LOG_FORMAT": "json",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(process.wait, TIMEOUT)
        stack.callback(process.kill)
        assert process.stdout is not None
        started = json.loads(process.stdout.readline())
        port = int(started["listen"][0].rpartition(":")[2])
        for state in states:
            agent.state = state
            time.sleep(0.4)  # the previous result is no longer fresh
            ask_as_alb(port)
            ask(port, "kube-probe/1.34", "liveness")
            ask(port, "Envoy/HC")
            if state == states[0]:
                ask(port, "grpc-go/1.70.0")  # and never again
        yield Story(f"http://{started['admin_listen'][0]}/", port, process)


CONTRAST = """
(() => {
  const canvas = document.createElement('i')
  canvas.style.backgroundColor = 'Canvas'
  document.body.append(canvas)
  const light = colour => {
    const [r, g, b] = colour.match(/[\\d.]+/g).map(Number).map(value => {
      const part = value / 255
      return part <= .04045 ? part / 12.92 : ((part + .055) / 1.055) ** 2.4
    })
    return .2126 * r + .7152 * g + .0722 * b
  }
  const back = light(getComputedStyle(canvas).backgroundColor)
  canvas.remove()
  return Math.min(...[...document.querySelectorAll('.good, .bad')].map(element => {
    const fore = light(getComputedStyle(element).color)
    return (Math.max(fore, back) + .05) / (Math.min(fore, back) + .05)
  }))
})()
"""
"""The least contrast of a status word with the background; 4.5 is readable (WCAG 2, 1.4.3)."""

BROKEN_WORDS = """
[...document.querySelectorAll('.word, td[data-name=caller]')].filter(element => {
  const text = document.createRange()
  text.selectNodeContents(element)
  const lines = new Set([...text.getClientRects()].map(line => line.top)).size
  return lines > element.innerText.trim().split(/[\\s-]+/).length
}).length
"""
"""How many statuses and kinds of callers have a line break inside a word."""

ALWAYS = {
    "it fits": "document.documentElement.scrollWidth <= window.innerWidth",
    "its style holds": "getComputedStyle(document.querySelector('table'))"
    ".borderCollapse == 'collapse'",
    "no script is in it": "document.scripts.length + document.images.length == 0",
    "no secret is seen": "!document.body.innerText.includes('s3cr3t')",
    "no word is broken": f"{BROKEN_WORDS} == 0",
    "status words are readable": f"{CONTRAST} >= 4.5",
    "it refreshes itself": "document.querySelector('meta[http-equiv=refresh]').content == '10'",
}
"""What is true of every page, as JavaScript."""

RED = {
    "its title is red": "document.title.startsWith('🔴 not serving: gateway - ')",
    "no caller's text is a tag": "!document.title.includes('owned')",
    "a caller's text is seen": "document.body.innerText.includes('<img src=x onerror=')",
    "it says why": "document.querySelector('#sick ~ table').innerText"
    ".includes('gateway answered 503')",
    "it says what was probed": "document.querySelector('#sick ~ table').innerText"
    ".includes('/healthz/ready')",
    "it says what an ALB concludes": "document.querySelector('#callers ~ table').innerText"
    ".includes('unhealthy')",
}
ONE_SCREEN = {
    "reasons and callers are on the first screen": "document.querySelector('#callers ~ table')"
    ".getBoundingClientRect().bottom <= window.innerHeight",
}
GREEN = {
    "its title is green": "document.title.startsWith('🟢 serving - ')",
    "no answer from before is red": "!document.querySelector('#callers ~ table .bad')",
}
DRAINING = {
    "its title says so": "document.title.startsWith('🔴 draining - ')",
    "it says since when": "/Draining since \\d/.test(document.body.innerText)",
}


def check(browser: Browser, url: str, screen: Screen, facts: dict[str, str]) -> list[str]:
    """Return the mistakes of a page on a screen."""
    browser.open(url, screen)
    mistakes = [f"{screen}: not true: {f}" for f, js in facts.items() if not browser.value(js)]
    mistakes += accessibility_mistakes(browser)
    for event in browser.events:
        match event.get("method"):
            case "Network.requestWillBeSent":
                requested = event["params"]["request"]["url"]
                if requested != url:
                    mistakes.append(f"{screen}: the page requested {requested}")
            case "Log.entryAdded" | "Runtime.exceptionThrown":
                mistakes.append(f"{screen}: the browser reported {event['params']}")
    return mistakes


def accessibility_mistakes(browser: Browser) -> list[str]:
    """Return what a screen reader cannot find: tables with names, rows with headers."""
    nodes = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in browser.do("Accessibility.getFullAXTree")["nodes"]
        if not node.get("ignored")
    ]
    tables = [name for role, name in nodes if role == "table"]
    roles = [role for role, _ in nodes]
    count = browser.value("document.querySelectorAll('table').length")
    rows = browser.value("document.querySelectorAll('tbody tr').length")
    columns = browser.value("document.querySelectorAll('thead th').length")
    mistakes = []
    if len(tables) != count or not all(tables):
        mistakes.append(f"tables as read: {tables}, expected {count} with names")
    if roles.count("rowheader") != rows:
        mistakes.append(f"{roles.count('rowheader')} row headers as read, expected {rows}")
    if roles.count("columnheader") != columns:
        mistakes.append(f"{roles.count('columnheader')} column headers as read, not {columns}")
    return mistakes


def check_all(browser: Browser) -> list[str]:
    """Check the page in every state: not serving, serving with many services, draining."""
    mistakes = []
    with story((READY, SICK, READY, SICK)) as sick:
        for screen in (DESK, DARK):
            mistakes += check(browser, sick.page, screen, ALWAYS | ONE_SCREEN)
        ask(sick.port, EVIL, service=EVIL)
        for screen in (DESK, DARK, PHONE, SMALL):
            mistakes += check(browser, sick.page, screen, ALWAYS | RED)
    with story((READY, SICK), services=60) as sick:
        mistakes += check(browser, sick.page, DESK, ALWAYS | ONE_SCREEN)
    with story((SICK, READY), services=60) as well:
        mistakes += check(browser, well.page, DESK, ONE_SCREEN)
        for screen in (DESK, PHONE):
            mistakes += check(browser, well.page, screen, ALWAYS | GREEN)
        well.process.send_signal(signal.SIGTERM)
        for screen in (DESK, PHONE):
            mistakes += check(browser, well.page, screen, ALWAYS | DRAINING)
    return mistakes


def take_pictures(browser: Browser) -> None:
    """Write docs/page*.png."""
    with story((READY, SICK, READY, SICK)) as sick:
        pictures = {"page.png": DESK, "page-dark.png": DARK, "page-phone.png": PHONE}
        for name, screen in pictures.items():
            browser.open(sick.page, screen)
            (DOCS / name).write_bytes(browser.picture())


def main() -> int:
    """Check, or with --pictures take pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", action="store_true", help="write docs/page*.png")
    pictures = parser.parse_args().pictures
    with ExitStack() as stack:
        # A process of the browser that ends last may still write.
        folder = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        browser = Browser(stack.enter_context(folder))
        stack.callback(browser.close)
        if pictures:
            take_pictures(browser)
            return 0
        mistakes = check_all(browser)
    for mistake in mistakes:
        print(mistake)
    print(f"the status page in a browser: {len(mistakes)} mistakes")
    return 1 if mistakes else 0


if __name__ == "__main__":
    interrupt.run(main)
