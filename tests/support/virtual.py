"""Virtual time, which stands still while a task runs, and jumps when all tasks wait."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import ParamSpec

import looptime

P = ParamSpec("P")

LONGEST = 4 * 3600
"""Virtual seconds after which a test fails: what it waits for will not come. Without the limit, a
test in which all tasks wait would hang."""


def in_virtual_time(story: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Run a coroutine function on a separate loop whose time is virtual.

    Args:
        story: The coroutine function; `asyncio.sleep(3600)` in it takes no time.
    """

    async def limited(*args: P.args, **kwargs: P.kwargs) -> None:
        async with asyncio.timeout(LONGEST):
            await story(*args, **kwargs)

    @functools.wraps(story)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
            runner.run(limited(*args, **kwargs))

    return run
