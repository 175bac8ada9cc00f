"""What the tests of the image share: a gateway beside it, and the figures that they print."""

from collections.abc import Iterator

import pytest

from tests.support.gateway import Agent, gateway

_FIGURES: pytest.StashKey[dict[str, str]] = pytest.StashKey()


@pytest.fixture
def agent() -> Iterator[Agent]:
    """Run a real Envoy with the readiness listener, where Istio has it."""
    with gateway(15021, 15020) as (_, agent):
        yield agent


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> dict[str, str]:
    """Collect what was measured; it is printed, and decides nothing."""
    return request.config.stash.setdefault(_FIGURES, {})


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Print the figures."""
    terminalreporter.section("the image")
    for name, figure in config.stash.get(_FIGURES, {}).items():
        terminalreporter.write_line(f"{name:<42}{figure}")
