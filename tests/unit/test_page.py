import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from ghealth import page

EVIL = "<script>alert('x')</script>\"'&<img src=x onerror=y>"


class Tags(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.said = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.said += data + "\n"


def snapshot_of(text: str, *, draining: bool = False, held: float | None = None) -> dict[str, Any]:
    """Make a snapshot that has `text` wherever there is a text."""
    moment = "2026-11-24T03:04:05.678Z"
    return {
        "version": text,
        "time": moment,
        "started": "2026-11-23T03:04:05.000Z",
        "draining": draining,
        "services": [
            {"service": "", "status": text, "reason": text, "since": moment, "watchers": 2},
            {"service": text, "status": "SERVING", "reason": text, "since": None, "watchers": 0},
        ],
        "changes": [
            {
                "time": moment,
                "service": text,
                "status": text,
                "reason": text,
                "held_seconds": held,
            }
        ],
        "probes": [
            {"time": moment, "service": text, "result": text, "reason": text, "seconds": 0.0123}
        ],
        "answers": [
            {
                "time": moment,
                "caller": text,
                "user_agent": text,
                "method": text,
                "service": service,
                "answer": text,
                "good": False,
                "reason": text,
                "concludes": text,
            }
            for service in (text, None)
        ],
        "settings": [{"variable": text, "value": text, "default": ""}],
    }


def seen(snapshot: dict[str, Any]) -> Tags:
    tags = Tags()
    tags.feed(page.rendered(snapshot))
    return tags


def test_everything_is_escaped() -> None:
    """Whatever a text holds, it is shown as it is, and makes no tag and no attribute."""
    evil, plain = seen(snapshot_of(EVIL)), seen(snapshot_of("plain"))
    assert evil.tags == plain.tags
    assert evil.attributes == plain.attributes
    assert evil.said.count(EVIL) == plain.said.count("plain") > 15
    assert not evil.tags & {"script", "img", "iframe", "link", "form", "object"}
    assert not any(name.startswith("on") for name in evil.attributes)


def test_a_browser_is_allowed_the_page_s_own_style_and_nothing_else() -> None:
    """The hash in the policy is that of the style; scripts, frames, forms and loads are off."""
    style = re.search(r"<style>(.*?)</style>", page.rendered(snapshot_of("x")), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert page.HEADERS["Content-Security-Policy"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def test_it_says_what_matters_first() -> None:
    """The status with its time and reason, then the changes, the gateway, the callers."""
    said = seen(snapshot_of("plain", draining=True)).said
    order = [
        "Draining: everyone",
        "plain\n for 0.0 s, since 2026-11-24 03:04:05 UTC",
        "watched by 2",
        "Changes of status",
        "What the gateway said",
        "12.3 ms",
        "Who asked, and what it got",
        "plain of unknown service",
        "Settings",
    ]
    places = [said.index(part) for part in order]
    assert places == sorted(places)
    assert "Draining" not in seen(snapshot_of("plain")).said


@pytest.mark.parametrize(
    ("held", "text"),
    [(None, "-"), (0.04, "0.0 s"), (59.94, "59.9 s"), (60, "1 min 0 s"), (7322, "2 h 2 min")],
)
def test_how_long_something_held_is_told_as_people_do(held: float | None, text: str) -> None:
    """Seconds below a minute, minutes below an hour, hours beyond."""
    assert f">{text}</td></tr>" in page.rendered(snapshot_of("x", held=held))


def test_before_anything_happened_it_says_so() -> None:
    """An empty list is no empty table; a List is about no service."""
    snapshot = snapshot_of("x") | {"changes": [], "probes": []}
    snapshot["answers"] = [snapshot["answers"][1] | {"method": "List"}]
    said = seen(snapshot).said
    assert said.count("Nothing yet.") == 2
    assert "unknown service" not in said
