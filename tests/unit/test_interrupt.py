import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.interrupt import INTERRUPTED

PROGRAM = """
import signal
from contextlib import ExitStack
from tests.support import interrupt

def main() -> int:
    with ExitStack() as stack:
        stack.callback(print, "closed", flush=True)
        print("started", flush=True)
        signal.pause()
    return 0

interrupt.run(main)
"""


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_program_ends_in_order(signum: signal.Signals) -> None:
    """One signal closes what the program holds, and it exits with 130 and one line."""
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        process.send_signal(signum)
        assert process.communicate() == ("closed\n", "interrupted\n")
    assert process.returncode == INTERRUPTED == 130
