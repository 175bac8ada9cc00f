"""The status page of a real ghealth in a real browser."""

import base64
import os
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.page.browser import Browser, chromium
from tests.page.story import story
from tests.support.gateway import READY, SICK

CALLERS = "document.querySelector('#callers ~ table')"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with chromium(tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture(scope="module")
def addresses() -> Iterator[dict[str, str]]:
    """Run ghealths in several states."""
    with (
        story(READY, SICK, READY, SICK) as calm,
        story(READY, SICK, READY, SICK, hostile=True) as sick,
        story(READY, SICK, services=60) as crowded,
        story(SICK, READY, services=60) as well,
        story(SICK, READY, services=60, drains=True) as draining,
    ):
        yield {"calm": calm, "sick": sick, "crowded": crowded, "well": well, "draining": draining}


@pytest.fixture(scope="module")
def page(browser: Browser, addresses: dict[str, str], request: pytest.FixtureRequest) -> Browser:
    """Open the page of a state on a screen."""
    state, screen = request.param.split("-")
    # Only pictures show the page as it is: the others are not loaded again during a test.
    browser.open(addresses[state] + ("" if state == "calm" else "?refresh=off"), screen)
    return browser


RED = ["sick-desk", "sick-dark", "sick-phone", "sick-small"]
GREEN = ["well-desk", "well-phone"]
DRAINING = ["draining-desk", "draining-phone"]
on = partial(pytest.mark.parametrize, "page", indirect=True, scope="module")
on_every_page = on([*RED, "crowded-desk", *GREEN, *DRAINING])


@on_every_page
def test_it_needs_nothing_else(page: Browser) -> None:
    """It requests nothing, has no script and no picture, and the browser finds no mistake."""
    requests = page.params_of("Network.requestWillBeSent")
    assert [request["type"] for request in requests] == ["Document"]
    assert page.value("document.scripts.length + document.images.length") == 0
    assert page.params_of("Log.entryAdded", "Runtime.exceptionThrown") == []


@on_every_page
def test_its_style_holds(page: Browser) -> None:
    """The policy lets the browser use it, and it fits the screen."""
    table = "document.querySelector('table')"
    assert page.value(f"getComputedStyle({table}).borderCollapse") == "collapse"
    assert page.value("document.documentElement.scrollWidth <= window.innerWidth")


@on_every_page
def test_no_word_is_broken(page: Browser) -> None:
    """A status or a kind of caller has no line break inside a word."""
    broken = """
    [...document.querySelectorAll('.word, td[data-name=caller]')].filter(element => {
      const text = document.createRange()
      text.selectNodeContents(element)
      const lines = new Set([...text.getClientRects()].map(line => line.top)).size
      return lines > element.innerText.trim().split(/[\\s-]+/).length
    }).length
    """
    assert page.value(broken) == 0


@on_every_page
def test_status_words_are_readable(page: Browser) -> None:
    """Their contrast with the background is at least 4.5 (WCAG 2, 1.4.3)."""
    contrast = """
    const light = colour => {
      const parts = colour.match(/[\\d.]+/g).map(part => part / 255)
      const [r, g, b] = parts.map(v => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
      return .2126 * r + .7152 * g + .0722 * b + .05
    }
    document.body.style.backgroundColor = 'Canvas'
    const back = light(getComputedStyle(document.body).backgroundColor)
    const words = [...document.querySelectorAll('.good, .bad')]
    const ratios = words.map(word => light(getComputedStyle(word).color) / back)
    Math.min(...ratios.map(ratio => Math.max(ratio, 1 / ratio)))
    """
    assert page.value(contrast) >= 4.5


@on_every_page
def test_a_screen_reader_finds_the_tables(page: Browser) -> None:
    """Each has a name, named columns, and rows that begin with their name."""
    nodes = page.do("Accessibility.getFullAXTree")["nodes"]
    seen = [node for node in nodes if not node["ignored"]]
    roles = Counter(node["role"]["value"] for node in seen)
    selectors = {"columnheader": "thead th", "rowheader": "tbody tr", "cell": "tbody td"}
    for role, selector in ({"table": "table"} | selectors).items():
        assert roles[role] == page.value(f"document.querySelectorAll('{selector}').length") > 0
    is_full = "row => row.cells.length == row.closest('table').tHead.rows[0].cells.length"
    assert page.value(f"[...document.querySelectorAll('tbody tr')].every({is_full})")
    assert all(node["name"]["value"] for node in seen if node["role"]["value"] == "table")


@on(RED)
def test_a_pod_that_is_not_serving_says_why(page: Browser) -> None:
    """The title is red, and the page has the reason, the target and what an ALB concludes."""
    assert page.value("document.title").startswith("🔴 not serving: gateway - ")
    services = page.value("document.querySelector('#sick ~ table').innerText")
    assert "gateway answered 503" in services
    assert "/healthz/ready" in services
    assert "unhealthy" in page.value(f"{CALLERS}.innerText")
    assert "s3cr3t" not in page.value("document.body.innerText")


@on(RED)
def test_a_callers_text_is_no_tag(page: Browser) -> None:
    """It is shown as it is."""
    assert "<img src=x onerror=" in page.value("document.body.innerText")
    assert "owned" not in page.value("document.title")


@on(["sick-desk", "sick-dark", "crowded-desk", "well-desk"])
def test_reasons_and_callers_are_on_the_first_screen(page: Browser) -> None:
    """However many services there are."""
    assert page.value(f"{CALLERS}.getBoundingClientRect().bottom <= window.innerHeight")


@on(GREEN)
def test_a_pod_that_is_serving_is_green(page: Browser) -> None:
    """So are its callers: no answer from before is red."""
    assert page.value("document.title").startswith("🟢 serving - ")
    assert page.value(f"{CALLERS}.querySelectorAll('.bad').length") == 0


@on(DRAINING)
def test_a_draining_pod_says_since_when(page: Browser) -> None:
    """The title names it, too."""
    assert page.value("document.title").startswith("🔴 draining - ")
    assert page.value("/Draining since \\d/.test(document.body.innerText)")


@pytest.mark.parametrize(
    ("page", "name"),
    [("calm-desk", "page.png"), ("calm-dark", "page-dark.png"), ("calm-phone", "page-phone.png")],
    indirect=["page"],
    scope="module",
)
def test_it_has_pictures(page: Browser, name: str, tmp_path: Path) -> None:
    """`make page-pictures` writes them to docs/."""
    data = page.do("Page.captureScreenshot", format="png")["data"]
    (Path(os.environ.get("PICTURES", tmp_path)) / name).write_bytes(base64.b64decode(data))
