import asyncio
import itertools
from collections.abc import AsyncGenerator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghealth.checker import Checker
from ghealth.events import StatusChanged
from ghealth.health import (
    ALIVE,
    DEADLINE,
    DRAINING,
    GATEWAY,
    INTERNAL_ERROR,
    LIVENESS,
    UNKNOWN_SERVICE,
    Health,
    Status,
)
from ghealth.probe import ProbeResult
from tests.support.fakes import READY, SICK, FakeProbe, Recorder, answered, hanging
from tests.support.virtual import in_virtual_time

SERVING = Health(Status.SERVING, answered(200))
NOT_SERVING = Health(Status.NOT_SERVING, answered(503))
GONE = ProbeResult(ready=False, reason=answered(404))
NOT_FOUND = Health(Status.NOT_SERVING, GONE.reason)


def now() -> float:
    """Return the loop's time: virtual, and moving only when all tasks wait."""
    return asyncio.get_running_loop().time()


def checker_of(*probes: FakeProbe, **settings: Any) -> Checker:
    """Make a checker of the gateway and of as many further services as there are probes."""
    services = dict(zip((GATEWAY, "second", "third"), probes, strict=False))
    defaults: dict[str, Any] = {
        "cache_ttl": 1,
        "watch_interval": 1,
        "emit": Recorder(),
        "clock": now,
    }
    return Checker(services, **defaults | settings)


def gateway(probe: FakeProbe | None = None, **settings: Any) -> tuple[FakeProbe, Checker]:
    """Make the gateway's probe, ready unless given, and a checker that has no other."""
    probe = probe or FakeProbe()
    return probe, checker_of(probe, **settings)


async def follow(watching: AsyncGenerator[Health, None], told: list[Health]) -> None:
    """Record what a watch sends until its end."""
    async for health in watching:
        told.append(health)


async def next_of(watching: AsyncGenerator[Health, None]) -> Health:
    """Take a watch's next value, which must come within virtual time that no loop needs."""
    async with asyncio.timeout(60):
        return await anext(watching)


@in_virtual_time
async def test_nothing_is_asked_before_somebody_asks() -> None:
    """Without callers there is no probe, however long that lasts."""
    probe, _ = gateway()
    await asyncio.sleep(3600)
    assert probe.attempts == 0


@in_virtual_time
async def test_callers_of_one_moment_share_one_attempt() -> None:
    """Twenty callers that come while a probe is under way cause no other, TTL 0 included."""
    probe, checker = gateway(hanging(), cache_ttl=0)
    callers = [asyncio.create_task(checker.check(GATEWAY)) for _ in range(20)]
    await asyncio.sleep(1)
    probe.gate.set()
    assert [await caller for caller in callers] == [SERVING] * 20
    assert probe.attempts == 1


@pytest.mark.parametrize(
    ("first", "second", "healths"),
    [(READY, SICK, [SERVING, NOT_SERVING]), (SICK, READY, [NOT_SERVING, SERVING])],
)
@in_virtual_time
async def test_a_fresh_answer_serves_everyone_counted_from_the_start_of_its_attempt(
    first: ProbeResult, second: ProbeResult, healths: list[Health]
) -> None:
    """A result, good or bad, serves until CACHE_TTL after its probe began, not after it ended."""
    probe, checker = gateway(hanging())
    asyncio.get_running_loop().call_later(0.6, probe.gate.set)
    probe.says = first
    assert await checker.check(GATEWAY) == healths[0]
    probe.says = second
    await asyncio.sleep(0.3)
    assert await checker.check(GATEWAY) == healths[0]
    await asyncio.sleep(0.1)
    assert await checker.check(GATEWAY) == healths[1]


@in_virtual_time
async def test_a_target_that_flaps_is_told_as_it_was_a_moment_ago() -> None:
    """Ten changes a second, in the middle of probes too: no SERVING is older than CACHE_TTL."""
    probe, checker = gateway()
    said, seen = float("-inf"), set()
    for number in range(200):
        probe.gate.clear()
        asking = asyncio.create_task(checker.check(GATEWAY))
        await asyncio.sleep(0.05)
        probe.says = (READY, SICK)[number % 2]
        if probe.under_way and probe.says is READY:
            said = now()
        probe.gate.set()
        health = await asking
        seen.add(health.status)
        assert health.status is not Status.SERVING or now() - said <= 1
        await asyncio.sleep(0.045)
    assert seen == {Status.SERVING, Status.NOT_SERVING}


@in_virtual_time
async def test_a_caller_without_patience_is_answered_and_the_attempt_goes_on() -> None:
    """A caller that cannot wait reads NOT_SERVING in time; the others get the real outcome."""
    probe, checker = gateway(hanging())
    patient = asyncio.create_task(checker.check(GATEWAY))
    assert await checker.check(GATEWAY, timeout=0.5) == DEADLINE
    assert now() == pytest.approx(0.5, abs=0.01)
    assert len(checker._services[GATEWAY].waiters) == 1, "a caller that has its answer costs memory"
    probe.gate.set()
    assert await patient == SERVING
    assert probe.attempts == 1


@pytest.mark.parametrize("bug", [ZeroDivisionError, asyncio.CancelledError])
@in_virtual_time
async def test_a_bug_in_a_probe_reads_as_not_serving(
    bug: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its stack and counts as any result, and the next probe counts again."""
    recorder = Recorder()
    probe, checker = gateway(emit=recorder)
    watching = checker.watch(GATEWAY)
    assert await next_of(watching) == SERVING
    probe.says = bug()
    assert await next_of(watching) == INTERNAL_ERROR
    assert await checker.check(GATEWAY) == INTERNAL_ERROR
    assert recorder.probes == [(GATEWAY, SERVING, 0), (GATEWAY, INTERNAL_ERROR, 0)]
    (line,) = caplog.records
    assert (line.getMessage(), line.__dict__["event"]) == ("probing failed", "internal_error")
    assert line.exc_info is not None
    probe.says = READY
    assert await next_of(watching) == SERVING


@in_virtual_time
async def test_services_are_independent() -> None:
    """Of all services, only one whose target hangs is DEADLINE for a caller that cannot wait."""
    healths = await checker_of(hanging(), FakeProbe()).check_all(timeout=0.5)
    assert list(healths.items()) == [(GATEWAY, DEADLINE), ("second", SERVING), (LIVENESS, ALIVE)]
    assert now() == pytest.approx(0.5, abs=0.01)


@in_virtual_time
async def test_draining_answers_those_who_wait_at_once() -> None:
    """They read draining, never SERVING, also of a service that was SERVING a moment ago."""
    slow, well = hanging(), FakeProbe()
    checker = checker_of(slow, well)
    checking = asyncio.create_task(checker.check_all())
    await asyncio.sleep(1)
    assert well.attempts == 1
    checker.drain()
    assert await checking == {GATEWAY: DRAINING, "second": DRAINING, LIVENESS: ALIVE}
    assert slow.under_way == 1, "it was not the attempt that ended the wait"


def changes_of(recorder: Recorder) -> list[tuple[str, Health | None, Health, float, bool]]:
    return [
        (event.service, event.previous, event.health, event.held_seconds, event.is_new_status)
        for event in recorder.events
        if isinstance(event, StatusChanged)
    ]


@in_virtual_time
async def test_each_attempt_and_each_change_is_one_event() -> None:
    """A change of the reason is one too, with how long that reason held; fresh results are none."""
    recorder = Recorder()
    probe, checker = gateway(cache_ttl=0.5, emit=recorder)
    await asyncio.sleep(7)
    for says in (READY, READY, SICK, SICK, GONE, SICK, READY):
        probe.says = says
        for _ in range(2):
            await checker.check(GATEWAY)
        await asyncio.sleep(1)
    await checker.check(LIVENESS)
    probed = [SERVING, SERVING, NOT_SERVING, NOT_SERVING, NOT_FOUND, NOT_SERVING, SERVING]
    assert recorder.probes == [(GATEWAY, health, 0) for health in probed]
    assert changes_of(recorder) == [
        (GATEWAY, None, SERVING, 0, True),
        (GATEWAY, SERVING, NOT_SERVING, 2, True),
        (GATEWAY, NOT_SERVING, NOT_FOUND, 2, False),
        (GATEWAY, NOT_FOUND, NOT_SERVING, 1, False),
        (GATEWAY, NOT_SERVING, SERVING, 4, True),
    ]


@in_virtual_time
async def test_the_drain_is_a_change_of_each_service_that_changed() -> None:
    """One without a result has not changed; no fresh or later result and no drain counts again."""
    slow, sick, unasked, recorder = FakeProbe(), FakeProbe(SICK), FakeProbe(), Recorder()
    checker = checker_of(slow, sick, unasked, cache_ttl=0, emit=recorder)
    await checker.check(GATEWAY)
    await checker.check("second")
    slow.gate.clear()
    waiting = asyncio.create_task(checker.check(GATEWAY))
    await asyncio.sleep(1)
    before = checker.draining
    checker.drain()
    checker.drain()
    assert (before, checker.draining) == (False, True)
    assert await checker.check("second") == DRAINING
    slow.gate.set()
    await asyncio.sleep(1)
    assert await waiting == DRAINING
    await checker.close()
    assert recorder.probes[2:] == [(GATEWAY, SERVING, 1)]
    assert changes_of(recorder)[2:] == [
        (GATEWAY, SERVING, DRAINING, 1, True),
        ("second", NOT_SERVING, DRAINING, 1, False),
    ]


@pytest.mark.parametrize("turns", range(8))
@in_virtual_time
async def test_cancelling_a_caller_at_any_await_leaves_nothing(turns: int) -> None:
    """Wherever a check is cancelled, the probe continues for the others, and nothing is left."""
    before = asyncio.all_tasks()
    probe, checker = gateway(hanging())
    callers = [asyncio.create_task(checker.check(GATEWAY)) for _ in range(2)]
    for _ in range(turns):
        await asyncio.sleep(0)
    callers[0].cancel()
    probe.gate.set()
    assert await callers[1] == SERVING
    await asyncio.wait(callers)
    assert asyncio.all_tasks() == before
    assert await checker.check(GATEWAY) == SERVING
    assert probe.attempts == 1


@pytest.mark.parametrize("turns", range(8))
@in_virtual_time
async def test_cancelling_a_watcher_at_any_await_leaves_nothing(turns: int) -> None:
    """Wherever a watch is cancelled, it ends, and so does its asking."""
    before = asyncio.all_tasks()
    _, checker = gateway()
    watcher = asyncio.create_task(follow(checker.watch(GATEWAY), []))
    for _ in range(turns):
        await asyncio.sleep(0)
    watcher.cancel()
    await asyncio.sleep(1.1)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize(
    ("service", "expected"),
    [(GATEWAY, [SERVING, DRAINING]), (LIVENESS, [ALIVE]), ("nobody", [UNKNOWN_SERVICE])],
)
@in_virtual_time
async def test_a_watch_through_drain_to_its_end(service: str, expected: list[Health]) -> None:
    """Drain reaches watchers at once, but not of `liveness` or unknown names; all end together."""
    probe, checker = gateway()
    told: list[Health] = []
    watcher = asyncio.create_task(follow(checker.watch(service), told))
    await asyncio.sleep(0.5)
    checker.drain()
    await asyncio.sleep(0.01)
    assert told == expected
    await asyncio.sleep(5)
    assert not watcher.done()
    assert await checker.check(service) == expected[-1]
    checker.end_watches()
    await watcher
    assert told == expected
    assert probe.attempts == (service == GATEWAY), "the others never touch a target"


@in_virtual_time
async def test_a_deadline_bounds_only_the_first_value_of_a_watch() -> None:
    """It comes in time; the probe continues, and a slow one later invents no NOT_SERVING."""
    probe, checker = gateway(hanging(), cache_ttl=0)
    watching = checker.watch(GATEWAY, timeout=0.5)
    assert await next_of(watching) == DEADLINE
    assert now() == pytest.approx(0.5, abs=0.01)
    probe.gate.set()
    assert await next_of(watching) == SERVING
    probe.gate.clear()
    second = asyncio.create_task(next_of(watching))
    await asyncio.sleep(3)
    assert not second.done()
    probe.says = SICK
    probe.gate.set()
    assert await second == NOT_SERVING


@in_virtual_time
async def test_a_watch_can_end_before_the_first_result() -> None:
    """A watcher whose first value came at its deadline gets no other one at the end."""
    _, checker = gateway(hanging())
    watching = checker.watch(GATEWAY, timeout=0.5)
    assert await next_of(watching) == DEADLINE
    checker.end_watches()
    assert [health async for health in watching] == []


@pytest.mark.parametrize("interval", [0.25, 4])
@in_virtual_time
async def test_watchers_share_one_interval(interval: float) -> None:
    """They cause one probe each WATCH_INTERVAL, none after the last, and later ones do again."""
    probe, checker = gateway(cache_ttl=0, watch_interval=interval)
    for _ in range(2):
        watchings = [checker.watch(GATEWAY) for _ in range(5)]
        for watching in watchings:
            await next_of(watching)
            await asyncio.sleep(interval / 20)
        before = probe.attempts
        await asyncio.sleep(10 * interval)
        assert probe.attempts - before == 10
        for watching in watchings:
            await watching.aclose()
        await asyncio.sleep(10 * interval)
        assert probe.attempts - before == 10


@in_virtual_time
async def test_closing_leaves_nothing_behind(caplog: pytest.LogCaptureFixture) -> None:
    """No task is left, waiting callers are answered, and a cancelled probe is not reported."""
    recorder, before = Recorder(), asyncio.all_tasks()
    probe, checker = gateway(hanging(), emit=recorder)
    waiting = asyncio.create_task(checker.check(GATEWAY))
    await asyncio.sleep(0.1)
    await checker.close()
    assert probe.under_way == 0
    assert await waiting == DRAINING
    assert asyncio.all_tasks() == before
    assert (caplog.records, recorder.events) == ([], [])


ACTIONS = st.sampled_from(["ready", "sick", "hang", "bug", "drain"])
STEPS = st.lists(st.tuples(ACTIONS, st.floats(min_value=0, max_value=5)), max_size=12)


@given(steps=STEPS, service=st.sampled_from([GATEWAY, LIVENESS, "nobody"]))
@in_virtual_time
async def test_watch_properties(steps: list[tuple[str, float]], service: str) -> None:
    """A watch never sends equal neighbours, and during the drain SERVING only for `liveness`."""
    probe, checker = gateway()
    told: list[Health] = []
    told_before_drain = 0
    watcher = asyncio.create_task(follow(checker.watch(service), told))
    await asyncio.sleep(0)
    for what, pause in [*steps, ("drain", 1.0)]:
        match what:
            case "hang":
                probe.gate.clear()
            case "drain" if not checker.draining:
                told_before_drain = len(told)
                checker.drain()
            case _:
                probe.says = {"ready": READY, "sick": SICK}.get(what, ZeroDivisionError())
                probe.gate.set()
        await asyncio.sleep(pause)
    await checker.close()
    await watcher
    assert all(a.status is not b.status for a, b in itertools.pairwise(told))
    if service != LIVENESS:
        assert not any(health.serving for health in told[told_before_drain:])
