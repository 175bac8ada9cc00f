"""The events, in the cluster's seconds. A new event is a function and a row."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, NamedTuple

from bench.rollout import numbers
from bench.rollout.contenders import BRIDGES
from bench.rollout.fleet import Fleet
from bench.rollout.numbers import SCALE
from bench.rollout.pods import AS_DEPLOYED, BOTH_URLS, Pod, Recipe


async def after(seconds: float) -> None:
    """Wait for a number of the cluster's seconds."""
    await asyncio.sleep(seconds / SCALE)


async def restart(fleet: Fleet) -> None:
    """Replace every pod: add one, and delete an old one only when the new one is ready."""
    for old in fleet.current:
        await fleet.until_ready(await fleet.add_pod())
        fleet.remove_pod(old)
    await fleet.ended()


async def scale_in(fleet: Fleet) -> None:
    """Delete one pod, and wait until no node sends requests to it, also if it ended before."""
    fleet.remove_pod(fleet.current[0])
    await asyncio.gather(fleet.ended(), after(numbers.ROUTING_LAG[1] + 5))


async def scale_out(fleet: Fleet) -> None:
    """Add a pod whose configuration comes late."""
    await fleet.until_ready(await fleet.add_pod(numbers.SLOW_START))
    await after(5)


async def spot(fleet: Fleet) -> None:
    """Interrupt a spot node: notice, the pod is evicted and replaced, the machine ends."""
    notice = asyncio.create_task(after(numbers.SPOT_NOTICE))
    fleet.remove_pod(fleet.current[0])
    await fleet.until_ready(await fleet.add_pod())
    await notice


async def broken(break_: Callable[[Pod], None], count: int, fleet: Fleet) -> None:
    """Break this many pods for 100 s."""
    pods = fleet.current[:count]
    for pod in pods:
        break_(pod)
    await after(100)
    for pod in pods:
        pod.heal()
    await after(25)


async def drained_by_hand(fleet: Fleet) -> None:
    """Drain one Envoy through its admin port, end its machine 60 s later, and replace the pod."""
    pod = fleet.current[0]
    await pod.drain_by_hand()
    await after(60)
    await pod.kill()
    await fleet.until_ready(await fleet.add_pod())
    await after(5)


async def bridge_killed(fleet: Fleet) -> None:
    """Kill the bridges of one pod; the kubelet restarts them."""
    fleet.current[0].end_bridges()
    await after(40)


async def bridges_crash(fleet: Fleet) -> None:
    """End every bridge in all pods, without a restart for 60 s."""
    fleet.missing.update(BRIDGES)
    for pod in fleet.current:
        pod.end_bridges()
    await after(60)
    fleet.missing.clear()
    await after(25)


async def image_missing(fleet: Fleet) -> None:
    """Lose a node while the bridge's image cannot be pulled: the new pod does not become ready."""
    fleet.missing.update(BRIDGES)
    fleet.remove_pod(fleet.current[0])
    await fleet.until_ready(await fleet.add_pod())
    await fleet.ended()


ALL: Final = ("ghealth", "http", "pass-through", "stock", "default")
SIDECARS: Final = ("ghealth", "http", "pass-through", "stock", "twin")


class Event(NamedTuple):
    """A row of the table.

    Args:
        name: In results.
        title: In the table.
        happens: The event.
        planned: Whether no call may fail.
        bounded: Whether a broken or drained pod must be removed in time.
        contenders: The contenders that take part.
        recipe: How the gateways are deployed.
    """

    name: str
    title: str
    happens: Callable[[Fleet], Awaitable[None]]
    planned: bool = False
    bounded: bool = False
    contenders: tuple[str, ...] = ALL
    recipe: Recipe = AS_DEPLOYED


EVENTS: Final = (
    Event("restart", "rolling restart", restart, planned=True),
    Event(
        "restart-gateway-api",
        "rolling restart, Gateway API",
        restart,
        planned=True,
        recipe=Recipe(startup_probe=True),
    ),
    Event("scale-in", "scale in", scale_in, planned=True),
    Event("scale-out", "scale out, slow start", scale_out, planned=True),
    Event("spot", "spot interruption", spot, planned=True),
    Event("upgrade", "upgrade of the sidecar", restart, planned=True, contenders=SIDECARS),
    Event("hang", "one gateway hangs", partial(broken, Pod.hang, 1), bounded=True),
    Event("sick", "one gateway answers 503", partial(broken, Pod.sicken, 1), bounded=True),
    Event(
        "by-hand",
        "Envoy drained by hand, ghealth probes `/ready` too",
        drained_by_hand,
        bounded=True,
        recipe=Recipe(probe_url=BOTH_URLS),
    ),
    Event("all-sick", "all gateways answer 503", partial(broken, Pod.sicken, 3)),
    Event("bridge-killed", "sidecar killed in one pod", bridge_killed, contenders=SIDECARS),
    Event("bridges-crash", "sidecar crashes everywhere", bridges_crash, contenders=SIDECARS),
    Event("image-missing", "node lost, image missing", image_missing, contenders=SIDECARS),
    Event("bare", "scale in, Istio's own defaults", scale_in, recipe=Recipe(prestop=0, drain=5)),
    Event("gates-off", "rolling restart, readiness gates off", restart, recipe=Recipe(gates=False)),
    Event(
        "short-delay",
        "rolling restart, deregistration delay 30 s",
        restart,
        recipe=Recipe(deregistration=30),
    ),
)
