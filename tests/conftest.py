import signal
from collections.abc import AsyncGenerator

import pytest
from hypothesis import HealthCheck, settings

# Whoever is started in the background by a shell is deaf to Ctrl-C, and so is all that it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, however slow the machine: a failure is the change's, not the day's.
settings.register_profile(
    "ghealth", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ghealth")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Coroutines run on the event loop that serves."""
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session", autouse=True)
async def _one_loop(anyio_backend: object) -> AsyncGenerator[None, None]:  # noqa: ARG001 - anyio's way
    """Run all on one loop: grpc.aio's poller would tell each of the calls of those before it."""
    yield  # noqa: PT022 - a fixture that returned would not hold the loop
