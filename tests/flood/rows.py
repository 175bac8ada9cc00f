"""All floods: the attack of each, and what is expected meanwhile.

`python -m tests.flood.rows NAME PORT SECONDS NICENESS` runs one attack.
"""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from functools import partial
from typing import Final

from tests.flood.attacks import Attack, Hold, large, pour, reconnect
from tests.flood.bursts import CHECK, MORE_HEADERS, OPEN_HEADERS, REPEATED
from tests.support import frames
from tests.support.frames import EMPTY_MESSAGE, Kind

SLOW: Final = 2.5
"""Seconds before the answer of a slow gateway; less than PROBE_TIMEOUT."""


@dataclass(frozen=True)
class Row:
    """A flood.

    Args:
        name: The name of the row.
        attack: Each of its attackers runs in its own process; None for the attacks of all rows.
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
    attack: Attack | None
    _: KW_ONLY
    processes: int = 1
    slow: bool = False
    processor: bool = False
    descriptors: bool = False
    wrong: float = 1.0
    short: bool = False


WATCH: Final = frames.block(frames.WATCH)
REFLECTION: Final = frames.block(frames.REFLECTION)
LARGE: Final = frames.block(frames.CHECK, frames.LARGE)
HALF: Final = b"\0\0\0\0\4\x0a"
"""The header of a message of 4 bytes, and its first byte."""
GO: Final = frames.call(CHECK, 1, end=True) + frames.frame(Kind.GOAWAY, bytes(8))
UNKNOWN, PING = REPEATED["unknown-frames"][1], REPEATED["ping-frames"][1]


def _resets(count: int) -> bytes:
    streams = range(1, 2 * count, 2)
    return b"".join(frames.call(CHECK, n, end=True) + frames.reset(n) for n in streams)


_STREAMS: Final = range(1, 65, 2)
_LONG: Final = b"\0\0\xff\xff\xff" + bytes(16_000)
MESSAGES: Final = b"".join(frames.call(CHECK, n, _LONG, end=False) for n in _STREAMS)
DATA: Final = b"".join(frames.frame(Kind.DATA, bytes(16_000), stream=n) for n in _STREAMS)

held: Final = partial(Hold, lines=32, streams=200)
wide: Final = partial(Hold, lines=1000, streams=25)
idle: Final = partial(Hold, b"", streams=0)
come_and_go: Final = partial(Hold, lines=10, streams=20, window=None, drops=True)
first_flight: Final = partial(pour, greets=False)
no_greeting: Final = partial(reconnect, GO, greets=False)

ROWS: Final = (
    *(
        Row(name, pour(unit, begin=begin), processor=True, short=name == "unknown-frames")
        for name, (begin, unit) in REPEATED.items()
    ),
    Row("held-checks", held(CHECK), short=True),
    Row("held-checks-large", held(LARGE, lines=20)),
    Row("held-no-message", held(CHECK, data=None, end=False)),
    Row("held-half-message", held(CHECK, data=HALF, end=False)),
    Row("held-reflection", held(REFLECTION, data=None, end=False)),
    Row("held-watches", held(WATCH)),
    Row("waiting-checks", held(CHECK, lines=50, window=None), slow=True, short=True),
    Row("rapid-reset", come_and_go(CHECK, again=0), processes=3, processor=True, short=True),
    Row("watch-churn", come_and_go(WATCH, again=0.01), processes=2, processor=True),
    Row("connect-and-go", no_greeting(), processes=2, processor=True),
    Row("wide-checks", wide(CHECK), processor=True),
    Row("wide-no-message", wide(CHECK, data=None, end=False), processor=True),
    Row("wide-large", wide(LARGE), processor=True),
    Row("idle-connections", idle(lines=300)),
    Row("many-connections", idle(lines=3000), descriptors=True),
    Row("connections-of-many", idle(lines=3000, of_each=16), descriptors=True, short=True),
    Row("unknown-frames-1M", pour(UNKNOWN, rate=1 << 20)),
    Row("ping-frames-100k", pour(PING, rate=100_000)),
    Row("rapid-reset-1000", come_and_go(CHECK, lines=1, again=0.02)),
    Row("connect-and-go-200", no_greeting(rate=200), short=True),
    Row("connect-and-go-1000", no_greeting(rate=1000)),
    Row("connect-and-go-2000", no_greeting(rate=2000), processor=True),
    Row("rapid-reset-200", reconnect(_resets(5), rate=200)),
    Row("rapid-reset-reconnect", reconnect(_resets(20)), processes=2, processor=True, wrong=0.35),
    Row("headers-1M", first_flight(begin=large(frames.CHECK, 1 << 20), lines=3)),
    Row("headers-4M", first_flight(begin=large(frames.CHECK, 4 << 20), lines=3)),
    Row("headers-43M", first_flight(begin=large(frames.CHECK, 43 << 20), lines=3)),
    Row("headers-watches", first_flight(begin=large(frames.WATCH, 2 << 20, streams=20), lines=5)),
    Row("headers-endless", first_flight(MORE_HEADERS, begin=OPEN_HEADERS, lines=8)),
    Row("messages-large", first_flight(DATA, begin=MESSAGES, lines=8)),
    Row("all-at-once", None, processor=True, descriptors=True),
)


def dropping(stage: str, calls: int) -> Callable[[int, float], int]:
    """Return an attack whose calls are dropped before their message is sent, or at another stage.

    Args:
        stage: `half` for half of the message, `probe` for while a probe runs, or `window` for
            while the answer waits for a window.
        calls: The number of calls after which it ends.
    """
    data = {"message": None, "half": HALF}.get(stage, EMPTY_MESSAGE)
    whole, window = stage in ("probe", "window"), 0 if stage == "window" else None
    drop = partial(come_and_go, streams=16, again=0.06, most=calls)
    return drop(CHECK, data=data, end=whole, window=window)


if __name__ == "__main__":
    name, port, seconds, niceness = sys.argv[1:]
    # A lower priority than ghealth's: real attackers run on other processors.
    os.nice(int(niceness))
    attack = next(row.attack for row in ROWS if row.name == name)
    assert attack is not None
    attack(int(port), time.monotonic() + float(seconds))
