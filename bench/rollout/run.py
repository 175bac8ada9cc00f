"""One event with one seed; the result is one JSON object on standard output.

python -m bench.rollout.run EVENT SEED SLOT [CONTENDER,…]
"""

import asyncio
import json
import signal
import sys
from collections import Counter
from typing import Any, Final

from bench.rollout.contenders import CONTENDERS
from bench.rollout.events import EVENTS, Event
from bench.rollout.fleet import Fleet, Member
from bench.rollout.numbers import SCALE

SHOWN: Final = 20
"""Failures that are kept with details; above this number only counts are kept."""


async def run(event: Event, seed: int, slot: int, names: tuple[str, ...]) -> dict[str, Any]:
    """Make a run.

    Args:
        event: The event.
        seed: Seed of all random values.
        slot: The part of the addresses to use.
        names: The contenders that take part.
    """
    contenders = [contender for contender in CONTENDERS if contender.name in names]
    fleet = Fleet(slot, seed, contenders, event.recipe)
    loop = asyncio.get_running_loop()
    if (me := asyncio.current_task()) is not None:
        loop.add_signal_handler(signal.SIGTERM, me.cancel)  # so that no Envoy is left behind
    async with fleet.running():
        began = loop.time()
        await event.happens(fleet)
    return {
        "event": event.name,
        "seed": seed,
        "longest_pause_ms": round(fleet.longest_pause * 1000, 1),
        "contenders": {member.contender.name: _result(member, began) for member in fleet.members},
    }


def _result(member: Member, began: float) -> dict[str, Any]:
    outcomes = member.caller.outcomes
    failed = [o for o in outcomes if o.result != "ok"]
    result = {
        "calls": sum(not o.stream for o in outcomes),
        "failed": sum(not o.stream for o in failed),
        "streams": sum(o.stream for o in outcomes),
        "streams_failed": sum(o.stream for o in failed),
        "results": dict(Counter(o.result for o in failed)),
        "out_after": round(member.out_after, 1),
        "left_out_seconds": round(member.left_out, 1),
    }
    if len(failed) <= SHOWN:
        result["failures"] = [
            (round((o.at - began) * SCALE, 2), o.result, o.host, o.stream) for o in failed
        ]
    return result


def main() -> None:
    """Make the run that the command line names."""
    name, seed, slot, *rest = sys.argv[1:]
    (event,) = (event for event in EVENTS if event.name == name)
    names = tuple(rest[0].split(",")) if rest else event.contenders
    try:
        print(json.dumps(asyncio.run(run(event, int(seed), int(slot), names))))
    except asyncio.CancelledError:  # by SIGTERM
        sys.exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
