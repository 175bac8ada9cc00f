"""Every kind of caller checks ghealth in every state, and concludes what its row expects."""

import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

import pytest

from tests.interop import page
from tests.interop.asking import CERTIFICATES, HOST, TIMEOUT, Ask
from tests.interop.callers import CALLERS, FOLLOWERS, LIFE, PATHS, STATES, Caller
from tests.support import processes
from tests.support.certificates import CERT, KEY
from tests.support.gateway import READY, SICK, Agent, Gateway, free_port, gateway, wait_until

SETTINGS = {
    # Longer than the timeouts of the kubelet and grpc-health-probe, shorter than all others, so
    # that both answers for a silent gateway occur.
    "PROBE_TIMEOUT": "1.5",
    "CACHE_TTL": "0",
    "WATCH_INTERVAL": "0.1",
    "DRAIN_DELAY": "600",
    "TLS_CERT_FILE": str(CERTIFICATES / CERT),
    "TLS_KEY_FILE": str(CERTIFICATES / KEY),
}

Start = Callable[[], AbstractContextManager[processes.Server]]


def beside(envoy: Gateway) -> tuple[dict[bool, int], Start]:
    """Choose ports for ghealth, by whether TLS is used, and return what runs it on them."""
    ports = {False: free_port(), True: free_port()}
    plain, tls = (f"{HOST}:{port}" for port in ports.values())
    own = {"LISTEN": plain, "TLS_LISTEN": tls, "PROBE_URL": envoy.url}
    return ports, partial(processes.server, **own, **SETTINGS)


def drain(ghealth: processes.Server) -> None:
    """Begin its shutdown."""
    ghealth.process.send_signal(signal.SIGTERM)
    ghealth.next("draining")


@pytest.fixture(scope="module", params=STATES)
def staged(request: pytest.FixtureRequest) -> Iterator[tuple[str, dict[bool, int]]]:
    """A state, and the ports of a ghealth that is in it."""
    with gateway() as (envoy, agent):
        agent.state = STATES[request.param]
        ports, start = beside(envoy)
        with start() as ghealth:
            if request.param == "draining":
                drain(ghealth)
            yield request.param, ports


@pytest.mark.parametrize("caller", [*CALLERS, *PATHS], ids=lambda caller: caller.name)
def test_a_caller_concludes_what_the_gateway_is(
    staged: tuple[str, dict[bool, int]], caller: Caller[Ask]
) -> None:
    """A caller that checks once has the expected conclusion in each state."""
    state, ports = staged
    assert caller.how(ports[caller.tls]) == caller.expected(is_ready=state == READY)


def life(agent: Agent, start: Start) -> Iterator[None]:
    """Cause the events of `LIFE`, one after another."""
    with start():
        yield
        agent.state = SICK
        yield
        agent.state = READY
        yield
    yield
    with start() as ghealth:
        yield
        drain(ghealth)
        yield
    with start():
        yield


def test_a_follower_notices_each_change() -> None:
    """A client that stays connected follows the gateway and ghealth from start to end."""
    with gateway() as (envoy, agent), ExitStack() as stack:
        ports, start = beside(envoy)
        opinions = [stack.enter_context(row.how(ports[row.tls])) for row in FOLLOWERS]
        for (event, is_ready), _ in zip(LIFE.items(), life(agent, start), strict=True):
            for row, opinion in zip(FOLLOWERS, opinions, strict=True):
                expected = row.expected(is_ready=is_ready)
                wait_until(lambda o=opinion, e=expected: o() == e, TIMEOUT)  # type: ignore[misc]
                assert opinion() == expected, f"{row.name}, {event}"


def test_the_page_shows_the_conclusions() -> None:
    """The tables of docs/callers.md are those of the rows: `make interop-table` writes them."""
    text = Path("docs/callers.md").read_text()
    assert page.with_tables(text) == text
