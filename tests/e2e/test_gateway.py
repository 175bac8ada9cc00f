"""ghealth beside a real Envoy with Istio's readiness listener, in each state a gateway can be in.

The states are those of a gateway pod as pilot-agent and Envoy produce them: Envoy not up, not
ready, ready, draining with the agent connected, draining with the agent gone, killed, hanging.
"""

import asyncio
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth import process
from tests.support import processes, wire
from tests.support.gateway import READY, SICK, SILENT, Agent, Gateway, gateway
from tests.support.stopwatch import Stopwatch

TIMEOUT = 3.0  # the default: long enough for a gateway that is ready, on any machine
SERVING, NOT_SERVING = 1, 2


@contextmanager
def asking(port: int) -> Iterator[Any]:
    """Yield the stub of a caller that keeps its connection."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        grpc.channel_ready_future(channel).result(processes.TIMEOUT)
        yield health_pb2_grpc.HealthStub(channel)


def status_of(stub: Any, service: str = "") -> int:
    """Check, and return the status."""
    request = health_pb2.HealthCheckRequest(service=service)
    status: int = stub.Check(request, timeout=processes.TIMEOUT).status
    return status


@dataclass
class Scene:
    """An Envoy, its agent, a ghealth that probes at every check, and a caller."""

    envoy: Gateway
    agent: Agent
    ghealth: processes.Server
    stub: Any

    def concludes(self, status: int, reason: str | None = None) -> float:
        """Check, and assert the answer, its time and, if the status changed, its reason.

        Returns:
            The seconds that the answer took.
        """
        assert self.envoy.process is not None
        taking = Stopwatch(self.ghealth.process.pid, self.envoy.process.pid)
        assert status_of(self.stub) == status
        assert taking.seconds < TIMEOUT + 0.2
        took = taking.on_the_wall
        assert status_of(self.stub, "liveness") == SERVING
        if reason is not None:
            assert self.ghealth.next("status_changed")["reason"] == reason
        return took


@pytest.fixture
def scene() -> Iterator[Scene]:
    with (
        gateway() as (envoy, agent),
        processes.server(
            PROBE_URL=envoy.url, CACHE_TTL="0", PROBE_TIMEOUT=str(TIMEOUT), WATCH_INTERVAL="0.05"
        ) as ghealth,
        asking(ghealth.port) as stub,
    ):
        yield Scene(envoy, agent, ghealth, stub)


def test_the_states_of_a_gateways_life(scene: Scene) -> None:
    """Not up, not ready, ready, draining, killed, up again: each is reported correctly in time."""
    scene.envoy.stop()
    scene.concludes(NOT_SERVING, "connection refused")
    scene.agent.state = SICK
    scene.envoy.start()
    scene.concludes(NOT_SERVING)
    assert scene.ghealth.next("reason_changed")["reason"] == "gateway answered 503"
    scene.agent.state = READY
    scene.concludes(SERVING, "gateway answered 200")
    scene.agent.state = SICK
    scene.concludes(NOT_SERVING, "gateway answered 503")
    scene.agent.state = READY
    scene.concludes(SERVING, "gateway answered 200")
    scene.agent.stop()
    scene.concludes(NOT_SERVING, "gateway answered 503")
    scene.envoy.stop()
    scene.concludes(NOT_SERVING)


def test_a_gateway_that_hangs(scene: Scene) -> None:
    """An agent or an Envoy that never answers is NOT_SERVING at PROBE_TIMEOUT, later SERVING."""
    assert scene.envoy.process is not None
    scene.concludes(SERVING)
    scene.agent.state = SILENT
    assert scene.concludes(NOT_SERVING) > TIMEOUT - 0.01
    scene.agent.state = READY
    scene.concludes(SERVING)
    scene.envoy.process.send_signal(signal.SIGSTOP)
    assert scene.concludes(NOT_SERVING) > TIMEOUT - 0.01
    scene.envoy.process.send_signal(signal.SIGCONT)
    scene.concludes(SERVING)


def test_watch_follows_the_gateway(scene: Scene) -> None:
    """A Watch sends each change of the gateway, and drain."""
    watching = scene.stub.Watch(health_pb2.HealthCheckRequest(), timeout=processes.TIMEOUT)
    assert next(watching).status == SERVING
    for state, status in [(SICK, NOT_SERVING), (READY, SERVING)]:
        scene.agent.state = state
        assert next(watching).status == status
    scene.ghealth.process.send_signal(signal.SIGTERM)
    assert next(watching).status == NOT_SERVING


def test_an_envoy_that_was_drained_by_hand() -> None:
    """With Envoy's admin `/ready` as a second URL, `/healthcheck/fail` makes the pod not serving.

    15021 stays 200 after it (istio/istio#38065).
    """
    with gateway() as (envoy, _):
        admin = f"http://localhost:{envoy.admin_port}"
        urls = f"{envoy.url}, {admin}/ready"
        with (
            processes.server(PROBE_URL=urls, CACHE_TTL="0", PROBE_TIMEOUT="20") as ghealth,
            asking(ghealth.port) as stub,
        ):
            assert status_of(stub) == SERVING
            assert ghealth.next("status_changed")["reason"] == "gateway answered 200"
            httpx.post(f"{admin}/healthcheck/fail", trust_env=False).raise_for_status()
            assert httpx.get(envoy.url, trust_env=False).status_code == 200
            assert status_of(stub) == NOT_SERVING
            changed = ghealth.next("status_changed")
            assert changed["reason"] == "probe 2 of 2: gateway answered 503"
            reply = asyncio.run(wire.call(ghealth.port, wire.EMPTY_MESSAGE))
            assert (reply.code, reply.headers["grpc-message"]) == (14, changed["reason"])
            httpx.post(f"{admin}/healthcheck/ok", trust_env=False).raise_for_status()
            assert status_of(stub) == SERVING


SILENT_NAME_SERVER = """
import os, socket, sys
silent = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
silent.bind(("127.0.0.1", 53))
silent.set_inheritable(True)
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_a_silent_name_server_holds_up_nothing(tmp_path: Path) -> None:
    """While a look-up hangs, answers come in time and the end does not wait for it."""
    resolver = tmp_path / "resolv.conf"
    resolver.write_text("nameserver 127.0.0.1\noptions timeout:30\n")
    script = f"ip link set lo up && mount --bind {resolver} /etc/resolv.conf"
    alone = processes.in_namespaces("--net", "--mount", script=script)
    alone += (sys.executable, "-c", SILENT_NAME_SERVER)
    url = "http://gateway.example:15021/"
    with processes.server(*alone, PROBE_URL=url, PROBE_TIMEOUT="0.5") as ghealth:
        assert ghealth.check_inside().returncode == 4
        assert ghealth.next("status_changed")["reason"] == "no answer within 0.5 s"
        started = time.monotonic()
        assert ghealth.ended_by(signal.SIGINT) == 0
        assert time.monotonic() - started < 15


def test_a_stopped_and_continued_process_serves_nothing_stale() -> None:
    """Trap 11: an answer from before a SIGSTOP is not served after the SIGCONT."""
    with (
        gateway() as (envoy, agent),
        processes.server(PROBE_URL=envoy.url, PROBE_TIMEOUT="20", CACHE_TTL="1") as ghealth,
        asking(ghealth.port) as stub,
    ):
        assert status_of(stub) == SERVING
        ghealth.process.send_signal(signal.SIGSTOP)
        agent.state = SICK
        time.sleep(1.1)  # no test can advance the machine's clock
        ghealth.process.send_signal(signal.SIGCONT)
        assert status_of(stub) == NOT_SERVING


async def test_a_message_that_came_while_it_was_stopped_is_nobody_elses() -> None:
    """Trap 11: a SIGSTOP can use up the time of a message, but not turn it into another request.

    The caller asks about `liveness`, and must never get the answer of the gateway.
    """
    request = health_pb2.HealthCheckRequest(service="liveness").SerializeToString()
    with processes.server(PROBE_URL="http://127.0.0.1:1/") as ghealth:
        await wire.call(ghealth.port, wire.EMPTY_MESSAGE)
        asking = asyncio.create_task(wire.call(ghealth.port, wire.framed(request), late=1.3))
        await asyncio.sleep(0.2)  # its headers have come
        ghealth.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(1.3)  # so has its message
        ghealth.process.send_signal(signal.SIGCONT)
        reply = await asking
    answer = (reply.code, reply.data, reply.headers.get("ghealth-reason"))
    assert answer in [(0, b"\0\0\0\0\2\x08\1", None), (3, b"", "no message within 1 s")]


def test_the_limit_of_descriptors_is_raised() -> None:
    """Trap 12: the soft limit is raised at the start, and memory is enough for all of them."""
    with processes.server(*processes.limiting("-S -n 128")) as ghealth:
        lines = Path(f"/proc/{ghealth.process.pid}/limits").read_text().splitlines()
    (soft, hard) = next(line.split()[3:5] for line in lines if line.startswith("Max open files"))
    assert int(soft) == min(int(hard), process.MAX_DESCRIPTORS) > 128
