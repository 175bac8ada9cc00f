"""Make runs, several at a time, and print their results.

    python -m bench.rollout [--smoke] [--events NAME,…] [--seeds N] [--add] [--write]

Each run is a separate process with its own loopback addresses.
"""

import argparse
import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any, Final

from bench.rollout import report
from bench.rollout.events import EVENTS, Event
from tests.support import interrupt

ROOT: Final = Path(__file__).parents[2]
RESULTS: Final = Path(__file__).with_name("results.json")
PAGE: Final = ROOT / "docs" / "rollouts.md"
BEGIN, END = "<!-- rollout: made by `make rollout` -->", "<!-- end of rollout -->"

SEEDS, JOBS = 20, 3
SEEDS_OF_ALL: Final = 3
PAIR: Final = "ghealth,http"
"""Contenders of seeds beyond `SEEDS_OF_ALL`, run three times as many at a time."""

TIMEOUT: Final = 180.0
ATTEMPTS: Final = 3

SMOKE: Final = ("scale-in", "sick", "hang", "restart")
"""They run all at the same time: with three contenders each takes less than a quarter of a core."""
SMOKE_CONTENDERS: Final = "ghealth,http,pass-through"


async def make_run(event: Event, seed: int, slot: int, names: str) -> dict[str, Any]:
    """Make one run in a separate process.

    Raises:
        RuntimeError: If it failed.
    """
    command = [sys.executable, "-m", "bench.rollout.run", event.name, f"{seed}", f"{slot}"]
    process = await asyncio.create_subprocess_exec(
        *command,
        *([names] if names else []),
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT,
        start_new_session=True,  # Ctrl-C reaches this program, which ends the others in order
    )
    try:
        async with asyncio.timeout(TIMEOUT):
            said, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()
    if process.returncode:
        raise RuntimeError(f"{event.name}, seed {seed}: exit code {process.returncode}")
    run: dict[str, Any] = json.loads(said)
    return run


async def make_valid_run(event: Event, seed: int, slot: int, names: str) -> dict[str, Any]:
    """Repeat a run, whatever its result, if this machine was too slow for it.

    The balancer, its clients and the observation are one process. If it stood still for longer than
    the shortest timeout in the run, the failures may come from this machine.
    """
    for attempt in range(1, ATTEMPTS + 1):
        run = await make_run(event, seed, slot, names) | {"attempts": attempt}
        if not report.is_void(run):
            break
        pause = run["longest_pause_ms"]
        print(f"void: {event.name} {seed}: this machine stood still for {pause} ms", flush=True)
    return run


async def make_runs(
    wanted: list[tuple[Event, int]], jobs: int, names: str = ""
) -> list[dict[str, Any]]:
    """Make runs, `jobs` at a time; one that fails is reported, and left out."""
    left = iter(wanted)
    began = time.monotonic()
    done: list[dict[str, Any]] = []

    async def work(slot: int) -> None:
        for event, seed in left:
            try:
                run = await make_valid_run(event, seed, slot, names)
            except RuntimeError as error:
                print(error, file=sys.stderr, flush=True)
                continue
            done.append(run)
            failed = {name: result["failed"] for name, result in run["contenders"].items()}
            so_far = f"{time.monotonic() - began:5.0f} s, {len(done)} of {len(wanted)}"
            print(f"{so_far}: {event.name} {seed}: {failed}", flush=True)

    async with asyncio.TaskGroup() as group:
        for slot in range(1, jobs + 1):
            group.create_task(work(slot))
    return done


def filled(page: str, runs: list[dict[str, Any]]) -> str:
    """Fill in the tables of the page."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{report.tables(runs)}\n{END}{rest.partition(END)[2]}"


def main() -> int:
    """Make the runs that the arguments name."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="a few runs, nothing written")
    parser.add_argument("--events", help="their names, comma-separated; all of them by default")
    parser.add_argument("--seeds", type=int, help=f"how many of each event; {SEEDS} by default")
    parser.add_argument("--add", action="store_true", help="keep the other runs of results.json")
    parser.add_argument("--write", action="store_true", help="write results and page")
    arguments = parser.parse_args()
    asked = SMOKE if arguments.smoke else (arguments.events or "").split(",")
    events = [event for event in EVENTS if event.name in asked or not any(asked)]
    seeds = range(1, (arguments.seeds or (1 if arguments.smoke else SEEDS)) + 1)
    few = [(event, seed) for event in events for seed in seeds if seed <= SEEDS_OF_ALL]
    more = [(event, seed) for event in events for seed in seeds if seed > SEEDS_OF_ALL]
    if arguments.smoke:
        runs = asyncio.run(make_runs(few + more, len(SMOKE), SMOKE_CONTENDERS))
    else:
        runs = asyncio.run(make_runs(few, JOBS)) + asyncio.run(make_runs(more, 3 * JOBS, PAIR))
    problems = report.broken(runs)
    if missing := len(few) + len(more) - len(runs):
        problems.append(f"{missing} runs failed: make them again with --add")
    if arguments.add and RESULTS.exists():
        fresh = {(run["event"], run["seed"]) for run in runs}
        old = json.loads(RESULTS.read_text())
        runs += [run for run in old if (run["event"], run["seed"]) not in fresh]
    order = [event.name for event in EVENTS]
    runs.sort(key=lambda run: (order.index(run["event"]), run["seed"]))
    if arguments.write:
        lines = ",\n".join(json.dumps(run) for run in runs)
        RESULTS.write_text(f"[\n{lines}\n]\n")
        PAGE.write_text(filled(PAGE.read_text(), runs))
    print(report.tables(runs))
    for problem in problems:
        print(problem, file=sys.stderr)
    return 1 if problems else 0


if __name__ == "__main__":
    interrupt.run(main)
