"""The server to check: the address in `--addr`, or this machine's ghealth by its settings."""

import os
import re
from dataclasses import dataclass
from typing import Final

from ghealth.address import ANY_IPV4, ANY_IPV6, DEFAULT_LISTEN, LOOPBACK, Address, listen_addresses

_MAX_PATH: Final = 107
"""The longest path of a socket (unix(7))."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server to check.

    Args:
        text: The address as it was given.
        address: Host and port; None for a Unix domain socket.
        path: The path of the socket; with a leading null character in the abstract namespace.
    """

    text: str
    address: Address | None = None
    path: str = ""

    @classmethod
    def parse(cls, text: str) -> "Server":
        """Parse `host:port`, `:port`, `unix:path` or `unix-abstract:name`.

        Args:
            text: The text.

        Raises:
            ValueError: If it is anything else. The message is a hint.
        """
        scheme, _, path = text.partition(":")
        if scheme in ("unix", "unix-abstract"):
            if len(os.fsencode(path)) > _MAX_PATH:
                raise ValueError(f"the path has more than {_MAX_PATH} bytes")
            if scheme == "unix-abstract":
                return cls(text, path=f"\0{path}")
            return cls(text, path=path.removeprefix("//") if path.startswith("///") else path)
        if text != text.strip():
            raise ValueError("there is white space around it")
        host_and_port = text.removeprefix("dns:///").removeprefix("passthrough:///")
        # Go allows brackets around any host.
        host_and_port = re.sub(r"^\[([^:\]]+)\]", r"\1", host_and_port)
        return cls(text, _reachable(Address.parse(host_and_port)))

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


def _reachable(address: Address) -> Address:
    """Return where a server that listens on an address can be reached on this machine."""
    host = LOOPBACK[0] if address.host in (ANY_IPV4, ANY_IPV6) else address.host
    return Address(host, address.port)


class SettingsError(Exception):
    """The settings of this machine's ghealth name no server; the message is the cause."""


def own_server(*, tls: bool) -> tuple[Server, bool]:
    """Find this machine's ghealth by its settings, and return whether it needs TLS.

    Only the two variables that name its addresses are read: other mistakes are the server's.

    Args:
        tls: Whether TLS is wanted.

    Raises:
        SettingsError: If they have a mistake, or no address that can be checked.
    """
    listen = _setting("GHEALTH_LISTEN", (DEFAULT_LISTEN,))
    tls_listen = _setting("GHEALTH_TLS_LISTEN", ())
    by_tls = tls or not listen
    variable = "GHEALTH_TLS_LISTEN" if by_tls else "GHEALTH_LISTEN"
    addresses = tls_listen if by_tls else listen
    if not addresses:
        raise SettingsError(f"{variable} is off: --addr is needed")
    found = next((address for address in addresses if address.port), None)
    if found is None:
        raise SettingsError(f"{variable} has only port 0: --addr is needed")
    own = _reachable(found)
    return Server(str(own), own), by_tls


def _setting(variable: str, default: tuple[Address, ...]) -> tuple[Address, ...]:
    """Read addresses from the environment, by the rules of all settings."""
    names = sorted(name for name in os.environ if name.upper() == variable)
    if len(names) > 1:
        raise SettingsError(f"{' and '.join(names)}: the same setting; expected one of them")
    text = os.environ[names[0]].strip() if names else ""
    try:
        return listen_addresses(text) if text else default
    except ValueError as error:
        raise SettingsError(
            f"{variable}: invalid value {text!r}; expected comma-separated host:port, such as "
            f"{DEFAULT_LISTEN}, or off ({error})"
        ) from None
