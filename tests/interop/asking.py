"""The ways in which callers ask, and how their conclusions are read."""

import asyncio
import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.interop.tools import ENVIRONMENT, GO_PROGRAMS
from tests.support.gateway import ENVOY, free_port

Ask = Callable[[int], str]
"""Given ghealth's port, tells what a caller concludes."""

Follow = Callable[[int], AbstractContextManager[Callable[[], str]]]
"""Given ghealth's port, lends what tells a follower's opinion of the moment."""

HOST: Final = "127.0.0.1"
PATIENCE: Final = 30.0
"""Seconds in which everyone has to conclude something."""

_GATEWAY: Final = health_pb2.HealthCheckRequest()
_NO_PROXY: Final = (("grpc.enable_http_proxy", 0),)


def python_stub(port: int) -> str:
    """Ask with Python's stub."""
    with grpc.insecure_channel(f"{HOST}:{port}", _NO_PROXY) as channel:
        try:
            return _status(health_pb2_grpc.HealthStub(channel).Check(_GATEWAY, timeout=PATIENCE))
        except grpc.RpcError as error:
            return error.code().name


def python_asyncio_stub(port: int) -> str:
    """Ask with Python's stub on an event loop."""

    async def ask() -> str:
        async with grpc.aio.insecure_channel(f"{HOST}:{port}", _NO_PROXY) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return _status(await stub.Check(_GATEWAY, timeout=PATIENCE))

    return asyncio.run(ask())


def _status(reply: Any) -> str:
    name: str = health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)
    return name


def http1(port: int) -> str:
    """Speak HTTP/1.1 until the connection is closed; a timeout or a reset raises."""
    with socket.create_connection((HOST, port), timeout=PATIENCE) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        connection.makefile("rb").read(65536)
    return "closed"


def program(pattern: str, *command: str | Path, stdin: str = "") -> Ask:
    """Ask by running a program to its end.

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
            timeout=PATIENCE,
            check=False,
        )
        said = f"{done.stdout}\nexit {done.returncode}"
        match = re.search(pattern, said, re.MULTILINE)
        return " ".join(filter(None, match.groups())) if match else said

    return ask


@contextmanager
def _running(*command: str | Path) -> Iterator[Callable[[], list[str]]]:
    """Run a program meanwhile; lend what tells the lines that it has said so far."""
    with tempfile.NamedTemporaryFile() as said:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=said, stderr=subprocess.DEVNULL)
        try:
            yield lambda: Path(said.name).read_text().splitlines()
        finally:
            process.kill()
            process.wait()


@contextmanager
def grpc_go_channel(port: int) -> Iterator[Callable[[], str]]:
    """Follow by a channel of grpc-go; its opinion is its state."""
    command = (GO_PROGRAMS / "clienthealth", f"-addr={HOST}:{port}", "-duration=1h")
    with _running(*command) as states:
        yield lambda: (states() or ["not started"])[-1]


@contextmanager
def envoy(port: int) -> Iterator[Callable[[], str]]:
    """Follow by an Envoy that checks ghealth's health; its opinion is the flags of that host."""
    admin_port = free_port()
    config = json.dumps(_envoy_config(port, admin_port))
    with _running(ENVOY, "--config-yaml", config, "--disable-hot-restart", "--concurrency", "1"):
        yield lambda: _envoy_opinion(admin_port)


def _envoy_opinion(admin_port: int) -> str:
    admin = HTTPConnection(HOST, admin_port, timeout=PATIENCE)
    try:
        # Before its first check has ended, Envoy flags every host as one that failed.
        admin.request("GET", "/stats?usedonly&filter=health_check.(success%7Cfailure)")
        if not admin.getresponse().read():
            return "undecided"
        admin.request("GET", "/clusters?format=json")
        (cluster,) = json.load(admin.getresponse())["cluster_statuses"]
    except (OSError, HTTPException):
        return "not started"
    finally:
        admin.close()
    flags = cluster["host_statuses"][0]["health_status"]
    return " ".join(flag for flag, up in flags.items() if up is True) or "healthy"


def _envoy_config(port: int, admin_port: int) -> dict[str, Any]:
    def at(number: int) -> dict[str, Any]:
        return {"address": {"socket_address": {"address": HOST, "port_value": number}}}

    http = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    http2 = {
        "@type": f"type.googleapis.com/{http}",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    # The timeout is never reached: it is ghealth that has to answer.
    check = {"timeout": "60s", "interval": "0.2s", "no_traffic_interval": "0.2s"}
    thresholds = {"healthy_threshold": 1, "unhealthy_threshold": 1}
    cluster = {
        "name": "ghealth",
        "typed_extension_protocol_options": {http: http2},
        "load_assignment": {
            "cluster_name": "ghealth",
            "endpoints": [{"lb_endpoints": [{"endpoint": at(port)}]}],
        },
        "health_checks": [{"grpc_health_check": {}, **check, **thresholds}],
    }
    return {"admin": at(admin_port), "static_resources": {"clusters": [cluster]}}
