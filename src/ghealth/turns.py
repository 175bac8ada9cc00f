"""Waits that time in which the process did not run cannot use up."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

Result = TypeVar("Result")


class Turns:
    """Bounds waits by turns of the event loop, all of them with one timer.

    A stop of the whole process (SIGSTOP) uses up one turn, however long it was. One timer serves
    all waits, since one for each would make a Check a tenth slower; with nobody waiting there is
    none.

    Args:
        seconds: How long a turn is.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._left: dict[asyncio.Timeout, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, awaitable: Awaitable[Result], turns: int) -> Result:
        """Wait for something for so many turns, the first of which may have begun before.

        Args:
            awaitable: What to wait for; it is cancelled when its turns are used up.
            turns: Their number.

        Raises:
            TimeoutError: If they are used up.
        """
        async with asyncio.timeout(None) as limit:
            self._left[limit] = turns
            if self._timer is None:
                self._begin()
            try:
                return await awaitable
            finally:
                self._left.pop(limit, None)

    def _begin(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(self._seconds, self._end)

    def _end(self) -> None:
        self._timer = None
        now = asyncio.get_running_loop().time()
        for limit, left in list(self._left.items()):
            self._left[limit] = left - 1
            if left == 1:
                del self._left[limit]
                limit.reschedule(now)
        if self._left:
            self._begin()
