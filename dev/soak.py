"""Every caller and every fault at random, and each single answer held against a model.

A real Envoy with a stand-in for pilot-agent behind it, and a ghealth beside it. One director
disturbs the agent, one the processes; meanwhile callers of every kind, well-behaved and hostile,
keep up to `CONNECTIONS` connections busy. Each choice follows from the seed and the name of who
makes it; which choices happen to meet is up to the machine.

A new caller is a row of `CALLERS`, a new fault a function in `FAULTS`.
"""

import argparse
import asyncio
import contextlib
import functools
import json
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random, SystemRandom
from typing import Any, Final

import grpc
import h2.config
import h2.connection
import h2.exceptions
import h2.settings
from grpc_health.v1 import health_pb2, health_pb2_grpc

from dev.gateway import READY, SICK, SILENT, Agent, Gateway, free_port, listens, wait_until
from ghealth.alb import USER_AGENT
from ghealth.servicer import MESSAGE_PATIENCE
from tests import processes, wire
from tests.stopwatch import starvation

CACHE_TTL, PROBE_TIMEOUT, WATCH_INTERVAL, DRAIN_DELAY, SHUTDOWN_GRACE = 0.3, 0.5, 0.3, 5.0, 1.0
SETTINGS: Final = {
    "CACHE_TTL": str(CACHE_TTL),
    "PROBE_TIMEOUT": str(PROBE_TIMEOUT),
    "WATCH_INTERVAL": str(WATCH_INTERVAL),
    "DRAIN_DELAY": str(DRAIN_DELAY),
    "SHUTDOWN_GRACE": str(SHUTDOWN_GRACE),
    "MAX_WATCHES": "60",  # twice what there may be: a leak shows
    "LOG_FORMAT": "json",
}

ALLOWANCE: Final = 0.1
"""Seconds that an answer may be under way, added to each bound. Where it does not do, what the
machine withheld meanwhile is added too: see `Machine`."""

WITHIN: Final = CACHE_TTL + PROBE_TIMEOUT + ALLOWANCE
"""The promise: healthy only if the gateway said so in these seconds."""

SEEN_WITHIN: Final = WITHIN + WATCH_INTERVAL
"""The same for what a watcher believes between two looks."""

ANSWERED_WITHIN: Final = PROBE_TIMEOUT + ALLOWANCE + MESSAGE_PATIENCE + ALLOWANCE
"""An attempt, and one second that is the caller's own, to send its message."""

ATTEMPT_SPARES: Final = PROBE_TIMEOUT - ALLOWANCE
"""Seconds that an attempt on a well gateway can lose and still be in time."""

PATIENCE: Final = 10.0
FDS_NEAR: Final = 3  # over the start's: an attempt may be under way
MISSED: Final = 0.1
"""Part of the short deadlines that may be missed: ghealth is 50 ms ahead of one, which is less
than the allowance, and the work for a hundred resets can take as long."""
SAMPLED: Final = 0.1  # seconds between looks at the machine
SHOWN: Final = 20  # of the wrong answers

now: Final = time.monotonic


# ---- the model: what the gateway truly said, and what may be answered ---------------------------


class Witness(Agent):
    """An agent that notes the moment of each "ready": the one truth that an answer may tell.

    It is said when the state is read for it, after the delay. Envoy, ghealth and the caller come
    later, so the age of an answer is never underrated.
    """

    def __init__(self) -> None:
        self.said = -math.inf
        self._state = READY
        super().__init__()
        # A killed Envoy resets its connections, which is no news.
        self._server.handle_error = lambda *_: None  # type: ignore[method-assign]

    @property
    def state(self) -> str:
        """What it is about to answer."""
        if self._state == READY:
            self.said = now()
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state

    def heal(self) -> None:
        """Answer "ready" at once, again."""
        self.delay, self.state = 0.0, READY


class Machine:
    """What this machine withheld from those whose work an answer needs.

    A process that wants a CPU and gets none is late without a fault, and whoever waits for it. The
    kernel counts that; what it does not see (this program's own work, a virtual machine that stood
    still) shows as this program's lateness.
    """

    def __init__(self) -> None:
        self.pids: Callable[[], Iterable[int]] = tuple
        self.withheld = self.latest = 0.0
        self._seen: dict[int, float] = {}
        self._samples: deque[tuple[float, float]] = deque([(-math.inf, 0.0)], maxlen=1000)

    async def watch(self) -> None:
        """Look on until cancelled."""
        while True:
            began = now()
            await asyncio.sleep(SAMPLED)
            late = now() - began - SAMPLED
            self.latest = max(self.latest, late)
            self.withheld += late
            self._sample()

    def withheld_since(self, moment: float) -> float:
        """Tell the seconds that were withheld since a moment, rather too many than too few."""
        self._sample()
        return self.withheld - next(sum_ for at, sum_ in reversed(self._samples) if at <= moment)

    def _sample(self) -> None:
        for pid in self.pids():
            waited = starvation(pid)
            # The sum of a process whose thread has ended is smaller than before.
            self.withheld += max(0.0, waited - self._seen.get(pid, 0.0))
            self._seen[pid] = waited
        self._samples.append((now(), self.withheld))


Withheld = Callable[[float], float]
"""Tells the seconds that were withheld since a moment."""


@dataclass(slots=True)
class Stop:
    """A time in which ghealth was stopped, and when "ready" had last been said by its beginning."""

    began: float
    said: float
    ended: float = math.inf


@dataclass(frozen=True, slots=True)
class Tells:
    """What a kind of caller can be told; with `fixed`, whatever the gateway says."""

    healthy: str
    sick: str = ""
    fixed: bool = False


STATUS = Tells("OK SERVING", "OK NOT_SERVING")
CODE = Tells("OK SERVING", "UNAVAILABLE")
DEFAULT_PATH = Tells("UNIMPLEMENTED", "UNAVAILABLE")
ALIVE = Tells("OK SERVING", fixed=True)
NEVER = Tells("OK NOT_SERVING", fixed=True)
UNKNOWN = Tells("NOT_FOUND", fixed=True)
MALFORMED = Tells("INVALID_ARGUMENT", fixed=True)


@dataclass(slots=True)
class Tally:
    """What one kind of caller got: the columns of the report.

    `must` of the answers had to be healthy and `must_not` could not be, or the model would prove
    nothing. The longest time is without that in which ghealth was stopped.
    """

    answers: int = 0
    healthy: int = 0
    must: int = 0
    must_not: int = 0
    longest: float = 0.0


class Model:
    """Judges answers by what the gateway truly said."""

    def __init__(self, witness: Witness, machine: Machine) -> None:
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self.wrong: list[str] = []
        self.excused = 0
        self.tight = self.missed = 0  # short deadlines
        self.drained = math.inf
        self.machine = machine
        self._witness = witness
        self._began = self._steady_from = now()
        self._disturbances = 0
        self._stops = deque([Stop(-math.inf, -math.inf, -math.inf)], maxlen=8)  # a call meets fewer
        self._history: deque[str] = deque(maxlen=8)

    @contextlib.contextmanager
    def disturbed(self) -> Iterator[None]:
        """For this long the gateway, or ghealth, is not steadily well."""
        self._disturbances += 1
        self._steady_from = math.inf
        yield
        self._disturbances -= 1
        if not self._disturbances:
            self._steady_from = now()
            self.note("all well")

    @contextlib.contextmanager
    def stopped(self, process: "subprocess.Popen[bytes]") -> Iterator[None]:
        """Stop ghealth for this long."""
        stop = Stop(now(), self._witness.said)
        self._stops.append(stop)
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)
            stop.ended = now()

    def drains(self) -> None:
        """From now on nothing but `liveness` is serving."""
        self.note("SIGTERM")
        self.drained, self._steady_from = now(), math.inf

    def note(self, event: str) -> None:
        """Remember what happened, for the report of a wrong answer."""
        self._history.append(f"{now() - self._began:.3f} {event}")

    def blame(self, kind: str, answer: str, problem: str) -> None:
        """Report something wrong."""
        at = f"{now() - self._began:.3f} {kind}: {answer}, {problem}"
        self.wrong.append(f"{at}\n      after {'; '.join(self._history)}")

    def stood(self, asked: float, received: float) -> float:
        """Tell for how long of some time ghealth was stopped."""
        times = (min(s.ended, received) - max(s.began, asked) for s in self._stops)
        return sum(max(0.0, seconds) for seconds in times)

    def judge(
        self, kind: str, tells: Tells, answer: str, asked: float | None, *, hurried: bool = False
    ) -> None:
        """Judge an answer that was received just now.

        Args:
            kind: Who asked.
            tells: What it can be told.
            answer: What it was told.
            asked: When it had begun to ask; None for what a stream brought by itself.
            hurried: Whether its own deadline may be why it was told "not serving".
        """
        received = now()
        since = received if asked is None else asked
        took = received - since - self.stood(since, received)
        well = 0.0 if tells.fixed or hurried else since - self._steady_from
        draining = received - self.drained
        # What a stream brings was under way for a time that nobody knows.
        sent = received - WITHIN if asked is None else asked

        def problem(withheld: Withheld) -> str:
            late = withheld(sent)
            age = self._decided(asked, received, late) - self._witness.said
            if answer not in (tells.healthy, tells.sick):
                return "never an answer to this caller"
            if took > ANSWERED_WITHIN + late:
                return f"after {took:.3f} s"
            if tells.fixed:
                return ""
            if answer == tells.healthy and age > WITHIN + late:
                return f"{age:.3f} s after the last ready"
            if answer == tells.healthy and draining > ALLOWANCE + withheld(self.drained):
                return f"draining for {draining:.3f} s"
            # An attempt from which so much was withheld can have come to the end of its time.
            if answer == tells.sick and well > WITHIN and withheld(since - WITHIN) < ATTEMPT_SPARES:
                return f"though all had been well for {well:.3f} s"
            return ""

        tally = self.tallies[kind]
        tally.answers += 1
        tally.healthy += answer == tells.healthy
        tally.must += well > WITHIN
        age = self._decided(asked, received, 0.0) - self._witness.said
        tally.must_not += not tells.fixed and (age > WITHIN or draining > ALLOWANCE)
        tally.longest = max(tally.longest, took)
        self.tight += hurried and took > ALLOWANCE
        self.excused += self._blame_for(problem, kind, answer)

    def waits(self, kind: str, asked: float) -> None:
        """Judge that a caller still waits for its first answer."""
        at = now()
        took = at - asked - self.stood(asked, at)

        def problem(withheld: Withheld) -> str:
            late = took > ANSWERED_WITHIN + withheld(asked)
            return f"after {took:.3f} s" if late else ""

        self._blame_for(problem, kind, "nothing yet")

    def believes(self, kind: str, last: str) -> None:
        """Judge that a watcher still believes what it was told last."""
        at = now()
        if at - self._stops[-1].ended < SEEN_WITHIN:
            return  # what changed while ghealth was stopped, it could tell only since
        age, well, draining = (
            at - moment for moment in (self._witness.said, self._steady_from, self.drained)
        )

        def problem(withheld: Withheld) -> str:
            if last == STATUS.healthy and age > SEEN_WITHIN + withheld(at - SEEN_WITHIN):
                return f"{age:.3f} s after the last ready"
            if last == STATUS.healthy and draining > ALLOWANCE + withheld(self.drained):
                return f"draining for {draining:.3f} s"
            spared = withheld(at - SEEN_WITHIN) < ATTEMPT_SPARES
            if last == STATUS.sick and well > SEEN_WITHIN and spared:
                return f"though all had been well for {well:.3f} s"
            return ""

        self._blame_for(problem, kind, last)

    def _blame_for(self, problem: Callable[[Withheld], str], kind: str, answer: str) -> bool:
        """Report what is wrong; tell whether it is what the machine withheld that explains it."""
        if not problem(lambda _: 0.0):
            return False
        found = problem(self.machine.withheld_since)
        if found:
            self.blame(kind, answer, found)
        return not found

    def _decided(self, asked: float | None, received: float, late: float) -> float:
        """Tell the earliest moment at which an honest ghealth can have decided on an answer.

        That is the moment of its receipt, with one exception: a SIGSTOP between the decision and
        the sending. Then the answer comes with the SIGCONT, and was at hand when the stop began:
        the gateway had said it that moment, or it was in the cache, which no Check of before
        waits for. A caller that was waiting for an attempt (trap 15) gets no such excuse.
        """
        for stop in self._stops:
            just_continued = stop.ended <= received < stop.ended + ALLOWANCE + late
            age = stop.began - stop.said
            from_cache = asked is None or 0 <= stop.began - asked < ALLOWANCE + late
            before = asked is None or asked <= stop.began
            if just_continued and before and age < ALLOWANCE + late + CACHE_TTL * from_cache:
                return stop.began
        return received


# ---- the scene ----------------------------------------------------------------------------------


@dataclass
class Scene:
    """What directors and callers share."""

    seed: int
    port: int
    witness: Witness
    envoy: Gateway
    ghealth: "subprocess.Popen[bytes]"
    model: Model
    over: asyncio.Event = field(default_factory=asyncio.Event)
    agent_free: asyncio.Lock = field(default_factory=asyncio.Lock)
    usages: list[tuple[int, int]] = field(default_factory=list)

    def rng(self, name: str) -> Random:
        """Make the choices of somebody's."""
        return Random(f"{self.seed} {name}")  # noqa: S311 - it keeps no secrets

    async def rest(self, seconds: float) -> None:
        """Wait, but not beyond the end."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self.over.wait()

    def pids(self) -> tuple[int, ...]:
        """Tell whose work an answer needs: this program's, ghealth's and Envoy's."""
        assert self.envoy.process is not None  # noqa: S101 - it was started
        return os.getpid(), self.ghealth.pid, self.envoy.process.pid

    def usage(self) -> tuple[int, int]:
        """Tell ghealth's resident KiB and open descriptors, zeros if it has died."""
        proc = Path(f"/proc/{self.ghealth.pid}")
        with contextlib.suppress(OSError):
            lines = (proc / "status").read_text().splitlines()
            resident = [int(line.split()[1]) for line in lines if line.startswith("VmRSS")]
            return sum(resident), len(list((proc / "fd").iterdir()))
        return 0, 0


# ---- faults: each puts right what it did --------------------------------------------------------

Fault = Callable[[Scene, Random], Awaitable[None]]


async def is_sick(scene: Scene, rng: Random) -> None:
    """The agent answers 503."""
    scene.witness.state = SICK
    await scene.rest(rng.uniform(0.1, 2.5))


async def is_silent(scene: Scene, rng: Random) -> None:
    """The agent never answers."""
    scene.witness.state = SILENT
    await scene.rest(rng.uniform(0.1, 2.5))


async def is_slow(scene: Scene, rng: Random) -> None:
    """The agent takes about PROBE_TIMEOUT, and may have changed its mind by then."""
    scene.witness.delay = rng.uniform(0.05, 1.6 * PROBE_TIMEOUT)
    await scene.rest(rng.uniform(0.5, 2))
    scene.witness.state = rng.choice((READY, SICK))
    await scene.rest(rng.uniform(0.1, 1))


async def flaps(scene: Scene, rng: Random) -> None:
    """The agent changes its mind ten times a second, in the middle of attempts too."""
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
    assert scene.envoy.process is not None  # noqa: S101 - it was started
    scene.envoy.process.send_signal(signal.SIGSTOP)
    await scene.rest(rng.uniform(0.1, 2))
    scene.envoy.process.send_signal(signal.SIGCONT)


async def ghealth_stops(scene: Scene, rng: Random) -> None:
    """Ghealth is stopped and continued."""
    with scene.model.stopped(scene.ghealth):
        await scene.rest(rng.uniform(0.05, 1.5))


async def ghealth_stops_in_an_attempt(scene: Scene, rng: Random) -> None:
    """Trap 15: "ready" arrives while ghealth is stopped, and is too old when it goes on."""
    async with scene.agent_free:
        scene.witness.delay = 0.3
        await an_attempt(scene)
        await scene.rest(0.15)  # callers join it
        with scene.model.stopped(scene.ghealth):
            await scene.rest(rng.uniform(0.25 + WITHIN, 2))
        scene.witness.heal()


async def an_attempt(scene: Scene) -> None:
    """Wait for the beginning of the next one."""
    asked = scene.witness.asked
    while scene.witness.asked == asked and not scene.over.is_set():
        await scene.rest(0.01)


FAULTS: Final[dict[str, tuple[Fault, ...]]] = {
    "agent": (is_sick, is_silent, is_slow, flaps),
    "processes": (envoy_restarts, envoy_stops, ghealth_stops, ghealth_stops_in_an_attempt),
}


async def direct(scene: Scene, subject: str) -> None:
    """Choose faults, one or some in a row, with times between in which all may be well."""
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


# ---- callers ------------------------------------------------------------------------------------


@dataclass
class Hand:
    """One of a kind of callers, with a connection of its own that it keeps."""

    kind: str
    scene: Scene
    rng: Random
    channel: grpc.aio.Channel

    @property
    def stub(self) -> Any:
        """The methods of the service, on its connection."""
        return health_pb2_grpc.HealthStub(self.channel)

    async def heard(self, asking: Awaitable[str]) -> str:
        """Tell what came back, whatever it was."""
        try:
            return await asking
        except grpc.aio.AioRpcError as error:
            return error.code().name
        except (AssertionError, OSError, h2.exceptions.ProtocolError) as error:
            return f"no answer: {error!r}"

    async def check(self, service: str = "", deadline: float = PATIENCE) -> str:
        """Check on the kept connection."""
        request = health_pb2.HealthCheckRequest(service=service)
        return told(await self.stub.Check(request, timeout=deadline))

    async def list(self) -> str:
        """List, of which the gateway's own status is what is judged."""
        reply = await self.stub.List(health_pb2.HealthListRequest(), timeout=PATIENCE)
        found = {service: told(status) for service, status in reply.statuses.items()}
        fixed = {"liveness": ALIVE.healthy, "sick": NEVER.healthy}
        return found[""] if found == found | fixed and len(found) > len(fixed) else str(found)

    async def message_late(self, service: str) -> str:
        """Check, with a message that comes after the headers but well within its second."""

        async def messages() -> AsyncIterator[Any]:
            await asyncio.sleep(self.rng.uniform(0, 0.4))
            yield health_pb2.HealthCheckRequest(service=service)

        check = self.channel.stream_unary(
            wire.CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return told(await check(messages(), timeout=PATIENCE))

    async def new_channel(self) -> str:
        """Check as the kubelet does."""
        async with channel_to(self.scene.port) as channel:
            return await Hand(self.kind, self.scene, self.rng, channel).check()

    async def raw(
        self, *data: bytes, agent: str = USER_AGENT, path: str = wire.CHECK, ends: bool = True
    ) -> str:
        """Check as an ALB does: on a new connection, with a host in place of the authority."""
        headers = (("host", "AWSALB"), ("user-agent", agent))
        reply = await wire.call(
            self.scene.port, *data, path=path, ends=ends, headers=headers, without=(":authority",)
        )
        if reply.code:
            return next(code.name for code in grpc.StatusCode if code.value[0] == reply.code)
        return told(health_pb2.HealthCheckResponse.FromString(reply.data[5:]))


def told(reply: Any) -> str:
    """Put an OK answer into words."""
    return f"OK {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}"


Turn = Callable[[Hand], Awaitable[None]]


def asks(tells: Tells, ask: Callable[[Hand], Awaitable[str]]) -> Turn:
    """Make the turn of a caller that asks once and has the answer judged."""

    async def turn(hand: Hand) -> None:
        asked = now()
        hand.scene.model.judge(hand.kind, tells, await hand.heard(ask(hand)), asked)

    return turn


def asks_late(tells: Tells, service: str) -> Turn:
    """Make the turn of a caller whose message is late, but in time unless the machine is slow.

    A message that is too late is taken for none, and the answer is the gateway's.
    """

    async def turn(hand: Hand) -> None:
        asked = now()
        answer = await hand.heard(hand.message_late(service))
        if hand.scene.model.machine.withheld_since(asked) < MESSAGE_PATIENCE / 2:
            hand.scene.model.judge(hand.kind, tells, answer, asked)

    return turn


OUT_OF_TIME: Final = ("DEADLINE_EXCEEDED", "UNAVAILABLE")
"""The second where ghealth had not even read the question before the time was up."""


async def short_deadline(hand: Hand) -> None:
    """Check with less time than an attempt may take, once there is a connection."""
    await hand.heard(hand.check("liveness"))
    asked = now()
    answer = await hand.heard(hand.check(deadline=hand.rng.uniform(0.15, 0.45)))
    if answer not in OUT_OF_TIME:
        hand.scene.model.judge(hand.kind, STATUS, answer, asked, hurried=True)
    elif not hand.scene.model.stood(asked, now()) and (
        hand.scene.model.machine.withheld_since(asked) < ALLOWANCE
    ):
        hand.scene.model.missed += 1


async def watch(hand: Hand) -> None:
    """Watch for a while; each message is judged, and in between what is still believed."""
    model, asked, end = hand.scene.model, now(), now() + hand.rng.uniform(0.5, 6)
    call = hand.stub.Watch(health_pb2.HealthCheckRequest())

    async def message() -> str:
        reply = await call.read()
        return "the end" if reply is grpc.aio.EOF else told(reply)

    last, blamed = "", len(model.wrong)
    reading = asyncio.ensure_future(message())
    while now() < end and not hand.scene.over.is_set() and len(model.wrong) == blamed:
        if (await asyncio.wait({reading}, timeout=ALLOWANCE / 2))[0]:
            answer = await hand.heard(reading)
            model.judge(hand.kind, STATUS, answer, None if last else asked)
            if answer == last:
                model.blame(hand.kind, answer, "for the second time")
            last, reading = answer, asyncio.ensure_future(message())
        elif last:
            model.believes(hand.kind, last)
        else:
            model.waits(hand.kind, asked)
    reading.cancel()
    call.cancel()


def sends(longest: float, make: Callable[[Random], bytes]) -> Turn:
    """Make the turn of a caller that sends something and goes away without an answer."""

    async def turn(hand: Hand) -> None:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", hand.scene.port)
            writer.write(make(hand.rng))
            await hand.scene.rest(hand.rng.uniform(0, longest))
            if hand.rng.choice((True, False)):
                sock = writer.get_extra_info("socket")  # a RST in place of a FIN
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    return turn


@functools.cache
def frames(
    method: str, streams: int = 1, *, window: int = 65_535, ends: bool = True, resets: bool = False
) -> bytes:
    """Make the beginning of a connection, with some calls on it."""
    made = h2.connection.H2Connection(h2.config.H2Configuration(validate_outbound_headers=False))
    made.initiate_connection()
    made.update_settings({h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: window})
    for stream in range(1, 2 * streams, 2):
        headers = {":method": "POST", ":scheme": "http", ":authority": "x", "te": "trailers"}
        headers[":path"] = f"/grpc.health.v1.Health/{method}"
        headers["content-type"] = "application/grpc"
        made.send_headers(stream, list(headers.items()))
        if ends:
            made.send_data(stream, wire.EMPTY_MESSAGE, end_stream=True)
        if resets:
            made.reset_stream(stream)
    return made.data_to_send()


DEAF_WATCH: Final = frames("Watch", window=0)
STARTS: Final = (b"", frames("Check"), frames("Check", ends=False), b"GET / HTTP/1.1\r\n")


@dataclass(frozen=True)
class Caller:
    """A kind of caller: how many, the longest pause between two turns, and what a turn is."""

    workers: int
    pause: float
    turn: Turn


CALLERS: Final[dict[str, Caller]] = {
    "kept connection": Caller(5, 0.1, asks(STATUS, Hand.check)),
    "new channel": Caller(2, 0.3, asks(STATUS, Hand.new_channel)),
    "short deadline": Caller(2, 0.1, short_deadline),
    "alb": Caller(5, 0.2, asks(CODE, lambda hand: hand.raw(wire.EMPTY_MESSAGE))),
    "alb, default path": Caller(
        3,
        0.2,
        asks(DEFAULT_PATH, lambda hand: hand.raw(wire.EMPTY_MESSAGE, path="/AWS.ALB/healthcheck")),
    ),
    "no message": Caller(2, 0.2, asks(CODE, Hand.raw)),
    "no message, grpc-c": Caller(1, 0.2, asks(STATUS, lambda hand: hand.raw(agent="grpc-c/1"))),
    "no message, no end": Caller(2, 0.2, asks(CODE, lambda hand: hand.raw(ends=False))),
    "malformed message": Caller(1, 0.3, asks(MALFORMED, lambda hand: hand.raw(b"\0\0\0\0\1\x0a"))),
    "liveness": Caller(2, 0.1, asks(ALIVE, lambda hand: hand.check("liveness"))),
    "liveness, message late": Caller(3, 0.1, asks_late(ALIVE, "liveness")),
    "sick service": Caller(2, 0.1, asks(NEVER, lambda hand: hand.check("sick"))),
    "sick, message late": Caller(3, 0.1, asks_late(NEVER, "sick")),
    "unknown service": Caller(1, 0.2, asks(UNKNOWN, lambda hand: hand.check("unknown"))),
    "list": Caller(2, 0.2, asks(STATUS, Hand.list)),
    "watch": Caller(15, 1, watch),
    # From here on nobody waits for an answer.
    "watch, never read": Caller(8, 0.5, sends(4, lambda _: DEAF_WATCH)),
    "silence": Caller(50, 0.5, sends(4, lambda _: b"")),
    "half a request": Caller(20, 0.5, sends(4, lambda rng: STARTS[1][: rng.randrange(150)])),
    "gone in mid-call": Caller(
        3, 0.2, sends(0.1, lambda rng: frames(rng.choice(("Check", "Watch", "List")), 3))
    ),
    "garbage": Caller(
        2, 0.3, sends(0.3, lambda rng: rng.choice(STARTS) + rng.randbytes(rng.randrange(1, 4000)))
    ),
    "rapid resets": Caller(1, 0.3, sends(0.3, lambda _: frames("Check", 100, resets=True))),
}
CONNECTIONS: Final = sum(caller.workers for caller in CALLERS.values()) + 2  # a new channel's


def channel_to(port: int) -> grpc.aio.Channel:
    """Open a channel that shares its connection with no other."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=options)


async def work(scene: Scene, kind: str, number: int) -> None:
    """Take turn after turn."""
    rng, caller = scene.rng(f"{kind} {number}"), CALLERS[kind]
    await scene.rest(rng.uniform(0, 0.5))  # not all at once
    async with channel_to(scene.port) as channel:
        hand = Hand(kind, scene, rng, channel)
        while not scene.over.is_set():
            await caller.turn(hand)
            await scene.rest(rng.uniform(0, caller.pause))


# ---- the run ------------------------------------------------------------------------------------


async def play(scene: Scene, seconds: float, *subjects: str) -> None:
    """Have everyone call for some time while some subjects are disturbed."""
    scene.over.clear()
    async with asyncio.timeout(seconds + 6 * PATIENCE), asyncio.TaskGroup() as group:
        for subject in subjects:
            group.create_task(direct(scene, subject))
        for kind, caller in CALLERS.items():
            for number in range(caller.workers):
                group.create_task(work(scene, kind, number))
        end = now() + seconds
        while now() < end and scene.ghealth.poll() is None:
            scene.usages.append(scene.usage())
            await asyncio.sleep(0.2)
        scene.over.set()


async def settled(scene: Scene, most: int) -> tuple[int, int]:
    """Give ghealth time to let go of what callers left behind, and tell its usage."""
    end = now() + PATIENCE / 2
    scene.over.clear()
    while scene.usage()[1] > most and now() < end:
        await scene.rest(0.1)
    return scene.usage()


async def drain(scene: Scene) -> str:
    """End ghealth under load, with a slow gateway and with watchers that stay; tell how it went."""
    playing = asyncio.create_task(play(scene, 2 * WITHIN + 1))
    await asyncio.sleep(WITHIN)
    await asyncio.sleep(WITHIN)
    # Either calls are under way when the signal comes, or watchers are between two looks.
    if scene.rng("drain").choice((True, False)):
        scene.witness.delay = PROBE_TIMEOUT / 2
        await an_attempt(scene)
        await asyncio.sleep(0.05)  # callers join it
    with contextlib.ExitStack() as staying:
        for _ in range(10):
            sock = staying.enter_context(socket.create_connection(("127.0.0.1", scene.port)))
            sock.sendall(DEAF_WATCH)
        scene.model.drains()
        scene.ghealth.send_signal(signal.SIGTERM)
        await playing
        code = await asyncio.to_thread(scene.ghealth.wait, DRAIN_DELAY + SHUTDOWN_GRACE + PATIENCE)
    took = now() - scene.model.drained
    late = scene.model.machine.withheld_since(scene.model.drained)
    if code or not DRAIN_DELAY <= took < DRAIN_DELAY + SHUTDOWN_GRACE + ALLOWANCE + late:
        scene.model.blame("drain", f"exit {code}", f"{took:.3f} s after SIGTERM")
    return f"exit {code}, {took:.3f} s after SIGTERM with DRAIN_DELAY {DRAIN_DELAY:g}"


async def soak(scene: Scene, seconds: float) -> None:
    """Play, drain, and tell what was seen."""
    model = scene.model
    model.machine.pids = scene.pids
    looking = asyncio.create_task(model.machine.watch())
    await play(scene, 1)  # what is made once has been made
    start = await settled(scene, 0)
    await play(scene, seconds, *FAULTS)
    end = await settled(scene, start[1] + FDS_NEAR)
    if end[1] > start[1] + FDS_NEAR:
        model.blame("descriptors", f"{end[1]} at the end", f"{start[1]} at the start")
    drained = "ghealth had died"
    if scene.ghealth.poll() is None:
        drained = await drain(scene)
    else:
        model.blame("ghealth", f"exit {scene.ghealth.returncode}", "all by itself")
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
    peak = [max(column) for column in zip(*scene.usages, strict=True)]
    for name, at_start, at_most, at_end in zip(("KiB", "fds"), start, peak, end, strict=True):
        print(f"{name}: {at_start} at the start, {at_most} at most, {at_end} at the end")
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
    port = free_port()
    with contextlib.ExitStack() as stack:
        witness = stack.enter_context(Witness())
        envoy = stack.enter_context(Gateway(witness))
        never = stack.enter_context(Agent())
        never.state = SICK
        log = stack.enter_context(tempfile.TemporaryFile("w+"))
        environment = processes.environment(
            LISTEN=f"127.0.0.1:{port}",
            PROBE_URL=envoy.url,
            SERVICES=json.dumps({"sick": f"http://127.0.0.1:{never.port}/"}),
            **SETTINGS,
        )
        command = Path(sys.prefix) / "bin" / "ghealth"
        ghealth = subprocess.Popen([command], env=environment, stdout=log, stderr=log)
        stack.callback(ghealth.wait)
        stack.callback(ghealth.kill)
        wait_until(lambda: listens(port) or ghealth.poll() is not None)
        model = Model(witness, Machine())
        try:
            scene = Scene(arguments.seed, port, witness, envoy, ghealth, model)
            asyncio.run(soak(scene, arguments.seconds))
        finally:
            log.seek(0)
            for line in log:
                if line[0] != "{" or json.loads(line)["level"] == "error":
                    model.blame("log", line.strip(), "which is an error")
            print(f"wrong: {len(model.wrong)}")
            for wrong in model.wrong[:SHOWN]:
                print(f"  {wrong}")
    return int(bool(model.wrong))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())
