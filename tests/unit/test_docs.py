import json
import re
import subprocess
from pathlib import Path

import pytest

from ghealth import reasons
from ghealth.client import ExitCode
from ghealth.environment import defaults
from ghealth.logs import AnswerLog, StatusLog
from ghealth.status import GATEWAY, Health, Status
from tests.unit.test_logs import lines_of
from tools.tables import PAGES, REASONS, filled

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.name))
def test_the_tables_are_the_codes(page: Path) -> None:
    """What `make tables` would write is what the page says."""
    assert page.read_text() == filled(page.read_text())
    assert "`GHEALTH_CACHE_TTL` | `1` |" in README


def test_every_reason_is_in_the_table() -> None:
    """No reason for not serving is left unexplained, and none is invented."""
    texts = {value for name, value in vars(reasons).items() if name.isupper() and name[0] != "_"}
    constant = {text for text in texts if isinstance(text, str) and reasons.is_known(text)}
    assert constant == texts - {reasons.ALIVE, reasons.UNKNOWN_SERVICE}
    assert constant < set(REASONS)
    assert all(map(reasons.is_known, REASONS))


def test_every_variable_named_in_the_documentation_exists() -> None:
    """No page names a variable that ghealth does not know, but for what Kubernetes injects."""
    known = {row.variable for row in defaults().rows}
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]:
        assert set(re.findall(r"GHEALTH_[A-Z_]+", page.read_text())) <= known | {"GHEALTH_PORT"}


def test_the_exit_codes_of_a_check_are_in_the_readme() -> None:
    """Each exit code has a row."""
    for code in ExitCode:
        assert re.search(rf"^\| {code.value} \|", README, re.MULTILINE)


def test_every_event_of_the_log_is_in_the_readme() -> None:
    """An event that the code writes is documented, and none that it does not."""
    source = "\n".join(file.read_text() for file in (ROOT / "src").rglob("*.py"))
    written = set(re.findall(r"log_event\(\s*_log,\s*[\w.]+,\s*\"(\w+)\"", source))
    written |= set(re.findall(r"\"event\": \"(\w+)\"", source))
    written |= set(re.findall(r"\"event\", \"(\w+)\"", source))
    written |= set(re.findall(r"_log_change\(level, \"(\w+)\"", source))
    assert set(documented_keys()) == written


def test_the_keys_of_a_change_are_in_the_readme(tmp_path: Path) -> None:
    """The lines about changes have the keys that their rows name, and no others."""
    told: dict[str, set[str]] = {}

    def write() -> None:
        status, answer = StatusLog(), AnswerLog([GATEWAY])
        monkeypatched = iter([*range(20), *range(100, 200)])
        status._clock = answer._clock = lambda: float(next(monkeypatched))
        for number in range(16):
            serving = Status.NOT_SERVING if number % 2 else Status.SERVING
            status.probed(GATEWAY, Health(serving, ""), 0.1)
            answer.answered("Check", "", GATEWAY, serving.name, "")

    for line in map(json.loads, lines_of(write, tmp_path)):
        told.setdefault(line["event"], set()).update(line)
    usual = {"time", "level", "event", "message"}
    documented = documented_keys()
    for event in ("status_changed", "answer_changed"):
        assert told[event] - usual == documented[event]


def documented_keys() -> dict[str, set[str]]:
    """Tell the keys that README names for each event."""
    table = README.partition("| `event` |")[2].partition("\n\n")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("| `")]
    names = re.compile(r"`(\w+)`")
    return {
        event: set(names.findall(keys))
        for _, events, _, keys, _ in rows
        for event in names.findall(events)
    }


def test_make_lists_its_targets() -> None:
    """`make` alone names every target with what it does."""
    said = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = re.search(r"^\.PHONY: help (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets is not None
    for target in targets[1].split():
        assert re.search(rf"^  make {target} +\S", said, re.MULTILINE), target


def test_every_test_that_a_promise_names_exists() -> None:
    """docs/behaviour.md names no test that is not there."""
    named = set(re.findall(r"`(test_[a-z0-9_]+)`", (ROOT / "docs" / "behaviour.md").read_text()))
    files = (ROOT / "tests").rglob("test_*.py")
    there = set(re.findall(r"def (test_\w+)", "\n".join(file.read_text() for file in files)))
    assert named <= there
    assert len(named) > 30
