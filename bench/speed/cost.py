"""The cost of the admin port: checks a second, CPU and memory without it and with it.

The load is h2load (Debian's nghttp2-client). Both are measured alternately in separate processes;
the results are medians, and ratios of neighbouring rounds. With --hostile: how much 100,000 checks
with as many user agents add to the metrics and the memory.
"""

import argparse
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import h2.connection
import h2.events

from tests.support.gateway import Agent

TIMEOUT = 60.0
SECONDS, WARM_UP = 4, 1
CHECK = "/grpc.health.v1.Health/Check"
MESSAGE = b"\0\0\0\0\0"
USER_AGENT = "ELB-HealthChecker/2.0"
TICKS = os.sysconf("SC_CLK_TCK")
HOSTILE = 100_000
AT_A_TIME = 50


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one round.

    Args:
        rate: Checks a second.
        cpu: Microseconds of CPU for a check.
        memory: MiB resident afterwards.
    """

    rate: float
    cpu: float
    memory: float


class Ghealth:
    """A running ghealth.

    Args:
        process: Its process.
        port: The gRPC port.
        admin_port: The admin port, None without.
    """

    def __init__(self, process: "subprocess.Popen[str]", port: int, admin_port: int | None) -> None:
        self.process = process
        self.port = port
        self.admin_port = admin_port

    def memory(self) -> float:
        """Return its resident memory in MiB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+)", status)
        return int(found[1]) / 1024 if found else 0.0

    def cpu(self) -> float:
        """Return the seconds of CPU that it has used."""
        parts = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(parts[11]) + int(parts[12])) / TICKS

    def get(self, path: str) -> bytes:
        """Send a request to the admin port."""
        url = f"http://127.0.0.1:{self.admin_port}{path}"
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            content: bytes = response.read()
        return content


@contextmanager
def ghealth(agent: Agent, *, program: str, on: bool) -> Iterator[Ghealth]:
    """Run a ghealth beside a gateway that is ready.

    Args:
        agent: The gateway.
        program: The command.
        on: Whether it has the admin port.
    """
    kept = {name: value for name, value in os.environ.items() if name[:8] != "GHEALTH_"}
    settings = {
        "GHEALTH_LISTEN": "127.0.0.1:0",
        "GHEALTH_PROBE_URL": f"http://127.0.0.1:{agent.port}/healthz/ready",
        "GHEALTH_LOG_FORMAT": "json",
        "GHEALTH_ADMIN_LISTEN": "127.0.0.1:0" if on else "off",
    }
    process = subprocess.Popen([program], env=kept | settings, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None  # noqa: S101 - it is piped
        started = json.loads(process.stdout.readline())
        port, admin_port = (
            int(started[key][0].rpartition(":")[2]) if started.get(key) else None
            for key in ("listen", "admin_listen")
        )
        assert port is not None  # noqa: S101 - it listens
        yield Ghealth(process, port, admin_port)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(TIMEOUT)


def measured(agent: Agent, *, program: str, on: bool, body: str) -> Cost:
    """Measure one round."""
    with ghealth(agent, program=program, on=on) as server:

        def load(seconds: int) -> int:
            h2load = shutil.which("h2load") or sys.exit("no h2load: apt-get install nghttp2-client")
            said = subprocess.run(
                [
                    h2load,
                    f"--duration={seconds}",
                    "--clients=4",
                    "--max-concurrent-streams=8",
                    f"--data={body}",
                    "--header=content-type: application/grpc",
                    "--header=te: trailers",
                    f"--header=user-agent: {USER_AGENT}",
                    f"http://127.0.0.1:{server.port}{CHECK}",
                ],
                capture_output=True,
                text=True,
                check=True,
                timeout=TIMEOUT,
            ).stdout
            found = re.search(r"(\d+) succeeded, (\d+) failed", said)
            assert found is not None, said  # noqa: S101 - h2load's report
            assert found[2] == "0", said  # noqa: S101
            return int(found[1])

        load(WARM_UP)
        if on:
            for path in ("/", "/metrics", "/history.json"):
                server.get(path)
        before = server.cpu()
        count = load(SECONDS)
        return Cost(count / SECONDS, (server.cpu() - before) / count * 1e6, server.memory())


def compare(rounds: int, variants: dict[str, tuple[str, bool]]) -> None:
    """Measure variants alternately, and print medians and ratios to the first."""
    costs: dict[str, list[Cost]] = {name: [] for name in variants}
    with Agent() as agent, tempfile.NamedTemporaryFile() as body:
        body.write(MESSAGE)
        body.flush()
        for number in range(rounds):
            order = list(variants.items())
            for name, (program, on) in order if number % 2 else reversed(order):
                costs[name].append(measured(agent, program=program, on=on, body=body.name))
    first = costs[next(iter(variants))]
    for name, found in costs.items():
        rate, cpu, memory = (
            statistics.median(getattr(cost, what) for cost in found)
            for what in ("rate", "cpu", "memory")
        )
        ratios = sorted(cost.rate / base.rate for cost, base in zip(found, first, strict=True))
        print(
            f"{name:10} {rate:7.0f} checks/s  {cpu:6.1f} us CPU a check  {memory:6.1f} MiB   "
            f"checks/s to the first: {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f})"
        )


def hostile(program: str) -> None:
    """Check with always new user agents, and print the growth."""
    with Agent() as agent, ghealth(agent, program=program, on=True) as server:
        flood(server.port, 0, 1000)
        before = server.get("/metrics")
        memory = server.memory()
        flood(server.port, 1000, HOSTILE)
        after = server.get("/metrics")
        for name, said in (("before", before), ("after", after)):
            checks = sum(line.startswith(b"ghealth_checks_total{") for line in said.splitlines())
            print(f"{name}: {len(said.splitlines())} lines, {checks} series of checks")
        print(f"memory: {memory:.1f} MiB, then {server.memory():.1f} MiB")
        print(f"history.json: {len(server.get('/history.json'))} bytes")


def flood(port: int, first: int, last: int) -> None:
    """Send Checks on one connection, each with another user agent and service."""
    connection = h2.connection.H2Connection()
    connection.initiate_connection()
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as peer:
        stream, number, under_way = 1, first, 0
        while number < last or under_way:
            while number < last and under_way < AT_A_TIME:
                beginning = ("", "ELB-HealthChecker/", "kube-probe/", "Envoy/HC", "grpc-")[
                    number % 5
                ]
                connection.send_headers(
                    stream,
                    [
                        (":method", "POST"),
                        (":scheme", "http"),
                        (":path", CHECK),
                        (":authority", "x"),
                        ("content-type", "application/grpc"),
                        ("te", "trailers"),
                        ("user-agent", f'{beginning}{number}"}} {{\\ <script>{number}'),
                    ],
                )
                name = f"s{number}".encode()
                message = b"\x0a" + bytes([len(name)]) + name if number % 2 else b""
                data = b"\0" + len(message).to_bytes(4, "big") + message
                connection.send_data(stream, data, end_stream=True)
                stream, number, under_way = stream + 2, number + 1, under_way + 1
            peer.sendall(connection.data_to_send())
            for event in connection.receive_data(peer.recv(1 << 16)):
                under_way -= isinstance(event, h2.events.StreamEnded)
                if isinstance(event, h2.events.DataReceived):
                    connection.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7, help="of each (7)")
    parser.add_argument("--hostile", action="store_true", help="100,000 user agents instead")
    parser.add_argument("--before", help="another ghealth to compare with, by its command")
    arguments = parser.parse_args()
    program = str(Path(sys.prefix) / "bin" / "ghealth")
    if arguments.hostile:
        hostile(program)
        return
    variants = {"off": (program, False), "on": (program, True)}
    if arguments.before:
        variants = {"before": (arguments.before, False), **variants}
    compare(arguments.rounds, variants)


if __name__ == "__main__":
    main()
