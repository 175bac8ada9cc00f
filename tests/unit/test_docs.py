import ast
import asyncio
import json
import logging
import math
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from bench.rollout import numbers, traffic
from ghealth import __version__, cli, process
from ghealth.admin import http, routes
from ghealth.admin.page import REFRESH
from ghealth.check import alb, client
from ghealth.check.question import NoConnectionError, Question
from ghealth.check.report import ExitCode
from ghealth.check.target import Target as Server
from ghealth.durations import show_seconds
from ghealth.events import Event, ProbeCompleted, RequestAnswered
from ghealth.health import (
    ALB_USER_AGENT,
    CHECK_PATH,
    GATEWAY,
    POLICIES,
    Answer,
    Code,
    Health,
    Reason,
    ReasonKind,
    Result,
    Status,
)
from ghealth.matcher import GRPC_CODES, Matcher
from ghealth.observe import log
from ghealth.observe.log import AnswerLog, StatusLog
from ghealth.printable import MAX_USER_AGENT
from ghealth.probe import MAX_RESPONSE_HEAD
from ghealth.server import guard, serve, servicer
from ghealth.server.limits import OPTIONS, RECOMMENDED_MEMORY
from ghealth.settings import Row, Settings
from tests.support.fakes import answered
from tests.support.peers import answers, target
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


def section(text: str, heading: str) -> str:
    return re.split(r"^#+ ", text.partition(f"# {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]


def table(text: str, first: str) -> list[list[str]]:
    """Return the rows of the table whose head begins with a word, cell by cell."""
    lines = text.partition(f"| {first} |")[2].partition("\n\n")[0].splitlines()[2:]
    rows = [line for line in lines if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row)[1:-1]] for row in rows]


COMMANDS = page("docs/commands.md")


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.name))
def test_the_tables_are_made_from_the_code(path: Path) -> None:
    """A page has what `make tables` would write."""
    assert path.read_text() == filled(path.read_text())


def test_the_limits_fit_into_the_recommended_memory() -> None:
    """Everything that untrusted clients can hold at once needs less than the memory limit."""
    assert f"{limits_sum():.1f} MiB" in page("SECURITY.md")
    assert limits_sum() < MEMORY_LIMIT


def test_the_settings_are_on_their_page() -> None:
    """Every setting has a row in docs/configuration.md."""
    rows = table(page("docs/configuration.md"), "variable")
    assert [row[0] for row in rows] == [f"`{row.variable}`" for row in DEFAULTS.rows()]


def test_every_reason_and_result_is_explained() -> None:
    """Each kind of reason is in one of the tables, and each result in its own."""
    assert {*PROBE_REASONS, *OTHER_REASONS} == set(ReasonKind)
    assert set(RESULTS) == set(Result)
    assert not set(PROBE_REASONS) & set(OTHER_REASONS)


@pytest.mark.parametrize("path", EVERY_PAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_setting_that_a_page_names_exists(path: Path) -> None:
    """No page names a variable that ghealth does not know, but for Kubernetes' service links."""
    known = {row.variable for row in DEFAULTS.rows()}
    links = {"GHEALTH_PORT", "GHEALTH_SERVICE_HOST"}
    mistakes = {"GHEALTH_PROBE_URLS"}  # an example of a mistake
    found = set(re.findall(r"GHEALTH_[A-Z_]*[A-Z]", path.read_text()))
    assert found <= known | links | mistakes


def anchors(path: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", EVERY_PAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(path: Path) -> None:
    """A link to a file of the repository has its file, and one to a heading its heading."""
    for link in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"https?:", link):
            continue
        name, _, anchor = link.partition("#")
        linked = (path.parent / name).resolve() if name else path
        assert linked.exists(), link
        assert not anchor or anchor in anchors(linked), link


def test_the_exit_codes_are_listed() -> None:
    """Every exit code of every command has its row."""
    rows = {row[0]: row[1:] for row in table(COMMANDS, "code")}
    serves, checks = (
        {code for code, cells in rows.items() if code.isdigit() and len(cells[command]) > 1}
        for command in range(2)
    )
    assert checks == {str(code.value) for code in ExitCode}
    assert serves == {str(code) for code in (cli.OK, cli.MISTAKE, cli.CANNOT_START)}
    assert f"{cli.KILLED_BY} + n" in rows


# What the log has.


def documented_keys() -> dict[str, set[str]]:
    """Return the keys that docs/commands.md lists for each event."""
    name = re.compile(r"`(\w+)`")
    return {
        event: set(name.findall(keys))
        for events, _, keys in table(COMMANDS, "`event`")
        for event in name.findall(events)
    }


def written_events() -> dict[str, set[str]]:
    """Return each event in the source, with the keys that a call names."""
    found: dict[str, set[str]] = {}
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call) or not isinstance(
                node.func, ast.Name | ast.Attribute
            ):
                continue
            name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
            texts = [arg.value for arg in node.args if isinstance(arg, ast.Constant)]
            if name in ("log_event", "_log_transition"):
                for text in texts[:1]:
                    keys = {keyword.arg for keyword in node.keywords if keyword.arg}
                    found.setdefault(str(text), set()).update(keys)
            for keyword in node.keywords:
                if keyword.arg == "extra" and isinstance(keyword.value, ast.Dict):
                    for value in keyword.value.values:
                        if isinstance(value, ast.Constant):
                            found.setdefault(str(value.value), set())
    return found


def test_every_event_of_the_log_is_documented() -> None:
    """docs/commands.md lists the events that the code writes, and no others."""
    # The two that the formatter and the queue write themselves.
    assert set(documented_keys()) == {*written_events(), "message", "log_lines_dropped"}


def test_the_keys_of_events_are_documented() -> None:
    """docs/commands.md lists the keys that a call in the source names."""
    documented = documented_keys()
    for event, keys in written_events().items():
        assert keys <= documented[event], event
    assert documented["started"] - written_events()["started"] == {
        "listen",
        "tls_listen",
        "admin_listen",
    }
    assert '"dropped": count' in Path(log.__file__).read_text()
    assert documented["log_lines_dropped"] == {"dropped"}


def test_the_keys_of_transitions_are_documented(caplog: pytest.LogCaptureFixture) -> None:
    """docs/commands.md lists the keys of `status_changed` and `answer_changed`, and no others."""
    moments = iter([*range(20), *range(100, 200)])

    def clock() -> float:
        return float(next(moments))

    status, answer = StatusLog(clock), AnswerLog([GATEWAY], clock)
    with caplog.at_level(logging.INFO, "ghealth"):
        for number in range(16):
            found = Status.NOT_SERVING if number % 2 else Status.SERVING
            events: tuple[Event, Event] = (
                ProbeCompleted(service=GATEWAY, health=Health(found, answered(503)), seconds=0.1),
                RequestAnswered(
                    method="Check",
                    path=CHECK_PATH,
                    user_agent="",
                    service=GATEWAY,
                    answer=Answer(Code.OK, found, answered(503)),
                ),
            )
            status(events[0])
            answer(events[1])
    for event in ("status_changed", "answer_changed"):
        keys = [
            vars(record)["fields"] for record in caplog.records if vars(record)["event"] == event
        ]
        assert set().union(*keys) == documented_keys()[event]


# What the commands print.


def test_the_keys_of_the_json_output_are_documented() -> None:
    """docs/commands.md lists the keys of `--output json`, and no others."""
    rows = {row[0]: words_in_code(row[1]) for row in table(COMMANDS, "output of")}
    where = Server.parse("127.0.0.1:1")
    check = client._no_connection(Question(target=where, user_agent=""), NoConnectionError())
    replay = alb._report(where, alb.TargetGroup(), alb._Response(), 0.1)
    assert rows["`check`"] == list(check.keys)
    assert rows["`check --as alb`"] == list(replay.keys)
    assert rows["`settings`"] == [*Row.__dataclass_fields__, "changed"]


async def test_the_output_in_the_readme_is_what_is_printed() -> None:
    """The example of `ghealth check --as alb` is its output beside a gateway that answers 503."""
    example = re.search(
        r"```console\n\$ ghealth check --as alb\n(.*?)```", page("README.md"), re.DOTALL
    )
    assert example is not None
    async with target(answers(503)) as gateway:
        url = f"http://127.0.0.1:{gateway.port}/"
        settings = Settings.model_validate(
            {"listen": "127.0.0.1:0", "admin_listen": "off", "probe_url": url, "drain_delay": "0s"}
        )
        started: asyncio.Future[serve.Ports] = asyncio.get_running_loop().create_future()
        stop = asyncio.Event()
        serving = asyncio.create_task(
            serve.serve(settings, shutdown_trigger=stop.wait, on_started=started.set_result)
        )
        port = (await started).listen[0]
        report = await alb.check(Server.parse(f"127.0.0.1:{port}"), alb.TargetGroup())
        stop.set()
        await serving
    printed = re.sub(r"in \d+ ms", "in 5 ms", report.text.replace(f":{port}", ":25021"))
    assert printed == example[1].rstrip()


def test_the_example_of_a_warning_is_what_is_printed() -> None:
    """docs/commands.md has the output beside a server that does not know the path."""
    path, matcher = "/AWS.ALB/healthcheck", Matcher.parse("12", GRPC_CODES)
    response = alb._Response(code=12, grpc_message="Method not found!")
    group = alb.TargetGroup(path=path, matcher=matcher)
    report = alb._report(Server.parse("10.0.3.17:8080"), group, response, 0.002)
    assert f"{report.text}\nwarning: {report.warnings[0]}\n```" in COMMANDS


def test_the_example_of_mistakes_is_what_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """docs/configuration.md has the lines that its example prints."""
    text = page("docs/configuration.md")
    example = re.search(r"```console\n\$ (.*?) ghealth\n(.*?)```", text, re.DOTALL)
    assert example is not None
    for variable in example[1].split():
        monkeypatch.setenv(*variable.split("=", 1))
    assert cli.main(["settings"]) == cli.MISTAKE
    assert capsys.readouterr().err == example[2]


def test_the_examples_of_settings_are_valid() -> None:
    """Each value in the examples of docs/configuration.md is accepted."""
    blocks = re.findall(r"```sh\n(.*?)```", page("docs/configuration.md"), re.DOTALL)
    examples = re.findall(r"GHEALTH_(\w+)=('[^']*'|\S+)", "\n".join(blocks))
    assert len(examples) > 5
    for name, value in examples:
        if not name.startswith("TLS_"):  # the files are not here
            assert Settings.model_validate({name.lower(): value.strip("'")})


async def test_the_example_of_embedding_runs() -> None:
    """The program in docs/embedding.md serves its own probe, and ends."""
    example = re.search(r"```python\n(.*?)```", page("docs/embedding.md"), re.DOTALL)
    assert example is not None
    started: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    found: list[int] = []

    def note(_text: str, port: int) -> None:
        started.set_result(port)

    async def ask() -> None:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{await started}") as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            for jobs in range(0, 101, 100):
                for number in range(jobs):
                    program["jobs"].put_nowait(str(number))
                answer = await stub.Check(health_pb2.HealthCheckRequest())
                found.append(answer.status)
                await asyncio.sleep(DEFAULTS.cache_ttl)  # a result is fresh for that long

    source = example[1].replace("[::]:25021", "127.0.0.1:0")
    program: dict[str, Any] = {"__name__": "example", "print": note}
    exec(compile(source, "docs/embedding.md", "exec"), program)  # noqa: S102
    program["work"] = ask
    async with asyncio.timeout(30):
        await program["main"]()
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


def test_every_make_target_that_a_page_names_exists() -> None:
    """No page names a target that the Makefile does not have."""
    targets = set(re.findall(r"^([a-z-]+):", page("Makefile"), re.MULTILINE))
    for path in EVERY_PAGE:
        named = re.findall(r"`make ([a-z-]+(?: [a-z-]+)*)", path.read_text())
        assert {target for words in named for target in words.split()} <= targets, path.name


def test_the_changelog_has_this_version() -> None:
    """CHANGELOG.md has a dated section for the version in the code."""
    assert re.search(
        rf"^## \[{__version__}\] - \d{{4}}-\d\d-\d\d$", page("CHANGELOG.md"), re.MULTILINE
    )


def test_the_readme_is_short() -> None:
    """README.md has fewer than 900 words."""
    assert len(page("README.md").split()) < 900


# Where the figures come from.

UNITS = (
    r"(?:%|(?:ms|µs|s|seconds?|minutes?|hours?|lines? a minute|KiB|MiB|"
    r"connections?|descriptors?|watches|characters?|bytes|times)\b)"
)
FIGURE = re.compile(rf"(?<![\w.,])\d[\d,.]*\s?{UNITS}")


def option(name: str) -> int:
    return dict(OPTIONS)[f"grpc.{name}"]


def known_figures() -> set[str]:
    """Return the figures that follow from constants."""
    ttl, timeout = DEFAULTS.cache_ttl, DEFAULTS.probe_timeout
    alerts = page("deploy/observability/prometheusrule.yaml")
    project = tomllib.loads(page("pyproject.toml"))
    # An alert on the last so many minutes that holds for some more fires after the sum of both.
    waits = re.findall(r"\[(\d+)m\]\)\) > 0\s.*?for: (\d+)m", alerts, re.DOTALL)
    return {
        *(f"{int(window) + int(holds)} minutes" for window, holds in waits),
        f"{ttl:g} s",
        f"{timeout:g} s",
        f"{servicer.DEADLINE_MARGIN * 1000:g} ms",
        f"{servicer.MESSAGE_TIMEOUT:g} s",
        f"{log.MAX_LINES_PER_MINUTE} lines a minute",
        f"{RECOMMENDED_MEMORY >> 20} MiB",
        f"{guard.BUSY_INTERVAL * 1000:g} ms",
        f"{http.MAX_CONNECTIONS} connections",
        f"{http.HEAD_TIMEOUT + http.ANSWER_TIMEOUT:g} s",
        f"{http.MAX_HEAD // 1024} KiB",
        f"{MAX_RESPONSE_HEAD // 1024} KiB",
        f"{process.MAX_DESCRIPTORS:,} descriptors",
        f"{MAX_USER_AGENT} characters",
        f"{routes.CHECK_TIMEOUT:g} s",
        f"{routes.SCRAPE_MARGIN:g} s",
        f"{REFRESH} s",
        *(f"{minutes} minutes" for minutes in re.findall(r"(?:for: |\[)(\d+)m\b", alerts)),
        f"{project['tool']['coverage']['report']['fail_under']} %",
    }


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
)
"""Pages about clusters and load balancers, beside ghealth."""

CLUSTER_FIGURES = {
    "70 s": "from 25 to 70 s after deregistration requests still arrive: LBC#2366, LBC#1064",
    "80 %": "the target of the HorizontalPodAutoscaler in Istio's gateway chart",
    "100 s": "what is left of a spot instance's notice, docs/nodes.md",
}
"""Figures about other programs; the page that has one names its source."""


def runs_of(event: str) -> list[dict[str, Any]]:
    runs: list[dict[str, Any]] = json.loads(page("bench/rollout/results.json"))
    return [run for run in runs if run["event"] == event]


def seconds_without_a_pod() -> float:
    """Return for how long requests fail in the picture of a pod without preStop."""
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


@pytest.mark.parametrize(
    "path",
    [path for path in EVERY_PAGE if str(path.relative_to(ROOT)) not in MEASURED],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_every_figure_has_a_source(path: Path) -> None:
    """A figure in the documentation is a constant, or in a table that is made or names a test."""
    known = known_figures() | set(OUTSIDE_FIGURES)
    if str(path.relative_to(ROOT)) in CLUSTER_PAGES:
        known |= cluster_figures() | set(CLUSTER_FIGURES)
    assert set(figures_of(path.read_text())) <= known


@pytest.mark.parametrize("path", EVERY_PAGE, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_length_of_time_is_vague(path: Path) -> None:
    """A length of time is a figure, which has a source; "in a minute" has none."""
    found = re.findall(
        r"\b(?:half an?|(?:for|in|within|under|about) an?) (?:minute|hour)\b", path.read_text()
    )
    assert found == []


def test_the_figures_of_others_are_those_that_matter() -> None:
    """The options that docs/design.md compares with gRPC's defaults are stricter."""
    assert option("server_handshake_timeout_ms") < 120_000
    assert option("http2.min_ping_interval_without_data_ms") < 10_000


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


def test_durations_in_the_readme_are_the_defaults() -> None:
    """The README's figures of the promise are those of the settings."""
    ttl, timeout = map(show_seconds, (DEFAULTS.cache_ttl, DEFAULTS.probe_timeout))
    assert f"({ttl.replace('s', ' s')} + {timeout.replace('s', ' s')} by default)" in page(
        "README.md"
    )


def test_what_an_alb_gets_is_what_the_readme_has() -> None:
    """The default policy answers an ALB with the code that the README's table has."""
    sick = Health(Status.NOT_SERVING, Reason(ReasonKind.ANSWERED, "503"))
    answer = POLICIES[DEFAULTS.answer](sick, ALB_USER_AGENT, DEFAULTS.status_callers)
    assert f"**`{answer.name}`** ({answer.code.value})" in page("README.md")


def test_the_picture_of_a_gateway_that_answers_503_has_the_results() -> None:
    """What `make tables` would draw is in docs/."""
    assert tables.OUT_AFTER_PICTURE.read_text() == tables.out_after_picture()


@pytest.mark.parametrize(
    "file",
    [
        "gateway-api/gateway.yaml",
        "helm/values-native.yaml",
        "kustomize/ghealth-native/deployment.yaml",
    ],
)
def test_the_recipes_have_the_memory_limit_of_the_bounds(file: str) -> None:
    """The memory limit in deploy/ is the one for which SECURITY.md adds up the bounds."""
    assert f"memory: {MEMORY_LIMIT}Mi" in (ROOT / "deploy" / file).read_text()
