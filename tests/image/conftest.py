"""What the tests of the image share: a gateway beside it."""

from collections.abc import Iterator

import pytest

from tests.support.gateway import Agent, gateway


@pytest.fixture
def agent() -> Iterator[Agent]:
    """Run a real Envoy with the readiness listener, where Istio has it."""
    with gateway(15021, 15020) as (_, agent):
        yield agent
