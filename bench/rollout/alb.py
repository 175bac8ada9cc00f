"""A model of an ALB's target group, from AWS's documentation; not compared with a real ALB.

Each rule stands where it is applied, with its source. "Health checks" is the page "Health checks
for Application Load Balancer target groups" of the Elastic Load Balancing user guide; "attributes"
its "Edit target group attributes"; "target group health" its page of that name; "errors" the
section "The load balancer generates an HTTP error" of its "Troubleshoot your Application Load
Balancers".
Where AWS documents nothing, the comment on the rule has the source of its number.

Times are those of the event loop; the durations of `Rules` are already scaled.
"""

import asyncio
import enum
import itertools
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from random import Random
from typing import Any

from bench.rollout import numbers
from bench.rollout.numbers import SCALE

Check = Callable[[str], Awaitable[bool]]
"""Makes one health check of an address, on a separate connection; True if the matcher passes."""


class Health(enum.Enum):
    """The status of a target at a node (Health checks, "Target health status")."""

    INITIAL = "initial"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Rules:
    """The settings of a target group and what the model adds to them; by default those of deploy/.

    Args:
        interval: Seconds between a node's checks of one target.
        timeout: Seconds after which a check without an answer has failed.
        healthy_threshold: Passes in a row that bring an unhealthy target back.
        unhealthy_threshold: Failures in a row that take one out.
        deregistration: Seconds from a deregistration until open calls are ended.
        routing_lag: Minimum and maximum seconds for which a node routes to a deregistered target.
    """

    interval: float = numbers.INTERVAL / SCALE
    timeout: float = numbers.TIMEOUT / SCALE
    healthy_threshold: int = numbers.HEALTHY_THRESHOLD
    unhealthy_threshold: int = numbers.UNHEALTHY_THRESHOLD
    deregistration: float = numbers.DEREGISTRATION / SCALE
    routing_lag: tuple[float, ...] = tuple(lag / SCALE for lag in numbers.ROUTING_LAG)


@dataclass(eq=False, slots=True)
class Target:
    """A target as one node sees it.

    Args:
        address: The address for `Check` and the callers.
        calls: The open calls, which the callers keep; each has a method `cancel`.
    """

    address: str
    health: Health = Health.INITIAL
    calls: set[Any] = field(default_factory=set)
    routed_until: float = 0.0
    _passes: int = 0
    _failures: int = 0

    def note(self, passed: bool, rules: Rules) -> None:  # noqa: FBT001 - a check's only outcome
        """Count a check."""
        self._passes, self._failures = (self._passes + 1, 0) if passed else (0, self._failures + 1)
        # Health checks: "After your target is registered, it must pass one health check"; and the
        # table of settings: the thresholds are numbers of consecutive checks.
        needed = 1 if self.health is Health.INITIAL else rules.healthy_threshold
        if self._passes >= needed:
            self.health = Health.HEALTHY
        elif self._failures >= rules.unhealthy_threshold:
            self.health = Health.UNHEALTHY


class Node:
    """One load balancer node: the status of each target at this node, and its routing.

    Args:
        rules: Of the target group.
        check: Makes one health check.
        random: For the times of the checks and the lags.
    """

    def __init__(self, rules: Rules, check: Check, random: Random) -> None:
        self.targets: dict[str, Target] = {}
        self._rules = rules
        self._check = check
        self._random = random
        self._turn = itertools.count()
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def register(self, address: str) -> None:
        """Add a target; one that is draining starts again, with its open calls."""
        old = self.targets.get(address)
        fresh = self.targets[address] = Target(address, calls=old.calls if old else set())
        self._begin(address, self._watch(fresh))

    def deregister(self, address: str) -> None:
        """Remove a target: no further checks, and new requests only for the lag.

        The lag: kubernetes-sigs/aws-load-balancer-controller#1064, #2366 and others report new
        requests for ten to tens of seconds, although AWS documents that they stop (attributes,
        "Deregistration delay"). Only targets that got requests still get them.
        """
        target = self.targets[address]
        now = asyncio.get_running_loop().time()
        if target in self.routable():
            target.routed_until = now + self._random.uniform(*self._rules.routing_lag)
        target.health = Health.DRAINING
        self._begin(address, self._drain(target, now))

    def routable(self) -> list[Target]:
        """Return the targets of new requests.

        Health checks: each node routes "only to the healthy targets in the enabled Availability
        Zones". Target group health, "Routing failover": when the healthy targets fall below the
        threshold (1 by default), to all that are available to the node, unhealthy ones included;
        the count is of all zones with cross-zone balancing, which an ALB has by default.
        """
        now = asyncio.get_running_loop().time()
        known = self.targets.values()
        lagging = [t for t in known if t.health is Health.DRAINING and now < t.routed_until]
        registered = [t for t in known if t.health is not Health.DRAINING]
        healthy = [t for t in registered if t.health is Health.HEALTHY]
        return (healthy or registered) + lagging

    def pick(self) -> Target | None:
        """Choose the target of a request, round robin; None is a 503.

        Attributes, "Routing algorithm": round robin is the default. Errors, HTTP 503: the target
        groups "have no registered targets".
        """
        candidates = self.routable()
        return candidates[next(self._turn) % len(candidates)] if candidates else None

    async def _watch(self, target: Target) -> None:
        """Check one target every interval.

        Health checks: every node checks every target, every interval, and "the time that it takes
        for the target to respond does not affect the interval for the next health check request".
        When the first one comes is not documented: anywhere in the first interval.
        """
        loop = asyncio.get_running_loop()
        due = loop.time() + self._random.uniform(0, self._rules.interval)
        while True:
            await asyncio.sleep(due - loop.time())
            try:
                async with asyncio.timeout(self._rules.timeout):
                    passed = await self._check(target.address)
            except TimeoutError:
                passed = False
            target.note(passed, self._rules)
            due = max(due + self._rules.interval, loop.time())

    async def _drain(self, target: Target, began: float) -> None:
        """Complete a deregistration.

        Attributes, "Deregistration delay": after the delay the target is unused, and errors, HTTP
        502: calls that are still open then fail. Without open calls it is complete at once (here:
        when the lag is over, since requests may arrive until then).
        """
        loop = asyncio.get_running_loop()
        end = began + self._rules.deregistration
        while loop.time() < end and (loop.time() < target.routed_until or target.calls):
            await asyncio.sleep(min(self._rules.interval / 10, end - loop.time()))
        del self.targets[target.address]
        for call in target.calls:
            call.cancel()

    def _begin(self, address: str, work: Coroutine[Any, Any, None]) -> None:
        """Do this work for a target, instead of the one before."""
        if task := self._tasks.get(address):
            task.cancel()
        self._tasks[address] = asyncio.create_task(work)


class TargetGroup:
    """A target group and the nodes that serve it.

    Args:
        nodes: The number of its nodes.
        rules: Its settings.
        check: Makes one health check.
        random: For values that are not documented.
    """

    def __init__(self, nodes: int, rules: Rules, check: Check, random: Random) -> None:
        self.nodes = [Node(rules, check, random) for _ in range(nodes)]
        self._turn = itertools.count()

    def node(self) -> Node:
        """Choose the node of a client's request, round robin."""
        return self.nodes[next(self._turn) % len(self.nodes)]

    def register(self, address: str) -> None:
        """Register a target with every node."""
        for node in self.nodes:
            node.register(address)

    def deregister(self, address: str) -> None:
        """Deregister a target from every node."""
        for node in self.nodes:
            node.deregister(address)

    def is_healthy(self, address: str) -> bool:
        """Return what a readiness gate waits for: whether every node has the target as healthy.

        An assumption: the API has one state, and AWS does not document of which node.
        """
        targets = [node.targets.get(address) for node in self.nodes]
        return all(target and target.health is Health.HEALTHY for target in targets)
