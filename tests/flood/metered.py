"""ghealth that writes its native memory in use as a line of its log when it receives SIGUSR2."""

import ctypes
import gc
import json
import os
import runpy
import signal
import sys


class _Mallinfo2(ctypes.Structure):
    """malloc's ten statistics (mallinfo2(3), glibc 2.33)."""

    _fields_ = (("numbers", ctypes.c_size_t * 10),)


BY_MMAP, IN_USE = 4, 7
"""Of the numbers: `hblkhd` and `uordblks`."""


def write(*_: object) -> None:
    """Write the bytes that malloc has allocated, without freed memory that it keeps."""
    gc.collect()
    mallinfo2 = ctypes.CDLL(None).mallinfo2
    mallinfo2.restype = _Mallinfo2
    numbers = mallinfo2().numbers
    line = {"event": "metered", "bytes": numbers[IN_USE] + numbers[BY_MMAP]}
    os.write(sys.stdout.fileno(), f"{json.dumps(line)}\n".encode())


if __name__ == "__main__":
    del sys.argv[1:]  # the command of ghealth
    signal.signal(signal.SIGUSR2, write)
    runpy.run_module("ghealth", run_name="__main__", alter_sys=True)
