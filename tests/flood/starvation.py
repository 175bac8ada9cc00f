"""The time for which a process was ready to run but had no processor."""

import os
import time
from contextlib import suppress
from pathlib import Path


class Wait:
    """A wait that begins now, without the time spent waiting for a free processor.

    Attackers on this machine use processors that real attackers, on other machines, would not use,
    and the machine may have other work. So one delay is subtracted: the longest time for which a
    thread of ghealth or of the caller was ready to run but did not run
    (Documentation/scheduler/sched-stats.rst).

    Args:
        pid: The server's process id.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = self._delays()
        self._began = time.monotonic()

    @property
    def on_the_wall(self) -> float:
        """All seconds so far."""
        return time.monotonic() - self._began

    @property
    def seconds(self) -> float:
        """The seconds so far, without the longest delay of a thread."""
        passed = self.on_the_wall
        grown = (delay - self._before.get(task, 0) for task, delay in self._delays().items())
        return max(0.0, passed - max(grown, default=0) / 1e9)

    def _delays(self) -> dict[str, int]:
        """Return the delay of each thread so far, in nanoseconds."""
        delays = {}
        for pid in (self._pid, os.getpid()):
            with suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with suppress(OSError, IndexError):  # the thread has just ended
                        delays[task.name] = int((task / "schedstat").read_text().split()[1])
        return delays
