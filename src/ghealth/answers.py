"""What a caller is told: the status in a body, or a gRPC code that everyone reads as unhealthy.

health.proto's own answer for a sick service is the code OK with NOT_SERVING in the message. Only a
caller that reads the message understands it: to an AWS ALB, which reads the code alone, it is
healthy. A non-zero code is unhealthy to every reader, so it is what an unknown caller gets.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from ghealth.status import Health, Status


class Code(IntEnum):
    """The gRPC status codes that a Check ends with, number for number."""

    OK = 0
    NOT_FOUND = 5
    UNAVAILABLE = 14


@dataclass(frozen=True, slots=True)
class Answer:
    """The end of one Check.

    Args:
        code: The gRPC status; OK comes with the status in the message.
        status: The status that the message carries.
        reason: The `grpc-message` of a code that is not OK.
    """

    code: Code
    status: Status
    reason: str


class AnswerPolicy(Protocol):
    """One way of telling a caller the health of a service that ghealth knows."""

    def __call__(self, health: Health, user_agent: str, status_callers: Sequence[str]) -> Answer:
        """Choose the answer.

        Args:
            health: Of the service asked for.
            user_agent: The caller's, empty if it has none.
            status_callers: How the words of a user agent begin whose caller reads the status.
        """
        ...


def status(
    health: Health,
    user_agent: str,  # noqa: ARG001 - everyone gets the same
    status_callers: Sequence[str],  # noqa: ARG001
) -> Answer:
    """Tell everyone the status, as health.proto has it."""
    return Answer(Code.OK, health.status, health.reason)


def code(
    health: Health,
    user_agent: str,  # noqa: ARG001 - everyone gets the same
    status_callers: Sequence[str],  # noqa: ARG001
) -> Answer:
    """Tell everyone a code: UNAVAILABLE unless serving.

    Never UNIMPLEMENTED, which an ALB's default matcher and others take for healthy, and never
    CANCELLED, which ends Traefik's checking for good.
    """
    serving = health.status is Status.SERVING
    chosen = Code.OK if serving else Code.UNAVAILABLE
    return Answer(chosen, health.status, health.reason)


def auto(health: Health, user_agent: str, status_callers: Sequence[str]) -> Answer:
    """Tell the status to callers that are known to read it, and a code to all others.

    Every gRPC client library has `grpc-LANGUAGE/…` in its user agent (gRPC over HTTP2, "User
    Agents").
    """
    reads_status = any(word.startswith(tuple(status_callers)) for word in user_agent.split())
    return (status if reads_status else code)(health, user_agent, status_callers)


POLICIES: Final[Mapping[str, AnswerPolicy]] = {"auto": auto, "status": status, "code": code}
