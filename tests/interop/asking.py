"""The ways in which callers check, and how their conclusions are read."""

import re
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from string import Template
from typing import Final

import trustme

from tests.interop.tools import ENVIRONMENT
from tests.support.certificates import pair_of

Ask = Callable[[int], str]
"""Returns what a caller concludes, given ghealth's port."""

Follow = Callable[[int], AbstractContextManager[Callable[[], str]]]
"""Yields a function that returns a follower's present conclusion, given ghealth's port."""

HOST: Final = "127.0.0.1"
TIMEOUT: Final = 30.0
"""Seconds within which every caller must conclude something."""

_folder: Final = tempfile.TemporaryDirectory(prefix="ghealth-interop-")  # removed at exit
_authority: Final = trustme.CA()
CERTIFICATES: Final = Path(_folder.name)
"""A folder with ghealth's certificate and its key."""

AUTHORITY: Final = CERTIFICATES / "authority"
"""A file with the authority that callers trust."""

for _name, _content in {**pair_of(_authority), AUTHORITY.name: _authority.cert_pem.bytes()}.items():
    (CERTIFICATES / _name).write_bytes(_content)


def _command(line: str, port: int) -> list[str]:
    words = {"port": port, "at": f"{HOST}:{port}", "authority": AUTHORITY}
    return shlex.split(Template(line).substitute(words))


def program(pattern: str, line: str, stdin: str = "") -> Ask:
    """Check by running a program to its end, which each of them reaches within seconds.

    Args:
        pattern: A regular expression; what its groups match in the program's output and the
            closing line `exit CODE` is the conclusion, and all of that if it does not match.
        line: The command line. In it, $port is ghealth's, $at its address, and $authority the file
            for TLS.
        stdin: What the program reads.
    """

    def ask(port: int) -> str:
        command = _command(line, port)
        done = subprocess.run(
            command, input=stdin, env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        said = f"{done.stdout}{done.stderr}\nexit {done.returncode}"
        match = re.search(pattern, said, re.MULTILINE)
        return " ".join(filter(None, match.groups())) if match else said

    return ask


def following(line: str) -> Follow:
    """Follow by a program that prints each change of its conclusion.

    Args:
        line: The command line, as for `program`.
    """

    @contextmanager
    def running(port: int) -> Iterator[Callable[[], str]]:
        with tempfile.NamedTemporaryFile() as said:
            process = subprocess.Popen(_command(line, port), env=ENVIRONMENT, stdout=said)
            try:
                yield lambda: (Path(said.name).read_text().splitlines() or ["not started"])[-1]
            finally:
                process.kill()
                process.wait()

    return running
