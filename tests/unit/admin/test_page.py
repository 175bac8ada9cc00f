import base64
import hashlib
import re
from html import unescape
from typing import Any

import pytest

from ghealth.admin.page import headers, render

EVIL = "<script>alert('x')</script>\"'&<img src=x onerror=y>{{ 7 * 7 }}"
NOW = "2026-11-24T03:04:05.678Z"
BEFORE = "2026-11-24T03:03:05.678Z"

LISTS = "services callers changes cuts probes answers settings"
TEXTS = (
    "service status reason caller user_agent method path answer concludes "
    "address result variable value default"
)


def row(text: str = "x", **more: Any) -> dict[str, Any]:
    """Make a row that has the keys of every list."""
    times = {"time": NOW, "since": BEFORE, "last_asked": BEFORE, "last_five_minutes": 31}
    numbers = {"count": 25, "held_seconds": None, "seconds": 0.0123, "watchers": 2}
    others = {"targets": [text, text], "good": False}
    return dict.fromkeys(TEXTS.split(), text) | times | numbers | others | more


def page(shown: str = "x", **more: Any) -> str:
    """Render a snapshot that has `shown` wherever there is a text, but for the host."""
    lists = {name: [row(shown)] for name in LISTS.split()}
    times = {"time": NOW, "started": "2026-11-23T03:04:05.000Z", "draining_since": None}
    others = {"version": shown, "host": "gw-7f9c", "draining": False}
    return render(lists | times | others | more, refreshes=True)


def text_of(html: str) -> str:
    """Return what a browser shows, white space as single spaces."""
    body = html.partition("</head>")[2]
    return " ".join(unescape(re.sub("<[^>]*>", "", body)).split())


def values(attribute: str, html: str) -> list[str]:
    return re.findall(f' {attribute}="(.*?)"', html)


def test_everything_is_escaped() -> None:
    """Any text is shown as it is; it makes no tag, no attribute and no template code."""
    evil, plain = (page(text, host=text) for text in (EVIL, "harmless"))
    tags, expected = (re.findall("<[^>]*>", html) for html in (evil, plain))
    assert tags == expected
    assert text_of(evil).count(EVIL) == text_of(plain).count("harmless") > 25
    assert not re.search("<(script|img|iframe|link|form|object)|<[^>]* (on[a-z]*|style)=", evil)


def test_a_browser_is_allowed_the_page_s_own_style_and_nothing_else() -> None:
    """The hash in the policy is that of the style; scripts, frames, forms and loads are off."""
    style = page().partition("<style>")[2].partition("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert headers()["Content-Security-Policy"] == (
        f"default-src 'none'; style-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )


def test_the_first_screen_says_why_a_pod_is_red() -> None:
    """Sick services with target, reason and time, then callers, then the rest."""
    why, urls = "probe 2 of 2: gateway answered 503", ["http://a/", "http://b/"]
    sick = row(service="shop", status="NOT_SERVING", reason=why, targets=urls, watchers=3)
    well = row(service="", status="SERVING", reason="fine", targets=[], since=None, watchers=0)
    never = {"caller": "alb", "last_asked": None, "last_five_minutes": 0}
    asked = row(caller="grpc", method="Watch", service="")
    html = page(services=[well, sick], callers=[never, asked])
    order = ["sick", "callers", "serving", "changes", "cuts", "probes", "answers", "settings"]
    assert values("id", html) == order
    for part in [
        "gw-7f9c is not serving: shop",
        "Refreshes every 10 s (stop)",
        "shopNOT_SERVINGprobe 2 of 2: gateway answered 503",
        "1. http://a/2. http://b/2026-11-24 03:03:05 (1 min 0 s)3",
        "albnever0",
        "grpc1 min 0 s ago31Watch of gateway",
        "gatewaySERVINGfinenone-0",
        "12.3 ms",
    ]:
        assert part in text_of(html)


@pytest.mark.parametrize(
    ("statuses", "draining", "title"),
    [
        ({"": "SERVING", "liveness": "SERVING"}, False, "🟢 serving"),
        ({"": "NOT_SERVING", "liveness": "SERVING"}, False, "🔴 not serving: gateway"),
        ({"": "NOT_SERVING", "shop": "NOT_SERVING"}, False, "🔴 not serving: gateway and 1 more"),
        ({"": "NOT_SERVING", "liveness": "SERVING"}, True, "🔴 draining"),
    ],
)
def test_the_title_is_red_if_any_service_is_not_serving(
    statuses: dict[str, str], draining: bool, title: str
) -> None:
    """It names the first one, and the pod; a draining pod is marked as draining."""
    services = [row(service=name, status=status) for name, status in statuses.items()]
    html = page(services=services, draining=draining)
    assert f"<title>{title} - gw-7f9c - ghealth</title>" in html


@pytest.mark.parametrize(
    ("status", "there", "missing"),
    [("SERVING", "serving", "sick"), ("NOT_SERVING", "sick", "serving")],
)
def test_sections_without_services_are_left_out(status: str, there: str, missing: str) -> None:
    """All serving: no red section; none: no green one; nothing cut: no list; and no links."""
    html = page(services=[row(status=status)], cuts=[])
    assert there in values("id", html)
    assert not {missing, "cuts"} & set(values("id", html))
    assert not {f"#{missing}", "#cuts"} & set(values("href", html))


def test_every_link_has_its_place() -> None:
    """The lists are behind anchors."""
    html = page(services=[row(status="SERVING"), row(status="NOT_SERVING")])
    others = {"/?refresh=off", "/history.json", "/metrics"}
    assert set(values("href", html)) == others | {f"#{name}" for name in values("id", html)}


def test_draining_is_shown_with_its_start() -> None:
    """The start is missing for a moment, if the page is asked for in between."""
    expected = "Draining since 2026-11-24 03:03:05 (1 min 0 s): every service but “liveness”"
    assert expected in text_of(page(draining=True, draining_since=BEFORE))
    assert "Draining: every service" in text_of(page(draining=True))
    assert "Draining" not in text_of(page())


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (row(method="Check", service=""), "xCheck of gatewayx"),
        (row(method="Watch", service="shop"), "xWatch of shopx"),
        (row(method="Check", service=None), "xCheck of unknown servicex"),
        (row(method="List", service=None), "xListx"),
        (row(method="reflection", service=None), "xreflectionx"),
        (row(method="other", path="/AWS.ALB/healthcheck"), "x/AWS.ALB/healthcheckx"),
    ],
)
def test_what_was_asked_for_is_shown(answer: dict[str, Any], text: str) -> None:
    """The method and the service, or the path that is not served."""
    assert text in text_of(page(answers=[answer]))


@pytest.mark.parametrize(
    ("answer", "colour"),
    [
        (row("SERVING", method="Check", service="", good=True), "good"),
        (row("UNAVAILABLE", method="Check", service=""), "bad"),
        (row("UNAVAILABLE", method="Check", service="", time=BEFORE), ""),
        (row("UNAVAILABLE", method="List", service=None, time=BEFORE), ""),
        (row("NOT_FOUND", method="Check", service=None, time=BEFORE), "bad"),
        (row("UNAVAILABLE", method="Check", service="new", time=BEFORE), "bad"),
        (row("UNIMPLEMENTED", method="other", service=None, good=True), ""),
    ],
)
def test_an_answer_has_a_colour_while_it_is_true(answer: dict[str, Any], colour: str) -> None:
    """One from before the service's status is no longer red, and UNIMPLEMENTED is never green."""
    services = [row(service="", since=NOW), row(service="new", since=None)]
    caller = answer | {"last_asked": answer["time"]}
    html = page(services=services, callers=[caller], answers=[answer])
    assert html.count(f'<span class="word {colour}">{answer["answer"]}</span>') == 2


@pytest.mark.parametrize(
    ("held", "text"),
    [
        (None, "-"),
        (59.94, "59.9 s"),
        (59.96, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (7322, "2 h 2 min"),
        (86_400, "24 h 0 min"),
        (200_000, "2 d 7 h"),
    ],
)
def test_durations_have_the_units_that_they_need(held: float | None, text: str) -> None:
    """Seconds below a minute, minutes below an hour, hours below two days."""
    assert f">{text}</td></tr>" in page(changes=[row(held_seconds=held)])


def test_empty_lists_say_so() -> None:
    """A list without rows is not an empty table."""
    assert page(changes=[], probes=[], answers=[]).count("Nothing yet.") == 3
