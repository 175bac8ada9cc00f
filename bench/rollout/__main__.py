"""Make runs, several at a time, and print their results.

    python -m bench.rollout [--smoke] [--events NAME …] [--seeds N] [--write]

Each run is a separate process with its own loopback addresses.
"""

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence
from typing import Final

from bench.rollout import report
from bench.rollout.contenders import CONTENDERS
from bench.rollout.events import EVENTS, Event
from bench.rollout.fleet import Fleet
from bench.rollout.report import SEEDS, Run
from tests.support import interrupt

JOBS, ATTEMPTS, SEEDS_OF_ALL = 3, 3, 3
PAIR: Final = ("ghealth", "http")
"""Contenders of seeds beyond `SEEDS_OF_ALL`, run three times as many at a time."""

SMOKE: Final = ("scale-in", "sick", "hang", "restart")
"""They run all at the same time: with three contenders each takes less than a quarter of a core."""
SMOKE_CONTENDERS: Final = (*PAIR, "pass-through")


async def make_run(name: str, seed: int, names: Sequence[str]) -> Run:
    """Make a run of an event, with these contenders."""
    (event,) = (event for event in EVENTS if event.name == name)
    contenders = [contender for contender in CONTENDERS if contender.name in names]
    fleet = Fleet(seed, contenders, event.recipe)
    async with asyncio.timeout(180):
        began = await fleet.run(event.happens)
    return {
        "event": name,
        "seed": seed,
        "longest_pause_ms": round(fleet.longest_pause * 1000, 1),
        "contenders": {one.contender.name: one.result(began) for one in fleet.members},
    }


async def make_run_apart(event: Event, seed: int, names: Sequence[str]) -> Run | None:
    """Make a run in a separate process; None if it failed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.rollout", "--run", event.name, f"{seed}", *names),
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches this program, which ends the others in order
    )
    try:
        said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            # asyncio's way to end: grpcio would lose a KeyboardInterrupt, and then wait for ever.
            process.send_signal(signal.SIGINT)
            await process.wait()
    run: Run | None = None if process.returncode else json.loads(said)
    return run


async def make_runs(wanted: list[tuple[Event, int]], jobs: int, names: Sequence[str]) -> list[Run]:
    """Make runs, `jobs` at a time.

    A run is repeated, whatever its result, if it failed or this machine was too slow for it: the
    balancer, its clients and the observation are one process. If that stood still for longer than
    the shortest timeout in the run, the failures may come from this machine.

    Args:
        wanted: The events and seeds.
        jobs: The number of runs at a time.
        names: The contenders; those of the event if there are none.
    """
    left = iter(wanted)
    done: list[Run] = []

    async def work() -> None:
        for event, seed in left:
            for attempt in range(1, ATTEMPTS + 1):
                run = await make_run_apart(event, seed, names or event.contenders)
                if run and (attempt == ATTEMPTS or not report.is_void(run)):
                    done.append(run | {"attempts": attempt})
                    break
                print(f"again: {event.name} {seed}", flush=True)
            print(f"{len(done)} of {len(wanted)}: {event.name} {seed}", flush=True)

    await asyncio.gather(*(work() for _ in range(jobs)))
    return done


def main() -> int:
    """Make the runs that the arguments name."""
    names = [event.name for event in EVENTS]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few runs, nothing written")
    parser.add_argument("--events", nargs="+", choices=names, default=names, metavar="NAME")
    parser.add_argument("--seeds", type=int, default=SEEDS, help="how many of each event")
    parser.add_argument("--write", action="store_true", help="write results and page")
    parser.add_argument("--run", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        name, seed, *contenders = arguments.run
        print(json.dumps(asyncio.run(make_run(name, int(seed), contenders))))
        return 0
    seeds = range(1, arguments.seeds + 1)
    batches = [(seeds[:SEEDS_OF_ALL], JOBS, ()), (seeds[SEEDS_OF_ALL:], 3 * JOBS, PAIR)]
    if arguments.smoke:
        arguments.events, arguments.seeds = SMOKE, 1
        batches = [(range(1, 2), len(SMOKE), SMOKE_CONTENDERS)]
    events = [event for event in EVENTS if event.name in arguments.events]
    runs: list[Run] = []
    for numbers, jobs, contenders in batches:
        wanted = [(event, seed) for event in events for seed in numbers]
        runs += asyncio.run(make_runs(wanted, jobs, contenders))
    if arguments.write:
        report.write(runs)
    print(report.tables(runs))
    missing = len(events) * arguments.seeds - len(runs)
    problems = report.broken(runs) + ["a run failed"] * missing
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    interrupt.run(main)
