"""The callers, well-behaved and hostile."""

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any, Final

import grpc
import h2.exceptions
from grpc_health.v1 import health_pb2, health_pb2_grpc

from ghealth.health import ALB_USER_AGENT, Code
from tests.flood.bursts import BURSTS, CALL, UNREAD_WATCH, request, truncated
from tests.soak.model import ALLOWANCE, Tells, now
from tests.soak.scene import Scene
from tests.support import wire

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
        fixed = {"liveness": Tells.ALIVE.healthy, "sick": Tells.NEVER.healthy}
        return found[""] if found == found | fixed and len(found) > len(fixed) else str(found)

    async def raw(
        self, *data: bytes, agent: str = ALB_USER_AGENT, late: float = 0.0, **options: Any
    ) -> str:
        """Check as an ALB does: on a new connection, with a host in place of the authority.

        Args:
            data: The message, which may be missing.
            agent: The user agent.
            late: Seconds at most between the headers and the message.
            options: Those of `wire.call`.
        """
        options |= {"headers": (("host", "AWSALB"), ("user-agent", agent))}
        options |= {"tls": self.scene.secret.client if self.tls else None}
        options |= {"without": (":authority",), "late": self.rng.uniform(0, late)}
        certificates = self.scene.secret.certificates
        newest = len(certificates) - 1
        reply = await wire.call(self.scene.port(tls=self.tls), *data, **options)
        if self.tls and reply.certificate not in certificates[newest:]:
            return "an old certificate"
        if reply.code:
            return Code(reply.code).name
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


def alb(tells: Tells, *data: bytes, **options: Any) -> Turn:
    """Return the turn of a caller that checks by `Hand.raw`."""
    return asks(tells, lambda hand: hand.raw(*data, **options))


async def short_deadline(hand: Hand) -> None:
    """Check with a deadline shorter than a probe may take, when there is a connection."""
    model = hand.scene.model
    await hand.heard(hand.check("liveness"))
    asked = now()
    answer = await hand.heard(hand.check(deadline=hand.rng.uniform(0.15, 0.45)))
    # The second if ghealth had not even read the request before the deadline.
    if answer not in ("DEADLINE_EXCEEDED", "UNAVAILABLE"):
        model.judge(hand.kind, Tells.HURRIED, answer, asked)
    elif not model.stood(asked, now()) and model.machine.withheld_since(asked) < ALLOWANCE:
        model.missed += 1


async def watch(hand: Hand) -> None:
    """Watch for a while; each message is judged, and between messages the last one."""
    model, asked, end = hand.scene.model, now(), now() + hand.rng.uniform(0.5, 6)
    call = hand.stub.Watch(health_pb2.HealthCheckRequest())

    async def message() -> str:
        reply = await call.read()
        return "the end" if reply is grpc.aio.EOF else text_of(reply)

    blamed = len(model.wrong)
    last = await hand.heard(asyncio.wait_for(message(), TIMEOUT))
    model.judge(hand.kind, Tells.STATUS, last, asked)
    reading = asyncio.ensure_future(message())
    while last.startswith("OK") and len(model.wrong) == blamed and now() < end:
        if (await asyncio.wait({reading}, timeout=ALLOWANCE / 2))[0]:
            answer = await hand.heard(reading)
            model.judge(hand.kind, Tells.STATUS, answer, None)
            if answer == last:
                model.blame(hand.kind, answer, "for the second time")
            last, reading = answer, asyncio.ensure_future(message())
        elif hand.scene.over.is_set():
            break
        else:
            model.believes(hand.kind, last)
    reading.cancel()
    call.cancel()


Make = Callable[[Random], bytes]


def sends(longest: float, make: Make) -> Turn:
    """Return the turn of a caller that sends data and disconnects before the answer.

    It comes from one of `STRANGERS` addresses: ghealth cuts off one that does so too often.
    """

    async def turn(hand: Hand) -> None:
        with contextlib.suppress(OSError):
            address = (f"127.0.0.{2 + hand.rng.randrange(STRANGERS)}", 0)
            port = hand.scene.port(tls=hand.tls)
            _, writer = await asyncio.open_connection("127.0.0.1", port, local_addr=address)
            writer.write(make(hand.rng))
            await hand.scene.rest(hand.rng.uniform(0, longest))
            if hand.rng.choice((True, False)):
                sock = writer.get_extra_info("socket")  # a RST instead of a FIN
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()

    return turn


def three_calls(rng: Random) -> bytes:
    """Return three calls of one method."""
    method = rng.choice(("Check", "Watch", "List"))
    return request(1, 3, 5, path=f"/grpc.health.v1.Health/{method}")


def burst(rng: Random) -> bytes:
    """Return broken or hostile HTTP/2 of any family."""
    return rng.choice(list(BURSTS.values()))(rng)


_sent = ssl.MemoryBIO()
_handshake = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), _sent, server_hostname="a")
with contextlib.suppress(ssl.SSLWantReadError):
    _handshake.do_handshake()
HELLO: Final = _sent.read()
"""The first message of a TLS handshake."""


def half_a_handshake(rng: Random) -> bytes:
    """Return the beginning of a TLS handshake, or garbage after it."""
    garbage = HELLO + rng.randbytes(rng.randrange(4000))
    return rng.choice((garbage, CALL, HELLO[: rng.randrange(len(HELLO))]))


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


EMPTY: Final = wire.EMPTY_MESSAGE
ALB_PATH, GRPC = "/AWS.ALB/healthcheck", "grpc-c/1"
LIVENESS, SICK = wire.framed(b"\x0a\x08liveness"), wire.framed(b"\x0a\x04sick")

CALLERS: Final[dict[str, Caller]] = {
    "kept connection": Caller(5, 0.1, asks(Tells.STATUS, Hand.check)),
    "new connection": Caller(2, 0.3, alb(Tells.STATUS, EMPTY, agent=GRPC)),
    "short deadline": Caller(2, 0.1, short_deadline),
    "alb": Caller(5, 0.2, alb(Tells.CODE, EMPTY)),
    "alb, default path": Caller(3, 0.2, alb(Tells.DEFAULT_PATH, EMPTY, path=ALB_PATH)),
    "alb, another path": Caller(2, 0.2, alb(Tells.DEFAULT_PATH, EMPTY, path="/")),
    "no message": Caller(2, 0.2, alb(Tells.CODE)),
    "no message, grpc-c": Caller(1, 0.2, alb(Tells.STATUS, agent=GRPC)),
    "no message, no end": Caller(2, 0.2, alb(Tells.MALFORMED, ends=False)),
    "malformed message": Caller(1, 0.3, alb(Tells.MALFORMED, b"\0\0\0\0\1\x0a")),
    "liveness": Caller(2, 0.1, asks(Tells.ALIVE, partial(Hand.check, service="liveness"))),
    "liveness, message late": Caller(3, 0.1, alb(Tells.ALIVE, LIVENESS, late=0.4)),
    "sick service": Caller(2, 0.1, asks(Tells.NEVER, partial(Hand.check, service="sick"))),
    "sick, message late": Caller(3, 0.1, alb(Tells.NEVER, SICK, late=0.4, agent=GRPC)),
    "unknown service": Caller(1, 0.2, asks(Tells.UNKNOWN, partial(Hand.check, service="unknown"))),
    "list": Caller(2, 0.2, asks(Tells.STATUS, Hand.list)),
    "watch": Caller(15, 1, watch),
    "tls, kept connection": Caller(2, 0.1, asks(Tells.STATUS, Hand.check), tls=True),
    "tls, new connection": Caller(1, 0.3, alb(Tells.STATUS, EMPTY, agent=GRPC), tls=True),
    "tls, alb": Caller(3, 0.2, alb(Tells.CODE, EMPTY), tls=True),
    "tls, watch": Caller(2, 1, watch, tls=True),
    # The callers from here on do not wait for an answer.
    "watch, never read": Caller(8, 0.5, sends(4, lambda _: UNREAD_WATCH)),
    "silence": Caller(50, 0.5, sends(4, lambda _: b"")),
    "half a request": Caller(20, 0.5, sends(4, truncated)),
    "gone in mid-call": Caller(3, 0.2, sends(0.1, three_calls)),
    "bursts": Caller(1, 0.3, sends(0.3, burst)),
    "tls, half a handshake": Caller(5, 0.5, sends(3, half_a_handshake), tls=True),
}


def channel_to(scene: Scene, *, tls: bool) -> grpc.aio.Channel:
    """Open a channel with its own connection."""
    address = f"127.0.0.1:{scene.port(tls=tls)}"
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_http_proxy", 0)]
    if not tls:
        return grpc.aio.insecure_channel(address, options=options)
    credentials = grpc.ssl_channel_credentials(scene.secret.authority.cert_pem.bytes())
    return grpc.aio.secure_channel(address, credentials, options=options)


async def work(scene: Scene, kind: str, number: int) -> None:
    """Repeat the turn."""
    rng, caller = scene.rng(f"{kind} {number}"), CALLERS[kind]
    await scene.rest(rng.uniform(0, 0.5))  # not all at once
    async with channel_to(scene, tls=caller.tls) as channel:
        hand = Hand(kind, scene, rng, channel, caller.tls)
        while not scene.over.is_set():
            await caller.turn(hand)
            await scene.rest(rng.uniform(0, caller.pause))
