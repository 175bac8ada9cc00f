import asyncio
import itertools
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghealth.checker import Checker
from ghealth.events import Sink, StatusChanged
from ghealth.health import (
    ALIVE,
    DEADLINE,
    DRAINING,
    GATEWAY,
    INTERNAL_ERROR,
    LIVENESS,
    UNKNOWN_SERVICE,
    Health,
    Reason,
    ReasonKind,
    Status,
)
from ghealth.probe import AllOf, ProbeResult, WithTimeout
from tests.support.fakes import READY, SICK, FakeProbe, Recorder, answered
from tests.support.virtual import in_virtual_time

SERVING = Health(Status.SERVING, answered(200))
NOT_SERVING = Health(Status.NOT_SERVING, answered(503))
REFUSED = Health(Status.NOT_SERVING, Reason(ReasonKind.REFUSED))
GONE = ProbeResult(ready=False, reason=REFUSED.reason)
LATE = Health(Status.NOT_SERVING, Reason(ReasonKind.TIMED_OUT, "3 s"))


def now() -> float:
    return asyncio.get_running_loop().time()


def hanging() -> FakeProbe:
    """Make a probe that has no result until its gate opens."""
    probe = FakeProbe()
    probe.gate.clear()
    return probe


def checker_of(
    *probes: FakeProbe,
    cache_ttl: float = 1,
    watch_interval: float = 1,
    emit: Sink | None = None,
    clock: Callable[[], float] = now,
) -> Checker:
    """Make a checker whose time is the loop's: virtual, and moving only when all tasks wait."""
    limited = [WithTimeout(probe, 3, clock=clock) for probe in probes]
    return Checker(
        dict(zip((GATEWAY, "second", "third"), limited, strict=False)),
        cache_ttl=cache_ttl,
        watch_interval=watch_interval,
        emit=emit or Recorder(),
        clock=clock,
    )


def gateway(probe: FakeProbe | None = None, **settings: Any) -> tuple[FakeProbe, Checker]:
    """Make the gateway's probe and a checker that has no other."""
    probe = probe or FakeProbe()
    return probe, checker_of(probe, **settings)


async def next_of(watching: AsyncGenerator[Health, None]) -> Health:
    """Take a watch's next value, which must come within virtual time that no loop needs."""
    async with asyncio.timeout(60):
        return await anext(watching)


@in_virtual_time
async def test_nothing_is_asked_before_somebody_asks() -> None:
    """Without callers there is no probe, however long that lasts."""
    probe = FakeProbe()
    checker_of(probe)
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
    [(READY, SICK, (SERVING, NOT_SERVING)), (SICK, READY, (NOT_SERVING, SERVING))],
)
@in_virtual_time
async def test_a_fresh_answer_serves_everyone_counted_from_the_start_of_its_attempt(
    first: ProbeResult, second: ProbeResult, healths: tuple[Health, Health]
) -> None:
    """A result, good or bad, serves until CACHE_TTL after its probe began, not after it ended."""
    probe = FakeProbe(first)
    probe.gate.clear()
    checker = checker_of(probe)
    checking = asyncio.create_task(checker.check(GATEWAY))
    await asyncio.sleep(0.6)
    probe.gate.set()
    assert await checking == healths[0]
    probe.says = second
    await asyncio.sleep(0.3)
    assert await checker.check(GATEWAY) == healths[0]
    await asyncio.sleep(0.1)
    assert await checker.check(GATEWAY) == healths[1]


@in_virtual_time
async def test_a_hanging_target_is_not_serving_at_the_timeout() -> None:
    """A target that never answers is NOT_SERVING after PROBE_TIMEOUT; its probe is cancelled."""
    probe, recorder = hanging(), Recorder()
    assert await checker_of(probe, emit=recorder).check(GATEWAY) == LATE
    assert recorder.probes == [(GATEWAY, LATE, 3)]
    assert probe.under_way == 0


@in_virtual_time
async def test_a_good_answer_after_the_timeout_by_the_clock_is_a_timeout() -> None:
    """Trap 15: a 200 that was buffered during a SIGSTOP does not count."""
    stopped_for = 0.0
    probe, checker = gateway(hanging(), clock=lambda: now() + stopped_for)
    caller = asyncio.create_task(checker.check(GATEWAY))
    await asyncio.sleep(1)
    stopped_for = 600.0
    probe.gate.set()
    assert await caller == LATE


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
    started = now()
    assert await checker.check(GATEWAY, timeout=0.5) == DEADLINE
    assert now() - started == pytest.approx(0.5, abs=0.01)
    assert len(checker._services[GATEWAY].waiters) == 1, "a caller that has its answer costs memory"
    probe.gate.set()
    assert await patient == SERVING
    assert probe.attempts == 1


@pytest.mark.parametrize("bug", [ZeroDivisionError, asyncio.CancelledError])
@in_virtual_time
async def test_a_bug_in_a_probe_reads_as_not_serving(
    bug: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged with its stack, callers and watches read it, and the next probe counts again."""
    probe, checker = gateway()
    watching = checker.watch(GATEWAY)
    assert await next_of(watching) == SERVING
    probe.says = bug()
    assert await next_of(watching) == INTERNAL_ERROR
    assert await checker.check(GATEWAY) == INTERNAL_ERROR
    (line,) = caplog.records
    assert (line.getMessage(), line.__dict__["event"]) == ("probing failed", "internal_error")
    assert line.exc_info is not None
    probe.says = READY
    assert await next_of(watching) == SERVING


@in_virtual_time
async def test_the_end_of_the_loop_answers_the_callers() -> None:
    """Trap 2: a caller that waits when the probe's task is cancelled gets an answer."""
    checker = checker_of(hanging())
    before = asyncio.all_tasks()
    checking = asyncio.create_task(checker.check(GATEWAY))
    await asyncio.sleep(0.1)
    (probing,) = asyncio.all_tasks() - before - {checking}
    probing.cancel()
    assert await checking == INTERNAL_ERROR


@in_virtual_time
async def test_a_bug_in_one_of_several_probes_is_no_cancellation(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is logged, counted and kept as any result, although a TaskGroup has cancelled the task."""
    recorder, broken = Recorder(), FakeProbe(ZeroDivisionError())
    both = AllOf([FakeProbe(), broken])
    checker = Checker({GATEWAY: both}, cache_ttl=1, watch_interval=1, emit=recorder, clock=now)
    for _ in range(2):
        assert await checker.check(GATEWAY) == INTERNAL_ERROR
    assert broken.attempts == 1
    assert recorder.probes == [(GATEWAY, INTERNAL_ERROR, 0)]
    assert [line.getMessage() for line in caplog.records] == ["probing failed"]


@pytest.mark.parametrize(("service", "health"), [(LIVENESS, ALIVE), ("nobody", UNKNOWN_SERVICE)])
@in_virtual_time
async def test_liveness_and_unknown_names_never_touch_a_target(
    service: str, health: Health
) -> None:
    """`liveness` is SERVING and any other name SERVICE_UNKNOWN, draining included."""
    probe, checker = gateway(FakeProbe(SICK))
    assert await checker.check(service) == health
    checker.drain()
    assert await checker.check(service) == health
    assert probe.attempts == 0


@in_virtual_time
async def test_services_are_independent() -> None:
    """A service whose target hangs or is sick changes nothing for another."""
    checker = checker_of(hanging(), FakeProbe())
    waiting = asyncio.create_task(checker.check(GATEWAY))
    started = now()
    assert await checker.check("second") == SERVING
    assert now() == started
    assert await waiting == LATE


@in_virtual_time
async def test_a_check_of_all_services_probes_each_of_them_once() -> None:
    """The probes are under way at the same time, and none is repeated, TTL 0 included."""
    probes = hanging(), hanging(), hanging()
    checking = asyncio.create_task(checker_of(*probes, cache_ttl=0).check_all())
    await asyncio.sleep(1)
    assert [probe.under_way for probe in probes] == [1, 1, 1]
    for probe in probes:
        probe.gate.set()
    await checking
    assert [probe.attempts for probe in probes] == [1, 1, 1]


@in_virtual_time
async def test_a_check_of_all_services_is_answered_before_its_deadline() -> None:
    """Only a service whose probe takes longer than the caller can wait is DEADLINE."""
    slow = hanging()
    checker = checker_of(slow, FakeProbe())
    started = now()
    healths = await checker.check_all(timeout=0.5)
    assert list(healths.items()) == [(GATEWAY, DEADLINE), ("second", SERVING), (LIVENESS, ALIVE)]
    assert now() - started == pytest.approx(0.5, abs=0.01)


@in_virtual_time
async def test_a_drain_reaches_a_check_of_all_services_that_waits() -> None:
    """A service that was SERVING while another was waited for is not SERVING in the answer."""
    slow, well = hanging(), FakeProbe()
    checker = checker_of(slow, well)
    checking = asyncio.create_task(checker.check_all())
    await asyncio.sleep(1)
    assert well.attempts == 1
    checker.drain()
    assert await checking == {GATEWAY: DRAINING, "second": DRAINING, LIVENESS: ALIVE}


def changes_of(recorder: Recorder) -> list[tuple[str, Health | None, Health, float]]:
    return [
        (event.service, event.previous, event.health, event.held_seconds)
        for event in recorder.events
        if isinstance(event, StatusChanged)
    ]


@in_virtual_time
async def test_each_attempt_and_each_change_is_one_event() -> None:
    """A change of the reason is one too, with how long that reason held; fresh results are none."""
    probe, recorder = FakeProbe(), Recorder()
    checker = checker_of(probe, cache_ttl=0.5, emit=recorder)
    await asyncio.sleep(7)
    for says in (READY, READY, SICK, SICK, GONE, SICK, READY):
        probe.says = says
        for _ in range(2):
            await checker.check(GATEWAY)
        await asyncio.sleep(1)
    await checker.check(LIVENESS)
    probed = [SERVING, SERVING, NOT_SERVING, NOT_SERVING, REFUSED, NOT_SERVING, SERVING]
    assert recorder.probes == [(GATEWAY, health, 0) for health in probed]
    assert changes_of(recorder) == [
        (GATEWAY, None, SERVING, 0),
        (GATEWAY, SERVING, NOT_SERVING, 2),
        (GATEWAY, NOT_SERVING, REFUSED, 2),
        (GATEWAY, REFUSED, NOT_SERVING, 1),
        (GATEWAY, NOT_SERVING, SERVING, 4),
    ]
    kinds = [event.is_new_status for event in recorder.events if isinstance(event, StatusChanged)]
    assert kinds == [True, True, False, False, True]


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
    assert changes_of(recorder)[2:] == [
        (GATEWAY, SERVING, DRAINING, 1),
        ("second", NOT_SERVING, DRAINING, 1),
    ]
    slow.gate.set()
    await asyncio.sleep(1)
    assert await waiting == DRAINING
    await checker.close()
    assert recorder.probes[2:] == [(GATEWAY, SERVING, 1)]
    assert len(changes_of(recorder)) == 4


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
    probe, checker = gateway()

    async def follow() -> None:
        async with aclosing(checker.watch(GATEWAY)) as watching:
            async for _ in watching:
                pass

    watcher = asyncio.create_task(follow())
    for _ in range(turns):
        await asyncio.sleep(0)
    watcher.cancel()
    await asyncio.wait((watcher,))
    await asyncio.sleep(1)
    asked = probe.attempts
    await asyncio.sleep(3600)
    assert probe.attempts == asked
    assert asyncio.all_tasks() == before


@in_virtual_time
async def test_draining_answers_those_who_wait_at_once() -> None:
    """A caller that waits when drain begins reads draining, never SERVING, and without delay."""
    probe, checker = gateway(hanging())
    waiting = asyncio.create_task(checker.check(GATEWAY))
    await asyncio.sleep(1)
    drained = now()
    checker.drain()
    assert await waiting == DRAINING
    assert now() == drained
    assert probe.under_way == 1, "it was not the attempt that ended the wait"


@in_virtual_time
async def test_a_watch_begins_with_the_result_of_an_attempt() -> None:
    """The first value waits for the probe: it is never an invented NOT_SERVING."""
    probe = hanging()
    watching = checker_of(probe).watch(GATEWAY)
    first = asyncio.create_task(next_of(watching))
    await asyncio.sleep(2)
    assert not first.done()
    probe.gate.set()
    assert await first == SERVING


@in_virtual_time
async def test_a_watch_tells_changes_only() -> None:
    """Equal statuses are not sent twice, whatever their reasons."""
    probe = FakeProbe(SICK)
    watching = checker_of(probe).watch(GATEWAY)
    assert await next_of(watching) == NOT_SERVING
    second = asyncio.create_task(next_of(watching))
    probe.says = GONE
    await asyncio.sleep(10)
    assert not second.done()
    probe.says = READY
    assert await second == SERVING


@in_virtual_time
async def test_a_watch_after_the_end_of_all_others_follows_the_service() -> None:
    """Probing begins again with a watch that comes after it had ended."""
    probe, checker = gateway()
    earlier = checker.watch(GATEWAY)
    assert await next_of(earlier) == SERVING
    await earlier.aclose()
    await asyncio.sleep(10)
    watching = checker.watch(GATEWAY)
    assert await next_of(watching) == SERVING
    probe.says = SICK
    assert await next_of(watching) == NOT_SERVING


@pytest.mark.parametrize(
    ("service", "told"),
    [(GATEWAY, [SERVING, DRAINING]), (LIVENESS, [ALIVE]), ("nobody", [UNKNOWN_SERVICE])],
)
@in_virtual_time
async def test_a_watch_through_drain_to_its_end(service: str, told: list[Health]) -> None:
    """Drain reaches watchers, but not of `liveness` or unknown names; all end together."""
    checker = checker_of(FakeProbe())
    seen: list[tuple[float, Health]] = []

    async def follow() -> float:
        async for health in checker.watch(service):
            seen.append((now(), health))
        return now()

    watcher = asyncio.create_task(follow())
    await asyncio.sleep(0.5)
    drained = now()
    checker.drain()
    await asyncio.sleep(5)
    assert [health for _, health in seen] == told
    if DRAINING in told:
        assert seen[-1][0] == drained
    assert not watcher.done()
    checker.end_watches()
    checker.end_watches()
    assert await watcher == now()


@in_virtual_time
async def test_a_watcher_without_patience_gets_its_first_value_in_time() -> None:
    """A watcher's deadline bounds its first value as it bounds a check's answer."""
    probe = hanging()
    watching = checker_of(probe).watch(GATEWAY, timeout=0.5)
    assert await next_of(watching) == DEADLINE
    assert now() < 1
    probe.gate.set()
    assert await next_of(watching) == SERVING


@in_virtual_time
async def test_a_watch_can_end_before_the_first_result() -> None:
    """A watcher whose first value came at its deadline gets no other one at the end."""
    checker = checker_of(hanging())
    watching = checker.watch(GATEWAY, timeout=0.5)
    assert await next_of(watching) == DEADLINE
    checker.end_watches()
    with pytest.raises(StopAsyncIteration):
        await next_of(watching)


@in_virtual_time
async def test_a_later_look_of_a_watch_has_all_the_time() -> None:
    """A deadline bounds the first value alone: a slow look later invents no NOT_SERVING."""
    probe = FakeProbe()
    watching = checker_of(probe, cache_ttl=0).watch(GATEWAY, timeout=0.5)
    assert await next_of(watching) == SERVING
    probe.gate.clear()
    second = asyncio.create_task(next_of(watching))
    await asyncio.sleep(3)
    assert not second.done()
    probe.gate.set()
    probe.says = SICK
    assert await second == NOT_SERVING


@pytest.mark.parametrize("interval", [0.25, 4])
@in_virtual_time
async def test_watchers_share_one_interval(interval: float) -> None:
    """They cause one probe each WATCH_INTERVAL, though no result is fresh, and none afterwards."""
    probe, checker = gateway(cache_ttl=0, watch_interval=interval)
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
    probe, recorder = hanging(), Recorder()
    before = asyncio.all_tasks()
    checker = checker_of(probe, FakeProbe(), emit=recorder)
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
def test_watch_properties(steps: list[tuple[str, float]], service: str) -> None:
    """A watch never sends equal neighbours, and during the drain SERVING only for `liveness`."""

    @in_virtual_time
    async def story() -> None:
        probe = FakeProbe()
        checker = checker_of(probe)
        told: list[Status] = []
        told_when_drained = 0

        async def follow() -> None:
            async for health in checker.watch(service):
                told.append(health.status)

        watcher = asyncio.create_task(follow())
        await asyncio.sleep(0)
        draining = False
        for what, pause in [*steps, ("drain", 1.0)]:
            match what:
                case "hang":
                    probe.gate.clear()
                case "drain" if not draining:
                    draining, told_when_drained = True, len(told)
                    checker.drain()
                case _:
                    probe.says = {"ready": READY, "sick": SICK}.get(what, ZeroDivisionError())
                    probe.gate.set()
            await asyncio.sleep(pause)
        await checker.close()
        await watcher
        assert all(a is not b for a, b in itertools.pairwise(told))
        if service != LIVENESS:
            assert Status.SERVING not in told[told_when_drained:]

    logging.disable()
    try:
        story()
    finally:
        logging.disable(logging.NOTSET)
