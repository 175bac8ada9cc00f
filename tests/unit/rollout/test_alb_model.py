"""The model of an ALB, rule by rule; the sources are in the module's docstring and at each rule."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

from bench.rollout.alb import Health, Rules, Target, TargetGroup
from tests.support.virtual import in_virtual_time

RULES = Rules(
    10, 5, healthy_threshold=2, unhealthy_threshold=2, deregistration=30, routing_lag=(10, 20)
)


class Group(TargetGroup):
    """A target group whose targets pass, fail or are silent, and the times of their checks."""

    def __init__(self, *targets: str, nodes: int = 1, rules: Rules = RULES) -> None:
        super().__init__(nodes, rules, self.check, Random(1))
        self.sick: set[str] = set()
        self.silent: set[str] = set()
        self.checks: list[float] = []
        for target in targets:
            self.register(target)

    async def check(self, address: str) -> bool:
        self.checks.append(now())
        if address in self.silent:
            await asyncio.sleep(3600)
        return address not in self.sick

    @property
    def routed(self) -> set[str]:
        """The targets of new requests at the first node."""
        return {target.address for target in self.nodes[0].routable()}


async def checked_group(*targets: str, nodes: int = 1, rules: Rules = RULES) -> Group:
    """Create a group whose targets have passed one check of every node."""
    group = Group(*targets, nodes=nodes, rules=rules)
    await asyncio.sleep(10.1)
    return group


def now() -> float:
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_every_node_checks_a_target_on_a_separate_schedule() -> None:
    """Health checks: two nodes check each target once an interval, at different times."""
    group = Group("p", nodes=2)
    await asyncio.sleep(100)
    assert len(group.checks) == 20
    assert len({round(at % 10, 3) for at in group.checks}) == 2


@in_virtual_time
async def test_a_slow_answer_does_not_move_the_next_check() -> None:
    """Health checks: the time to respond does not affect the interval."""
    group = Group("p")
    group.silent = {"p"}
    await asyncio.sleep(60)
    assert {round(b - a, 3) for a, b in pairwise(group.checks)} == {10}


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
    target = Target("p", Health.HEALTHY)
    for check in checks:
        target.note(check == "+", RULES)
    assert target.health is health


@in_virtual_time
async def test_no_answer_within_the_timeout_is_a_failure() -> None:
    """Health checks, settings: a silent target is out after two timeouts, within 25 s."""
    group = await checked_group("p", "q")
    group.silent = {"p"}
    await asyncio.sleep(25)
    assert group.routed == {"q"}


@in_virtual_time
async def test_it_fails_open() -> None:
    """Health checks: with no healthy target all are routed to; with one, only it."""
    group = await checked_group("p", "q")
    for sick, expected in (({"p", "q"}, {"p", "q"}), ({"p"}, {"q"})):
        group.sick = sick
        await asyncio.sleep(30)
        assert group.routed == expected


@in_virtual_time
async def test_an_empty_group_has_nobody_to_route_to() -> None:
    """Errors, HTTP 503: without registered targets there is none to pick; it does not fail open."""
    assert Group().node().pick() is None


@in_virtual_time
async def test_a_deregistered_target_gets_new_requests_for_the_lag_alone() -> None:
    """LBC#1064: routed to for 10 to 20 s after its deregistration, unchecked, then no more."""
    group = await checked_group("p")
    group.deregister("p")
    checks = len(group.checks)
    await asyncio.sleep(9.9)
    assert group.routed == {"p"}
    await asyncio.sleep(11.2)
    assert group.nodes[0].targets == {}
    assert len(group.checks) == checks


@in_virtual_time
async def test_a_target_that_was_not_routed_to_has_no_lag() -> None:
    """A sick target that is deregistered gets nothing more."""
    group = await checked_group("p", "q")
    group.sick = {"p"}
    await asyncio.sleep(20)
    group.deregister("p")
    assert group.routed == {"q"}


@pytest.mark.parametrize(
    ("lag", "sent", "delay"),
    [
        pytest.param((10, 20), 0, 30, id="sent at once"),
        pytest.param(
            (30, 30), 29.9, 30, id="sent at the end of a lag that is as long as the delay"
        ),
        pytest.param((30, 30), 29.9, 60, id="sent at the end of a lag, with the recommended delay"),
    ],
)
@in_virtual_time
async def test_open_calls_are_cut_after_the_deregistration_delay(
    lag: tuple[float, float], sent: float, delay: float
) -> None:
    """Errors, HTTP 502: an open call ends when the delay is over, whenever it was sent."""
    group = await checked_group("p", rules=replace(RULES, deregistration=delay, routing_lag=lag))
    began, call = now(), asyncio.get_running_loop().create_future()
    group.deregister("p")
    await asyncio.sleep(sent)
    (target,) = group.nodes[0].routable()
    target.calls.add(call)
    await asyncio.wait([call])
    assert round(now() - began, 3) == delay


@in_virtual_time
async def test_a_target_registered_again_while_draining_is_new() -> None:
    """Registered again, it is initial: not routed to beside a healthy one until a check passes."""
    group = await checked_group("p", "q")
    group.deregister("p")
    group.register("p")
    assert group.routed == {"q"}
    await asyncio.sleep(10.1)
    assert group.routed == {"p", "q"}


@in_virtual_time
async def test_requests_take_turns() -> None:
    """Attributes, routing algorithm: round robin over the targets, and clients over the nodes."""
    group = await checked_group("p", "q", nodes=2)
    first, second = group.node(), group.node()
    assert first is not second
    assert {target.address for target in (first.pick(), first.pick()) if target} == {"p", "q"}


@in_virtual_time
async def test_a_target_is_ready_when_every_node_has_it_as_healthy() -> None:
    """A readiness gate waits for all nodes, and a deregistration takes the target from all."""
    group = Group("p", nodes=2)
    assert not group.is_healthy("p")
    await asyncio.sleep(10.1)
    assert group.is_healthy("p")
    group.nodes[1].targets["p"].health = Health.UNHEALTHY
    assert not group.is_healthy("p")
    group.deregister("p")
    assert {node.targets["p"].health for node in group.nodes} == {Health.DRAINING}
