"""Work whose imports are not to stay in this process."""

import os
import pickle
import signal
import traceback
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")


def in_fork(work: Callable[[], Result]) -> Callable[[], Result]:
    """Begin to work in a fork of this process. Not for a process that has threads.

    Args:
        work: What to do there; its result must be picklable.

    Returns:
        What waits for the result. It raises RuntimeError if there is none: the fork told the
        stack on standard error, or was killed.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _work(work, writer)
    os.close(writer)

    def result() -> Result:
        with os.fdopen(reader, "rb") as pipe:
            pickled = pipe.read()
        _, status = os.waitpid(child, 0)
        if status:
            raise RuntimeError(f"a fork ended with {os.waitstatus_to_exitcode(status)}")
        found: Result = pickle.loads(pickled)  # noqa: S301 - we wrote it ourselves
        return found

    return result


def _work(work: Callable[[], object], writer: int) -> None:
    """Live the whole life of the fork."""
    failed = True
    try:
        # This process has its parent's handlers, and an interruption is the parent's to tell.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with os.fdopen(writer, "wb") as pipe:
            pickle.dump(work(), pipe)
        failed = False
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(failed)
