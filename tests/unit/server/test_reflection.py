from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_reflection.v1alpha import reflection_pb2

from ghealth.server.servicer import SERVICE_NAME
from tests.support.fakes import FakeProbe
from tests.support.running import run

VERSIONS = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"]
SERVICES = ["AWS.ALB", SERVICE_NAME, *VERSIONS]

Ask = Callable[..., Awaitable[Any]]


@pytest.fixture(params=VERSIONS)
async def ask(request: pytest.FixtureRequest) -> AsyncGenerator[Ask, None]:
    """Ask one question over reflection of either version."""
    async with (
        run(probes={"": FakeProbe()}) as running,
        grpc.aio.insecure_channel(f"127.0.0.1:{running.port}") as channel,
    ):

        async def asked(**question: str) -> Any:
            call: Any = channel.stream_stream(
                f"/{request.param}/ServerReflectionInfo",
                request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
                response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
            )()
            await call.write(reflection_pb2.ServerReflectionRequest(**question))
            await call.done_writing()
            return await call.read()

        yield asked


def file_in(reply: Any) -> descriptor_pb2.FileDescriptorProto:
    (serialized,) = reply.file_descriptor_response.file_descriptor_proto
    return descriptor_pb2.FileDescriptorProto.FromString(serialized)


async def test_both_versions_list_the_services(ask: Ask) -> None:
    """v1 and v1alpha answer alike, and name each other."""
    listed = (await ask(list_services="")).list_services_response
    assert [service.name for service in listed.service] == SERVICES


async def test_an_unknown_method_is_not_found(ask: Ask) -> None:
    """A method that the service does not have is answered NOT_FOUND."""
    reply = await ask(file_containing_symbol=f"{SERVICE_NAME}.X")
    assert reply.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]


@pytest.mark.parametrize("symbol", [*SERVICES, f"{SERVICE_NAME}.Check"])
async def test_everything_listed_is_described(ask: Ask, symbol: str) -> None:
    """Each listed service, and a method of it, has a file that defines it (reflection.proto)."""
    file = file_in(await ask(file_containing_symbol=symbol))
    assert symbol.startswith(f"{file.package}.{file.service[0].name}")


async def test_the_default_path_of_an_alb_can_be_called(ask: Ask) -> None:
    """The description of /AWS.ALB/healthcheck has messages without fields."""
    file = file_in(await ask(file_by_filename="aws_alb.proto"))
    (method,) = file.service[0].method
    assert method.name == "healthcheck"
    assert (method.input_type, method.output_type) == (".AWS.Empty", ".AWS.Empty")
    assert [(message.name, len(message.field)) for message in file.message_type] == [("Empty", 0)]
