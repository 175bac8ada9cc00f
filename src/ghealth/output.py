"""Writing to the standard streams, also if they are full, closed or a pipe without a reader."""

import errno
import os
import sys
from contextlib import suppress
from typing import TextIO


class OutputError(Exception):
    """Standard output cannot be written; the message is the cause, in a few words."""


class OutputClosedError(OutputError):
    """The reader of standard output has closed it, as `head` does."""


def write(text: str) -> None:
    """Write a text and a line end to standard output at once.

    Args:
        text: The text.

    Raises:
        OutputError: If it cannot be written.
    """
    if sys.stdout is None:  # it was closed when the process started
        raise OutputError("standard output is closed")
    try:
        _write(sys.stdout, f"{text}\n")
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise OutputClosedError(error.strerror) from None
        raise OutputError(error.strerror) from None


def report(*lines: str) -> None:
    """Write lines to standard error, each with ghealth's name. If it cannot be, they are lost.

    Args:
        lines: The lines.
    """
    if sys.stderr is not None:
        with suppress(OSError):
            _write(sys.stderr, "".join(f"ghealth: {line}\n" for line in lines))


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
        stream.flush()
    except OSError:
        # At its end the interpreter would write again what is left in the buffer, report
        # that, and change the exit code.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        raise
