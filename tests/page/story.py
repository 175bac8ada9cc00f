"""Running ghealths with some history, for a look at their status pages."""

import asyncio
import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from grpc_health.v1 import health_pb2

from tests.support import wire
from tests.support.gateway import Agent
from tests.support.processes import server

EVIL = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"


def check(port: int, user_agent: str, service: str = "") -> None:
    """Check a service as this caller."""
    message = wire.framed(health_pb2.HealthCheckRequest(service=service).SerializeToString())
    asyncio.run(wire.call(port, message, headers=[("user-agent", user_agent)]))


@contextmanager
def story(
    *states: str, services: int = 0, drains: bool = False, hostile: bool = False
) -> Iterator[str]:
    """Run a ghealth beside a gateway that has these states in turn, and let callers check it.

    Args:
        states: The states of the gateway.
        services: The number of further services, all serving.
        drains: Whether it drains in the end.
        hostile: Whether a caller sends HTML as its name.

    Yields:
        The address of its status page.
    """
    with Agent() as agent, Agent() as other:
        more = {f"service-{n}": f"http://127.0.0.1:{other.port}/{n}" for n in range(services)}
        with server(
            ADMIN_LISTEN="127.0.0.1:0",
            PROBE_URL=f"http://user:s3cr3t@127.0.0.1:{agent.port}/healthz/ready",
            SERVICES=json.dumps(more),
            CACHE_TTL="0",
            DRAIN_DELAY="60",
        ) as ghealth:
            if hostile:
                check(ghealth.port, EVIL, service=EVIL)
            for number, agent.state in enumerate(states):
                check(ghealth.port, "ELB-HealthChecker/2.0")
                check(ghealth.port, "kube-probe/1.34 grpc-go/1.72.2", "liveness")
                check(ghealth.port, "Envoy/HC")
                if number == 0:
                    check(ghealth.port, "grpc-go/1.70.0")  # and never again
            if drains:
                ghealth.process.send_signal(signal.SIGTERM)
                ghealth.next("draining")
            yield f"http://127.0.0.1:{ghealth.admin_port}/"
