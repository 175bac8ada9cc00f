"""The command line: arguments, signals and exit codes."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final

from ghealth import __version__, flags, output, process
from ghealth.check import command as check

if TYPE_CHECKING:
    import asyncio

OK: Final = 0
CANNOT_START: Final = 2
KILLED_BY: Final = 128
"""Added to a signal's number, as shells do."""

_EXIT_CODES: Final = f"""\
exit codes:
  0  stopped by SIGTERM or SIGINT
  1  invalid settings, or output cannot be written
  2  cannot start: an address is in use or missing, or too few threads
  {KILLED_BY} + n  ended at once by a second signal n
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        arguments: The command-line arguments without the program's name; None for the process's.

    Returns:
        The exit code.
    """
    process.reset_inherited()
    # SIGTERM must end every command, and ghealth also during startup. Without a handler, the kernel
    # ignores the signal for process number 1.
    signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(KILLED_BY + signum))
    for stream in (sys.stdout, sys.stderr):
        # Without this, a locale without Unicode would raise. A closed stream is None.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        parsed = _parse(arguments)
        command: Callable[[argparse.Namespace], int] = parsed.command
        return command(parsed)
    except KeyboardInterrupt:
        return KILLED_BY + signal.SIGINT
    except output.OutputClosedError:
        return KILLED_BY + signal.SIGPIPE
    except output.OutputError as error:
        return _report(flags.MISTAKE, f"cannot write: {error}")
    except process.ResourceError as error:
        return _report(CANNOT_START, f"cannot start: {error}")


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = flags.Parser(
        prog="ghealth",
        description="Answer gRPC health checks for a gateway that offers only HTTP readiness.",
        epilog=_EXIT_CODES,
        keep_rest=True,
    )
    parser.add_argument("--version", action="version", version=f"ghealth {__version__}")
    parser.set_defaults(command=_serve)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", parser_class=flags.Parser)

    serve = commands.add_parser(
        "serve",
        help="serve health checks until SIGTERM or SIGINT (the default command)",
        description="Serve health checks until SIGTERM or SIGINT.\n"
        "The settings are environment variables: see ghealth settings.",
        epilog=_EXIT_CODES,
    )
    serve.set_defaults(command=_serve)

    settings = commands.add_parser(
        "settings",
        help="show every variable with its value, default and meaning; check them",
        description="Show every variable with its value, default and meaning; secrets are masked.\n"
        "A * marks values that differ from the default.\n"
        "If there is any mistake that ghealth serve would refuse, show the mistakes and exit with "
        "1.",
    )
    settings.add_argument(
        "--output", choices=["text", "json"], default="text", help="output format (default: text)"
    )
    settings.set_defaults(command=_settings)

    check.add_parser(commands)
    parsed: argparse.Namespace = parser.parse_args(arguments)
    if not parsed.rest:
        return parsed
    name, *rest = parsed.rest
    if name not in commands.choices:
        parser.error(f"unknown command {name!r}; expected {', '.join(commands.choices)}")
    return commands.choices[name].parse_args(rest)


def _serve(_arguments: argparse.Namespace) -> int:
    process.require_resources()
    process.limit_arenas()
    # Imported here: gRPC and pydantic take a quarter of a second.
    import asyncio

    from ghealth.observe.log import logging_to
    from ghealth.server.listen import ListenError
    from ghealth.server.prepare import configure
    from ghealth.server.serve import serve_prepared
    from ghealth.settings import Mistakes

    prepared = configure()
    if isinstance(prepared, Mistakes):
        return _report(flags.MISTAKE, *prepared.lines)
    settings = prepared.settings

    async def run() -> None:
        stop = _stop_by_signal()
        await serve_prepared(prepared, shutdown_trigger=lambda: stop)

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    as_json = settings.log_format == "json" or (settings.log_format is None and not is_terminal)
    with logging_to(sys.stdout, level=settings.log_level, as_json=as_json):
        try:
            asyncio.run(run())
        except ListenError as error:
            return _report(CANNOT_START, str(error))
    return OK


def _stop_by_signal() -> "asyncio.Future[bool]":
    """Return a future that SIGTERM or SIGINT completes; its value is whether to drain first."""
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


def _settings(arguments: argparse.Namespace) -> int:
    import json
    from dataclasses import asdict

    from ghealth.server.prepare import configure
    from ghealth.settings import Mistakes

    prepared = configure()
    if isinstance(prepared, Mistakes):
        return _report(flags.MISTAKE, *prepared.lines)
    rows = prepared.settings.rows()
    if arguments.output == "json":
        shown = [asdict(row) | {"changed": row.changed} for row in rows]
        output.write(json.dumps(shown, indent=1))
        return OK
    for row in rows:
        mark = "*" if row.changed else " "
        output.write(
            f"{mark} {row.variable}={row.value}\n"
            f"      default: {row.default or 'unset'}\n      {row.meaning}"
        )
    return OK


def _report(code: int, *lines: str) -> int:
    output.report(*lines)
    return code
