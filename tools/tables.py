"""Makes the tables of the documentation from the code; `test_docs.py` holds them to it."""

from collections.abc import Callable
from pathlib import Path

from ghealth import reasons
from ghealth.answers import POLICIES
from ghealth.callers import CALLERS
from ghealth.environment import defaults
from ghealth.metrics import Metrics
from ghealth.reasons import Result
from ghealth.status import ALIVE, GATEWAY, Health, Status

ROOT = Path(__file__).parent.parent

REASONS = {
    reasons.answered(503): "the status line, whatever the code; ready if it is a success code",
    reasons.no_answer_within(3): "`PROBE_TIMEOUT` ran out",
    reasons.REFUSED: "nobody listens there: Envoy is not up, or was killed",
    reasons.RESET: "the connection was reset before an answer",
    reasons.CLOSED: "the peer hung up before its headers were complete",
    reasons.UNREACHABLE: "no route to the target, or the kernel gave up",
    reasons.NOT_HTTP: "what came back is no HTTP/1.1",
    reasons.NAME_UNRESOLVED: "the host of the URL has no address",
    reasons.CERTIFICATE: "the target's certificate is not trusted, or not for that name",
    reasons.TLS: "no TLS at all at the other end, or none that fits",
    reasons.DRAINING: "ghealth is stopping",
    reasons.CALLER_LEFT_NO_TIME: "the caller's deadline comes before the gateway's answer",
    reasons.INTERNAL_ERROR: "a bug of ghealth's: its stack is in the log",
}


def settings() -> str:
    """Tell every variable with its default and meaning."""
    rows = [
        f"| `{row.variable}` | {f'`{row.default}`' if row.default else 'unset'} | {row.meaning} |"
        for row in defaults().rows
    ]
    return "\n".join(["| variable | default | meaning |", "|---|---|---|", *rows])


def reasons_given() -> str:
    """Tell every reason for not serving and what it means."""
    rows = [f"| `{reason}` | {meaning} |" for reason, meaning in REASONS.items()]
    return "\n".join(["| reason | what happened |", "|---|---|", *rows])


STATUS_READER, ALB = "grpc-go/1.70.0", "ELB-HealthChecker/2.0"


def answers() -> str:
    """Tell what each policy answers to a caller that reads the status, and to an ALB."""
    sick = Health(Status.NOT_SERVING, reasons.answered(503))
    callers = defaults().status_callers
    rows = []
    for name, policy in POLICIES.items():
        told = [policy(sick, agent, callers) for agent in (STATUS_READER, ALB)]
        cells = [
            f"`OK` + `{answer.status.name}`"
            if answer.code.name == "OK"
            else f"`{answer.code.name}`"
            for answer in told
        ]
        rows.append(f"| `{name}` | {' | '.join(cells)} |")
    head = "| `GHEALTH_ANSWER` | a gRPC client, when not ready | an ALB, when not ready |"
    return "\n".join([head, "|---|---|---|", *rows])


def metrics() -> str:
    """Tell every metric with its type, labels and meaning."""
    made = Metrics([GATEWAY], probe_timeout=3.0)
    made.answered("Check", "", GATEWAY, "SERVING", "")
    rows = []
    for family in made.families({GATEWAY: ALIVE}, {}):
        suffix = {"counter": "_total", "info": "_info"}.get(family.type, "")
        labels = [label for label in family.samples[0].labels if label != "le"]
        kind = "gauge" if family.type == "info" else family.type
        shown = ", ".join(f"`{label}`" for label in labels) or "-"
        rows.append(f"| `{family.name}{suffix}` | {kind} | {shown} | {family.documentation} |")
    head = "| metric | type | labels | meaning |"
    return "\n".join([head, "|---|---|---|---|", *rows])


RESULTS = {
    Result.OK: "ready",
    Result.STATUS: "a status code that is no success code",
    Result.TIMEOUT: "no answer within `PROBE_TIMEOUT`",
    Result.REFUSED: "nobody listens",
    Result.RESET: "the connection was reset, or closed without an answer",
    Result.PROTOCOL: "the answer is not HTTP",
    Result.TLS: "the certificate or the handshake",
    Result.DNS: "the name does not resolve",
    Result.ERROR: "it cannot be reached, or a bug of ghealth's",
}


def results() -> str:
    """Tell every result that attempts are counted by, and the reasons that count as it."""
    counted: dict[str, list[str]] = {result: [] for result in Result}
    for reason in REASONS:
        if reason not in (reasons.DRAINING, reasons.CALLER_LEFT_NO_TIME):
            counted[reasons.result_of(reason, ready=False)].append(f"`{reason}`")
    counted[Result.OK].append(f"`{reasons.answered(200)}`")
    rows = [
        f"| `{result}` | {RESULTS[result]} | {', '.join(counted[result])} |" for result in Result
    ]
    return "\n".join(["| result | what happened | reasons |", "|---|---|---|", *rows])


def callers() -> str:
    """Tell every kind of caller."""
    return ", ".join(f"`{caller}`" for caller in CALLERS)


TABLES: dict[str, Callable[[], str]] = {
    "settings": settings,
    "reasons": reasons_given,
    "answers": answers,
    "metrics": metrics,
    "results": results,
    "callers": callers,
}
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))


def filled(text: str) -> str:
    """Fill in the tables that a page asks for."""
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


if __name__ == "__main__":
    main()
