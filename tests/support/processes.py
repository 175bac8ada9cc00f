"""ghealth as people run it: a process of its own."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

PATIENCE = 60.0
"""Seconds after which something will never come; no machine is starved for that long."""

TIMES = ("--connect-timeout=20s", "--rpc-timeout=20s")
"""For a check whose time is not what is tested."""

COMMAND = (sys.executable, "-m", "ghealth")


def environment(**variables: str) -> dict[str, str]:
    """Make the environment of a process, with these variables of ghealth's and no others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GHEALTH_")}
    return kept | {f"GHEALTH_{name}": value for name, value in variables.items()}


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command of ghealth's to its end."""
    return subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def in_namespaces(*kinds: str, script: str = "true") -> tuple[str, ...]:
    """Tell the command that runs another in namespaces of its own; skip where there are none.

    Args:
        kinds: Flags of `unshare`.
        script: Prepares the namespaces, in a shell.
    """
    prefix = ("unshare", *kinds, "--map-root-user", "sh", "-c", f'{script} && exec "$0" "$@"')
    if subprocess.run([*prefix, "/bin/true"], capture_output=True, check=False).returncode:
        assert "CI" not in os.environ, "CI must be able to make namespaces"
        pytest.skip(f"no namespaces on this machine: unshare {' '.join(kinds)}")
    return prefix


class Server:
    """A ghealth under way, and the lines that it writes.

    Args:
        process: Its process, with the standard output piped.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.started = self.next("started")
        self.port = int(self.started["listen"][0].rpartition(":")[2])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._lines.put(json.loads(line))

    def next(self, event: str) -> dict[str, Any]:
        """Take the lines up to the next one about an event."""
        while (line := self._lines.get(timeout=PATIENCE))["event"] != event:
            pass
        return line

    def rest(self) -> list[dict[str, Any]]:
        """Take what is left once the process has ended."""
        self._reader.join(PATIENCE)
        return [self._lines.get_nowait() for _ in range(self._lines.qsize())]

    def check(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Ask it by `ghealth check`, with all the time that it may take."""
        return run("check", "--addr", f"127.0.0.1:{self.port}", *TIMES, *arguments)

    def ended_by(self, signum: signal.Signals) -> int:
        """Send it a signal, and tell its exit code."""
        self.process.send_signal(signum)
        return self.process.wait(PATIENCE)


@contextmanager
def server(*prefix: str, **variables: str) -> Iterator[Server]:
    """Run a ghealth on a free port until the end of the block.

    Args:
        prefix: A command that runs the command that follows, such as `unshare`.
        variables: Its settings, without the prefix of their names.
    """
    settings = {"LISTEN": "127.0.0.1:0", "LOG_FORMAT": "json"} | variables
    with subprocess.Popen(
        [*prefix, *COMMAND],
        env=environment(**settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield Server(process)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(PATIENCE)
