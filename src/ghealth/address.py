"""Addresses that a server listens on and that clients connect to."""

import ipaddress
import re
from dataclasses import dataclass
from typing import Final

ANY_IPV4: Final = "0.0.0.0"  # noqa: S104 - health checks come from other machines
ANY_IPV6: Final = "::"

LOOPBACK: Final = ("127.0.0.1", "::1")
"""The addresses of `localhost`, whatever /etc/hosts contains."""

OFF: Final = "off"
"""Stands for no address."""

_BROADCAST: Final = "255.255.255.255"
LOCALHOST: Final = "localhost"
_MAX_PORT: Final = 65535
_LABEL: Final = "[A-Za-z0-9_-]{1,63}"
HOST_NAME: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*\.?")
"""A name that can be looked up; of another, Python's look-up raises UnicodeError."""

_PORT: Final = re.compile("[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Address:
    """A host and a port.

    Args:
        host: A name or an IP address, without brackets.
        port: 0 stands for a free port.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Address":
        """Parse `host:port` or `[IPv6 address]:port`; without a host, every interface.

        Args:
            text: The text; white space around it is ignored.

        Raises:
            ValueError: If it is anything else. The message is a hint.
        """
        text = text.strip()
        if text.startswith("unix:"):
            raise ValueError("a unix: socket could be taken over by another process")
        if "/" in text:
            raise ValueError("an address is host:port only")
        host, colon, port = text.rpartition(":")
        if not colon or port.endswith("]"):
            is_port = _PORT.fullmatch(text)
            raise ValueError(f"a port alone is written :{text}" if is_port else "no port")
        if ":" in host and not host.startswith("["):
            raise ValueError("an IPv6 address needs brackets")
        if not _PORT.fullmatch(port) or int(port) > _MAX_PORT:
            raise ValueError(f"a port is a number from 0 to {_MAX_PORT}")
        if host in ("", "*"):
            return cls(ANY_IPV6, int(port))
        if host.startswith("[") and host.endswith("]"):
            return cls(_ip(host[1:-1]), int(port))
        if not HOST_NAME.fullmatch(host):
            raise ValueError(f"{host!r} is not a host name")
        return cls(host.lower(), int(port))

    @property
    def ip(self) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
        """The IP address, None for a name."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def listen_addresses(text: str) -> tuple[Address, ...]:
    """Parse comma-separated addresses to listen on, or `off`.

    Args:
        text: The text.

    Raises:
        ValueError: If it is anything else. The message is a hint.
    """
    return () if text.lower() == OFF else tuple(map(listen_address, text.split(",")))


def listen_address(text: str) -> Address:
    """Parse one address to listen on.

    Args:
        text: The text.

    Raises:
        ValueError: As `listen_addresses`.
    """
    address = Address.parse(text)
    if address.ip is None and address.host != LOCALHOST:
        raise ValueError(f"{address.host} is not an IP address, and names are not looked up")
    if address.host == _BROADCAST or (address.ip is not None and address.ip.is_multicast):
        # The kernel may listen there, but no client can connect.
        raise ValueError("multicast and broadcast addresses cannot be connected to")
    return address


def _ip(text: str) -> str:
    """Return an IPv6 address in its usual form, or the IPv4 address that it stands for."""
    try:
        address = ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an IPv6 address") from None
    if address.is_link_local and address.scope_id is None:
        raise ValueError("a link-local address needs its interface, such as [fe80::1%eth0]")
    # The socket of an address accepts IPv6 only, and so no IPv4 in this form.
    return str(address.ipv4_mapped or address)


DEFAULT_LISTEN: Final = Address(ANY_IPV6, 25021)
"""Where ghealth serves gRPC unless `GHEALTH_LISTEN` is set."""
