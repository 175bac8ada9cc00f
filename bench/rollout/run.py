"""One event with one seed; the result is one JSON object on standard output.

python -m bench.rollout.run EVENT SEED CONTENDER,…
"""

import asyncio
import contextlib
import json
import sys
from collections import Counter
from typing import Any, Final

from bench.rollout.contenders import CONTENDERS
from bench.rollout.events import EVENTS
from bench.rollout.fleet import Fleet, Member
from bench.rollout.numbers import SCALE

TIMEOUT: Final = 180.0
SHOWN: Final = 50
"""The first failures, which are kept with details; of the others only counts are kept."""


async def run(name: str, seed: int, names: list[str]) -> dict[str, Any]:
    """Make a run.

    Args:
        name: The event.
        seed: Seed of all random values.
        names: The contenders that take part.
    """
    (event,) = (event for event in EVENTS if event.name == name)
    contenders = [contender for contender in CONTENDERS if contender.name in names]
    fleet = Fleet(seed, contenders, event.recipe)
    async with asyncio.timeout(TIMEOUT):
        await fleet.run(event.happens)
    return {
        "event": name,
        "seed": seed,
        "longest_pause_ms": round(fleet.longest_pause * 1000, 1),
        "contenders": {one.contender.name: _result(one, fleet.began) for one in fleet.members},
    }


def _result(member: Member, began: float) -> dict[str, Any]:
    outcomes = member.caller.outcomes
    failed = [o for o in outcomes if o.result != "OK"]
    moments = [(round((o.at - began) * SCALE, 2), o.result, o.stream) for o in failed]
    return {
        "calls": sum(not o.stream for o in outcomes),
        "failed": sum(not o.stream for o in failed),
        "streams": sum(o.stream for o in outcomes),
        "streams_failed": sum(o.stream for o in failed),
        "results": dict(Counter(o.result for o in failed)),
        "out_after": round(member.out_after, 1),
        "left_out_seconds": round(member.left_out, 1),
        "failures": moments[:SHOWN],
    }


if __name__ == "__main__":
    name, seed, names = sys.argv[1:]
    # Cancelled by SIGINT, it leaves no Envoy behind; bench.rollout reports that.
    with contextlib.suppress(KeyboardInterrupt):
        print(json.dumps(asyncio.run(run(name, int(seed), names.split(",")))))
