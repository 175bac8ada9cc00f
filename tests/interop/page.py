"""Write the expected conclusions, which `test_callers` verifies, into docs/callers.md."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from tests.interop.callers import CALLERS, FOLLOWERS, LIFE, PATHS, STATES, Caller
from tests.support.gateway import READY

_BEGIN: Final = "<!-- interop: made by `make interop-table` -->\n"
_END: Final = "<!-- end of interop -->"


def with_tables(text: str) -> str:
    """Put the tables into the text of the page, between their comments."""
    states = {state: state == READY for state in STATES}
    tables = (
        _table("caller", CALLERS, states),
        _table("caller, over time", FOLLOWERS, LIFE),
        _table("an ALB's path", PATHS, states),
    )
    return re.sub(f"(?s)(?<={_BEGIN}).*(?={_END})", lambda _: "\n".join(tables), text)


def _table(title: str, rows: Sequence[Caller[Any]], columns: Mapping[str, bool]) -> str:
    lines = [[title, *columns], ["---"] * (len(columns) + 1)]
    for row in rows:
        cells = (row.expected(is_ready=is_ready) for is_ready in columns.values())
        lines.append([row.name, *cells])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    file = Path("docs/callers.md")
    file.write_text(with_tables(file.read_text()))
