"""TLS on the health port, as an ALB, the kubelet and meshes use it: rotations, and bad clients."""

import asyncio
import logging
import os
import signal
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support import envoy, processes, wire
from tests.support.certificates import CERT, CLIENT_CA, KEY, Mounted, client_of, der_of, pair_of
from tests.support.gateway import gateway, wait_until

figures = logging.getLogger(__name__)
"""Shown by `pytest --log-cli-level=info`."""

AUTHORITY = trustme.CA()
OTHER = trustme.CA()
SERVING = b"\0\0\0\0\2\x08\1"
ROTATIONS = 20
CALLERS = 3


@pytest.fixture
def secret(tmp_path: Path) -> Mounted:
    files = pair_of(AUTHORITY) | {CLIENT_CA: AUTHORITY.cert_pem.bytes()}
    return Mounted(tmp_path / "tls", files)


@contextmanager
def serving(secret: Mounted, *, verifies: bool = False) -> Iterator[tuple[processes.Server, int]]:
    """Run ghealth beside an Envoy; yield it and its port with TLS."""
    files = {"TLS_CERT_FILE": secret.path / CERT, "TLS_KEY_FILE": secret.path / KEY}
    if verifies:
        files["TLS_CLIENT_CA_FILE"] = secret.path / CLIENT_CA
    with (
        gateway() as (gateway_envoy, _),
        processes.server(
            PROBE_URL=gateway_envoy.url,
            TLS_LISTEN="127.0.0.1:0",
            **{name: str(path) for name, path in files.items()},
        ) as ghealth,
    ):
        yield ghealth, int(ghealth.started["tls_listen"][0].rpartition(":")[2])


async def test_rotations_under_load_fail_no_check(secret: Mounted) -> None:
    """Twenty changes of the Secret during new connections: each check gets the correct answer.

    An open connection is not affected, and the process is not restarted. The last change is to a
    pair that does not match: it fails no check either.
    """
    client = client_of(AUTHORITY)
    answers = 0
    served: set[bytes] = set()
    over = asyncio.Event()
    credentials = grpc.ssl_channel_credentials(AUTHORITY.cert_pem.bytes())

    async def check() -> bytes:
        nonlocal answers
        reply = await wire.call(port, wire.EMPTY_MESSAGE, tls=client)
        assert (reply.code, reply.data) == (0, SERVING)
        answers += 1
        served.add(reply.certificate)
        return reply.certificate

    async def ask() -> None:
        while not over.is_set():
            await check()

    async def keep(stub: Any) -> None:
        while not over.is_set():
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == 1

    with serving(secret) as (ghealth, port):
        address = f"localhost:{port}"
        async with (
            grpc.aio.secure_channel(address, credentials) as channel,
            asyncio.timeout(processes.TIMEOUT),
            asyncio.TaskGroup() as group,
        ):
            for _ in range(CALLERS):
                group.create_task(ask())
            group.create_task(keep(health_pb2_grpc.HealthStub(channel)))
            pairs = [pair_of(AUTHORITY) for _ in range(ROTATIONS)]
            for pair in pairs:
                secret.swap(pair)
                while await check() != der_of(pair):
                    pass
            secret.swap(pair | {KEY: pairs[0][KEY]})
            for _ in range(20):
                assert await check() == der_of(pair)
            over.set()
        assert ghealth.process.poll() is None
        assert ghealth.ended_by(signal.SIGINT) == 0
        events = [line["event"] for line in ghealth.rest()]
    figures.info("%d rotations under %d checks, none failed", ROTATIONS, answers)
    assert {der_of(pair) for pair in pairs} <= served
    assert events.count("certificate_replaced") == ROTATIONS
    assert events.count("certificate_rejected") == 1


@pytest.mark.parametrize(
    ("verifies", "shows", "expected"),
    [
        (False, False, "healthy"),
        (True, True, "healthy"),
        (True, False, "failed_active_health_check"),
    ],
)
def test_envoy_checks_it_with_tls(
    secret: Mounted, tmp_path: Path, verifies: bool, shows: bool, expected: str
) -> None:
    """Envoy's gRPC health checker finds it healthy, with a client certificate if it must."""
    authority = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(authority)
    pair = Mounted(tmp_path / "client", pair_of(AUTHORITY)).path
    with (
        serving(secret, verifies=verifies) as (_, port),
        envoy.checker(port, authority=authority, pair=pair if shows else None) as opinion,
    ):
        assert wait_until(lambda: opinion() == expected), opinion()


async def test_refused_handshakes_leave_no_line(secret: Mounted, tmp_path: Path) -> None:
    """Trap 24: garbage, wrong certificates, no ALPN, old TLS: nothing on stdout nor on stderr.

    Other clients are answered all the while.
    """
    foreign = Mounted(tmp_path / "foreign", pair_of(OTHER)).path
    good = Mounted(tmp_path / "good", pair_of(AUTHORITY)).path
    clients = [
        client_of(AUTHORITY),
        client_of(AUTHORITY, foreign),
        client_of(OTHER, good),
        client_of(AUTHORITY, good, alpn=False),
    ]
    with serving(secret, verifies=True) as (ghealth, port):
        for _ in range(5):
            for client in clients:
                with pytest.raises((OSError, ssl.SSLError, AssertionError)):
                    await wire.call(port, wire.EMPTY_MESSAGE, tls=client)
            with pytest.raises((OSError, AssertionError)):
                await wire.call(port, wire.EMPTY_MESSAGE)
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\x16\x03\x01" + bytes(range(256)) * 8)
            with suppress(OSError):
                await writer.drain()
            writer.transport.abort()
        old = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-tls1_1"]
        refused = await asyncio.to_thread(
            subprocess.run,
            [*old, "-cipher", "ALL@SECLEVEL=0"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        assert refused.returncode == 1
        reply = await wire.call(port, wire.EMPTY_MESSAGE, tls=client_of(AUTHORITY, good))
        assert (reply.code, reply.data) == (0, SERVING)
        assert ghealth.ended_by(signal.SIGINT) == 0
        events = {line["event"] for line in ghealth.rest()}
    assert events == {"status_changed", "draining", "stopping", "stopped"}


async def test_silent_handshakes_do_not_keep_others_out(secret: Mounted) -> None:
    """With 128 descriptors and 160 clients that never finish a handshake, others get answers."""
    limited = ("sh", "-c", 'ulimit -n 128 && exec "$0" "$@"')
    files = {"TLS_CERT_FILE": str(secret.path / CERT), "TLS_KEY_FILE": str(secret.path / KEY)}
    with (
        gateway() as (gateway_envoy, _),
        processes.server(
            *limited, PROBE_URL=gateway_envoy.url, TLS_LISTEN="127.0.0.1:0", **files
        ) as ghealth,
    ):
        port = int(ghealth.started["tls_listen"][0].rpartition(":")[2])
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(160)]
        for _, writer in silent[::2]:
            writer.write(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc")
        reply = await wire.call(port, wire.EMPTY_MESSAGE, tls=client_of(AUTHORITY))
        assert (reply.code, reply.data) == (0, SERVING)
        for reader, writer in silent:
            with suppress(ConnectionError):
                while await reader.read(100):
                    pass
            writer.close()
        assert len(os.listdir(f"/proc/{ghealth.process.pid}/fd")) < 64  # noqa: PTH208
