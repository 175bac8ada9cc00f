"""All floods: the attack of each, and what is expected meanwhile.

`python -m tests.flood.rows NAME PORT SECONDS NICENESS` runs one attack.
"""

import os
import sys
import time
from dataclasses import dataclass, field
from typing import Final

from tests.flood.attacks import (
    CHECK,
    HALF,
    Attack,
    come_and_go,
    first_flight,
    hold,
    large,
    pour,
    reconnect,
)
from tests.support import frames
from tests.support.frames import Kind

SLOW: Final = 2.5
"""Seconds before the answer of a slow gateway; less than PROBE_TIMEOUT."""


@dataclass(frozen=True)
class Row:
    """One flood.

    Args:
        name: The name of the row.
        attack: Each of its attackers runs in its own process.
        processes: The number of attackers.
        slow: Whether the gateway answers slowly, so that checks wait for it.
        processor: Whether the flood uses up the processor, because it sends as much as the machine
            can. Then answers may be late or wrong until the flood ends.
        descriptors: Whether the flood uses up the descriptors.
        wrong: The fraction of answers that may be wrong although the flood uses up the processor;
            they are calls that gRPC cancels before Python sees them.
        short: Whether it is in the short form, where each row tests a different limit.
    """

    name: str
    attack: Attack
    processes: int = field(default=1, kw_only=True)
    slow: bool = field(default=False, kw_only=True)
    processor: bool = field(default=False, kw_only=True)
    descriptors: bool = field(default=False, kw_only=True)
    wrong: float = field(default=1.0, kw_only=True)
    short: bool = field(default=False, kw_only=True)


UNKNOWN: Final = frames.frame(Kind.UNKNOWN, bytes(91))
PRIORITY: Final = frames.frame(Kind.PRIORITY, bytes(5), stream=3)
WINDOW: Final = frames.frame(Kind.WINDOW_UPDATE, b"\0\0\0\1")
PING: Final = frames.frame(Kind.PING, bytes(8))
NO_DATA: Final = frames.frame(Kind.DATA, stream=1)
WATCH: Final = frames.block(frames.WATCH)
REFLECTION: Final = frames.block(frames.REFLECTION)
LARGE: Final = frames.block(frames.CHECK, frames.LARGE)
OPEN: Final = frames.frame(Kind.HEADERS, CHECK, stream=1)  # without END_HEADERS
MORE: Final = frames.frame(Kind.CONTINUATION, frames.field("x", "y" * 8000), stream=1)
FIRST: Final = frames.call(CHECK, 1, None, end=False)
GO: Final = frames.call(CHECK, 1, end=True) + frames.frame(Kind.GOAWAY, bytes(8))


def _resets(count: int) -> bytes:
    streams = range(1, 2 * count, 2)
    return b"".join(frames.call(CHECK, n, end=True) + frames.reset(n) for n in streams)


_STREAMS: Final = range(1, 65, 2)
_LONG: Final = b"\0\0\xff\xff\xff" + bytes(16_000)
MESSAGES: Final = b"".join(frames.call(CHECK, n, _LONG, end=False) for n in _STREAMS)
DATA: Final = b"".join(frames.frame(Kind.DATA, bytes(16_000), stream=n) for n in _STREAMS)

ROWS: Final = (
    Row("unknown-frames", pour(UNKNOWN), processor=True, short=True),
    Row("priority-frames", pour(PRIORITY), processor=True),
    Row("settings-frames", pour(frames.settings(65535)), processor=True),
    Row("ping-frames", pour(PING), processor=True),
    Row("window-frames", pour(WINDOW), processor=True),
    Row("empty-data-frames", pour(NO_DATA, begin=FIRST), processor=True),
    Row("continuation", pour(MORE, begin=OPEN), processor=True),
    Row("held-checks", hold(CHECK, lines=32, streams=200), short=True),
    Row("held-checks-large", hold(LARGE, lines=20, streams=200)),
    Row("held-no-message", hold(CHECK, lines=32, streams=200, data=None, end=False)),
    Row("held-half-message", hold(CHECK, lines=32, streams=200, data=HALF, end=False)),
    Row("held-reflection", hold(REFLECTION, lines=32, streams=200, data=None, end=False)),
    Row("held-watches", hold(WATCH, lines=32, streams=200)),
    Row("waiting-checks", hold(CHECK, lines=50, streams=200, window=None), slow=True, short=True),
    Row(
        "rapid-reset",
        come_and_go(CHECK, lines=10, streams=20),
        processes=3,
        processor=True,
        short=True,
    ),
    Row(
        "watch-churn",
        come_and_go(WATCH, lines=10, streams=20, wait=0.005),
        processes=2,
        processor=True,
    ),
    Row("connect-and-go", reconnect(GO, greets=False), processes=2, processor=True),
    Row("wide-checks", hold(CHECK, lines=1000, streams=25), processor=True),
    Row(
        "wide-no-message",
        hold(CHECK, lines=1000, streams=25, data=None, end=False),
        processor=True,
    ),
    Row("wide-large", hold(LARGE, lines=1000, streams=25), processor=True),
    Row("idle-connections", hold(b"", lines=300, streams=0)),
    Row("many-connections", hold(b"", lines=3000, streams=0), descriptors=True),
    Row(
        "connections-of-many",
        hold(b"", lines=3000, streams=0, of_each=16),
        descriptors=True,
        short=True,
    ),
    Row("unknown-frames-1M", pour(UNKNOWN, rate=1 << 20)),
    Row("ping-frames-100k", pour(PING, rate=100_000)),
    Row("rapid-reset-1000", come_and_go(CHECK, lines=1, streams=20, wait=0.02)),
    Row("connect-and-go-200", reconnect(GO, rate=200, greets=False), short=True),
    Row("connect-and-go-1000", reconnect(GO, rate=1000, greets=False)),
    Row("connect-and-go-2000", reconnect(GO, rate=2000, greets=False), processor=True),
    Row("rapid-reset-200", reconnect(_resets(5), rate=200)),
    Row("rapid-reset-reconnect", reconnect(_resets(20)), processes=2, processor=True, wrong=0.35),
    Row("headers-1M", first_flight(large(frames.CHECK, 1 << 20), lines=3)),
    Row("headers-4M", first_flight(large(frames.CHECK, 4 << 20), lines=3)),
    Row("headers-43M", first_flight(large(frames.CHECK, 43 << 20), lines=3)),
    Row("headers-watches", first_flight(large(frames.WATCH, 2 << 20, streams=20), lines=5)),
    Row("headers-endless", first_flight(OPEN, more=MORE * 32, lines=8)),
    Row("messages-large", first_flight(MESSAGES, more=DATA, lines=8)),
)


if __name__ == "__main__":
    name, port, seconds, niceness = sys.argv[1:]
    # A lower priority than ghealth's: real attackers run on other processors.
    os.nice(int(niceness))
    attack = next(row.attack for row in ROWS if row.name == name)
    attack(int(port), time.monotonic() + float(seconds))
