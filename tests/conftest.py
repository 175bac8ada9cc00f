import signal
from collections.abc import AsyncGenerator, Generator

import pytest
from hypothesis import HealthCheck, settings

# A shell starts background processes with SIGINT ignored, and their children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time, on any machine: a failure comes from the change, not from chance.
settings.register_profile(
    "ghealth", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("ghealth")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    """Asynchronous tests run on the event loop that ghealth uses."""
    return "asyncio", {}


@pytest.fixture(scope="session", autouse=True)
async def _one_loop(anyio_backend: object) -> AsyncGenerator[None, None]:  # noqa: ARG001 - anyio's way
    """Run all tests on one loop: grpc.aio's poller would wake the loops of earlier tests."""
    yield  # noqa: PT022 - a fixture that returned would not hold the loop


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Make captured output UTF-8: a worker cannot send anything else."""
    report = yield
    report.sections = [
        (name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections
    ]
    return report
