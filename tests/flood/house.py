"""Runs ghealth in a control group, and attackers as separate processes."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Final

from tests.flood import honest
from tests.flood.control_group import Group
from tests.support import frames

PATIENCE: Final = 30.0
"""Seconds that ghealth may take to start or to stop."""
MANY: Final = 5
"""So many attackers would use up all processors of a small machine, so they get less priority."""
DRAIN_DELAY, SHUTDOWN_GRACE = 1.0, 1.0


class Ghealth:
    """A running ghealth.

    Args:
        process: The process.
        port: The gRPC port.
        group: Measures its memory.
        log: The file with its output.
    """

    def __init__(
        self, process: "subprocess.Popen[bytes]", port: int, group: Group, log: IO[bytes]
    ) -> None:
        self.process = process
        self.port = port
        self._group = group
        self._log = log

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self.process.poll() is None

    @property
    def usage(self) -> float:
        """MiB in use now; 0 after its end."""
        return self._group.usage(self.process.pid) if self.alive else 0.0

    @property
    def peak(self) -> float:
        """The peak of its memory so far, in MiB."""
        return self._group.peak(self.process.pid)

    @property
    def descriptors(self) -> int:
        """The number of open descriptors."""
        with contextlib.suppress(OSError):
            return len(os.listdir(f"/proc/{self.process.pid}/fd"))  # noqa: PTH208
        return 0

    @property
    def errors(self) -> list[str]:
        """The output lines that are errors or are not log entries."""
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return [line for line in lines if line[:1] != "{" or '"level": "error"' in line]

    def terminated(self) -> float:
        """Send SIGTERM and return the seconds until the end; kill the process after `PATIENCE`."""
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        return time.monotonic() - started


def free_port() -> int:
    """Return a port on which no process listens."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextlib.contextmanager
def ghealth(
    group: Group, settings: Mapping[str, str], command: Sequence[str] = ("-m", "ghealth")
) -> Iterator[Ghealth]:
    """Run ghealth until the end of the block. It is in the group from its start.

    Args:
        group: Measures its memory.
        settings: Settings without the prefix `GHEALTH_`.
        command: The arguments of Python.
    """
    port = free_port()
    settings = {
        "LISTEN": f"127.0.0.1:{port}",
        "ADMIN_LISTEN": "off",
        "LOG_FORMAT": "json",
        "DRAIN_DELAY": str(DRAIN_DELAY),
        "SHUTDOWN_GRACE": str(SHUTDOWN_GRACE),
        **settings,
    }
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GHEALTH_")}
    environment |= {f"GHEALTH_{name}": value for name, value in settings.items()}
    join = f"echo $$ > {group.procs} && " if group.procs else ""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            ["/bin/sh", "-c", f'{join}exec "$0" "$@"', sys.executable, *command],
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            _wait_until_it_answers(process, port)
            yield Ghealth(process, port, group, log)
        finally:
            process.kill()
            process.wait()


def _wait_until_it_answers(process: "subprocess.Popen[bytes]", port: int) -> None:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(OSError):
            honest.check(port, honest.ALB, frames.EMPTY_MESSAGE)
            return
        time.sleep(0.05)
    raise RuntimeError(f"ghealth does not answer, exit status {process.poll()}")


@contextlib.contextmanager
def attackers(names: Sequence[str], port: int, seconds: float) -> Iterator[None]:
    """Run attackers until the end of the block, each in its own process.

    Args:
        names: Names of attacks.
        port: The server's port.
        seconds: Seconds after which each attack ends by itself.
    """
    niceness = "5" if len(names) < MANY else "15"
    command = (sys.executable, "-m", "tests.flood.attacks")
    with tempfile.TemporaryFile() as log:
        processes = [
            subprocess.Popen(
                [*command, name, str(port), str(seconds), niceness], stdout=log, stderr=log
            )
            for name in names
        ]
        try:
            yield
        finally:
            for process in processes:
                process.kill()
                process.wait()
            log.seek(0)
            if text := log.read().decode():
                print(text, file=sys.stderr)
