"""The time for which a process wanted a processor and got none."""

import os
import time
from contextlib import suppress
from pathlib import Path


class Wait:
    """A wait that begins now, and how much of it counts.

    Floods take processors that attackers elsewhere would not take, and this machine may be busy
    with other work. So the time for which a thread of ghealth or of the caller was ready to run but
    did not (Documentation/scheduler/sched-stats.rst) does not count: that of the one thread that
    waited longest.

    Args:
        pid: The server.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._before = self._delays()
        self._began = time.monotonic()

    @property
    def on_the_wall(self) -> float:
        """All the seconds so far."""
        return time.monotonic() - self._began

    @property
    def seconds(self) -> float:
        """The seconds that count."""
        passed = self.on_the_wall
        grown = (delay - self._before.get(task, 0) for task, delay in self._delays().items())
        return max(0.0, passed - max(grown, default=0) / 1e9)

    def _delays(self) -> dict[str, int]:
        """Nanoseconds of delay of each thread so far."""
        delays = {}
        for pid in (self._pid, os.getpid()):
            with suppress(OSError):
                for task in Path(f"/proc/{pid}/task").iterdir():
                    with suppress(OSError, IndexError):  # it has just ended
                        delays[task.name] = int((task / "schedstat").read_text().split()[1])
        return delays
