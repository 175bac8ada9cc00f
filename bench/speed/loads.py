"""What callers do: a storm on shared connections, an ALB's checks, watches."""

import re
import socket
import subprocess
import tempfile
import time
from typing import Final

CHECK: Final = "/grpc.health.v1.Health/Check"
_EMPTY_MESSAGE: Final = b"\0\0\0\0\0"
_SETTINGS, _HEADERS, _DATA = 4, 1, 0
_END_STREAM, _END_HEADERS, _ACK = 1, 4, 1
_FRAME_HEADER: Final = 9


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    length = len(payload).to_bytes(3, "big")
    return length + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _headers(*pairs: tuple[str, str]) -> bytes:
    """Encode headers as literals without indexing (RFC 7541, 6.2.2)."""
    return b"".join(
        b"\0" + bytes((len(name),)) + name.encode() + bytes((len(value),)) + value.encode()
        for name, value in pairs
    )


def _request(user_agent: str) -> bytes:
    headers = _headers(
        (":method", "POST"),
        (":scheme", "http"),
        (":path", CHECK),
        ("host", "AWSALB"),
        ("content-length", "5"),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        ("user-agent", user_agent),
    )
    return (
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, headers)
        + _frame(_DATA, _END_STREAM, 1, _EMPTY_MESSAGE)
    )


# Made once, and read with as little work as possible: the two cores here are the server's too.
_ALBS_REQUEST: Final = _request("ELB-HealthChecker/2.0")


def check(port: int, timeout: float = 30.0) -> float:
    """Make one check as an ALB does, on a connection of its own.

    Args:
        port: Of the server, on 127.0.0.1.
        timeout: Seconds to wait at most for each piece of the answer.

    Returns:
        The seconds until its end.

    Raises:
        OSError: If there is no answer.
    """
    started = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout) as connection:
        connection.sendall(_ALBS_REQUEST)
        received = b""
        while True:
            data = connection.recv(65536)
            if not data:
                raise ConnectionResetError
            received += data
            while len(received) >= _FRAME_HEADER:
                length = int.from_bytes(received[:3], "big")
                if len(received) < _FRAME_HEADER + length:
                    break
                kind, flags = received[3], received[4]
                if kind == _SETTINGS and not flags & _ACK:
                    connection.sendall(_frame(_SETTINGS, _ACK, 0, b""))
                elif kind in (_HEADERS, _DATA) and flags & _END_STREAM:
                    return time.perf_counter() - started
                received = received[_FRAME_HEADER + length :]


def storm(port: int, checks: int) -> float:
    """Check by h2load, on 10 connections with 4 streams each.

    Args:
        port: Of the server, on 127.0.0.1.
        checks: Their number.

    Returns:
        Checks a second.

    Raises:
        RuntimeError: If one of them was not answered.
    """
    with tempfile.NamedTemporaryFile() as message:
        message.write(_EMPTY_MESSAGE)
        message.flush()
        command = ["h2load", "-c10", "-m4", "-t1", f"-n{checks}", "-d", message.name]
        command += ["-H", "content-type: application/grpc", "-H", "te: trailers"]
        command += [f"http://127.0.0.1:{port}{CHECK}"]
        said = subprocess.run(
            command, capture_output=True, text=True, timeout=300, check=True
        ).stdout
    rate = re.search(r"([\d.]+) req/s", said)
    if rate is None or f" {checks} succeeded" not in said:
        raise RuntimeError(said)
    return float(rate[1])
