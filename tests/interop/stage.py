"""The server for the callers: ghealth as a separate process, beside a real gateway."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from tests.interop.asking import HOST, python_stub
from tests.interop.certificates import CERT_FILE, KEY_FILE
from tests.interop.tools import ENVIRONMENT, GHEALTH
from tests.support.gateway import (
    READY,
    SICK,
    SILENT,
    Agent,
    Gateway,
    free_port,
    listens,
    wait_until,
)

DRAINING: Final = "draining"

STATES: Final = {"ready": READY, "503": SICK, "silent": SILENT, DRAINING: READY}
"""The states that callers see, each with the state of the gateway's agent."""

SETTINGS: Final = {
    # Longer than the timeouts of the kubelet and grpc-health-probe, shorter than all others, so
    # that both answers for a silent gateway occur.
    "GHEALTH_PROBE_TIMEOUT": "1.5",
    "GHEALTH_CACHE_TTL": "0",
    "GHEALTH_WATCH_INTERVAL": "0.1",
    "GHEALTH_DRAIN_DELAY": "600",
    "GHEALTH_ADMIN_LISTEN": "off",
}


class Ghealth:
    """A ghealth that keeps its port over restarts.

    Args:
        probe_url: The gateway's readiness endpoint.
    """

    def __init__(self, probe_url: str) -> None:
        self.port = free_port()
        self.tls_port = free_port()
        own = {
            "GHEALTH_LISTEN": f"{HOST}:{self.port}",
            "GHEALTH_TLS_LISTEN": f"{HOST}:{self.tls_port}",
            "GHEALTH_TLS_CERT_FILE": str(CERT_FILE),
            "GHEALTH_TLS_KEY_FILE": str(KEY_FILE),
            "GHEALTH_PROBE_URL": probe_url,
        }
        self._environment = ENVIRONMENT | SETTINGS | own
        self._process = self._launch()

    def start(self) -> None:
        """Start it again."""
        self._process = self._launch()
        self.await_start()

    def await_start(self) -> None:
        """Wait until it listens.

        Raises:
            RuntimeError: If it ends instead; the cause is on standard error.
        """
        wait_until(lambda: listens(self.port) or self._process.poll() is not None)
        if self._process.poll() is not None:
            raise RuntimeError("ghealth did not start")

    def drain(self) -> None:
        """Begin its shutdown and wait until callers notice."""
        self._process.send_signal(signal.SIGTERM)
        wait_until(lambda: python_stub(self.port) != "SERVING")

    def stop(self) -> None:
        """End it: in good order, or at once if it is draining."""
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _launch(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([GHEALTH], env=self._environment, stdout=subprocess.DEVNULL)


@contextmanager
def stage(state: str = READY) -> Iterator[tuple[Agent, Ghealth]]:
    """Run a gateway in one of the `STATES`, and ghealth beside it."""
    with Agent() as agent, ExitStack() as stack:
        agent.state = STATES[state]
        # All are registered for the end before the first wait: an interrupt leaves no process.
        gateway = Gateway(agent)
        stack.callback(gateway.stop)
        gateway.start()
        ghealth = Ghealth(gateway.url)
        stack.callback(ghealth.stop)
        ghealth.await_start()
        if state == DRAINING:
            ghealth.drain()
        yield agent, ghealth
