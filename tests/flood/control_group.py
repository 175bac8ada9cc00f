"""Memory control groups, version 1 and 2, and the memory of a process where there are none."""

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MIB: Final = 1 << 20
ROOT: Final = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Version:
    """The files of a control group.

    Args:
        limits: The files that are set to the limit. Socket buffers are counted by version 1 only
            if their limit is set before a process joins the group; they are a part of version 2's.
        usage: The field of memory.stat with the anonymous memory, without file caches.
        peak: The file with the peak of the charged memory.
        sockets: The file with the peak of the socket buffers, if they are counted separately.
    """

    limits: tuple[str, ...]
    usage: str
    peak: str
    sockets: str = ""


VERSION_1: Final = Version(
    ("memory.kmem.tcp.limit_in_bytes", "memory.limit_in_bytes"),
    "total_rss",
    "memory.max_usage_in_bytes",
    "memory.kmem.tcp.max_usage_in_bytes",
)
VERSION_2: Final = Version(("memory.max",), "anon", "memory.peak")


@dataclass(frozen=True)
class Group:
    """Measures the memory of a process in a control group, or of a process without one, in MiB.

    Args:
        path: The group's directory; None if this process may not create one.
        version: The group's files.
    """

    path: Path | None = None
    version: Version = VERSION_2

    @property
    def prefix(self) -> tuple[str, ...]:
        """The command that runs another in the group from its start."""
        join = f"echo $$ > {self.path}/cgroup.procs && " if self.path else ""
        return ("sh", "-c", f'{join}exec "$0" "$@"')

    def usage(self, pid: int) -> float:
        """Memory in use now; 0 if the process has ended."""
        if self.path is None:
            return _field(Path(f"/proc/{pid}/status"), "VmRSS") / 1024
        return _field(self.path / "memory.stat", self.version.usage) / MIB

    def peak(self, pid: int) -> float:
        """The peak of the memory so far."""
        if self.path is None:
            return _field(Path(f"/proc/{pid}/status"), "VmHWM") / 1024
        return int((self.path / self.version.peak).read_text()) / MIB

    def sockets(self) -> float:
        """The peak of the socket buffers; 0 if they are not counted separately."""
        if self.path is None or not self.version.sockets:
            return 0.0
        return int((self.path / self.version.sockets).read_text()) / MIB


def _field(path: Path, name: str) -> int:
    with contextlib.suppress(OSError):
        if match := re.search(rf"^{name}:?\s+(\d+)", path.read_text(), re.MULTILINE):
            return int(match[1])
    return 0


@contextlib.contextmanager
def group(limit: float) -> Iterator[Group]:
    """Create a group with a limit in MiB, and remove it at the end."""
    for parent, version in _parents():
        path = parent / f"ghealth-flood-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            for name in version.limits:
                (path / name).write_text(str(int(limit * MIB)))
            with contextlib.suppress(OSError):
                (path / "memory.swap.max").write_text("0")
            yield Group(path, version)
        finally:
            with contextlib.suppress(OSError):
                path.rmdir()
        return
    yield Group()


def _parents() -> Iterator[tuple[Path, Version]]:
    """Yield directories in which this process may be able to create a group."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            own = ROOT / "memory" / path.lstrip("/")
            yield (own if own.is_dir() else ROOT / "memory"), VERSION_1
        elif not controllers:
            own = ROOT / path.lstrip("/")
            for place in (own.parent, own, ROOT):
                with contextlib.suppress(OSError):
                    if "memory" in (place / "cgroup.subtree_control").read_text().split():
                        yield place, VERSION_2
