import json
import math

import pytest

from bench.speed import report, scale
from bench.speed.__main__ import main
from bench.speed.contenders import FLOOR, GHEALTH
from bench.speed.figures import by_turns, growth, medians, percentile, progress
from bench.speed.gateways import ALONE, WITH_AGENT, config
from bench.speed.report import GOALS, Goal
from bench.speed.rows import ROWS


def test_the_page_is_that_of_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables and the picture of docs/performance.md are made from the committed results."""
    monkeypatch.setattr("sys.argv", ["bench.speed", "--check"])
    assert main() == 0


def test_contenders_take_turns() -> None:
    """Every second round is in reverse order, and round 0 does not count."""
    order = []

    def measure(name: str) -> dict[str, float]:
        order.append(name)
        return {"ms": float(len(order))}

    found = by_turns(("a", "b"), range(3), measure)
    assert order == ["b", "a", "a", "b", "b", "a"]
    assert found == {"a": {"ms": [3.0, 6.0]}, "b": {"ms": [4.0, 5.0]}}


def test_ratios_are_of_one_round() -> None:
    """A ratio is the median of the ratios within each round, not the ratio of the medians."""
    row = medians({"a": {"ms": [1, 10, 9]}, "b": {"ms": [2, 5, 3]}, "c": {}}, "a")
    assert row == {"a": {"ms": 9}, "b": {"ms": 3}, "c": {}, "ratios": {"b": {"ms": 2.0}, "c": {}}}


def test_never_has_no_ratio() -> None:
    """A contender that never answers has no figure, and nothing is divided by it or by zero."""
    row = medians({"a": {"ms": [1.0]}, "b": {"ms": [math.inf]}, "c": {"ms": [0.0]}}, "a")
    assert row["b"] == {"ms": None}
    assert row["ratios"] == {"b": {}, "c": {}}
    assert "| b | never |" in report.table(row)


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100)])
def test_a_percentile_is_a_value_that_was_measured(percent: int, value: float) -> None:
    """So many percent of the values do not exceed it."""
    assert percentile(range(1, 101), percent) == value


@pytest.mark.parametrize(
    ("costs", "exponent"),
    [
        ({10: 1.0, 100: 10.0}, 1.0),
        ({1: 7.0, 10: 1.0, 100: 100.0}, 2.0),
        ({10: 5.0, 100: 5.0}, 0.0),
        ({10: -1.0, 100: 5.0}, 0.0),
        ({10: 1.0, 100: 10.0, 1000: -0.1}, 1.0),
    ],
)
def test_growth_is_an_exponent(costs: dict[int, float], exponent: float) -> None:
    """Of the last step between costs above noise: 1 is linear."""
    assert growth(costs) == pytest.approx(exponent)


def test_costs_are_beside_those_of_none() -> None:
    """What ghealth costs without any of them does not hide how they grow."""
    costs = {0: {"ms": 100.0}, 10: {"ms": 101.0}, 100: {"ms": 200.0}}
    assert scale.added(costs, "ms") == {10: 1.0, 100: 100.0}
    assert scale.exponent(costs, "ms") == pytest.approx(2.0)


def test_progress_counts_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    """Each round is announced on stderr, the first that counts is 1."""
    assert list(progress("a row", 2, warm_up=False)) == [1, 2]
    assert list(progress("a row", 2, warm_up=True)) == [0, 1, 2]
    assert "a row: round 1 of 2\n" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [ALONE, WITH_AGENT])
def test_only_one_gateway_has_an_agent(kind: str) -> None:
    """Envoy alone answers by a direct response; the other passes the request on."""
    text = json.dumps(config(kind, 1, 2, 3))
    assert ("direct_response" in text) is (kind == ALONE)
    assert text.index("http.fault") < text.index("http.router")


@pytest.mark.parametrize(
    ("goal", "values"),
    [
        (Goal("", "connection", "median ms", 0.95, FLOOR), (0.9, 1.1)),
        (Goal("", "connection", "median ms", 2.0, FLOOR, least=True), (2.1, 0.9)),
        (Goal("", "connection", "median ms", 1.0, over=FLOOR), (1.0, 3.0)),
        (Goal("", "connection", "median ms", 3.0), (3.0, 5.0)),
    ],
)
def test_the_worse_gateway_counts(goal: Goal, values: tuple[float, float]) -> None:
    """A goal is met only if it is with both gateways: as a ratio, a difference or a figure."""
    good, bad = values
    rows = {
        kind: {
            GHEALTH: {"median ms": value if goal.beside is goal.over is None else value + 2},
            FLOOR: {"median ms": 2.0},
            "ratios": {FLOOR: {"median ms": value}},
        }
        for kind, value in ((ALONE, good), (WITH_AGENT, bad))
    }
    assert goal.worst({"connection": rows}) == bad
    assert goal.met(good)
    assert not goal.met(bad)
    assert goal.worst({}) is None


def test_a_goal_that_was_not_measured_is_in_the_table() -> None:
    """A goal whose figure is missing has no verdict."""
    lines = report.goals({"memory": {ALONE: {GHEALTH: {"resident MiB": 50.0}, "ratios": {}}}})
    assert "| Resident MiB at the start | ≤ 59 | 50 | met |" in lines
    assert "| Resident MiB after all loads | ≤ 64 | | not measured yet |" in lines


def test_goals_are_of_rows_that_exist() -> None:
    """Each goal names a row, and contenders that the row measures."""
    for goal in GOALS:
        assert {goal.whose, goal.beside, goal.over} - {None} <= set(ROWS[goal.row].names)
