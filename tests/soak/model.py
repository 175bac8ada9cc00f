"""The model: which answers are allowed, from the real state of the gateway."""

import asyncio
import contextlib
import math
import signal
import subprocess
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from ghealth.server.servicer import MESSAGE_TIMEOUT
from tests.support.gateway import READY, Agent
from tests.support.stopwatch import starvation

CACHE_TTL, PROBE_TIMEOUT, WATCH_INTERVAL = 0.3, 0.5, 0.3

ALLOWANCE: Final = 0.1
"""Seconds of delay that are added to each bound. If they are not enough, the time without a CPU
is added too: see `Machine`."""

WITHIN: Final = CACHE_TTL + PROBE_TIMEOUT + ALLOWANCE
"""The promise: healthy only if the gateway was ready within these seconds."""

SEEN_WITHIN: Final = WITHIN + WATCH_INTERVAL
"""The same for the last message of a watch, between two probes."""

ANSWERED_WITHIN: Final = PROBE_TIMEOUT + ALLOWANCE + MESSAGE_TIMEOUT + ALLOWANCE
"""The time of a probe, and the second in which the caller must send its message."""

HANDSHAKE: Final = 2.0
"""Seconds until gRPC closes a connection without a handshake."""

ATTEMPT_SPARES: Final = PROBE_TIMEOUT - ALLOWANCE
"""Seconds of delay with which a probe of a ready gateway is still in time."""

SAMPLED: Final = 0.1  # seconds between two measurements of the machine

now: Final = time.monotonic


class Witness(Agent):
    """An agent that records the time of each "ready", from which the age of an answer follows.

    The time is when the state is read for the answer, after the delay. Envoy, ghealth and the
    caller come later, so the age of an answer is never too small.
    """

    said = -math.inf
    _state = READY

    @property
    def state(self) -> str:
        """The next answer."""
        if self._state == READY:
            self.said = now()
        return self._state

    @state.setter
    def state(self, state: str) -> None:
        self._state = state

    def heal(self) -> None:
        """Answer "ready" again, without delay."""
        self.delay, self.state = 0.0, READY


class Machine:
    """The time for which processes that an answer needs waited for a CPU.

    A process that waits for a CPU is late without a fault, and so are the programs that wait for
    it. The kernel counts this time. Other pauses (work of this program, a stopped virtual machine)
    show as delays of this program.
    """

    def __init__(self) -> None:
        self.withheld = 0.0
        self._pids: Callable[[], Iterable[int]] = tuple
        self._seen: dict[int, float] = {}
        self._samples: deque[tuple[float, float]] = deque(maxlen=1000)

    async def watch(self, pids: Callable[[], Iterable[int]]) -> None:
        """Measure these processes until cancelled."""
        self._pids = pids
        while True:
            due = now() + SAMPLED
            await asyncio.sleep(SAMPLED)
            self.withheld += now() - due
            self._look()
            self._samples.append((now(), self.withheld))

    def withheld_since(self, moment: float) -> float:
        """Return the seconds of waiting since a time, rather too many than too few."""
        self._look()
        sums = (withheld for at, withheld in reversed(self._samples) if at <= moment)
        return self.withheld - next(sums, 0.0)

    def _look(self) -> None:
        for pid in self._pids():
            waited = starvation(pid)
            # The sum of a process becomes smaller when a thread ends.
            self.withheld += max(0.0, waited - self._seen.get(pid, 0.0))
            self._seen[pid] = waited


Withheld = Callable[[float], float]
"""Returns the seconds of waiting since a time."""


@dataclass(slots=True)
class Stop:
    """A time in which ghealth was stopped, and the time of the last "ready" before it."""

    began: float
    said: float
    ended: float = math.inf


class Tells(Enum):
    """Answers that a kind of caller can get: healthy or not, or one that no gateway changes.

    With a short deadline, this may be the reason for "not serving".
    """

    STATUS = "OK SERVING", "OK NOT_SERVING"
    HURRIED = "OK SERVING", "OK NOT_SERVING", "short"
    CODE = "OK SERVING", "UNAVAILABLE"
    DEFAULT_PATH = "UNIMPLEMENTED", "UNAVAILABLE"
    ALIVE = "OK SERVING"
    NEVER = "OK NOT_SERVING"
    UNKNOWN = "NOT_FOUND"
    MALFORMED = "INVALID_ARGUMENT"

    def __init__(self, healthy: str, sick: str = "", deadline: str = "long") -> None:
        self.healthy = healthy
        self.sick = sick
        self.hurried = deadline == "short"


class Model:
    """Judges answers by the real answers of the gateway."""

    def __init__(self, witness: Witness) -> None:
        self.tallies: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self.longest = 0.0  # without time in which ghealth was stopped
        self.wrong: list[str] = []
        self.excused = 0
        self.tight = self.missed = 0  # short deadlines
        self.drained = math.inf
        self.machine = Machine()
        self._witness = witness
        self._began = self._steady_from = now()
        self._disturbances = 0
        self._stops = deque([Stop(-math.inf, -math.inf, -math.inf)], maxlen=8)  # a call meets fewer
        self._history: deque[str] = deque(maxlen=8)

    @contextlib.contextmanager
    def disturbed(self) -> Iterator[None]:
        """The block during which the gateway or ghealth is disturbed."""
        self._disturbances += 1
        self._steady_from = math.inf
        yield
        self._disturbances -= 1
        if not self._disturbances:
            self._steady_from = now()
            self.note("all well")

    @contextlib.contextmanager
    def stopped(self, process: subprocess.Popen[str]) -> Iterator[None]:
        """Stop ghealth during the block."""
        stop = Stop(now(), self._witness.said)
        self._stops.append(stop)
        process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            process.send_signal(signal.SIGCONT)
            stop.ended = now()

    def drains(self) -> None:
        """From now on only `liveness` is serving."""
        self.note("SIGTERM")
        self.drained, self._steady_from = now(), math.inf

    def note(self, event: str) -> None:
        """Record an event, for the report of a wrong answer."""
        self._history.append(f"{now() - self._began:.3f} {event}")

    def blame(self, kind: str, answer: str, problem: str) -> None:
        """Report something wrong."""
        at = f"{now() - self._began:.3f} {kind}: {answer}, {problem}"
        self.wrong.append(f"{at}\n      after {'; '.join(self._history)}")

    def stood(self, asked: float, received: float) -> float:
        """Return for how long ghealth was stopped within a period."""
        times = (min(s.ended, received) - max(s.began, asked) for s in self._stops)
        return sum(max(0.0, seconds) for seconds in times)

    def judge(
        self, kind: str, tells: Tells, answer: str, asked: float | None, within: float = WITHIN
    ) -> None:
        """Judge an answer that was received just now.

        Args:
            kind: The kind of caller.
            tells: The answers that it can get.
            answer: The answer that it got.
            asked: When its call started; None for a message of an open stream.
            within: The age with which an answer is still right.
        """
        received = now()
        since = received if asked is None else asked
        took = received - since - self.stood(since, received)
        well = 0.0 if tells.hurried or not tells.sick else since - self._steady_from
        draining = received - self.drained
        is_healthy = answer == tells.healthy

        def age(late: float) -> float:
            return self._decided(asked, received, late) - self._witness.said

        def problem(withheld: Withheld) -> str:
            # The delay of a message of a stream is not known.
            late = withheld(received - within if asked is None else asked)
            if answer not in (tells.healthy, tells.sick):
                explained = self._explains(answer, since, received, late)
                return "" if explained else "never an answer to this caller"
            if took > ANSWERED_WITHIN + late:
                return f"after {took:.3f} s"
            if not tells.sick:
                return ""
            if is_healthy and age(late) > within + late:
                return f"{age(late):.3f} s after the last ready"
            if is_healthy and draining > ALLOWANCE + withheld(self.drained):
                return f"draining for {draining:.3f} s"
            # Its probe may have reached its timeout.
            if not is_healthy and well > within and withheld(since - within) < ATTEMPT_SPARES:
                return f"though all had been well for {well:.3f} s"
            return ""

        # Some answers must be healthy, and some must not, or the model would prove nothing.
        tally = self.tallies[kind]
        tally["answers"] += 1
        tally["healthy"] += is_healthy
        tally["must be"] += well > within
        tally["must not"] += bool(tells.sick) and (age(0.0) > within or draining > ALLOWANCE)
        self.longest = max(self.longest, took)
        self.tight += tells.hurried and took > ALLOWANCE
        self._blame_for(problem, kind, answer)

    def believes(self, kind: str, last: str) -> None:
        """Judge the last message of a watch, which is still valid for its caller."""
        # ghealth could send changes during a stop only after it.
        if now() - self._stops[-1].ended >= SEEN_WITHIN:
            self.judge(f"{kind}, last", Tells.STATUS, last, None, within=SEEN_WITHIN)

    def _blame_for(self, problem: Callable[[Withheld], str], kind: str, answer: str) -> None:
        """Report a wrong answer, if waiting for a CPU does not explain it."""
        if problem(lambda _: 0.0):
            if found := problem(self.machine.withheld_since):
                self.blame(kind, answer, found)
            else:
                self.excused += 1

    def _explains(self, answer: str, asked: float, received: float, late: float) -> bool:
        """Return whether a stop of ghealth explains an answer.

        The second for the message can pass while ghealth is stopped. gRPC's handshake timeout (2 s,
        `ghealth.server.OPTIONS`) continues too, and closes new connections; for it a stop that
        ended just before the call may count: gRPC's threads continue with the time at which they
        were stopped.
        """
        if answer == Tells.MALFORMED.healthy:
            return self.stood(asked, received) + late > MESSAGE_TIMEOUT / 2
        for stop in reversed(self._stops):
            if asked - stop.ended < ALLOWANCE + late:
                asked = min(asked, stop.began)
        is_closed = self.stood(asked, received) + late > HANDSHAKE - ALLOWANCE
        return is_closed and (answer.startswith("no answer") or answer == Tells.CODE.sick)

    def _decided(self, asked: float | None, received: float, late: float) -> float:
        """Return the earliest time at which a correct ghealth can have decided on an answer.

        This is the time of its receipt, with one exception: a SIGSTOP between the decision and the
        sending. Then the answer is sent after the SIGCONT, and existed when the stop began: the
        gateway had just answered, or the result was fresh. For a caller that was waiting for a
        probe (trap 15) there is no such exception.
        """
        for stop in self._stops:
            just_continued = stop.ended <= received < stop.ended + ALLOWANCE + late
            age = stop.began - stop.said
            from_cache = asked is None or 0 <= stop.began - asked < ALLOWANCE + late
            before = asked is None or asked <= stop.began
            if just_continued and before and age < ALLOWANCE + late + CACHE_TTL * from_cache:
                return stop.began
        return received
