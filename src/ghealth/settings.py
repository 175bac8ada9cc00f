"""What the operator decided: read once at the start, frozen from then on."""

from collections.abc import Mapping
from dataclasses import dataclass

from ghealth.address import Address
from ghealth.matcher import Matcher
from ghealth.target import Target


@dataclass(frozen=True, slots=True)
class Row:
    """One setting, as it is shown.

    Args:
        variable: Its whole name.
        value: What is in force, in the variable's own syntax, secrets masked.
        default: What is in force without it.
        meaning: One sentence.
    """

    variable: str
    value: str
    default: str
    meaning: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What is in force; `ghealth.environment` has what each one means and takes.

    Args:
        rows: All of it as it is shown, in the order of the documentation.
    """

    listen: tuple[Address, ...]
    target: Target
    probe_timeout: float
    probe_success_codes: Matcher
    probe_headers: Mapping[str, str]
    services: Mapping[str, Target]
    cache_ttl: float
    watch_interval: float
    answer: str
    status_callers: tuple[str, ...]
    reflection: bool
    drain_delay: float
    shutdown_grace: float
    max_watches: int
    log_level: str
    log_format: str | None
    metrics_listen: Address | None
    rows: tuple[Row, ...]

    def changed(self) -> dict[str, str]:
        """Show the variables that differ from their defaults, secrets masked."""
        return {row.variable: row.value for row in self.rows if row.value != row.default}


@dataclass(frozen=True, slots=True)
class Mistakes:
    """What is wrong with the environment.

    Args:
        lines: One for each mistake: the variable, what it holds, what it takes.
    """

    lines: tuple[str, ...]
