import os
import pickle
import signal
import subprocess
import sys
import textwrap
from typing import Any
from unittest.mock import Mock

import pytest

from ghealth import fork

PATIENCE = 20


def ends(work: str) -> "subprocess.CompletedProcess[str]":
    """Have a process do something in a fork and print the result."""
    program = f"""
        import os, signal
        from ghealth.fork import in_fork

        def work():
            {work}

        result = in_fork(work)
        print(os.getpid(), *result())
    """
    return run_program(program)


def run_program(program: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", textwrap.dedent(program)]
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def test_a_result_comes_from_another_process() -> None:
    """What the work returns arrives, and whatever it imported stays there."""
    done = ends("return os.getpid(), os.getppid()")
    parent, worker, workers_parent = map(int, done.stdout.split())
    assert parent == workers_parent != worker


def test_work_that_fails_tells_its_stack() -> None:
    """A bug in the fork is told with its stack, and ends the parent with one too."""
    done = ends("return 1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert "RuntimeError: a fork ended with 1" in done.stderr


def test_work_that_is_killed_is_no_result() -> None:
    """A fork that the kernel ends, short of memory for one, is not taken for an answer."""
    done = ends("os.kill(os.getpid(), signal.SIGKILL)")
    assert done.returncode == 1
    assert f"RuntimeError: a fork ended with {-signal.SIGKILL}" in done.stderr


def test_work_does_not_handle_its_parents_signals() -> None:
    """A signal to the fork ends it in silence, whatever the parent would do."""
    done = ends("os.kill(os.getpid(), signal.SIGINT)")
    assert done.stderr.count("Traceback") == 1
    assert "KeyboardInterrupt" not in done.stderr


def test_nothing_is_left_behind() -> None:
    """Neither a descriptor nor a child is left in the process that asked."""
    program = """
        import os
        from ghealth.fork import in_fork

        before = os.listdir("/proc/self/fd")
        in_fork(os.getpid)()
        assert os.listdir("/proc/self/fd") == before
        try:
            os.wait()
        except ChildProcessError:
            print("none")
    """
    done = run_program(program)
    assert done.stdout == "none\n", done.stderr


class Exited(SystemExit):
    """The fork would have ended, with this code."""


@pytest.mark.parametrize(("result", "code"), [(42, 0), (lambda: 0, 1)])
def test_the_life_of_a_fork(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], result: Any, code: int
) -> None:
    """It hands over what it can and ends, whatever the result; a stack says why it could not."""
    handled: dict[Any, Any] = {}
    monkeypatch.setattr(signal, "signal", handled.setdefault)
    monkeypatch.setattr(os, "_exit", Mock(side_effect=Exited))
    reader, writer = os.pipe()
    with pytest.raises(Exited):
        fork._work(lambda: result, writer)
    os._exit.assert_called_once_with(code)  # type: ignore[attr-defined]
    assert handled == dict.fromkeys((signal.SIGTERM, signal.SIGINT), signal.SIG_DFL)
    with os.fdopen(reader, "rb") as pipe:
        assert code or pickle.load(pipe) == result
    assert bool(capsys.readouterr().err) == bool(code)


def forking(monkeypatch: pytest.MonkeyPatch, child: int, status: int = 0, said: bytes = b"") -> Any:
    """Begin to work where a fork is what it is told to be, in this process."""
    made = os.pipe()
    os.write(made[1], said)
    monkeypatch.setattr(os, "pipe", lambda: made)
    monkeypatch.setattr(os, "fork", lambda: child)
    monkeypatch.setattr(os, "waitpid", lambda _pid, _options: (child, status))
    monkeypatch.setattr(fork, "_work", Mock(side_effect=Exited))
    return fork.in_fork(os.getpid)


def test_a_fork_works_and_does_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fork never comes back to what its parent was about to do."""
    with pytest.raises(Exited):
        forking(monkeypatch, child=0)


def test_a_parent_reads_what_its_fork_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """A good end brings the result."""
    assert forking(monkeypatch, child=1, said=pickle.dumps(42))() == 42


def test_a_parent_takes_no_result_of_a_bad_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the fork said before it failed does not count."""
    result = forking(monkeypatch, child=1, status=256, said=pickle.dumps(42))
    with pytest.raises(RuntimeError, match="a fork ended with 1"):
        result()
