"""The command line: arguments, signals and exit codes."""

import argparse
import errno
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn

from ghealth import __version__
from ghealth.address import ANY_IPV4, ANY_IPV6, Address
from ghealth.fork import in_fork
from ghealth.matcher import GRPC_CODES, Matcher

if TYPE_CHECKING:
    import asyncio

    from ghealth.settings import Mistakes, Settings

SERVED: Final = 0
MISTAKEN: Final = 1
CANNOT_LISTEN: Final = 2
UNHEALTHY: Final = 4
KILLED_BY: Final = 128
"""Added to a signal's number, as shells do."""

DEFAULT_LISTEN: Final = "[::]:25021"

_PATH: Final = re.compile(r"/[!-~]*")
_LONGEST: Final = 24 * 3600.0
_RETRY_EVERY: Final = 1.0
_UNITS: Final = {"h": 3600.0, "m": 60.0, "s": 1.0, "ms": 1e-3, "": 1.0}
_NUMBER: Final = r"[0-9]+(?:\.[0-9]+)?"
_DURATION: Final = re.compile(rf"{_NUMBER}|(?:{_NUMBER}(?:h|ms|m|s))+")
_PART: Final = re.compile(rf"({_NUMBER})(h|ms|m|s|)")

_EXIT_CODES: Final = f"""\
exit codes of serve:  0 stopped when told to, 1 a mistake in the settings, 2 cannot listen,
                      {KILLED_BY} + n ended at once by a second signal n
exit codes of check:  0 serving, 1 bad arguments, 2 no connection, 3 RPC failed, 4 not serving;
                      as an ALB 0 healthy, 4 unhealthy
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: What follows the program's name; None for the process's own.

    Returns:
        The exit code.
    """
    for stream in (sys.stdout, sys.stderr):
        # What the locale cannot show is shown escaped; a stream that was closed is None.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    parsed = _parser().parse_args(arguments)
    # gRPC's core writes to standard error in the middle of its work, also about what strangers
    # send: nobody may be able to fill that pipe, or hold it up.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    command: Callable[[argparse.Namespace], int] = parsed.command
    try:
        code = command(parsed)
        if sys.stdout is not None:
            sys.stdout.flush()  # now, while somebody can still say that it failed
    except KeyboardInterrupt:
        return KILLED_BY + signal.SIGINT
    except BrokenPipeError:
        # As for any tool in a pipe: whoever read the output has seen enough.
        _discard_output()
        return KILLED_BY + signal.SIGPIPE
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        _discard_output()
        return _tell((f"cannot write: {error.strerror}",))
    return code


def _discard_output() -> None:
    """Send what is left in the output's buffer nowhere: the interpreter's end would try again."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Parser(argparse.ArgumentParser):
    """Tells a mistake in one line, with the exit code of grpc-health-probe."""

    def error(self, message: str) -> NoReturn:
        self.exit(MISTAKEN, f"{self.prog}: {message} (see {self.prog} --help)\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="ghealth",
        description="Answer gRPC health checks with what an HTTP-only gateway says of itself.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"ghealth {__version__}")
    parser.set_defaults(command=_serve)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=_Parser)

    serve = commands.add_parser(
        "serve",
        help="serve until SIGTERM or SIGINT (what ghealth does without a command)",
        description="Serve until SIGTERM or SIGINT. The settings come from the environment: "
        "see ghealth settings.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    serve.set_defaults(command=_serve)

    settings = commands.add_parser(
        "settings",
        help="show every variable with its value, default and meaning",
        description="Show every variable with its value, default and meaning, secrets masked.",
        allow_abbrev=False,
    )
    settings.set_defaults(command=_settings)

    check = commands.add_parser(
        "check",
        help="ask a gRPC health server, for probes, scripts and people",
        description="Ask a gRPC health server. The flags are grpc-health-probe's, with one dash "
        "or two; durations are 1s, 500ms or plain seconds.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    check.set_defaults(command=_check)
    check.add_argument(
        "--addr",
        "-addr",
        metavar="HOST:PORT",
        type=_address,
        help="whom to ask (default: this machine, the port of GHEALTH_LISTEN)",
    )
    check.add_argument(
        "--service",
        "-service",
        metavar="NAME",
        type=_name,
        default="",
        help="the service to ask about (default: the gateway)",
    )
    check.add_argument(
        "--connect-timeout",
        "-connect-timeout",
        metavar="DURATION",
        type=_duration,
        default=1.0,
        help="time for the connection (default: 1s)",
    )
    check.add_argument(
        "--rpc-timeout",
        "-rpc-timeout",
        metavar="DURATION",
        type=_duration,
        help="time for the answer (default: 1s; for the whole check of an ALB 5s)",
    )
    check.add_argument(
        "--watch",
        action="store_true",
        help="print each change with its time, until interrupted",
    )
    alb = check.add_argument_group(
        "what a load balancer would conclude",
        "Replays an AWS ALB's own health check, against any gRPC server.",
    )
    alb.add_argument("--as", dest="as_", choices=["alb"], help="whom to stand in for")
    alb.add_argument(
        "--path",
        type=_path,
        help="the target group's health check path (default: /grpc.health.v1.Health/Check)",
    )
    alb.add_argument(
        "--matcher",
        type=_grpc_codes,
        help="its success codes: 0 or 0,12 or 0-99 (default: 0)",
    )
    return parser


def _duration(text: str) -> float:
    """Read a duration as Go's flags have it, or plain seconds."""
    seconds = 0.0
    if _DURATION.fullmatch(text):
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
    if not 0 < seconds <= _LONGEST:
        message = f"{text!r} is no duration: 1s, 500ms or plain seconds, at most 24h"
        raise argparse.ArgumentTypeError(message)
    return seconds


def _address(text: str) -> Address:
    """Read whom to ask; without a host, as for grpc-health-probe, this machine."""
    try:
        return Address.parse(f"127.0.0.1{text}" if text.startswith(":") else text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no address: HOST:PORT") from None


def _name(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!r} is no UTF-8") from None
    return text


def _path(text: str) -> str:
    if not _PATH.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no path: /package.Service/Method")
    return text


def _grpc_codes(text: str) -> Matcher:
    try:
        return Matcher.parse(text, GRPC_CODES)
    except ValueError:
        message = f"{text!r} is no matcher: codes from 0 to 99, 0 or 0,12 or 0-5"
        raise argparse.ArgumentTypeError(message) from None


def _serve(_arguments: argparse.Namespace) -> int:
    # Until it serves, SIGTERM ends it: without a handler of its own, the kernel would keep the
    # signal from a process with the number 1.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(KILLED_BY + signum))

    # What the settings are read with takes a tenth of a second and 12 MB that serving has no use
    # for: both are spent in a fork, while this process imports gRPC.
    read = in_fork(_read_settings)

    # Imported here, as below: a command imports what it needs.
    import asyncio

    import uvloop

    from ghealth.logs import logging_to
    from ghealth.server import ListenError, serve
    from ghealth.settings import Mistakes

    settings = read()
    if isinstance(settings, Mistakes):
        return _tell(settings.lines)

    async def run() -> None:
        stop = _stop_by_signal()
        await serve(settings, shutdown_trigger=lambda: stop)

    # Closed by whoever started the process, standard output is None.
    terminal = sys.stdout is not None and sys.stdout.isatty()
    as_json = settings.log_format == "json" or (settings.log_format is None and not terminal)
    with logging_to(sys.stdout, level=settings.log_level, as_json=as_json):
        try:
            asyncio.Runner(loop_factory=uvloop.new_event_loop).run(run())
        except ListenError as error:
            _tell((str(error),))
            return CANNOT_LISTEN
    return _leave(SERVED)


def _stop_by_signal() -> "asyncio.Future[bool]":
    """Make a future that SIGTERM or SIGINT completes, with whether callers get time to notice."""
    import asyncio

    loop = asyncio.get_running_loop()
    stop: asyncio.Future[bool] = loop.create_future()

    def arrived(signum: signal.Signals) -> None:
        if stop.done():
            os._exit(KILLED_BY + signum)
        stop.set_result(signum == signal.SIGTERM)

    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, arrived, signum)
    return stop


def _read_settings() -> "Settings | Mistakes":
    # There are none, and looking for them reads the metadata of every installed package.
    os.environ["PYDANTIC_DISABLE_PLUGINS"] = "__all__"

    from ghealth.environment import load

    return load()


def _settings(_arguments: argparse.Namespace) -> int:
    from ghealth.settings import Mistakes

    settings = _read_settings()
    if isinstance(settings, Mistakes):
        return _tell(settings.lines)
    for row in settings.rows:
        print(f"{row.variable}={row.value}\n    default: {row.default}\n    {row.meaning}")
    return SERVED


def _check(arguments: argparse.Namespace) -> int:
    addr = arguments.addr or _own_address(os.environ.get("GHEALTH_LISTEN", DEFAULT_LISTEN))
    if addr is None:
        return _tell(("GHEALTH_LISTEN names no port to ask: say --addr HOST:PORT",))
    if arguments.as_ is not None:
        return _check_as_alb(addr, arguments)
    if arguments.path or arguments.matcher:
        return _tell(("--path and --matcher go with --as alb",))

    import asyncio

    from ghealth import client

    question = client.Question(
        addr=str(addr),
        service=arguments.service,
        connect_timeout=arguments.connect_timeout,
        rpc_timeout=arguments.rpc_timeout or client.RPC_TIMEOUT,
    )
    if not arguments.watch:
        finding = asyncio.run(client.check(question))
        print(finding.text)
        return finding.code
    code: int = client.ExitCode.NO_CONNECTION

    async def follow() -> None:
        nonlocal code
        async for finding in client.watch(question, pause=lambda: asyncio.sleep(_RETRY_EVERY)):
            print(client.timed(finding), flush=True)
            code = finding.code

    with suppress(KeyboardInterrupt):
        asyncio.run(follow())
    return code


def _check_as_alb(address: Address, arguments: argparse.Namespace) -> int:
    import asyncio

    from ghealth import alb

    if arguments.watch or arguments.service:
        return _tell(("an ALB neither watches nor names a service: --as alb goes without them",))
    conclusion = asyncio.Runner().run(
        alb.check(
            address,
            arguments.path or alb.DEFAULT_PATH,
            arguments.matcher or Matcher.parse(alb.DEFAULT_MATCHER, GRPC_CODES),
            arguments.rpc_timeout or alb.DEFAULT_TIMEOUT,
        )
    )
    print(conclusion.text, flush=True)
    for warning in conclusion.warnings:
        print(f"warning: {warning}", file=sys.stderr)
    return _leave(SERVED if conclusion.healthy else UNHEALTHY)


def _leave(code: int) -> NoReturn:
    """End the process at once.

    A regular end would wait for threads, and one that asks a silent name server comes back after
    many seconds.
    """
    os._exit(code)


def _own_address(listen: str) -> Address | None:
    """Tell where a ghealth with this `LISTEN` answers on this machine, None if that is unknown."""
    try:
        address = Address.parse(listen.split(",", maxsplit=1)[0])
    except ValueError:
        return None
    if not address.port:
        return None
    host = "127.0.0.1" if address.host in (ANY_IPV4, ANY_IPV6) else address.host
    return Address(host, address.port)


def _tell(lines: Sequence[str]) -> int:
    """Name mistakes on standard error, a line each."""
    for line in lines:
        print(f"ghealth: {line}", file=sys.stderr)
    return MISTAKEN
