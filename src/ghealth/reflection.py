"""Server reflection in both versions, so that grpcurl and its like need no health.proto."""

from collections.abc import Sequence
from typing import Final

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, text_format
from grpc_reflection.v1alpha import reflection, reflection_pb2

V1ALPHA: Final = reflection.SERVICE_NAME
V1: Final = V1ALPHA.replace("v1alpha", "v1")


def handlers(
    files: Sequence[descriptor_pb2.FileDescriptorProto],
) -> tuple[grpc.GenericRpcHandler, ...]:
    """Tell gRPC what answers reflection.

    grpcio-reflection knows v1alpha alone. The messages of v1 are the same, under another package
    name (grpc/reflection/v1/reflection.proto), so one servicer answers both.

    Args:
        files: Describe the services to list beside reflection itself.
    """
    pool = descriptor_pool.DescriptorPool()
    services = [V1, V1ALPHA]
    for file in files:
        pool.Add(file)
        services += (f"{file.package}.{service.name}" for service in file.service)
    v1alpha = descriptor_pb2.FileDescriptorProto.FromString(reflection_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(v1alpha)
    pool.Add(_renamed(v1alpha, "v1alpha", "v1"))
    servicer = reflection.aio.ReflectionServicer(services, pool=pool)
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        request_deserializer=reflection_pb2.ServerReflectionRequest.FromString,
        response_serializer=reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(
        grpc.method_handlers_generic_handler(name, {"ServerReflectionInfo": method})
        for name in (V1, V1ALPHA)
    )


def _renamed(
    file: descriptor_pb2.FileDescriptorProto, old: str, new: str
) -> descriptor_pb2.FileDescriptorProto:
    """Describe a file's twin in another version of its package."""
    return text_format.Parse(str(file).replace(old, new), descriptor_pb2.FileDescriptorProto())
