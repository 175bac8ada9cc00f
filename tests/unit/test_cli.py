import asyncio
import contextlib
import errno
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ghealth import __version__, cli, output, process
from ghealth.server.listen import ListenError
from ghealth.server.prepare import Prepared
from ghealth.settings import Settings
from tests.support import processes


def run(*arguments: str) -> Any:
    """Run a command in this process, and return its exit code in whatever way it ends."""
    try:
        return cli.main(arguments)
    except SystemExit as ended:
        return ended.code


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ("nonsense", "unknown command 'nonsense'; expected serve, settings, check"),
        ("--nonsense", "unknown flag --nonsense"),
        ("--port 25021", "unknown flag --port"),
        ("--vers", "unknown flag --vers"),
        ("serve --port=1", "unknown flag --port"),
        ("serve x", "unexpected argument 'x'"),
        ("settings --output x", "argument --output: invalid choice: 'x'"),
    ],
)
def test_a_bad_argument_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: str, text: str
) -> None:
    """An unknown argument is named in one line, exit code 1."""
    assert run(*arguments.split()) == 1
    report = capsys.readouterr().err
    assert report.startswith(f"ghealth: {text}")
    assert report.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--help", ["serve", "check", "settings", "exit codes", "2  cannot start"]),
        ("serve --help", ["SIGTERM", "ghealth settings", "exit codes"]),
        ("settings --help", ["--output {text,json}"]),
        ("check --help", ["--addr", "--service", "--connect-timeout", "--rpc-timeout"]),
    ],
)
def test_help(capsys: pytest.CaptureFixture[str], arguments: str, words: list[str]) -> None:
    """--help names the commands, their flags and the exit codes."""
    assert run(*arguments.split()) == 0
    said = capsys.readouterr().out
    assert all(word in said for word in words)


def test_settings_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ghealth settings` shows value, default and meaning of every variable, secrets masked."""
    monkeypatch.setenv("GHEALTH_CACHE_TTL", "0.5")
    monkeypatch.setenv("GHEALTH_PROBE_HEADERS", '{"X-Key": "s3cret"}')
    assert run("settings") == 0
    shown = capsys.readouterr().out
    assert "* GHEALTH_CACHE_TTL=0.5s\n      default: 1s\n      How long" in shown
    assert '* GHEALTH_PROBE_HEADERS={"X-Key": "***"}\n' in shown
    assert "  GHEALTH_DRAIN_DELAY=5s\n      default: 5s\n" in shown
    assert "  GHEALTH_LOG_FORMAT=\n      default: unset\n" in shown
    assert shown.count("\n      default: ") == len(Settings.model_fields)
    assert shown.count("* GHEALTH_") == 2


def test_settings_are_shown_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For programs, each setting is an object with stable keys."""
    monkeypatch.setenv("GHEALTH_STATUS_CALLERS", "x")
    assert run("settings", "--output=json") == 0
    rows = {row.pop("variable"): row for row in json.loads(capsys.readouterr().out)}
    assert len(rows) == len(Settings.model_fields)
    callers = rows["GHEALTH_STATUS_CALLERS"]
    assert callers.pop("meaning").startswith("Callers that read the message")
    assert callers == {"value": "x", "default": "grpc-,Envoy/HC", "changed": True}
    assert [name for name, row in rows.items() if row["changed"]] == ["GHEALTH_STATUS_CALLERS"]


@pytest.fixture(autouse=True)
def _what_is_reset_is_restored() -> Iterator[None]:
    """A command changes its process, which is the tests' one here."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = [signal.getsignal(signum) for signum in signals]
    yield
    for signum, handler in zip(signals, before, strict=True):
        signal.signal(signum, handler)


@pytest.mark.parametrize("arguments", [[], ["serve"], ["settings"]])
def test_mistakes_in_the_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """Mistakes in settings and files are reported, a line each, on standard error; exit code 1."""
    monkeypatch.setenv("GHEALTH_CACHE_TTL", "x")
    monkeypatch.setenv("GHEALTH_LISTEM", "x")
    monkeypatch.setenv("GHEALTH_PROBE_URL", "https://gw/")
    monkeypatch.setenv("SSL_CERT_FILE", "/gone")
    assert run(*arguments) == 1
    written = capsys.readouterr()
    assert written.out == ""
    assert [line.split()[:2] for line in written.err.splitlines()] == [
        ["ghealth:", "GHEALTH_CACHE_TTL:"],
        ["ghealth:", "GHEALTH_LISTEM:"],
        ["ghealth:", "SSL_CERT_FILE:"],
    ]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], r'* GHEALTH_SERVICES={"\xe9\U0001f534": "http://a/"}'),
        (["--output=json"], r'"value": "{\"\u00e9\ud83d\udd34\": \"http://a/\"}"'),
    ],
)
def test_what_the_locale_cannot_show_is_escaped(flags: list[str], shown: str) -> None:
    """A locale without Unicode ends nothing, and JSON stays JSON."""
    environment = processes.environment(SERVICES='{"é🔴": "http://a/"}')
    done = subprocess.run(
        [*processes.COMMAND, "settings", *flags],
        capture_output=True,
        env=environment | {"PYTHONIOENCODING": "ascii"},
        text=True,
        check=True,
    )
    assert shown in done.stdout


def test_a_taken_port_is_one_line() -> None:
    """A taken port ends with exit code 2 and one line, without a word from gRPC's core."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        done = processes.run(LISTEN=f"[::]:{port}", ADMIN_LISTEN="off")
    mistake = f"ghealth: cannot listen on [::]:{port}: Address already in use\n"
    assert (done.returncode, done.stderr, done.stdout) == (2, mistake, "")


Trigger = Callable[[], Awaitable[bool]]


def serving_as(
    monkeypatch: pytest.MonkeyPatch, story: Callable[[Trigger], Awaitable[None]]
) -> None:
    """Have `ghealth serve` do something else, up to its signals."""

    async def serve(_: Prepared, *, shutdown_trigger: Trigger) -> None:
        await story(shutdown_trigger)

    monkeypatch.setattr("ghealth.server.serve.serve_prepared", serve)
    monkeypatch.setattr("sys.stdout", None)


@pytest.mark.parametrize(("signum", "drains"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_the_first_signal_pulls_the_trigger(
    monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, drains: bool
) -> None:
    """SIGTERM gives callers time to notice, SIGINT does not; the exit code is 0."""
    received = []

    async def story(trigger: Trigger) -> None:
        os.kill(os.getpid(), signum)
        received.append(await trigger())

    serving_as(monkeypatch, story)
    assert run() == 0
    assert received == [drains]


def test_the_second_signal_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second signal ends the process at once, with the exit code that shells give."""
    ended = []

    async def story(trigger: Trigger) -> None:
        ending = asyncio.Event()

        def end(code: int) -> None:
            ended.append(code)
            ending.set()

        monkeypatch.setattr(os, "_exit", end)
        os.kill(os.getpid(), signal.SIGTERM)
        await trigger()
        os.kill(os.getpid(), signal.SIGINT)
        await ending.wait()

    serving_as(monkeypatch, story)
    run("serve")
    assert ended == [128 + signal.SIGINT]


def test_an_address_that_cannot_be_listened_on_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit code is 2."""

    async def story(_: Trigger) -> None:
        raise ListenError("cannot listen on x")

    serving_as(monkeypatch, story)
    assert run("serve") == 2
    assert capsys.readouterr().err == "ghealth: cannot listen on x\n"


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m ghealth` does what `ghealth` does."""
    monkeypatch.setattr("sys.argv", ["ghealth", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("ghealth", run_name="__main__")
    assert capsys.readouterr().out == f"ghealth {__version__}\n"


def failing_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Have `ghealth settings` fail."""

    def fail(_: object) -> Any:
        raise error

    monkeypatch.setattr(cli, "_settings", fail)


def test_ctrl_c_ends_any_command_without_a_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit code is the one that shells give."""
    failing_with(monkeypatch, KeyboardInterrupt())
    assert run("settings") == 128 + signal.SIGINT


@pytest.mark.parametrize("argument", ["settings", "--version", "nonsense"])
def test_every_command_undoes_what_a_parent_left_behind(
    monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    """Inherited signals, streams and variables are reset for every command."""
    reset: list[bool] = []
    monkeypatch.setattr(process, "reset_inherited", lambda: reset.append(True))
    run(argument)
    assert reset == [True]


def test_an_unexpected_failure_has_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError that is not about output is a bug, and is not hidden."""
    failing_with(monkeypatch, OSError(errno.EIO, "Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        run("settings")


def test_too_few_resources_are_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Threads are tried before gRPC is imported: exit code 2."""

    def refuse() -> None:
        raise process.ResourceError("too few")

    monkeypatch.setattr(process, "require_resources", refuse)
    assert run() == 2
    assert capsys.readouterr().err == "ghealth: cannot start: too few\n"


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (output.OutputClosedError("Broken pipe"), 128 + signal.SIGPIPE, ""),
        (output.OutputError("No space left"), 1, "ghealth: cannot write: No space left\n"),
    ],
)
def test_output_that_cannot_be_written_has_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    code: int,
    text: str,
) -> None:
    """A reader that has left and a disk that is full end a command without a stack."""
    failing_with(monkeypatch, error)
    assert run("settings") == code
    assert capsys.readouterr().err == text


def test_before_it_serves_sigterm_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 17: SIGTERM is heeded during the imports, too."""
    monkeypatch.setattr(process, "require_resources", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert run("serve") == 128 + signal.SIGTERM


@contextlib.contextmanager
def started(*command: str, **settings: str) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Run a command, which must end in the block, and return its process and its first line."""
    own = processes.environment(LISTEN="127.0.0.1:0", **settings)
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=own) as running:
        try:
            assert running.stdout is not None
            yield running, running.stdout.readline()
            running.wait(processes.TIMEOUT)
        finally:
            running.kill()


@pytest.mark.parametrize(("signum", "delay"), [(signal.SIGTERM, "100ms"), (signal.SIGINT, "20")])
def test_a_signal_ends_it_in_order(signum: signal.Signals, delay: str) -> None:
    """SIGTERM and SIGINT end it with exit code 0 and a line for each phase."""
    with processes.server(DRAIN_DELAY=delay) as ghealth:
        assert ghealth.ended_by(signum) == 0
        assert [line["event"] for line in ghealth.rest()] == ["draining", "stopping", "stopped"]


def test_a_second_signal_ends_it_at_once() -> None:
    """A second signal skips the drain."""
    with processes.server(DRAIN_DELAY="60") as ghealth:
        ghealth.process.send_signal(signal.SIGTERM)
        ghealth.next("draining")
        assert ghealth.ended_by(signal.SIGTERM) == 128 + signal.SIGTERM


def test_the_first_line_for_people_has_all_of_it() -> None:
    """In text, the first line has the version, the addresses, what is probed and what was set."""
    settings = {"CACHE_TTL": "0.5", "PROBE_HEADERS": '{"a": "s3cret"}', "LOG_FORMAT": "text"}
    with started(*processes.COMMAND, ADMIN_LISTEN="127.0.0.1:0", **settings) as (ghealth, line):
        ghealth.send_signal(signal.SIGINT)
    assert f"ghealth {__version__} serves gRPC on 127.0.0.1:" in line
    assert "; probes http://localhost:15021/healthz/ready" in line
    assert "; status page http://127.0.0.1:" in line
    assert "; GHEALTH_CACHE_TTL=0.5s" in line
    assert 'GHEALTH_PROBE_HEADERS={"a": "***"}' in line


def test_the_first_line_has_the_settings_that_changed() -> None:
    """The start is one line with the settings that are not the defaults, secrets masked."""
    secret = "http://me:s3cret@127.0.0.1:1/"
    with processes.server(CACHE_TTL="0.5", PROBE_URL=secret) as ghealth:
        assert ghealth.started["settings"] == {
            "GHEALTH_LISTEN": "127.0.0.1:0",
            "GHEALTH_PROBE_URL": "http://***@127.0.0.1:1/",
            "GHEALTH_CACHE_TTL": "0.5s",
            "GHEALTH_LOG_FORMAT": "json",
            "GHEALTH_ADMIN_LISTEN": "off",
        }


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [([], 0), (["check", "--watch", "--addr=unix:/nonexistent"], 128 + signal.SIGTERM)],
)
def test_as_process_number_1_it_heeds_sigterm(arguments: list[str], exit_code: int) -> None:
    """Trap 17: with the number 1 in its namespace, SIGTERM still ends what runs until stopped."""
    unshare = processes.in_namespaces("--pid", "--fork", "--kill-child")
    command = (*unshare, *processes.COMMAND, *arguments)
    with started(*command, ADMIN_LISTEN="off", DRAIN_DELAY="0") as (ghealth, _):
        children = Path(f"/proc/{ghealth.pid}/task/{ghealth.pid}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        assert ghealth.wait(processes.TIMEOUT) == exit_code


def test_the_script_is_the_command() -> None:
    """The package installs `ghealth`."""
    script = Path(sys.executable).parent / "ghealth"
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"ghealth {__version__}\n"
