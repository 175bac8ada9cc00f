import json
from typing import Any

import pytest

from bench.rollout.contenders import CONTENDERS
from bench.rollout.events import EVENTS
from bench.rollout.report import PAGE, RESULTS, SEEDS, broken, filled

RUNS: list[dict[str, Any]] = json.loads(RESULTS.read_text())


def test_the_page_is_what_the_runs_say() -> None:
    """The tables are those of the committed results, unedited."""
    page = PAGE.read_text()
    assert page == filled(page, RUNS)


def test_the_committed_runs_are_complete_and_keep_the_promises() -> None:
    """Every event has all its seeds, and nothing is broken."""
    made = {(one["event"], one["seed"]) for one in RUNS}
    assert made == {(event.name, seed) for event in EVENTS for seed in range(1, SEEDS + 1)}
    assert broken(RUNS) == []


def test_everybody_takes_part() -> None:
    """No contender is without a run, and no event names one that is not there."""
    names = {contender.name for contender in CONTENDERS}
    assert {name for event in EVENTS for name in event.contenders} == names


@pytest.mark.parametrize(
    ("event", "ghealth", "pause", "problems"),
    [
        ("restart", {}, 0, []),
        ("restart", {"failed": 1}, 0, ["1 calls failed"]),
        ("restart", {"failed": 1}, 601, ["no verdict"]),
        ("hang", {"failed": 2}, 0, []),
        ("hang", {"failed": 3}, 0, ["3 calls failed, 0 by the HTTP check"]),
        ("sick", {"out_after": 25.1}, 0, []),
        ("sick", {"out_after": 26.0}, 0, ["routed to 26.0 s"]),
        ("sick", {"out_after": 26.0}, 200, []),
        ("all-sick", {"out_after": 80.0}, 0, []),
    ],
)
def test_a_broken_promise_is_reported(
    event: str, ghealth: dict[str, object], pause: int, problems: list[str]
) -> None:
    """Planned events fail no call, others few more than the rival; a sick pod is out in 25 s.

    A machine that stood still for longer than ghealth's timeout leaves no verdict.
    """
    result = {"failed": 0, "failures": [], "out_after": 0.0}
    contenders = {"ghealth": result | ghealth, "http": result}
    run = {"event": event, "seed": 1, "longest_pause_ms": pause, "contenders": contenders}
    for problem, expected in zip(broken([run]), problems, strict=True):
        assert expected in problem
