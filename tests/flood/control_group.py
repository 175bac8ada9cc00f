"""Memory control groups, version 1 and 2, and what a process uses where there are none."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

MIB: Final = 1 << 20
ROOT: Final = Path("/sys/fs/cgroup")


class Group(Protocol):
    """Where a process' memory is counted."""

    @property
    def kind(self) -> str:
        """What counts, for a heading."""

    @property
    def procs(self) -> Path | None:
        """The file that a process writes its number to, to join; None for no group."""

    def usage(self, pid: int) -> float:
        """MiB in use now: anonymous memory, without caches of files."""

    def peak(self, pid: int) -> float:
        """The most MiB that were charged at once."""

    def sockets(self) -> float | None:
        """The most MiB in socket buffers, where they are counted apart."""


class Version1:
    """A group below this process' own, with a limit.

    Args:
        path: Its directory.
        limit: MiB.
    """

    kind = "cgroup v1"

    def __init__(self, path: Path, limit: float) -> None:
        self._path = path
        self.procs: Path | None = path / "cgroup.procs"
        most = str(int(limit * MIB))
        # Socket buffers are counted when this limit is set before the group has processes.
        with contextlib.suppress(OSError):
            (path / "memory.kmem.tcp.limit_in_bytes").write_text(most)
        (path / "memory.limit_in_bytes").write_text(most)

    def usage(self, pid: int) -> float:  # noqa: ARG002 - a group counts all that are in it
        """MiB in use now."""
        return _stat(self._path / "memory.stat", "total_rss")

    def peak(self, pid: int) -> float:  # noqa: ARG002
        """The most MiB that were charged at once."""
        return int((self._path / "memory.max_usage_in_bytes").read_text()) / MIB

    def sockets(self) -> float | None:
        """The most MiB in socket buffers."""
        return int((self._path / "memory.kmem.tcp.max_usage_in_bytes").read_text()) / MIB


class Version2:
    """The same in the unified hierarchy, where socket buffers count too.

    Args:
        path: Its directory.
        limit: MiB.
    """

    kind = "cgroup v2"

    def __init__(self, path: Path, limit: float) -> None:
        self._path = path
        self.procs: Path | None = path / "cgroup.procs"
        (path / "memory.max").write_text(str(int(limit * MIB)))
        with contextlib.suppress(OSError):
            (path / "memory.swap.max").write_text("0")

    def usage(self, pid: int) -> float:  # noqa: ARG002
        """MiB in use now."""
        return _stat(self._path / "memory.stat", "anon")

    def peak(self, pid: int) -> float:  # noqa: ARG002
        """The most MiB that were charged at once."""
        return int((self._path / "memory.peak").read_text()) / MIB

    def sockets(self) -> float | None:
        """Counted in the peak."""
        return None


class NoGroup:
    """Resident memory as /proc has it, without a limit."""

    kind = "resident memory, no limit"
    procs: Path | None = None

    def usage(self, pid: int) -> float:
        """MiB in use now."""
        return resident(pid, "VmRSS")

    def peak(self, pid: int) -> float:
        """The most MiB so far."""
        return resident(pid, "VmHWM")

    def sockets(self) -> float | None:
        """Not counted."""
        return None


def resident(pid: int, name: str) -> float:
    """MiB of a process, 0 if it has ended."""
    with contextlib.suppress(OSError, AttributeError):
        text = Path(f"/proc/{pid}/status").read_text()
        return int(re.search(rf"^{name}:\s+(\d+)", text, re.MULTILINE)[1]) / 1024  # type: ignore[index]
    return 0.0


def _stat(path: Path, name: str) -> float:
    for line in path.read_text().splitlines():
        key, _, value = line.partition(" ")
        if key == name:
            return int(value) / MIB
    return 0.0


@contextlib.contextmanager
def group(limit: float) -> Iterator[Group]:
    """Make a group, or none where this process may not; remove it at the end."""
    for parent, kind in _parents():
        path = parent / f"ghealth-flood-{os.getpid()}"
        try:
            path.mkdir()
        except OSError:
            continue
        try:
            yield kind(path, limit)
        finally:
            with contextlib.suppress(OSError):
                path.rmdir()
        return
    yield NoGroup()


def _parents() -> Iterator[tuple[Path, type[Version1 | Version2]]]:
    """Where a group may be made."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            own = ROOT / "memory" / path.lstrip("/")
            yield (own if own.is_dir() else ROOT / "memory"), Version1
        elif not controllers:
            own = ROOT / path.lstrip("/")
            for place in (own.parent, own, ROOT):
                with contextlib.suppress(OSError):
                    if "memory" in (place / "cgroup.subtree_control").read_text().split():
                        yield place, Version2
