from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from ghealth.server import reflection
from ghealth.server.servicer import SERVICE_NAME

VERSIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")


def unguarded(_path: str, method: Callable[..., Any]) -> Callable[..., Any]:
    return method


@asynccontextmanager
async def reflecting() -> AsyncGenerator[grpc.aio.Channel, None]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    server.add_generic_rpc_handlers(reflection.handlers(unguarded))
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
    """v1 and v1alpha answer alike, and name each other."""
    async with reflecting() as channel:
        reply = await ask(channel, version, list_services="")
    names = [service.name for service in reply.list_services_response.service]
    assert names == sorted(
        [
            "AWS.ALB",
            SERVICE_NAME,
            *(f"{version}.ServerReflection" for version in VERSIONS),
        ]
    )


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_not_described_is_not_found(version: str) -> None:
    """A method that the service does not have, and a file, are answered NOT_FOUND or found."""
    async with reflecting() as channel:
        reply = await ask(channel, version, file_containing_symbol="grpc.health.v1.Health.X")
        assert reply.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
        reply = await ask(channel, version, file_by_filename="aws_alb.proto")
        assert len(reply.file_descriptor_response.file_descriptor_proto) == 1


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    "symbol",
    [
        "AWS.ALB",
        "grpc.health.v1.Health",
        "grpc.health.v1.Health.Check",
        *(f"{version}.ServerReflection" for version in VERSIONS),
    ],
)
async def test_everything_listed_is_described(version: str, symbol: str) -> None:
    """Each listed service, and a method of it, has a file that defines it (reflection.proto)."""
    async with reflecting() as channel:
        reply = await ask(channel, version, file_containing_symbol=symbol)
    (serialized,) = reply.file_descriptor_response.file_descriptor_proto
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    assert symbol.startswith(f"{file.package}.{file.service[0].name}")


async def test_the_default_path_of_an_alb_can_be_called() -> None:
    """The description of /AWS.ALB/healthcheck has messages without fields."""
    async with reflecting() as channel:
        reply = await ask(channel, VERSIONS[0], file_containing_symbol="AWS.ALB")
    (serialized,) = reply.file_descriptor_response.file_descriptor_proto
    file = descriptor_pb2.FileDescriptorProto.FromString(serialized)
    (method,) = file.service[0].method
    assert (method.name, method.input_type, method.output_type) == (
        "healthcheck",
        ".AWS.Empty",
        ".AWS.Empty",
    )
    assert [(message.name, len(message.field)) for message in file.message_type] == [("Empty", 0)]


async def test_each_path_is_guarded() -> None:
    """The guard gets the path of each version, and what it returns is served."""
    guarded = []

    def guard(path: str, _method: object) -> object:
        guarded.append(path)
        return guard

    handlers: Any = reflection.handlers(guard)
    details: Any = [
        SimpleNamespace(method=f"/{version}.ServerReflection/ServerReflectionInfo")
        for version in VERSIONS
    ]
    found = [
        handler.service(call).stream_stream for handler, call in zip(handlers, details, strict=True)
    ]
    assert guarded == [call.method for call in details]
    assert found == [guard, guard]
