"""The callers, well-behaved and hostile."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from random import Random
from typing import Any, Final

import grpc
import h2.exceptions
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth.health import ALB_USER_AGENT
from ghealth.server.servicer import MESSAGE_TIMEOUT
from tests.flood.bursts import CALL, OPEN_CALL, UNREAD_WATCH, request
from tests.soak.model import (
    ALIVE,
    ALLOWANCE,
    CODE,
    DEFAULT_PATH,
    MALFORMED,
    NEVER,
    STATUS,
    UNKNOWN,
    Tells,
    now,
)
from tests.soak.scene import Scene
from tests.support import frames, wire

TIMEOUT: Final = 10.0
STRANGERS: Final = 20


@dataclass
class Hand:
    """One caller of a kind, with its own connection, which it keeps."""

    kind: str
    scene: Scene
    rng: Random
    channel: grpc.aio.Channel
    tls: bool = False

    @property
    def port(self) -> int:
        """The port that it connects to."""
        return self.scene.tls_port if self.tls else self.scene.port

    @property
    def stub(self) -> Any:
        """The methods of the service, on its connection."""
        return health_pb2_grpc.HealthStub(self.channel)

    async def heard(self, asking: Awaitable[str]) -> str:
        """Return the answer or the error as a text."""
        try:
            return await asking
        except grpc.aio.AioRpcError as error:
            return error.code().name
        except (AssertionError, OSError, h2.exceptions.ProtocolError) as error:
            return f"no answer: {error!r}"

    async def check(self, service: str = "", deadline: float = TIMEOUT) -> str:
        """Check on the caller's connection."""
        request = health_pb2.HealthCheckRequest(service=service)
        return text_of(await self.stub.Check(request, timeout=deadline))

    async def list(self) -> str:
        """List; only the gateway's status in it is judged."""
        reply = await self.stub.List(health_pb2.HealthListRequest(), timeout=TIMEOUT)
        found = {service: text_of(status) for service, status in reply.statuses.items()}
        fixed = {"liveness": ALIVE.healthy, "sick": NEVER.healthy}
        return found[""] if found == found | fixed and len(found) > len(fixed) else str(found)

    async def message_late(self, service: str) -> str:
        """Check, with a message that comes after the headers but well within its second."""

        async def messages() -> AsyncIterator[Any]:
            await asyncio.sleep(self.rng.uniform(0, 0.4))
            yield health_pb2.HealthCheckRequest(service=service)

        check = self.channel.stream_unary(
            wire.CHECK,
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )
        return text_of(await check(messages(), timeout=TIMEOUT))

    async def new_channel(self) -> str:
        """Check as the kubelet does."""
        async with channel_to(self.scene, tls=self.tls) as channel:
            return await Hand(self.kind, self.scene, self.rng, channel).check()

    async def raw(
        self, *data: bytes, agent: str = ALB_USER_AGENT, path: str = wire.CHECK, ends: bool = True
    ) -> str:
        """Check as an ALB does: on a new connection, with a host in place of the authority."""
        headers = (("host", "AWSALB"), ("user-agent", agent))
        secret, newest = self.scene.secret, self.scene.secret.newest
        reply = await wire.call(
            self.port,
            *data,
            path=path,
            ends=ends,
            headers=headers,
            without=(":authority",),
            tls=secret.client if self.tls else None,
        )
        if self.tls and secret.number(reply.certificate) < newest:
            return f"certificate {secret.number(reply.certificate)} after {newest}"
        if reply.code:
            return next(code.name for code in grpc.StatusCode if code.value[0] == reply.code)
        return text_of(health_pb2.HealthCheckResponse.FromString(reply.data[5:]))


def text_of(reply: Any) -> str:
    """Return an OK answer as a text."""
    return f"OK {health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status)}"


Turn = Callable[[Hand], Awaitable[None]]


def asks(tells: Tells, ask: Callable[[Hand], Awaitable[str]]) -> Turn:
    """Return the turn of a caller that checks once; the answer is judged."""

    async def turn(hand: Hand) -> None:
        asked = now()
        hand.scene.model.judge(hand.kind, tells, await hand.heard(ask(hand)), asked)

    return turn


def asks_late(tells: Tells, service: str) -> Turn:
    """Return the turn of a caller whose message is late, but in time unless ghealth is stopped.

    A message that is too late counts as missing: INVALID_ARGUMENT.
    """

    async def turn(hand: Hand) -> None:
        asked = now()
        answer = await hand.heard(hand.message_late(service))
        model = hand.scene.model
        late = model.machine.withheld_since(asked) + model.stood(asked, now())
        if late < MESSAGE_TIMEOUT / 2:
            model.judge(hand.kind, tells, answer, asked)

    return turn


OUT_OF_TIME: Final = ("DEADLINE_EXCEEDED", "UNAVAILABLE")
"""The second if ghealth had not even read the request before the deadline."""


async def short_deadline(hand: Hand) -> None:
    """Check with a deadline shorter than a probe may take, when there is a connection."""
    await hand.heard(hand.check("liveness"))
    asked = now()
    answer = await hand.heard(hand.check(deadline=hand.rng.uniform(0.15, 0.45)))
    if answer not in OUT_OF_TIME:
        hand.scene.model.judge(hand.kind, STATUS, answer, asked, hurried=True)
    elif not hand.scene.model.stood(asked, now()) and (
        hand.scene.model.machine.withheld_since(asked) < ALLOWANCE
    ):
        hand.scene.model.missed += 1


async def watch(hand: Hand) -> None:
    """Watch for a while; each message is judged, and between messages the last one."""
    model, asked, end = hand.scene.model, now(), now() + hand.rng.uniform(0.5, 6)
    call = hand.stub.Watch(health_pb2.HealthCheckRequest())

    async def message() -> str:
        reply = await call.read()
        return "the end" if reply is grpc.aio.EOF else text_of(reply)

    last, blamed = "", len(model.wrong)
    reading = asyncio.ensure_future(message())
    while now() < end and not hand.scene.over.is_set() and len(model.wrong) == blamed:
        if (await asyncio.wait({reading}, timeout=ALLOWANCE / 2))[0]:
            answer = await hand.heard(reading)
            model.judge(hand.kind, STATUS, answer, None if last else asked)
            if answer == last:
                model.blame(hand.kind, answer, "for the second time")
            last, reading = answer, asyncio.ensure_future(message())
        elif last:
            model.believes(hand.kind, last)
        else:
            model.waits(hand.kind, asked)
    reading.cancel()
    call.cancel()


def sends(longest: float, make: Callable[[Random], bytes]) -> Turn:
    """Return the turn of a caller that sends data and disconnects before the answer.

    It comes from one of `STRANGERS` addresses: ghealth cuts off one that does so too often.
    """

    async def turn(hand: Hand) -> None:
        with contextlib.suppress(OSError):
            address = (f"127.0.0.{2 + hand.rng.randrange(STRANGERS)}", 0)
            _, writer = await asyncio.open_connection("127.0.0.1", hand.port, local_addr=address)
            writer.write(make(hand.rng))
            await hand.scene.rest(hand.rng.uniform(0, longest))
            if hand.rng.choice((True, False)):
                sock = writer.get_extra_info("socket")  # a RST instead of a FIN
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    return turn


STREAMS: Final = range(1, 200, 2)
RESETS: Final = request(*STREAMS) + b"".join(map(frames.reset, STREAMS))
STARTS: Final = (b"", CALL, OPEN_CALL, b"GET / HTTP/1.1\r\n")
METHODS: Final = (frames.CHECK, frames.WATCH, "/grpc.health.v1.Health/List")


def client_hello() -> bytes:
    """Return the first message of a TLS handshake."""
    received, sent = ssl.MemoryBIO(), ssl.MemoryBIO()
    handshake = ssl.create_default_context().wrap_bio(received, sent, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        handshake.do_handshake()
    return sent.read()


HELLO: Final = client_hello()


@dataclass(frozen=True)
class Caller:
    """A kind of caller: how many, the longest pause between two turns, and what a turn is.

    Args:
        workers: Their number.
        pause: Seconds at most.
        turn: Makes one turn.
        tls: Whether it connects to the port with TLS.
    """

    workers: int
    pause: float
    turn: Turn
    tls: bool = False


CALLERS: Final[dict[str, Caller]] = {
    "kept connection": Caller(5, 0.1, asks(STATUS, Hand.check)),
    "new channel": Caller(2, 0.3, asks(STATUS, Hand.new_channel)),
    "short deadline": Caller(2, 0.1, short_deadline),
    "alb": Caller(5, 0.2, asks(CODE, lambda hand: hand.raw(wire.EMPTY_MESSAGE))),
    "alb, default path": Caller(
        3,
        0.2,
        asks(DEFAULT_PATH, lambda hand: hand.raw(wire.EMPTY_MESSAGE, path="/AWS.ALB/healthcheck")),
    ),
    "no message": Caller(2, 0.2, asks(CODE, Hand.raw)),
    "no message, grpc-c": Caller(1, 0.2, asks(STATUS, lambda hand: hand.raw(agent="grpc-c/1"))),
    "alb, another path": Caller(
        2, 0.2, asks(DEFAULT_PATH, lambda hand: hand.raw(wire.EMPTY_MESSAGE, path="/"))
    ),
    "no message, no end": Caller(2, 0.2, asks(MALFORMED, lambda hand: hand.raw(ends=False))),
    "malformed message": Caller(1, 0.3, asks(MALFORMED, lambda hand: hand.raw(b"\0\0\0\0\1\x0a"))),
    "liveness": Caller(2, 0.1, asks(ALIVE, lambda hand: hand.check("liveness"))),
    "liveness, message late": Caller(3, 0.1, asks_late(ALIVE, "liveness")),
    "sick service": Caller(2, 0.1, asks(NEVER, lambda hand: hand.check("sick"))),
    "sick, message late": Caller(3, 0.1, asks_late(NEVER, "sick")),
    "unknown service": Caller(1, 0.2, asks(UNKNOWN, lambda hand: hand.check("unknown"))),
    "list": Caller(2, 0.2, asks(STATUS, Hand.list)),
    "watch": Caller(15, 1, watch),
    "tls, kept connection": Caller(2, 0.1, asks(STATUS, Hand.check), tls=True),
    "tls, new channel": Caller(1, 0.3, asks(STATUS, Hand.new_channel), tls=True),
    "tls, alb": Caller(3, 0.2, asks(CODE, lambda hand: hand.raw(wire.EMPTY_MESSAGE)), tls=True),
    "tls, watch": Caller(2, 1, watch, tls=True),
    # The callers from here on do not wait for an answer.
    "watch, never read": Caller(8, 0.5, sends(4, lambda _: UNREAD_WATCH)),
    "silence": Caller(50, 0.5, sends(4, lambda _: b"")),
    "half a request": Caller(20, 0.5, sends(4, lambda rng: CALL[: rng.randrange(len(CALL))])),
    "gone in mid-call": Caller(
        3, 0.2, sends(0.1, lambda rng: request(1, 3, 5, path=rng.choice(METHODS)))
    ),
    "garbage": Caller(
        2, 0.3, sends(0.3, lambda rng: rng.choice(STARTS) + rng.randbytes(rng.randrange(1, 4000)))
    ),
    "tls, half a handshake": Caller(
        3, 0.5, sends(3, lambda rng: HELLO[: rng.randrange(len(HELLO))]), tls=True
    ),
    "tls, garbage": Caller(
        2,
        0.3,
        sends(0.3, lambda rng: rng.choice((HELLO, CALL)) + rng.randbytes(rng.randrange(4000))),
        tls=True,
    ),
    "rapid resets": Caller(1, 0.3, sends(0.3, lambda _: RESETS)),
}
CONNECTIONS: Final = sum(caller.workers for caller in CALLERS.values()) + 3  # of new channels


def channel_to(scene: Scene, *, tls: bool) -> grpc.aio.Channel:
    """Open a channel with its own connection."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    if not tls:
        return grpc.aio.insecure_channel(f"127.0.0.1:{scene.port}", options=options)
    credentials = grpc.ssl_channel_credentials(scene.secret.authority.cert_pem.bytes())
    return grpc.aio.secure_channel(f"127.0.0.1:{scene.tls_port}", credentials, options=options)


async def work(scene: Scene, kind: str, number: int) -> None:
    """Repeat the turn."""
    rng, caller = scene.rng(f"{kind} {number}"), CALLERS[kind]
    await scene.rest(rng.uniform(0, 0.5))  # not all at once
    async with channel_to(scene, tls=caller.tls) as channel:
        hand = Hand(kind, scene, rng, channel, caller.tls)
        while not scene.over.is_set():
            await caller.turn(hand)
            await scene.rest(rng.uniform(0, caller.pause))
