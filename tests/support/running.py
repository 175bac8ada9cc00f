"""A server that runs in this process."""

import asyncio
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth.probe import Probe
from ghealth.server.serve import Ports, serve
from ghealth.settings import Settings
from tests.support.peers import Target

CHECK = health_pb2.HealthCheckRequest


@dataclass
class Running:
    """A server, and a client of its first port."""

    ports: Ports
    stub: Any
    stop: "asyncio.Future[bool]"
    task: "asyncio.Task[None]"

    @property
    def port(self) -> int:
        return (self.ports.listen + self.ports.tls_listen)[0]

    async def status(self, service: str = "") -> int:
        """Check a service."""
        return int((await self.stub.Check(CHECK(service=service))).status)

    async def ended(self, *, drains: bool) -> None:
        """Stop the server, and wait for its end."""
        self.stop.set_result(drains)
        await self.task


@asynccontextmanager
async def run(
    *gateways: Target, probes: Mapping[str, Probe] | None = None, **values: Any
) -> AsyncGenerator[Running, None]:
    """Run a server that probes the gateways, on a free port, for at most a minute."""
    urls = {"probe_url": ",".join(gateway.url for gateway in gateways)} if gateways else {}
    settings = {"listen": "127.0.0.1:0", "admin_listen": "off"} | urls | values
    loop = asyncio.get_running_loop()
    stop: asyncio.Future[bool] = loop.create_future()
    started: asyncio.Future[Ports] = loop.create_future()
    serving = serve(
        Settings.model_validate(settings),
        shutdown_trigger=lambda: stop,
        on_started=started.set_result,
        probes=probes,
    )
    task = asyncio.create_task(serving)
    async with asyncio.timeout(60):
        await asyncio.wait((task, started), return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            await task
        running = Running(started.result(), None, stop, task)
        async with asking(running.port) as running.stub:
            yield running
        if not stop.done():
            stop.set_result(False)
        await task


@asynccontextmanager
async def asking(port: int, host: str = "127.0.0.1") -> AsyncGenerator[Any, None]:
    """Connect to a server, with a connection that no other channel of this process uses."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"{host}:{port}", options=options) as channel:
        yield health_pb2_grpc.HealthStub(channel)


async def closed(port: int, sent: bytes) -> None:
    """Connect from a separate IP address, and wait until the server closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0))
    writer.write(sent)
    with suppress(ConnectionResetError):
        while await reader.read(65536):
            pass
    writer.close()
