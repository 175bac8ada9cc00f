"""How the long programs of this repository end on Ctrl-C."""

import signal
import sys
from collections.abc import Callable
from typing import Final, NoReturn

INTERRUPTED: Final = 128 + signal.SIGINT
"""The exit code of a program that was interrupted."""


def run(main: Callable[[], int]) -> NoReturn:
    """Exit with what a program's main function returns, after Ctrl-C with one line instead.

    SIGTERM does the same. What the program holds in `with` blocks is closed first.
    """
    # SIGINT too: a shell starts background processes with it ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.default_int_handler)
    try:
        code = main()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        code = INTERRUPTED
    sys.exit(code)
