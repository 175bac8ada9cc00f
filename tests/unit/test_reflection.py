from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from ghealth import reflection
from ghealth.servicer import descriptions

VERSIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")


@asynccontextmanager
async def reflecting() -> AsyncGenerator[grpc.aio.Channel, None]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(reflection.handlers(descriptions()))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(1)


async def ask(channel: grpc.aio.Channel, version: str, **question: str) -> Any:
    """Ask one question over reflection of a version."""
    call = channel.stream_stream(
        f"/{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )()
    await call.write(reflection_pb2.ServerReflectionRequest(**question))
    await call.done_writing()
    return await call.read()


@pytest.mark.parametrize("version", VERSIONS)
async def test_both_versions_list_the_services(version: str) -> None:
    """Trap 19: v1 and v1alpha answer alike, and name each other."""
    async with reflecting() as channel:
        reply = await ask(channel, version, list_services="")
    names = [service.name for service in reply.list_services_response.service]
    assert names == sorted(
        [
            "AWS.ALB",
            "grpc.health.v1.Health",
            *(f"{version}.ServerReflection" for version in VERSIONS),
        ]
    )


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "symbol",
    [
        "AWS.ALB",
        "grpc.health.v1.Health",
        *(f"{version}.ServerReflection" for version in VERSIONS),
    ],
)
async def test_everything_listed_is_described(version: str, symbol: str) -> None:
    """Whoever asks what a listed service looks like gets the file that defines it."""
    async with reflecting() as channel:
        reply = await ask(channel, version, file_containing_symbol=symbol)
    (serialized,) = reply.file_descriptor_response.file_descriptor_proto
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    assert f"{file.package}.{file.service[0].name}" == symbol
