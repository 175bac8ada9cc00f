"""The request of a check and its answer, independent of the transport."""

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Final, Literal, Protocol

from grpc_health.v1 import health_pb2

from ghealth.check.certificates import Tls
from ghealth.check.report import CODE_NAMES
from ghealth.check.target import Target

Method = Literal["Check", "Watch"]

SERVICE_PATH: Final = f"/{health_pb2.DESCRIPTOR.services_by_name['Health'].full_name}"

INTERNAL: Final = CODE_NAMES.index("INTERNAL")
UNKNOWN: Final = CODE_NAMES.index("UNKNOWN")
DEADLINE_EXCEEDED: Final = CODE_NAMES.index("DEADLINE_EXCEEDED")
NOT_FOUND: Final = CODE_NAMES.index("NOT_FOUND")
UNIMPLEMENTED: Final = CODE_NAMES.index("UNIMPLEMENTED")
UNAVAILABLE: Final = CODE_NAMES.index("UNAVAILABLE")

MALFORMED: Final = "malformed message"

_RESERVED_HEADERS: Final = frozenset(("content-type", "te", "user-agent")).union(
    f"grpc-{name}" for name in ("encoding", "message", "message-type", "status", "timeout")
)
"""The headers that grpc-go always sets itself."""

_NAME_CHARACTERS: Final = frozenset("0123456789abcdefghijklmnopqrstuvwxyz-_.")


class NoConnectionError(Exception):
    """The server cannot be reached; the message is the cause, if it is known."""


class InvalidQuestionError(Exception):
    """The question cannot be sent; the message is the cause."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A question to a server.

    Args:
        target: The server.
        service: The service's name, empty for the server as a whole.
        connect_timeout: Seconds for the connection.
        rpc_timeout: Seconds for the answer.
        user_agent: The user agent; the library appends its name.
        headers: Names and values to send as metadata.
        gzip: Whether to compress the message.
        tls: How to use TLS; None for plaintext.
    """

    target: Target
    service: str = ""
    connect_timeout: float = 1.0
    rpc_timeout: float = 1.0
    user_agent: str
    headers: Sequence[tuple[str, str]] = ()
    gzip: bool = False
    tls: Tls | None = None

    def message(self) -> bytes:
        """Return the request's message.

        Raises:
            InvalidQuestionError: If the service's name is not UTF-8.
        """
        try:
            request = health_pb2.HealthCheckRequest(service=self.service)
        except (UnicodeError, ValueError):
            raise InvalidQuestionError("the service's name is not UTF-8") from None
        message: bytes = request.SerializeToString()
        return message

    def metadata(self) -> list[tuple[str, str]]:
        """Return the headers as metadata; those that gRPC sets itself are left out, as by grpc-go.

        Raises:
            InvalidQuestionError: If gRPC does not allow one of them.
        """
        metadata = []
        for name, value in self.headers:
            key = name.lower()
            if key in _RESERVED_HEADERS or key.startswith(":"):
                continue
            if not key or not _NAME_CHARACTERS.issuperset(key):
                raise InvalidQuestionError(f"{name!r} is not the name of a gRPC header")
            if not (key.endswith("-bin") or all(" " <= char <= "~" for char in value)):
                raise InvalidQuestionError(f"the value of header {name} is not printable ASCII")
            metadata.append((key, value))
        return metadata


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer to a Check, or one in a Watch.

    Args:
        code: The gRPC status code.
        details: The text with the code.
        status: The status in the message, None if there is none.
        reason: ghealth's reason, empty if there is none.
    """

    code: int
    details: str = ""
    status: int | None = None
    reason: str = ""


def status_of(message: bytes) -> int:
    """Return the status in a message.

    Raises:
        google.protobuf.message.DecodeError: If it is malformed.
    """
    status: int = health_pb2.HealthCheckResponse.FromString(message).status
    return status


class Client(Protocol):
    """Asks one question, once or several times."""

    async def connect(self) -> None:
        """Connect to the server within the question's timeout.

        Raises:
            NoConnectionError: If that fails.
        """
        ...

    def answers(self, method: Method) -> AsyncGenerator[Reply, None]:
        """Ask, once connected.

        Args:
            method: Check yields one answer; Watch yields one for each message, and one for an
                end that is an error.
        """
        ...
