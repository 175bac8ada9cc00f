import ctypes
import errno
import os
import resource
import signal
import threading
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from ghealth import process


@pytest.fixture(autouse=True)
def _signals_are_restored() -> Iterator[None]:
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = [signal.getsignal(signum) for signum in signals]
    yield
    for signum, handler in zip(signals, before, strict=True):
        signal.signal(signum, handler)


def test_signals_that_a_parent_blocked_or_ignored_are_heeded() -> None:
    """A shell ignores SIGINT for what runs in the background; others block or ignore more."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
    for signum in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_IGN)
    process.reset_inherited()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGCHLD) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_closed_standard_streams_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket with the number of a standard stream would be written to."""
    opened = []

    def is_closed(descriptor: int) -> Any:
        raise OSError(errno.EBADF, f"Bad file descriptor: {descriptor}")

    monkeypatch.setattr(os, "fstat", is_closed)
    monkeypatch.setattr(os, "open", lambda *arguments: opened.append(arguments))
    process.reset_inherited()
    monkeypatch.undo()
    assert opened == [(os.devnull, os.O_RDWR)] * 3


def test_variables_that_change_libraries_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables for debugging other programs must not change or end ghealth."""
    removed = (
        "GRPC_TRACE",
        "GRPC_POLL_STRATEGY",
        "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION",
        "SSLKEYLOGFILE",
    )
    kept = ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "SSL_CERT_FILE", "HOME")
    for name in (*removed, *kept):
        monkeypatch.setenv(name, "x")
    process.reset_inherited()
    assert not set(removed) & set(os.environ)
    assert set(kept) < set(os.environ)
    assert os.environ["GRPC_VERBOSITY"] == "NONE"


def test_warnings_do_not_become_errors() -> None:
    """PYTHONWARNINGS=error is for developers."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        process.reset_inherited()
        warnings.warn("deprecated", DeprecationWarning, stacklevel=1)


Limits = dict[int, tuple[int, int]]


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Limits:
    """The limits of the process; changing them changes nothing else."""
    found: Limits = {resource.RLIMIT_NOFILE: (64, 256)}
    monkeypatch.setattr(resource, "getrlimit", found.__getitem__)
    monkeypatch.setattr(resource, "setrlimit", found.__setitem__)
    return found


@pytest.mark.parametrize(
    ("hard", "used"), [(256, 256), (1_000_000, 1024), (resource.RLIM_INFINITY, 1024)]
)
def test_the_limit_of_descriptors_is_set(limits: Limits, hard: int, used: int) -> None:
    """Untrusted connections take them: as many as are allowed, and as memory is enough for."""
    limits[resource.RLIMIT_NOFILE] = (64, hard)
    process.require_resources()
    assert limits[resource.RLIMIT_NOFILE] == (used, hard)


def test_glibc_uses_few_arenas(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gRPC's threads free is in two arenas; another library has no such setting."""
    calls: list[tuple[int, int]] = []
    glibc = SimpleNamespace(mallopt=lambda *setting: calls.append(setting))
    libraries = iter([glibc, SimpleNamespace()])
    monkeypatch.setattr(ctypes, "CDLL", lambda _name: next(libraries))
    process.limit_arenas()
    process.limit_arenas()
    assert calls == [(-8, 2)]


@pytest.mark.usefixtures("limits")
def test_a_limit_of_descriptors_that_cannot_be_raised_stays(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The kernel of macOS has a lower limit than the infinite one that it reports."""

    def refuse(*_: object) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "setrlimit", refuse)
    process.require_resources()


@pytest.mark.usefixtures("limits")
@pytest.mark.parametrize(("processors", "threads"), [(1, 9), (4, 9), (8, 13), (16, 21), (64, 21)])
def test_too_few_threads_are_an_error(
    monkeypatch: pytest.MonkeyPatch, processors: int, threads: int
) -> None:
    """The threads of gRPC are as many as the processors, from 4 to 16; those started to try end."""
    started: list[threading.Thread] = []
    start = threading.Thread.start

    def start_few(thread: threading.Thread) -> None:
        if len(started) == threads - 1:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    monkeypatch.setattr(os, "sysconf", {"SC_NPROCESSORS_CONF": processors}.__getitem__)
    monkeypatch.setattr(threading.Thread, "start", start_few)
    with pytest.raises(process.ResourceError) as raised:
        process.require_resources()
    assert str(raised.value) == (
        f"cannot start {threads} threads, only {threads - 1} (RLIMIT_NPROC, the pod's pids limit "
        "or memory)"
    )
    assert not any(thread.is_alive() for thread in started)
