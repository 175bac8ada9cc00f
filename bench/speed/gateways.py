"""The gateways of the bench: a real Envoy that answers by itself, or with an agent behind it.

Both are separate processes. Envoy alone is the fastest possible gateway, which favours peers
that probe at every check. With a compiled agent behind Envoy's readiness listener, like
pilot-agent, a probe costs as much as in a pod of Istio.
"""

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from tests.support.gateway import ENVOY, envoy_config, free_port, listens, wait_until

ROOT: Final = Path(__file__).parents[2]
BUILD: Final = ROOT / "build" / "peers"
"""Where `make bench` builds the Go programs."""

ALONE, WITH_AGENT = "Envoy alone", "Envoy and an agent"
GATEWAYS: Final = (ALONE, WITH_AGENT)
"""The one that is worse for ghealth comes first."""

HANG: Final = 3600.0
"""A delay that no caller waits for."""

_FAULT: Final = "type.googleapis.com/envoy.extensions.filters.http.fault.v3.HTTPFault"


class Gateway:
    """A gateway that runs.

    Args:
        port: The port of its readiness listener.
        admin_port: The port of Envoy's admin endpoint.
    """

    def __init__(self, port: int, admin_port: int) -> None:
        self.url = f"http://localhost:{port}/healthz/ready"
        self._admin = httpx.Client(base_url=f"http://127.0.0.1:{admin_port}", trust_env=False)

    def delay(self, seconds: float) -> None:
        """Answer later requests after this time."""
        delay = {
            "fault.http.delay.fixed_delay_percent": 100 if seconds else 0,
            "fault.http.delay.fixed_duration_ms": round(seconds * 1000),
        }
        self._admin.post("/runtime_modify", params=delay).raise_for_status()

    def requests(self) -> int:
        """Return the number of requests so far."""
        stat = self._admin.get("/stats", params={"filter": "^http.agent.downstream_rq_total$"})
        return int(stat.text.partition(":")[2])


def config(kind: str, port: int, admin_port: int, agent_port: int) -> dict[str, Any]:
    """Return an Envoy's bootstrap: the readiness listener, an admin port, a delay to be set.

    Args:
        kind: `ALONE` or `WITH_AGENT`.
        port: The port of the readiness listener.
        admin_port: The port of Envoy's admin endpoint.
        agent_port: The agent's port.
    """
    bootstrap = envoy_config(agent_port, port, "127.0.0.1", admin_port)
    (listener,) = bootstrap["static_resources"]["listeners"]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    delay = {"fixed_delay": "1s", "percentage": {"numerator": 0}}
    fault = {"@type": _FAULT, "delay": delay}
    manager["http_filters"].insert(0, {"name": "envoy.filters.http.fault", "typed_config": fault})
    if kind == ALONE:
        (route,) = manager["route_config"]["virtual_hosts"][0]["routes"]
        del route["route"]
        route["direct_response"] = {"status": 200}
    bootstrap["layered_runtime"] = {"layers": [{"name": "admin", "admin_layer": {}}]}
    return bootstrap


@contextmanager
def gateway(kind: str) -> Iterator[Gateway]:
    """Run a gateway until the end of the block.

    Args:
        kind: `ALONE` or `WITH_AGENT`.
    """
    port, admin_port, agent_port = free_port(), free_port(), free_port()
    bootstrap = json.dumps(config(kind, port, admin_port, agent_port))
    options = ("--disable-hot-restart", "--concurrency", "1", "--log-level", "error")
    envoy = (str(ENVOY), "--config-yaml", bootstrap, *options)
    agent = (str(BUILD / "agent"), "-listen", f"127.0.0.1:{agent_port}")
    with process(*agent), process(*envoy):  # beside an Envoy alone the agent only sleeps
        for number in (agent_port, admin_port, port):
            if not wait_until(partial(listens, number)):
                raise RuntimeError(f"nothing listens on {number}")
        yield Gateway(port, admin_port)


@contextmanager
def process(
    *command: str, environment: dict[str, str] | None = None
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a program until the end of the block; it has its own group, so Ctrl-C does not reach it.

    Args:
        command: The program and its arguments.
        environment: All of its variables; None: those of this process.
    """
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, process_group=0
    ) as child:
        try:
            yield child
        finally:
            child.kill()
