"""The programs that are compared, and how each of them is started."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.speed import reading
from bench.speed.loads import check
from tests.support.gateway import free_port, wait_until

ROOT: Final = Path(__file__).parents[2]
PEERS: Final = Path(__file__).parent / "peers"
BRIDGE: Final = ROOT / "build" / "bridge"
PYTHON: Final = str(ROOT / ".venv-bench" / "bin" / "python")
"""Of an environment with what the image installs and nothing else, byte-compiled (`make bench`)."""

GHEALTH, GO, STOCK = "ghealth", "Go bridge", "stock servicer"
FLOOR, UV_FLOOR = "floor", "floor on uvloop"
BARE_IMPORTS: Final = (
    "import grpc, grpc_health.v1.health, grpc_reflection.v1alpha.reflection, httpx, "
    "pydantic_settings"
)


@dataclass(frozen=True, slots=True)
class Contender:
    """A program under way.

    Args:
        name: What the tables call it.
        process: Its process.
        port: Where it serves.
    """

    name: str
    process: "subprocess.Popen[bytes]"
    port: int

    @property
    def pid(self) -> int:
        """Its process's number."""
        return self.process.pid


def build() -> None:
    """Build the Go bridge.

    Raises:
        SystemExit: If there is no Go, or no h2load, on this machine.
    """
    for tool, package in (("go", "Go"), ("h2load", "nghttp2-client")):
        if shutil.which(tool) is None:
            raise SystemExit(f"the bench needs {tool}: install {package}")
    command = ["go", "build", "-o", str(BRIDGE), "."]
    subprocess.run(command, cwd=PEERS / "bridge", check=True, timeout=600)


@contextmanager
def running(name: str, url: str, **settings: str) -> Iterator[Contender]:
    """Run a contender until the end of the block; it has answered once when the block begins.

    Args:
        name: Which.
        url: The gateway's readiness endpoint.
        settings: ghealth's, without the prefix of their names.
    """
    contender = start(name, url, **settings)
    try:
        if not wait_until(lambda: answers(contender)):
            raise RuntimeError(f"{name} does not answer")
        yield contender
    finally:
        contender.process.kill()
        contender.process.wait()


def start(name: str, url: str, **settings: str) -> Contender:
    """Start a contender, and do not wait until it answers.

    Args:
        name: Which.
        url: The gateway's readiness endpoint.
        settings: ghealth's, without the prefix of their names.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    command = {
        GHEALTH: [PYTHON, "-m", "ghealth"],
        GO: [str(BRIDGE), "-listen", address, "-url", url],
        STOCK: [PYTHON, str(PEERS / "stock.py"), address, url],
        FLOOR: [PYTHON, str(PEERS / "floor.py"), address],
        UV_FLOOR: [PYTHON, str(PEERS / "floor.py"), address, "--uvloop"],
    }[name]
    ours = {"LISTEN": address, "PROBE_URL": url, "DRAIN_DELAY": "0"} | settings
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GHEALTH_")}
    environment |= {f"GHEALTH_{key}": value for key, value in ours.items()}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    return Contender(name, process, port)


def answers(contender: Contender) -> bool:
    """Tell whether a contender answers a check yet."""
    if contender.process.poll() is not None:
        raise RuntimeError(f"{contender.name} ended with {contender.process.returncode}")
    try:
        check(contender.port)
    except OSError:
        return False
    return True


def memory_of_bare_imports() -> reading.Memory:
    """Tell what the five packages take that ghealth's contract names, imported and nothing more."""
    script = f"{BARE_IMPORTS}; print(open('/proc/self/status').read())"
    done = subprocess.run([PYTHON, "-c", script], capture_output=True, text=True, check=True)
    return reading.memory(done.stdout)
