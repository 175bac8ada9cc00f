import signal
import subprocess
import sys
import textwrap

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
