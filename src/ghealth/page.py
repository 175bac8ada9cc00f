"""The operators' page: what is said now, and why. No scripts, nothing from elsewhere."""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from html import escape
from typing import Any, Final

_STYLE: Final = """
:root { color-scheme: light dark; --good: #14662f; --bad: #b3261e; --line: #8884; --soft: #8881 }
@media (prefers-color-scheme: dark) { :root { --good: #6fd08c; --bad: #ff8a80 } }
* { box-sizing: border-box }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 64rem; margin: 0 auto; padding: 1rem }
h1 { font-size: 1.3rem; margin: 0 }
h2 { font-size: 1.05rem; margin: 1.8rem 0 .4rem }
p { margin: .3rem 0 }
small, .soft { opacity: .75 }
.now { border: 1px solid var(--line); border-left-width: .5rem; border-radius: .4rem;
  padding: .6rem .9rem; margin: .6rem 0; overflow-wrap: anywhere }
.now b { font-size: 1.15rem }
.good { color: var(--good); border-left-color: var(--good) }
.bad { color: var(--bad); border-left-color: var(--bad); font-weight: 600 }
.now, .now * { color: inherit }
table { border-collapse: collapse; width: 100% }
th, td { text-align: left; vertical-align: top; padding: .25rem .6rem .25rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere }
th { font-weight: 600; background: var(--soft) }
td.n, td.good, td.bad, th { font-variant-numeric: tabular-nums; white-space: nowrap }
@media (max-width: 40rem) {
  thead { display: none }
  tr { display: block; border-bottom: 1px solid var(--line); padding: .35rem 0 }
  td { display: inline-block; border: 0; padding: 0 .7rem 0 0; max-width: 100% }
  td.named::before { content: attr(data-name) ": "; opacity: .75 }
}
"""

_STYLE_HASH: Final = base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()

HEADERS: Final = {
    "Content-Security-Policy": f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
"""What a browser may do with the page: show it, and nothing else."""


@dataclass(frozen=True, slots=True)
class _Cell:
    """A cell of a table.

    Args:
        text: What it says, not yet escaped.
        kind: Its class: `good`, `bad`, `n` for what is not to be broken, `named` for what a phone
            shows its column's name with, or none.
    """

    text: str
    kind: str = ""


def rendered(snapshot: dict[str, Any]) -> str:
    """Render the page.

    Args:
        snapshot: What `/history.json` tells.
    """
    parts = [
        "<!doctype html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{escape(_title(snapshot))}</title>",
        f"<style>{_STYLE}</style></head><body>",
        f"<h1>ghealth <small>{escape(snapshot['version'])}</small></h1>",
        f"<p class=soft>{_clock(snapshot['time'])} UTC; runs since {_moment(snapshot['started'])}.",
        "For programs: <a href=/history.json>history.json</a>, <a href=/metrics>metrics</a>.</p>",
    ]
    if snapshot["draining"]:
        parts.append(
            "<p class=bad>Draining: everyone is told “not serving”, “liveness” excepted.</p>"
        )
    parts += (_now(service, snapshot["time"]) for service in snapshot["services"])
    parts += [
        "<h2>Changes of status</h2>",
        _table(("time", "service", "status", "reason", "held before"), _changes(snapshot)),
        "<h2>What the gateway said</h2>",
        _table(("time", "service", "result", "reason", "took"), _probes(snapshot)),
        "<h2>Who asked, and what it got</h2>",
        _table(
            ("time", "caller", "asked", "got", "reason", "concludes", "user agent"),
            _answers(snapshot),
        ),
        "<h2>Settings</h2>",
        _table(
            ("variable", "value", "default"),
            (
                [
                    _Cell(row["variable"]),
                    _Cell(row["value"] or "-"),
                    _Cell(row["default"] or "-", "named"),
                ]
                for row in snapshot["settings"]
            ),
        ),
        "</body></html>",
    ]
    return "\n".join(parts)


def _title(snapshot: dict[str, Any]) -> str:
    return f"{snapshot['services'][0]['status']}: ghealth"


def _now(service: dict[str, Any], now: str) -> str:
    serving = service["status"] == "SERVING"
    since = ""
    if service["since"]:
        held = datetime.fromisoformat(now) - datetime.fromisoformat(service["since"])
        since = f" for {_duration(held.total_seconds())}, since {_moment(service['since'])} UTC"
    watchers = f"; watched by {service['watchers']}" if service["watchers"] else ""
    return (
        f"<p class='now {'good' if serving else 'bad'}'>{escape(_name(service['service']))}: "
        f"<b>{escape(service['status'])}</b>{since}<br>"
        f"{escape(service['reason'])}{watchers}</p>"
    )


def _changes(snapshot: dict[str, Any]) -> Iterable[Sequence[_Cell]]:
    for change in snapshot["changes"]:
        serving = change["status"] == "SERVING"
        held = change["held_seconds"]
        yield (
            _Cell(_moment(change["time"]), "n"),
            _Cell(_name(change["service"])),
            _Cell(change["status"], "good" if serving else "bad"),
            _Cell(change["reason"]),
            _Cell("-" if held is None else _duration(held), "n named"),
        )


def _probes(snapshot: dict[str, Any]) -> Iterable[Sequence[_Cell]]:
    for probe in snapshot["probes"]:
        yield (
            _Cell(_clock(probe["time"]), "n"),
            _Cell(_name(probe["service"])),
            _Cell(probe["result"], "good" if probe["result"] == "ok" else "bad"),
            _Cell(probe["reason"]),
            _Cell(f"{probe['seconds'] * 1000:.1f} ms", "n"),
        )


def _answers(snapshot: dict[str, Any]) -> Iterable[Sequence[_Cell]]:
    for answer in snapshot["answers"]:
        service = "unknown service" if answer["service"] is None else _name(answer["service"])
        yield (
            _Cell(_clock(answer["time"]), "n"),
            _Cell(answer["caller"], "n"),
            _Cell(
                answer["method"]
                if answer["method"] == "List"
                else f"{answer['method']} of {service}"
            ),
            _Cell(answer["answer"], "good" if answer["good"] else "bad"),
            _Cell(answer["reason"]),
            _Cell(answer["concludes"], "named"),
            _Cell(answer["user_agent"], "named"),
        )


def _table(names: Sequence[str], rows: Iterable[Sequence[_Cell]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in names)
    body = "\n".join(
        "<tr>"
        + "".join(
            f'<td class="{cell.kind}" data-name="{escape(name)}">{escape(cell.text)}</td>'
            for name, cell in zip(names, row, strict=True)
        )
        + "</tr>"
        for row in rows
    )
    if not body:
        return "<p class=soft>Nothing yet.</p>"
    return f"<table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table>"


def _name(service: str) -> str:
    return service or "gateway"


def _clock(time: str) -> str:
    """Render the time of day of a moment."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%H:%M:%S}"


def _moment(time: str) -> str:
    """Render a moment with its day."""
    return f"{datetime.fromisoformat(time).astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def _duration(seconds: float) -> str:
    """Render a time that something held, as people say it."""
    if seconds < 60:  # noqa: PLR2004
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"
