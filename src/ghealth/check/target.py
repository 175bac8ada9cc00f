"""Server addresses, in the forms that grpc-health-probe accepts."""

import os
import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote

from ghealth.address import ANY_IPV4, ANY_IPV6, Address

LOOPBACK: Final = "127.0.0.1"

_UNIX: Final = "unix:"
_UNIX_ABSTRACT: Final = "unix-abstract:"
_BRACKETS: Final = re.compile(r"^\[([^:\]]+)\]")
_MAX_PATH: Final = 107
"""The longest path of a socket. With a longer one gRPC never ends."""

_SCHEMES: Final = ("dns:///", "passthrough:///")


@dataclass(frozen=True, slots=True)
class Target:
    """The server to check.

    Args:
        text: The address as it was given.
        address: Host and port; None for a Unix domain socket.
        path: The path of the socket; with a leading null character in the abstract namespace.
    """

    text: str
    address: Address | None = None
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Target":
        """Parse `host:port`, `:port`, `unix:path` or `unix-abstract:name`.

        Args:
            text: The text.

        Raises:
            ValueError: If it is anything else. The message is a hint, empty if there is none.
        """
        if text.startswith((_UNIX, _UNIX_ABSTRACT)):
            scheme, _, path = text.partition(":")
            if len(os.fsencode(path)) > _MAX_PATH:
                raise ValueError(f"the path has more than {_MAX_PATH} bytes")
            if f"{scheme}:" == _UNIX_ABSTRACT:
                return cls(text, path=f"\0{path}")
            return cls(text, path=path.removeprefix("//") if path.startswith("///") else path)
        if text != text.strip():
            raise ValueError("there is white space around it")
        host_and_port = text
        for scheme in _SCHEMES:
            host_and_port = host_and_port.removeprefix(scheme)
        # Go allows brackets around any host.
        host_and_port = _BRACKETS.sub(r"\1", host_and_port)
        return cls(text, reachable(Address.parse(host_and_port)))

    @property
    def uri(self) -> str:
        """The address in gRPC's name syntax."""
        if self.address is not None:
            return f"dns:///{quote(str(self.address), safe='[]:')}"
        scheme = _UNIX_ABSTRACT if self.path.startswith("\0") else _UNIX
        return scheme + quote(os.fsencode(self.path.removeprefix("\0")))

    @property
    def host(self) -> str:
        """The host, which the server's certificate is for."""
        return "localhost" if self.address is None else self.address.host

    @property
    def authority(self) -> str:
        """The value of the header `:authority`."""
        return self.host if self.address is None else str(self.address)

    def __str__(self) -> str:
        return self.text


def reachable(address: Address) -> Address:
    """Return where a server that listens on an address can be reached on this machine."""
    host = LOOPBACK if address.host in (ANY_IPV4, ANY_IPV6) else address.host
    return Address(host, address.port)
