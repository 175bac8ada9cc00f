"""What is measured: one function a row of the table, in the order of docs/performance.md."""

import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.speed import contenders, loads, reading
from bench.speed.contenders import FLOOR, GHEALTH, GO, STOCK, UV_FLOOR, Contender, running
from tests.support.gateway import SILENT, gateway

Row = dict[str, Any]
"""What goes into the JSON: medians, and medians of the ratios of neighbours in time."""

PROBE_TIMEOUT: Final = 3.0
SICK_FOR_EVER: Final = 5.0
"""Seconds after which a check of a hanging gateway counts as never answered: an ALB's timeout."""

_STORM, _MEMORY_STORM = 3000, 100_000
_CHECKS = 400
_IDLE, _REAL = 8.0, 6.0
_RATE = 10
_WATCHERS = (1, 10, 100)


def by_turns(
    names: Sequence[str], rounds: int, measure: Callable[[str], dict[str, float]]
) -> dict[str, dict[str, list[float]]]:
    """Measure each contender in each round, one after the other.

    Args:
        names: The contenders.
        rounds: How often; the first one warms up and does not count.
        measure: Measures one of them once.
    """
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    for number in range(rounds + 1):
        for name in names:
            for figure, value in measure(name).items():
                if number:
                    found[name].setdefault(figure, []).append(value)
    return found


def medians(found: dict[str, dict[str, list[float]]], beside: Sequence[str]) -> Row:
    """Sum up what was found.

    Args:
        found: The figures of each contender, round by round.
        beside: Those by whose figures ghealth's are divided, round by round.
    """
    row: Row = {
        name: {figure: statistics.median(values) for figure, values in figures.items()}
        for name, figures in found.items()
    }
    row["ratios"] = {
        other: {
            figure: statistics.median(
                ours / theirs for ours, theirs in zip(values, found[other][figure], strict=True)
            )
            for figure, values in found[GHEALTH].items()
            if all(found[other][figure])
        }
        for other in beside
    }
    return row


@contextmanager
def all_running(names: Sequence[str], url: str) -> Iterator[dict[str, Contender]]:
    """Run several contenders against one gateway."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(running(name, url)) for name in names}


def storm(rounds: int) -> Row:
    """1: checks a second on shared connections."""
    names = (FLOOR, GHEALTH, UV_FLOOR, GO, STOCK)
    with gateway() as (envoy, _), all_running(names, envoy.url) as made:

        def once(name: str) -> dict[str, float]:
            used = reading.cpu(made[name].pid)
            rate = loads.storm(made[name].port, _STORM)
            used = reading.cpu(made[name].pid) - used
            return {"checks a second": rate, "CPU us a check": used / _STORM * 1e6}

        return medians(by_turns(names, rounds, once), (FLOOR, UV_FLOOR, GO))


def albs_shape(rounds: int, delay: float = 0.0, checks: int = _CHECKS) -> Row:
    """2 and 3: a new connection for every check, one after the other.

    Args:
        rounds: How often.
        delay: Seconds that the gateway takes.
        checks: Of one round.
    """
    names = (GHEALTH, GO, STOCK, FLOOR)
    with gateway() as (envoy, agent), all_running(names, envoy.url) as made:
        agent.delay = delay

        def once(name: str) -> dict[str, float]:
            started = time.perf_counter()
            took = sorted(loads.check(made[name].port) for _ in range(checks))
            seconds = time.perf_counter() - started
            return {
                "median ms": statistics.median(took) * 1e3,
                "p99 ms": took[int(len(took) * 0.99)] * 1e3,
                "checks a second": checks / seconds,
            }

        return medians(by_turns(names, rounds, once), (GO, FLOOR))


def hanging(rounds: int) -> Row:
    """3: a gateway that takes the request and says nothing."""
    row: Row = {GHEALTH: {}, GO: {}}
    with gateway() as (envoy, agent), all_running((GHEALTH, GO), envoy.url) as made:
        agent.state = SILENT
        time.sleep(1.0)  # what was answered before is not fresh any more
        late = [loads.check(made[GHEALTH].port) - PROBE_TIMEOUT for _ in range(rounds)]
        row[GHEALTH]["ms after PROBE_TIMEOUT"] = statistics.median(late) * 1e3
        try:
            row[GO]["answered after s"] = loads.check(made[GO].port, SICK_FOR_EVER)
        except TimeoutError:
            row[GO]["answered after s"] = None
    return row


def requests(_rounds: int) -> Row:
    """4: HTTP requests that reach the gateway, a second, while checks come as fast as they can."""
    row: Row = {}
    for name in (GHEALTH, GO, STOCK):
        row[name] = {}
        for load, delay in (("a storm", 0.0), ("checks, gateway takes 20 ms", 0.02)):
            with gateway() as (envoy, agent), running(name, envoy.url) as contender:
                agent.delay = delay
                asked, started = agent.asked, time.perf_counter()
                while time.perf_counter() < started + _REAL:
                    if delay:
                        loads.check(contender.port)
                    else:
                        loads.storm(contender.port, _STORM)
                seconds = time.perf_counter() - started
                row[name][f"a second, {load}"] = (agent.asked - asked) / seconds
    return row


def memory(rounds: int) -> Row:
    """5: what is resident at the start, after 100,000 checks and with 100 watchers."""
    bare = [contenders.memory_of_bare_imports() for _ in range(rounds)]
    row: Row = {
        "bare imports": {
            "resident MiB": statistics.median(one.resident for one in bare),
            "anonymous MiB": statistics.median(one.anonymous for one in bare),
        }
    }
    with gateway() as (envoy, _):
        for name in (GHEALTH, STOCK, FLOOR, GO):
            with running(name, envoy.url) as contender:
                at_start = reading.memory_of(contender.pid)
                loads.storm(contender.port, 1000)
                warm = reading.memory_of(contender.pid)
                loads.storm(contender.port, _MEMORY_STORM)
                after = reading.memory_of(contender.pid)
                row[name] = {
                    "resident MiB": at_start.resident,
                    "anonymous MiB": at_start.anonymous,
                    "MiB more after 100,000 checks": after.resident - warm.resident,
                }
                if name in (GHEALTH, STOCK):
                    with watching(contender.port, max(_WATCHERS)):
                        watched = reading.memory_of(contender.pid).resident
                    row[name]["MiB more with 100 watchers"] = watched - after.resident
    return row


def starting(rounds: int) -> Row:
    """6: from exec to the first SERVING, beside the bare imports of the five packages."""
    bare = "bare imports"
    with gateway() as (envoy, _):

        def once(name: str) -> dict[str, float]:
            started = time.perf_counter()
            if name == bare:
                command = [contenders.PYTHON, "-c", contenders.BARE_IMPORTS]
                subprocess.run(command, check=True)
                return {"ms": (time.perf_counter() - started) * 1e3}
            contender = contenders.start(name, envoy.url)
            try:
                while not contenders.answers(contender):
                    time.sleep(0.002)
                return {"ms": (time.perf_counter() - started) * 1e3}
            finally:
                contender.process.kill()
                contender.process.wait()

        found = by_turns((GHEALTH, bare, FLOOR, GO), rounds * 2, once)
        return medians(found, (bare, FLOOR))


def idle(_rounds: int) -> Row:
    """7: wake-ups and CPU with nobody asking."""
    names = (GHEALTH, FLOOR, STOCK, GO)
    row: Row = {}
    with gateway() as (envoy, _), all_running(names, envoy.url) as made:
        time.sleep(2.0)
        before = {n: (reading.wake_ups(c.pid), reading.cpu(c.pid)) for n, c in made.items()}
        time.sleep(_IDLE)
        for name, contender in made.items():
            woken, used = before[name]
            row[name] = {
                "wake-ups a second": (reading.wake_ups(contender.pid) - woken) / _IDLE,
                "CPU ms a second": (reading.cpu(contender.pid) - used) / _IDLE * 1e3,
            }
    return row


def real_rate(rounds: int) -> Row:
    """7: ten checks a second, each on a new connection, as many ALB nodes make."""
    names = (GHEALTH, FLOOR, STOCK, GO)
    with gateway() as (envoy, _), all_running(names, envoy.url) as made:

        def once(name: str) -> dict[str, float]:
            used, checks = reading.cpu(made[name].pid), int(_REAL * _RATE)
            for _number in range(checks):
                loads.check(made[name].port)
                time.sleep(1 / _RATE)
            return {"CPU ms a check": (reading.cpu(made[name].pid) - used) / checks * 1e3}

        return medians(by_turns(names, rounds, once), (FLOOR, GO))


@contextmanager
def watching(port: int, watchers: int) -> Iterator[None]:
    """Watch until the end of the block, each watcher having had its first message."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        calls = [stub.Watch(health_pb2.HealthCheckRequest()) for _ in range(watchers)]
        for call in calls:
            next(call)
        yield
        for call in calls:
            call.cancel()


def watched(_rounds: int) -> Row:
    """8: what watchers cost, by their number."""
    row: Row = {}
    for name in (GHEALTH, STOCK):
        row[name] = {}
        with gateway() as (envoy, agent), running(name, envoy.url) as contender:
            for number in _WATCHERS:
                with watching(contender.port, number):
                    asked, used = agent.asked, reading.cpu(contender.pid)
                    time.sleep(_REAL)
                    used = reading.cpu(contender.pid) - used
                    row[name][f"CPU ms a second, {number}"] = used / _REAL * 1e3
                    row[name][f"requests a second, {number}"] = (agent.asked - asked) / _REAL
    return row


ROWS: Final[dict[str, Callable[[int], Row]]] = {
    "1 storm": storm,
    "2 a new connection a check": albs_shape,
    "3 gateway takes 20 ms": lambda rounds: albs_shape(rounds, 0.02, 60),
    "3 gateway takes 1 s": lambda rounds: albs_shape(min(rounds, 2), 1.0, 3),
    "3 gateway hangs": lambda rounds: hanging(min(rounds, 3)),
    "4 requests at the gateway": requests,
    "5 memory": memory,
    "6 start": starting,
    "7 idle": idle,
    "7 ten checks a second": lambda rounds: real_rate(min(rounds, 4)),
    "8 watchers": watched,
}
