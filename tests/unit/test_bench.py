import json

import pytest

from bench.speed import report
from bench.speed.contenders import FLOOR, GHEALTH
from bench.speed.figures import by_turns, exponent, medians, percentile, ratios
from bench.speed.gateways import ALONE, WITH_AGENT, config
from bench.speed.report import GOALS, Goal
from bench.speed.rows import ROWS


def test_the_page_is_that_of_the_results() -> None:
    """docs/performance.md and its picture are written from the committed results."""
    for path, text in report.files().items():
        assert path.read_text() == text


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
    """A ratio is the median of the ratios within each round, without those to 0."""
    found = {"a": {"ms": [1.0, 10, 9]}, "b": {"ms": [2.0, 5, 3]}, "c": {"ms": [0.0, 1, 1]}}
    assert medians(found) == {"a": {"ms": 9}, "b": {"ms": 3}, "c": {"ms": 1}}
    assert ratios(found, "a") == {"b": {"ms": 2.0}, "c": {}}


def test_a_percentile_is_a_value_that_was_measured() -> None:
    """So many percent of the values do not exceed it."""
    assert [percentile(range(100, 0, -1), percent) for percent in (50, 99, 100)] == [50, 99, 100]


@pytest.mark.parametrize(
    ("costs", "growth"),
    [
        ({0: 100.0, 10: 101.0, 100: 110.0}, 1.0),
        ({0: 0.0, 1: 7.0, 10: 1.0, 100: 100.0}, 2.0),
        ({0: 1.0, 10: 1.0, 100: 6.0}, 0.0),
        ({0: 1.0, 10: 2.0, 100: 11.0, 1000: 0.9}, 1.0),
    ],
    ids=["linear, beside that of none", "of the last step", "of one point", "noise is left out"],
)
def test_growth_is_an_exponent(costs: dict[int, float], growth: float) -> None:
    """How a cost grows is the exponent of its last step: 1 is linear."""
    rows = {str(number): {"ms": cost} for number, cost in costs.items()}
    assert exponent(rows, "ms") == pytest.approx(growth)


@pytest.mark.parametrize("kind", [ALONE, WITH_AGENT])
def test_only_one_gateway_has_an_agent(kind: str) -> None:
    """Envoy alone answers by a direct response; the other passes the request on."""
    text = json.dumps(config(kind, 1, 2, 3))
    assert ("direct_response" in text) is (kind == ALONE)
    assert text.index("http.fault") < text.index("http.router")


@pytest.mark.parametrize(
    ("goal", "good", "bad"),
    [
        (Goal("", "", "ms", 0.95, beside=FLOOR), 0.9, 1.1),
        (Goal("", "", "ms", 2.0, beside=FLOOR, least=True), 2.1, 0.9),
        (Goal("", "", "ms", 1.0, over=FLOOR), 1.0, 3.0),
        (Goal("", "", "ms", 3.0), 3.0, 5.0),
    ],
    ids=["ratio", "at least", "difference", "figure"],
)
def test_the_worse_gateway_counts(goal: Goal, good: float, bad: float) -> None:
    """A goal is met only if it is with both gateways: as a ratio, a difference or a figure."""
    rows = {
        kind: {
            GHEALTH: {"ms": value + 2 if goal.over else value},
            FLOOR: {"ms": 2.0},
            "ratios": {FLOOR: {"ms": value}},
        }
        for kind, value in ((ALONE, good), (WITH_AGENT, bad))
    }
    assert goal.worst(rows) == bad
    assert goal.met(good)
    assert not goal.met(bad)


def test_goals_are_of_rows_that_exist() -> None:
    """Each goal names a row, and contenders that the row measures."""
    for goal in GOALS:
        assert {goal.whose, goal.beside, goal.over} - {None} <= set(ROWS[goal.row].names)
