"""The command `ghealth check`: its flags, and what they do.

The flags and exit codes are those of grpc-health-probe, so that it can replace it.
"""

import argparse
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

from ghealth import __version__, flags, output
from ghealth.check.addresses import Server, SettingsError, own_server
from ghealth.check.report import ExitCode, Report
from ghealth.durations import duration
from ghealth.health import CHECK_PATH
from ghealth.matcher import GRPC_CODES, Matcher

if TYPE_CHECKING:
    import ssl

_EPILOG: Final = """\
exit codes:
  0  serving; as an ALB: healthy
  1  invalid flags or settings, or output cannot be written
  2  no connection
  3  the RPC failed
  4  not serving; as an ALB: unhealthy

examples:
  ghealth check
  ghealth check --addr 10.0.3.17:25021 --service liveness --rpc-timeout 5s
  ghealth check --as alb --addr 10.0.3.17:25021
  ghealth check --as alb --addr 10.0.3.17:8080 --path / --matcher 12
"""
_USER_AGENT: Final = f"ghealth/{__version__}"
_MAX_SECONDS: Final = 9_223_372_036.0
"""The longest duration in Go."""


_Log = Callable[[str], None]


def _fail(line: str, exit_code: ExitCode = ExitCode.MISTAKE) -> NoReturn:
    output.report(line)
    sys.exit(exit_code)


def add_parser(commands: "argparse._SubParsersAction[flags.Parser]") -> None:
    """Add the command to the command line.

    Args:
        commands: The subcommands, which have `flags.Parser` as their class.
    """
    parser = commands.add_parser(
        "check",
        help="check a gRPC health server",
        usage="ghealth check [FLAGS]",
        description="Check a gRPC health server.\n"
        "The flags are those of grpc-health-probe and a few more, with one dash or two.\n"
        "Durations are 5s, 500ms, 1m30s or plain seconds.",
        epilog=_EPILOG,
        keep_rest=True,
    )
    parser.set_defaults(command=run)
    _value(
        parser,
        "--addr",
        "ADDRESS",
        "server address: host:port, :port or unix:path (default: this machine and the port of "
        "GHEALTH_LISTEN, or of GHEALTH_TLS_LISTEN)",
    )
    _value(parser, "--service", "NAME", "service to check (default: the gateway)", default="")
    connection = "timeout for the connection (default: 1s)"
    _value(parser, "--connect-timeout", "DURATION", connection, type=_DURATION, default=1.0)
    answer = "timeout for the answer (default: 1s; as an ALB 5s, for the whole check)"
    _value(parser, "--rpc-timeout", "DURATION", answer, type=_DURATION)
    _value(parser, "--user-agent", "TEXT", f"user agent (default: {_USER_AGENT})")
    header = "header to send, as 'name: value'; may be repeated"
    _value(parser, "--rpc-header", "HEADER", header, type=_HEADER, action="append", default=[])
    _switch(parser, "--gzip", "compress the request by gzip")
    _switch(parser, "--watch", "print each change with its time, until interrupted")
    formats = ["text", "json"]
    output_format = "output format (default: text)"
    parser.add_argument("--output", choices=formats, default="text", help=output_format)
    _switch(parser, "-v", "print the steps to standard error", dest="verbose")
    _switch(parser, "--version", "print the version and exit")

    tls = parser.add_argument_group("TLS")
    _switch(tls, "--tls", "use TLS; as an ALB: HTTPS health checks")
    _switch(tls, "--tls-no-verify", "do not verify the server's certificate")
    authorities = "trusted authorities, PEM (default: the system's)"
    _value(tls, "--tls-ca-cert", "FILE", authorities, default="")
    _value(tls, "--tls-client-cert", "FILE", "client certificate, PEM", default="")
    _value(tls, "--tls-client-key", "FILE", "its key, PEM", default="")
    name = "name in the server's certificate (default: the host of the address)"
    _value(tls, "--tls-server-name", "NAME", name, default="")

    about = "Sends the health check of an AWS ALB to any gRPC server."
    alb = parser.add_argument_group("as a load balancer", about)
    alb.add_argument("--as", dest="as_", choices=["alb"], help="load balancer to emulate")
    path = f"health check path of the target group (default: {CHECK_PATH})"
    _value(alb, "--path", "PATH", path, type=_PATH)
    codes = "success codes of the target group, such as 0 or 0,12 (default: 0)"
    _value(alb, "--matcher", "CODES", codes, type=_MATCHER)


def _value(
    group: argparse._ActionsContainer, flag: str, value: str, meaning: str, **options: Any
) -> None:
    group.add_argument(flag, metavar=value, help=meaning, **options)


def _switch(group: argparse._ActionsContainer, flag: str, meaning: str, **options: Any) -> None:
    group.add_argument(flag, help=meaning, action="store_true", **options)


def run(arguments: argparse.Namespace) -> int:
    """Run the command.

    Args:
        arguments: The parsed flags.

    Returns:
        The exit code.
    """
    if arguments.version:
        output.write(f"ghealth {__version__}")
        return ExitCode.SERVING
    if mistake := _mistake(arguments):
        _fail(f"{mistake} (see ghealth check --help)")
    server, by_tls = _server(arguments)
    tls = _tls(arguments) if by_tls else None
    if arguments.rest:
        output.report(f"warning: ignored after the flags: {' '.join(arguments.rest)}")
    log = output.report if arguments.verbose else lambda _: None
    if arguments.as_:
        return _run_alb(arguments, server, tls, log)
    return _run_check(arguments, server, tls, log)


def _run_alb(
    arguments: argparse.Namespace, server: Server, tls: "ssl.SSLContext | None", log: _Log
) -> int:
    from ghealth.check import alb

    group = alb.TargetGroup(
        path=arguments.path or CHECK_PATH,
        matcher=arguments.matcher or alb.DEFAULT_MATCHER,
        timeout=arguments.rpc_timeout or alb.DEFAULT_TIMEOUT,
        tls=tls,
    )
    return _write(alb.check(server, group, log), arguments)


def _run_check(
    arguments: argparse.Namespace, server: Server, tls: "ssl.SSLContext | None", log: _Log
) -> int:
    from ghealth.check import call

    request = call.Request(
        server=server,
        service=arguments.service,
        connect_timeout=arguments.connect_timeout,
        rpc_timeout=arguments.rpc_timeout or 1.0,
        user_agent=_USER_AGENT if arguments.user_agent is None else arguments.user_agent,
        headers=tuple(arguments.rpc_header),
        gzip=arguments.gzip,
        tls=tls,
        server_name=arguments.tls_server_name,
    )
    if not arguments.watch:
        return _write(call.check(request, log), arguments)
    code: int = ExitCode.NO_CONNECTION
    with suppress(KeyboardInterrupt):
        for report in call.watch(request, pause=lambda: time.sleep(call.RECONNECT_INTERVAL)):
            code = report.exit_code  # first: Ctrl-C may come while the line is written
            now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
            _write(report, arguments, now=now)
    return code


def _write(report: Report, arguments: argparse.Namespace, *, now: str = "") -> int:
    """Write a report in the format of the output, and return its exit code."""
    if arguments.output == "json":
        import json

        stamp = {"time": now} if now else {}
        output.write(json.dumps(stamp | dict(report.keys)))
    else:
        output.write(f"{now} {report.text}".strip())
        output.report(*(f"warning: {warning}" for warning in report.warnings))
    return report.exit_code


def _mistake(arguments: argparse.Namespace) -> str | None:
    """Return a mistake in the flags, by the rules of grpc-health-probe and ghealth."""
    if arguments.addr == "":
        return "--addr is empty"
    for name in ("connect_timeout", "rpc_timeout"):
        seconds = getattr(arguments, name)
        if seconds is not None and seconds <= 0:
            return f"{_flag(name)} must be greater than zero"
    given = {name for name, value in vars(arguments).items() if value}
    for name, needed in _NEEDED:
        if name in given and needed not in given:
            return f"{_flag(name)} needs {_flag(needed)}"
    for name, other in _EXCLUDED:
        if {name, other} <= given:
            return f"{_flag(name)} cannot be combined with {_flag(other)}"
    # Where grpc-health-probe ignores arguments, they are only reported.
    if arguments.rest and (arguments.addr is None or arguments.as_ or arguments.watch):
        return f"unexpected argument {arguments.rest[0]!r}"
    return None


_TLS: Final = ("tls_no_verify", "tls_ca_cert", "tls_client_cert", "tls_server_name")
_NEEDED: Final = (
    *((name, "tls") for name in _TLS),
    ("tls_client_cert", "tls_client_key"),
    ("tls_client_key", "tls_client_cert"),
    ("path", "as_"),
    ("matcher", "as_"),
)
"""Flags, and another flag that each of them needs."""

_EXCLUDED: Final = (
    ("tls_ca_cert", "tls_no_verify"),
    ("tls_server_name", "tls_no_verify"),
    *(("as_", name) for name in ("watch", "service", "user_agent", "rpc_header", "gzip", *_TLS)),
)
"""Pairs of flags that exclude each other."""


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


def _server(arguments: argparse.Namespace) -> tuple[Server, bool]:
    """Return the server, and whether to use TLS."""
    try:
        if arguments.addr is None:
            return own_server(tls=arguments.tls)
        return Server.parse(arguments.addr), arguments.tls
    except SettingsError as error:
        _fail(str(error))
    except ValueError as error:
        # grpc-health-probe tries to connect to any text.
        _fail(f"cannot connect to {arguments.addr!r}: {error}", ExitCode.NO_CONNECTION)


def _tls(arguments: argparse.Namespace) -> "ssl.SSLContext":
    from ghealth.check.tls import TlsError, client_context

    # An ALB verifies nothing. Without --tls, it is this machine's ghealth, whose certificate has
    # the names that clients use.
    verify = arguments.tls and not arguments.tls_no_verify and not arguments.as_
    try:
        return client_context(
            verify=verify,
            ca_cert=arguments.tls_ca_cert,
            client_cert=arguments.tls_client_cert,
            client_key=arguments.tls_client_key,
        )
    except TlsError as error:
        _fail(str(error))


def _duration(text: str) -> float:
    """Parse a duration with a sign, as Go does; its range is checked later."""
    sign = -1.0 if text.startswith("-") else 1.0
    seconds = sign * duration(text[1:] if text[:1] in ("+", "-") else text)
    if abs(seconds) > _MAX_SECONDS:
        raise ValueError
    return round(seconds, 9)  # Go counts nanoseconds


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise ValueError
    return name, value.lstrip()


def _path(text: str) -> str:
    if not text.startswith("/") or not all("!" <= char <= "~" for char in text):
        raise ValueError
    return text


def _matcher(text: str) -> Matcher:
    return Matcher.parse(text, GRPC_CODES)


_DURATION: Final = flags.parsed_by(_duration, "a duration such as 5s or 500ms")
_HEADER: Final = flags.parsed_by(_header, "'name: value'")
_PATH: Final = flags.parsed_by(_path, "a path such as /package.Service/Method")
_MATCHER: Final = flags.parsed_by(_matcher, "codes from 0 to 99, such as 0 or 0,12 or 0-5")
