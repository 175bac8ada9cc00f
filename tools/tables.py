"""Makes the tables of the documentation from the code; `test_docs.py` compares them."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Final

from bench.speed import plots
from ghealth import flags, health, process
from ghealth.check import command
from ghealth.events import OTHER, RequestAnswered
from ghealth.health import GATEWAY, Answer, Code, Health, Reason, ReasonKind, Status
from ghealth.observe.callers import Caller
from ghealth.observe.metrics import Metrics
from ghealth.server import guard, limits
from ghealth.server.servicer import MAX_REFLECTIONS, MESSAGE_TIMEOUT
from ghealth.settings import Settings

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
DEFAULTS: Final = Settings.model_construct()

MEMORY_LIMIT: Final = limits.RECOMMENDED_MEMORY >> 20
"""MiB that deploy/ recommends as limit."""

MIB: Final = 1024

LIMITS: Final = (
    ("ghealth at rest", 1, 40 * MIB),
    ("`ghealth check`: HEALTHCHECK, and one by `kubectl exec`", 2, 25 * MIB),
    ("connections", process.MAX_DESCRIPTORS, 16.5),
    ("their bytes in gRPC", process.MAX_DESCRIPTORS, limits.READ_BUFFER / 1024),
    ("their bytes in the kernel", process.MAX_DESCRIPTORS, limits.KERNEL_BUFFER / 1024),
    ("calls that Python has not accepted yet", limits.MAX_PENDING, 23),
    ("calls under way, reflection and waiting checks among them", limits.MAX_CALLS, 29),
    ("watches, by default", DEFAULTS.max_watches, 29),
)
"""Limits, and what each costs in KiB: measured by `make flood`, with the largest headers."""

CONTENDERS: Final = {
    "ghealth": "ghealth",
    "http": "HTTP check on 15021 (HTTP2 target group)",
    "pass-through": "gRPC bridge that counts any HTTP answer as healthy",
    "stock": "stock gRPC health server: `OK` with `NOT_SERVING`",
    "default": "the ALB's default path and matcher",
}
"""Health checks in bench/rollout/results.json, in words for a reader of the README."""


def _table(head: str, rows: Iterable[Iterable[object]]) -> str:
    lines = [f"| {' | '.join(map(str, row))} |" for row in rows]
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *lines])


def settings() -> str:
    """List every setting with its default and meaning."""
    rows = (
        (f"`{row.variable}`", f"`{row.default}`" if row.default else "unset", row.meaning)
        for row in DEFAULTS.rows()
    )
    return _table("| variable | default | meaning |", rows)


def answers() -> str:
    """Show the answer of each policy to a gRPC client and to an ALB."""
    sick = Health(Status.NOT_SERVING, Reason(ReasonKind.ANSWERED, "503"))

    def cell(policy: health.AnswerPolicy, user_agent: str) -> str:
        answer = policy(sick, user_agent, DEFAULTS.status_callers)
        return f"`OK` + `{answer.name}`" if answer.code is Code.OK else f"`{answer.name}`"

    head = "| `GHEALTH_ANSWER` | a gRPC client, when not ready | an ALB, when not ready |"
    rows = (
        (f"`{name}`", cell(policy, "grpc-go/1.70.0"), cell(policy, health.ALB_USER_AGENT))
        for name, policy in health.POLICIES.items()
    )
    return _table(head, rows)


def metrics() -> str:
    """List every metric of ghealth with its type, labels and meaning."""
    made = Metrics([GATEWAY], probe_timeout=DEFAULTS.probe_timeout)
    answer = Answer(Code.UNAVAILABLE)
    made(RequestAnswered(method=OTHER, path="/", user_agent="", service=None, answer=answer))
    made.render("", {GATEWAY: health.ALIVE}, {})
    rows = []
    for family in made.collect():
        if not family.name.startswith("process_"):
            suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
            labels = [f"`{label}`" for label in family.samples[0].labels if label != "le"]
            kind = "gauge" if family.type == "info" else family.type
            name = f"`{family.name}{suffix}`"
            rows.append((name, kind, ", ".join(labels) or "-", family.documentation))
    return _table("| metric | type | labels | meaning |", rows)


def callers() -> str:
    """List every kind of caller."""
    return ", ".join(f"`{caller}`" for caller in Caller)


def check_flags() -> str:
    """List the flags of `ghealth check`."""
    commands = argparse.ArgumentParser().add_subparsers(parser_class=flags.Parser)
    command.add_parser(commands)
    rows = []
    for action in commands.choices["check"]._actions:  # noqa: SLF001 - argparse has no other way
        names = ", ".join(sorted(action.option_strings, key=len))
        value = "\\|".join(action.choices or ()) or action.metavar or action.dest.upper()
        rows.append((f"`{names}`" if action.nargs == 0 else f"`{names} {value}`", action.help))
    return _table("| flag | meaning |", rows)


def limits_sum() -> float:
    """Return the MiB that ghealth uses with every limit reached at once."""
    return sum(most * cost for _, most, cost in LIMITS) / MIB


def all_limits() -> str:
    """Show what untrusted clients can hold: limits, costs and their sum."""
    rows = []
    for name, most, cost in LIMITS:
        each = f"{cost / MIB:g} MiB" if cost >= MIB else f"{cost:g} KiB"
        rows.append((name, most, each, f"{most * cost / MIB:.1f} MiB"))
    total = f"| **sum**; recommended limit: {MEMORY_LIMIT} MiB | | | **{limits_sum():.1f} MiB** |"
    return _table("| what is held | at most | each | together |", rows) + f"\n{total}"


def limits_of_one() -> str:
    """Show what one connection or one address can hold."""
    connections = process.MAX_DESCRIPTORS * guard.ROOM
    most = {
        "calls on a connection": limits.RESERVED_STREAMS + limits.MAX_WATCHES_PER_CONNECTION,
        "watches on a connection": limits.MAX_WATCHES_PER_CONNECTION,
        "headers of a call": f"{limits.MAX_HEADERS // 1024} KiB",
        "time until a client acknowledges SETTINGS": f"{limits.SETTINGS_TIMEOUT:g} s",
        "time for a call's message": f"{MESSAGE_TIMEOUT:g} s",
        "reflection streams in all": MAX_REFLECTIONS,
        "connections in all, until some without a call are cut": f"{connections:g}",
        "memory that is not used yet at the start, until connections are cut": f"{guard.ROOM:.0%}",
    }
    return _table("| limit | |", most.items())


def _seconds_until_out() -> tuple[dict[str, float], int]:
    """Return how long a gateway that answers 503 gets requests, by health check, and the runs.

    Only runs with every health check: most have only two.
    """
    runs = json.loads((ROOT / "bench" / "rollout" / "results.json").read_text())
    sick = [run["contenders"] for run in runs if run["event"] == "sick"]
    found = [contenders for contenders in sick if contenders.keys() >= CONTENDERS.keys()]
    seconds = {
        title: median(contenders[contender]["out_after"] for contenders in found)
        for contender, title in CONTENDERS.items()
    }
    return seconds, len(found)


def out_after() -> str:
    """Show for how long a gateway that answers 503 gets requests, by health check."""
    seconds, runs = _seconds_until_out()
    rows = ((title, f"{value:.0f}") for title, value in seconds.items())
    return _table(f"| health check | seconds (median of {runs} runs) |", rows)


OUT_AFTER_PICTURE: Final = ROOT / "docs" / "out-after.svg"


def out_after_picture() -> str:
    """Draw the table of `out_after` as bars."""
    seconds, runs = _seconds_until_out()
    heading = "Seconds until a gateway that answers 503 gets no more requests"
    bars = {title.replace("`", ""): value for title, value in seconds.items()}
    return plots.bars({f"{heading} (median of {runs} runs of the model)": bars}, left=360)


TABLES: Final[Mapping[str, Callable[[], str]]] = {
    "settings": settings,
    "answers": answers,
    "metrics": metrics,
    "callers": callers,
    "flags": check_flags,
    "out after": out_after,
    "limits": all_limits,
    "limits of one": limits_of_one,
}


def filled(text: str) -> str:
    """Fill in the tables of a page.

    Args:
        text: The page.
    """
    for name, table in TABLES.items():
        begin, end = f"<!-- {name}: made by `make tables` -->", f"<!-- end of {name} -->"
        before, found, after = text.partition(begin)
        if found:
            text = f"{before}{begin}\n{table()}\n{end}{after.partition(end)[2]}"
    return text


def main() -> None:
    """Write the tables into the pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text()))
    OUT_AFTER_PICTURE.write_text(out_after_picture())


if __name__ == "__main__":
    main()
