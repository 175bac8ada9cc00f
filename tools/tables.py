"""Makes the tables of the documentation from the code; `test_docs.py` compares them."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

from bench.speed import plots
from ghealth import flags, process
from ghealth.check import command
from ghealth.events import OTHER, RequestAnswered
from ghealth.health import (
    ALIVE,
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
from ghealth.observe.callers import Caller
from ghealth.observe.metrics import Metrics
from ghealth.server import guard, limits
from ghealth.server.servicer import MAX_REFLECTIONS, MESSAGE_TIMEOUT
from ghealth.settings import Row, Settings

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md")))
DEFAULTS: Final = Settings.model_construct()

GRPC_CLIENT, ALB = "grpc-go/1.70.0", "ELB-HealthChecker/2.0"

PROBE_REASONS: Final = {
    ReasonKind.ANSWERED: "the gateway's HTTP status code; ready if it is in `PROBE_SUCCESS_CODES`. "
    "Istio's 503: it drains, or rejected its first configuration",
    ReasonKind.TIMED_OUT: "`PROBE_TIMEOUT` expired",
    ReasonKind.REFUSED: "nothing listens on the port: Envoy does not run, waits for its first "
    "configuration, or has closed its listeners in a long drain",
    ReasonKind.RESET: "the connection was reset before an answer",
    ReasonKind.TLS_RESET: "an https target reset the connection before an answer: it has no "
    "certificate for the URL's name, requires a client certificate, or was killed",
    ReasonKind.CLOSED: "the connection was closed before the response headers were complete",
    ReasonKind.UNREACHABLE: "no route to the target, or another failure to connect",
    ReasonKind.NOT_HTTP: "the answer is not HTTP/1.1",
    ReasonKind.NAME_UNRESOLVED: "the host name in the URL has no address",
    ReasonKind.CERTIFICATE_EXPIRED: "the target's certificate, or one of its chain, has expired",
    ReasonKind.CERTIFICATE_AUTHORITY: "the target's certificate is not of an authority that is "
    "trusted ([HTTPS targets](configuration.md#https-targets)), or its chain is incomplete",
    ReasonKind.CERTIFICATE_NAME: "the target's certificate is for other names than the URL's",
    ReasonKind.CERTIFICATE: "the target's certificate is not valid yet, is revoked or too weak, …",
    ReasonKind.TLS: "the target does not use TLS, or no version of it that both support; it "
    "requires a client certificate; or TLS broke after the handshake",
    ReasonKind.INTERNAL_ERROR: "a bug in ghealth; its stack is in the log",
    ReasonKind.CUSTOM: "the text of a probe in Python ([embedding](embedding.md))",
}
"""The reasons that a probe can have."""

OTHER_REASONS: Final = {
    ReasonKind.DRAINING: "ghealth is shutting down",
    ReasonKind.DEADLINE: "the caller's deadline expires before the probe ends",
    ReasonKind.ALIVE: "the service `liveness`; it is always serving",
    ReasonKind.UNKNOWN_SERVICE: "the service is not configured: `NOT_FOUND`",
    ReasonKind.MALFORMED: "the request is not a health check message: `INVALID_ARGUMENT`",
    ReasonKind.NO_MESSAGE: "the caller sent no message and kept its side open: `INVALID_ARGUMENT`",
    ReasonKind.HEADERS_TOO_LARGE: "more headers than a call may have: `RESOURCE_EXHAUSTED`",
    ReasonKind.TOO_MANY_WATCHES: "a limit on watches is reached: `RESOURCE_EXHAUSTED`",
    ReasonKind.TOO_MANY_CALLS: "a limit on other calls is reached: `RESOURCE_EXHAUSTED`",
    ReasonKind.TOO_MANY_SERVICES: "more services than one List may have: `RESOURCE_EXHAUSTED`",
}
"""The reasons that come from ghealth itself."""

_DETAILS: Final = {
    ReasonKind.ANSWERED: "503",
    ReasonKind.TIMED_OUT: f"{DEFAULTS.probe_timeout:g} s",
    ReasonKind.NO_MESSAGE: f"{MESSAGE_TIMEOUT:g} s",
    ReasonKind.CUSTOM: "database is read-only",
}
"""Examples of the part of a text that varies."""

RESULTS: Final = {
    Result.OK: "ready",
    Result.STATUS: "a status code that is not in `PROBE_SUCCESS_CODES`",
    Result.TIMEOUT: "no answer within `PROBE_TIMEOUT`",
    Result.REFUSED: "nothing listens on the port",
    Result.RESET: "the connection was reset, or closed without an answer",
    Result.PROTOCOL: "the answer is not HTTP",
    Result.TLS: "TLS or the target's certificate",
    Result.DNS: "the name does not resolve",
    Result.ERROR: "no connection for another reason, or a bug in ghealth",
}


MEMORY_LIMIT: Final = limits.RECOMMENDED_MEMORY >> 20
"""MiB that deploy/ recommends as limit."""

AT_REST: Final = 40
"""MiB of ghealth itself, measured by `make flood`."""

MIB: Final = 1024

LIMITS: Final = (
    ("`ghealth check`: HEALTHCHECK, and one by `kubectl exec`", 2, 25 * MIB),
    ("connections", process.MAX_DESCRIPTORS, 16.5),
    ("their bytes in gRPC", process.MAX_DESCRIPTORS, limits.READ_BUFFER / 1024),
    ("their bytes in the kernel", process.MAX_DESCRIPTORS, limits.KERNEL_BUFFER / 1024),
    ("calls that Python has not accepted yet", limits.MAX_PENDING, 23),
    ("calls under way, reflection and waiting checks among them", limits.MAX_CALLS, 29),
    ("watches, by default", DEFAULTS.max_watches, 29),
)
"""Limits, and what each costs in KiB: measured, with the largest headers that are accepted."""

CONTENDERS: Final = {
    "ghealth": "ghealth",
    "http": "HTTP check on 15021 (HTTP2 target group)",
    "pass-through": "gRPC bridge that counts any HTTP answer as healthy",
    "stock": "stock gRPC health server: `OK` with `NOT_SERVING`",
    "default": "the ALB's default path and matcher",
}
"""Health checks in bench/rollout/results.json, in words for a reader of the README."""


def _table(head: str, rows: Iterable[str]) -> str:
    return "\n".join([head, "|---" * (head.count("|") - 1) + "|", *rows])


def _example(kind: ReasonKind) -> str:
    return f"`{Reason(kind, _DETAILS.get(kind, ''))}`"


def settings() -> str:
    """List every setting with its default and meaning."""

    def default(row: Row) -> str:
        return f"`{row.default}`" if row.default else "unset"

    return _table(
        "| variable | default | meaning |",
        (f"| `{row.variable}` | {default(row)} | {row.meaning} |" for row in DEFAULTS.rows()),
    )


def reasons(meanings: Mapping[ReasonKind, str]) -> str:
    """List reasons with their meanings."""
    return _table(
        "| reason | what happened |",
        (f"| {_example(kind)} | {meaning} |" for kind, meaning in meanings.items()),
    )


def answers() -> str:
    """Show the answer of each policy to a gRPC client and to an ALB."""
    sick = Health(Status.NOT_SERVING, Reason(ReasonKind.ANSWERED, "503"))

    def cell(answer: Answer) -> str:
        return f"`OK` + `{answer.name}`" if answer.code is Code.OK else f"`{answer.name}`"

    rows = []
    for name, policy in POLICIES.items():
        cells = [cell(policy(sick, agent, DEFAULTS.status_callers)) for agent in (GRPC_CLIENT, ALB)]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    head = "| `GHEALTH_ANSWER` | a gRPC client, when not ready | an ALB, when not ready |"
    return _table(head, rows)


def metrics() -> str:
    """List every metric of ghealth with its type, labels and meaning."""
    made = Metrics([GATEWAY], probe_timeout=DEFAULTS.probe_timeout)
    answer = Answer(Code.UNAVAILABLE)
    made(RequestAnswered(method=OTHER, path="/", user_agent="", service=None, answer=answer))
    made.render("", {GATEWAY: ALIVE}, {})
    rows = []
    for family in made.collect():
        if family.name.startswith("process_"):
            continue
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = [label for label in family.samples[0].labels if label != "le"]
        kind = "gauge" if family.type == "info" else family.type
        shown = ", ".join(f"`{label}`" for label in labels) or "-"
        rows.append(f"| `{family.name}{suffix}` | {kind} | {shown} | {family.documentation} |")
    return _table("| metric | type | labels | meaning |", rows)


def results() -> str:
    """List every result that probes are counted by, with the reasons that count as it."""
    counted: dict[Result, list[str]] = {result: [] for result in Result}
    counted[Result.OK].append(f"`{Reason(ReasonKind.ANSWERED, '200')}`")
    for kind in PROBE_REASONS:
        if kind is not ReasonKind.CUSTOM:
            counted[kind.result].append(_example(kind))
    return _table(
        "| result | what happened | reasons |",
        (f"| `{result}` | {RESULTS[result]} | {', '.join(counted[result])} |" for result in Result),
    )


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
        shown = names if action.nargs == 0 else f"{names} {value}"
        rows.append(f"| `{shown}` | {action.help} |")
    return _table("| flag | meaning |", rows)


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


def limits_sum() -> float:
    """Return the MiB that ghealth uses with every limit reached at once."""
    return AT_REST + sum(most * cost for _, most, cost in LIMITS) / MIB


def _size(kib: float) -> str:
    return f"{kib / MIB:g} MiB" if kib >= MIB else f"{kib:g} KiB"


def all_limits() -> str:
    """Show what untrusted clients can hold: limits, costs and their sum."""
    rows = [
        f"| {name} | {most} | {_size(cost)} | {most * cost / MIB:.1f} MiB |"
        for name, most, cost in LIMITS
    ]
    return _table(
        "| what is held | at most | each | together |",
        [
            f"| ghealth at rest | 1 | {AT_REST} MiB | {AT_REST:.1f} MiB |",
            *rows,
            f"| **sum**; recommended limit: {MEMORY_LIMIT} MiB | | | **{limits_sum():.1f} MiB** |",
        ],
    )


def limits_of_one() -> str:
    """Show what one connection or one address can hold."""
    cut_above = process.MAX_DESCRIPTORS * guard.ROOM
    most = {
        "calls on a connection": limits.RESERVED_STREAMS + limits.MAX_WATCHES_PER_CONNECTION,
        "watches on a connection": limits.MAX_WATCHES_PER_CONNECTION,
        "headers of a call": f"{limits.MAX_HEADERS // 1024} KiB",
        "time until a client acknowledges SETTINGS": f"{limits.SETTINGS_TIMEOUT:g} s",
        "time for a call's message": f"{MESSAGE_TIMEOUT:g} s",
        "reflection streams in all": MAX_REFLECTIONS,
        "connections in all, until some without a call are cut": f"{cut_above:g}",
        "memory that is not used yet at the start, until connections are cut": f"{guard.ROOM:.0%}",
    }
    return _table("| limit | |", (f"| {name} | {value} |" for name, value in most.items()))


def out_after() -> str:
    """Show for how long a gateway that answers 503 gets requests, by health check."""
    seconds, runs = _seconds_until_out()
    rows = [f"| {title} | {value:.0f} |" for title, value in seconds.items()]
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
    "reasons": partial(reasons, PROBE_REASONS),
    "other reasons": partial(reasons, OTHER_REASONS),
    "answers": answers,
    "metrics": metrics,
    "results": results,
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
