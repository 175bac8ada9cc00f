"""The result of a check: an exit code, a text for people and the keys of the JSON output."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum

from ghealth import flags
from ghealth.health import Code


class ExitCode(IntEnum):
    """The exit codes of a check, which are grpc-health-probe's."""

    SERVING = 0
    MISTAKE = flags.MISTAKE
    NO_CONNECTION = 2
    RPC_FAILED = 3
    NOT_SERVING = 4


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a check.

    Args:
        exit_code: The exit code.
        text: The output for people.
        keys: The keys and values of the JSON output.
        warnings: Why the result may be misleading.
    """

    exit_code: ExitCode
    text: str
    keys: Mapping[str, object]
    warnings: tuple[str, ...] = ()


def code_name(code: int | None) -> str | None:
    """Return the name of a gRPC status code, None for an unknown number."""
    return Code(code).name if code in list(Code) else None
