"""Inherited state of a process, and output that cannot be written: one line and an exit code."""

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from tests.support import processes
from tests.support.processes import COMMAND, TIMEOUT

CHECK = "check --addr=127.0.0.1:1 --connect-timeout=1ms"
PRINTING = ["--help", "settings --output=json", CHECK, f"{CHECK} --watch", f"{CHECK} --as=alb"]


def ended(
    command: str,
    *,
    prefix: tuple[str, ...] = (),
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.PIPE,
) -> tuple[int, str | None, str | None]:
    """Run a command without a developer's variables, such as PYTHONUNBUFFERED.

    Returns:
        The exit code, and what was written to the standard output and error.
    """
    done = subprocess.run(
        [*prefix, *COMMAND, *command.split()],
        stdout=stdout,
        stderr=stderr,
        env={"PATH": os.environ["PATH"]},
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def closing(*descriptors: int) -> tuple[str, ...]:
    """Return the command that runs another with closed descriptors."""
    redirections = " ".join(f"{descriptor}>&-" for descriptor in descriptors)
    return ("sh", "-c", f'exec "$0" "$@" {redirections}')


@pytest.fixture
def full() -> Iterator[IO[str]]:
    """A file on a disk that is full."""
    with Path("/dev/full").open("w") as file:
        yield file


@pytest.fixture
def abandoned() -> Iterator[int]:
    """The end to write of a pipe that nothing reads."""
    reader, writer = os.pipe()
    os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize("command", PRINTING)
def test_output_that_cannot_be_written_has_an_exit_code(
    command: str, full: IO[str], abandoned: int
) -> None:
    """A full disk and a closed output are 1 and one line, a closed pipe 128 + SIGPIPE and none."""
    cannot = "ghealth: cannot write: "
    assert ended(command, stdout=full) == (1, None, f"{cannot}No space left on device\n")
    assert ended(command, stdout=abandoned) == (128 + signal.SIGPIPE, None, "")
    closed = ended(command, prefix=closing(1))
    assert closed == (1, "", f"{cannot}standard output is closed\n")


def test_a_mistake_that_cannot_be_written_keeps_its_exit_code(
    full: IO[str], abandoned: int
) -> None:
    """With a full, closed or abandoned standard error, only the exit code is left."""
    for stderr in (full, abandoned):
        assert ended("nonsense", stderr=stderr) == (1, "", None)
    assert ended("nonsense", prefix=closing(2)) == (1, "", "")


def test_with_closed_standard_streams_a_taken_port_has_its_exit_code() -> None:
    """The sockets that it opens to try have other numbers, so nothing is written to them."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        listen = f"GHEALTH_LISTEN=127.0.0.1:{held.getsockname()[1]}"
        assert ended("serve", prefix=(*closing(0, 1, 2), "env", listen)) == (2, "", "")


LIBRARIES = {
    "GRPC_VERBOSITY": "debug",
    "GRPC_TRACE": "all",
    "GRPC_POLL_STRATEGY": "none",
    "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION": "rubbish",
    "http_proxy": "http://127.0.0.1:1",
    "all_proxy": "x",
    "grpc_proxy": "http://x:1",
    "SSLKEYLOGFILE": "/nonexistent/keys",
    "GHEALTH_SERVICE_HOST": "\udcff",
    "\udcff": "\udcff",
}
INTERPRETER = {
    "PYTHONWARNINGS": "error",
    "PYTHONASYNCIODEBUG": "1",
    "PYTHONUNBUFFERED": "1",
    "PYTHONOPTIMIZE": "2",
    "PYTHONPATH": "/nonexistent:/etc/passwd",
    "PYTHONUTF8": "0",
    "PYTHONIOENCODING": "ascii",
    "LC_ALL": "xx",
    "TZ": "xx",
    "TMPDIR": "/nonexistent",
    "COLUMNS": "1",
}
STATE = """
import os, signal, sys
for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
    signal.signal(signum, signal.SIG_IGN)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
os.execvp(sys.argv[1], sys.argv[1:])
"""


@dataclass(frozen=True)
class Life:
    """What a ghealth did until SIGTERM."""

    checked: int
    ended: int
    events: set[str]


@pytest.fixture(scope="module", params=["libraries", "interpreter and state"])
def life(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Life:
    """The life of a ghealth that inherits variables and, in a pod, much more.

    Signals are ignored and blocked, the standard input is closed, and its working directory is
    gone. Its user has no entry in /etc/passwd, and no HOME.
    """
    user = processes.in_namespaces("--user", "--map-user=54321", mapped=False)
    state = (*user, *closing(0), sys.executable, "-c", STATE)
    variables, prefix, url = {
        "libraries": (LIBRARIES, (), "https://localhost:1/"),
        "interpreter and state": (INTERPRETER, state, "http://127.0.0.1:1/"),
    }[request.param]
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("parent"))
        for name in set(os.environ) - {"PATH"}:
            patched.delenv(name)
        for name, value in variables.items():
            patched.setenv(name, value)
        with processes.server(*prefix, PROBE_URL=url, DRAIN_DELAY="0") as ghealth:
            checked = ghealth.check().returncode
            code = ghealth.ended_by(signal.SIGTERM)
            return Life(checked, code, {line["event"] for line in ghealth.rest()})


def test_what_it_inherits_changes_no_answer(life: Life) -> None:
    """It serves and answers, here that the gateway is not ready."""
    assert life.checked == 4


def test_signals_that_were_ignored_and_blocked_work(life: Life) -> None:
    """SIGTERM ends it with exit code 0."""
    assert life.ended == 0


def test_what_it_inherits_adds_no_line(life: Life) -> None:
    """Neither libraries nor the interpreter write anything."""
    own = {"status_changed", "reason_changed", "draining", "stopping", "stopped"}
    # In asyncio's debug mode, a slow machine has messages about slow callbacks.
    assert life.events - {"message"} == own


THREADS_NEEDED = 5 + min(max(os.sysconf("SC_NPROCESSORS_CONF"), 4), 16)


@pytest.mark.parametrize("most", [1, THREADS_NEEDED])
def test_with_few_threads_it_says_so(most: int) -> None:
    """Without enough threads for gRPC, whose core would hang or crash, it is exit code 2."""
    with processes.control_group("pids", {"pids.max": most}) as limited:
        code, _, mistake = ended("serve", prefix=limited.prefix)
    assert code == 2
    assert re.fullmatch(r"ghealth: cannot start: .* threads, only .*\n", mistake or "")


def test_with_enough_threads_it_serves() -> None:
    """No more threads are asked for than serving needs, beside the first one."""
    with (
        processes.control_group("pids", {"pids.max": THREADS_NEEDED + 1}) as limited,
        processes.server(*limited.prefix) as ghealth,
    ):
        assert ghealth.check("--service=liveness").returncode == 0
