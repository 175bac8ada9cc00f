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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpcore
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.rollout import numbers, traffic
from ghealth import cli, flags, process
from ghealth.admin import http, routes
from ghealth.admin.page import REFRESH
from ghealth.check import alb, call, http2
from ghealth.check.addresses import Server
from ghealth.check.report import ExitCode
from ghealth.events import ConnectionsCut, RequestAnswered, StatusChanged
from ghealth.health import (
    ALB_USER_AGENT,
    CHECK_PATH,
    GATEWAY,
    POLICIES,
    Answer,
    Code,
    Health,
    ReasonKind,
    Result,
    Status,
)
from ghealth.matcher import GRPC_CODES, Matcher
from ghealth.observe import log
from ghealth.observe.log import Log
from ghealth.printable import MAX_USER_AGENT
from ghealth.server import guard, servicer
from ghealth.server.limits import RECOMMENDED_MEMORY
from ghealth.settings import Row, Settings
from tests.support.fakes import answered
from tools import prose, tables
from tools.tables import (
    DEFAULTS,
    MEMORY_LIMIT,
    OTHER_REASONS,
    PAGES,
    PROBE_REASONS,
    RESULTS,
    filled,
    limits_sum,
)

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
EVERY_PAGE = (*PAGES, *sorted((ROOT / "deploy").rglob("*.md")))


def page(name: str) -> str:
    return (ROOT / name).read_text()


def words_in_code(text: str) -> list[str]:
    return re.findall(r"`([^`\n]+)`", text)


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with a word, cell by cell."""
    lines = text.partition(f"| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


COMMANDS = page("docs/commands.md")


def test_the_tables_are_made_from_the_code() -> None:
    """The pages and the picture are what `make tables` would write, and each table is on one."""
    texts = [path.read_text() for path in PAGES]
    assert texts == [filled(text) for text in texts]
    assert tables.OUT_AFTER_PICTURE.read_text() == tables.out_after_picture()
    for name in tables.TABLES:
        assert any(f"<!-- {name}: made by" in text for text in texts), name


def test_the_limits_fit_into_the_recommended_memory() -> None:
    """Everything that untrusted clients can hold at once needs less than the memory limit."""
    assert f"{limits_sum():.1f} MiB" in page("SECURITY.md")
    assert limits_sum() < MEMORY_LIMIT


def test_every_reason_and_result_is_explained() -> None:
    """Each kind of reason is in one of the tables, and each result in its own."""
    assert {*PROBE_REASONS, *OTHER_REASONS} == set(ReasonKind)
    assert set(RESULTS) == set(Result)
    assert not set(PROBE_REASONS) & set(OTHER_REASONS)


def test_every_setting_that_a_page_names_exists() -> None:
    """No page names a variable that ghealth does not know, but for Kubernetes' service links."""
    known = {row.variable for row in DEFAULTS.rows()}
    known |= {"GHEALTH_PORT", "GHEALTH_SERVICE_HOST"}
    known |= {"GHEALTH_PROBE_URLS"}  # an example of a mistake
    for path in EVERY_PAGE:
        assert set(re.findall(r"GHEALTH_[A-Z_]*[A-Z]", path.read_text())) <= known, path


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


def test_the_exit_codes_are_listed() -> None:
    """Every exit code of every command has its row."""
    rows = {row[0]: row[1:] for row in table(COMMANDS, "code")}
    serves, checks = (
        {code for code, cells in rows.items() if code.isdigit() and len(cells[command]) > 1}
        for command in range(2)
    )
    assert checks == {str(code.value) for code in ExitCode}
    assert serves == {str(code) for code in (cli.OK, flags.MISTAKE, cli.CANNOT_START)}
    assert f"{cli.KILLED_BY} + n" in rows


# What the log has.


def documented_keys() -> dict[str, set[str]]:
    """Return the keys that docs/commands.md lists for each event."""
    return {
        event: set(re.findall(r"`(\w+)`", keys))
        for events, _, keys in table(COMMANDS, "`event`")
        for event in words_in_code(events)
    }


def written_keys() -> dict[str, set[str]]:
    """Return each event that a call of `log_event` in the source names, with the keys."""
    found = {}
    for node in ast.walk(ast.parse("\n".join(path.read_text() for path in SOURCES))):
        match node:
            case ast.Call(
                func=ast.Name("log_event"),
                args=[_, _, ast.Constant(str(event)), *_],
                keywords=keywords,
            ):
                found[event] = {keyword.arg for keyword in keywords if keyword.arg}
    return found


def limited_keys(caplog: pytest.LogCaptureFixture) -> dict[str, set[str]]:
    """Return the events whose lines are limited, with the keys that are written."""
    now, sick = 0.0, Health(Status.NOT_SERVING, answered(503))
    sink = Log([GATEWAY], lambda: now)
    with caplog.at_level(logging.INFO, "ghealth"):
        for number in range(16):
            found = Health(Status.SERVING, answered(number))
            answer = Answer(Code(number), reason=answered(503))
            sink(StatusChanged(service=GATEWAY, previous=sick, health=found, held_seconds=1))
            sink(StatusChanged(service="b", previous=found, health=found, held_seconds=1))
            sink(ConnectionsCut(address="", count=1, reason="calls"))
            sink(
                RequestAnswered(
                    method="Check", path=CHECK_PATH, user_agent="", service=GATEWAY, answer=answer
                )
            )
        sink.close()
    keys: dict[str, set[str]] = {}
    for record in map(vars, caplog.records):
        keys.setdefault(record["event"], set()).update(record["fields"])
    return keys


def test_every_event_of_the_log_is_documented(caplog: pytest.LogCaptureFixture) -> None:
    """docs/commands.md lists the events that the code writes, and no others."""
    source = "\n".join(path.read_text() for path in SOURCES)
    bugs = set(re.findall(r'extra={"event": "(\w+)"}', source))
    # The two that the formatter and the queue write themselves.
    others = {"message", "log_lines_dropped"}
    assert set(documented_keys()) == {*written_keys(), *limited_keys(caplog), *bugs, *others}


def test_the_keys_of_events_are_documented(caplog: pytest.LogCaptureFixture) -> None:
    """docs/commands.md lists the keys of each event, and for limited events no others."""
    documented, limited = documented_keys(), limited_keys(caplog)
    assert len(limited) == 4
    assert limited.items() <= documented.items()
    for event, keys in written_keys().items():
        assert keys <= documented[event], event
    addresses = {"listen", "tls_listen", "admin_listen"}
    assert documented["started"] - written_keys()["started"] == addresses
    assert '"dropped": count' in Path(log.__file__).read_text()
    assert documented["log_lines_dropped"] == {"dropped"}


# What the commands print.


def test_the_keys_of_the_json_output_are_documented() -> None:
    """docs/commands.md lists the keys of `--output json`, and no others."""
    rows = {row[0]: words_in_code(row[1]) for row in table(COMMANDS, "output of")}
    where = Server.parse("127.0.0.1:1")
    check = call._report(call.Request(server=where, user_agent=""), call._Reply(None))
    replay = alb._report(where, alb.TargetGroup(), alb._Response(), 0.1)
    assert rows["`check`"] == list(check.keys)
    assert rows["`check --as alb`"] == list(replay.keys)
    assert rows["`settings`"] == [*Row.__dataclass_fields__, "changed"]


def console(name: str, command: str) -> re.Match[str]:
    """Return the example of a command on a page: its first group is the output."""
    found = re.search(rf"```console\n\$ {command}\n(.*?)```", page(name), re.DOTALL)
    assert found is not None
    return found


def test_what_an_alb_gets_is_what_the_readme_has() -> None:
    """The code and the example are the default answer to an ALB while the gateway answers 503."""
    sick = Health(Status.NOT_SERVING, answered(503))
    answer = POLICIES[DEFAULTS.answer](sick, ALB_USER_AGENT, DEFAULTS.status_callers)
    assert f"**`{answer.name}`** ({answer.code.value})" in page("README.md")
    response = alb._Response(code=answer.code, grpc_message=str(answer.reason))
    report = alb._report(Server.parse("127.0.0.1:25021"), alb.TargetGroup(), response, 0.005)
    assert console("README.md", "ghealth check --as alb")[1] == f"{report.text}\n"


def test_the_example_of_a_warning_is_what_is_printed() -> None:
    """docs/commands.md has the output beside a server that does not know the path."""
    path, matcher = "/AWS.ALB/healthcheck", Matcher.parse("12", GRPC_CODES)
    response = alb._Response(code=12, grpc_message="Method not found!")
    group = alb.TargetGroup(path=path, matcher=matcher)
    report = alb._report(Server.parse("10.0.3.17:8080"), group, response, 0.002)
    assert f"{report.text}\nghealth: warning: {report.warnings[0]}\n```" in COMMANDS


def test_the_example_of_mistakes_is_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/configuration.md has the lines that its example prints."""
    example = console("docs/configuration.md", "(?P<variables>.*?) ghealth")
    for variable in example["variables"].split():
        monkeypatch.setenv(*variable.split("=", 1))
    assert cli.main(["settings"]) == flags.MISTAKE
    assert capsys.readouterr().err == example[2]


def test_the_examples_of_settings_are_valid() -> None:
    """Each value in the examples of docs/configuration.md is accepted."""
    blocks = re.findall(r"```sh\n(.*?)```", page("docs/configuration.md"), re.DOTALL)
    examples = re.findall(r"GHEALTH_(\w+)=('[^']*'|\S+)", "\n".join(blocks))
    assert len(examples) > 5
    for name, value in examples:
        if not name.startswith("TLS_"):  # the files are not here
            assert Settings.model_validate({name.lower(): value.strip("'")})


async def test_the_example_of_embedding_runs(caplog: pytest.LogCaptureFixture) -> None:
    """The program in docs/embedding.md serves its own probe, and drains on SIGTERM."""
    example = page("docs/embedding.md").partition("```python\n")[2].partition("```")[0]
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    found: list[int] = []

    async def ask() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await started}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            found.append((await check(health_pb2.HealthCheckRequest())).status)
            for _ in range(100):
                program["jobs"].put_nowait("")
            await asyncio.sleep(DEFAULTS.cache_ttl)  # a result is fresh for that long
            found.append((await check(health_pb2.HealthCheckRequest())).status)
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
    assert found == [Status.SERVING, Status.NOT_SERVING]


def test_every_test_that_a_page_names_exists() -> None:
    """The tests that are named as proof of a promise or a trap are there."""
    files = (ROOT / "tests").rglob("test_*.py")
    there = set(re.findall(r"def (test_\w+)", "\n".join(file.read_text() for file in files)))
    for path in EVERY_PAGE:
        named = set(re.findall(r"`(test_[a-z0-9_]+)`", path.read_text()))
        assert named - there == set(), path.name


def test_every_promise_and_every_trap_has_a_test() -> None:
    """The last cell of each row names a test."""
    promises, design = page("docs/promises.md"), page("docs/design.md")
    rows = re.findall(r"^\|(?! promise \||-).*\|$", promises, re.MULTILINE)
    rows += ["|".join(row) for row in table(design, "trap")]
    assert len(rows) > 60
    assert all(re.search(r"`test_\w+`[^|]*\|?$", row.strip()) for row in rows)


def test_every_module_is_on_the_map() -> None:
    """docs/design.md lists all modules and packages, and no others."""
    named = {
        word.rstrip("/")
        for row in table(page("docs/design.md"), "module")
        for word in words_in_code(row[0])
    }
    package = ROOT / "src" / "ghealth"
    there = {path.stem for path in package.glob("*.py") if not path.stem.startswith("_")}
    there |= {path.parent.name for path in package.glob("*/__init__.py")}
    assert named == there


def test_make_lists_its_targets() -> None:
    """`make` alone lists every target with a description."""
    listed = subprocess.run(
        ["make", "--no-print-directory"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    targets = re.search(r"^\.PHONY: help (.*)$", page("Makefile"), re.MULTILINE)
    assert targets is not None
    for name in targets[1].split():
        assert re.search(rf"^  make {name} +\S", listed, re.MULTILINE), name


def test_every_command_that_a_page_shows_exists() -> None:
    """No page names a target that the Makefile does not have, or a flag that `check` lacks."""
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    known = set(re.findall(r"--[\w-]+", tables.check_flags()))
    for path in EVERY_PAGE:
        text = path.read_text()
        named = re.findall(r"(?:`|^\$ )make ([a-z-]+(?: [a-z-]+)*)", text, re.MULTILINE)
        assert {target for words in named for target in words.split()} <= targets, path.name
        checks = re.findall(r"ghealth check ([^`\n|&]*)", text)
        assert {flag for one in checks for flag in re.findall(r"--[\w-]+", one)} <= known, path


def test_the_readme_is_short() -> None:
    """README.md has fewer than 900 words."""
    assert len(page("README.md").split()) < 900


# Where the figures come from.

UNITS = (
    r"(?:%|(?:ms|µs|s|seconds?|minutes?|hours?|lines? a minute|KiB|MiB|"
    r"connections?|descriptors?|watches|characters?|bytes|times)\b)"
)
FIGURE = re.compile(rf"(?<![\w.,])\d[\d,.]*\s?{UNITS}")


def known_figures() -> set[str]:
    """Return the figures that follow from constants."""
    idle, interval, count = http2.KEEPALIVE.values()
    alerts = page("deploy/observability/prometheusrule.yaml")
    coverage = tomllib.loads(page("pyproject.toml"))["tool"]["coverage"]
    largest_head = httpcore.AsyncHTTP11Connection.MAX_INCOMPLETE_EVENT_SIZE
    # An alert on the last so many minutes that holds for some more fires after the sum of both.
    waits = re.findall(r"\[(\d+)m\]\)\) > 0\s.*?for: (\d+)m", alerts, re.DOTALL)
    minutes = {int(number) for number in re.findall(r"(?:for: |\[)(\d+)m\b", alerts)}
    seconds = {DEFAULTS.cache_ttl, DEFAULTS.probe_timeout, servicer.MESSAGE_TIMEOUT, REFRESH}
    seconds |= {idle + interval * count, http.HEAD_TIMEOUT + http.ANSWER_TIMEOUT}
    seconds |= {routes.CHECK_TIMEOUT, routes.SCRAPE_MARGIN}
    figures: dict[str, set[float]] = {
        "s": seconds,
        "ms": {servicer.DEADLINE_MARGIN * 1000, guard.BUSY_INTERVAL * 1000},
        "minutes": minutes | {int(window) + int(holds) for window, holds in waits},
        "lines a minute": {log.MAX_LINES_PER_MINUTE},
        "MiB": {RECOMMENDED_MEMORY >> 20},
        "KiB": {http.MAX_HEAD // 1024, largest_head // 1024},
        "connections": {http.MAX_CONNECTIONS},
        "descriptors": {process.MAX_DESCRIPTORS},
        "characters": {MAX_USER_AGENT},
        "%": {coverage["report"]["fail_under"]},
    }
    return {f"{value:,g} {unit}" for unit, values in figures.items() for value in values}


OUTSIDE_FIGURES = {
    "2,000 connections": "measured by make flood, in SECURITY.md",
    "128 MiB": "what the flood of unknown frames filled, in docs/design.md",
    "16 MiB": "gRPC's limit of headers before the acknowledgement, in SECURITY.md",
    "0.2 s": "the time that gRPC needs to free a connection, in docs/design.md",
    "130 bytes": "what grpcio leaks of an answer, measured by make flood, in SECURITY.md",
    "120 s": "gRPC's default for `server_handshake_timeout_ms`",
    "10 s": "the interval of grpc-go's pings, in docs/design.md",
}
"""Figures about other programs; their sources are named in src/ghealth/server.py."""

CLUSTER_PAGES = (
    "docs/rollouts.md",
    "docs/nodes.md",
    "deploy/README.md",
    "deploy/troubleshooting.md",
    "deploy/traffic-probe.md",
)
"""Pages about clusters and load balancers, beside ghealth."""

CLUSTER_FIGURES = {
    "70 s": "from 25 to 70 s after deregistration requests still arrive: LBC#2366, LBC#1064",
    "80 %": "the target of the HorizontalPodAutoscaler in Istio's gateway chart",
    "100 s": "what is left of a spot instance's notice, docs/nodes.md",
    "6 s": "the earliest end with EXIT_ON_ZERO_ACTIVE_CONNECTIONS, pilot-agent 1.31-dev",
    "46 s": "when Envoy 1.40 has ended idle connections, docs/nodes.md",
    "0.9 s": "how much later istio-proxy starts with the startupProbe, kubelet 1.36.3",
    "2 s": "for how long a pod is not ready after a crash of ghealth, kubelet 1.36.3",
    # Probes and ghealth's CPU, with and without a second URL: pilot-agent, istiod, Envoy 1.40.
    **dict.fromkeys(("2.4 ms", "3.1 ms", "5.9 ms", "6.2 ms", "7.1 ms"), "deploy/traffic-probe.md"),
}
"""Figures about other programs; the page that has one names its source."""


def runs_of(event: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(page("bench/rollout/results.json"))
    return [run for run in runs if run["event"] == event]


def seconds_without_a_pod() -> float:
    """Return for how long requests fail in the first run of a pod without preStop."""
    drawn = next(run for run in runs_of("bare") if run["seed"] == 1)
    failures = drawn["contenders"]["ghealth"]["failures"]
    moments = [moment for moment, *_ in failures if moment > 0]  # 0: the pod is deleted
    return float(max(moments) - min(moments))


def cluster_figures() -> set[str]:
    """Return the figures that follow from the numbers of deploy/ and of bench/rollout."""
    out = numbers.UNHEALTHY_THRESHOLD * numbers.INTERVAL + numbers.TIMEOUT
    end = numbers.PRESTOP + numbers.DRAIN
    lag, controller = numbers.ROUTING_LAG[1], numbers.CONTROLLER_LAG[1]
    twice_as_often = numbers.UNHEALTHY_THRESHOLD * numbers.INTERVAL / 2 + numbers.TIMEOUT
    makefile = page("Makefile")
    # The share of the requests that istio-proxy's 100m or 1000m has beside ghealth's 50m.
    targets = (math.ceil(80 * request / (request + 50)) for request in (100, 1000))
    return {
        *(f"{target} %" for target in targets),
        f"{traffic.LONGEST * 1000:g} ms",
        *(f"{minutes} minutes" for minutes in re.findall(r"every event \((\d+) min", makefile)),
        *(
            f"{seconds:g} s"
            for seconds in (
                out,
                end,
                end - controller - lag,
                numbers.PRESTOP,
                numbers.GRACE,
                numbers.ENVOY_DRAIN_TIME,
                numbers.READINESS_PERIOD,
                numbers.READINESS_PERIOD - numbers.STARTUP_PERIOD,
                numbers.INTERVAL + controller,
                numbers.INTERVAL * numbers.HEALTHY_THRESHOLD,
                numbers.PROBE_TIMEOUT / numbers.SCALE,
                numbers.CACHE_TTL + numbers.PROBE_TIMEOUT,
                numbers.SIDECAR_START,
                traffic.DEADLINE,
                traffic.STREAM_SECONDS[1] * numbers.SCALE,
                twice_as_often,
                round(seconds_without_a_pod()),
            )
        ),
    }


MEASURED = ("docs/performance.md",)
"""Pages whose figures are measurements; their tables are made from results files."""


def figures_of(text: str) -> Iterator[str]:
    """Yield the figures in prose: not in code, in made tables, or in rows that name a test."""
    for part in (
        r"^```.*?^```$",
        r"<!-- ([\w ]+): made by .*?<!-- end of \1 -->",
        r"^\|.*`test_\w+`.*$",
        r"`[^`\n]*`",
    ):
        text = re.sub(part, "", text, flags=re.MULTILINE | (re.DOTALL if "?" in part else 0))
    for found in FIGURE.findall(text):
        yield re.sub(r"\s", " ", found)


def test_every_figure_has_a_source() -> None:
    """A figure in the documentation is a constant, or in a table that is made or names a test."""
    everywhere = known_figures() | set(OUTSIDE_FIGURES)
    of_clusters = cluster_figures() | set(CLUSTER_FIGURES)
    for path in EVERY_PAGE:
        name = str(path.relative_to(ROOT))
        known = everywhere | (of_clusters if name in CLUSTER_PAGES else set())
        assert name in MEASURED or set(figures_of(path.read_text())) <= known, name


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
