"""The command `ghealth check`: its flags, and what they do.

The flags and exit codes are those of grpc-health-probe, so that it can replace it.
"""

import argparse
import json
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from ghealth import __version__, flags, output, process
from ghealth.check.report import ExitCode, Report
from ghealth.check.target import Target, reachable
from ghealth.durations import duration
from ghealth.health import CHECK_PATH
from ghealth.matcher import GRPC_CODES, Matcher

if TYPE_CHECKING:
    from ghealth.check.certificates import Tls

RECONNECT_INTERVAL: Final = 1.0
"""Seconds between a watch's connections."""

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
  ghealth check --as alb --addr 10.0.3.17:8080 --path / --matcher 12
"""
_MAX_SECONDS: Final = 9_223_372_036.0
"""The longest duration in Go."""


class _MistakeError(Exception):
    """A mistake in the flags or in the settings.

    Args:
        lines: The mistakes.
        exit_code: The exit code.
        hint: Whether to mention --help.
    """

    def __init__(
        self, *lines: str, exit_code: ExitCode = ExitCode.MISTAKE, hint: bool = True
    ) -> None:
        super().__init__(*lines)
        self.lines = lines
        self.exit_code = exit_code
        self.hint = hint


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
    add = parser.add_argument
    add(
        "--addr",
        metavar="ADDRESS",
        help="server address: host:port, :port or unix:path (default: this machine and the port "
        "of GHEALTH_LISTEN, or of GHEALTH_TLS_LISTEN)",
    )
    add("--service", metavar="NAME", default="", help="service to check (default: the gateway)")
    add(
        "--connect-timeout",
        metavar="DURATION",
        type=_duration,
        default=1.0,
        help="timeout for the connection (default: 1s)",
    )
    add(
        "--rpc-timeout",
        metavar="DURATION",
        type=_duration,
        help="timeout for the answer (default: 1s; as an ALB 5s, for the whole check)",
    )
    add("--user-agent", metavar="TEXT", help=f"user agent (default: ghealth/{__version__})")
    add(
        "--rpc-header",
        metavar="HEADER",
        type=_header,
        action="append",
        default=[],
        help="header to send, as 'name: value'; may be repeated",
    )
    add("--gzip", action="store_true", help="compress the request by gzip")
    add("--watch", action="store_true", help="print each change with its time, until interrupted")
    add("--output", choices=["text", "json"], default="text", help="output format (default: text)")
    add("-v", dest="verbose", action="store_true", help="print the steps to standard error")
    add("--version", action="store_true", help="print the version and exit")
    _add_tls_flags(parser)
    alb = parser.add_argument_group(
        "as a load balancer", "Sends the health check of an AWS ALB to any gRPC server."
    )
    alb.add_argument("--as", dest="as_", choices=["alb"], help="load balancer to emulate")
    alb.add_argument(
        "--path",
        type=_path,
        help=f"health check path of the target group (default: {CHECK_PATH})",
    )
    alb.add_argument(
        "--matcher",
        metavar="CODES",
        type=_matcher,
        help="success codes of the target group, such as 0 or 0,12 (default: 0)",
    )


def _add_tls_flags(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("TLS")
    group.add_argument("--tls", action="store_true", help="use TLS; as an ALB: HTTPS health checks")
    group.add_argument(
        "--tls-no-verify", action="store_true", help="do not verify the server's certificate"
    )
    group.add_argument(
        "--tls-ca-cert",
        metavar="FILE",
        default="",
        help="trusted authorities, PEM (default: the system's)",
    )
    group.add_argument(
        "--tls-client-cert", metavar="FILE", default="", help="client certificate, PEM"
    )
    group.add_argument("--tls-client-key", metavar="FILE", default="", help="its key, PEM")
    group.add_argument(
        "--tls-server-name",
        metavar="NAME",
        default="",
        help="name in the server's certificate (default: the host of the address)",
    )


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
    try:
        _require_valid(arguments)
        target, own_tls = _target(arguments)
        tls = own_tls or _tls(arguments)
    except _MistakeError as error:
        hint = " (see ghealth check --help)" if error.hint else ""
        output.report(*(f"{line}{hint}" for line in error.lines))
        return error.exit_code
    if arguments.rest:
        output.report(f"warning: ignored after the flags: {' '.join(arguments.rest)}")
    if arguments.as_ is not None:
        return _run_alb(arguments, target, tls=tls is not None)
    return _run_check(arguments, target, tls)


def _run_alb(arguments: argparse.Namespace, target: Target, *, tls: bool) -> int:
    import asyncio

    from ghealth.check import alb

    group = alb.TargetGroup(
        path=arguments.path or CHECK_PATH,
        matcher=arguments.matcher or alb.DEFAULT_MATCHER,
        timeout=arguments.rpc_timeout or alb.DEFAULT_TIMEOUT,
        tls=tls,
    )
    return _write(asyncio.run(alb.check(target, group)), arguments)


def _run_check(arguments: argparse.Namespace, target: Target, tls: "Tls | None") -> int:
    process.require_resources()
    import asyncio

    from ghealth.check import client
    from ghealth.check.question import Question

    question = Question(
        target=target,
        service=arguments.service,
        connect_timeout=arguments.connect_timeout,
        rpc_timeout=arguments.rpc_timeout or 1.0,
        user_agent=f"ghealth/{__version__}"
        if arguments.user_agent is None
        else arguments.user_agent,
        headers=tuple(arguments.rpc_header),
        gzip=arguments.gzip,
        tls=tls,
    )
    log = output.report if arguments.verbose else _ignore
    if not arguments.watch:
        return _write(asyncio.run(client.check(question, log)), arguments)
    code: int = ExitCode.NO_CONNECTION

    async def follow() -> None:
        nonlocal code
        reports = client.watch(question, pause=lambda: asyncio.sleep(RECONNECT_INTERVAL))
        async for report in reports:
            code = _write(report, arguments, time=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")

    with suppress(KeyboardInterrupt):
        asyncio.run(follow())
    return code


def _write(report: Report, arguments: argparse.Namespace, *, time: str = "") -> int:
    """Write a report in the format of the output, and return its exit code."""
    if arguments.output == "json":
        stamp = {"time": time} if time else {}
        output.write(json.dumps(stamp | dict(report.keys), ensure_ascii=False))
    else:
        output.write(f"{time} {report.text}".strip())
        output.report(*(f"warning: {warning}" for warning in report.warnings))
    return report.exit_code


def _ignore(_line: str) -> None:
    """Do nothing."""


def _require_valid(arguments: argparse.Namespace) -> None:
    """Raise if flags contradict each other, by the rules of grpc-health-probe and ghealth."""
    if arguments.addr == "":
        raise _MistakeError("--addr is empty")
    for name in ("connect_timeout", "rpc_timeout"):
        seconds = getattr(arguments, name)
        if seconds is not None and seconds <= 0:
            raise _MistakeError(f"{_flag(name)} must be greater than zero")
    given = {name for name, value in vars(arguments).items() if value}
    for name, needed in _NEEDED:
        if name in given and needed not in given:
            raise _MistakeError(f"{_flag(name)} needs {_flag(needed)}")
    for name, other in _EXCLUDED:
        if name in given and other in given:
            raise _MistakeError(f"{_flag(name)} cannot be combined with {_flag(other)}")
    # Where grpc-health-probe ignores arguments, they are only reported.
    if arguments.rest and (arguments.addr is None or arguments.as_ or arguments.watch):
        raise _MistakeError(f"unexpected argument {arguments.rest[0]!r}")


_NEEDED: Final = (
    ("tls_no_verify", "tls"),
    ("tls_ca_cert", "tls"),
    ("tls_client_cert", "tls"),
    ("tls_server_name", "tls"),
    ("tls_client_cert", "tls_client_key"),
    ("tls_client_key", "tls_client_cert"),
    ("path", "as_"),
    ("matcher", "as_"),
)
"""Flags, and another flag that each of them needs."""

_NOT_OF_AN_ALB: Final = (
    *("watch", "service", "user_agent", "rpc_header", "gzip"),
    *("tls_no_verify", "tls_ca_cert", "tls_client_cert", "tls_server_name"),
)
_EXCLUDED: Final = (
    ("tls_ca_cert", "tls_no_verify"),
    ("tls_server_name", "tls_no_verify"),
    *(("as_", name) for name in _NOT_OF_AN_ALB),
)
"""Pairs of flags that exclude each other."""


def _flag(name: str) -> str:
    return f"--{name.rstrip('_').replace('_', '-')}"


def _target(arguments: argparse.Namespace) -> "tuple[Target, Tls | None]":
    """Return the server, and how to use TLS if the settings of this machine's ghealth need it."""
    if arguments.addr is None:
        return _own_target(tls=arguments.tls)
    try:
        return Target.parse(arguments.addr), None
    except ValueError as error:
        # grpc-health-probe tries to connect to any text.
        reason = str(error) or "expected host:port"
        raise _MistakeError(
            f"cannot connect to {arguments.addr!r}: {reason}", exit_code=ExitCode.NO_CONNECTION
        ) from None


def _own_target(*, tls: bool) -> "tuple[Target, Tls | None]":
    """Return this machine's ghealth, from the settings in the environment."""
    from ghealth.check.certificates import Tls
    from ghealth.settings import Mistakes, load

    settings = load()
    if isinstance(settings, Mistakes):
        raise _MistakeError(*settings.lines, hint=False)
    by_tls = tls or not settings.listen
    addresses = settings.tls_listen if by_tls else settings.listen
    variable = "GHEALTH_TLS_LISTEN" if by_tls else "GHEALTH_LISTEN"
    if not addresses:
        raise _MistakeError(f"{variable} is off: --addr is needed")
    address = next((found for found in addresses if found.port), None)
    if address is None:
        raise _MistakeError(
            f"{variable} has only port 0, which cannot be checked: --addr is needed"
        )
    own = reachable(address)
    # Its certificate has the names that clients use, not this address.
    return Target(str(own), own), None if tls or not by_tls else Tls(verify=False)


def _tls(arguments: argparse.Namespace) -> "Tls | None":
    if not arguments.tls:
        return None

    from ghealth.check.certificates import CertificateError, Tls

    tls = Tls(
        verify=not arguments.tls_no_verify,
        ca_cert=arguments.tls_ca_cert,
        client_cert=arguments.tls_client_cert,
        client_key=arguments.tls_client_key,
        server_name=arguments.tls_server_name,
    )
    try:
        tls.context()  # raises if a file cannot be used
    except CertificateError as error:
        raise _MistakeError(str(error)) from None
    return tls


def _duration(text: str) -> float:
    """Parse a duration with a sign, as Go does; its range is checked later."""
    sign = -1.0 if text.startswith("-") else 1.0
    try:
        seconds = sign * duration(text.lstrip("+-") if text[1:2] not in ("+", "-") else "")
    except ValueError:
        seconds = float("inf")
    if abs(seconds) > _MAX_SECONDS:
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}; expected a duration such as 5s or 500ms"
        )
    return round(seconds, 9)  # Go counts nanoseconds


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise argparse.ArgumentTypeError(f"invalid value {text!r}; expected 'name: value'")
    return name, value.lstrip()


def _path(text: str) -> str:
    if not text.startswith("/") or not all("!" <= char <= "~" for char in text):
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}; expected a path such as /package.Service/Method"
        )
    return text


def _matcher(text: str) -> Matcher:
    try:
        return Matcher.parse(text, GRPC_CODES)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"invalid value {text!r}; expected codes from 0 to 99, such as 0 or 0,12 or 0-5"
        ) from None
