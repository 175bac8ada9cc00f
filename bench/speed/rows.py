"""The measurements: a section of docs/performance.md for each row, in the page's order."""

import json
import math
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

import trustme

from bench.speed import contenders, figures, loads
from bench.speed.contenders import BARE, CAREFUL, FLOOR, FRESH, GHEALTH, SIMPLE, STOCK, Contender
from bench.speed.figures import RATIOS, Found, Row, by_turns, medians, percentile, ratios
from bench.speed.gateways import ALONE, BUILD, GATEWAYS, HANG, Gateway, gateway
from tests.support.certificates import CERT, KEY, Mounted, pair_of
from tests.support.gateway import free_port
from tests.support.processes import environment

STORM: Final = 5000

Rounds = Iterable[int]
Figures = dict[str, float]

Measure = Callable[[Gateway, Sequence[str], Rounds], Found]
"""Measures contenders with a gateway, in a number of rounds."""


class RowKind(NamedTuple):
    """A row.

    Args:
        title: The heading of its section.
        measure: Measures it.
        names: The contenders, ghealth first; other versions of it take part as well.
        gateways: The kinds of gateway it is measured with.
        rounds: Its rounds for each one asked for: long rows get fewer.
        warm_up: Whether a round that does not count comes first.
    """

    title: str
    measure: Measure
    names: tuple[str, ...]
    gateways: tuple[str, ...] = (ALONE,)
    rounds: float = 1.0
    warm_up: bool = True


def _together(once: Callable[[Contender], Figures], delay: float = 0.0, **settings: str) -> Measure:
    """Create a measurement of contenders that run at the same time behind one gateway.

    Args:
        once: Measures one of them once.
        delay: Seconds that the gateway takes to answer.
        settings: ghealth's settings.
    """

    def measure(envoy: Gateway, names: Sequence[str], rounds: Rounds) -> Found:
        with contenders.all_running(names, envoy.url, **settings) as programs:
            envoy.delay(delay)
            return by_turns(names, rounds, lambda name: once(programs[name]))

    return measure


def _checks(contender: Contender, number: int = 1000) -> Figures:
    """Measure checks one after the other, a new connection for each."""
    begin = time.perf_counter()
    took = [loads.check(contender.port) for _ in range(number)]
    seconds = time.perf_counter() - begin
    return {
        "median ms": percentile(took, 50) * 1e3,
        "p99 ms": percentile(took, 99) * 1e3,
        "checks a second": number / seconds,
    }


def _hundred(contender: Contender) -> Figures:
    """Measure fewer of them, for contenders that take long."""
    return _checks(contender, 100)


def _ten(contender: Contender) -> Figures:
    """Measure ten checks a second, each on a new connection, as many nodes of an ALB make."""
    return {"CPU ms a check": loads.cpu_of_checks(*contender, 50, pause=0.1) * 1e3}


def _storm(contender: Contender) -> Figures:
    """Measure checks on ten shared connections, 40 at a time."""
    used = figures.cpu(contender.pid)
    rate = loads.storm(contender.port, STORM)
    used = figures.cpu(contender.pid) - used
    return {"checks a second": rate, "CPU us a check": used / STORM * 1e6}


def idle(envoy: Gateway, names: Sequence[str], rounds: Rounds) -> Found:
    """Measure CPU and wake-ups of all without any caller, from 5 s after all programs answer.

    ghealth's guard inspects connections often for 4 s after the last new one, and the checks that
    waited for the programs were such connections.
    """
    found: Found = {name: {"CPU ms a second": [], "wake-ups a second": []} for name in names}
    seconds = 10
    with contenders.all_running(names, envoy.url) as programs:
        time.sleep(5)
        for _ in rounds:
            before = {
                pid: (figures.cpu(pid), figures.wake_ups(pid)) for pid, _ in programs.values()
            }
            time.sleep(seconds)
            for name, (pid, _) in programs.items():
                used, woken = before[pid]
                cpu, wake_ups = found[name].values()
                cpu.append((figures.cpu(pid) - used) / seconds * 1e3)
                wake_ups.append((figures.wake_ups(pid) - woken) / seconds)
    return found


def memory(envoy: Gateway, names: Sequence[str], rounds: Rounds) -> Found:
    """Measure resident memory at the start, and after checks, watches and clients that leave."""

    def once(name: str) -> Figures:
        envoy.delay(0)
        with contenders.running(name, envoy.url) as contender:
            found = {"resident MiB": figures.resident(contender.pid)}
            loads.storm(contender.port, 10_000)
            before = figures.resident(contender.pid)
            loads.storm(contender.port, 100_000)
            found["MiB more after 100,000 checks"] = figures.resident(contender.pid) - before
            if name in (GHEALTH, STOCK, *contenders.others):
                with loads.watching(contender.port, [""] * 100):
                    pass
            envoy.delay(HANG)
            time.sleep(1.5)  # longer than CACHE_TTL
            for rate in (400.0, math.inf):
                loads.leave(contender.port, 10_000, rate)
                time.sleep(17)  # until ghealth has returned the memory to the system
            found["resident MiB at the end"] = figures.resident(contender.pid)
            return found

    return by_turns(names, rounds, once)


def starting(envoy: Gateway, names: Sequence[str], rounds: Rounds) -> Found:
    """Measure the time from exec to the first answer, beside that of the bare imports."""

    def once(name: str) -> Figures:
        begin = time.perf_counter()
        if name == BARE:
            command = [contenders.PYTHON, "-I", "-c", contenders.BARE_IMPORTS]
            subprocess.run(command, check=True)
            return {"ms": (time.perf_counter() - begin) * 1e3}
        with contenders.running(name, envoy.url):
            return {"ms": (time.perf_counter() - begin) * 1e3}

    return by_turns(names, rounds, once)


CHECK_ALONE, PROBE = "ghealth check", "grpc-health-probe"
CHECK_ADDR, CHECK_TLS = f"{CHECK_ALONE} --addr", f"{CHECK_ALONE} --tls"

# The memory of a command is the most that it had resident. The kernel counts that of the program
# which started it as well (execve keeps ru_maxrss), so a small one starts it.
_LAUNCHER: Final = """
import json, os, resource, sys, time
begin = time.perf_counter()
quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
_, code = os.waitpid(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet), 0)
took, used = time.perf_counter() - begin, resource.getrusage(resource.RUSAGE_CHILDREN)
cpu = used.ru_utime + used.ru_stime
print(json.dumps({"ms": took * 1e3, "CPU ms": cpu * 1e3, "MiB": used.ru_maxrss / 1024}))
sys.exit(code != 0)
"""


def command(envoy: Gateway, names: Sequence[str], rounds: Rounds) -> Found:
    """Measure one check by a command, as an exec probe makes it."""
    authority, tls_port = trustme.CA(), free_port()
    with tempfile.TemporaryDirectory() as folder:
        Mounted(Path(folder) / "tls", pair_of(authority))
        authority.cert_pem.write_to_path(f"{folder}/ca.pem")
        tls = {"TLS_LISTEN": f"127.0.0.1:{tls_port}"}
        tls |= {"TLS_CERT_FILE": f"{folder}/tls/{CERT}", "TLS_KEY_FILE": f"{folder}/tls/{KEY}"}
        with contenders.running(GHEALTH, envoy.url, **tls) as server:
            address = f"127.0.0.1:{server.port}"
            secure = [f"--addr=127.0.0.1:{tls_port}", "--tls", f"--tls-ca-cert={folder}/ca.pem"]
            flags = {CHECK_ALONE: [], CHECK_TLS: secure, PROBE: [f"-addr={address}"]}

            def once(name: str) -> Figures:
                python = contenders.others.get(name, contenders.PYTHON)
                program = [python, "-I", "-m", "ghealth", "check"]
                line = [contenders.PYTHON, "-I", "-S", "-c", _LAUNCHER]
                line += [str(BUILD / PROBE)] if name == PROBE else program
                line += flags.get(name, ["--addr", address])
                done = subprocess.check_output(line, env=environment(LISTEN=address))
                found: Figures = json.loads(done)
                return found

            return by_turns(names, rounds, once)


_BRIDGES: Final = (GHEALTH, FLOOR, CAREFUL, FRESH, SIMPLE)
_SERVERS: Final = (*_BRIDGES, STOCK)
_SOME: Final = (GHEALTH, FLOOR, CAREFUL, STOCK)

ROWS: Final[dict[str, RowKind]] = {
    "cold": RowKind(
        "A check that finds no fresh result: a new connection and a probe",
        _together(_checks, CACHE_TTL="0"),
        _BRIDGES,
        GATEWAYS,
    ),
    "connection": RowKind(
        "A check that finds a fresh result, on a new connection",
        _together(_checks),
        _SERVERS,
        GATEWAYS,
    ),
    "slow": RowKind("A gateway that takes 20 ms", _together(_hundred, delay=0.02), _SERVERS),
    "ten": RowKind("Ten checks a second", _together(_ten), _SOME, GATEWAYS, rounds=0.5),
    "idle": RowKind("No caller", idle, _SOME, rounds=0.5, warm_up=False),
    "command": RowKind(
        "One check by a command", command, (CHECK_ADDR, CHECK_ALONE, CHECK_TLS, PROBE)
    ),
    "memory": RowKind("Memory", memory, _SOME, rounds=0.25, warm_up=False),
    "start": RowKind("Start", starting, (GHEALTH, BARE, FLOOR, CAREFUL, STOCK), rounds=2.0),
    "storm": RowKind(
        "A storm on shared connections, which no ALB makes", _together(_storm), _SERVERS, GATEWAYS
    ),
}
"""By the names that `--rows` takes."""


def measured(name: str, rounds: int) -> dict[str, Row]:
    """Measure a row with each of its gateways.

    Args:
        name: One of `ROWS`.
        rounds: The rounds asked for.
    """
    kind = ROWS[name]
    names = (kind.names[0], *contenders.others, *kind.names[1:])
    count = max(1, round(rounds * kind.rounds))
    results: dict[str, Row] = {}
    for gateway_kind in kind.gateways:
        with gateway(gateway_kind) as envoy:
            found = kind.measure(envoy, names, range(1 - kind.warm_up, count + 1))
        results[gateway_kind] = {**medians(found), RATIOS: ratios(found, names[0])}
    return results
