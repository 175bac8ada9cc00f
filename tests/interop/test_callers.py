"""Every kind of caller checks ghealth in every state, and concludes what its row expects."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.interop import page
from tests.interop.asking import TIMEOUT
from tests.interop.callers import CALLERS, FOLLOWERS, LIFE, PATHS, Caller, Row
from tests.interop.stage import STATES, Ghealth, stage
from tests.interop.tools import is_installed
from tests.support.gateway import READY, SICK, Agent, wait_until


def require(row: Row) -> None:
    """Skip a caller whose tool is missing; with CI=true every tool must be installed."""
    if not is_installed(row.needs):
        assert os.environ.get("CI") != "true", f"no {row.needs.value}"
        pytest.skip(f"no {row.needs.value}")


# One worker of pytest-xdist has all callers of a state, and so one gateway.
STAGES = [pytest.param(state, marks=pytest.mark.xdist_group(state)) for state in STATES]


@pytest.fixture(scope="module", params=STAGES)
def staged(request: pytest.FixtureRequest) -> Iterator[tuple[str, Ghealth]]:
    with stage(request.param) as (_, ghealth):
        yield request.param, ghealth


@pytest.mark.parametrize("caller", [*CALLERS, *PATHS], ids=lambda caller: caller.name)
def test_a_caller_concludes_what_the_gateway_is(
    staged: tuple[str, Ghealth], caller: Caller
) -> None:
    """A caller that checks once has the expected conclusion in each state."""
    require(caller)
    state, ghealth = staged
    concluded = caller.ask(caller.port_of(ghealth))
    assert concluded == caller.expected(is_ready=state == READY)


def life(agent: Agent, ghealth: Ghealth) -> Iterator[None]:
    """Cause the events of `LIFE`, one after another."""
    yield
    agent.state = SICK
    yield
    agent.state = READY
    yield
    ghealth.stop()
    yield
    ghealth.start()
    yield
    ghealth.drain()
    yield
    ghealth.stop()
    ghealth.start()
    yield


def test_a_follower_notices_each_change() -> None:
    """A client that stays connected follows the gateway and ghealth from start to end."""
    with stage() as (agent, ghealth), ExitStack() as stack:
        opinions = {
            follower: stack.enter_context(follower.follow(follower.port_of(ghealth)))
            for follower in FOLLOWERS
            if is_installed(follower.needs)
        }
        for (event, is_ready), _ in zip(LIFE.items(), life(agent, ghealth), strict=True):
            for follower, opinion in opinions.items():
                expected = follower.expected(is_ready=is_ready)
                wait_until(lambda o=opinion, e=expected: o() == e, TIMEOUT)  # type: ignore[misc]
                assert opinion() == expected, f"{follower.name}, {event}"
    for follower in FOLLOWERS:
        require(follower)


def test_the_page_shows_the_conclusions() -> None:
    """The tables of docs/callers.md are those of the rows: `make interop-table` writes them."""
    text = Path("docs/callers.md").read_text()
    assert page.with_tables(text) == text
