"""Server reflection, v1 and v1alpha, so that tools like grpcurl need no health.proto."""

from collections.abc import Callable
from typing import Any, Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from google.protobuf.descriptor import FileDescriptor
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1ALPHA: Final = reflection.SERVICE_NAME
V1: Final = V1ALPHA.replace("v1alpha", "v1")

_METHOD: Final = "ServerReflectionInfo"


def handlers(guard: Callable[[str, Any], Any]) -> tuple[grpc.GenericRpcHandler, ...]:
    """Return gRPC's handlers for reflection.

    grpcio-reflection has only v1alpha. The messages of v1 are the same under another package name
    (grpc/reflection/v1/reflection.proto), so one servicer answers both.

    Args:
        guard: Wraps the method that answers a path.
    """
    pool = descriptor_pool.DescriptorPool()
    v1alpha = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    health = descriptor_pb2.FileDescriptorProto.FromString(health_pb2.DESCRIPTOR.serialized_pb)
    for file in (health, _alb_default_path(), v1alpha, _renamed(v1alpha, "v1alpha", "v1")):
        pool.Add(file)
    services = [f"{health.package}.Health", "AWS.ALB", V1, V1ALPHA]
    servicer = reflection.aio.ReflectionServicer(services, pool=_WithMethods(pool))
    return tuple(
        grpc.method_handlers_generic_handler(
            name,
            {
                _METHOD: grpc.stream_stream_rpc_method_handler(
                    guard(f"/{name}/{_METHOD}", servicer.ServerReflectionInfo),
                    request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
                    response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
                )
            },
        )
        for name in (V1, V1ALPHA)
    )


class _WithMethods:
    """A pool that finds the file of a method, too.

    reflection.proto has `<package>.<service>[.<method>]` as a symbol, and `grpcurl describe` uses
    it. grpcio-reflection asks the pool for it, and the pool knows methods by another function.
    """

    def __init__(self, pool: descriptor_pool.DescriptorPool) -> None:
        self._pool = pool

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - protobuf's
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            return self._pool.FindMethodByName(symbol).containing_service.file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


def _alb_default_path() -> descriptor_pb2.FileDescriptorProto:
    """Describe the default path of an ALB's target group, so that grpcurl can call it.

    AWS publishes no description of it. Neither message has fields.
    """
    file = descriptor_pb2.FileDescriptorProto(name="aws_alb.proto", package="AWS", syntax="proto3")
    file.message_type.add(name="Empty")
    method = file.service.add(name="ALB").method.add(name="healthcheck")
    method.input_type = method.output_type = ".AWS.Empty"
    return file


def _renamed(
    file: descriptor_pb2.FileDescriptorProto, old: str, new: str
) -> descriptor_pb2.FileDescriptorProto:
    """Return the description of a file in another version of its package."""
    return text_format.Parse(str(file).replace(old, new), descriptor_pb2.FileDescriptorProto())
