import ctypes
import os
import re
import resource
import signal
import threading
import warnings
from collections.abc import Iterator
from unittest.mock import Mock, call

import pytest

from ghealth import process

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)


@pytest.fixture(autouse=True)
def _signals_are_restored() -> Iterator[None]:
    before = {signum: signal.getsignal(signum) for signum in SIGNALS}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def test_signals_that_a_parent_blocked_or_ignored_are_heeded() -> None:
    """A shell ignores SIGINT for what runs in the background; others block or ignore more."""
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM, signal.SIGUSR1))
    for signum in SIGNALS:
        signal.signal(signum, signal.SIG_IGN)
    process.reset_inherited()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()
    found = [signal.getsignal(signum) for signum in SIGNALS]
    assert found == [signal.SIG_DFL, signal.default_int_handler, signal.SIG_DFL]


def test_closed_standard_streams_are_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    """A socket with the number of a standard stream would be written to."""
    fstat, open_ = Mock(side_effect=OSError), Mock()
    with monkeypatch.context() as patched:
        patched.setattr(os, "fstat", fstat)
        patched.setattr(os, "open", open_)
        process.reset_inherited()
    assert fstat.mock_calls == [call(0), call(1), call(2)]
    assert open_.mock_calls == [call(os.devnull, os.O_RDWR)] * 3


def test_variables_that_change_libraries_are_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Variables for debugging other programs must not change or end ghealth."""
    removed = ("GRPC_TRACE", "PROTOCOL_BUFFERS_PYTHON_IMPLEMENTATION", "SSLKEYLOGFILE")
    kept = ("GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "SSL_CERT_FILE", "HOME")
    for name in (*removed, *kept):
        monkeypatch.setenv(name, "x")
    process.reset_inherited()
    assert not set(removed) & set(os.environ)
    assert set(kept) < set(os.environ)
    assert os.environ["GRPC_VERBOSITY"] == "NONE"


def test_warnings_do_not_become_errors() -> None:
    """They are for developers: PYTHONWARNINGS=error, as in these tests, changes nothing."""
    process.reset_inherited()
    warnings.warn("deprecated", DeprecationWarning, stacklevel=1)


@pytest.mark.parametrize(
    ("hard", "used"), [(256, 256), (1_000_000, 1024), (resource.RLIM_INFINITY, 1024)]
)
def test_the_limit_of_descriptors_is_set(
    monkeypatch: pytest.MonkeyPatch, hard: int, used: int
) -> None:
    """Clients take them: as many as memory is enough for; a kernel may refuse (macOS)."""
    set_limit = Mock(side_effect=ValueError("not allowed to raise maximum limit"))
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, hard))
    monkeypatch.setattr(resource, "setrlimit", set_limit)
    process.require_resources()
    set_limit.assert_called_once_with(resource.RLIMIT_NOFILE, (used, hard))


def test_glibc_uses_few_arenas(monkeypatch: pytest.MonkeyPatch) -> None:
    """What gRPC's threads free is in two arenas; another library has no such setting."""
    glibc = Mock()
    monkeypatch.setattr(ctypes, "CDLL", Mock(side_effect=[glibc, object()]))
    process.limit_arenas()
    process.limit_arenas()
    glibc.mallopt.assert_called_once_with(-8, 2)


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
    counts = f"cannot start {threads} threads, only {threads - 1} "
    limits = "(RLIMIT_NPROC, the pod's pids limit or memory)"
    with pytest.raises(process.ResourceError, match=f"^{re.escape(counts + limits)}$"):
        process.require_resources()
    assert not any(thread.is_alive() for thread in started)
