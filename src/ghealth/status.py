"""What ghealth says of a service, with the numbers that go over the wire."""

from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from ghealth import reasons

GATEWAY: Final = ""
"""The service name of the gateway itself; health.proto wants every server to know it."""

LIVENESS: Final = "liveness"
"""The service name of this process alone."""


class Status(IntEnum):
    """The ServingStatus of health.proto, number for number."""

    UNKNOWN = 0
    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


@dataclass(frozen=True, slots=True)
class Health:
    """The state of one service, and why.

    Args:
        status: What a health check says.
        reason: A short, fixed text from `ghealth.reasons`.
    """

    status: Status
    reason: str


ALIVE: Final = Health(Status.SERVING, reasons.ALIVE)
DRAINING: Final = Health(Status.NOT_SERVING, reasons.DRAINING)
CALLER_LEFT_NO_TIME: Final = Health(Status.NOT_SERVING, reasons.CALLER_LEFT_NO_TIME)
INTERNAL_ERROR: Final = Health(Status.NOT_SERVING, reasons.INTERNAL_ERROR)
UNKNOWN_SERVICE: Final = Health(Status.SERVICE_UNKNOWN, reasons.UNKNOWN_SERVICE)
