from collections.abc import Mapping
from pathlib import Path

import pytest

from ghealth.server.limits import memory_limit

MIB = 1 << 20
V1 = "memory.limit_in_bytes"
UNLIMITED = 9223372036854771712


@pytest.mark.parametrize(
    ("memberships", "files", "expected"),
    [
        ("0::/\n", {"memory.max": 64 * MIB}, 64 * MIB),
        ("0::/pod/main\n", {"pod/memory.max": 96 * MIB, "pod/main/memory.max": "max"}, 96 * MIB),
        ("0::/host/pod\n", {"memory.max": 48 * MIB}, 48 * MIB),
        ("4:memory:/pod\n0::/\n", {f"memory/{V1}": MIB, f"memory/pod/{V1}": UNLIMITED}, MIB),
        ("5:cpu:/x\n4:memory:/\n", {f"cpu/x/{V1}": MIB, f"memory/{V1}": UNLIMITED}, None),
        ("0::/\n", {"memory.max": "max"}, None),
        (None, {}, None),
    ],
)
def test_the_smallest_limit_of_the_control_groups_holds(
    tmp_path: Path, memberships: str | None, files: Mapping[str, object], expected: int | None
) -> None:
    """Version 1 and 2, with and without a namespace; None without a limit."""
    listed = tmp_path / "cgroup"
    if memberships is not None:
        listed.write_text(memberships)
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"{content}\n")
    assert memory_limit(listed, tmp_path) == expected
