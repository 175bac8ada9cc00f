"""What a process inherits from its parent, and the resources that serving needs."""

import os
import resource
import signal
import sys
import threading
import warnings
from contextlib import suppress
from typing import Final

MAX_DESCRIPTORS: Final = 1024
"""File descriptors that are used: they bound the connections. gRPC leaves further ones in the
listen queue until there is room, where its own limit of connections would close them."""

_MAX_ARENAS: Final = 2
_M_ARENA_MAX: Final = -8
"""The number of `M_ARENA_MAX` in malloc.h of glibc."""

_REMOVED_VARIABLES: Final = ("GRPC_", "PROTOCOL_BUFFERS_", "SSLKEYLOGFILE")
"""Beginnings of the names of variables that change how libraries work. OpenSSL's secrets belong
into no file, and a file that cannot be written would end ghealth."""

_KEPT_VARIABLES: Final = frozenset(
    ("GRPC_VERBOSITY", "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "GRPC_SSL_CIPHER_SUITES")
)


class ResourceError(Exception):
    """A resource that serving needs is missing; the message names it, in one line."""


def reset_inherited() -> None:
    """Undo what a parent process can leave behind.

    Closed standard streams get /dev/null, so that no socket gets their numbers. Blocked or ignored
    signals are reset. Warnings are for developers, and must not become errors. Variables that
    change how libraries work are removed. Call it before they are imported.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    signal.pthread_sigmask(signal.SIG_UNBLOCK, signal.valid_signals())
    for signum in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(signum, signal.SIG_DFL)
    # A shell starts background processes with SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    warnings.simplefilter("ignore")
    for name in list(os.environ):
        if name.startswith(_REMOVED_VARIABLES) and name not in _KEPT_VARIABLES:
            del os.environ[name]


def require_resources() -> None:
    """Set the limit of descriptors, and try whether the threads that serving needs can be started.

    gRPC's core hangs or aborts without a word where it may not start threads.

    Raises:
        ResourceError: If there are too few.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where the hard limit is infinite (macOS), the kernel may have a lower one.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(MAX_DESCRIPTORS, _finite(hard)), hard))
    _require_threads(_serving_threads())


def _serving_threads() -> int:
    """Return how many threads serving starts.

    gRPC's core starts one for each processor, at least 4 and at most 16, and 3 more. The log and a
    name look-up have one each.
    """
    return 5 + min(max(os.sysconf("SC_NPROCESSORS_CONF"), 4), 16)


def limit_arenas() -> None:
    """Have glibc use few arenas; call it before gRPC starts threads.

    By default each of gRPC's threads can have one, and keeps what was freed in it.
    """
    import ctypes  # noqa: PLC0415 - takes 2 ms, which `ghealth check` does without

    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _MAX_ARENAS)


def descriptor_limit() -> int:
    """Return how many descriptors this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _finite(soft)


def _finite(limit: int) -> int:
    return sys.maxsize if limit == resource.RLIM_INFINITY else limit


def _require_threads(threads: int) -> None:
    over = threading.Event()
    started: list[threading.Thread] = []
    try:
        while len(started) < threads:
            thread = threading.Thread(target=over.wait, daemon=True)
            thread.start()
            started.append(thread)
    except (RuntimeError, MemoryError):
        raise ResourceError(
            f"cannot start {threads} threads, only {len(started)} "
            "(RLIMIT_NPROC, the pod's pids limit or memory)"
        ) from None
    finally:
        over.set()
        for thread in started:
            thread.join()
