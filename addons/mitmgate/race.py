"""Two attempts at once: the first good one wins, the other is ended.

``hedge`` says when; this only runs them. Promise: whichever way it ends, also when the client leaves, no task is left
behind and no answer stays open.
"""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

type Attempting[T] = Coroutine[Any, Any, T]


async def race[T](
    first: Attempting[T],
    second: Callable[[], Attempting[T] | None],
    delay_s: float,
    is_good: Callable[[T], bool],
    drop: Callable[[T], None],
) -> T:
    """Return the first good outcome of *first* and, where that takes longer than *delay_s*, of *second*.

    *second* is called when it is due; None = not now. Where neither is good the outcome of *first* is returned. *drop*
    gets an outcome that came and is not wanted.
    """
    loop = asyncio.get_running_loop()
    running = [loop.create_task(first)]
    wanted: asyncio.Task[T] | None = None
    try:
        await asyncio.wait(running, timeout=delay_s)
        if not running[0].done() and (more := second()):
            running.append(loop.create_task(more))
        wanted = await _first_good(running, is_good)
        return wanted.result()
    finally:
        await _end(running, wanted, drop)


async def _first_good[T](running: list[asyncio.Task[T]], is_good: Callable[[T], bool]) -> asyncio.Task[T]:
    waiting = set(running)
    while waiting:
        done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        for task in running:  # in order: where both came at once the first is kept
            if task in done and is_good(task.result()):
                return task
    return running[0]


async def _end[T](running: list[asyncio.Task[T]], wanted: asyncio.Task[T] | None, drop: Callable[[T], None]) -> None:
    losers = [task for task in running if task is not wanted]
    for task in losers:
        task.cancel()
    if losers:
        await asyncio.wait(losers)
    for task in losers:
        if not task.cancelled() and task.exception() is None:
            drop(task.result())
