import ast
import asyncio
import json
import logging
import math
import os
import re
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import httpcore
import pytest

from bench.rollout import numbers, traffic
from ghealth import cli, flags, health
from ghealth.admin import http, routes
from ghealth.admin.page import REFRESH
from ghealth.check import alb, call, http2
from ghealth.check.addresses import Server
from ghealth.check.report import ExitCode
from ghealth.events import OTHER, ConnectionsCut, RequestAnswered, StatusChanged
from ghealth.health import GATEWAY, Answer, Code, Health, Reason, ReasonKind, Result, Status
from ghealth.matcher import GRPC_CODES, Matcher
from ghealth.observe import log
from ghealth.server import guard, servicer
from ghealth.settings import Row, Settings
from tests.support.fakes import answered
from tests.support.running import CHECK, asking
from tools import prose, tables
from tools.tables import DEFAULTS, MEMORY_LIMIT

ROOT = Path(__file__).parents[2]
SOURCE = "\n".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
EVERY_PAGE = (*tables.PAGES, *sorted((ROOT / "deploy").rglob("*.md")))


def page(name: str) -> str:
    return (ROOT / name).read_text()


COMMANDS, DESIGN, MAKEFILE = map(page, ("docs/commands.md", "docs/design.md", "Makefile"))


def words_in_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with a word, cell by cell."""
    lines = text.partition(f"| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


def test_the_tables_are_made_from_the_code() -> None:
    """The pages and the picture are what `make tables` would write, and each table is on one."""
    texts = [path.read_text() for path in tables.PAGES]
    assert texts == [tables.filled(text) for text in texts]
    assert tables.OUT_AFTER_PICTURE.read_text() == tables.out_after_picture()
    made = re.findall(r"<!-- ([\w ]+): made by `make tables`", "".join(texts))
    assert set(made) == set(tables.TABLES)


def test_the_limits_fit_into_the_recommended_memory() -> None:
    """Everything that untrusted clients can hold at once needs less than the memory limit."""
    assert tables.limits_sum() < MEMORY_LIMIT


DETAILS = {
    ReasonKind.ANSWERED: "503",
    ReasonKind.TIMED_OUT: f"{DEFAULTS.probe_timeout:g} s",
    ReasonKind.NO_MESSAGE: f"{servicer.MESSAGE_TIMEOUT:g} s",
    ReasonKind.CUSTOM: "database is read-only",
}
"""Examples of the part of a text that varies."""

REASONS = {str(Reason(kind, DETAILS.get(kind, ""))): kind for kind in ReasonKind}


def test_every_reason_is_explained() -> None:
    """docs/commands.md has the text of each reason once, and no others."""
    texts = re.findall(r"^\| `(.*?)` \|", COMMANDS.partition("### Reasons")[2], re.MULTILINE)
    assert sorted(texts) == sorted(REASONS)


def test_every_result_is_explained() -> None:
    """docs/operations.md lists the results, each with the reasons of probes that count as it."""
    rows = table(page("docs/operations.md"), "result")
    assert [row[0] for row in rows] == [f"`{result}`" for result in Result]
    listed = {reason: row[0] for row in rows for reason in words_in_code(row[2])}
    *probes, _of_a_program = (row[0].strip("`") for row in table(COMMANDS, "reason"))
    expected = {reason: f"`{REASONS[reason].result}`" for reason in probes}
    assert listed == expected | {"gateway answered 200": "`ok`"}


SETTINGS = [row.variable for row in DEFAULTS.rows()]
# Of Kubernetes' service links, and an example of a mistake.
SETTINGS += ["GHEALTH_PORT", "GHEALTH_SERVICE_HOST", "GHEALTH_PROBE_URLS"]


@pytest.mark.parametrize(
    ("places", "name", "known"),
    [
        (".*", r"GHEALTH_[A-Z_]*[A-Z]", SETTINGS),
        (r"`test_[a-z0-9_]+`", r"\w+", re.findall(r"def (test_\w+)", TESTS)),
        (r"(?:`|^\$ )make ([a-z -]+)", "[a-z-]+", re.findall(r"(?m)^([a-z-]+):", MAKEFILE)),
        (r"ghealth check ([^`\n|&]*)", r"--[\w-]+", re.findall(r"--[\w-]+", tables.check_flags())),
    ],
    ids=["settings", "tests", "make targets", "flags of check"],
)
def test_what_a_page_names_exists(places: str, name: str, known: list[str]) -> None:
    """A page names only settings, tests, make targets and flags that exist."""
    for path in EVERY_PAGE:
        found = re.findall(places, path.read_text(), re.MULTILINE)
        assert set(re.findall(name, "\n".join(found))) <= set(known), path


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_every_link_leads_somewhere() -> None:
    """A link to a file of the repository has its file, and one to a heading its heading."""
    for path in EVERY_PAGE:
        for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", path.read_text()):
            name, _, anchor = link.partition("#")
            linked = (path.parent / name).resolve() if name else path
            assert linked.exists(), (path, link)
            assert not anchor or anchor in anchors(linked), (path, link)


def test_every_promise_and_every_trap_has_a_test() -> None:
    """The last cell of each row names a test."""
    rows = re.findall(r"^\|(?! promise \||-)(.*)\|$", page("docs/promises.md"), re.MULTILINE)
    rows += ["|".join(row) for row in table(DESIGN, "trap")]
    assert len(rows) > 60
    assert [row for row in rows if not re.search(r"`test_\w+`[^|]*$", row)] == []


def test_every_module_is_on_the_map() -> None:
    """docs/design.md lists all modules and packages, and no others."""
    package = ROOT / "src" / "ghealth"
    there = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}
    there |= {f"{path.parent.name}/" for path in package.glob("*/__init__.py")}
    assert {name for row in table(DESIGN, "module") for name in words_in_code(row[0])} == there


def test_make_lists_its_targets() -> None:
    """`make` alone lists every target with a description."""
    listed = subprocess.check_output(["make", "--no-print-directory"], cwd=ROOT, text=True)
    targets = re.findall(r"^\.PHONY: help (.*)$", MAKEFILE, re.MULTILINE)[0].split()
    assert sorted(re.findall(r"^  make ([a-z-]+) +\S", listed, re.MULTILINE)) == sorted(targets)


def test_the_readme_is_short() -> None:
    """README.md has fewer than 900 words."""
    assert len(page("README.md").split()) < 900


# docs/commands.md.


def test_the_exit_codes_are_listed() -> None:
    """Every exit code of every command has its row."""
    *rows, killed = table(COMMANDS, "code")
    assert killed[0] == f"{cli.KILLED_BY} + n"
    serves, checks = ({int(row[0]) for row in rows if len(row[column]) > 1} for column in (1, 2))
    assert serves == {cli.OK, flags.MISTAKE, cli.CANNOT_START}
    assert checks == set(ExitCode)


def written_keys() -> dict[str, set[str]]:
    """Return each event that the source names in a call, with the keys that it names."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(SOURCE)):
        match node:
            case ast.Call(ast.Name("log_event"), [_, _, ast.Constant(str(event)), *_], given):
                found[event] = {keyword.arg for keyword in given if keyword.arg}
            case ast.keyword("extra", ast.Dict(values=[ast.Constant(str(event))])):
                found[event] = {"stack"}
    return found


def limited_keys(caplog: pytest.LogCaptureFixture) -> dict[str, set[str]]:
    """Return the events that the log writes about other events, with their keys."""
    now, sick = 0.0, Health(Status.NOT_SERVING, answered(503))
    sink = log.Log([GATEWAY], lambda: now)
    with caplog.at_level(logging.INFO, "ghealth"):
        for number in range(16):
            found = Health(Status.SERVING, answered(number))
            answer = Answer(Code(number), reason=answered(503))
            sink(StatusChanged(service=GATEWAY, previous=sick, health=found, held_seconds=1))
            sink(StatusChanged(service="b", previous=found, health=found, held_seconds=1))
            sink(ConnectionsCut(address="", count=1, reason="calls"))
            sink(RequestAnswered(method=OTHER, path="/", user_agent="", service="", answer=answer))
        sink.close()
    keys: dict[str, set[str]] = {}
    for record in map(vars, caplog.records):
        keys.setdefault(record["event"], set()).update(record["fields"])
    return keys


def test_the_log_is_documented(caplog: pytest.LogCaptureFixture) -> None:
    """docs/commands.md lists the events that the code writes, with their keys, and no others."""
    written = written_keys() | limited_keys(caplog)
    written["started"] |= {"listen", "tls_listen", "admin_listen"}  # those that are open
    written["log_lines_dropped"] = set(re.findall(r'"fields"\] = {"(\w+)"', SOURCE))
    written["message"] = {"stack"}  # of a library
    documented = {
        event: set(re.findall(r"`(\w+)`", keys))
        for events, _, keys in table(COMMANDS, "`event`")
        for event in words_in_code(events)
    }
    assert documented == written


def test_the_keys_of_the_json_output_are_documented() -> None:
    """docs/commands.md lists the keys of `--output json`, and no others."""
    rows = {row[0]: words_in_code(row[1]) for row in table(COMMANDS, "output of")}
    where = Server.parse("127.0.0.1:1")
    check = call._report(call.Request(server=where, user_agent=""), call._Reply(None))
    replay = alb._report(where, alb.TargetGroup(), alb._Response(), 0.1)
    assert rows["`check`"] == list(check.keys)
    assert rows["`check --as alb`"] == list(replay.keys)
    assert rows["`settings`"] == [*Row.__dataclass_fields__, "changed"]


# The examples.


def test_what_an_alb_gets_is_what_the_readme_has() -> None:
    """The code and the example are the default answer to an ALB while the gateway answers 503."""
    sick = Health(Status.NOT_SERVING, answered(503))
    policy = health.POLICIES[DEFAULTS.answer]
    answer = policy(sick, health.ALB_USER_AGENT, DEFAULTS.status_callers)
    assert f"**`{answer.name}`** ({answer.code.value})" in page("README.md")
    response = alb._Response(code=answer.code, grpc_message=str(answer.reason))
    report = alb._report(Server.parse("127.0.0.1:25021"), alb.TargetGroup(), response, 0.005)
    assert f"$ ghealth check --as alb\n{report.text}\n```" in page("README.md")


def test_the_example_of_a_warning_is_what_is_printed() -> None:
    """docs/commands.md has the output beside a server that does not know the path."""
    group = alb.TargetGroup(path="/AWS.ALB/healthcheck", matcher=Matcher.parse("12", GRPC_CODES))
    response = alb._Response(code=12, grpc_message="Method not found!")
    report = alb._report(Server.parse("10.0.3.17:8080"), group, response, 0.002)
    assert f"{report.text}\nghealth: warning: {report.warnings[0]}\n```" in COMMANDS


def test_the_example_of_mistakes_is_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/configuration.md has the lines that its example prints."""
    example = r"```console\n\$ (.*?) ghealth\n(.*?)```"
    ((variables, printed),) = re.findall(example, page("docs/configuration.md"), re.DOTALL)
    for variable in variables.split():
        monkeypatch.setenv(*variable.split("=", 1))
    assert cli.main(["settings"]) == flags.MISTAKE
    assert capsys.readouterr().err == printed


def test_the_examples_of_settings_are_valid() -> None:
    """Each value in the examples of docs/configuration.md is accepted."""
    blocks = re.findall(r"```sh\n(.*?)```", page("docs/configuration.md"), re.DOTALL)
    # Without the files of TLS, which are not here.
    examples = re.findall(r"GHEALTH_(?!TLS_)(\w+)=('[^']*'|\S+)", "\n".join(blocks))
    assert len(examples) > 3
    for name, value in examples:
        assert Settings.model_validate({name.lower(): value.strip("'")})


async def test_the_example_of_embedding_runs(caplog: pytest.LogCaptureFixture) -> None:
    """The program in docs/embedding.md serves its own probe, and drains on SIGTERM."""
    example = page("docs/embedding.md").partition("```python\n")[2].partition("```")[0]
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    found: list[int] = []

    async def ask() -> None:
        async with asking(await started) as stub:
            found.append((await stub.Check(CHECK())).status)
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.Event().wait()

    program: dict[str, Any] = {"__name__": "example", "print": lambda *a: started.set_result(a[1])}
    exec(example.replace("[::]:25021", "127.0.0.1:0"), program)  # noqa: S102
    program["work"] = ask
    caplog.set_level(logging.INFO)
    async with asyncio.timeout(30):
        await program["main"]()
    asyncio.get_running_loop().remove_signal_handler(signal.SIGTERM)
    assert "draining for 0.5 s" in caplog.messages
    assert found == [Status.SERVING]


# Where the figures come from.

FIGURE = re.compile(
    r"(?<![\w.,])\d[\d,.]*\s?(?:%|(?:ms|µs|s|seconds?|minutes?|hours?|lines? a minute|KiB|MiB|"
    r"connections?|descriptors?|watches|characters?|bytes|times)\b)"
)

OUTSIDE_FIGURES = {
    "SECURITY.md": {"2,000 connections", "16 MiB", "130 bytes"},
    "docs/design.md": {"128 MiB", "0.2 s"},
    "docs/nodes.md": {"80 %", "100 s", "6 s", "46 s"},
    "docs/rollouts.md": {"0.9 s"},
    "deploy/README.md": {"2 s"},
    "deploy/traffic-probe.md": {"2.4 ms", "3.1 ms", "5.9 ms", "6.2 ms", "7.1 ms"},
}
"""Figures about other programs, and measurements: the page names their source."""

CLUSTER_PAGES = ("docs/rollouts.md", "docs/nodes.md", "deploy/")


Figures = dict[str, set[float]]


def with_units(figures: Figures) -> set[str]:
    return {f"{value:,g} {unit}" for unit, values in figures.items() for value in values}


def known_figures() -> Figures:
    """Return the figures that follow from constants."""
    idle, interval, count = http2.KEEPALIVE.values()
    alerts = page("deploy/observability/prometheusrule.yaml")
    largest_head = httpcore.AsyncHTTP11Connection.MAX_INCOMPLETE_EVENT_SIZE
    # An alert on the last so many minutes that holds for some more fires after the sum of both.
    waits = re.findall(r"\[(\d+)m\]\)\) > 0\s.*?for: (\d+)m", alerts, re.DOTALL)
    minutes = {float(number) for number in re.findall(r"(?:for: |\[)(\d+)m\b", alerts)}
    seconds = {DEFAULTS.cache_ttl, DEFAULTS.probe_timeout, REFRESH}
    seconds |= {idle + interval * count, http.HEAD_TIMEOUT + http.ANSWER_TIMEOUT}
    seconds |= {routes.CHECK_TIMEOUT, routes.SCRAPE_MARGIN}
    return {
        "s": seconds,
        "ms": {guard.BUSY_INTERVAL * 1000},
        "minutes": minutes | {int(window) + int(holds) for window, holds in waits},
        "lines a minute": {log.MAX_LINES_PER_MINUTE},
        "MiB": {MEMORY_LIMIT},
        "KiB": {http.MAX_HEAD // 1024, largest_head // 1024},
        "connections": {http.MAX_CONNECTIONS},
        "%": {tomllib.loads(page("pyproject.toml"))["tool"]["coverage"]["report"]["fail_under"]},
    }


def seconds_without_a_pod() -> float:
    """Return for how long requests fail in the first run of a pod without preStop."""
    runs = json.loads(page("bench/rollout/results.json"))
    drawn = next(run for run in runs if run["event"] == "bare" and run["seed"] == 1)
    # At 0 the pod is deleted.
    moments = [at for at, *_ in drawn["contenders"]["ghealth"]["failures"] if at > 0]
    return float(max(moments) - min(moments))


def cluster_figures() -> Figures:
    """Return the figures that follow from the numbers of deploy/ and of bench/rollout."""
    sick = numbers.UNHEALTHY_THRESHOLD * numbers.INTERVAL
    end = numbers.PRESTOP + numbers.DRAIN
    lag, controller = numbers.ROUTING_LAG[1], numbers.CONTROLLER_LAG[1]
    seconds = {sick + numbers.TIMEOUT, sick / 2 + numbers.TIMEOUT}
    seconds |= {numbers.INTERVAL * numbers.HEALTHY_THRESHOLD, numbers.INTERVAL + controller}
    seconds |= {numbers.PRESTOP, end, end - controller - lag, numbers.GRACE}
    seconds |= {numbers.ENVOY_DRAIN_TIME, numbers.SPOT_NOTICE, numbers.SIDECAR_START}
    seconds |= {numbers.READINESS_PERIOD, numbers.READINESS_PERIOD - numbers.STARTUP_PERIOD}
    seconds |= {numbers.PROBE_TIMEOUT / numbers.SCALE, numbers.CACHE_TTL + numbers.PROBE_TIMEOUT}
    seconds |= {traffic.DEADLINE, traffic.STREAM_SECONDS[1] * numbers.SCALE}
    return {
        "s": {*seconds, round(seconds_without_a_pod())},
        "ms": {traffic.LONGEST * 1000},
        "minutes": {float(re.findall(r"every event \((\d+) min", MAKEFILE)[0])},
        # The share of the requests that istio-proxy's 100m or 1000m has beside ghealth's 50m.
        "%": {math.ceil(80 * request / (request + 50)) for request in (100, 1000)},
    }


def figures_of(text: str) -> set[str]:
    """Return the figures in prose: not in code, in made tables, or in rows that name a test."""
    text = re.sub(r"<!-- ([\w ]+): made by .*?<!-- end of \1 -->", "", text, flags=re.DOTALL)
    text = re.sub(r"^\|.*`test_\w+`.*$", "", text, flags=re.MULTILINE)
    text = "\n".join(line for _, line in prose.prose("page.md", text))
    return {re.sub(r"\s", " ", found) for found in FIGURE.findall(text)}


def test_every_figure_has_a_source() -> None:
    """A figure in the documentation is a constant, or in a table that is made or names a test."""
    known, of_clusters = with_units(known_figures()), with_units(cluster_figures())
    for path in EVERY_PAGE:
        name = str(path.relative_to(ROOT))
        unknown = figures_of(path.read_text()) - known - OUTSIDE_FIGURES.get(name, set())
        unknown -= of_clusters if name.startswith(CLUSTER_PAGES) else set()
        # The figures of performance.md are measurements, and its tables come from results files.
        assert not unknown or name == "docs/performance.md", (name, unknown)


def test_no_length_of_time_is_vague() -> None:
    """A length of time is a figure, which has a source; "in a minute" has none."""
    vague = r"\b(?:half an?|(?:for|in|within|under|about) an?) (?:minute|hour)\b"
    for path in EVERY_PAGE:
        assert re.findall(vague, path.read_text()) == [], path


# The check of the prose.


@pytest.mark.parametrize(
    ("path", "text", "words"),
    [
        ("a.md", "Nobody asks.\n`nobody` here\n```\nnobody\n```\nThere is no file.", ["Nobody"]),
        ("a.py", '"""Tell all."""\n# whoever\nX = "nobody asks"', ["whoever", "Tell"]),
        ("src/a.py", 'X = "nobody asks"\nY = "nobody"', ["nobody"]),
        ("a.yaml", 'key: "# nobody"\nkey: 1 # told', ["told"]),
        ("a.json", '{"nobody": "asks"}', []),
    ],
)
def test_habits_are_found_in_prose(path: str, text: str, words: list[str]) -> None:
    """Comments, docstrings, pages and messages are prose; code is not."""
    assert [word for _, word, _ in prose.found(path, text)] == words
