"""The ways in which callers check, and how their conclusions are read."""

import asyncio
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.interop.tools import ENVIRONMENT, GO_PROGRAMS
from tests.support import wire

Ask = Callable[[int], str]
"""Returns what a caller concludes, given ghealth's port."""

Follow = Callable[[int], AbstractContextManager[Callable[[], str]]]
"""Yields a function that returns a follower's present conclusion, given ghealth's port."""

HOST: Final = "127.0.0.1"
TIMEOUT: Final = 30.0
"""Seconds within which every caller must conclude something."""

_GATEWAY: Final = health_pb2.HealthCheckRequest()
_NO_PROXY: Final = (("grpc.enable_http_proxy", 0),)


def python_stub(port: int) -> str:
    """Check with Python's stub."""
    with grpc.insecure_channel(f"{HOST}:{port}", _NO_PROXY) as channel:
        try:
            return _status(health_pb2_grpc.HealthStub(channel).Check(_GATEWAY, timeout=TIMEOUT))
        except grpc.RpcError as error:
            return error.code().name


def python_asyncio_stub(port: int) -> str:
    """Check with Python's stub on an event loop."""

    async def ask() -> str:
        async with grpc.aio.insecure_channel(f"{HOST}:{port}", _NO_PROXY) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return _status(await stub.Check(_GATEWAY, timeout=TIMEOUT))

    return asyncio.run(ask())


def _status(reply: Any) -> str:
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return name


def http1(port: int) -> str:
    """Send HTTP/1.1 until the connection is closed; a timeout or a reset raises."""
    with socket.create_connection((HOST, port), timeout=TIMEOUT) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.makefile("rb").read(65536)
    return "closed"


def program(pattern: str, *command: str | Path, stdin: str = "") -> Ask:
    """Check by running a program to its end.

    Args:
        pattern: A regular expression; what its groups match in the program's output and the
            closing line `exit CODE` is the conclusion, and all of that if it does not match.
        command: The program and its arguments; PORT in them is ghealth's.
        stdin: What the program reads.
    """

    def ask(port: int) -> str:
        done = subprocess.run(
            [str(part).replace("PORT", str(port)) for part in command],
            input=stdin,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
        said = f"{done.stdout}\nexit {done.returncode}"
        match = re.search(pattern, said, re.MULTILINE)
        return " ".join(filter(None, match.groups())) if match else said

    return ask


@contextmanager
def _running(*command: str | Path) -> Iterator[Callable[[], list[str]]]:
    """Run a program during the block; yield a function that returns its lines so far."""
    with tempfile.NamedTemporaryFile() as said:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=said, stderr=subprocess.DEVNULL)
        try:
            yield lambda: Path(said.name).read_text().splitlines()
        finally:
            process.kill()
            process.wait()


def grpc_go_channel(*options: str) -> Follow:
    """Follow by a channel of grpc-go; the conclusion is the channel's state."""

    @contextmanager
    def follow(port: int) -> Iterator[Callable[[], str]]:
        program = GO_PROGRAMS / "clienthealth"
        with _running(program, f"-addr={HOST}:{port}", "-duration=1h", *options) as states:
            yield lambda: (states() or ["not started"])[-1]

    return follow


def alb(path: str, matchers: Mapping[str, frozenset[int]]) -> Ask:
    """Check as an ALB does: its request, on a new connection, judged only by the code.

    Args:
        path: The target group's path.
        matchers: Possible success codes of a target group; healthy is what any of them accepts.
    """

    async def ask(port: int) -> str:
        try:
            async with asyncio.timeout(ALB_TIMEOUT):
                reply = await wire.call(
                    port,
                    wire.EMPTY_MESSAGE,
                    path=path,
                    without=(":authority",),
                    headers=_ALB_HEADERS,
                )
        except TimeoutError:
            return "no answer: unhealthy"
        healthy = any(reply.code in codes for codes in matchers.values())
        return f"{reply.code} {'healthy' if healthy else 'unhealthy'}"

    return lambda port: asyncio.run(ask(port))


ALB_TIMEOUT: Final = 5.0
"""Seconds; an ALB's default."""

_ALB_HEADERS: Final = (
    ("host", "AWSALB"),
    ("content-length", "5"),
    ("user-agent", "ELB-HealthChecker/2.0"),
    ("accept-encoding", "gzip, compressed"),
)
