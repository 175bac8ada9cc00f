"""The model: which answers are allowed, from the real state of the gateway."""

import asyncio
import contextlib
import math
import signal
import subprocess
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
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

    def __init__(self) -> None:
        self.said = -math.inf
        self._state = READY
        super().__init__()

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
        self.pids: Callable[[], Iterable[int]] = tuple
        self.withheld = self.latest = 0.0
        self._seen: dict[int, float] = {}
        self._samples: deque[tuple[float, float]] = deque(maxlen=1000)

    async def watch(self) -> None:
        """Measure until cancelled."""
        while True:
            began = now()
            await asyncio.sleep(SAMPLED)
            late = now() - began - SAMPLED
            self.latest = max(self.latest, late)
            self.withheld += late
            self._look()
            self._samples.append((now(), self.withheld))

    def withheld_since(self, moment: float) -> float:
        """Return the seconds of waiting since a time, rather too many than too few."""
        self._look()
        sums = (withheld for at, withheld in reversed(self._samples) if at <= moment)
        return self.withheld - next(sums, 0.0)

    def _look(self) -> None:
        for pid in self.pids():
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


@dataclass(frozen=True, slots=True)
class Tells:
    """Answers that a kind of caller can get; with `fixed`, independent of the gateway."""

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
    """The answers to one kind of caller: the columns of the report.

    `must` of the answers had to be healthy and `must_not` could not be, or the model would prove
    nothing. The longest time is without that in which ghealth was stopped.
    """

    answers: int = 0
    healthy: int = 0
    must: int = 0
    must_not: int = 0
    longest: float = 0.0


class Model:
    """Judges answers by the real answers of the gateway."""

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

    def _unshaken(self, asked: float, received: float, late: float) -> bool:
        """Return whether ghealth was stopped for so long that gRPC closed new connections.

        Its handshake timeout (2 s, `ghealth.server.OPTIONS`) continues while the process is
        stopped, and a stop that ended just before the call may count: gRPC's threads continue with
        the time at which they were stopped.
        """
        for stop in reversed(self._stops):
            if asked - stop.ended < ALLOWANCE + late:
                asked = min(asked, stop.began)
        return self.stood(asked, received) + late > HANDSHAKE - ALLOWANCE

    def judge(
        self, kind: str, tells: Tells, answer: str, asked: float | None, *, hurried: bool = False
    ) -> None:
        """Judge an answer that was received just now.

        Args:
            kind: The kind of caller.
            tells: The answers that it can get.
            answer: The answer that it got.
            asked: When its call started; None for a message of an open stream.
            hurried: Whether its deadline may be the reason for "not serving".
        """
        received = now()
        since = received if asked is None else asked
        took = received - since - self.stood(since, received)
        well = 0.0 if tells.fixed or hurried else since - self._steady_from
        draining = received - self.drained
        # The delay of a message of a stream is not known.
        sent = received - WITHIN if asked is None else asked

        def problem(withheld: Withheld) -> str:
            late = withheld(sent)
            age = self._decided(asked, received, late) - self._witness.said
            if answer not in (tells.healthy, tells.sick):
                if answer.startswith("no answer") or answer == CODE.sick:
                    unshaken = self._unshaken(since, received, late)
                    return "" if unshaken else "never an answer to this caller"
                # The second for the message can pass while ghealth is stopped.
                stopped = self.stood(since, received) + late > MESSAGE_TIMEOUT - ALLOWANCE
                excused = answer == MALFORMED.healthy and stopped
                return "" if excused else "never an answer to this caller"
            if took > ANSWERED_WITHIN + late:
                return f"after {took:.3f} s"
            if tells.fixed:
                return ""
            if answer == tells.healthy and age > WITHIN + late:
                return f"{age:.3f} s after the last ready"
            if answer == tells.healthy and draining > ALLOWANCE + withheld(self.drained):
                return f"draining for {draining:.3f} s"
            # A probe with so much waiting can have reached its timeout.
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
        """Judge the last message of a watch, which is still valid for its caller."""
        at = now()
        if at - self._stops[-1].ended < SEEN_WITHIN:
            return  # ghealth could send changes during a stop only after it
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
        """Report a wrong answer; return whether waiting for a CPU explains it."""
        if not problem(lambda _: 0.0):
            return False
        found = problem(self.machine.withheld_since)
        if found:
            self.blame(kind, answer, found)
        return not found

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
