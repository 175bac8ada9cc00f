"""ghealth as a separate process."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

TIMEOUT = 60.0
"""Seconds after which an expected event is considered missing, also on a slow machine."""

TIMES = ("--connect-timeout=20s", "--rpc-timeout=20s")
"""Timeouts of a check whose duration is not tested."""

COMMAND = (sys.executable, "-m", "ghealth")


def environment(**variables: str) -> dict[str, str]:
    """Return the environment of a process, with only these of ghealth's variables."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GHEALTH_")}
    return kept | {f"GHEALTH_{name}": value for name, value in variables.items()}


def run(
    *arguments: str, prefix: Sequence[str] = (), **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run a command of ghealth, perhaps by another command, and wait for its end."""
    return subprocess.run(
        [*prefix, *COMMAND, *arguments],
        env=environment(**variables),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


def in_namespaces(*kinds: str, script: str = "true", mapped: bool = True) -> tuple[str, ...]:
    """Return the command that runs another in new namespaces; without them, skip the test.

    Args:
        kinds: Flags of `unshare`.
        script: Prepares the namespaces, in a shell.
        mapped: Whether this user is root in them.
    """
    root = ("--map-root-user",) if mapped else ()
    prefix = ("unshare", *kinds, *root, "sh", "-c", f'{script} && exec "$0" "$@"')
    if subprocess.run([*prefix, "/bin/true"], capture_output=True, check=False).returncode:
        assert "CI" not in os.environ, "CI must be able to create namespaces"
        pytest.skip(f"no namespaces on this machine: unshare {' '.join(kinds)}")
    return prefix


def limiting(option: str) -> tuple[str, ...]:
    """Return the command that runs another with a limit of the shell's `ulimit`."""
    return ("sh", "-c", f'ulimit {option} && exec "$0" "$@"')


@dataclass(frozen=True)
class ControlGroup:
    """A control group; its files have different names in version 1 and 2 (cgroups(7)).

    Args:
        path: Its directory.
    """

    path: Path

    @property
    def prefix(self) -> tuple[str, ...]:
        """The command that runs another in it from its start."""
        return ("sh", "-c", f'echo $$ > {self.path}/cgroup.procs && exec "$0" "$@"')

    def number(self, *names: str) -> int:
        """Return the number in the first of these files that exists; 0 without any."""
        found = (int(file.read_text()) for name in names if (file := self.path / name).exists())
        return next(found, 0)

    def anonymous(self) -> int:
        """Return the bytes of memory in use, without file caches."""
        fields = dict(map(str.split, (self.path / "memory.stat").read_text().splitlines()))
        return int(fields.get("total_rss") or fields["anon"])


@contextmanager
def control_group(controller: str, limits: Mapping[str, int]) -> Iterator[ControlGroup]:
    """Create a control group and remove it at the end. Without control groups, skip the test.

    Args:
        controller: Its folder in version 1.
        limits: The numbers in its files; those that the version does not have are left out.
    """
    root = Path("/sys/fs/cgroup")
    group = (root / controller if (root / controller).is_dir() else root) / f"test-{os.getpid()}"
    try:
        group.mkdir()
        for name, limit in limits.items():
            if (group / name).exists():
                (group / name).write_text(str(limit))
    except OSError:
        assert "CI" not in os.environ, "CI must be able to make a control group"
        pytest.skip("no control groups on this machine")
    try:
        yield ControlGroup(group)
    finally:
        group.rmdir()


class Server:
    """A running ghealth, and the lines that it writes.

    Args:
        process: Its process, with the standard output piped.
    """

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self.process = process
        self._lines: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_started(self) -> None:
        """Wait for the line `started`, and read the ports in it."""
        self.started = self.next("started")
        self.port = self._port("listen", "tls_listen")
        self.admin_port = self._port("admin_listen")

    def _port(self, *keys: str) -> int:
        places = next((self.started[key] for key in keys if key in self.started), [":0"])
        return int(places[0].rpartition(":")[2])

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            is_json = line.startswith("{")
            self._lines.put(json.loads(line) if is_json else {"event": "text", "message": line})
        self._lines.put(None)

    def next(self, event: str) -> dict[str, Any]:
        """Read lines up to the next one with an event."""
        others = []
        while (line := self._lines.get(timeout=TIMEOUT)) is not None:
            if line["event"] == event:
                return line
            others.append(line)
        raise AssertionError(f"ended without the event {event}, after {others}")

    def rest(self) -> list[dict[str, Any]]:
        """Return the lines that are left once the process has ended."""
        self.wait_until_read()
        lines = [self._lines.get_nowait() for _ in range(self._lines.qsize())]
        return [line for line in lines if line is not None]

    def wait_until_read(self) -> None:
        """Wait until all lines are read; the process has ended."""
        self._reader.join(TIMEOUT)
        assert not self._reader.is_alive(), "another process holds its standard output open"

    @property
    def descriptors(self) -> int:
        """The number of its open descriptors; 0 if it has ended."""
        with suppress(OSError):
            return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))
        return 0

    def check(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ghealth check`, with long timeouts."""
        return run("check", "--addr", f"127.0.0.1:{self.port}", *TIMES, *arguments)

    def check_inside(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ghealth check` in its network namespace, with long timeouts."""
        enter = ("nsenter", f"--net=/proc/{self.process.pid}/ns/net")
        addr = f"127.0.0.1:{self.port}"
        return run("check", "--addr", addr, *TIMES, *arguments, prefix=enter)

    def ended_by(self, signum: signal.Signals) -> int:
        """Send it a signal, and return its exit code."""
        self.process.send_signal(signum)
        return self.process.wait(TIMEOUT)


@contextmanager
def server(*prefix: str, **variables: str) -> Iterator[Server]:
    """Run a ghealth on a free port until the end of the block.

    Args:
        prefix: A command that runs the command that follows, such as `unshare`.
        variables: Its settings, without the prefix of their names.
    """
    defaults = {"LISTEN": "127.0.0.1:0", "ADMIN_LISTEN": "off", "LOG_FORMAT": "json"}
    with subprocess.Popen(
        [*prefix, *COMMAND],
        env=environment(**defaults | variables),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        ghealth = Server(process)
        try:
            ghealth.wait_until_started()
            yield ghealth
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(TIMEOUT)
                except subprocess.TimeoutExpired:
                    process.kill()
                    raise
            # The end of the block closes the pipe, so the reader must have ended.
            ghealth.wait_until_read()
