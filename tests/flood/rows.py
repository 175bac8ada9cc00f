"""The rows of the table: the attackers of each, and what is expected during the flood."""

from dataclasses import dataclass, field
from typing import Final

SLOW: Final = 2.5
"""Seconds before the answer of a slow gateway; less than PROBE_TIMEOUT."""


@dataclass(frozen=True)
class Row:
    """One flood.

    Args:
        name: The name of the row.
        attackers: Names in `attacks.ATTACKS`. Each runs in its own process.
        slow: Whether the gateway answers slowly, so that checks wait for it.
        processor: Whether the flood uses up the processor, because it sends as much as the machine
            can. Then answers may be late or wrong until the flood ends.
        descriptors: Whether the flood uses up the descriptors.
        wrong: The fraction of answers that may be wrong although the flood uses up the processor;
            they are calls that gRPC cancels before Python sees them.
        settings: Settings of ghealth, without the prefix `GHEALTH_`.
    """

    name: str
    attackers: tuple[str, ...]
    slow: bool = False
    processor: bool = False
    descriptors: bool = False
    wrong: float = 1.0
    settings: dict[str, str] = field(default_factory=dict)


def _alone(name: str, *, processes: int = 1, processor: bool = False, slow: bool = False) -> Row:
    return Row(name, (name,) * processes, slow=slow, processor=processor)


ROWS: Final = (
    _alone("unknown-frames", processor=True),
    _alone("priority-frames", processor=True),
    _alone("settings-frames", processor=True),
    _alone("ping-frames", processor=True),
    _alone("window-frames", processor=True),
    _alone("empty-data-frames", processor=True),
    _alone("continuation", processor=True),
    _alone("held-checks"),
    _alone("held-checks-large"),
    _alone("held-no-message"),
    _alone("held-half-message"),
    _alone("held-reflection"),
    _alone("held-watches"),
    _alone("waiting-checks", slow=True),
    _alone("rapid-reset", processes=3, processor=True),
    _alone("watch-churn", processes=2, processor=True),
    _alone("connect-and-go", processes=2, processor=True),
    _alone("wide-checks", processor=True),
    _alone("wide-no-message", processor=True),
    _alone("wide-large", processor=True),
    _alone("idle-connections"),
    Row("many-connections", ("many-connections",), descriptors=True),
    Row("connections-of-many", ("connections-of-many",), descriptors=True),
    _alone("unknown-frames-1M"),
    _alone("ping-frames-100k"),
    _alone("rapid-reset-1000"),
    _alone("connect-and-go-200"),
    _alone("connect-and-go-1000"),
    _alone("connect-and-go-2000", processor=True),
    _alone("rapid-reset-200"),
    Row("rapid-reset-reconnect", ("rapid-reset-reconnect",) * 2, processor=True, wrong=0.35),
    _alone("headers-1M"),
    _alone("headers-4M"),
    _alone("headers-43M"),
    _alone("headers-watches"),
    _alone("headers-endless"),
    _alone("messages-large"),
)

SHORT: Final = (
    "unknown-frames",
    "held-checks",
    "waiting-checks",
    "rapid-reset",
    "connections-of-many",
    "connect-and-go-200",
)
"""The rows of the short form. Each tests a different limit."""

MIX: Final = Row("mix", tuple(row.name for row in ROWS), processor=True, descriptors=True)
