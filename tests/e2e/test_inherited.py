"""Inherited state of a process, and output that cannot be written: one line and an exit code."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

import pytest

from tests.support import processes
from tests.support.processes import COMMAND, TIMEOUT

CHECK = ["check", "--addr=127.0.0.1:1", "--connect-timeout=1ms"]
PRINTING = [
    ["--help"],
    ["settings", "--output=json"],
    CHECK,
    [*CHECK, "--watch"],
    ["check", "--addr=127.0.0.1:1", "--as=alb"],
]


def clean(**variables: str) -> dict[str, str]:
    """Return an environment without variables of a developer, such as PYTHONUNBUFFERED."""
    return {"PATH": os.environ["PATH"]} | variables


def ended(
    arguments: Sequence[str],
    *,
    prefix: Sequence[str] = (),
    stdout: int | IO[str] = subprocess.PIPE,
    stderr: int | IO[str] = subprocess.PIPE,
    environment: dict[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, perhaps by another command."""
    return subprocess.run(
        [*prefix, *COMMAND, *arguments],
        stdout=stdout,
        stderr=stderr,
        env=environment or clean(),
        text=True,
        timeout=TIMEOUT,
        check=False,
    )


@contextlib.contextmanager
def abandoned() -> Iterator[int]:
    """Yield the end to write of a pipe that nothing reads."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


def closing(*descriptors: int) -> tuple[str, ...]:
    """Return the command that runs another with closed descriptors."""
    redirections = " ".join(f"{descriptor}>&-" for descriptor in descriptors)
    return ("sh", "-c", f'exec "$0" "$@" {redirections}')


FULL_DISK = (1, "ghealth: cannot write: No space left on device\n")
CLOSED_OUTPUT = (1, "ghealth: cannot write: standard output is closed\n")
BROKEN_PIPE = (128 + signal.SIGPIPE, "")


@pytest.mark.parametrize("arguments", PRINTING, ids=" ".join)
def test_output_that_cannot_be_written_has_an_exit_code(arguments: list[str]) -> None:
    """A full disk and a closed output are 1 and one line, a closed pipe 128 + SIGPIPE and none."""
    cannot_write = "ghealth: cannot write: "
    with Path("/dev/full").open("w") as full:
        done = ended(arguments, stdout=full)
        assert (done.returncode, done.stderr) == (1, f"{cannot_write}No space left on device\n")
    reader, writer = os.pipe()
    os.close(reader)
    done = ended(arguments, stdout=writer)
    os.close(writer)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, "")
    done = ended(arguments, prefix=closing(1))
    assert (done.returncode, done.stderr) == (1, f"{cannot_write}standard output is closed\n")


def test_a_mistake_that_cannot_be_written_keeps_its_exit_code() -> None:
    """With a full, closed or abandoned standard error, only the exit code is left."""
    with Path("/dev/full").open("w") as full:
        found = [ended(["nonsense"], stderr=full)]
    reader, writer = os.pipe()
    os.close(reader)
    found.append(ended(["nonsense"], stderr=writer))
    os.close(writer)
    found.append(ended(["nonsense"], prefix=closing(2)))
    assert [(done.returncode, done.stdout) for done in found] == [(1, "")] * 3


@pytest.mark.parametrize("streams", [(0,), (2,), (0, 1, 2)], ids=str)
def test_closed_standard_streams_are_no_sockets(streams: tuple[int, ...]) -> None:
    """With any streams closed, a taken port is exit code 2, and a free one is served."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        prefix = closing(*streams)
        listen = clean(GHEALTH_LISTEN=f"127.0.0.1:{port}", GHEALTH_ADMIN_LISTEN="off")
        done = ended([], prefix=prefix, environment=listen)
    assert done.returncode == 2
    expected = f"ghealth: cannot listen on 127.0.0.1:{port}: Address already in use\n"
    assert (done.stdout, done.stderr) == ("", "" if 2 in streams else expected)
    with subprocess.Popen(
        [*prefix, *COMMAND],
        env=listen,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as serving:
        try:
            checked = processes.run(
                "check", f"--addr=127.0.0.1:{port}", "--service=liveness", *processes.TIMES
            )
            assert checked.returncode == 0
            serving.send_signal(signal.SIGINT)
            assert serving.wait(TIMEOUT) == 0
            assert serving.stderr is not None
            assert serving.stderr.read() == ""
        finally:
            serving.kill()


def inheriting(setup: str) -> tuple[str, ...]:
    """Return the command that runs another after some lines of Python."""
    program = f"import os, signal, sys\n{setup}\nos.execvp(sys.argv[1], sys.argv[1:])"
    return (sys.executable, "-c", program)


INHERITED = """
for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
    signal.signal(signum, signal.SIG_IGN)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
os.mkdir("gone"); os.chdir("gone"); os.rmdir("../gone")
"""


def test_what_a_parent_leaves_behind_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Ignored and blocked signals work, and a working directory is not needed."""
    monkeypatch.chdir(tmp_path)
    with processes.server(*inheriting(INHERITED), DRAIN_DELAY="0") as ghealth:
        assert ghealth.check("--service=liveness").returncode == 0
        assert ghealth.ended_by(signal.SIGTERM) == 0


LIBRARIES = {
    "GRPC_VERBOSITY": "debug",
    "GRPC_TRACE": "all",
    "GRPC_POLL_STRATEGY": "none",
    "GRPC_EXPERIMENTS": "rubbish",
    "GRPC_ENABLE_FORK_SUPPORT": "1",
    "GRPC_ASYNCIO_ENGINE": "custom_io_manager",
    "GRPC_DNS_RESOLVER": "rubbish",
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
    "PYTHONPATH": "/nonexistent:rubbish:/etc/passwd",
    "PYTHONUTF8": "0",
    "PYTHONCOERCECLOCALE": "0",
    "PYTHONIOENCODING": "ascii",
    "LC_ALL": "xx",
    "TZ": "xx",
    "TERM": "xx",
    "HOME": "/nonexistent",
    "TMPDIR": "/nonexistent",
    "COLUMNS": "1",
}


@pytest.mark.parametrize(
    ("variables", "url"),
    [(LIBRARIES, "https://localhost:1/"), (INTERPRETER, "http://127.0.0.1:1/")],
    ids=["libraries", "interpreter"],
)
def test_variables_of_libraries_and_the_interpreter_change_nothing(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str
) -> None:
    """It serves and answers, and writes nothing but its own lines."""
    for name in set(os.environ) - {"PATH"}:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with processes.server(PROBE_URL=url, DRAIN_DELAY="0") as ghealth:
        assert ghealth.check().returncode == 4
        assert ghealth.ended_by(signal.SIGTERM) == 0
        events = {line["event"] for line in ghealth.rest()}
        # In asyncio's debug mode, a slow machine has messages about slow callbacks.
        assert events - {"message"} == {
            "status_changed",
            "reason_changed",
            "draining",
            "stopping",
            "stopped",
        }


def test_a_user_without_a_name_serves() -> None:
    """A pod's user has no entry in /etc/passwd, and no HOME."""
    user = processes.in_namespaces("--user", "--map-user=54321", mapped=False)
    with processes.server(*user, "env", "-u", "HOME") as ghealth:
        assert ghealth.check("--service=liveness").returncode == 0


@contextlib.contextmanager
def processes_of(most: int) -> Iterator[tuple[str, ...]]:
    """Create a control group with a limit of threads; yield the command that runs another in it."""
    root = Path("/sys/fs/cgroup")
    group = (root / "pids" if (root / "pids").is_dir() else root) / f"ghealth-test-{os.getpid()}"
    try:
        group.mkdir()
        (group / "pids.max").write_text(str(most))
    except OSError:
        assert "CI" not in os.environ, "CI must be able to make a control group"
        pytest.skip("no control groups on this machine")
    try:
        yield ("sh", "-c", f'echo $$ > {group}/cgroup.procs && exec "$0" "$@"')
    finally:
        group.rmdir()


def serves_or_says_why(command: Sequence[str]) -> str:
    """Serve for a moment; return the mistake in one line, empty if it serves."""
    environment = clean(GHEALTH_LISTEN="127.0.0.1:0", GHEALTH_ADMIN_LISTEN="off")
    with subprocess.Popen(
        [*command, *COMMAND],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        try:
            line = process.stdout.readline()
            if line:
                assert json.loads(line)["event"] == "started"
                process.send_signal(signal.SIGINT)
                assert process.wait(TIMEOUT) == 0
                return ""
            assert process.wait(TIMEOUT) == 2
            mistake = process.stderr.read()
        finally:
            process.kill()
    assert mistake.startswith("ghealth: cannot start: ")
    assert mistake.count("\n") == 1
    return mistake


THREADS_NEEDED = 5 + min(max(os.sysconf("SC_NPROCESSORS_CONF"), 4), 16)


@pytest.mark.parametrize("most", [1, THREADS_NEEDED, THREADS_NEEDED + 1])
def test_with_few_threads_it_says_so(most: int) -> None:
    """Without enough threads for gRPC, whose core would hang or crash, it is exit code 2."""
    with processes_of(most) as command:
        mistake = serves_or_says_why(command)
    assert ("" if most > THREADS_NEEDED else "threads, only") in mistake
    assert bool(mistake) is (most <= THREADS_NEEDED)
