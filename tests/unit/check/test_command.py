import argparse
import json
import re
import shlex
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from ghealth import __version__, flags
from ghealth.check import alb, call, command
from ghealth.check.addresses import Server
from ghealth.check.alb import TargetGroup
from ghealth.check.call import Request
from ghealth.check.report import ExitCode, Report
from ghealth.matcher import GRPC_CODES, Matcher
from tests.support import processes
from tests.support.peers import nobody

WIDTH = 80
REPORT = Report(ExitCode.NOT_SERVING, "NOT_SERVING: é", {"reason": "é"}, ("a", "b"))
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The checks that were made, and the target groups; the answer is always `REPORT`."""
    made: list[Any] = []

    def check(*what: Any) -> Report:
        *_, request, log = what
        made.append(request)
        log("a step")
        return REPORT

    def watch(*_: Any, **__: Any) -> Iterator[Report]:
        yield REPORT
        yield replace(REPORT, exit_code=ExitCode.SERVING, text="status: SERVING")

    monkeypatch.setattr(call, "check", check)
    monkeypatch.setattr(call, "watch", watch)
    monkeypatch.setattr(alb, "check", check)
    return made


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in this process; return its exit code, standard output and error."""

    def run(line: str) -> tuple[int, str, str]:
        parser = argparse.ArgumentParser(prog="ghealth")
        command.add_parser(parser.add_subparsers(parser_class=flags.Parser))
        try:
            parsed = parser.parse_args(["check", *shlex.split(line)])
            code = parsed.command(parsed)
        except SystemExit as ended:
            code = ended.code
        return int(code or 0), *capsys.readouterr()

    return run


def test_the_defaults(run: Run, asked: list[Any]) -> None:
    """The defaults are grpc-health-probe's, but for the address."""
    assert run("")[0] == ExitCode.NOT_SERVING
    server, user_agent = Server.parse("127.0.0.1:25021"), f"ghealth/{__version__}"
    assert asked == [Request(server=server, user_agent=user_agent)]


def test_all_flags(run: Run, asked: list[Any], pem: dict[str, str]) -> None:
    """Each flag of grpc-health-probe has its place in the request."""
    files = " ".join(f"-tls-{name.replace('_', '-')}={path}" for name, path in pem.items())
    run(
        "-addr=a:1 -service s -connect-timeout=+1m -rpc-timeout 2 -gzip -user-agent=me -tls=true "
        f"-rpc-header 'a:  b: c' -rpc-header=d: {files} -tls-server-name=localhost"
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


def test_an_alb(run: Run, asked: list[Any]) -> None:
    """The target group's settings are flags."""
    assert run("--as=alb --addr=a:1")[0] == ExitCode.NOT_SERVING
    run("--as=alb --addr=a:1 --path=/ --matcher=12 --rpc-timeout=1s")
    matcher = Matcher.parse("12", GRPC_CODES)
    assert asked == [TargetGroup(), TargetGroup(path="/", matcher=matcher, timeout=1.0)]


@pytest.mark.parametrize(
    ("line", "verifies"),
    [
        ("-addr=a:1 -tls", ssl.CERT_REQUIRED),
        ("-addr=a:1 -tls -tls-no-verify", ssl.CERT_NONE),
        ("-addr=a:1 -tls -tls=false", None),
        ("-addr=a:1 -tls --as=alb", ssl.CERT_NONE),
        ("", ssl.CERT_NONE),
        ("--as=alb", ssl.CERT_NONE),
        ("-tls", ssl.CERT_REQUIRED),
        ("-tls -tls-no-verify", ssl.CERT_NONE),
    ],
)
def test_tls(
    monkeypatch: pytest.MonkeyPatch, run: Run, asked: list[Any], line: str, verifies: Any
) -> None:
    """TLS is verified unless it is not to be: as an ALB, and on this machine's own TLS port."""
    monkeypatch.setenv("GHEALTH_LISTEN", "off")
    monkeypatch.setenv("GHEALTH_TLS_LISTEN", "[::]:2")
    run(line)
    context = asked[0].tls
    assert (None if context is None else context.verify_mode) == verifies


COMBINED = "cannot be combined with"


@pytest.mark.parametrize(
    ("line", "mistake"),
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
        ("--rpc-timeout=1d", "argument --rpc-timeout: invalid value '1d'; expected a duration"),
        ("--rpc-timeout=+-1s", "argument --rpc-timeout: invalid value '+-1s'; expected"),
        ("--rpc-timeout=9999999h", "argument --rpc-timeout: invalid value '9999999h'; expected"),
        ("--rpc-header=a", "argument --rpc-header: invalid value 'a'; expected 'name: value'"),
        ("--path=a", "argument --path: invalid value 'a'; expected a path such as /package"),
        ("--matcher=100", "argument --matcher: invalid value '100'; expected codes from 0 to 99"),
    ],
)
def test_a_mistake_in_the_flags_is_one_line(
    run: Run, asked: list[Any], line: str, mistake: str
) -> None:
    """A mistake has exit code 1, and its line points to the help."""
    code, out, error = run(line)
    assert (code, out, asked) == (ExitCode.MISTAKE, "", [])
    assert re.fullmatch(rf"ghealth: {re.escape(mistake)}.* \(see ghealth check --help\)\n", error)


def test_other_mistakes_are_one_line(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """With --addr, the settings do not matter."""
    monkeypatch.setenv("GHEALTH_LISTEN", "[::]:0")
    gone = "ghealth: /gone: No such file or directory\n"
    assert run("-addr=a:1 -tls -tls-ca-cert=/gone") == (1, "", gone)
    off = "ghealth: GHEALTH_TLS_LISTEN is off: --addr is needed\n"
    assert run("-tls") == (1, "", off)


NO_CIPHERS = "ghealth: TLS cannot be used: LIBRARY_HAS_NO_CIPHERS\n"


@pytest.mark.parametrize(("tls", "code", "text"), [("-tls=false", 2, ""), ("-tls", 1, NO_CIPHERS)])
def test_an_openssl_without_ciphers_is_one_line(
    tmp_path: Path, tls: str, code: int, text: str
) -> None:
    """OpenSSL's FIPS mode without its provider has none: only TLS is affected."""
    config = tmp_path / "openssl.cnf"
    config.write_text("openssl_conf=a\n[a]\nalg_section=b\n[b]\ndefault_properties=fips=yes\n")
    with nobody() as port:
        flags = (f"-addr=:{port}", "-connect-timeout=10ms", tls)
        done = processes.run("check", *flags, prefix=("env", f"OPENSSL_CONF={config}"))
    assert (done.returncode, done.stderr) == (code, text)


def test_an_address_that_cannot_be_one_is_no_connection(run: Run) -> None:
    """grpc-health-probe tries to connect to any text, and fails with 2."""
    code, _, error = run("-addr=a:b:1")
    assert code == ExitCode.NO_CONNECTION
    assert re.match("ghealth: cannot connect to 'a:b:1': .*brackets", error)


def test_arguments_after_the_flags_are_ignored(run: Run, asked: list[Any]) -> None:
    """As for grpc-health-probe, `-tls false` is `-tls`, but it is not ignored silently."""
    _, _, error = run("-addr=a:1 -tls false -service=s")
    assert (asked[0].tls is not None, asked[0].service) == (True, "")
    assert error.startswith("ghealth: warning: ignored after the flags: false -service=s\n")


def test_the_version(run: Run) -> None:
    """The version is printed whatever other flags there are."""
    assert run("-version -rpc-timeout=0") == (0, f"ghealth {__version__}\n", "")


def test_the_help_fits_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The help has at most 80 columns, and no word that is broken at a hyphen."""
    monkeypatch.setenv("COLUMNS", str(WIDTH))
    code, text, _ = run("-h")
    lines = text.splitlines()
    assert (code, max(map(len, lines))) <= (0, WIDTH)
    assert not [line for line in lines if re.search(r"\w-$", line)]
    examples = [line for line in lines if line.startswith("  ghealth check --as alb")]
    assert "--matcher" not in examples[0]  # the check that can fail comes first


@pytest.mark.parametrize("as_alb", ["", "--as=alb"])
def test_text_output(run: Run, as_alb: str) -> None:
    """The text goes to standard output; steps and warnings go to standard error."""
    steps = "ghealth: a step\nghealth: warning: a\nghealth: warning: b\n"
    assert run(f"-addr=a:1 -v {as_alb}") == (4, "NOT_SERVING: é\n", steps)


@pytest.mark.parametrize("as_alb", ["", "--as=alb"])
def test_json_output(run: Run, as_alb: str) -> None:
    """The keys of the report are one line, in ASCII: whatever the locale can write, it is JSON."""
    assert run(f"-addr=a:1 --output=json {as_alb}") == (4, '{"reason": "\\u00e9"}\n', "")


def test_a_watch_prints_each_change(run: Run) -> None:
    """Each line has the time in UTC, in JSON too; the last one decides the exit code."""
    code, printed, _ = run("-addr=a:1 --watch")
    assert code == ExitCode.SERVING
    time = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"
    assert re.fullmatch(f"{time} NOT_SERVING: é\n{time} status: SERVING\n", printed)
    for line in run("-addr=a:1 --watch --output=json")[1].splitlines():
        assert list(json.loads(line)) == ["time", "reason"]


def test_a_watch_ends_when_interrupted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends a watch with the code of the last report, or as without a connection."""

    def watch(*_: object, pause: Any) -> Iterator[Report]:
        pause()
        yield from reports
        raise KeyboardInterrupt

    reports: list[Report] = []
    monkeypatch.setattr(call, "watch", watch)
    monkeypatch.setattr(call, "RECONNECT_INTERVAL", 0)
    assert run("-addr=a:1 --watch")[0] == ExitCode.NO_CONNECTION
    reports.append(REPORT)
    assert run("-addr=a:1 --watch")[0] == ExitCode.NOT_SERVING
    monkeypatch.setattr("ghealth.output.write", Mock(side_effect=KeyboardInterrupt))
    assert run("-addr=a:1 --watch")[0] == ExitCode.NOT_SERVING
