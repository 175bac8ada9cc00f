"""The gateway, ghealth, and the faults, each of which is undone at its end."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Final

import h2.exceptions
import trustme

from tests.soak.model import PROBE_TIMEOUT, WITHIN, Model, Witness
from tests.support import processes, wire
from tests.support.certificates import KEY, Mounted, client_of, der_of, pair_of
from tests.support.gateway import READY, SICK, SILENT, Gateway


class Secret:
    """The mounted certificate, which is replaced all the time, and what a correct server shows.

    Args:
        path: The mount point.
    """

    def __init__(self, path: Path) -> None:
        self.authority = trustme.CA()
        self.client = client_of(self.authority)
        self._pair = pair_of(self.authority)
        self._mounted = Mounted(path, self._pair)
        self.certificates = [der_of(self._pair)]  # mounted with their own keys

    def replace(self) -> None:
        """Mount a new certificate with its key."""
        self._pair = pair_of(self.authority)
        self._mounted.swap(self._pair)
        self.certificates.append(der_of(self._pair))

    def spoil(self) -> None:
        """Mount a new certificate with the key of the last one."""
        self._mounted.swap(pair_of(self.authority) | {KEY: self._pair[KEY]})


@dataclass
class Scene:
    """The state that directors and callers share."""

    seed: int
    secret: Secret
    witness: Witness
    envoy: Gateway
    ghealth: processes.Server
    model: Model
    over: asyncio.Event = field(default_factory=asyncio.Event)
    agent_free: asyncio.Lock = field(default_factory=asyncio.Lock)

    def port(self, *, tls: bool) -> int:
        """Return the port with TLS, or the one without."""
        listens = self.ghealth.started["tls_listen" if tls else "listen"][0]
        return int(listens.rpartition(":")[2])

    def rng(self, name: str) -> Random:
        """Return the random generator of a caller or director."""
        return Random(f"{self.seed} {name}")

    async def rest(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.over.wait()

    def pids(self) -> tuple[int, ...]:
        """Return the processes that an answer needs: this program, ghealth and Envoy."""
        assert self.envoy.process is not None
        return os.getpid(), self.ghealth.process.pid, self.envoy.process.pid


Fault = Callable[[Scene, Random], Awaitable[None]]


async def is_not_ready(scene: Scene, rng: Random) -> None:
    """The agent answers 503, or never."""
    scene.witness.state = rng.choice((SICK, SILENT))
    await scene.rest(rng.uniform(0.1, 2.5))


async def is_slow(scene: Scene, rng: Random) -> None:
    """The agent takes about PROBE_TIMEOUT, and may have another state by then."""
    scene.witness.delay = rng.uniform(0.05, 1.6 * PROBE_TIMEOUT)
    await scene.rest(rng.uniform(0.5, 2))
    scene.witness.state = rng.choice((READY, SICK))
    await scene.rest(rng.uniform(0.1, 1))


async def flaps(scene: Scene, rng: Random) -> None:
    """The agent changes its state ten times a second, also during probes."""
    scene.witness.delay = rng.choice((0.0, 0.07))
    for number in range(rng.randint(5, 25)):
        scene.witness.state = (SICK, READY)[number % 2]
        await scene.rest(0.1)


async def envoy_restarts(scene: Scene, rng: Random) -> None:
    """Envoy is killed and comes back."""
    scene.envoy.stop()
    await scene.rest(rng.uniform(0, 1.5))
    await asyncio.to_thread(scene.envoy.start)


async def envoy_stops(scene: Scene, rng: Random) -> None:
    """Envoy accepts connections and does nothing."""
    assert scene.envoy.process is not None
    scene.envoy.process.send_signal(signal.SIGSTOP)
    await scene.rest(rng.uniform(0.1, 2))
    scene.envoy.process.send_signal(signal.SIGCONT)


async def ghealth_stops(scene: Scene, rng: Random) -> None:
    """Ghealth is stopped and continued."""
    with scene.model.stopped(scene.ghealth.process):
        await scene.rest(rng.uniform(0.05, 1.5))


async def ghealth_stops_in_an_attempt(scene: Scene, rng: Random) -> None:
    """Trap 15: "ready" arrives while ghealth is stopped, and is too old when it continues."""
    async with scene.agent_free:
        scene.witness.delay = 0.3
        await an_attempt(scene)
        await scene.rest(0.15)  # callers join it
        with scene.model.stopped(scene.ghealth.process):
            await scene.rest(rng.uniform(0.25 + WITHIN, 2))
        scene.witness.heal()


async def an_attempt(scene: Scene) -> None:
    """Wait for the start of the next one."""
    asked = scene.witness.asked
    while scene.witness.asked == asked and not scene.over.is_set():
        await scene.rest(0.01)


async def rotate(scene: Scene) -> None:
    """Replace the certificate all the time, sometimes by one with a wrong key.

    This is not a fault: callers must not notice it.
    """
    rng = scene.rng("certificate")
    while not scene.over.is_set():
        await scene.rest(rng.uniform(0.2, 3))
        scene.secret.replace()
        scene.model.note("new certificate")
        if rng.random() < 0.2:
            # Once ghealth has read this one, it must continue to show it.
            with contextlib.suppress(OSError, AssertionError, h2.exceptions.ProtocolError):
                await wire.call(scene.port(tls=True), wire.EMPTY_MESSAGE, tls=scene.secret.client)
                scene.secret.spoil()
                scene.model.note("certificate with a wrong key")


FAULTS: Final[dict[str, tuple[Fault, ...]]] = {
    "agent": (is_not_ready, is_not_ready, is_slow, flaps),
    "processes": (envoy_restarts, envoy_stops, ghealth_stops, ghealth_stops_in_an_attempt),
}


async def direct(scene: Scene, subject: str) -> None:
    """Choose faults, one or some in a row, with pauses between them."""
    rng = scene.rng(subject)
    while not scene.over.is_set():
        await scene.rest(rng.uniform(0, 3))
        with scene.model.disturbed():
            for fault in rng.choices(FAULTS[subject], k=rng.choice((1, 1, 2, 3))):
                async with scene.agent_free if subject == "agent" else contextlib.nullcontext():
                    scene.model.note(fault.__name__)
                    await fault(scene, rng)
                    if subject == "agent":
                        scene.witness.heal()
