import asyncio
import io
import json
import logging
import os
import runpy
import signal
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import pytest

from ghealth import __version__, cli, output, process
from ghealth.server.listen import ListenError
from ghealth.server.prepare import Prepared
from ghealth.settings import Settings
from tests.support import processes


@pytest.fixture(autouse=True)
def _what_is_reset_is_restored() -> Iterator[None]:
    """A command changes its process, which is the tests' one here."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = {signum: signal.getsignal(signum) for signum in signals}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


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


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    """--help names the commands and the exit codes."""
    assert run("--help") == 0
    said = capsys.readouterr().out
    assert all(word in said for word in ("serve", "check", "settings", "exit codes", "2  cannot"))


def test_settings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    """`ghealth settings` shows value, default and meaning of every variable, secrets masked."""
    with patch.dict(os.environ, GHEALTH_CACHE_TTL="0.5", GHEALTH_PROBE_HEADERS='{"X": "s3cret"}'):
        assert run("settings") == 0
    shown = capsys.readouterr().out
    assert "* GHEALTH_CACHE_TTL=0.5s\n      default: 1s\n      How long" in shown
    assert '* GHEALTH_PROBE_HEADERS={"X": "***"}\n' in shown
    assert "  GHEALTH_LOG_FORMAT=\n      default: unset\n" in shown
    assert shown.count("\n      default: ") == len(Settings.model_fields)
    assert shown.count("* GHEALTH_") == 2


def test_settings_are_shown_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """For programs, each setting is an object."""
    with patch.dict(os.environ, GHEALTH_STATUS_CALLERS="x"):
        assert run("settings", "--output=json") == 0
        rows = Settings().rows()
    shown = json.loads(capsys.readouterr().out)
    assert shown == [asdict(row) | {"changed": row.changed} for row in rows]


@pytest.mark.parametrize("arguments", [[], ["serve"], ["settings"]])
def test_mistakes_in_the_settings(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    """Mistakes in settings and files are reported, a line each, on standard error; exit code 1."""
    variables = {"GHEALTH_CACHE_TTL": "x", "GHEALTH_LISTEM": "x", "SSL_CERT_FILE": "/gone"}
    with patch.dict(os.environ, variables, GHEALTH_PROBE_URL="https://gw/"):
        assert run(*arguments) == 1
    written = capsys.readouterr()
    assert written.out == ""
    lines = [line.split()[:2] for line in written.err.splitlines()]
    assert lines == [["ghealth:", f"{name}:"] for name in variables]


@pytest.mark.parametrize(
    ("flags", "shown"),
    [
        ([], r'* GHEALTH_SERVICES={"\xe9\U0001f534": "http://a/"}'),
        (["--output=json"], r'"value": "{\"\u00e9\ud83d\udd34\": \"http://a/\"}"'),
    ],
)
def test_what_the_locale_cannot_show_is_escaped(
    monkeypatch: pytest.MonkeyPatch, flags: list[str], shown: str
) -> None:
    """A locale without Unicode ends nothing, and JSON stays JSON."""
    written = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(written, "ascii"))
    monkeypatch.setenv("GHEALTH_SERVICES", '{"é🔴": "http://a/"}')
    run("settings", *flags)
    assert shown.encode() in written.getvalue()


Trigger = Callable[[], Awaitable[bool]]


def serving_as(
    monkeypatch: pytest.MonkeyPatch, story: Callable[[Trigger], Awaitable[None]]
) -> None:
    """Have `ghealth serve` do something else, up to its signals."""

    async def serve(_: Prepared, *, shutdown_trigger: Trigger) -> None:
        await story(shutdown_trigger)

    monkeypatch.setattr("ghealth.server.serve.serve_prepared", serve)


@pytest.mark.parametrize(("signum", "drains"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_the_first_signal_pulls_the_trigger(
    monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, drains: bool
) -> None:
    """SIGTERM gives callers time to notice, SIGINT does not; the exit code is 0.

    A closed standard output changes nothing.
    """
    monkeypatch.setattr("sys.stdout", None)

    async def story(trigger: Trigger) -> None:
        os.kill(os.getpid(), signum)
        assert await trigger() is drains

    serving_as(monkeypatch, story)
    assert run() == 0


def test_a_second_signal_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends the process with the exit code that shells give."""
    ended: asyncio.Queue[int] = asyncio.Queue()
    monkeypatch.setattr(os, "_exit", ended.put_nowait)

    async def story(trigger: Trigger) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trigger()
        os.kill(os.getpid(), signal.SIGINT)
        assert await ended.get() == 128 + signal.SIGINT

    serving_as(monkeypatch, story)
    assert run("serve") == 0


@pytest.mark.parametrize(("log_format", "is_json"), [("", True), ("json", True), ("text", False)])
def test_the_log_has_the_format_that_is_set(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    log_format: str,
    is_json: bool,
) -> None:
    """Unless it is set, it is JSON where standard output is not a terminal."""

    async def story(_: Trigger) -> None:
        logging.getLogger("ghealth").warning("text")

    monkeypatch.setenv("GHEALTH_LOG_FORMAT", log_format)
    serving_as(monkeypatch, story)
    run()
    assert capfd.readouterr().out.startswith("{") is is_json


STARTS, SERVES = "ghealth.process.require_resources", "ghealth.server.serve.serve_prepared"


@pytest.mark.parametrize(
    ("what", "raises", "code", "text"),
    [
        (STARTS, process.ResourceError("too few"), 2, "ghealth: cannot start: too few\n"),
        (STARTS, KeyboardInterrupt(), 128 + signal.SIGINT, ""),
        (SERVES, ListenError("cannot listen on x"), 2, "ghealth: cannot listen on x\n"),
        (SERVES, output.OutputError("No space left"), 1, "ghealth: cannot write: No space left\n"),
        (SERVES, output.OutputClosedError("Broken pipe"), 128 + signal.SIGPIPE, ""),
    ],
)
def test_what_ends_a_command_has_an_exit_code(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    what: str,
    raises: BaseException,
    code: int,
    text: str,
) -> None:
    """A lack of threads, of an address or of a reader, and Ctrl-C, have no stack."""
    monkeypatch.setattr(what, Mock(side_effect=raises))
    assert run("serve") == code
    assert capfd.readouterr().err == text


def test_an_unexpected_failure_has_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError that is not about output is a bug, and is not hidden."""
    monkeypatch.setattr(SERVES, Mock(side_effect=OSError("Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        run()


@pytest.mark.parametrize("argument", ["settings", "--version", "nonsense"])
def test_every_command_undoes_what_a_parent_left_behind(
    monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    """Inherited signals, streams and variables are reset for every command."""
    reset = Mock()
    monkeypatch.setattr(process, "reset_inherited", reset)
    run(argument)
    reset.assert_called_once_with()


@pytest.mark.parametrize("command", ["serve", "settings"])
def test_before_it_serves_sigterm_ends_it(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    """Trap 17: SIGTERM is heeded from the start of every command."""
    end = partial(os.kill, os.getpid(), signal.SIGTERM)
    monkeypatch.setattr("ghealth.server.prepare.configure", end)
    assert run(command) == 128 + signal.SIGTERM


def test_as_process_number_1_it_heeds_sigterm() -> None:
    """Trap 17: with the number 1 in its namespace, SIGTERM still ends it in order."""
    unshare = processes.in_namespaces("--pid", "--fork", "--kill-child")
    with processes.server(*unshare, DRAIN_DELAY="0") as ghealth:
        outside = ghealth.process.pid
        children = Path(f"/proc/{outside}/task/{outside}/children").read_text()
        os.kill(int(children), signal.SIGTERM)
        assert ghealth.process.wait(processes.TIMEOUT) == 0


def test_the_first_line_has_all_of_it() -> None:
    """It has the version, the addresses, what is probed and what was set, secrets masked."""
    secret = "http://me:s3cret@127.0.0.1:1/"
    with processes.server(CACHE_TTL="0.5", PROBE_URL=secret, ADMIN_LISTEN="[::1]:0") as ghealth:
        text, settings = ghealth.started["message"], ghealth.started["settings"]
    assert settings == {
        "GHEALTH_LISTEN": "127.0.0.1:0",
        "GHEALTH_PROBE_URL": "http://***@127.0.0.1:1/",
        "GHEALTH_CACHE_TTL": "0.5s",
        "GHEALTH_LOG_FORMAT": "json",
        "GHEALTH_ADMIN_LISTEN": "[::1]:0",
    }
    assert text.split("; ") == [
        f"ghealth {__version__} serves gRPC on 127.0.0.1:{ghealth.port}",
        "probes http://***@127.0.0.1:1/",
        f"status page http://[::1]:{ghealth.admin_port}/",
        *(f"{name}={value}" for name, value in settings.items()),
    ]


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m ghealth` does what `ghealth` does."""
    monkeypatch.setattr("sys.argv", ["ghealth", "--version"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_module("ghealth", run_name="__main__")
    assert capsys.readouterr().out == f"ghealth {__version__}\n"
