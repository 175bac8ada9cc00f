import asyncio
import time

import pytest

from ghealth.turns import Turns
from tests.support.virtual import in_virtual_time


def now() -> float:
    return asyncio.get_running_loop().time()


@in_virtual_time
async def test_what_comes_in_time_is_the_result() -> None:
    """A wait ends with what it waited for."""
    assert await Turns(0.1).wait(asyncio.sleep(0.9, "there"), 10) == "there"


@in_virtual_time
async def test_turns_that_are_used_up_end_a_wait() -> None:
    """A wait lasts its turns, less what had gone of the first when it began."""
    turns = Turns(0.1)
    other = asyncio.create_task(turns.wait(asyncio.sleep(0.15), 10))
    await asyncio.sleep(0.05)
    started = now()
    with pytest.raises(TimeoutError):
        await turns.wait(asyncio.Event().wait(), 10)
    assert now() - started == pytest.approx(0.95)
    await other


@in_virtual_time
async def test_each_wait_has_its_own_turns() -> None:
    """The end of one wait is not the end of another."""
    turns = Turns(0.1)
    short, long = (asyncio.create_task(turns.wait(asyncio.Event().wait(), n)) for n in (2, 5))
    started = now()
    await asyncio.wait((short, long), return_when=asyncio.FIRST_COMPLETED)
    assert now() - started == pytest.approx(0.2)
    assert isinstance(short.exception(), TimeoutError)
    assert not long.done()
    await asyncio.wait((long,))
    assert now() - started == pytest.approx(0.5)
    assert isinstance(long.exception(), TimeoutError)


@in_virtual_time
async def test_with_nobody_waiting_there_is_no_timer() -> None:
    """After the last wait the loop is left alone."""
    turns = Turns(0.1)
    await turns.wait(asyncio.sleep(0.05), 10)
    await asyncio.sleep(1)
    assert turns._timer is None
    assert turns._left == {}


async def test_time_in_which_nothing_ran_is_one_turn() -> None:
    """A process that was stopped for long finds its waits as they were, but for one turn."""
    turns = Turns(0.01)
    wait = asyncio.create_task(turns.wait(asyncio.Event().wait(), 10))
    await asyncio.sleep(0)
    time.sleep(0.5)  # noqa: ASYNC251 - as a SIGSTOP holds up the whole process
    for _ in range(3):
        await asyncio.sleep(0)
    assert not wait.done()
    wait.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait


@in_virtual_time
async def test_a_cancelled_wait_is_no_timeout() -> None:
    """Who is cancelled while waiting is cancelled, and leaves nothing."""
    turns = Turns(0.1)
    wait = asyncio.create_task(turns.wait(asyncio.Event().wait(), 10))
    await asyncio.sleep(0.05)
    wait.cancel()
    with pytest.raises(asyncio.CancelledError):
        await wait
    assert turns._left == {}
