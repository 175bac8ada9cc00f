"""One event with one seed; the result is one JSON object on standard output.

python -m bench.rollout.run EVENT SEED SLOT [CONTENDER,…]
"""

import asyncio
import json
import signal
import sys
from collections import Counter
from statistics import quantiles
from typing import Any

from bench.rollout.contenders import CONTENDERS
from bench.rollout.events import EVENTS, Event
from bench.rollout.fleet import Fleet, Member
from bench.rollout.numbers import SCALE


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
        took = (loop.time() - began) * SCALE
    late = [o.late for m in fleet.members for o in m.caller.outcomes]
    return {
        "event": event.name,
        "seed": seed,
        "seconds": round(took, 1),
        "late_p99_ms": round(quantiles(late, n=100)[98] * 1000, 1),
        "longest_pause_ms": round(fleet.longest_pause * 1000, 1),
        "contenders": {member.contender.name: _result(member, began) for member in fleet.members},
    }


def _result(member: Member, began: float) -> dict[str, Any]:
    outcomes = member.caller.outcomes
    unary = [o for o in outcomes if not o.stream]
    streams = [o for o in outcomes if o.stream]
    return {
        "calls": len(unary),
        "failed": sum(o.result != "ok" for o in unary),
        "streams": len(streams),
        "streams_failed": sum(o.result != "ok" for o in streams),
        "results": dict(Counter(o.result for o in outcomes if o.result != "ok")),
        "sick_seconds": round(member.seen.sick, 1),
        "out_after": round(member.seen.out_after, 1),
        "left_out_seconds": round(member.seen.left_out, 1),
        "failures": [
            (_cluster(o.at, began), o.result, o.host, o.stream)
            for o in outcomes
            if o.result != "ok"
        ],
    }


def _cluster(at: float, began: float) -> float:
    return round((at - began) * SCALE, 2)


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
