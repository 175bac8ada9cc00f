"""Virtual time, which stands still while a task runs, and jumps when all tasks wait."""

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import ParamSpec

import looptime

P = ParamSpec("P")


def in_virtual_time(story: Callable[P, Coroutine[None, None, None]]) -> Callable[P, None]:
    """Run a coroutine function on a separate loop whose time is virtual.

    Args:
        story: The coroutine function; `asyncio.sleep(3600)` in it takes no time.
    """

    @functools.wraps(story)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=looptime.new_event_loop) as runner:
            runner.run(story(*args, **kwargs))

    return run
