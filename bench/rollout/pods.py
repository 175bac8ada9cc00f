"""A gateway pod: a real Envoy, a stand-in for pilot-agent, and the bridges as native sidecars."""

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterable
from random import Random
from typing import Any, Final

from bench.rollout import numbers
from bench.rollout.asking import http_status, is_ready
from bench.rollout.contenders import GHEALTH, Ports
from bench.rollout.numbers import SCALE
from bench.rollout.recipe import Recipe
from tests.support.gateway import READY, SICK, Agent, Gateway, listens, wait_until
from tests.support.processes import environment

_UPSTREAM: Final = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"


class Proxy(Gateway):
    """The gateway of `tests.support`, with a route for the calls beside its readiness listener.

    Args:
        agent: The target of the readiness listener.
        host: The pod's address.
        ports: Where the pod listens.
        echo_port: Of the service behind.
    """

    def __init__(self, agent: Agent, host: str, ports: Ports, echo_port: int) -> None:
        drain_time = f"{numbers.ENVOY_DRAIN_TIME / SCALE:.0f}"
        # As pilot-agent starts it (istio/istio, pkg/envoy/proxy.go).
        options = ("--drain-time-s", drain_time, "--drain-strategy", "immediate")
        super().__init__(agent, ports.readiness, host, options)
        self.admin_port = ports.envoy_admin
        config = json.loads(self._config)
        address = {"address": host, "port_value": self.admin_port}
        config["admin"] = {"address": {"socket_address": address}}
        resources = config["static_resources"]
        listener = json.loads(json.dumps(resources["listeners"][0]))
        listener["name"] = "traffic"
        listener["address"]["socket_address"]["port_value"] = ports.traffic
        manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
        manager["stat_prefix"] = "traffic"
        route = {"match": {"prefix": "/echo."}, "route": {"cluster": "echo", "timeout": "0s"}}
        manager["route_config"]["virtual_hosts"][0]["routes"] = [route]
        resources["listeners"].append(listener)
        resources["clusters"].append(_echo_cluster(resources["clusters"][0], echo_port))
        self._config = json.dumps(config)


def _echo_cluster(like: dict[str, Any], port: int) -> dict[str, Any]:
    cluster: dict[str, Any] = json.loads(json.dumps(like))
    assignment = cluster["load_assignment"]
    cluster["name"] = assignment["cluster_name"] = "echo"
    address = assignment["endpoints"][0]["lb_endpoints"][0]["endpoint"]["address"]
    address["socket_address"]["port_value"] = port
    http2 = {
        "@type": f"type.googleapis.com/{_UPSTREAM}",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return cluster | {"typed_extension_protocol_options": {_UPSTREAM: http2}}


class Bridge:
    """A native sidecar, which the kubelet restarts when it ends.

    Args:
        kind: A key of `contenders.BRIDGES`.
        host: The pod's address.
        ports: Where the pod listens.
        probe_url: What ghealth probes.
    """

    def __init__(self, kind: str, host: str, ports: Ports, probe_url: str) -> None:
        port = ports.bridges[kind]
        self._address = (port, host)
        self._command = [sys.executable, "-m", "bench.rollout.bridges", kind, host]
        self._command += [str(port), str(ports.readiness)]
        self._environment = environment()
        if kind == GHEALTH:
            self._command = [sys.executable, "-m", "ghealth"]
            self._environment = environment(
                LISTEN=f"{host}:{port}",
                ADMIN_LISTEN="off",
                PROBE_URL=probe_url,
                CACHE_TTL=f"{numbers.CACHE_TTL / SCALE}",
                PROBE_TIMEOUT=f"{numbers.PROBE_TIMEOUT / SCALE}",
                SHUTDOWN_GRACE=f"{numbers.SHUTDOWN_GRACE / SCALE}",
                DRAIN_DELAY=f"{numbers.DRAIN_DELAY / SCALE}",
            )
        self._process: subprocess.Popen[bytes] | None = None
        self.seen_running = False

    def start(self) -> None:
        """Start the container."""
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL
        )

    @property
    def running(self) -> bool:
        """Whether its process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def listens(self) -> bool:
        """Whether it accepts connections."""
        return listens(*self._address)

    def end(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal and wait for its end."""
        if self._process is not None and self.running:
            self._process.send_signal(signum)
            self._process.wait()


class Pod:
    """A gateway pod and its state at the kubelet.

    Args:
        host: Its address.
        zone: Its availability zone.
        ports: Where it listens.
        echo_port: Of the service behind.
        kinds: The bridges beside the gateway.
        recipe: How it is deployed.
        random: For the time of its first probe.
        without: The bridges whose image cannot be pulled.
    """

    def __init__(
        self,
        host: str,
        zone: str,
        ports: Ports,
        echo_port: int,
        kinds: Iterable[str],
        recipe: Recipe,
        random: Random,
        without: Iterable[str] = (),
    ) -> None:
        self.host: Final = host
        self.zone: Final = zone
        self.missing = set(without)
        self.crashing = False
        self.deleting = False
        self.gone = False
        self.proxy_ready = False
        self.configured = False
        self.hung = False
        self.drained_by_hand = False
        self._readiness = ports.readiness
        self._startup_probe = recipe.startup_probe
        self._random = random
        self._agent = Agent()
        self.proxy = Proxy(self._agent, host, ports, echo_port)
        url = recipe.probe_url.replace("localhost:15021", f"{host}:{ports.readiness}")
        url = url.replace("localhost:15000", f"{host}:{self.proxy.admin_port}")
        self.bridges = {kind: Bridge(kind, host, ports, url) for kind in kinds}
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def well(self) -> bool:
        """The real state: configured, running, not terminating, and not drained by hand."""
        is_ready = self.configured and self._agent.state == READY
        return is_ready and not self.hung and not self.drained_by_hand

    async def start(self, configured_after: float = numbers.ENVOY_START) -> None:
        """Start the sidecars, then the gateway, which has its configuration after a while.

        Until then an Envoy of Istio has no listener: both ports refuse, nothing answers 503. The
        one here has its configuration at once, so it is started when the other would have it.

        The pod's time begins when the sidecars listen, less the time that this takes in a cluster:
        their start cannot be made five times as fast, and would last until the first checks.
        """
        self._agent.__enter__()
        started = [bridge for kind, bridge in self.bridges.items() if kind not in self.missing]
        for bridge in started:
            bridge.start()
        await asyncio.to_thread(wait_until, lambda: all(bridge.listens for bridge in started))
        await asyncio.sleep(numbers.SIDECAR_START / SCALE)
        self._tasks = [
            asyncio.create_task(self._probe()),
            asyncio.create_task(self._look_after_bridges()),
        ]
        await asyncio.sleep(configured_after / SCALE)
        await asyncio.to_thread(self.proxy.start)
        self.configured = True
        self.heal()

    def sicken(self) -> None:
        """Answer 503 from now on, and still serve requests."""
        self._agent.state = SICK

    def hang(self) -> None:
        """Stop Envoy by SIGSTOP."""
        self.hung = True
        self._signal(signal.SIGSTOP)

    async def drain_by_hand(self) -> None:
        """Drain Envoy as an operator does; 15021 still answers 200 (istio/istio#38065)."""
        await http_status(self.host, self.proxy.admin_port, "/healthcheck/fail", "POST")
        self.drained_by_hand = True

    def heal(self) -> None:
        """Recover."""
        if self.hung:
            self._signal(signal.SIGCONT)
        self.hung, self._agent.state = False, READY

    async def terminate(self, prestop: float, drain: float) -> None:
        """End as with Kubernetes and pilot-agent; `deleting` is true at once.

        pilot-agent: on SIGTERM its own readiness turns 503, Envoy drains gracefully, and is killed
        after the drain. Native sidecars get SIGTERM after that.
        """
        self.deleting = True
        await asyncio.sleep(prestop / SCALE)
        self._agent.state = SICK
        with contextlib.suppress(OSError):
            path = "/drain_listeners?graceful"
            await http_status(self.host, self.proxy.admin_port, path, "POST")
        await asyncio.sleep(drain / SCALE)
        await self.kill()

    async def kill(self) -> None:
        """End at once, as when the machine fails."""
        self.deleting = self.gone = True
        self._agent.state = SICK
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self.proxy.stop()
        for bridge in self.bridges.values():
            bridge.end(signal.SIGTERM)
        self._agent.stop()

    async def _probe(self) -> None:
        """Act as the kubelet: istio-proxy's startupProbe, if it has one, and its readinessProbe.

        A readinessProbe's period begins when the kubelet receives the pod, before it pulls images
        and starts sidecars (kubernetes, pkg/kubelet/prober/worker.go). So istio-proxy starts at any
        time in a period. After a startupProbe the kubelet probes the readiness at once.
        """
        loop = asyncio.get_running_loop()
        period, timeout = numbers.READINESS_PERIOD / SCALE, numbers.READINESS_TIMEOUT / SCALE
        due, failures = loop.time(), 0
        if self._startup_probe:
            while not await is_ready(self.host, self._readiness, timeout):
                due += numbers.STARTUP_PERIOD / SCALE
                await asyncio.sleep(due - loop.time())
        else:
            due += self._random.uniform(0, period)
        while True:
            await asyncio.sleep(due - loop.time())
            ready = await is_ready(self.host, self._readiness, timeout)
            failures = 0 if ready else failures + 1
            if ready or failures >= numbers.READINESS_FAILURES:
                self.proxy_ready = ready
            due += period

    async def _look_after_bridges(self) -> None:
        """Act as the kubelet: find the running containers, and restart those that ended."""
        while True:
            for kind, bridge in self.bridges.items():
                bridge.seen_running = bridge.running
                if not bridge.running and not self.crashing and kind not in self.missing:
                    bridge.start()
            await asyncio.sleep(numbers.PLEG / SCALE)

    def _signal(self, signum: signal.Signals) -> None:
        if self.proxy.process is not None:
            self.proxy.process.send_signal(signum)
