"""Opens the operators' page in a real browser: checks it, or takes its pictures.

The browser is a headless Chromium, told what to do over a pipe by its own DevTools protocol. It
shows what a ghealth told callers of all kinds beside a gateway that went sick and well again.
"""

import argparse
import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.gateway import READY, SICK, Agent

DOCS = Path(__file__).parents[2] / "docs"
GHEALTH = str(Path(sys.prefix) / "bin" / "ghealth")
PATIENCE = 30.0

DESK, PHONE = (1080, 1180, False), (390, 1180, True)
"""Width, height and whether it is a phone."""

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"

FLAGS = (
    # As root, and without a word to anybody but the page.
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)


class Browser:
    """A headless Chromium with one empty page.

    Args:
        profile: An empty folder for what it keeps.
    """

    def __init__(self, profile: str) -> None:
        chromium = shutil.which("chromium")
        if chromium is None:
            raise SystemExit("no chromium on this machine: apt-get install chromium")
        hears, self._tell = os.pipe()
        self._hear, tells = os.pipe()
        self._process = subprocess.Popen(
            [
                "/bin/bash",  # dash knows no descriptors beyond 9
                "-c",
                f'exec "$0" "$@" 3<&{hears} 4>&{tells}',
                chromium,
                *FLAGS,
                f"--user-data-dir={profile}",
            ],
            pass_fds=(hears, tells),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(hears)
        os.close(tells)
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
        """Give a command, and take its result."""
        number = next(self._numbers)
        command = {"id": number, "method": method, "params": parameters}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._tell, json.dumps(command).encode() + b"\0")
        while (said := self._next()).get("id") != number:
            self.events.append(said)
        if "error" in said:
            raise RuntimeError(f"{method}: {said['error']}")
        return said["result"]

    def open(self, url: str, width: int, height: int, phone: bool) -> None:
        """Show a page until it is loaded."""
        self.do(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=phone,
        )
        self.events.clear()
        self.do("Page.navigate", url=url)
        while all(event.get("method") != "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        return self.do("Runtime.evaluate", expression=expression)["result"]["value"]

    def picture(self) -> bytes:
        """Take a picture of what is seen, as PNG."""
        return base64.b64decode(self.do("Page.captureScreenshot", format="png")["data"])

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(PATIENCE)
        os.close(self._tell)
        os.close(self._hear)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._hear, 1 << 20)
            if not more:
                raise RuntimeError("the browser has ended")
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        said: dict[str, Any] = json.loads(message)
        return said


def ask(port: int, user_agent: str, service: str = "") -> None:
    """Make one Check in the name of some caller."""
    options = [("grpc.primary_user_agent", user_agent)]
    with grpc.insecure_channel(f"127.0.0.1:{port}", options=options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        with suppress(grpc.RpcError):
            stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=PATIENCE)


def as_alb(port: int) -> None:
    """Make one health check of an ALB."""
    subprocess.run(
        [GHEALTH, "check", "--as", "alb", "--addr", f"127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL,
        check=False,
        timeout=PATIENCE,
    )


@contextmanager
def story() -> Iterator[tuple[int, int]]:
    """Run a ghealth, let things happen, and tell its gRPC port and the operators'."""
    with ExitStack() as stack:
        agent = stack.enter_context(Agent())
        kept = {name: value for name, value in os.environ.items() if name[:8] != "GHEALTH_"}
        ghealth = subprocess.Popen(
            [GHEALTH],
            env=kept
            | {
                "GHEALTH_LISTEN": "127.0.0.1:0",
                "GHEALTH_METRICS_LISTEN": "127.0.0.1:0",
                "GHEALTH_PROBE_URL": f"http://user:secret@127.0.0.1:{agent.port}/healthz/ready",
                "GHEALTH_CACHE_TTL": "0.2",
                "GHEALTH_LOG_FORMAT": "json",
            },
            stdout=subprocess.PIPE,
            text=True,
        )
        stack.callback(ghealth.wait, PATIENCE)
        stack.callback(ghealth.terminate)
        assert ghealth.stdout is not None
        started = json.loads(ghealth.stdout.readline())
        port, operators = (
            int(started[key][0].rpartition(":")[2]) for key in ("listen", "metrics_listen")
        )
        for state in (READY, SICK, READY, SICK):
            agent.state = state
            time.sleep(0.4)  # so that the answer before is not fresh any more
            as_alb(port)
            ask(port, "kube-probe/1.34")
            ask(port, "Envoy/HC")
        yield port, operators


def check(browser: Browser, port: int, operators: int) -> list[str]:
    """Tell what is wrong with the page."""
    ask(port, EVIL, service=EVIL)
    mistakes = []
    url = f"http://127.0.0.1:{operators}/"
    for size in (DESK, PHONE, (320, 600, True)):
        browser.open(url, *size)
        facts = {
            "it fits": "document.documentElement.scrollWidth <= window.innerWidth",
            "its style holds": "getComputedStyle(document.querySelector('table'))"
            ".borderCollapse == 'collapse'",
            "no script is in it": "document.scripts.length + document.images.length == 0",
            "no caller's text is a tag": "document.title == 'NOT_SERVING: ghealth'",
            "a caller's text is seen": "document.body.innerText.includes('<img src=x onerror=')",
            "no secret is seen": "!document.body.innerText.includes('secret')",
            "it says why": "document.body.innerText.includes('gateway answered 503')",
            "it says what an ALB concludes": "document.body.innerText.includes('unhealthy')",
        }
        mistakes += [
            f"{size}: not true: {f}" for f, what in facts.items() if not browser.value(what)
        ]
        for event in browser.events:
            match event.get("method"):
                case "Network.requestWillBeSent":
                    asked = event["params"]["request"]["url"]
                    if asked != url:
                        mistakes.append(f"{size}: the page asked for {asked}")
                case "Log.entryAdded" | "Runtime.exceptionThrown":
                    mistakes.append(f"{size}: the browser said {event['params']}")
    return mistakes


def main() -> int:
    """Check, or with --pictures take pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", action="store_true", help="write docs/page*.png")
    pictures = parser.parse_args().pictures
    with ExitStack() as stack:
        port, operators = stack.enter_context(story())
        browser = Browser(stack.enter_context(tempfile.TemporaryDirectory()))
        stack.callback(browser.close)
        if pictures:
            for name, size in (("page.png", DESK), ("page-phone.png", PHONE)):
                browser.open(f"http://127.0.0.1:{operators}/", *size)
                (DOCS / name).write_bytes(browser.picture())
            return 0
        mistakes = check(browser, port, operators)
    for mistake in mistakes:
        print(mistake)
    print(f"the page in a browser: {len(mistakes)} mistakes")
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
