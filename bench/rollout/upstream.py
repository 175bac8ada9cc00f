"""An ALB's connection to a target: HTTP/2 without TLS, many requests at once, and no retries.

gRPC libraries retry refused requests, which would hide the errors that an ALB's client gets.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, cast

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions

_FRAME_HEADER: Final = 9
_GOAWAY: Final = 7

Headers = dict[str, str]


class Connection(asyncio.Protocol):
    """A connection; created by `open_connection`."""

    def __init__(self) -> None:
        self.usable = True
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
        self._answers: dict[int, tuple[asyncio.Future[Headers], Headers]] = {}
        self._buffer = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send a client's preface."""
        self._transport = cast("asyncio.Transport", transport)
        self._h2.initiate_connection()
        self._flush()

    async def request(self, headers: Sequence[tuple[str, str]], body: bytes = b"") -> Headers:
        """Send one request; return the headers and trailers of its answer.

        Raises:
            ConnectionError: If the connection ends, or the target resets the request, first.
        """
        number = self._h2.get_next_available_stream_id()
        answer: asyncio.Future[Headers] = asyncio.get_running_loop().create_future()
        self._answers[number] = (answer, {})
        self._h2.send_headers(number, headers, end_stream=not body)
        if body:
            self._h2.send_data(number, body, end_stream=True)
        self._flush()
        try:
            return await answer
        finally:
            if self._answers.pop(number, None) and not self._transport.is_closing():
                self._h2.reset_stream(number, h2.errors.ErrorCodes.CANCEL)
                self._flush()

    def data_received(self, data: bytes) -> None:
        """Receive frames, except a GOAWAY: h2 would accept no answer after it."""
        self._buffer += data
        frames = bytearray()
        while len(self._buffer) >= _FRAME_HEADER:
            size = _FRAME_HEADER + int.from_bytes(self._buffer[:3], "big")
            if len(self._buffer) < size:
                break
            frame, self._buffer = self._buffer[:size], self._buffer[size:]
            if frame[3] == _GOAWAY:
                self._goes_away(int.from_bytes(frame[9:13], "big") & 0x7FFFFFFF)
            else:
                frames += frame
        try:
            for event in self._h2.receive_data(bytes(frames)):
                self._take(event)
        except h2.exceptions.ProtocolError:
            self._transport.abort()
            return
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the open requests."""
        self.usable = False
        for number in list(self._answers):
            self._fail(number, exc)

    def close(self) -> None:
        """Close the connection and fail its open requests."""
        self._transport.abort()

    def _goes_away(self, last: int) -> None:
        self.usable = False
        for number in list(self._answers):
            if number > last:
                self._fail(number, None)

    def _take(self, event: h2.events.Event) -> None:
        number = getattr(event, "stream_id", None) or 0
        answer, headers = self._answers.get(number, (None, {}))
        match event:
            case h2.events.ResponseReceived() | h2.events.TrailersReceived():
                headers |= cast("Headers", dict(event.headers or ()))
            case h2.events.DataReceived():
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, number)
            case h2.events.StreamEnded() if answer:
                del self._answers[number]
                if not answer.done():
                    answer.set_result(headers)
            case h2.events.StreamReset() if answer:
                self._fail(number, None)

    def _fail(self, number: int, cause: Exception | None) -> None:
        answer, _ = self._answers.pop(number)
        if not answer.done():
            answer.set_exception(ConnectionResetError(str(cause or "reset")))

    def _flush(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(self._h2.data_to_send())


async def open_connection(host: str, port: int) -> Connection:
    """Connect to a target.

    Raises:
        OSError: If nothing listens.
    """
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, host, port)
    return connection
