import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import pytest

from ghealth.admin.page import headers, render

EVIL = "<script>alert('x')</script>\"'&<img src=x onerror=y>{{ 7 * 7 }}"
NOW = "2026-11-24T03:04:05.678Z"
BEFORE = "2026-11-24T03:03:05.678Z"


class Tags(HTMLParser):
    """What a browser reads in a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.links += [value or "" for name, value in attrs if name == "href"]

    def handle_data(self, data: str) -> None:
        self.text += data


def service_of(service: str, status: str, **more: Any) -> dict[str, Any]:
    return {
        "service": service,
        "status": status,
        "reason": "why",
        "targets": [],
        "since": None,
        "watchers": 0,
        **more,
    }


def answer_of(text: str, **more: Any) -> dict[str, Any]:
    return {
        "time": NOW,
        "caller": text,
        "user_agent": text,
        "method": text,
        "path": text,
        "service": text,
        "answer": text,
        "good": False,
        "reason": text,
        "concludes": text,
        **more,
    }


def snapshot_of(text: str, **more: Any) -> dict[str, Any]:
    """Make a snapshot that has `text` wherever there is a text."""
    return {
        "version": text,
        "host": text,
        "time": NOW,
        "started": "2026-11-23T03:04:05.000Z",
        "draining": False,
        "draining_since": None,
        "services": [
            service_of("", text, reason=text, since=BEFORE, targets=[text, text], watchers=2),
            service_of(text, "SERVING", reason=text, targets=[text]),
        ],
        "callers": [
            answer_of(text, last_asked=BEFORE, last_five_minutes=31),
            {"caller": text, "last_asked": None, "last_five_minutes": 0},
        ],
        "changes": [
            {"time": NOW, "service": text, "status": text, "reason": text, "held_seconds": None}
        ],
        "cuts": [{"time": NOW, "address": text, "count": 25, "reason": text}],
        "probes": [
            {"time": NOW, "service": text, "result": text, "reason": text, "seconds": 0.0123}
        ],
        "answers": [answer_of(text), answer_of(text, method="other", service=None)],
        "settings": [{"variable": text, "value": text, "default": ""}],
        **more,
    }


def html_of(snapshot: dict[str, Any], *, refreshes: bool = True) -> str:
    return render(snapshot, refreshes=refreshes)


def text_of(snapshot: dict[str, Any]) -> str:
    """Return the page's text without its style, white space as single spaces."""
    return " ".join(Tags(html_of(snapshot).partition("</head>")[2]).text.split())


def title_of(snapshot: dict[str, Any]) -> str:
    return html_of(snapshot).partition("<title>")[2].partition("</title>")[0]


def test_everything_is_escaped() -> None:
    """Any text is shown as it is; it makes no tag, no attribute and no template code."""
    evil, plain = (Tags(html_of(snapshot_of(text))) for text in (EVIL, "harmless"))
    assert evil.tags == plain.tags
    assert evil.attributes == plain.attributes
    assert evil.text.count(EVIL) == plain.text.count("harmless") > 30
    assert not evil.tags & {"script", "img", "iframe", "link", "form", "object"}
    assert not any(name.startswith("on") or name == "style" for name in evil.attributes)


def test_a_browser_is_allowed_the_page_s_own_style_and_nothing_else() -> None:
    """The hash in the policy is that of the style; scripts, frames, forms and loads are off."""
    style = re.search(r"<style>(.*?)</style>", html_of(snapshot_of("x")), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert headers()["Content-Security-Policy"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def test_the_first_screen_says_why_a_pod_is_red() -> None:
    """Sick services with target, reason and time, then callers, then the rest."""
    sick = service_of(
        "shop",
        "NOT_SERVING",
        reason="probe 2 of 2: gateway answered 503",
        targets=["http://a/", "http://b/"],
        since=BEFORE,
        watchers=3,
    )
    callers = [
        {"caller": "alb", "last_asked": None, "last_five_minutes": 0},
        answer_of("grpc", method="Watch", last_asked=BEFORE, last_five_minutes=31),
    ]
    services = [service_of("", "SERVING", reason="gateway answered 200"), sick]
    text = text_of(snapshot_of("x", host="gw-7f9c", services=services, callers=callers))
    order = [
        "gw-7f9c is not serving: shop",
        "Refreshes every 10 s (stop)",
        "Services that callers must not use",
        "shopNOT_SERVINGprobe 2 of 2: gateway answered 503",
        "1. http://a/2. http://b/2026-11-24 03:03:05 (1 min 0 s)3",
        "The last answer to each kind of caller",
        "albnever0",
        "grpc1 min 0 s ago31Watch of grpc",
        "Services that callers can use",
        "gatewaySERVINGgateway answered 200none-0",
        "The last changes of a status or its reason",
        "The last clients whose connections were cut",
        "The last answers of the targets",
        "12.3 ms",
        "The last answers to callers",
        "The settings in force",
    ]
    places = [text.index(part) for part in order]
    assert places == sorted(places)


def test_the_title_is_red_if_any_service_is_not_serving() -> None:
    """It names the first one, and the pod; a draining pod is marked as draining."""
    up, liveness = service_of("", "SERVING"), service_of("liveness", "SERVING")
    down, shop = service_of("", "NOT_SERVING"), service_of("shop", "NOT_SERVING")
    snapshot = snapshot_of("x", host="gw-7f9c")
    titles = {
        "🟢 serving - gw-7f9c - ghealth": [up, liveness],
        "🔴 not serving: gateway - gw-7f9c - ghealth": [down, liveness],
        "🔴 not serving: gateway and 1 more - gw-7f9c - ghealth": [down, liveness, shop],
    }
    for title, services in titles.items():
        assert title_of(snapshot | {"services": services}) == title
    draining = snapshot | {"services": [down, liveness], "draining": True}
    assert title_of(draining) == "🔴 draining - gw-7f9c - ghealth"


def test_sections_without_services_are_left_out() -> None:
    """All serving: no red section; none: no green one; nothing cut: no list; and no links."""
    for status, there, missing in (
        ("SERVING", "serving", "sick"),
        ("NOT_SERVING", "sick", "serving"),
    ):
        page = Tags(html_of(snapshot_of("x", services=[service_of("", status)], cuts=[])))
        assert there in page.ids
        assert not {missing, "cuts"} & set(page.ids)
        assert not {f"#{missing}", "#cuts"} & set(page.links)


def test_every_link_has_its_place() -> None:
    """The lists are behind anchors, and each id is there once."""
    page = Tags(html_of(snapshot_of("x")))
    assert len(page.ids) == len(set(page.ids)) == 8
    assert {link[1:] for link in page.links if link[0] == "#"} == set(page.ids)
    others = {link for link in page.links if link[0] != "#"}
    assert others == {"/?refresh=off", "/history.json", "/metrics"}


def test_draining_is_shown_with_its_start() -> None:
    """The start is missing for a moment, if the page is asked for in between."""
    drains = snapshot_of("x", draining=True, draining_since=BEFORE)
    expected = "Draining since 2026-11-24 03:03:05 (1 min 0 s): every service but “liveness”"
    assert expected in text_of(drains)
    assert "Draining: every service" in text_of(drains | {"draining_since": None})
    assert "Draining" not in text_of(snapshot_of("x"))


def test_tables_can_be_followed_without_seeing_them() -> None:
    """Each has a caption, named columns, and rows that begin with their name."""
    html = html_of(snapshot_of("x"))
    tables = re.findall(r"<table.*?</table>", html, re.DOTALL)
    assert len(tables) == 8
    for table in tables:
        caption, head, body = re.split(r"<thead|<tbody", table)
        assert re.search(r"<caption>[^<]+</caption>", caption)
        columns = re.findall(r'<th role="columnheader" scope="col">[^<]+</th>', head)
        for row in body.split("<tr")[1:]:
            cells = re.findall(r"<t[hd] role=\"(\w+)\"", row)
            assert cells == ["rowheader", *["cell"] * (len(columns) - 1)]


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (answer_of("x", method="Check", service=""), "Check of gateway"),
        (answer_of("x", method="Watch", service="shop"), "Watch of shop"),
        (answer_of("x", method="Check", service=None), "Check of unknown service"),
        (answer_of("x", method="List", service=None), "xListx"),
        (answer_of("x", method="reflection", service=None), "xreflectionx"),
        (answer_of("x", method="other", path="/AWS.ALB/healthcheck"), "x/AWS.ALB/healthcheckx"),
    ],
)
def test_what_was_asked_for_is_shown(answer: dict[str, Any], text: str) -> None:
    """The method and the service, or the path that is not served."""
    assert text in text_of(snapshot_of("x", answers=[answer]))


@pytest.mark.parametrize(
    ("answer", "colour"),
    [
        (answer_of("x", method="Check", service="", answer="SERVING", good=True), "good"),
        (answer_of("x", method="Check", service="", answer="UNAVAILABLE"), "bad"),
        (answer_of("x", method="Check", service="", answer="UNAVAILABLE", time=BEFORE), ""),
        (answer_of("x", method="List", service=None, answer="UNAVAILABLE", time=BEFORE), ""),
        (answer_of("x", method="Check", service=None, answer="NOT_FOUND", time=BEFORE), "bad"),
        (answer_of("x", method="Check", service="new", answer="UNAVAILABLE", time=BEFORE), "bad"),
        (answer_of("x", method="other", service=None, answer="UNIMPLEMENTED", good=True), ""),
    ],
)
def test_an_answer_has_a_colour_while_it_is_true(answer: dict[str, Any], colour: str) -> None:
    """One from before the service's status is no longer red, and UNIMPLEMENTED is never green."""
    services = [service_of("", "SERVING", since=NOW), service_of("new", "SERVING")]
    row = answer | {"last_asked": answer["time"], "last_five_minutes": 1}
    html = html_of(snapshot_of("x", services=services, callers=[row], answers=[answer]))
    shown = re.findall(rf'<span class="word (\w*)">{answer["answer"]}</span>', html)
    assert shown[-2:] == [colour] * 2


@pytest.mark.parametrize(
    ("held", "text"),
    [
        (None, "-"),
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (60, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (7322, "2 h 2 min"),
        (59.96, "1 min 0 s"),
        (86_400, "24 h 0 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_have_the_units_that_they_need(held: float | None, text: str) -> None:
    """Seconds below a minute, minutes below an hour, hours below two days."""
    changes = snapshot_of("x")["changes"]
    html = html_of(snapshot_of("x", changes=[changes[0] | {"held_seconds": held}]))
    assert f">{text}</td></tr>" in html


def test_empty_lists_say_so() -> None:
    """A list without rows is not an empty table."""
    empty: dict[str, Any] = {"changes": [], "probes": [], "answers": []}
    assert text_of(snapshot_of("x", **empty)).count("Nothing yet.") == 3
