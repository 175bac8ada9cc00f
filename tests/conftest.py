from collections.abc import AsyncGenerator

import pytest


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    """Coroutines run on asyncio alone: that is what grpc.aio knows."""
    return "asyncio"


@pytest.fixture(scope="session", autouse=True)
async def _one_loop(anyio_backend: str) -> AsyncGenerator[None, None]:  # noqa: ARG001 - anyio's way
    """Run all on one loop: grpc.aio's poller would tell each of the calls of those before it."""
    yield  # noqa: PT022 - a fixture that returned would not hold the loop
