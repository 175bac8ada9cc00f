import argparse
import asyncio
import errno
import os
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ghealth import __version__, alb, cli, client, server
from ghealth.settings import Settings
from tests.support import processes
from tests.support.peers import nobody

SETTINGS_SHOWN = 17


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("500ms", 0.5), ("1m30s", 90), ("1h", 3600), ("2", 2), ("0.25", 0.25)],
)
def test_durations(text: str, seconds: float) -> None:
    """Durations read as Go's flags do, or as plain seconds."""
    assert cli._duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0s", "-1s", "1 s", "1d", "s", "1s2", "inf"])
def test_other_durations_are_refused(text: str) -> None:
    """What is no time to wait is a mistake."""
    with pytest.raises(argparse.ArgumentTypeError, match="is no duration"):
        cli._duration(text)


@pytest.mark.parametrize(
    ("listen", "address"),
    [
        ("[::]:25021", "127.0.0.1:25021"),
        ("0.0.0.0:1234", "127.0.0.1:1234"),
        ("[::1]:1,127.0.0.1:2", "[::1]:1"),
        ("10.0.0.1:25021", "10.0.0.1:25021"),
        ("[::]:0", None),
        ("nonsense", None),
    ],
)
def test_the_own_address(listen: str, address: str | None) -> None:
    """`ghealth check` finds the ghealth of the same environment."""
    found = cli._own_address(listen)
    assert (found and str(found)) == address


@pytest.mark.parametrize(
    "arguments",
    [["nonsense"], ["check", "--nonsense"], ["check", "--rpc-timeout", "x"], ["check", "--serv=a"]],
)
def test_a_bad_argument_is_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """What the command line does not know is told in one line, exit code 1."""
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("ghealth")
    assert said.count("\n") == 1


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    """--help names the commands and exit codes, --version the version."""
    for arguments, expected in [
        (["--help"], ["serve", "check", "settings", "exit codes", "4 not serving"]),
        (["check", "--help"], ["--addr", "--service", "--connect-timeout", "--rpc-timeout"]),
        (["--version"], [f"ghealth {__version__}"]),
    ]:
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == 0
        said = capsys.readouterr().out
        assert all(word in said for word in expected)


def test_settings_are_shown(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`ghealth settings` shows value, default and meaning of every variable."""
    monkeypatch.setenv("GHEALTH_CACHE_TTL", "0.5")
    assert cli.main(["settings"]) == 0
    said = capsys.readouterr().out
    assert "GHEALTH_CACHE_TTL=0.5\n    default: 1\n    Seconds for which" in said
    assert said.count("\n    default: ") == SETTINGS_SHOWN


@pytest.fixture(autouse=True)
def _handlers_are_restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("arguments", [[], ["serve"], ["settings"]])
def test_mistakes_in_the_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    """All mistakes are told, a line each, on standard error, exit code 1."""
    monkeypatch.setenv("GHEALTH_CACHE_TTL", "x")
    monkeypatch.setenv("GHEALTH_LISTEM", "x")
    assert cli.main(arguments) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert [line.split()[:2] for line in said.err.splitlines()] == [
        ["ghealth:", "GHEALTH_LISTEM"],
        ["ghealth:", "GHEALTH_CACHE_TTL"],
    ]


def test_a_check_without_an_address_needs_a_port(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a free port in GHEALTH_LISTEN, nobody but the user can say whom to ask."""
    monkeypatch.setenv("GHEALTH_LISTEN", "[::]:0")
    assert cli.main(["check"]) == 1
    assert "say --addr" in capsys.readouterr().err


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_flags_of_grpc_health_probe(dashes: str) -> None:
    """The names are grpc-health-probe's, with one dash or two, `=` or not."""
    with processes.server() as ghealth:
        done = processes.run(
            "check",
            f"{dashes}addr=127.0.0.1:{ghealth.port}",
            f"{dashes}service",
            "liveness",
            f"{dashes}connect-timeout=20s",
            f"{dashes}rpc-timeout",
            "20000ms",
        )
    assert (done.returncode, done.stdout) == (0, "status: SERVING\n")


def test_a_check_asks_its_own_environments_ghealth() -> None:
    """Without --addr, a check asks this machine on the port of GHEALTH_LISTEN."""
    with processes.server() as ghealth:
        listen = f"[::]:{ghealth.port}"
        done = processes.run("check", "--service=liveness", *processes.TIMES, LISTEN=listen)
    assert (done.returncode, done.stdout) == (0, "status: SERVING\n")


def test_an_address_without_a_host_is_this_machine() -> None:
    """`-addr=:PORT` is how grpc-health-probe is mostly told whom to ask."""
    with processes.server() as ghealth:
        addr = f"-addr=:{ghealth.port}"
        done = processes.run("check", addr, "-service=liveness", *processes.TIMES)
    assert (done.returncode, done.stdout) == (0, "status: SERVING\n")


def test_a_full_disk_is_told_in_a_line() -> None:
    """Output that cannot be written is told without a stack."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*processes.COMMAND, "settings"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=processes.environment(),
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, "ghealth: cannot write: No space left on device\n")


def test_without_a_standard_output_it_says_what_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a standard output that was closed, only the exit code is left."""
    monkeypatch.setattr("sys.stdout", None)
    assert cli.main(["settings"]) == 0


def test_another_failure_of_the_system_has_its_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """An OSError that nobody foresaw is a bug, and not told away."""

    def broken(_: argparse.Namespace) -> Any:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(cli, "_check", broken)
    with pytest.raises(OSError, match="Input/output"):
        cli.main(["check"])


def test_what_the_locale_cannot_show_is_escaped() -> None:
    """A locale without Unicode ends nothing."""
    environment = processes.environment() | {"PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [*processes.COMMAND, "settings"], capture_output=True, env=environment, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_exit_codes_of_a_check() -> None:
    """Not serving is 4, an RPC that failed 3, no connection 2."""
    with processes.server(PROBE_URL="http://127.0.0.1:1/") as ghealth:
        assert ghealth.check().returncode == 4
        assert ghealth.check("--service", "nobody").returncode == 3
    with nobody() as port:
        done = processes.run("check", "--addr", f"127.0.0.1:{port}", "--connect-timeout=200ms")
    assert done.returncode == 2


def test_a_check_as_an_alb() -> None:
    """The verdict is the exit code and the last line; what makes it worthless is on stderr."""
    with processes.server(PROBE_URL="http://127.0.0.1:1/") as ghealth:
        done = ghealth.check("--as", "alb")
        assert done.returncode == 4
        assert done.stdout.splitlines()[-1] == "unhealthy"
        assert "'connection refused'" in done.stdout
        assert done.stderr == ""
        done = ghealth.check("--as=alb", "--path=/AWS.ALB/healthcheck", "--matcher=0-99")
        assert done.returncode == 0
        assert done.stdout.splitlines()[-1] == "healthy"
        assert done.stderr.startswith("warning: the matcher 0-99 passes any answer")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--path", "/a.B/C"],
        ["--matcher", "0"],
        ["--as", "alb", "--watch"],
        ["--as", "alb", "--service", "a"],
    ],
)
def test_what_an_alb_does_not_do_is_a_mistake(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Flags that do not go together are told in one line."""
    assert cli.main(["check", *arguments]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--path", "a b"],
        ["--path", ""],
        ["--matcher", "100"],
        ["--as", "nlb"],
        ["--addr", "localhost"],
        ["--addr", ""],
        ["--addr", "a..b:1"],
        ["--service", "\udcff"],
        ["--rpc-timeout", "99999h"],
    ],
)
def test_what_an_alb_does_not_take_is_a_mistake(arguments: list[str]) -> None:
    """What no server could be asked with is a bad argument."""
    with pytest.raises(SystemExit) as ended:
        cli.main(["check", *arguments])
    assert ended.value.code == 1


def test_watch_prints_changes_until_interrupted() -> None:
    """Each change is a line with its time; Ctrl-C ends with the code of the last one."""
    with processes.server(PROBE_URL="http://127.0.0.1:1/", DRAIN_DELAY="20") as ghealth:
        addr = f"--addr=127.0.0.1:{ghealth.port}"
        command = [*processes.COMMAND, "check", "--watch", addr, *processes.TIMES]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watching:
            assert watching.stdout is not None
            assert 'responded with "NOT_SERVING"' in watching.stdout.readline()
            watching.send_signal(signal.SIGINT)
            assert watching.wait(processes.PATIENCE) == 4


def test_a_pipe_that_closes_is_no_bug() -> None:
    """As for any tool in a pipe, the reader's end ends it without a stack."""
    command = [*processes.COMMAND, "check", "--addr", "127.0.0.1:1", "--connect-timeout=1ms"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as checking:
        assert checking.stdout is not None
        checking.stdout.close()
        assert checking.stderr is not None
        assert checking.stderr.read() == ""
        assert checking.wait(processes.PATIENCE) == 128 + signal.SIGPIPE


def test_a_taken_port_is_one_line() -> None:
    """A taken port ends with exit code 2 and one line, without a word from gRPC's core."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        done = processes.run(LISTEN=f"[::]:{port}")
    assert done.returncode == 2
    assert done.stderr == f"ghealth: cannot listen on [::]:{port}: Address already in use\n"
    assert done.stdout == ""


@pytest.fixture(autouse=True)
def _nothing_forks(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process has threads, so what belongs into a fork is done in place."""
    monkeypatch.setattr(cli, "in_fork", lambda work: work)


class Left(SystemExit):
    """The process would have ended at once, with this code."""


@pytest.fixture
def _leaving_is_an_exception(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What ends a process at once, its loop left open, does so in here with an exception."""
    make, runners = asyncio.Runner, []

    def runner(**options: Any) -> asyncio.Runner:
        runners.append(make(**options))
        return runners[-1]

    def leave(code: int) -> None:
        raise Left(code)

    monkeypatch.setattr(asyncio, "Runner", runner)
    monkeypatch.setattr(os, "_exit", leave)
    yield
    for made in runners:
        made.close()


Trigger = Callable[[], Awaitable[bool]]


def serving_as(
    monkeypatch: pytest.MonkeyPatch, story: Callable[[Trigger], Awaitable[None]]
) -> None:
    """Have `ghealth serve` do something else, up to its signals."""

    async def serve(_: Settings, *, shutdown_trigger: Trigger) -> None:
        await story(shutdown_trigger)

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr("sys.stdout", None)


@pytest.mark.usefixtures("_leaving_is_an_exception")
@pytest.mark.parametrize(("signum", "drains"), [(signal.SIGTERM, True), (signal.SIGINT, False)])
def test_the_first_signal_pulls_the_trigger(
    monkeypatch: pytest.MonkeyPatch, signum: signal.Signals, drains: bool
) -> None:
    """SIGTERM gives callers time to notice, SIGINT does not; the end is a good one."""
    told = []

    async def story(trigger: Trigger) -> None:
        os.kill(os.getpid(), signum)
        told.append(await trigger())

    serving_as(monkeypatch, story)
    with pytest.raises(Left) as left:
        cli.main([])
    assert (left.value.code, told) == (0, [drains])


@pytest.mark.usefixtures("_leaving_is_an_exception")
def test_the_second_signal_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is still under way, a second signal is the end, with the code that shells give."""

    async def story(trigger: Trigger) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await trigger()
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(20)

    serving_as(monkeypatch, story)
    with pytest.raises(Left) as left:
        cli.main(["serve"])
    assert left.value.code == 128 + signal.SIGINT


@pytest.mark.usefixtures("_leaving_is_an_exception")
def test_an_address_that_is_not_to_be_had_is_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong with `LISTEN` is one line, exit code 2."""

    async def story(_: Trigger) -> None:
        raise server.ListenError("cannot listen on x")

    serving_as(monkeypatch, story)
    assert cli.main(["serve"]) == 2
    assert capsys.readouterr().err == "ghealth: cannot listen on x\n"


def test_a_finding_is_printed_and_its_code_returned(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A check asks what its flags say, once, and prints what it found."""
    asked = []

    async def check(question: client.Question) -> client.Finding:
        asked.append(question)
        return client.Finding(client.ExitCode.RPC_FAILED, "found")

    monkeypatch.setattr(client, "check", check)
    assert cli.main(["check", "--addr=[::1]:1", "--service=a", "--connect-timeout=2s"]) == 3
    assert asked == [client.Question("[::1]:1", "a", connect_timeout=2, rpc_timeout=1)]
    assert capsys.readouterr().out == "found\n"


def test_a_watch_ends_with_the_code_of_its_last_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is how a watch ends, and no failure."""

    async def watch(
        _: client.Question, *, pause: Callable[[], Awaitable[None]]
    ) -> AsyncGenerator[client.Finding, None]:
        yield client.Finding(client.ExitCode.SERVING, "one")
        yield client.Finding(client.ExitCode.NOT_SERVING, "two")
        signal.raise_signal(signal.SIGINT)
        await pause()

    monkeypatch.setattr(client, "watch", watch)
    assert cli.main(["check", "--addr=127.0.0.1:1", "--watch"]) == 4
    assert [line.split()[1] for line in capsys.readouterr().out.splitlines()] == ["one", "two"]


@pytest.mark.usefixtures("_leaving_is_an_exception")
@pytest.mark.parametrize(("healthy", "code"), [(True, 0), (False, 4)])
def test_an_albs_conclusion_is_printed_with_its_warnings(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    healthy: bool,
    code: int,
) -> None:
    """The verdict is the exit code; what makes it worthless is on standard error."""

    async def check(*asked: Any) -> alb.Conclusion:
        return alb.Conclusion(healthy, " ".join(map(str, asked)), warnings=("beware",))

    monkeypatch.setattr(alb, "check", check)
    with pytest.raises(Left) as left:
        cli.main(["check", "--addr=127.0.0.1:1", "--as=alb", "--path=/a.B/C", "--matcher=0,12"])
    assert left.value.code == code
    said = capsys.readouterr()
    assert (said.out, said.err) == ("127.0.0.1:1 /a.B/C 0,12 5.0\n", "warning: beware\n")


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (BrokenPipeError(), 128 + signal.SIGPIPE, ""),
        (OSError(errno.ENOSPC, "No space left"), 1, "ghealth: cannot write: No space left\n"),
    ],
)
def test_output_that_nobody_takes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    error: OSError,
    code: int,
    text: str,
) -> None:
    """A reader that has left and a disk that is full end a command without a stack."""

    def broken(_: argparse.Namespace) -> Any:
        raise error

    monkeypatch.setattr(cli, "_settings", broken)
    with (tmp_path / "out").open("w") as out:
        monkeypatch.setattr("sys.stdout", out)
        assert cli.main(["settings"]) == code
    assert capsys.readouterr().err == text


def test_the_module_is_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`python -m ghealth` does what `ghealth` does."""
    monkeypatch.setattr("sys.argv", ["ghealth", "--version"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("ghealth", run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"ghealth {__version__}\n"


def test_interrupting_anything_else_is_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C during a check ends it without a stack."""

    def interrupted(_: argparse.Namespace) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_check", interrupted)
    assert cli.main(["check"]) == 128 + signal.SIGINT


@pytest.mark.parametrize(
    ("signum", "events"),
    [
        (signal.SIGTERM, ["draining", "stopping", "stopped"]),
        (signal.SIGINT, ["draining", "stopping", "stopped"]),
    ],
)
def test_a_signal_ends_it_in_order(signum: signal.Signals, events: list[str]) -> None:
    """SIGTERM and SIGINT end it with exit code 0 and a line for each phase."""
    with processes.server(DRAIN_DELAY="0.1" if signum == signal.SIGTERM else "20") as ghealth:
        assert ghealth.ended_by(signum) == 0
        assert [line["event"] for line in ghealth.rest()] == events


def test_a_second_signal_ends_it_at_once() -> None:
    """Whoever does not want to wait for the drain signals again."""
    with processes.server(DRAIN_DELAY="60") as ghealth:
        ghealth.process.send_signal(signal.SIGTERM)
        ghealth.next("draining")
        assert ghealth.ended_by(signal.SIGTERM) == 128 + signal.SIGTERM


def test_before_it_serves_sigterm_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Trap 22: the time of the imports is no time in which SIGTERM goes unheard."""

    def in_fork(_: object) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(cli, "in_fork", in_fork)
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve"])
    assert ended.value.code == 128 + signal.SIGTERM


def test_the_first_line_for_people_tells_it_too() -> None:
    """In text, the start names the settings that are not the defaults as well."""
    command = [*processes.COMMAND]
    environment = processes.environment(
        LISTEN="127.0.0.1:0", LOG_FORMAT="text", CACHE_TTL="0.5", PROBE_HEADERS='{"a": "s3cret"}'
    )
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        process.send_signal(signal.SIGINT)
    assert "listening on 127.0.0.1:" in line
    assert "; GHEALTH_CACHE_TTL=0.5" in line
    assert 'GHEALTH_PROBE_HEADERS={"a": "***"}' in line


def test_the_first_line_tells_what_differs_from_the_defaults() -> None:
    """The start is one line with the settings that are not the defaults, secrets masked."""
    secret = "http://me:s3cret@127.0.0.1:1/"
    with processes.server(CACHE_TTL="0.5", PROBE_URL=secret) as ghealth:
        assert ghealth.started["settings"] == {
            "GHEALTH_LISTEN": "127.0.0.1:0",
            "GHEALTH_PROBE_URL": "http://***@127.0.0.1:1/",
            "GHEALTH_CACHE_TTL": "0.5",
            "GHEALTH_LOG_FORMAT": "json",
        }


def test_as_process_number_1_it_heeds_sigterm() -> None:
    """Trap 22: with the number 1 in its namespace, SIGTERM still ends it."""
    unshare = processes.in_namespaces("--pid", "--fork", "--kill-child")
    with processes.server(*unshare, DRAIN_DELAY="0") as ghealth:
        (child,) = child_of(ghealth.process.pid)
        os.kill(child, signal.SIGTERM)
        assert ghealth.process.wait(processes.PATIENCE) == 0


def child_of(pid: int) -> list[int]:
    with open(f"/proc/{pid}/task/{pid}/children") as children:  # noqa: PTH123
        return [int(number) for number in children.read().split()]


def test_it_runs_as_a_module_and_as_a_command() -> None:
    """`ghealth` and `python -m ghealth` are the same."""
    script = os.path.join(os.path.dirname(sys.executable), "ghealth")  # noqa: PTH118, PTH120
    said = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == processes.run("--version").stdout == f"ghealth {__version__}\n"
