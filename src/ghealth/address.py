"""Where a server listens."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

ANY_IPV4: Final = "0.0.0.0"  # noqa: S104 - a health check comes from other machines
ANY_IPV6: Final = "::"

_HIGHEST_PORT: Final = 65535
_LABEL: Final = "[A-Za-z0-9_-]{1,63}"
_ADDRESS: Final = re.compile(
    rf"(?:\[([0-9A-Fa-f:.]+)\]|({_LABEL}(?:\.{_LABEL})*\.?)):([0-9]{{1,5}})"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen.

    Args:
        host: A name or an address, without brackets.
        port: 0 takes a free one.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Read `host:port` or `[IPv6 address]:port`.

        Args:
            text: What the operator wrote.

        Raises:
            ValueError: If the text is anything else.
        """
        match = _ADDRESS.fullmatch(text.strip())
        if match is None or int(match[3]) > _HIGHEST_PORT:
            raise ValueError(text)
        if match[1]:
            ipaddress.IPv6Address(match[1])
        return cls(match[1] or match[2], int(match[3]))

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"
