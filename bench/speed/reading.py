"""Memory, CPU and wake-ups of a process, from /proc."""

import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MIB: Final = 1024.0


@dataclass(frozen=True, slots=True)
class Memory:
    """Resident memory in MiB.

    Args:
        resident: All of it.
        anonymous: The private part; the rest is mapped files, which processes share.
    """

    resident: float
    anonymous: float


def _numbers(status: str) -> dict[str, int]:
    pairs = (line.split()[:2] for line in status.splitlines() if len(line.split()) > 1)
    return {name.rstrip(":"): int(value) for name, value in pairs if value.isdigit()}


def memory(status: str) -> Memory:
    """Return the memory of a process.

    Args:
        status: The text of its /proc/PID/status.
    """
    found = _numbers(status)
    return Memory(found["VmRSS"] / _MIB, found["RssAnon"] / _MIB)


def memory_of(pid: int) -> Memory:
    """Return the memory of a process now.

    Args:
        pid: Its number.
    """
    return memory(Path(f"/proc/{pid}/status").read_text())


def cpu(pid: int) -> float:
    """Return the seconds of CPU that a process has used, to the nanosecond.

    Args:
        pid: Its number. A thread that has ended is not counted.
    """
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def cpu_of_children() -> float:
    """Return the seconds of CPU that the children used that have ended and been waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def wake_ups(pid: int) -> int:
    """Return how often the threads of a process have slept and woken again.

    Args:
        pid: Its number.
    """
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(_numbers((task / "status").read_text())["voluntary_ctxt_switches"] for task in tasks)


def threads(pid: int) -> int:
    """Return the number of threads of a process.

    Args:
        pid: Its number.
    """
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def descriptors(pid: int) -> int:
    """Return the number of descriptors that a process has open.

    Args:
        pid: Its number.
    """
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
