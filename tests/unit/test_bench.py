import json

import pytest

from bench.speed import check, report
from bench.speed.__main__ import RESULTS
from bench.speed.check import regressions


def test_the_page_has_what_was_measured() -> None:
    """The tables and the picture of docs/performance.md are those of bench/speed/results.json."""
    results = json.loads(RESULTS.read_text())
    page = report.PAGE.read_text()
    assert page == report.filled(page, results)
    assert report.PICTURE.read_text() == report.picture(results)


def test_what_is_as_good_as_the_baseline_passes() -> None:
    """The committed baseline is no regression of itself."""
    baseline = json.loads(check.BASELINE.read_text())
    assert regressions(baseline, baseline) == []


@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("1 storm: checks a second beside floor", 0.5),
        ("2 a new connection a check: median ms beside Go bridge", 2.0),
        ("6 start: ms beside bare imports", 2.0),
        ("7 ten checks a second: CPU ms a check beside floor", 2.0),
    ],
)
def test_a_ratio_far_from_the_baseline_is_told(name: str, factor: float) -> None:
    """Each ratio is compared in the direction in which it is worse."""
    baseline = json.loads(check.BASELINE.read_text())
    now = json.loads(check.BASELINE.read_text())
    now["ratios"][name] *= factor
    (line,) = regressions(baseline, now)
    assert line.startswith(name)


def test_a_count_that_differs_is_told() -> None:
    """Counts have no band: one thread more is a line."""
    baseline = json.loads(check.BASELINE.read_text())
    now = json.loads(check.BASELINE.read_text())
    now["counts"]["threads"] += 1
    (line,) = regressions(baseline, now)
    assert line.startswith("threads: ")
