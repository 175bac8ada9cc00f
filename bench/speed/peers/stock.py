"""grpcio's health servicer, whose status a background probe sets once a second."""

import asyncio
import sys

import grpc
import httpx
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

_POLL_EVERY = 1.0


async def main() -> None:
    """Serve until killed."""
    servicer = health.aio.HealthServicer()
    server = grpc.aio.server()
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(sys.argv[1])
    await server.start()
    async with httpx.AsyncClient(trust_env=False) as client:
        while True:
            try:
                ready = (await client.get(sys.argv[2])).is_success
            except httpx.HTTPError:
                ready = False
            status = health_pb2.HealthCheckResponse.ServingStatus
            await servicer.set("", status.SERVING if ready else status.NOT_SERVING)
            await asyncio.sleep(_POLL_EVERY)


if __name__ == "__main__":
    asyncio.run(main())
