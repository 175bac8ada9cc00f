"""Command-line flags in the syntax of Go's flag package, on argparse."""

import argparse
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final, NoReturn

from ghealth import output

MISTAKE: Final = 1
"""The exit code for a mistake in the arguments, as for grpc-health-probe."""

_TRUE: Final = ("1", "t", "T", "TRUE", "true", "True")
_FALSE: Final = ("0", "f", "F", "FALSE", "false", "False")

# Without a width, argparse imports shutil, for the terminal's.
_HELP: Final = partial(argparse.RawDescriptionHelpFormatter, max_help_position=31, width=78)


def parsed_by(parse: Callable[[str], Any], expected: str) -> Callable[[str], Any]:
    """Return the type of a flag for argparse.

    Args:
        parse: Returns the value; raises ValueError.
        expected: What the flag accepts, for the mistake.
    """

    def parsed(text: str) -> Any:
        try:
            return parse(text)
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"invalid value {text!r}; expected {expected}"
            ) from None

    return parsed


class Parser(argparse.ArgumentParser):
    """Parses flags as Go's flag package does; a mistake is one line and exit code 1.

    `-name value` and `-name=value`, with one dash or two; switches as `-name` and `-name=false`.
    The flags end at `--` and at the first argument that is not one.

    Args:
        keep_rest: Whether arguments after the flags go to `rest` in the namespace; otherwise they
            are a mistake.
        options: As for argparse.
    """

    def __init__(self, *, keep_rest: bool = False, **options: Any) -> None:
        super().__init__(formatter_class=_HELP, allow_abbrev=False, **options)
        self._keep_rest = keep_rest

    def error(self, message: str) -> NoReturn:
        """Report a mistake in the arguments and exit.

        Args:
            message: The mistake.
        """
        output.report(f"{message} (see {self.prog} --help)")
        sys.exit(MISTAKE)

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse all flags.

        Args:
            args: The arguments; None for the process's.
            namespace: Receives the values.
        """
        flags, rest = self._normalized(sys.argv[1:] if args is None else args)
        if rest and not self._keep_rest:
            self.error(f"unexpected argument {rest[0]!r}")
        parsed, _ = super().parse_known_args(flags, namespace)
        parsed.rest = rest
        return parsed, []

    def _normalized(self, arguments: Sequence[str]) -> tuple[list[str], list[str]]:
        """Return the flags as `--name` or `--name=value`, and the arguments after them."""
        flags: list[str] = []
        rest = list(arguments)
        while rest and rest[0].startswith("-") and rest[0] != "-":
            word = rest.pop(0)
            if word == "--":
                break
            name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
            known = self._option_string_actions
            action = known.get(f"--{name}") or known.get(f"-{name}")
            if action is None or name.startswith("-"):
                self.error(f"unknown flag {word.partition('=')[0]}")
            flag = action.option_strings[-1]
            if action.nargs == 0:
                if equals and value not in (*_TRUE, *_FALSE):
                    self.error(f"invalid value {value!r} of {flag}; expected true or false")
                # As for every flag, the last one counts.
                flags = [earlier for earlier in flags if earlier != flag]
                flags += [flag] if not equals or value in _TRUE else []
                continue
            if not equals:
                if not rest:
                    self.error(f"{flag} needs a value")
                value = rest.pop(0)
            flags.append(f"{flag}={value}")
        return flags, rest

    def _print_message(self, message: str, _file: Any = None) -> None:
        output.write(message.removesuffix("\n"))
