"""Time as a promise means it: without what a starved machine adds to it."""

import os
import time
from contextlib import suppress
from pathlib import Path


class Stopwatch:
    """Counts from its making, but not while a process wanted a CPU and got none.

    A promise in seconds is about ghealth. On a machine that is busy with something else an answer
    may come later, and the kernel tells by how much (Documentation/scheduler/sched-stats.rst,
    /proc/PID/schedstat). Where it tells nothing, all time counts.

    Args:
        pids: The processes whose work is waited for, beside this one.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = (os.getpid(), *pids)
        self._starved = self._starvation()
        self._started = time.monotonic()

    @property
    def on_the_wall(self) -> float:
        """All the seconds that have passed, for a figure."""
        return time.monotonic() - self._started

    @property
    def seconds(self) -> float:
        """The seconds that count, for a promise."""
        passed = self.on_the_wall
        return passed - max(0.0, self._starvation() - self._starved)

    def _starvation(self) -> float:
        return sum(map(starvation, self._pids))


def starvation(pid: int) -> float:
    """Tell the seconds for which the threads of a process have waited for a CPU in their lives.

    Args:
        pid: The process; of one that has ended it is nothing.
    """
    waited = 0
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # it has just ended
                waited += int((thread / "schedstat").read_text().split()[1])
    return waited / 1e9
