"""What the kernel tells about a process."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

_MIB: Final = 1024.0


@dataclass(frozen=True, slots=True)
class Memory:
    """What is resident, in MiB.

    Args:
        resident: All of it.
        anonymous: What is this process's own; the rest is mapped files, shared with others.
    """

    resident: float
    anonymous: float


def _numbers(status: str) -> dict[str, int]:
    pairs = (line.split()[:2] for line in status.splitlines() if len(line.split()) > 1)
    return {name.rstrip(":"): int(value) for name, value in pairs if value.isdigit()}


def memory(status: str) -> Memory:
    """Tell how much memory a process has.

    Args:
        status: What its /proc/PID/status says.
    """
    found = _numbers(status)
    return Memory(found["VmRSS"] / _MIB, found["RssAnon"] / _MIB)


def memory_of(pid: int) -> Memory:
    """Tell how much memory a process has now.

    Args:
        pid: Its number.
    """
    return memory(Path(f"/proc/{pid}/status").read_text())


def cpu(pid: int) -> float:
    """Tell the seconds of CPU that a process has used, to the nanosecond.

    Args:
        pid: Its number. A thread that has ended is not counted.
    """
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def wake_ups(pid: int) -> int:
    """Tell how often the threads of a process have slept and woken again.

    Args:
        pid: Its number.
    """
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(_numbers((task / "status").read_text())["voluntary_ctxt_switches"] for task in tasks)


def threads(pid: int) -> int:
    """Tell how many threads a process has.

    Args:
        pid: Its number.
    """
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def descriptors(pid: int) -> int:
    """Tell how many descriptors a process has open.

    Args:
        pid: Its number.
    """
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))
