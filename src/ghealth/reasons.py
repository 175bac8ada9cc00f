"""Every reason that ghealth gives: the same words in the log, in answers and on the page.

The texts are part of the contract (semantic versioning covers them). None carries an exception's
text, a URL or a stack: a reason goes to callers that nobody authenticates.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

ALIVE: Final = "ghealth is running"
DRAINING: Final = "draining"
UNKNOWN_SERVICE: Final = "unknown service"
CALLER_LEFT_NO_TIME: Final = "no answer before the caller's deadline"
INTERNAL_ERROR: Final = "internal error"

REFUSED: Final = "connection refused"
RESET: Final = "connection reset"
CLOSED: Final = "connection closed without an answer"
UNREACHABLE: Final = "cannot connect"
NOT_HTTP: Final = "answer is not HTTP"
NAME_UNRESOLVED: Final = "name does not resolve"
CERTIFICATE: Final = "certificate does not verify"
TLS: Final = "TLS handshake failed"

_ANSWERED: Final = "gateway answered "
_NO_ANSWER: Final = "no answer within "


def answered(code: int) -> str:
    """The gateway sent a status line.

    Args:
        code: Its HTTP status code.
    """
    return f"{_ANSWERED}{code}"


def no_answer_within(seconds: float) -> str:
    """The attempt used up its time.

    Args:
        seconds: The time that an attempt has.
    """
    return f"{_NO_ANSWER}{seconds:g} s"


class Result(StrEnum):
    """What an attempt came to, in few words: what attempts are counted by."""

    OK = "ok"
    STATUS = "status"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    RESET = "reset"
    PROTOCOL = "protocol"
    TLS = "tls"
    DNS = "dns"
    ERROR = "error"


_RESULTS: Final[Mapping[str, Result]] = {
    REFUSED: Result.REFUSED,
    RESET: Result.RESET,
    CLOSED: Result.RESET,
    NOT_HTTP: Result.PROTOCOL,
    NAME_UNRESOLVED: Result.DNS,
    CERTIFICATE: Result.TLS,
    TLS: Result.TLS,
}


def result_of(reason: str, *, ready: bool) -> Result:
    """Tell what an attempt came to.

    Args:
        reason: The reason of its outcome.
        ready: Whether that was a success.
    """
    if ready:
        return Result.OK
    if reason.startswith(_ANSWERED):
        return Result.STATUS
    if reason.startswith(_NO_ANSWER):
        return Result.TIMEOUT
    return _RESULTS.get(reason, Result.ERROR)


_KNOWN: Final = re.compile(
    "|".join(
        (
            *map(
                re.escape,
                (
                    DRAINING,
                    CALLER_LEFT_NO_TIME,
                    INTERNAL_ERROR,
                    REFUSED,
                    RESET,
                    CLOSED,
                    UNREACHABLE,
                    NOT_HTTP,
                    NAME_UNRESOLVED,
                    CERTIFICATE,
                    TLS,
                ),
            ),
            rf"{_ANSWERED}\d{{3}}",
            rf"{_NO_ANSWER}\S+ s",
        )
    )
)


def is_known(text: str) -> bool:
    """Whether `text` is a reason that ghealth gives with an error.

    A client uses it to tell a code that ghealth chose from one that gRPC or a proxy made up.

    Args:
        text: The `grpc-message` of an error.
    """
    return _KNOWN.fullmatch(text) is not None
