"""Honest callers, an ALB and a kubelet, that verify every answer."""

import socket
import struct
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import hpack

from tests.flood import frames
from tests.flood.frames import Kind
from tests.flood.starvation import Wait

TIMEOUT: Final = 20.0
PAUSE: Final = 0.1
SERVING: Final = b"\0\0\0\0\2\x08\1"

ALB: Final = frames.block(
    frames.CHECK,
    (
        ("content-length", "5"),
        ("user-agent", "ELB-HealthChecker/2.0"),
        ("accept-encoding", "gzip, compressed"),
    ),
    host="host",
)
KUBELET: Final = frames.block(
    frames.CHECK,
    (("user-agent", "kube-probe/1.33 grpc-go/1.71.0"),),
)
LIVENESS: Final = b"\0\0\0\0\x0a\x0a\x08liveness"


@dataclass(frozen=True)
class Answer:
    """The result of one check.

    Args:
        code: The gRPC code, or a description of the failure if there is none.
        data: The body.
    """

    code: int | str
    data: bytes = b""


def check(port: int, headers: bytes, message: bytes) -> Answer:
    """Check on a new connection, and return the answer.

    Raises:
        OSError: If it cannot connect, or if there is no answer within `TIMEOUT`.
    """
    with socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT) as sock:
        sock.sendall(frames.hello() + frames.call(headers, 1, message, end=True))
        decoder, body, received = hpack.Decoder(), b"", b""
        while chunk := sock.recv(65536):
            received += chunk
            while len(received) >= frames.HEAD:
                length, kind, flags, _ = struct.unpack("!IBBI", b"\0" + received[: frames.HEAD])
                end = frames.HEAD + length
                if len(received) < end:
                    break
                payload, received = received[frames.HEAD : end], received[end:]
                if kind == Kind.DATA:
                    body += payload
                elif kind == Kind.RESET:
                    return Answer(f"reset {struct.unpack('!I', payload)[0]}")
                elif kind == Kind.SETTINGS and not flags & frames.ACK:
                    sock.sendall(frames.SETTINGS_ACK)
                elif kind == Kind.HEADERS:
                    fields = dict(decoder.decode(payload, raw=True))
                    if status := fields.get(b"grpc-status"):
                        return Answer(int(status), body)
        return Answer("closed")


@dataclass
class Log:
    """The answers and waiting times of one caller.

    Args:
        waits: The start of each check by the monotonic clock, and the seconds until its answer,
            without the time that ghealth or the caller waited for a free processor.
        wrong: The answers that were not expected.
        on_the_wall: The longest wait in seconds, including the time without a processor.
    """

    waits: list[tuple[float, float]] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    on_the_wall: float = 0.0

    def longest(self, since: float = 0.0, until: float = float("inf")) -> float:
        """Return the longest wait, in seconds, of the checks that began in a period."""
        return max((wait for at, wait in self.waits if since <= at < until), default=0.0)


class Caller:
    """Checks repeatedly in a thread, from `start` to `stop`.

    Args:
        name: The caller's name in the log.
        port: The server's port.
        pid: The server's process id.
        headers: The header block of each check.
        message: The request with its gRPC frame header.
        right: Returns the answers that are correct at the time of the call.
    """

    def __init__(
        self,
        name: str,
        port: int,
        pid: int,
        headers: bytes,
        message: bytes,
        right: Callable[[], tuple[Answer, ...]],
    ) -> None:
        self.log = Log()
        self._name, self._port, self._pid = name, port, pid
        self._headers, self._message = headers, message
        self._right = right
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Start the checks."""
        self._thread.start()

    def stop(self) -> None:
        """Stop after the current check."""
        self._over.set()
        self._thread.join(TIMEOUT + 5)

    def _run(self) -> None:
        while not self._over.wait(PAUSE):
            began, taking = time.monotonic(), Wait(self._pid)
            right = self._right()
            try:
                answer = check(self._port, self._headers, self._message)
            except OSError as error:
                answer = Answer(type(error).__name__)
            self.log.waits.append((began, taking.seconds))
            self.log.on_the_wall = max(self.log.on_the_wall, taking.on_the_wall)
            if not self._over.is_set() and answer not in right + self._right():
                self.log.wrong.append(f"{self._name} {answer.code} {answer.data.hex()}".strip())


def callers(port: int, pid: int, right: Callable[[], tuple[Answer, ...]]) -> tuple[Caller, Caller]:
    """Return an ALB, and a kubelet that checks `liveness`.

    Args:
        port: The server's port.
        pid: The server's process id.
        right: Returns the answers that are correct for the ALB at the time of the call.
    """
    alive = Answer(0, SERVING)
    return (
        Caller("ALB", port, pid, ALB, frames.EMPTY_MESSAGE, right),
        Caller("liveness", port, pid, KUBELET, LIVENESS, lambda: (alive,)),
    )
