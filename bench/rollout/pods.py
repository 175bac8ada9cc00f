"""A gateway pod: a real Envoy, a stand-in for pilot-agent, and the bridges as native sidecars."""

import asyncio
import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, NamedTuple

import httpx

from bench.rollout import numbers
from bench.rollout.contenders import BRIDGES, GHEALTH, PASS_THROUGH, STOCK
from bench.rollout.numbers import ENVOY_ADMIN, READINESS, SCALE, TRAFFIC
from tests.support.gateway import READY, SICK, Agent, Gateway, envoy_config, listens
from tests.support.processes import environment

READINESS_URL: Final = "http://localhost:15021/healthz/ready"
BOTH_URLS: Final = f"{READINESS_URL},http://localhost:15000/ready"
"""`GHEALTH_PROBE_URL` in deploy/ and docs/configuration.md for an Envoy that is drained by hand."""


class Recipe(NamedTuple):
    """How the gateways of an event are deployed, by default as deploy/ has it.

    Args:
        deregistration: The target groups' deregistration delay, in the cluster's seconds.
        prestop: Seconds until SIGTERM.
        drain: Seconds from there to Envoy's end.
        startup_probe: Whether istio-proxy has one. Istio writes it only into the Deployment of a
            Gateway of the Gateway API (kube-gateway.yaml), not into a pod that its injector
            completes (gateway-injection-template.yaml).
        gates: Whether a new pod waits for the load balancer, by readiness gates.
        probe_url: What ghealth probes, in a pod.
    """

    deregistration: float = numbers.DEREGISTRATION
    prestop: float = numbers.PRESTOP
    drain: float = numbers.DRAIN
    startup_probe: bool = False
    gates: bool = True
    probe_url: str = READINESS_URL


AS_DEPLOYED: Final = Recipe()

NO_TLS: Final = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Spares each probe the reading of the system's certificates."""


def is_ready(host: str, timeout: float) -> bool:
    """Probe a gateway as the kubelet does: ready is 200 to 399 within the timeout."""
    url = f"http://{host}:{READINESS}/healthz/ready"
    try:
        answer = httpx.get(url, timeout=timeout, trust_env=False, verify=NO_TLS)
    except httpx.HTTPError:
        return False
    return 200 <= answer.status_code < 400


class Proxy(Gateway):
    """The gateway of `tests.support`, with a listener for the calls beside its readiness listener.

    Args:
        agent: The target of the readiness listener.
        host: The pod's address.
        service: The port of the service behind.
    """

    def __init__(self, agent: Agent, host: str, service: int) -> None:
        drain_time = f"{numbers.ENVOY_DRAIN_TIME / SCALE:.0f}"
        # As pilot-agent starts it (istio/istio, pkg/envoy/proxy.go).
        flags = ("--drain-time-s", drain_time, "--drain-strategy", "immediate")
        super().__init__(agent, READINESS, host, flags)
        config = envoy_config(agent.port, READINESS, host)
        admin = {"address": host, "port_value": ENVOY_ADMIN}
        config["admin"] = {"address": {"socket_address": admin}}
        calls = json.dumps(envoy_config(service, TRAFFIC, host)["static_resources"])
        calls = calls.replace("/healthz/ready", "/echo.").replace("readiness", "calls")
        for kind, (resource,) in json.loads(calls.replace("agent", "echo")).items():
            config["static_resources"][kind].append(resource)
        upstream = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
        protocol: dict[str, Any] = {"explicit_http_config": {"http2_protocol_options": {}}}
        resource["typed_extension_protocol_options"] = {  # the last one is the cluster
            upstream: {"@type": f"type.googleapis.com/{upstream}", **protocol}
        }
        self._config = json.dumps(config)


PROGRAMS: Final = {
    GHEALTH: ["ghealth"],
    PASS_THROUGH: ["bench.rollout.pass_through"],
    # Once a second: the status is correct, but only in the message.
    STOCK: ["bench.speed.peers.stock", f"{1 / SCALE}", f"{numbers.PROBE_TIMEOUT / SCALE}"],
}
"""The module of each bridge, and its options beyond its address and the gateway's URL."""


@dataclass(eq=False, slots=True)
class Pod:
    """A gateway pod and its state at the kubelet.

    Args:
        host: Its address, which no other pod has.
        service: The port of the service behind.
        kinds: The bridges beside the gateway.
        recipe: How it is deployed.
        random: For the time of its first probe.
        missing: The bridges that cannot be started.
        running: The bridges that the kubelet has seen running.
    """

    host: str
    service: int
    kinds: Iterable[str]
    recipe: Recipe
    random: Random
    missing: set[str]
    deleting: bool = False
    proxy_ready: bool = False
    running: set[str] = field(default_factory=set)
    _broken: bool = True  # until it has its configuration
    _agent: Agent = field(default_factory=Agent)
    _bridges: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _proxy: Proxy = field(init=False)

    def __post_init__(self) -> None:
        self._proxy = Proxy(self._agent, self.host, self.service)

    @property
    def well(self) -> bool:
        """The real state: configured, running, not terminating, and not drained by hand."""
        return self._agent.state == READY and not self._broken

    async def start(self, configured_after: float) -> None:
        """Start the sidecars, then the gateway, which has its configuration after a while.

        Until then an Envoy of Istio has no listener: both ports refuse, nothing answers 503. The
        one here has its configuration at once, so it is started when the other would have it.

        The pod's time begins when the sidecars listen, less the time that this takes in a cluster:
        their start cannot be made five times as fast, and would last until the first checks.
        """
        self._agent.__enter__()
        self._start_bridges()
        ports = [BRIDGES[kind] for kind in self._bridges]
        while not all(listens(port, self.host) for port in ports):
            await asyncio.sleep(0.02)
        await asyncio.sleep(numbers.SIDECAR_START / SCALE)
        self._tasks = [asyncio.create_task(self._probe()), asyncio.create_task(self._restart())]
        await asyncio.sleep(configured_after / SCALE)
        await asyncio.to_thread(self._proxy.start)
        self._broken = False

    def sicken(self) -> None:
        """Answer 503 from now on, and still serve requests."""
        self._agent.state = SICK

    def hang(self) -> None:
        """Stop Envoy by SIGSTOP."""
        self._broken = True
        self._signal(signal.SIGSTOP)

    async def drain_by_hand(self) -> None:
        """Drain Envoy as an operator does; 15021 still answers 200 (istio/istio#38065)."""
        await self._tell_envoy("/healthcheck/fail")
        self._broken = True

    def heal(self) -> None:
        """Recover."""
        self._signal(signal.SIGCONT)
        self._broken, self._agent.state = False, READY

    def end_bridges(self, signum: signal.Signals = signal.SIGKILL) -> None:
        """End the sidecars; the kubelet restarts those that are not missing."""
        for bridge in self._bridges.values():
            bridge.send_signal(signum)
            bridge.wait()

    async def terminate(self) -> None:
        """End as with Kubernetes and pilot-agent.

        pilot-agent: on SIGTERM its own readiness turns 503, Envoy drains gracefully, and is killed
        after the drain. Native sidecars get SIGTERM after that.
        """
        await asyncio.sleep(self.recipe.prestop / SCALE)
        self.sicken()
        await self._tell_envoy("/drain_listeners?graceful")
        await asyncio.sleep(self.recipe.drain / SCALE)
        await self.kill()

    async def kill(self) -> None:
        """End at once, as when the machine fails."""
        self.deleting = True
        self.sicken()
        for task in self._tasks:
            task.cancel()
        await asyncio.to_thread(self._end)

    def _end(self) -> None:
        self._proxy.stop()
        self.end_bridges(signal.SIGTERM)
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
        if self.recipe.startup_probe:
            while not await asyncio.to_thread(is_ready, self.host, timeout):
                due += numbers.STARTUP_PERIOD / SCALE
                await asyncio.sleep(due - loop.time())
        else:
            due += self.random.uniform(0, period)
        while True:
            await asyncio.sleep(due - loop.time())
            ready = await asyncio.to_thread(is_ready, self.host, timeout)
            failures = 0 if ready else failures + 1
            if ready or failures >= numbers.READINESS_FAILURES:
                self.proxy_ready = ready
            due += period

    async def _restart(self) -> None:
        """Act as the kubelet: find the running containers, and restart those that ended."""
        while True:
            self.running = {kind for kind, one in self._bridges.items() if one.poll() is None}
            self._start_bridges()
            await asyncio.sleep(numbers.PLEG / SCALE)

    def _start_bridges(self) -> None:
        """Start the bridges that do not run."""
        url = READINESS_URL.replace("localhost", self.host)
        for kind in set(self.kinds) - self.running - self.missing:
            module, *options = PROGRAMS[kind]
            place = [] if kind == GHEALTH else [f"{self.host}:{BRIDGES[kind]}", url]
            self._bridges[kind] = subprocess.Popen(
                [sys.executable, "-m", module, *place, *options],
                env=environment(
                    LISTEN=f"{self.host}:{BRIDGES[GHEALTH]}",
                    ADMIN_LISTEN="off",
                    PROBE_URL=self.recipe.probe_url.replace("localhost", self.host),
                    CACHE_TTL=f"{numbers.CACHE_TTL / SCALE}",
                    PROBE_TIMEOUT=f"{numbers.PROBE_TIMEOUT / SCALE}",
                    SHUTDOWN_GRACE=f"{numbers.SHUTDOWN_GRACE / SCALE}",
                    DRAIN_DELAY=f"{numbers.DRAIN_DELAY / SCALE}",
                ),
                stdout=subprocess.DEVNULL,
            )

    async def _tell_envoy(self, path: str) -> None:
        url = f"http://{self.host}:{ENVOY_ADMIN}{path}"
        await asyncio.to_thread(httpx.post, url, trust_env=False)

    def _signal(self, signum: signal.Signals) -> None:
        if self._proxy.process is not None:
            self._proxy.process.send_signal(signum)
