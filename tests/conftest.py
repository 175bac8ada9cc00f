import pytest


@pytest.fixture
def anyio_backend() -> str:
    """Coroutines run on asyncio alone: that is what grpc.aio knows."""
    return "asyncio"
