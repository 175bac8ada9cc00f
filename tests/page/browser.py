"""A headless Chromium, by its DevTools protocol over a pipe."""

import itertools
import json
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

FLAGS = """
--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --hide-scrollbars
--disable-background-networking --disable-component-update --disable-sync --remote-debugging-pipe
"""
"""Root must be without a sandbox."""

SCREENS = {
    "desk": (1280, 900, "light"),
    "dark": (1280, 900, "dark"),
    "phone": (390, 844, "light"),
    "small": (320, 600, "dark"),
}
"""Width and height in pixels, and the colours; narrow ones are phones."""


class Browser:
    """One page of a running browser.

    Args:
        pipe: Where it reads commands, and writes replies and events.
    """

    def __init__(self, pipe: socket.socket) -> None:
        self._pipe = pipe
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        self._rest = b""
        self.events: list[dict[str, Any]] = []
        target = self.do("Target.createTarget", url="about:blank")["targetId"]
        attached = self.do("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.do(f"{domain}.enable")

    def do(self, method: str, **parameters: Any) -> Any:
        """Send a command and return its result."""
        command = {"id": next(self._numbers), "method": method, "params": parameters}
        self._pipe.sendall(json.dumps(command | self._session).encode() + b"\0")
        while (reply := self._next()).get("id") != command["id"]:
            self.events.append(reply)
        return reply["result"]

    def open(self, url: str, screen: str) -> None:
        """Open a page on one of `SCREENS`, and wait until it is loaded."""
        width, height, scheme = SCREENS[screen]
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 400}
        self.do("Emulation.setDeviceMetricsOverride", **size)
        colours = {"name": "prefers-color-scheme", "value": scheme}
        self.do("Emulation.setEmulatedMedia", features=[colours])
        self.events.clear()
        self.do("Page.navigate", url=url)
        while not self.params_of("Page.loadEventFired"):
            self.events.append(self._next())

    def params_of(self, *methods: str) -> list[Any]:
        """Return the parameters of these events since the page was opened."""
        return [event["params"] for event in self.events if event["method"] in methods]

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the page."""
        return self.do("Runtime.evaluate", expression=expression)["result"]["value"]

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            more = self._pipe.recv(1 << 20)
            assert more, "the browser has ended"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def chromium(profile: Path) -> Iterator[Browser]:
    """Run a browser until the end of the block.

    Args:
        profile: An empty folder for its files.
    """
    found = shutil.which("chromium")
    assert found, "no chromium on this machine: apt-get install chromium"
    ours, theirs = socket.socketpair()
    # dash knows no descriptors beyond 9
    script = f'exec "$0" "$@" 3<&{theirs.fileno()} 4>&3'
    command = ["bash", "-c", script, found, *FLAGS.split(), f"--user-data-dir={profile}"]
    silent = subprocess.DEVNULL
    with (
        ours,
        subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=silent) as process,
    ):
        theirs.close()
        try:
            yield Browser(ours)
        finally:
            process.terminate()
