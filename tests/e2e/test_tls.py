"""TLS on the health port, as an ALB, the kubelet and meshes use it: rotations, and bad clients."""

import asyncio
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

AUTHORITY, OTHER = trustme.CA(), trustme.CA()
SERVING = b"\0\0\0\0\2\x08\1"
HALF_A_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc"
ROTATIONS = 20
CALLERS = 3


@pytest.fixture
def secret(tmp_path: Path) -> Mounted:
    files = pair_of(AUTHORITY) | {CLIENT_CA: AUTHORITY.cert_pem.bytes()}
    return Mounted(tmp_path / "tls", files)


@contextmanager
def serving(
    secret: Mounted, *prefix: str, verifies: bool = False
) -> Iterator[tuple[processes.Server, int]]:
    """Run ghealth beside an Envoy; yield it and its port with TLS."""
    files = {"TLS_CERT_FILE": CERT, "TLS_KEY_FILE": KEY}
    files |= {"TLS_CLIENT_CA_FILE": CLIENT_CA} if verifies else {}
    paths = {name: str(secret.path / file) for name, file in files.items()}
    with (
        gateway() as (ready, _),
        processes.server(
            *prefix, PROBE_URL=ready.url, TLS_LISTEN="127.0.0.1:0", **paths
        ) as ghealth,
    ):
        yield ghealth, int(ghealth.started["tls_listen"][0].rpartition(":")[2])


async def shown(port: int, client: ssl.SSLContext) -> bytes:
    """Check, and return the server's certificate."""
    reply = await wire.call(port, wire.EMPTY_MESSAGE, tls=client)
    assert (reply.code, reply.data) == (0, SERVING)
    return reply.certificate


async def test_rotations_under_load_fail_no_check(secret: Mounted) -> None:
    """Twenty changes of the Secret during new connections: each check gets the correct answer.

    An open connection is not affected, and the process is not restarted. The last change is to a
    pair that does not match: it fails no check either.
    """
    client = client_of(AUTHORITY)
    over = asyncio.Event()
    credentials = grpc.ssl_channel_credentials(AUTHORITY.cert_pem.bytes())

    async def ask() -> None:
        while not over.is_set():
            await shown(port, client)

    async def keep(stub: Any) -> None:
        while not over.is_set():
            assert (await stub.Check(health_pb2.HealthCheckRequest())).status == 1

    with serving(secret) as (ghealth, port):
        async with (
            grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel,
            asyncio.timeout(processes.TIMEOUT),
            asyncio.TaskGroup() as group,
        ):
            for _ in range(CALLERS):
                group.create_task(ask())
            group.create_task(keep(health_pb2_grpc.HealthStub(channel)))
            first = last = pair_of(AUTHORITY)
            for _ in range(ROTATIONS):
                last = pair_of(AUTHORITY)
                secret.swap(last)
                while await shown(port, client) != der_of(last):
                    pass
            secret.swap(last | {KEY: first[KEY]})
            for _ in range(20):
                assert await shown(port, client) == der_of(last)
            over.set()
        assert ghealth.ended_by(signal.SIGINT) == 0
        events = [line["event"] for line in ghealth.rest()]
    assert events.count("certificate_replaced") == ROTATIONS
    assert events.count("certificate_rejected") == 1


def test_envoy_checks_it_with_tls(secret: Mounted, tmp_path: Path) -> None:
    """Envoy's gRPC health checker finds it healthy, with a client certificate only."""
    authority = tmp_path / "authority.pem"
    AUTHORITY.cert_pem.write_to_path(authority)
    client = Mounted(tmp_path / "client", pair_of(AUTHORITY)).path
    with (
        serving(secret, verifies=True) as (_, port),
        envoy.checker(port, authority=authority, pair=client) as known,
        envoy.checker(port, authority=authority) as unknown,
    ):
        assert wait_until(lambda: known() == "healthy"), known()
        assert wait_until(lambda: unknown() == "failed_active_health_check"), unknown()


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
        for client in (*clients, None):
            with pytest.raises((OSError, ssl.SSLError, AssertionError)):
                await wire.call(port, wire.EMPTY_MESSAGE, tls=client)
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"\x16\x03\x01" + bytes(range(256)) * 8)
        with suppress(OSError):
            await writer.drain()
        writer.transport.abort()
        old = f"openssl s_client -connect 127.0.0.1:{port} -tls1_1 -cipher ALL@SECLEVEL=0"
        refused = await asyncio.to_thread(
            subprocess.run, old.split(), stdin=subprocess.DEVNULL, capture_output=True, check=False
        )
        assert refused.returncode == 1
        assert await shown(port, client_of(AUTHORITY, good))
        assert ghealth.ended_by(signal.SIGINT) == 0
        events = {line["event"] for line in ghealth.rest()}
    assert events == {"status_changed", "draining", "stopping", "stopped"}


async def test_silent_handshakes_do_not_keep_others_out(secret: Mounted) -> None:
    """With 128 descriptors and 160 clients that never finish a handshake, others get answers."""
    with (
        serving(secret, *processes.limiting("-n 128")) as (ghealth, port),
        wire.silent(port, 160) as clients,
    ):
        for client in clients[::2]:
            with suppress(ConnectionError):
                client.sendall(HALF_A_HELLO)
        assert await shown(port, client_of(AUTHORITY))
        for client in clients:
            client.settimeout(processes.TIMEOUT)
            with suppress(ConnectionError):
                while client.recv(100):
                    pass
        assert len(os.listdir(f"/proc/{ghealth.process.pid}/fd")) < 64  # noqa: PTH208
