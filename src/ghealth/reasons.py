"""Every reason that ghealth gives: the same words in the log, in answers and on the page.

The texts are part of the contract (semantic versioning covers them). None carries an exception's
text, a URL or a stack: a reason goes to callers that nobody authenticates.
"""

import re
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


def answered(code: int) -> str:
    """The gateway sent a status line.

    Args:
        code: Its HTTP status code.
    """
    return f"gateway answered {code}"


def no_answer_within(seconds: float) -> str:
    """The attempt used up its time.

    Args:
        seconds: The time that an attempt has.
    """
    return f"no answer within {seconds:g} s"


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
            r"gateway answered \d{3}",
            r"no answer within \S+ s",
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
