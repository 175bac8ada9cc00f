"""How a caller learns that a service is not serving: by the message or by the gRPC status code.

health.proto answers `OK` with `NOT_SERVING` in the message. An AWS ALB looks only at the status
code and counts that as healthy. A status code other than OK is unhealthy to every caller, so
callers that are not known to read the message get a code.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Literal, Protocol

from ghealth.health import Health, Reason, Status

PolicyName = Literal["auto", "status", "code"]


class Code(IntEnum):
    """The gRPC status codes that ghealth answers with, with gRPC's names and numbers."""

    OK = 0
    INVALID_ARGUMENT = 3
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    UNIMPLEMENTED = 12
    UNAVAILABLE = 14


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one call.

    Args:
        code: The gRPC status code.
        status: The status in the message; None for an answer without one.
        reason: Why; None where there is nothing to explain.
    """

    code: Code
    status: Status | None = None
    reason: Reason | None = None

    @property
    def name(self) -> str:
        """The status in the message by its name, otherwise the code by its name."""
        return self.code.name if self.status is None else self.status.name

    @property
    def good(self) -> bool:
        """Whether the answer means ready.

        UNIMPLEMENTED does: unknown paths get it only while the gateway is ready.
        """
        if self.code is Code.OK:
            return self.status in (None, Status.SERVING)
        return self.code is Code.UNIMPLEMENTED


class AnswerPolicy(Protocol):
    """Chooses the answer for a service that ghealth knows and that is not serving."""

    def __call__(self, health: Health, user_agent: str, status_callers: Sequence[str]) -> Answer:
        """Choose the answer.

        Args:
            health: The health of the service.
            user_agent: The caller's user agent, empty if it sent none.
            status_callers: Prefixes of user-agent words of callers that read the message.
        """
        ...


def status(
    health: Health,
    user_agent: str,  # noqa: ARG001 - the same for every caller
    status_callers: Sequence[str],  # noqa: ARG001
) -> Answer:
    """Send the status in the message, as health.proto defines it."""
    return Answer(Code.OK, health.status, health.reason)


def code(
    health: Health,
    user_agent: str,  # noqa: ARG001 - the same for every caller
    status_callers: Sequence[str],  # noqa: ARG001
) -> Answer:
    """Send UNAVAILABLE.

    Never UNIMPLEMENTED, which the ALB's default matcher counts as healthy, and never CANCELLED,
    after which Traefik does not check again.
    """
    return Answer(Code.UNAVAILABLE, reason=health.reason)


def auto(health: Health, user_agent: str, status_callers: Sequence[str]) -> Answer:
    """Send the status to callers that are known to read the message, the code to all others.

    gRPC client libraries have a word `grpc-LANGUAGE/…` in their user agent (gRPC over HTTP2,
    "User Agents").
    """
    reads_message = any(word.startswith(tuple(status_callers)) for word in user_agent.split())
    return (status if reads_message else code)(health, user_agent, status_callers)


POLICIES: Final[Mapping[PolicyName, AnswerPolicy]] = {"auto": auto, "status": status, "code": code}
