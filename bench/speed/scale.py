"""How the cost of ghealth grows with services, watches, waiting checks and connections."""

import json
import time
from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from bench.speed import figures, loads
from bench.speed.contenders import GHEALTH, Contender, running
from bench.speed.figures import Medians, by_turns, medians
from bench.speed.gateways import ALONE, HANG, Gateway, gateway
from tests.support.frames import CHECK

CPU, RESIDENT, REQUESTS = "CPU ms a second", "resident MiB", "requests a second"
_WINDOW: Final = 6.0
_SETTLE: Final = 1.5
_LONG_PROBE: Final = 12.0
"""PROBE_TIMEOUT while 10,000 checks start one after the other."""


class ScaleKind(NamedTuple):
    """Something whose number grows.

    Args:
        title: The heading of its table.
        numbers: The numbers that are measured, beside 0.
        measure: Measures one number with a gateway.
    """

    title: str
    numbers: tuple[int, ...]
    measure: Callable[[Gateway, int], dict[str, float]]


def _over_time(contender: Contender, envoy: Gateway) -> dict[str, float]:
    time.sleep(_SETTLE)
    used, asked = figures.cpu(contender.pid), envoy.requests()
    time.sleep(_WINDOW)
    return {
        CPU: (figures.cpu(contender.pid) - used) / _WINDOW * 1e3,
        RESIDENT: figures.resident(contender.pid),
        REQUESTS: (envoy.requests() - asked) / _WINDOW,
    }


def _watched(envoy: Gateway, names: Sequence[str], **settings: str) -> dict[str, float]:
    with (
        running(GHEALTH, envoy.url, **settings) as contender,
        loads.watching(contender.port, names),
    ):
        return _over_time(contender, envoy)


def services(envoy: Gateway, number: int) -> dict[str, float]:
    """Measure a number of services with a target and a watch each."""
    targets = {f"service-{index}": envoy.url for index in range(number)}
    return _watched(envoy, [*targets], SERVICES=json.dumps(targets), MAX_WATCHES="1000")


def watches(envoy: Gateway, number: int) -> dict[str, float]:
    """Measure a number of watches of the gateway, 24 on a connection."""
    return _watched(envoy, [""] * number, MAX_WATCHES="2000")


def waiting_checks(envoy: Gateway, number: int) -> dict[str, float]:
    """Measure checks that wait for one probe of a gateway that hangs.

    The limit of calls under way grows with MAX_WATCHES, which is raised for that.

    Raises:
        RuntimeError: If one was refused instead.
    """
    settings = {"PROBE_TIMEOUT": f"{_LONG_PROBE}", "MAX_WATCHES": f"{number}"}
    envoy.delay(0)
    with running(GHEALTH, envoy.url, **settings) as contender:
        envoy.delay(_LONG_PROBE + HANG)
        time.sleep(_SETTLE)
        used, begin = figures.cpu(contender.pid), time.perf_counter()
        with loads.waiting(contender.port, number) as opened:
            time.sleep(max(0.0, begin + _LONG_PROBE - 0.2 - time.perf_counter()))
            resident = figures.resident(contender.pid)
            first, last = loads.answers(opened, number)
            if number and first - begin < _LONG_PROBE - 0.1:
                raise RuntimeError(f"a check was refused after {first - begin:.1f} s")
        return {
            "CPU ms in all": (figures.cpu(contender.pid) - used) * 1e3,
            RESIDENT: resident,
            "last answer, ms after PROBE_TIMEOUT": max(0.0, last - begin - _LONG_PROBE) * 1e3,
        }


def connections(envoy: Gateway, number: int) -> dict[str, float]:
    """Measure open connections that have made a check each, and a check beside them."""
    with (
        running(GHEALTH, envoy.url) as contender,
        loads.connections(contender.port, number) as opened,
    ):
        for connection in opened:
            connection.call(CHECK, [b""])
        loads.answers(opened, number)
        found = _over_time(contender, envoy)
        del found[REQUESTS]
        cpu = loads.cpu_of_checks(*contender, 200)
        return found | {"CPU us a check on a new connection": cpu * 1e6}


SCALES: Final[dict[str, ScaleKind]] = {
    "services": ScaleKind("Services, each watched by one client", (1, 10, 100), services),
    "watches": ScaleKind("Watches of the gateway", (1, 10, 100, 1000), watches),
    "waiting": ScaleKind("Checks that wait for one probe", (10, 100, 1000, 10_000), waiting_checks),
    "connections": ScaleKind("Open connections", (10, 100, 700), connections),
}


def measured(name: str, rounds: int) -> Medians:
    """Measure each number of one of `SCALES` alternately, and return the medians.

    Those of 0 are the cost of none.
    """
    kind = SCALES[name]
    with gateway(ALONE) as envoy:
        numbers, counted = [*map(str, (0, *kind.numbers))], range(1, rounds + 1)
        return medians(by_turns(numbers, counted, lambda number: kind.measure(envoy, int(number))))
