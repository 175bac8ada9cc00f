from operator import attrgetter

import pytest

from tests.flood.rows import ROWS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `make flood ARGS=…`, besides pytest's own, such as `-k held-checks`."""
    parser.addoption("--short", action="store_true", help="a few rows, in a minute or two")
    parser.addoption("--seconds", type=float, default=30, help="seconds of each row")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Select the rows and stages."""
    is_short = metafunc.config.getoption("short")
    if "row" in metafunc.fixturenames:
        rows = [row for row in ROWS if row.short or not is_short]
        metafunc.parametrize("row", rows, ids=attrgetter("name"))
    if "stage" in metafunc.fixturenames:
        stages = ["message", "half", "probe", "window"]
        metafunc.parametrize("stage", stages[:1] if is_short else stages)
