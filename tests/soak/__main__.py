"""Every caller and every fault at random; each answer is compared with a model.

A real Envoy with a stand-in for pilot-agent behind it, and a ghealth beside it. One director
disturbs the agent, one the processes, and one replaces the certificate; meanwhile callers of every
kind, well-behaved and hostile, with TLS and without, keep about 150 connections busy.
Each choice depends on the seed and on the name of the caller or director; their timing depends on
the machine.

A new caller is a row of `CALLERS`, a new fault a function in `FAULTS`.
"""

import argparse
import asyncio
import signal
import tempfile
from pathlib import Path
from random import SystemRandom
from typing import Final

from tests.flood.bursts import UNREAD_WATCH
from tests.soak import model as bounds
from tests.soak.callers import CALLERS, TIMEOUT, work
from tests.soak.model import ALLOWANCE, PROBE_TIMEOUT, WITHIN, Model, Witness, now
from tests.soak.scene import FAULTS, Scene, Secret, an_attempt, direct, rotate
from tests.support import interrupt, processes, wire
from tests.support.certificates import CERT, KEY
from tests.support.gateway import Gateway

HOST: Final = "127.0.0.1"
"""The address of all callers that wait for their answers."""

DRAIN_DELAY, SHUTDOWN_GRACE = 5.0, 1.0
SETTLING: Final = 5.0  # seconds for ghealth to close what callers left open
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
        end = now() + seconds
        while now() < end and scene.ghealth.process.poll() is None:  # noqa: ASYNC110 - no event
            await asyncio.sleep(0.2)
        scene.over.set()


async def drain(scene: Scene) -> None:
    """End ghealth under load, with a slow gateway and open watches."""
    model, process = scene.model, scene.ghealth.process
    playing = asyncio.create_task(play(scene, 2 * WITHIN + 1))
    await asyncio.sleep(2 * WITHIN)
    # When the signal comes, calls are open, or watches are between two probes.
    if scene.rng("drain").choice((True, False)):
        scene.witness.delay = PROBE_TIMEOUT / 2
        await an_attempt(scene)
        await asyncio.sleep(0.05)  # callers join it
    with wire.silent(scene.ghealth.port, 10) as staying:
        for sock in staying:
            sock.sendall(UNREAD_WATCH)
        model.drains()
        process.send_signal(signal.SIGTERM)
        await playing
        code = await asyncio.to_thread(process.wait, DRAIN_DELAY + SHUTDOWN_GRACE + TIMEOUT)
    took = now() - model.drained
    late = model.machine.withheld_since(model.drained)
    if code or not DRAIN_DELAY <= took < DRAIN_DELAY + SHUTDOWN_GRACE + ALLOWANCE + late:
        model.blame("drain", f"exit {code}", f"{took:.3f} s after SIGTERM")


async def soak(scene: Scene, seconds: float) -> None:
    """Run the callers and faults, drain, and print the report."""
    model = scene.model
    looking = asyncio.create_task(model.machine.watch(scene.pids))
    await play(scene, 1)  # one-time allocations are done
    await asyncio.sleep(SETTLING)
    start = scene.ghealth.descriptors
    await play(scene, seconds, *FAULTS)
    await asyncio.sleep(SETTLING)
    end = scene.ghealth.descriptors
    if end > start + FDS_NEAR:
        model.blame("descriptors", f"{end} at the end", f"{start} at the start")
    if scene.ghealth.process.poll() is None:
        await drain(scene)
    else:
        model.blame("ghealth", f"exit {scene.ghealth.process.returncode}", "all by itself")
    looking.cancel()
    for line in scene.ghealth.rest():
        if line.get("level", "error") == "error":
            model.blame("log", str(line), "which is an error")
        if line["event"] == "connections_cut" and line["address"] == HOST:
            model.blame("log", str(line), "though this is no stranger")
    if model.missed > 5 + MISSED * model.tight:
        model.blame("short deadline", f"{model.missed} missed", f"{model.tight} kept")
    for kind, tally in model.tallies.items():
        print(f"{kind:<24}", *(f"{count:>8} {what}" for what, count in tally.items()))
    print(f"the longest took {model.longest:.3f} s; descriptors: {start}, at the end {end}")
    print(f"short deadlines: {model.tight} kept, {model.missed} missed")
    print(f"a CPU: {model.machine.withheld:.1f} s missing, explains {model.excused} answers")


def main() -> int:
    """Run it, and end whatever it started."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--seed", type=int, default=SystemRandom().randrange(10**6))
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}, {arguments.seconds:g} s", flush=True)
    with tempfile.TemporaryDirectory() as folder, Witness() as witness, Gateway(witness) as envoy:
        secret = Secret(Path(folder) / "tls")
        with processes.server(
            TLS_LISTEN=f"{HOST}:0",
            TLS_CERT_FILE=f"{folder}/tls/{CERT}",
            TLS_KEY_FILE=f"{folder}/tls/{KEY}",
            PROBE_URL=envoy.url,
            SERVICES='{"sick": "http://127.0.0.1:1"}',  # where nothing listens
            CACHE_TTL=f"{bounds.CACHE_TTL}",
            PROBE_TIMEOUT=f"{PROBE_TIMEOUT}",
            WATCH_INTERVAL=f"{bounds.WATCH_INTERVAL}",
            DRAIN_DELAY=f"{DRAIN_DELAY}",
            SHUTDOWN_GRACE=f"{SHUTDOWN_GRACE}",
            MAX_WATCHES="60",  # twice the expected number: a leak exceeds it
        ) as ghealth:
            model = Model(witness)
            scene = Scene(arguments.seed, secret, witness, envoy, ghealth, model)
            asyncio.run(soak(scene, arguments.seconds))
    print(f"wrong: {len(model.wrong)}")
    print(*model.wrong[:SHOWN], sep="\n")
    return int(bool(model.wrong))


if __name__ == "__main__":
    interrupt.run(main)
