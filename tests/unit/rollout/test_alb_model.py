"""The model of an ALB, rule by rule; the sources are in the module's docstring and at each rule."""

import asyncio
from random import Random

from bench.rollout.alb import Health, Node, Rules, TargetGroup
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
        self.asked.append((asyncio.get_running_loop().time(), address))
        if address in self.silent:
            await asyncio.sleep(3600)
        return address not in self.sick


def node(pods: Pods, rules: Rules = RULES, zone: str = "a") -> Node[str]:
    return Node(zone, rules, pods.check, Random(1))


def routed(one: Node[str]) -> set[str]:
    return {target.address for target in one.routable()}


@in_virtual_time
async def test_a_new_target_needs_one_pass() -> None:
    """Health checks: a registered target is initial until one check has passed, then healthy."""
    pods = Pods()
    one = node(pods)
    one.register("p", "a")
    seen = [one.targets["p"].health]
    await asyncio.sleep(10.1)
    seen += [one.targets["p"].health]
    assert len(pods.asked) == 1
    assert seen == [Health.INITIAL, Health.HEALTHY]
    await one.close()


@in_virtual_time
async def test_every_node_checks_every_target_on_its_own_schedule() -> None:
    """Health checks: two nodes check each target once an interval, at different times."""
    pods = Pods()
    group = TargetGroup(["a", "b"], RULES, pods.check, Random(1))
    group.register("p", "a")
    group.register("q", "b")
    await asyncio.sleep(100)
    for address in ("p", "q"):
        moments = [at for at, asked in pods.asked if asked == address]
        assert len(moments) == 20
        assert len({round(at % 10, 3) for at in moments}) == 2
    await group.close()


@in_virtual_time
async def test_a_slow_answer_does_not_move_the_next_check() -> None:
    """Health checks: the time to respond does not affect the interval."""
    pods = Pods()
    pods.silent = {"p"}
    one = node(pods)
    one.register("p", "a")
    await asyncio.sleep(60)
    gaps = {round(b[0] - a[0], 3) for a, b in zip(pods.asked, pods.asked[1:], strict=False)}
    assert gaps == {10}
    await one.close()


@in_virtual_time
async def test_thresholds_count_checks_in_a_row() -> None:
    """Settings: two failures in a row take a target out, two passes bring it back."""
    pods = Pods()
    one = node(pods)
    one.register("p", "a")
    target = one.targets["p"]
    await asyncio.sleep(10.1)
    for passed, health in (
        (False, Health.HEALTHY),
        (True, Health.HEALTHY),
        (False, Health.HEALTHY),
        (False, Health.UNHEALTHY),
        (True, Health.UNHEALTHY),
        (False, Health.UNHEALTHY),
        (True, Health.UNHEALTHY),
        (True, Health.HEALTHY),
    ):
        target.note(passed, RULES)
        assert target.health is health
    await one.close()


@in_virtual_time
async def test_no_answer_within_the_timeout_is_a_failure() -> None:
    """Health checks, settings: a silent target is out after two timeouts, within 25 s."""
    pods = Pods()
    one = node(pods)
    one.register("p", "a")
    one.register("q", "a")
    await asyncio.sleep(10.1)
    pods.silent = {"p"}
    await asyncio.sleep(25)
    assert one.targets["p"].health is Health.UNHEALTHY
    assert routed(one) == {"q"}
    await one.close()


@in_virtual_time
async def test_it_fails_open() -> None:
    """Health checks: with no healthy target all are routed to; with one, only it."""
    pods = Pods()
    one = node(pods)
    one.register("p", "a")
    one.register("q", "b")
    pods.sick = {"p", "q"}
    await asyncio.sleep(30)
    assert routed(one) == {"p", "q"}
    pods.sick = {"p"}
    await asyncio.sleep(30)
    assert routed(one) == {"q"}
    await one.close()


@in_virtual_time
async def test_failing_open_is_counted_per_zone() -> None:
    """Target group health: with cross-zone off, a zone whose only pod is sick sends to it."""
    for cross_zone, expected in ((False, {"p"}), (True, {"q"})):
        pods = Pods()
        rules = Rules(10, 5, 2, 2, 30, (10, 20), cross_zone=cross_zone)
        one = node(pods, rules, zone="a")
        one.register("p", "a")
        one.register("q", "b")
        pods.sick = {"p"}
        await asyncio.sleep(30)
        assert routed(one) == expected
        await one.close()


@in_virtual_time
async def test_an_empty_group_has_nobody_to_route_to() -> None:
    """Errors, HTTP 503: without registered targets there is none to pick; it does not fail open."""
    pods = Pods()
    one = node(pods)
    assert one.pick() is None
    one.register("p", "a")
    await asyncio.sleep(10.1)
    one.deregister("p")
    await asyncio.sleep(20)
    assert one.pick() is None
    await one.close()


@in_virtual_time
async def test_a_deregistered_target_gets_new_requests_for_the_lag_alone() -> None:
    """LBC#1064: routed to for 10 to 20 s after its deregistration, unchecked, then no more."""
    pods = Pods()
    one = node(pods)
    for address in ("p", "q"):
        one.register(address, "a")
    await asyncio.sleep(10.1)
    one.deregister("p")
    asked = len([a for _, a in pods.asked if a == "p"])
    await asyncio.sleep(9.9)
    assert routed(one) == {"p", "q"}
    await asyncio.sleep(10.2)
    assert routed(one) == {"q"}
    assert len([a for _, a in pods.asked if a == "p"]) == asked
    await one.close()


@in_virtual_time
async def test_a_target_that_was_not_routed_to_has_no_lag() -> None:
    """A sick target that is deregistered gets nothing more."""
    pods = Pods()
    one = node(pods)
    for address in ("p", "q"):
        one.register(address, "a")
    pods.sick = {"p"}
    await asyncio.sleep(30)
    one.deregister("p")
    assert routed(one) == {"q"}
    await one.close()


@in_virtual_time
async def test_what_is_under_way_is_cut_after_the_deregistration_delay() -> None:
    """Errors, HTTP 502: the delay over, requests in flight end; with none, the lag over."""
    for in_flight, over in ((1, 30.1), (0, 21.1)):
        pods = Pods()
        one = node(pods)
        one.register("p", "a")
        await asyncio.sleep(10.1)
        target = one.targets["p"]
        target.in_flight = in_flight
        cut: list[float] = []
        target.closed.append(lambda cut=cut: cut.append(asyncio.get_running_loop().time()))
        began = asyncio.get_running_loop().time()
        one.deregister("p")
        await asyncio.sleep(over)
        assert len(cut) == 1
        assert (cut[0] - began >= 30) == bool(in_flight)
        assert "p" not in one.targets
        await one.close()


@in_virtual_time
async def test_a_delay_as_long_as_the_lag_cuts_the_last_calls() -> None:
    """A call sent in the lag's last moment is cut at once by a delay of 30 s, not by one of 60."""
    for delay, seconds in ((30, 0), (60, 30)):
        pods = Pods()
        one = node(pods, Rules(10, 5, 2, 2, delay, (30, 30)))
        one.register("p", "a")
        await asyncio.sleep(10.1)
        one.deregister("p")
        await asyncio.sleep(29.9)
        target = one.pick()
        assert target is not None
        target.in_flight += 1
        cut = asyncio.Event()
        target.closed.append(cut.set)
        sent = asyncio.get_running_loop().time()
        await cut.wait()
        assert seconds <= asyncio.get_running_loop().time() - sent <= seconds + 1
        await one.close()


@in_virtual_time
async def test_a_target_registered_again_while_draining_is_new() -> None:
    """Registered again, it is initial: not routed to beside a healthy one until a check passes."""
    pods = Pods()
    one = node(pods)
    for address in ("p", "q"):
        one.register(address, "a")
    await asyncio.sleep(10.1)
    one.deregister("p")
    one.register("p", "a")
    assert one.targets["p"].health is Health.INITIAL
    assert routed(one) == {"q"}
    await asyncio.sleep(10.1)
    assert routed(one) == {"p", "q"}
    await one.close()


@in_virtual_time
async def test_requests_take_turns() -> None:
    """Attributes, routing algorithm: round robin over the targets, and clients over the nodes."""
    pods = Pods()
    group = TargetGroup(["a", "b"], RULES, pods.check, Random(1))
    for address in ("p", "q"):
        group.register(address, "a")
    await asyncio.sleep(10.1)
    first, second = group.node(), group.node()
    assert first is not second
    picked = [target.address for target in (first.pick(), first.pick()) if target]
    assert sorted(picked) == ["p", "q"]
    await group.close()


@in_virtual_time
async def test_a_new_node_asks_for_itself() -> None:
    """Each node has its own status of a target, and gets no requests before it is in DNS."""
    pods = Pods()
    group = TargetGroup(["a", "b"], RULES, pods.check, Random(1))
    for address in ("p", "q"):
        group.register(address, "a")
    await asyncio.sleep(10.1)
    pods.sick = {"p"}
    await asyncio.sleep(30)
    group.add_node("c")
    late = group.nodes[-1]
    assert late not in [group.node() for _ in range(4)]
    assert not group.is_healthy("q")
    await asyncio.sleep(10.1)
    assert late in [group.node() for _ in range(4)]
    assert routed(late) == {"q"}
    assert group.is_healthy("q")
    assert not group.is_healthy("p")
    await group.close()
