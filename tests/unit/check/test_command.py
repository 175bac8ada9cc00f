import argparse
import json
import re
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ghealth import __version__, flags
from ghealth.check import alb, call, command
from ghealth.check.addresses import Server
from ghealth.check.alb import TargetGroup
from ghealth.check.call import Request
from ghealth.check.report import ExitCode, Report
from ghealth.matcher import GRPC_CODES, Matcher
from tests.support.peers import nobody

WIDTH = 80
REPORT = Report(ExitCode.NOT_SERVING, "NOT_SERVING: é", {"reason": "é"}, ("a", "b"))


def run(*arguments: str) -> int:
    """Run the command in this process, and return the exit code in whatever way it ends."""
    parser = argparse.ArgumentParser(prog="ghealth")
    command.add_parser(parser.add_subparsers(parser_class=flags.Parser))
    try:
        parsed = parser.parse_args(["check", *arguments])
        return int(parsed.command(parsed))
    except SystemExit as ended:
        return int(ended.code or 0)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The checks that were made, and the target groups; the answer is always `REPORT`."""
    made: list[Any] = []

    def check(*what: Any) -> Report:
        *asked, log = what
        made.append(asked[-1])
        log(f"to {asked[0]}" if asked[1:] else f"to {asked[0].server}")
        return REPORT

    def watch(*_: Any, **__: Any) -> Iterator[Report]:
        yield REPORT
        yield replace(REPORT, exit_code=ExitCode.SERVING, text="status: SERVING")

    monkeypatch.setattr(call, "check", check)
    monkeypatch.setattr(call, "watch", watch)
    monkeypatch.setattr(alb, "check", check)
    return made


def test_the_defaults(asked: list[Any]) -> None:
    """The defaults are grpc-health-probe's, but for the address."""
    user_agent = f"ghealth/{__version__}"
    assert run() == ExitCode.NOT_SERVING
    assert asked == [Request(server=Server.parse("127.0.0.1:25021"), user_agent=user_agent)]


def test_all_flags(asked: list[Any], pem: dict[str, str]) -> None:
    """Each flag of grpc-health-probe has its place in the request."""
    run(
        *("-addr=a:1", "-service", "s", "-connect-timeout=+1m", "-rpc-timeout", "2", "-gzip"),
        *("-user-agent=me", "-rpc-header", "a:  b: c", "-rpc-header=d:", "-tls=true"),
        *(f"-tls-{name.replace('_', '-')}={path}" for name, path in pem.items()),
        "-tls-server-name=localhost",
    )
    (request,) = asked
    assert len(request.tls.get_ca_certs()) == 1
    assert replace(request, tls=None) == Request(
        server=Server.parse("a:1"),
        service="s",
        connect_timeout=60.0,
        rpc_timeout=2.0,
        user_agent="me",
        headers=(("a", "b: c"), ("d", "")),
        gzip=True,
        server_name="localhost",
    )


ALL, NONE = ssl.CERT_REQUIRED, ssl.CERT_NONE


@pytest.mark.parametrize(
    ("arguments", "verifies"),
    [
        ("-addr=a:1 -tls", ALL),
        ("-addr=a:1 -tls -tls-no-verify", NONE),
        ("-addr=a:1 -tls -tls=false", None),
        ("-addr=a:1 -tls --as=alb", NONE),
        ("", NONE),
        ("--as=alb", NONE),
        ("-tls", ALL),
        ("-tls -tls-no-verify", NONE),
    ],
)
def test_tls(
    monkeypatch: pytest.MonkeyPatch,
    asked: list[Any],
    arguments: str,
    verifies: ssl.VerifyMode | None,
) -> None:
    """TLS is verified unless it is not to be: as an ALB, and on this machine's own TLS port."""
    monkeypatch.setenv("GHEALTH_LISTEN", "off")
    monkeypatch.setenv("GHEALTH_TLS_LISTEN", "[::]:2")
    run(*arguments.split())
    context = asked[0].tls
    assert (None if context is None else context.verify_mode) == verifies


COMBINED = "cannot be combined with"


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        ("-addr=", "--addr is empty"),
        ("-rpc-timeout=0", "--rpc-timeout must be greater than zero"),
        ("-connect-timeout=-1s", "--connect-timeout must be greater than zero"),
        ("-tls-no-verify", "--tls-no-verify needs --tls"),
        ("-tls-ca-cert=a", "--tls-ca-cert needs --tls"),
        ("-tls-server-name=a", "--tls-server-name needs --tls"),
        ("-tls-client-cert=a", "--tls-client-cert needs --tls"),
        ("-tls-client-key=a", "--tls-client-key needs --tls-client-cert"),
        ("-tls -tls-client-cert=a", "--tls-client-cert needs --tls-client-key"),
        ("-tls -tls-no-verify -tls-ca-cert=a", f"--tls-ca-cert {COMBINED} --tls-no-verify"),
        ("-tls -tls-no-verify -tls-server-name=a", f"--tls-server-name {COMBINED} --tls-no-verify"),
        ("--path=/a", "--path needs --as"),
        ("--matcher=0", "--matcher needs --as"),
        ("--as=alb --watch", f"--as {COMBINED} --watch"),
        ("--as=alb --service=a", f"--as {COMBINED} --service"),
        ("localhost:1", "unexpected argument 'localhost:1'"),
        ("--addr=a:1 --as=alb a", "unexpected argument 'a'"),
        ("--addr=a:1 --watch a", "unexpected argument 'a'"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line(
    capsys: pytest.CaptureFixture[str], asked: list[Any], arguments: str, mistake: str
) -> None:
    """A mistake has exit code 1, and its line points to the help."""
    assert run(*arguments.split()) == ExitCode.MISTAKE
    assert capsys.readouterr() == ("", f"ghealth: {mistake} (see ghealth check --help)\n")
    assert asked == []


@pytest.mark.parametrize(
    ("flag", "value", "expected"),
    [
        ("--rpc-timeout", "1d", "a duration such as 5s or 500ms"),
        ("--rpc-header", "a", "'name: value'"),
        ("--path", "a", "a path such as /package.Service/Method"),
        ("--matcher", "100", "codes from 0 to 99, such as 0 or 0,12 or 0-5"),
    ],
)
def test_a_value_that_a_flag_does_not_accept(
    capsys: pytest.CaptureFixture[str], flag: str, value: str, expected: str
) -> None:
    """The mistake names the flag, its value and what is expected."""
    assert run(flag, value) == ExitCode.MISTAKE
    mistake = f"argument {flag}: invalid value '{value}'; expected {expected}"
    assert capsys.readouterr().err == f"ghealth: {mistake} (see ghealth check --help)\n"


@pytest.mark.parametrize("text", ["", "+", "+-1s", "--1s", "1x", "9999999h"])
def test_durations_that_go_does_not_accept(text: str) -> None:
    """A sign is one sign, and there is a longest duration."""
    with pytest.raises(argparse.ArgumentTypeError):
        command._DURATION(text)


@pytest.mark.parametrize(
    ("arguments", "mistake"),
    [
        ("-addr=a:1 -tls -tls-ca-cert=/gone", "/gone: No such file or directory"),
        ("-tls", "GHEALTH_TLS_LISTEN is off: --addr is needed"),
    ],
)
def test_a_mistake_in_a_file_or_a_setting_is_one_line(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    mistake: str,
) -> None:
    """With --addr, the settings do not matter."""
    monkeypatch.setenv("GHEALTH_LISTEN", "[::]:0")
    assert run(*arguments.split()) == ExitCode.MISTAKE
    assert capsys.readouterr().err == f"ghealth: {mistake}\n"


@pytest.mark.parametrize(
    ("arguments", "exit_code", "text"),
    [
        ([], 2, ""),
        (["--tls"], 1, "ghealth: TLS cannot be used: LIBRARY_HAS_NO_CIPHERS\n"),
    ],
)
def test_an_openssl_without_ciphers_is_one_line(
    tmp_path: Path, arguments: list[str], exit_code: int, text: str
) -> None:
    """OpenSSL's FIPS mode without its provider has none: only TLS is affected."""
    config = tmp_path / "openssl.cnf"
    config.write_text("openssl_conf=a\n[a]\nalg_section=b\n[b]\ndefault_properties=fips=yes\n")
    with nobody("127.0.0.1") as port:
        done = subprocess.run(
            [sys.executable, "-m", "ghealth", "check", f"-addr=:{port}", *arguments],
            env={"OPENSSL_CONF": str(config)},
            capture_output=True,
            text=True,
            check=False,
        )
    assert (done.returncode, done.stderr) == (exit_code, text)


@pytest.mark.parametrize(("addr", "why"), [("a", "no port"), ("a:b:1", "brackets")])
def test_an_address_that_cannot_be_one_is_no_connection(
    capsys: pytest.CaptureFixture[str], addr: str, why: str
) -> None:
    """grpc-health-probe tries to connect to any text, and fails with 2."""
    assert run(f"-addr={addr}") == ExitCode.NO_CONNECTION
    assert re.match(f"ghealth: cannot connect to '{addr}': .*{why}", capsys.readouterr().err)


def test_arguments_after_the_flags_are_ignored(
    capsys: pytest.CaptureFixture[str], asked: list[Any]
) -> None:
    """As for grpc-health-probe, `-tls false` is `-tls`, but it is not ignored silently."""
    run("-addr=a:1", "-tls", "false", "-service=s")
    assert asked[0].tls is not None
    assert asked[0].service == ""
    assert capsys.readouterr().err.startswith(
        "ghealth: warning: ignored after the flags: false -service=s\n"
    )


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    """The version is printed whatever other flags there are."""
    assert run("-version", "-rpc-timeout=0") == 0
    assert capsys.readouterr().out == f"ghealth {__version__}\n"


def test_the_help_fits_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The help has every flag, at most 80 columns, and no word that is broken at a hyphen."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    assert run("-h") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert not [line for line in lines if re.search(r"\w-$", line)]
    for flag in ("addr", "tls-no-verify", "rpc-header", "as", "matcher", "output"):
        assert any(line.startswith(f"  --{flag}") for line in lines)
    examples = [line for line in lines if line.startswith("  ghealth check --as alb")]
    assert "--matcher" not in examples[0]  # the check that can fail comes first


@pytest.mark.parametrize("as_alb", [[], ["--as=alb"]])
@pytest.mark.usefixtures("asked")
def test_text_output(capsys: pytest.CaptureFixture[str], as_alb: list[str]) -> None:
    """The text goes to standard output; steps and warnings go to standard error."""
    assert run("-addr=a:1", "-v", *as_alb) == ExitCode.NOT_SERVING
    steps = "ghealth: to a:1\nghealth: warning: a\nghealth: warning: b\n"
    assert capsys.readouterr() == ("NOT_SERVING: é\n", steps)


@pytest.mark.parametrize("as_alb", [[], ["--as=alb"]])
@pytest.mark.usefixtures("asked")
def test_json_output(capsys: pytest.CaptureFixture[str], as_alb: list[str]) -> None:
    """The keys of the report are one line, in ASCII: whatever the locale can write, it is JSON."""
    run("-addr=a:1", "--output=json", *as_alb)
    assert capsys.readouterr() == ('{"reason": "\\u00e9"}\n', "")


@pytest.mark.usefixtures("asked")
def test_a_watch_prints_each_change(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line has the time in UTC, in JSON too; the last one decides the exit code."""
    assert run("-addr=a:1", "--watch") == ExitCode.SERVING
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    printed = capsys.readouterr().out
    assert re.fullmatch(f"{time} NOT_SERVING: é\n{time} status: SERVING\n", printed)
    run("-addr=a:1", "--watch", "--output=json")
    for line in capsys.readouterr().out.splitlines():
        assert list(json.loads(line)) == ["time", "reason"]


def test_a_watch_ends_when_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a watch with the code of the last report, or as without a connection."""

    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    def watch(*_: object, pause: Any) -> Iterator[Report]:
        pause()
        yield from reports
        interrupted(pause)

    reports: list[Report] = []
    monkeypatch.setattr(call, "watch", watch)
    monkeypatch.setattr(call, "RECONNECT_INTERVAL", 0)
    assert run("-addr=a:1", "--watch") == ExitCode.NO_CONNECTION
    reports.append(REPORT)
    assert run("-addr=a:1", "--watch") == ExitCode.NOT_SERVING
    monkeypatch.setattr("ghealth.output.write", interrupted)
    assert run("-addr=a:1", "--watch") == ExitCode.NOT_SERVING


def test_an_alb(asked: list[Any]) -> None:
    """The target group's settings are flags."""
    assert run("--as=alb", "--addr=a:1") == ExitCode.NOT_SERVING
    run("--as=alb", "--addr=a:1", "--path=/", "--matcher=12", "--rpc-timeout=1s")
    matcher = Matcher.parse("12", GRPC_CODES)
    assert asked == [TargetGroup(), TargetGroup(path="/", matcher=matcher, timeout=1.0)]
