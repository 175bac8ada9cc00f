import json
from typing import Any

from bench.rollout.__main__ import PAGE, RESULTS, SEEDS, filled
from bench.rollout.contenders import CONTENDERS
from bench.rollout.events import EVENTS
from bench.rollout.report import BOUND, broken

RUNS: list[dict[str, Any]] = json.loads(RESULTS.read_text())


def run(event: str, **of_ghealth: object) -> dict[str, Any]:
    result = {"failed": 0, "results": {}, "out_after": 0.0}
    contenders = {"ghealth": result | of_ghealth, "http": result}
    return {"event": event, "seed": 1, "longest_pause_ms": 0, "contenders": contenders}


def test_the_page_is_what_the_runs_say() -> None:
    """The tables are those of the committed results, unedited."""
    page = PAGE.read_text()
    assert page == filled(page, RUNS)


def test_the_committed_runs_are_complete_and_keep_the_promises() -> None:
    """Every event has all its seeds, at least 20, and nothing is broken."""
    assert SEEDS >= 20
    made = {(one["event"], one["seed"]) for one in RUNS}
    assert made == {(event.name, seed) for event in EVENTS for seed in range(1, SEEDS + 1)}
    assert broken(RUNS) == []


def test_everybody_takes_part() -> None:
    """No contender is without a run, and no event names one that is not there."""
    names = {contender.name for contender in CONTENDERS}
    assert {name for event in EVENTS for name in event.contenders} == names


def test_a_failed_call_in_a_planned_event_is_told() -> None:
    """A planned event promises no failure; an unplanned one does not, if the rival has as many."""
    assert broken([run("restart")]) == []
    assert len(broken([run("restart", failed=1)])) == 1
    assert broken([run("hang", failed=1)]) == []
    assert len(broken([run("hang", failed=3)])) == 1


def test_a_run_of_a_machine_that_stood_still_says_nothing() -> None:
    """A pause longer than ghealth's own timeout leaves no verdict, and the report shows that."""
    (said,) = broken([run("restart", failed=1) | {"longest_pause_ms": 601}])
    assert "no verdict" in said


def test_a_sick_pod_that_stays_too_long_is_told() -> None:
    """The bound is two intervals and one timeout, and what the machine itself was late."""
    assert BOUND == 25
    assert broken([run("sick", out_after=25.1)]) == []
    assert len(broken([run("sick", out_after=26.0)])) == 1
    paused = run("sick", out_after=26.0) | {"longest_pause_ms": 200}
    assert broken([paused]) == []
    assert broken([run("all-sick", out_after=80.0)]) == []
