"""Time as promises count it: without time in which the machine has no free CPU."""

import os
import time
from contextlib import suppress
from pathlib import Path


class Stopwatch:
    """Counts from its creation, but not while a process waits for a CPU.

    On a busy machine an answer may come later than promised. The kernel reports by how much
    (Documentation/scheduler/sched-stats.rst, /proc/PID/schedstat). Without this report all time
    counts.

    Args:
        pids: The processes whose work the test waits for, besides this one.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = (os.getpid(), *pids)
        self._starved = self._starvation()
        self._started = time.monotonic()

    @property
    def on_the_wall(self) -> float:
        """All seconds that have passed, for a log line."""
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """The seconds that count, for a promise."""
        passed = self.on_the_wall
        return passed - max(0.0, self._starvation() - self._starved)

    def _starvation(self) -> float:
        return sum(map(starvation, self._pids))


def starvation(pid: int) -> float:
    """Return the seconds for which the threads of a process have waited for a CPU.

    Args:
        pid: The process; 0 seconds if it has ended.
    """
    return sum(delays(pid).values())


def delays(pid: int) -> dict[str, float]:
    """Return the seconds for which each thread of a process has waited for a CPU, by thread.

    Args:
        pid: The process; no threads if it has ended.
    """
    found = {}
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError, IndexError):  # it has just ended
                found[thread.name] = int((thread / "schedstat").read_text().split()[1]) / 1e9
    return found
