"""The model of an ALB, rule by rule; the sources are in the module's docstring and at each rule."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import pairwise
from random import Random

import pytest

from bench.rollout.alb import Health, Node, Rules, Target, TargetGroup
from tests.support.virtual import in_virtual_time

RULES = Rules(
    interval=10,
    timeout=5,
    healthy_threshold=2,
    unhealthy_threshold=2,
    deregistration=30,
    routing_lag=(10, 20),
)


class Pods:
    """Targets that pass, fail or are silent, and who was asked when."""

    def __init__(self) -> None:
        self.sick: set[str] = set()
        self.silent: set[str] = set()
        self.asked: list[tuple[float, str]] = []

    async def check(self, address: str) -> bool:
        self.asked.append((now(), address))
        if address in self.silent:
            await asyncio.sleep(3600)
        return address not in self.sick

    def moments(self, address: str) -> list[float]:
        return [at for at, asked in self.asked if asked == address]


def now() -> float:
    return asyncio.get_running_loop().time()


@asynccontextmanager
async def node(rules: Rules = RULES, **zones: str) -> AsyncGenerator[tuple[Node, Pods]]:
    """Run a node in zone a; each of its targets, by its zone, has passed one check."""
    pods = Pods()
    one = Node("a", rules, pods.check, Random(1))
    for address, zone in zones.items():
        one.register(address, zone)
    await asyncio.sleep(10.1 if zones else 0)
    yield one, pods
    await one.close()


@asynccontextmanager
async def group() -> AsyncGenerator[tuple[TargetGroup, Pods]]:
    """Run two nodes with the targets p and q."""
    pods = Pods()
    both = TargetGroup(["a", "b"], RULES, pods.check, Random(1))
    both.register("p", "a")
    both.register("q", "b")
    yield both, pods
    await both.close()


def routed(one: Node) -> set[str]:
    return {target.address for target in one.routable()}


@in_virtual_time
async def test_a_new_target_needs_one_pass() -> None:
    """Health checks: a registered target is initial until one check has passed, then healthy."""
    async with node() as (one, pods):
        one.register("p", "a")
        seen = [one.targets["p"].health]
        await asyncio.sleep(10.1)
        seen += [one.targets["p"].health]
        assert seen == [Health.INITIAL, Health.HEALTHY]
        assert len(pods.asked) == 1


@in_virtual_time
async def test_every_node_checks_every_target_on_its_own_schedule() -> None:
    """Health checks: two nodes check each target once an interval, at different times."""
    async with group() as (_, pods):
        await asyncio.sleep(100)
        for moments in (pods.moments("p"), pods.moments("q")):
            assert len(moments) == 20
            assert len({round(at % 10, 3) for at in moments}) == 2


@in_virtual_time
async def test_a_slow_answer_does_not_move_the_next_check() -> None:
    """Health checks: the time to respond does not affect the interval."""
    async with node(p="a") as (_, pods):
        pods.silent = {"p"}
        await asyncio.sleep(60)
        at = pods.moments("p")
        assert {round(b - a, 3) for a, b in pairwise(at)} == {10}


@pytest.mark.parametrize(
    ("checks", "health"),
    [
        ("-", Health.HEALTHY),
        ("-+-", Health.HEALTHY),
        ("--", Health.UNHEALTHY),
        ("--+-+", Health.UNHEALTHY),
        ("--++", Health.HEALTHY),
    ],
)
def test_thresholds_count_checks_in_a_row(checks: str, health: Health) -> None:
    """Settings: two failures in a row take a target out, two passes bring it back."""
    target = Target("p", "a", Health.HEALTHY)
    for check in checks:
        target.note(check == "+", RULES)
    assert target.health is health


@in_virtual_time
async def test_no_answer_within_the_timeout_is_a_failure() -> None:
    """Health checks, settings: a silent target is out after two timeouts, within 25 s."""
    async with node(p="a", q="a") as (one, pods):
        pods.silent = {"p"}
        await asyncio.sleep(25)
        assert routed(one) == {"q"}


@in_virtual_time
async def test_it_fails_open() -> None:
    """Health checks: with no healthy target all are routed to; with one, only it."""
    async with node(p="a", q="b") as (one, pods):
        for sick, expected in (({"p", "q"}, {"p", "q"}), ({"p"}, {"q"})):
            pods.sick = sick
            await asyncio.sleep(30)
            assert routed(one) == expected


@in_virtual_time
async def test_failing_open_is_counted_per_zone() -> None:
    """Target group health: with cross-zone off, a zone whose only pod is sick sends to it."""
    async with node(Rules(10, 5, 2, 2, 30, (10, 20), cross_zone=False), p="a", q="b") as (
        one,
        pods,
    ):
        pods.sick = {"p"}
        await asyncio.sleep(30)
        assert routed(one) == {"p"}


@in_virtual_time
async def test_an_empty_group_has_nobody_to_route_to() -> None:
    """Errors, HTTP 503: without registered targets there is none to pick; it does not fail open."""
    async with node(p="a") as (one, _):
        one.deregister("p")
        await asyncio.sleep(20)
        assert one.pick() is None


@in_virtual_time
async def test_a_deregistered_target_gets_new_requests_for_the_lag_alone() -> None:
    """LBC#1064: routed to for 10 to 20 s after its deregistration, unchecked, then no more."""
    async with node(p="a", q="a") as (one, pods):
        one.deregister("p")
        asked = pods.moments("p")
        await asyncio.sleep(9.9)
        assert routed(one) == {"p", "q"}
        await asyncio.sleep(10.2)
        assert routed(one) == {"q"}
        assert pods.moments("p") == asked


@in_virtual_time
async def test_a_target_that_was_not_routed_to_has_no_lag() -> None:
    """A sick target that is deregistered gets nothing more."""
    async with node(p="a", q="a") as (one, pods):
        pods.sick = {"p"}
        await asyncio.sleep(20)
        one.deregister("p")
        assert routed(one) == {"q"}


async def seconds_until_closed(one: Node, target: Target) -> float:
    """Return how long a target's connections stay open from now on."""
    began, closed = now(), asyncio.Event()
    target.closed.append(closed.set)
    await closed.wait()
    assert target.address not in one.targets
    return now() - began


@in_virtual_time
async def test_what_is_under_way_is_cut_after_the_deregistration_delay() -> None:
    """Errors, HTTP 502: the delay over, requests in flight end; with none, the lag over."""
    for in_flight, least, most in ((1, 30, 30.1), (0, 10, 21.1)):
        async with node(p="a") as (one, _):
            target = one.targets["p"]
            target.in_flight = in_flight
            one.deregister("p")
            assert least <= await seconds_until_closed(one, target) <= most


@in_virtual_time
async def test_a_delay_as_long_as_the_lag_cuts_the_last_calls() -> None:
    """A call sent in the lag's last moment is cut at once by a delay of 30 s, not by one of 60."""
    for delay, seconds in ((30, 0), (60, 30)):
        async with node(Rules(10, 5, 2, 2, delay, (30, 30)), p="a") as (one, _):
            one.deregister("p")
            await asyncio.sleep(29.9)
            target = one.pick()
            assert target is not None
            target.in_flight += 1
            assert seconds <= await seconds_until_closed(one, target) <= seconds + 1


@in_virtual_time
async def test_a_target_registered_again_while_draining_is_new() -> None:
    """Registered again, it is initial: not routed to beside a healthy one until a check passes."""
    async with node(p="a", q="a") as (one, _):
        one.deregister("p")
        one.register("p", "a")
        assert routed(one) == {"q"}
        await asyncio.sleep(10.1)
        assert routed(one) == {"p", "q"}


@in_virtual_time
async def test_requests_take_turns() -> None:
    """Attributes, routing algorithm: round robin over the targets, and clients over the nodes."""
    async with group() as (both, _):
        await asyncio.sleep(10.1)
        first, second = both.node(), both.node()
        assert first is not second
        picked = [target.address for target in (first.pick(), first.pick()) if target]
        assert sorted(picked) == ["p", "q"]


@in_virtual_time
async def test_a_target_is_ready_when_every_node_has_it_as_healthy() -> None:
    """A readiness gate waits for all nodes, and a deregistration takes the target from all."""
    async with group() as (both, _):
        await asyncio.sleep(10.1)
        assert both.is_healthy("p")
        both.nodes[1].targets["p"].health = Health.UNHEALTHY
        assert not both.is_healthy("p")
        both.deregister("p")
        assert {one.targets["p"].health for one in both.nodes} == {Health.DRAINING}
