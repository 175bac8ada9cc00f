from operator import attrgetter

import pytest

from tests.flood.attacks import STAGES
from tests.flood.rows import ROWS


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of `make flood ARGS=…`, besides pytest's own, such as `-k held-checks`."""
    parser.addoption("--short", action="store_true", help="a few rows, in a minute or two")
    parser.addoption("--seconds", type=float, default=30, help="seconds of each row")
    parser.addoption("--mix", type=float, default=300, help="seconds of all rows at once")
    parser.addoption("--drops", type=int, default=100_000, help="calls dropped at each stage")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave all floods at once out of the short form, which takes a minute or two."""
    if config.getoption("short"):
        left_out = [item for item in items if item.name == "test_all_floods_at_once"]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Select the rows and stages."""
    is_short = metafunc.config.getoption("short")
    if "row" in metafunc.fixturenames:
        rows = [row for row in ROWS if row.short or not is_short]
        metafunc.parametrize("row", rows, ids=attrgetter("name"))
    if "stage" in metafunc.fixturenames:
        metafunc.parametrize("stage", STAGES[:1] if is_short else STAGES)
