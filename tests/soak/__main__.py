"""Every caller and every fault at random; each answer is compared with a model.

A real Envoy with a stand-in for pilot-agent behind it, and a ghealth beside it. One director
disturbs the agent, one the processes, and one replaces the certificate; meanwhile callers of every
kind, well-behaved and hostile, with TLS and without, keep up to `CONNECTIONS` connections busy.
Each choice depends on the seed and on the name of the caller or director; their timing depends on
the machine.

A new caller is a row of `CALLERS`, a new fault a function in `FAULTS`.
"""

import argparse
import asyncio
import contextlib
import json
import signal
import socket
import tempfile
from pathlib import Path
from random import SystemRandom
from statistics import median
from typing import Final

from tests.flood.bursts import UNREAD_WATCH
from tests.soak.callers import CALLERS, CONNECTIONS, TIMEOUT, work
from tests.soak.model import (
    ALLOWANCE,
    CACHE_TTL,
    PROBE_TIMEOUT,
    WATCH_INTERVAL,
    WITHIN,
    Machine,
    Model,
    Witness,
    now,
)
from tests.soak.scene import FAULTS, Scene, Secret, an_attempt, direct, rotate
from tests.support import interrupt, processes
from tests.support.gateway import SICK, Agent, Gateway

HOST: Final = "127.0.0.1"
"""The address of all callers that wait for their answers."""

DRAIN_DELAY, SHUTDOWN_GRACE = 5.0, 1.0
SETTINGS: Final = {
    "CACHE_TTL": str(CACHE_TTL),
    "PROBE_TIMEOUT": str(PROBE_TIMEOUT),
    "WATCH_INTERVAL": str(WATCH_INTERVAL),
    "DRAIN_DELAY": str(DRAIN_DELAY),
    "SHUTDOWN_GRACE": str(SHUTDOWN_GRACE),
    "MAX_WATCHES": "60",  # twice the expected number: a leak exceeds it
}
FDS_NEAR: Final = 3  # more than at the start: a probe may be running
MISSED: Final = 0.1
"""Share of the short deadlines that may be missed: ghealth answers 50 ms before one, and the work
for a hundred resets can take as long."""
SHOWN: Final = 20  # of the wrong answers


async def play(scene: Scene, seconds: float, *subjects: str) -> None:
    """Let all callers check for some time while the directors disturb some subjects."""
    scene.over.clear()
    async with asyncio.timeout(seconds + 6 * TIMEOUT), asyncio.TaskGroup() as group:
        for subject in subjects:
            group.create_task(direct(scene, subject))
        group.create_task(rotate(scene))
        for kind, caller in CALLERS.items():
            for number in range(caller.workers):
                group.create_task(work(scene, kind, number))
        began = now()
        while now() < began + seconds and scene.ghealth.process.poll() is None:
            scene.usages.append(scene.usage())
            await asyncio.sleep(0.2)
        scene.over.set()


async def settled(scene: Scene, most: int) -> tuple[int, int]:
    """Wait until ghealth has closed what callers left open, and return its usage."""
    end = now() + TIMEOUT / 2
    scene.over.clear()
    while scene.usage()[1] > most and now() < end:
        await scene.rest(0.1)
    return scene.usage()


async def drain(scene: Scene) -> str:
    """End ghealth under load, with a slow gateway and open watches; return the result."""
    playing = asyncio.create_task(play(scene, 2 * WITHIN + 1))
    await asyncio.sleep(2 * WITHIN)
    # When the signal comes, calls are open, or watches are between two probes.
    if scene.rng("drain").choice((True, False)):
        scene.witness.delay = PROBE_TIMEOUT / 2
        await an_attempt(scene)
        await asyncio.sleep(0.05)  # callers join it
    with contextlib.ExitStack() as staying:
        for _ in range(10):
            sock = staying.enter_context(socket.create_connection(("127.0.0.1", scene.port)))
            sock.sendall(UNREAD_WATCH)
        scene.model.drains()
        scene.ghealth.process.send_signal(signal.SIGTERM)
        await playing
        code = await asyncio.to_thread(
            scene.ghealth.process.wait, DRAIN_DELAY + SHUTDOWN_GRACE + TIMEOUT
        )
    took = now() - scene.model.drained
    late = scene.model.machine.withheld_since(scene.model.drained)
    if code or not DRAIN_DELAY <= took < DRAIN_DELAY + SHUTDOWN_GRACE + ALLOWANCE + late:
        scene.model.blame("drain", f"exit {code}", f"{took:.3f} s after SIGTERM")
    return f"exit {code}, {took:.3f} s after SIGTERM with DRAIN_DELAY {DRAIN_DELAY:g}"


async def soak(scene: Scene, seconds: float) -> None:
    """Run the callers and faults, drain, and print the report."""
    model = scene.model
    model.machine.pids = scene.pids
    looking = asyncio.create_task(model.machine.watch())
    await play(scene, 1)  # one-time allocations are done
    start = await settled(scene, 0)
    await play(scene, seconds, *FAULTS)
    end = await settled(scene, start[1] + FDS_NEAR)
    if end[1] > start[1] + FDS_NEAR:
        model.blame("descriptors", f"{end[1]} at the end", f"{start[1]} at the start")
    drained = "ghealth had died"
    if scene.ghealth.process.poll() is None:
        drained = await drain(scene)
    else:
        model.blame("ghealth", f"exit {scene.ghealth.process.returncode}", "all by itself")
    looking.cancel()
    if model.missed > 5 + MISSED * model.tight:
        model.blame("short deadline", f"{model.missed} missed", f"{model.tight} kept")
    machine = model.machine
    heads = ("answers", "healthy", "must be", "must not", "longest")
    print(f"{'caller':<20}" + "".join(f"{head:>10}" for head in heads))
    for kind, tally in model.tallies.items():
        counts = (tally.answers, tally.healthy, tally.must, tally.must_not)
        print(f"{kind:<20}" + "".join(map("{:>10}".format, counts)) + f"{tally.longest:>8.3f} s")
    print(f"{'all':<20}{sum(tally.answers for tally in model.tallies.values()):>10}")
    resident = [usage[0] for usage in scene.usages]
    quarter = max(1, len(resident) // 4)
    medians = [median(resident[at : at + quarter]) for at in range(0, 4 * quarter, quarter)]
    print(f"KiB, median of each quarter: {', '.join(f'{one:.0f}' for one in medians)}")
    peak = [max(column) for column in zip(*scene.usages, strict=True)]
    for name, at_start, at_most, at_end in zip(("KiB", "fds"), start, peak, end, strict=True):
        print(f"{name}: {at_start} at the start, {at_most} at most, {at_end} at the end")
    secret = scene.secret
    print(f"certificates: {secret.newest} replaced, {secret.rejected} with a wrong key")
    print(f"short deadlines: {model.tight} kept, {model.missed} missed")
    print(f"drain: {drained}")
    print(f"the longest took {max(tally.longest for tally in model.tallies.values()):.3f} s")
    print(
        f"this machine: withheld {machine.withheld:.1f} s, up to {machine.latest:.3f} s at a time, "
        f"which explains {model.excused} answers"
    )


def main() -> int:
    """Run it, and end whatever it started."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.seconds:g} s, {CONNECTIONS} connections", flush=True)
    with contextlib.ExitStack() as stack:
        witness = stack.enter_context(Witness())
        envoy = stack.enter_context(Gateway(witness))
        never = stack.enter_context(Agent())
        never.state = SICK
        secret = Secret(Path(stack.enter_context(tempfile.TemporaryDirectory())) / "tls")
        cert, key = secret.files
        ghealth = stack.enter_context(
            processes.server(
                TLS_LISTEN="127.0.0.1:0",
                TLS_CERT_FILE=cert,
                TLS_KEY_FILE=key,
                PROBE_URL=envoy.url,
                SERVICES=json.dumps({"sick": never.url}),
                **SETTINGS,
            )
        )
        model = Model(witness, Machine())
        scene = Scene(arguments.seed, secret, witness, envoy, ghealth, model)
        asyncio.run(soak(scene, arguments.seconds))
        lines = ghealth.rest()
    for line in lines:
        if line.get("level", "error") == "error":
            model.blame("log", str(line), "which is an error")
    cut = [line for line in lines if line["event"] == "connections_cut"]
    for line in cut:
        if line["address"] == HOST:
            model.blame("log", str(line), "though this is no stranger")
    print(f"strangers cut off: {len(cut)} times")
    print(f"wrong: {len(model.wrong)}")
    for wrong in model.wrong[:SHOWN]:
        print(f"  {wrong}")
    return int(bool(model.wrong))


if __name__ == "__main__":
    interrupt.run(main)
