"""The cluster around the pods: the Deployment, the load balancer's controller, the observation.

All contenders of a run share its pods: the same Envoys, times, calls and schedules of checks.
Each has a separate target group, and its pods are ready if its own sidecar is, independent of the
other sidecars.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, replace
from random import Random
from typing import Final

from bench.rollout import numbers
from bench.rollout.alb import Rules, TargetGroup
from bench.rollout.contenders import BRIDGES, Contender, Ports
from bench.rollout.numbers import SCALE
from bench.rollout.pods import Pod
from bench.rollout.recipe import Recipe
from bench.rollout.traffic import Caller
from tests.support.gateway import free_port, listens, wait_until

REPLICAS: Final = 3
ZONES: Final = ("a", "b")
LOOK: Final = 0.05
"""Seconds of this machine between two observations of the routing."""

RULES: Final = Rules(
    interval=numbers.INTERVAL / SCALE,
    timeout=numbers.TIMEOUT / SCALE,
    healthy_threshold=numbers.HEALTHY_THRESHOLD,
    unhealthy_threshold=numbers.UNHEALTHY_THRESHOLD,
    deregistration=numbers.DEREGISTRATION / SCALE,
    routing_lag=(numbers.ROUTING_LAG[0] / SCALE, numbers.ROUTING_LAG[1] / SCALE),
)


@dataclass(slots=True)
class Member:
    """A contender in a run, and the observations of its routing, in the cluster's seconds.

    Args:
        contender: What it is.
        group: Its target group.
        caller: The clients of that.
        out_after: The longest time from a pod's failure to the last request before it recovers.
        left_out: Seconds for which nodes did not route to a good pod, averaged over the nodes.
    """

    contender: Contender
    group: TargetGroup
    caller: Caller
    out_after: float = 0.0
    left_out: float = 0.0


class Fleet:
    """The pods of a run and its target groups.

    Args:
        slot: The part of the loopback range for the pods' addresses.
        seed: Seed of all random values.
        contenders: The contenders that take part.
        recipe: How its pods and target groups are deployed.
    """

    def __init__(
        self, slot: int, seed: int, contenders: Iterable[Contender], recipe: Recipe
    ) -> None:
        self._recipe = recipe
        self._rules = replace(RULES, deregistration=recipe.deregistration / SCALE)
        self.seed: Final = seed
        self.random = Random(seed)
        self.pods: list[Pod] = []
        self.members: list[Member] = []
        self.missing: set[str] = set()
        self.longest_pause = 0.0
        self._slot = slot
        self._echo_port = free_port()
        self._fell_ill: dict[Pod, float] = {}
        self._ends: set[asyncio.Task[None]] = set()
        system = Random()
        first = system.randrange(20_000, 29_000)
        numbers_of = dict(zip(BRIDGES, range(first + 3, first + 6), strict=True))
        self._ports = Ports(first, first + 1, first + 2, numbers_of)
        for contender in contenders:
            self.members.append(self._member(contender, seed))
        used = {member.contender.bridge for member in self.members}
        self._kinds = [kind for kind in BRIDGES if kind in used]

    def _member(self, contender: Contender, seed: int) -> Member:
        async def check(host: str) -> bool:
            return await contender.check(host, self._ports)

        group = TargetGroup(list(ZONES), self._rules, check, Random(seed))
        return Member(contender, group, Caller(group, self._ports, seed))

    # ---- for events ------------------------------------------------------------------------------

    async def add_pod(self, configured_after: float = numbers.ENVOY_START) -> Pod:
        """Start a pod and wait until it has its configuration."""
        number = len(self.pods) + 1
        pod = Pod(
            f"127.0.{self._slot}.{number}",
            ZONES[number % len(ZONES)],
            self._ports,
            self._echo_port,
            self._kinds,
            self._recipe,
            Random(f"{self.seed}, pod {number}"),
            self.missing,
        )
        self.pods.append(pod)
        await pod.start(configured_after)
        return pod

    def remove_pod(
        self, pod: Pod, prestop: float = numbers.PRESTOP, drain: float = numbers.DRAIN
    ) -> "asyncio.Task[None]":
        """Delete a pod, without waiting for its end."""
        pod.deleting = True
        end = asyncio.create_task(pod.terminate(prestop, drain))
        self._ends.add(end)
        end.add_done_callback(self._ends.discard)
        return end

    async def until_ready(self, pod: Pod, timeout: float = 60.0) -> None:
        """Wait until a pod is ready: its containers and, with readiness gates, every target group.

        A contender whose bridge is missing does not count: its pod would never be ready.
        """
        members = [m for m in self.members if m.contender.bridge not in self.missing]

        def is_ready() -> bool:
            if self._recipe.gates:
                return all(member.group.is_healthy(pod.host) for member in members)
            return all(_containers_ready(pod, member) for member in members)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout / SCALE):
                while not is_ready():
                    await asyncio.sleep(LOOK)

    async def until_routed(self) -> None:
        """Wait until every node of every target group sends requests to every pod."""
        while not all(m.group.is_healthy(pod.host) for m in self.members for pod in self.pods):
            await asyncio.sleep(LOOK)

    async def roll(self) -> None:
        """Replace every pod: add one, and delete an old one only when the new one is ready."""
        for old in self.current:
            await self.until_ready(await self.add_pod())
            self.remove_pod(old)
        await self.ended()

    async def ended(self) -> None:
        """Wait for the pods that are being deleted."""
        await asyncio.gather(*self._ends)

    @property
    def current(self) -> list[Pod]:
        """The pods that are not being deleted."""
        return [pod for pod in self.pods if not pod.deleting]

    # ---- a run ----------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the service, the first pods, the controllers, the clients and the observation."""
        echo = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.rollout.echo", f"{self._echo_port}"
        )
        tasks: list[asyncio.Task[None]] = []
        try:
            await asyncio.to_thread(wait_until, lambda: listens(self._echo_port))
            await asyncio.gather(*(self.add_pod(0.0) for _ in range(REPLICAS)))
            tasks += [asyncio.create_task(self._control(member)) for member in self.members]
            await self.until_routed()
            tasks += [asyncio.create_task(member.caller.run()) for member in self.members]
            tasks.append(asyncio.create_task(self._look_on()))
            await asyncio.sleep(self.random.uniform(0, RULES.interval))
            yield
        finally:
            for task in tasks:
                task.cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(*(member.caller.finish() for member in self.members))
            await asyncio.gather(*(member.group.close() for member in self.members))
            for end in self._ends:
                end.cancel()
            await asyncio.gather(*self._ends, return_exceptions=True)
            await asyncio.gather(*(pod.kill() for pod in self.pods if not pod.gone))
            echo.kill()
            await echo.wait()
        for result in results:
            if isinstance(result, Exception):
                raise result

    async def _control(self, member: Member) -> None:
        """Act as the load balancer's controller: register the pods whose containers are ready."""
        applied: set[Pod] = set()
        random = Random(self.seed)

        def wanted() -> set[Pod]:
            return {pod for pod in self.current if _containers_ready(pod, member)}

        while True:
            if wanted() != applied:
                await asyncio.sleep(random.uniform(*numbers.CONTROLLER_LAG) / SCALE)
                now = wanted()
                for pod in self.pods:
                    if pod in applied - now:
                        member.group.deregister(pod.host)
                    elif pod in now - applied:
                        member.group.register(pod.host, pod.zone)
                applied = now
            await asyncio.sleep(LOOK)

    async def _look_on(self) -> None:
        """Compare the routing with the state of the pods, periodically."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(LOOK)
            now = loop.time()
            self.longest_pause = max(self.longest_pause, now - before - LOOK)
            for pod in self.pods:
                if pod.proxy_ready and not pod.deleting and not pod.well:
                    self._fell_ill.setdefault(pod, before)
                elif pod.well:
                    self._fell_ill.pop(pod, None)
            for member in self.members:
                self._judge(member, now, (now - before) * SCALE)
            before = now

    def _judge(self, member: Member, now: float, seconds: float) -> None:
        routable = [{t.address for t in node.routable()} for node in member.group.nodes]
        for pod in self.current:
            share = sum(pod.host in hosts for hosts in routable) / len(routable)
            if share and pod in self._fell_ill:
                ill_for = (now - self._fell_ill[pod]) * SCALE
                member.out_after = max(member.out_after, ill_for)
            elif pod.well:
                member.left_out += (1 - share) * seconds


def _containers_ready(pod: Pod, member: Member) -> bool:
    """Return whether the kubelet has seen the gateway ready and the contender's sidecar running."""
    bridge = member.contender.bridge
    return pod.proxy_ready and (bridge is None or pod.bridges[bridge].seen_running)
