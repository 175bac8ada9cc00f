"""What a process inherits from its parent, and the resources that serving needs."""

import os
import resource
import signal
import threading
import warnings
from contextlib import suppress
from typing import Final

SERVING_DESCRIPTORS: Final = 32
"""File descriptors that serving needs: 14, 2 for each further address, and some for callers."""

MAX_DESCRIPTORS: Final = 1024
"""File descriptors that are used: they bound the connections. gRPC leaves further ones in the
listen queue until there is room, where its own limit of connections would close them."""

_MIB: Final = 1 << 20
_BASE_MEMORY: Final = 128 * _MIB
_ARENA: Final = 64 * _MIB
"""The address range that glibc reserves for each thread's memory (malloc/arena.c)."""

_MAX_ARENAS: Final = 2
_M_ARENA_MAX: Final = -8
"""The number of `M_ARENA_MAX` in malloc.h of glibc."""

_USUAL_STACK: Final = 8 * _MIB

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
    """Take what serving needs, and raise if it is not to be had.

    gRPC's core hangs or aborts without a word where it may not start threads or open descriptors.

    Raises:
        ResourceError: If there are too few.
    """
    threads = _serving_threads()
    _require_memory(threads)
    _set_descriptor_limit()
    _require_descriptors()
    _require_threads(threads)


def _serving_threads() -> int:
    """Return how many threads serving starts.

    gRPC's core starts one for each processor, at least 4 and at most 16, and 3 more. The log and a
    name look-up have one each.
    """
    return 5 + min(max(os.sysconf("SC_NPROCESSORS_CONF"), 4), 16)


def _require_memory(threads: int) -> None:
    """Compare the memory limits with what the threads reserve."""
    stack, _ = resource.getrlimit(resource.RLIMIT_STACK)
    data = _BASE_MEMORY + threads * (_USUAL_STACK if stack == resource.RLIM_INFINITY else stack)
    for name, needed in {"RLIMIT_DATA": data, "RLIMIT_AS": data + threads * _ARENA}.items():
        limit, _ = resource.getrlimit(getattr(resource, name))
        if resource.RLIM_INFINITY != limit < needed:
            raise ResourceError(
                f"serving needs {needed // _MIB} MiB of memory, only {limit // _MIB} MiB are "
                f"allowed ({name})"
            )


def limit_arenas() -> None:
    """Have glibc use few arenas; call it before gRPC starts threads.

    By default each of gRPC's threads can have one, and keeps what was freed in it.
    """
    import ctypes  # noqa: PLC0415 - takes 2 ms, which `ghealth check` does without

    with suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _MAX_ARENAS)


def descriptor_limit() -> int:
    """Return how many descriptors this process may have, at most `MAX_DESCRIPTORS`."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _at_most_max(soft)


def _at_most_max(limit: int) -> int:
    return MAX_DESCRIPTORS if limit == resource.RLIM_INFINITY else min(MAX_DESCRIPTORS, limit)


def _set_descriptor_limit() -> None:
    """Use `MAX_DESCRIPTORS`, or all that the process may have: untrusted connections take them."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Where the hard limit is infinite (macOS), the kernel may have a lower one.
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (_at_most_max(hard), hard))


def _require_descriptors() -> None:
    opened: list[int] = []
    try:
        while len(opened) < SERVING_DESCRIPTORS:
            opened.append(os.open(os.devnull, os.O_RDONLY))
    except OSError as error:
        raise ResourceError(
            f"cannot open {SERVING_DESCRIPTORS} file descriptors, only {len(opened)}: "
            f"{error.strerror} (RLIMIT_NOFILE)"
        ) from None
    finally:
        for descriptor in opened:
            os.close(descriptor)


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
