"""The cluster around the pods: the Deployment, the load balancer's controller, the observation.

All contenders of a run share its pods: the same Envoys, times, calls and schedules of checks.
Each has a separate target group, and its pods are ready if its own sidecar is, independent of the
other sidecars.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from random import Random
from typing import Any, Final

from bench.rollout import numbers
from bench.rollout.alb import Rules, TargetGroup
from bench.rollout.contenders import BRIDGES, Contender
from bench.rollout.numbers import SCALE
from bench.rollout.pods import Pod, Recipe
from bench.rollout.traffic import Caller, start_service

REPLICAS: Final = 3
NODES: Final = 2
LOOK: Final = 0.05
"""Seconds of this machine between two observations of the routing."""

SHOWN: Final = 50
"""The first failures, which are kept with details; of the others only counts are kept."""

THREADS: Final = 128
"""More than there are checks at once: the checks of a hanging pod wait."""


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

    def result(self, began: float) -> dict[str, Any]:
        """Return the result of a run that began at this time."""
        outcomes = self.caller.outcomes
        failed = [o for o in outcomes if o.result != "OK"]
        moments = [(round((o.at - began) * SCALE, 2), o.result, o.stream) for o in failed]
        return {
            "calls": sum(not o.stream for o in outcomes),
            "failed": sum(not o.stream for o in failed),
            "streams": sum(o.stream for o in outcomes),
            "streams_failed": sum(o.stream for o in failed),
            "out_after": round(self.out_after, 1),
            "left_out_seconds": round(self.left_out, 1),
            "failures": moments[:SHOWN],
        }


class Fleet:
    """The pods of a run and its target groups.

    Args:
        seed: Seed of all random values.
        contenders: The contenders that take part.
        recipe: How its pods and target groups are deployed.
    """

    def __init__(self, seed: int, contenders: Iterable[Contender], recipe: Recipe) -> None:
        self.pods: list[Pod] = []
        self.members: list[Member] = []
        self.missing: set[str] = set()
        self.longest_pause = 0.0
        self._recipe = recipe
        self._seed = seed
        system = Random()
        self._network = f"127.{system.randrange(1, 255)}.{system.randrange(255)}"
        self._fell_ill: dict[Pod, float] = {}
        self._ends: list[asyncio.Task[None]] = []
        rules = Rules(deregistration=recipe.deregistration / SCALE)
        for contender in contenders:
            group = TargetGroup(NODES, rules, contender.passes, Random(seed))
            self.members.append(Member(contender, group, Caller(group, seed)))
        self._kinds = BRIDGES.keys() & {member.contender.bridge for member in self.members}

    # ---- for events ------------------------------------------------------------------------------

    async def add_pod(self, configured_after: float = numbers.ENVOY_START) -> Pod:
        """Start a pod and wait until it has its configuration."""
        number = len(self.pods) + 1
        host, random = f"{self._network}.{number}", Random(f"{self._seed}, pod {number}")
        pod = Pod(host, self._service, self._kinds, self._recipe, random, self.missing)
        self.pods.append(pod)
        await pod.start(configured_after)
        return pod

    def remove_pod(self, pod: Pod) -> None:
        """Delete a pod, without waiting for its end."""
        pod.deleting = True
        self._ends.append(asyncio.create_task(pod.terminate()))

    async def ended(self) -> None:
        """Wait for the pods that are being deleted."""
        await asyncio.gather(*self._ends)

    async def until_ready(self, pod: Pod) -> None:
        """Wait until a pod is ready, for 60 s: its containers, and with gates every target group.

        A contender whose bridge is missing does not count: its pod would never be ready.
        """
        members = [m for m in self.members if m.contender.bridge not in self.missing]

        def is_ready(member: Member) -> bool:
            gates = self._recipe.gates
            return member.group.is_healthy(pod.host) if gates else _containers_ready(pod, member)

        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(60 / SCALE):
                while not all(map(is_ready, members)):
                    await asyncio.sleep(LOOK)

    @property
    def current(self) -> list[Pod]:
        """The pods that are not being deleted."""
        return [pod for pod in self.pods if not pod.deleting]

    # ---- a run ----------------------------------------------------------------------------------

    async def run(self, event: Callable[["Fleet"], Awaitable[None]]) -> float:
        """Run an event with all that it needs; return the loop's time when the event began."""
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(THREADS))
        service, self._service = await start_service()
        try:
            await asyncio.gather(*(self.add_pod(0.0) for _ in range(REPLICAS)))
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(self._control(member)) for member in self.members]
                while not all(m.group.is_healthy(p.host) for m in self.members for p in self.pods):
                    await asyncio.sleep(LOOK)
                tasks += [group.create_task(member.caller.run()) for member in self.members]
                tasks.append(group.create_task(self._observe()))
                await asyncio.sleep(Random(self._seed).uniform(0, numbers.INTERVAL / SCALE))
                began = asyncio.get_running_loop().time()
                await event(self)
                for task in tasks:
                    task.cancel()
        finally:
            await asyncio.gather(*(pod.kill() for pod in self.pods))
            await service.stop(None)
        return began

    async def _control(self, member: Member) -> None:
        """Act as the load balancer's controller: register the pods whose containers are ready."""
        applied: set[Pod] = set()
        random = Random(self._seed)

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
                        member.group.register(pod.host)
                applied = now
            await asyncio.sleep(LOOK)

    async def _observe(self) -> None:
        """Compare the routing with the state of the pods, periodically."""
        loop = asyncio.get_running_loop()
        before = loop.time()
        while True:
            await asyncio.sleep(LOOK)
            now = loop.time()
            self.longest_pause = max(self.longest_pause, now - before - LOOK)
            for pod in self.pods:
                if pod.well:
                    self._fell_ill.pop(pod, None)
                elif pod.proxy_ready and not pod.deleting:
                    self._fell_ill.setdefault(pod, before)
            for member in self.members:
                routable = [{t.address for t in node.routable()} for node in member.group.nodes]
                for pod in self.current:
                    share = sum(pod.host in hosts for hosts in routable) / NODES
                    if share and pod in self._fell_ill:
                        ill_for = (now - self._fell_ill[pod]) * SCALE
                        member.out_after = max(member.out_after, ill_for)
                    elif pod.well:
                        member.left_out += (1 - share) * (now - before) * SCALE
            before = now


def _containers_ready(pod: Pod, member: Member) -> bool:
    """Return whether the kubelet has seen the gateway ready and the contender's sidecar running."""
    bridge = member.contender.bridge
    return pod.proxy_ready and (bridge is None or bridge in pod.running)
