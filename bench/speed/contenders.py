"""The programs that are compared, and how each of them is started."""

import shutil
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

from bench.speed import loads
from bench.speed.gateways import BUILD, ROOT, process
from tests.support.gateway import START_TIMEOUT, free_port
from tests.support.processes import environment

PEERS: Final = Path(__file__).parent / "peers"
PYTHON: Final = str(ROOT / ".venv-bench" / "bin" / "python")
"""Python of an environment with exactly the packages of the image (`make bench`)."""

GHEALTH: Final = "ghealth"
CAREFUL, FRESH, SIMPLE = "careful Go bridge", "the same, fresh connections", "60-line Go bridge"
STOCK, FLOOR, BARE = "stock servicer", "floor", "bare imports"
BARE_IMPORTS: Final = (
    "import grpc, grpc_health.v1.health, grpc_reflection.v1alpha.reflection, h11, httpcore, httpx, "
    "prometheus_client, pydantic_settings"
)
"""Imports the packages that ghealth serves with, and does nothing else."""

others: Final[dict[str, str]] = {}
"""Other versions of ghealth, by `--against`: the interpreter of each, by its name in the tables."""


class Contender(NamedTuple):
    """A program that runs.

    Args:
        pid: The number of its process.
        port: The port it serves on.
    """

    pid: int
    port: int


def build() -> None:
    """Build the Go programs.

    Raises:
        SystemExit: If a tool is missing on this machine.
    """
    for tool, package in (("go", "Go"), ("h2load", "nghttp2-client")):
        if shutil.which(tool) is None:
            raise SystemExit(f"the bench needs {tool}: install {package}")
    BUILD.mkdir(parents=True, exist_ok=True)
    command = ["go", "build", "-o", f"{BUILD}/", "./...", "tool"]
    subprocess.run(command, cwd=PEERS, check=True, timeout=600)


@contextmanager
def running(name: str, url: str, **settings: str) -> Iterator[Contender]:
    """Run a contender until the end of the block, which begins as soon as it answers checks.

    Args:
        name: The contender.
        url: The gateway's readiness endpoint.
        settings: ghealth's settings, without the prefix of their names.

    Raises:
        RuntimeError: If it ends, or does not answer.
    """
    port = free_port()
    address = f"127.0.0.1:{port}"
    bridge = ["-listen", address, "-url", url]
    commands: dict[str, list[str]] = {
        CAREFUL: [str(BUILD / "careful"), *bridge],
        FRESH: [str(BUILD / "careful"), *bridge, "-fresh"],
        SIMPLE: [str(BUILD / "bridge"), *bridge],
        STOCK: [PYTHON, "-I", str(PEERS / "stock.py"), address, url],
        FLOOR: [PYTHON, "-I", str(PEERS / "floor.py"), address],
    }
    ours = {"LISTEN": address, "PROBE_URL": url, "DRAIN_DELAY": "0"}
    ours |= {"ADMIN_LISTEN": f"127.0.0.1:{free_port()}"} | settings
    command = commands.get(name, [others.get(name, PYTHON), "-I", "-m", "ghealth"])
    with process(*command, environment=environment(**ours)) as child:
        end = time.monotonic() + START_TIMEOUT
        while True:
            with suppress(OSError):
                loads.check(port)
                break
            if child.poll() is not None or time.monotonic() > end:
                raise RuntimeError(f"{name} does not answer, status {child.poll()}")
            time.sleep(0.002)
        yield Contender(child.pid, port)


@contextmanager
def all_running(names: Sequence[str], url: str, **settings: str) -> Iterator[dict[str, Contender]]:
    """Run several contenders with one gateway."""
    with ExitStack() as stack:
        yield {name: stack.enter_context(running(name, url, **settings)) for name in names}
