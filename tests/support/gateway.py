"""A gateway on this machine: a real Envoy with Istio's readiness listener, and a stand-in agent.

The listener is the one that pilot-agent writes into a gateway's bootstrap: any host, the prefix
/healthz/ready, routed to the agent's port. The stand-in answers there as pilot-agent does, and
a PUT sets its state:

    curl -X PUT localhost:15020/sick      curl -X PUT localhost:15020/ready
"""

import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import SystemRandom
from string import Template
from typing import Any, Self

import yaml

READY, SICK, SILENT = "ready", "sick", "silent"
ENVOY = Path(sys.prefix) / "bin" / "envoy"
START_TIMEOUT = 60.0
PORTS = range(20_000, 25_000)
"""Below ghealth's own, and below those that Linux assigns (net.ipv4.ip_local_port_range)."""


class Agent:
    """Answers /healthz/ready as pilot-agent does: 200 when ready, 503 when not.

    Args:
        port: The port on 127.0.0.1; 0 for a free one.
    """

    def __init__(self, port: int = 0) -> None:
        self.state = READY
        self.delay = 0.0
        self.asked = 0
        self._stopped = threading.Event()
        agent = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                agent.asked += 1
                agent._stopped.wait(agent.delay)
                if agent.state == SILENT:
                    agent._stopped.wait()
                if agent._stopped.is_set():
                    self.close_connection = True  # as if the agent's process had ended
                    return
                self._answer(200 if agent.state == READY else 503)

            def do_PUT(self) -> None:
                state = self.path.strip("/")
                known = state in (READY, SICK, SILENT)
                if known:
                    agent.state = state
                self._answer(204 if known else 404)

            def _answer(self, code: int) -> None:
                self.send_response(code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Log nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128  # so that connections of Envoy do not wait for a second

            def handle_error(self, *_: object) -> None:
                """Ignore callers that reset: a killed Envoy, or a probe that timed out."""

        self._server = Server(("127.0.0.1", port), Handler)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def url(self) -> str:
        """The readiness endpoint."""
        return f"http://127.0.0.1:{self.port}/healthz/ready"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Stop listening."""
        if self._thread.is_alive():
            self._stopped.set()
            self._server.shutdown()
            self._thread.join()
            self._server.server_close()


def envoy_config(agent_port: int, port: int, host: str, admin_port: int = 0) -> dict[str, Any]:
    """Return the bootstrap of an Envoy with the readiness listener and an admin port, 0 for any."""
    text = Path(__file__).with_name("gateway.yaml").read_text()
    ports = {"agent_port": agent_port, "port": port, "admin_port": admin_port}
    config: dict[str, Any] = yaml.safe_load(Template(text).substitute(ports, host=host))
    return config


class Gateway:
    """A real Envoy with the readiness listener.

    Args:
        agent: The target of the listener.
        port: The listener's port; 0 for a free one, which restarts keep.
        host: The address of the listener.
        options: Further options of Envoy's command line.
    """

    def __init__(
        self, agent: Agent, port: int = 0, host: str = "127.0.0.1", options: Sequence[str] = ()
    ) -> None:
        self.port = port or free_port(host)
        self.url = f"http://localhost:{self.port}/healthz/ready"
        self._host = host
        self._options = options
        self.admin_port = free_port()
        self._config = json.dumps(envoy_config(agent.port, self.port, host, self.admin_port))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start Envoy and wait until it listens.

        Raises:
            RuntimeError: If it does not; the message is Envoy's log.
        """
        command = [str(ENVOY), "--config-yaml", self._config, "--disable-hot-restart"]
        command += ["--concurrency", "1", "--log-level", "warning", *self._options]
        with tempfile.TemporaryFile() as said, ExitStack() as stack:
            # If the wait is interrupted, no Envoy is left running.
            stack.callback(self.stop)
            self.process = subprocess.Popen(command, stdout=said, stderr=said)
            if not wait_until(lambda: listens(self.port, self._host) or self._ended()):
                self.stop()
            if self._ended():
                said.seek(0)
                raise RuntimeError(f"Envoy did not start:\n{said.read().decode()}")
            stack.pop_all()

    def stop(self) -> None:
        """End Envoy at once, as pilot-agent does when it stops draining."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def _ended(self) -> bool:
        return self.process is None or self.process.poll() is not None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def free_port(host: str = "127.0.0.1") -> int:
    """Find a free port that stays free until it is listened on.

    It is not a port that the kernel assigns: such a port could become the local port of any
    connection before it is listened on.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    while True:
        port = SystemRandom().choice(PORTS)
        with socket.socket(family) as trial, suppress(OSError):
            trial.bind((host, port))
            return port


def listens(port: int, host: str = "127.0.0.1") -> bool:
    """Return whether a process listens on a port."""
    try:
        socket.create_connection((host, port), timeout=1).close()
    except OSError:
        return False
    return True


def wait_until(true: Callable[[], bool], timeout: float = START_TIMEOUT) -> bool:
    """Wait until a condition is true; return whether it became true in time."""
    end = time.monotonic() + timeout
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@contextmanager
def gateway(port: int = 0, agent_port: int = 0) -> Iterator[tuple[Gateway, Agent]]:
    """Run a gateway and its agent."""
    with Agent(agent_port) as agent, Gateway(agent, port) as envoy:
        yield envoy, agent
