"""The measurements: a section of docs/performance.md for each row, in the page's order."""

import math
import subprocess
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from bench.speed import contenders, loads, reading
from bench.speed.contenders import (
    BARE,
    CAREFUL,
    FLOOR,
    FRESH,
    GHEALTH,
    LAYERS,
    SIMPLE,
    STOCK,
    UNCACHED,
    Contender,
    all_running,
    running,
)
from bench.speed.figures import Found, Row, by_turns, medians, percentile, progress
from bench.speed.gateways import ALONE, BUILD, GATEWAYS, HANG, gateway

PROBE_TIMEOUT: Final = 3.0
ALB_TIMEOUT: Final = 5.0
"""Seconds after which a check of a hanging gateway counts as never answered."""

CHECKS, STORM, MANY_CHECKS, LEAVERS = 1000, 5000, 100_000, 10_000
SLOW: Final = 0.02
_SLOW_CHECKS: Final = 100
_WINDOW: Final = 10.0
_RATE: Final = 10
_WATCHERS: Final = 100
LEAVERS_RATE: Final = 400.0
_SETTLE: Final = 1.5  # longer than CACHE_TTL
_FREED: Final = 17.0
"""Seconds until ghealth has returned the memory of a flood (`TRIMS` times `TRIM_INTERVAL`)."""

Rounds = Iterable[int]


@dataclass(frozen=True, slots=True)
class RowKind:
    """A row.

    Args:
        title: The heading of its section.
        measure: Measures contenders with one kind of gateway, in a number of rounds.
        names: The contenders, ghealth first; other versions of it take part as well.
        gateways: The kinds of gateway it is measured with.
        rounds: Its rounds for each one asked for: long rows get fewer.
        warm_up: Whether a round that does not count comes first.
    """

    title: str
    measure: Callable[[str, tuple[str, ...], Rounds], Found]
    names: tuple[str, ...]
    gateways: tuple[str, ...] = GATEWAYS
    rounds: float = 1.0
    warm_up: bool = True


def _checked(contender: Contender, checks: int) -> dict[str, float]:
    """Make checks one after the other, a new connection for each."""
    begin = time.perf_counter()
    took = [loads.check(contender.port) for _ in range(checks)]
    seconds = time.perf_counter() - begin
    return {
        "median ms": percentile(took, 50) * 1e3,
        "p99 ms": percentile(took, 99) * 1e3,
        "checks a second": checks / seconds,
    }


def connection(kind: str, names: tuple[str, ...], rounds: Rounds) -> Found:
    """Measure checks on new connections, as fast as they are answered."""
    with gateway(kind) as envoy, all_running(names, envoy.url) as programs:
        return by_turns(names, rounds, lambda name: _checked(programs[name], CHECKS))


def slow(kind: str, names: tuple[str, ...], rounds: Rounds) -> Found:
    """Measure checks of a gateway that takes 20 ms, one at a time and 40 at a time."""
    with gateway(kind) as envoy, all_running(names, envoy.url) as programs:
        envoy.delay(SLOW)

        def once(name: str) -> dict[str, float]:
            at_a_time = loads.storm(programs[name].port, STORM // 2)
            return _checked(programs[name], _SLOW_CHECKS) | {
                "checks a second, 40 at a time": at_a_time
            }

        return by_turns(names, rounds, once)


def hanging(kind: str, names: tuple[str, ...], rounds: Rounds) -> Found:
    """Measure when checks are answered while the gateway hangs."""
    with gateway(kind) as envoy, all_running(names, envoy.url) as programs:
        envoy.delay(HANG)
        time.sleep(_SETTLE)

        def once(name: str) -> dict[str, float]:
            try:
                seconds = loads.check(programs[name].port, ALB_TIMEOUT)
            except TimeoutError:
                return {"answered after ms": float("inf")}
            finally:
                time.sleep(_SETTLE)
            return {"answered after ms": seconds * 1e3}

        return by_turns(names, rounds, once)


def requests(kind: str, names: tuple[str, ...], rounds: Rounds) -> Found:
    """Count the requests that reach the gateway: whole intervals between requests, per second."""

    def once(name: str) -> dict[str, float]:
        found = {}
        for load, delay in (("checks one by one", 0.0), ("a storm", 0.0), ("a slow storm", SLOW)):
            with gateway(kind) as envoy, running(name, envoy.url) as contender:
                envoy.delay(delay)
                before, begin = envoy.requests(), time.perf_counter()
                while time.perf_counter() < begin + _WINDOW / 2:
                    if load == "checks one by one":
                        loads.check(contender.port)
                    else:
                        loads.storm(contender.port, STORM // 2)
                seconds = time.perf_counter() - begin
                intervals = max(0, envoy.requests() - before - 1)
                found[f"requests a second, {load}"] = intervals / seconds
        return found

    return by_turns(names, rounds, once)


def memory(kind: str, names: tuple[str, ...], rounds: Rounds) -> Found:
    """Measure resident memory at the start, and how it grows by checks, leavers and watches."""

    def once(name: str) -> dict[str, float]:
        if name == BARE:
            bare = contenders.memory_of_bare_imports()
            return {"resident MiB": bare.resident, "anonymous MiB": bare.anonymous}
        with gateway(kind) as envoy, running(name, envoy.url) as contender:
            start = reading.memory_of(contender.pid)
            found = {"resident MiB": start.resident, "anonymous MiB": start.anonymous}
            loads.storm(contender.port, MANY_CHECKS // 10)
            more = _Growth(contender)
            loads.storm(contender.port, MANY_CHECKS)
            found["MiB more after 100,000 checks"] = more.by()
            if name in (GHEALTH, STOCK, *contenders.others):
                more = _Growth(contender)
                with loads.watching(contender.port, [""] * _WATCHERS):
                    found["MiB more with 100 watches"] = more.by()
            if name in (GHEALTH, CAREFUL, FLOOR, *contenders.others):
                envoy.delay(HANG)
                time.sleep(_SETTLE)
                for rate in (LEAVERS_RATE, math.inf):
                    loads.leave(contender.port, LEAVERS // 2, rate)
                time.sleep(_FREED)
                for which, rate in (("", LEAVERS_RATE), (" in a flood", math.inf)):
                    more = _Growth(contender)
                    loads.leave(contender.port, LEAVERS, rate)
                    time.sleep(_FREED)
                    found[f"MiB more after 10,000 clients that left{which}"] = more.by()
            found["resident MiB at the end"] = reading.memory_of(contender.pid).resident
            return found

    return by_turns(names, rounds, once)


class _Growth:
    """The growth of a program's resident memory from now on."""

    def __init__(self, contender: Contender) -> None:
        self._pid = contender.pid
        self._before = reading.memory_of(self._pid).resident

    def by(self) -> float:
        """Return the MiB more."""
        return reading.memory_of(self._pid).resident - self._before


def starting(kind: str, names: tuple[str, ...], rounds: Rounds) -> Found:
    """Measure the time from exec to the first answer, beside that of the bare imports."""
    with gateway(kind) as envoy:

        def once(name: str) -> dict[str, float]:
            begin = time.perf_counter()
            if name == BARE:
                command = [contenders.PYTHON, "-I", "-c", contenders.BARE_IMPORTS]
                subprocess.run(command, check=True)
                return {"ms": (time.perf_counter() - begin) * 1e3}
            with contenders.started(name, envoy.url) as contender:
                while not contender.answers():
                    time.sleep(0.002)
                return {"ms": (time.perf_counter() - begin) * 1e3}

        return by_turns(names, rounds, once)


def idle(kind: str, names: tuple[str, ...], rounds: Rounds) -> Found:
    """Measure CPU and wake-ups without any caller."""
    found: Found = {name: {} for name in names}
    with gateway(kind) as envoy, all_running(names, envoy.url) as programs:
        time.sleep(_SETTLE)
        for number in rounds:
            before = {
                name: (reading.cpu(one.pid), reading.wake_ups(one.pid))
                for name, one in programs.items()
            }
            time.sleep(_WINDOW)
            for name, one in programs.items():
                used = reading.cpu(one.pid) - before[name][0]
                woken = reading.wake_ups(one.pid) - before[name][1]
                if number:
                    found[name].setdefault("CPU ms a second", []).append(used / _WINDOW * 1e3)
                    found[name].setdefault("wake-ups a second", []).append(woken / _WINDOW)
    return found


def real_rate(kind: str, names: tuple[str, ...], rounds: Rounds) -> Found:
    """Measure ten checks a second, each on a new connection, as many nodes of an ALB make."""
    with gateway(kind) as envoy, all_running(names, envoy.url) as programs:

        def once(name: str) -> dict[str, float]:
            used, checks = reading.cpu(programs[name].pid), int(_WINDOW / 2 * _RATE)
            for _ in range(checks):
                loads.check(programs[name].port)
                time.sleep(1 / _RATE)
            return {"CPU ms a check": (reading.cpu(programs[name].pid) - used) / checks * 1e3}

        return by_turns(names, rounds, once)


COMMAND_PROBE: Final = "grpc-health-probe"


def command(kind: str, names: tuple[str, ...], rounds: Rounds) -> Found:
    """Measure one check by a command, as an exec probe makes it."""
    with gateway(kind) as envoy, running(GHEALTH, envoy.url) as server:

        def once(name: str) -> dict[str, float]:
            address = f"127.0.0.1:{server.port}"
            line = [str(BUILD / COMMAND_PROBE), f"-addr={address}"]
            if name != COMMAND_PROBE:
                python = contenders.others.get(name, contenders.PYTHON)
                line = [python, "-I", "-m", "ghealth", "check", "--addr", address]
            used, begin = reading.cpu_of_children(), time.perf_counter()
            subprocess.run(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            return {
                "ms": (time.perf_counter() - begin) * 1e3,
                "CPU ms": (reading.cpu_of_children() - used) * 1e3,
            }

        return by_turns(names, rounds, once)


def storm(kind: str, names: tuple[str, ...], rounds: Rounds) -> Found:
    """Measure checks on ten shared connections, 40 at a time."""
    with gateway(kind) as envoy, all_running(names, envoy.url) as programs:

        def once(name: str) -> dict[str, float]:
            used = reading.cpu(programs[name].pid)
            rate = loads.storm(programs[name].port, STORM)
            used = reading.cpu(programs[name].pid) - used
            return {"checks a second": rate, "CPU us a check": used / STORM * 1e6}

        return by_turns(names, rounds, once)


_SERVERS: Final = (GHEALTH, UNCACHED, CAREFUL, FRESH, SIMPLE, STOCK, FLOOR)

ROWS: Final[dict[str, RowKind]] = {
    "connection": RowKind("A new connection for every check", connection, _SERVERS),
    "layers": RowKind(
        "What ghealth adds to the floor, for a new connection",
        connection,
        (GHEALTH, FLOOR, *LAYERS),
        gateways=(ALONE,),
    ),
    "slow": RowKind("A gateway that takes 20 ms", slow, _SERVERS),
    "hang": RowKind(
        "A gateway that hangs",
        hanging,
        (GHEALTH, CAREFUL, SIMPLE),
        gateways=(ALONE,),
        rounds=0.5,
        warm_up=False,
    ),
    "requests": RowKind(
        "Requests that reach the gateway",
        requests,
        (GHEALTH, CAREFUL, STOCK),
        rounds=0.25,
        warm_up=False,
    ),
    "memory": RowKind(
        "Memory",
        memory,
        (GHEALTH, CAREFUL, STOCK, FLOOR, BARE),
        gateways=(ALONE,),
        rounds=0.25,
        warm_up=False,
    ),
    "start": RowKind(
        "Start", starting, (GHEALTH, CAREFUL, STOCK, FLOOR, BARE), gateways=(ALONE,), rounds=2.0
    ),
    "idle": RowKind(
        "No caller",
        idle,
        (GHEALTH, CAREFUL, STOCK, FLOOR),
        gateways=(ALONE,),
        rounds=0.5,
        warm_up=False,
    ),
    "ten": RowKind(
        "Ten checks a second",
        real_rate,
        (GHEALTH, UNCACHED, CAREFUL, STOCK, FLOOR),
        rounds=0.5,
    ),
    "command": RowKind(
        "One check by a command", command, (GHEALTH, COMMAND_PROBE), gateways=(ALONE,)
    ),
    "storm": RowKind("A storm on shared connections, which no ALB makes", storm, _SERVERS),
}
"""By the names that `--rows` takes."""


def measured(row: str, gateway_kind: str, rounds: int) -> Row:
    """Measure a row with one kind of gateway.

    Args:
        row: Its name.
        gateway_kind: `ALONE` or `WITH_AGENT`.
        rounds: The rounds asked for.
    """
    kind = ROWS[row]
    names = (kind.names[0], *contenders.others, *kind.names[1:])
    count = max(1, round(rounds * kind.rounds))
    numbers = progress(f"{row}, {gateway_kind}", count, warm_up=kind.warm_up)
    return medians(kind.measure(gateway_kind, names, numbers), GHEALTH)
