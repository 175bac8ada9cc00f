"""Memory control groups, version 1 and 2, and the memory of a process where there are none."""

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

MIB: Final = 1 << 20
ROOT: Final = Path("/sys/fs/cgroup")


class Group(Protocol):
    """A control group, or a replacement, that measures the memory of a process."""

    @property
    def kind(self) -> str:
        """How memory is measured, for a heading."""

    @property
    def procs(self) -> Path | None:
        """The file to which a process writes its id to join the group; None without a group."""

    def usage(self, pid: int) -> float:
        """MiB in use now: anonymous memory, without file caches."""

    def peak(self, pid: int) -> float:
        """The peak of the charged memory, in MiB."""

    def sockets(self) -> float | None:
        """The peak of the socket buffers in MiB; None if they are not counted separately."""


class Version1:
    """A version 1 group with a limit.

    Args:
        path: The group's directory.
        limit: The memory limit in MiB.
    """

    kind = "cgroup v1"

    def __init__(self, path: Path, limit: float) -> None:
        self._path = path
        self.procs: Path | None = path / "cgroup.procs"
        most = str(int(limit * MIB))
        # Socket buffers are counted only if this limit is set before a process joins the group.
        with contextlib.suppress(OSError):
            (path / "memory.kmem.tcp.limit_in_bytes").write_text(most)
        (path / "memory.limit_in_bytes").write_text(most)

    def usage(self, pid: int) -> float:  # noqa: ARG002 - measures all processes in the group
        """MiB in use now."""
        return _stat(self._path / "memory.stat", "total_rss")

    def peak(self, pid: int) -> float:  # noqa: ARG002
        """The peak of the charged memory, in MiB."""
        return int((self._path / "memory.max_usage_in_bytes").read_text()) / MIB

    def sockets(self) -> float | None:
        """The peak of the socket buffers, in MiB."""
        return int((self._path / "memory.kmem.tcp.max_usage_in_bytes").read_text()) / MIB


class Version2:
    """A version 2 group with a limit, which includes socket buffers.

    Args:
        path: The group's directory.
        limit: The memory limit in MiB.
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
        """The peak of the charged memory, in MiB."""
        return int((self._path / "memory.peak").read_text()) / MIB

    def sockets(self) -> float | None:
        """None: they are part of the peak."""
        return None


class NoGroup:
    """The resident memory in /proc, without a limit."""

    kind = "resident memory, no limit"
    procs: Path | None = None

    def usage(self, pid: int) -> float:
        """MiB in use now."""
        return resident(pid, "VmRSS")

    def peak(self, pid: int) -> float:
        """The peak so far, in MiB."""
        return resident(pid, "VmHWM")

    def sockets(self) -> float | None:
        """None: they are not counted."""
        return None


def resident(pid: int, name: str) -> float:
    """Return a field of /proc/PID/status in MiB, 0 if the process has ended."""
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
    """Create a group, and remove it at the end.

    If this process may not create one, yield a `NoGroup`.
    """
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
    """Yield directories in which this process may be able to create a group."""
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
