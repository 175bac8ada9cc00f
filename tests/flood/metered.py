"""ghealth that writes its native memory in use to a file when it receives SIGUSR2.

Run it with `python -m tests.flood.metered FILE`; the file has the number of bytes.
"""

import ctypes
import gc
import os
import runpy
import signal
import sys
from pathlib import Path


class _Mallinfo2(ctypes.Structure):
    """malloc's ten statistics (mallinfo2(3), glibc 2.33)."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


BY_MMAP, IN_USE = 4, 7
"""Of the numbers: `hblkhd` and `uordblks`."""


def native_bytes() -> int:
    """Return the bytes that malloc has allocated, without freed memory that it keeps."""
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    numbers = mallinfo2().numbers
    return int(numbers[IN_USE]) + int(numbers[BY_MMAP])


def main() -> None:
    """Install the signal handler and run ghealth without the arguments."""
    path = Path(sys.argv[1])
    del sys.argv[1:]

    def write(*_: object) -> None:
        gc.collect()
        new = path.with_suffix(".new")
        new.write_text(str(native_bytes()))
        os.replace(new, path)  # noqa: PTH105 - atomic, so a reader never sees a part

    signal.signal(signal.SIGUSR2, write)
    runpy.run_module("ghealth", run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
