"""grpcio's health servicer, whose status a background probe sets, by default once a second.

python stock.py ADDRESS URL [EVERY TIMEOUT]
"""

import asyncio
import sys

import grpc
import httpx
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


async def main(address: str, url: str, every: str = "1", timeout: str = "5") -> None:
    """Serve until killed."""
    servicer = health.aio.HealthServicer()
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(address)
    await server.start()
    async with httpx.AsyncClient(trust_env=False, timeout=float(timeout)) as client:
        while True:
            try:
                ready = (await client.get(url)).is_success
            except httpx.HTTPError:
                ready = False
            status = health_pb2.HealthCheckResponse.ServingStatus
            await servicer.set("", status.SERVING if ready else status.NOT_SERVING)
            await asyncio.sleep(float(every))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
