"""What a URL says to a probe."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Target:
    """Where a probe asks.

    Args:
        host: A name or an address, without brackets.
        port: Its port.
        tls: Whether to speak https.
        authority: The `Host` header.
        path: With the query, as it goes over the wire.
        credentials: For basic authentication (RFC 7617), encoded; None for none.
    """

    host: str
    port: int
    tls: bool
    authority: str
    path: str
    credentials: str | None
