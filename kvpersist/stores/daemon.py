"""What blocks, in a thread that keeps no program from ending."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")


def begin_in_daemon(function: Callable[[], T], discard: Callable[[T], None]) -> asyncio.Future[T]:
    """Begin to run `function` in a daemon thread of its own; return what will be its result.

    `discard`, which must not block, gets the result if nobody waits for it any more.
    """
    loop = asyncio.get_running_loop()
    outcome: asyncio.Future[T] = loop.create_future()

    def deliver(result: T) -> None:
        if outcome.done():
            discard(result)
        else:
            outcome.set_result(result)

    def fail(error: Exception) -> None:
        if not outcome.done():
            outcome.set_exception(error)

    def run() -> None:
        try:
            result = function()
        except Exception as error:  # noqa: BLE001  whatever it is, somebody is waiting for it
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(fail, error)
            return
        try:
            loop.call_soon_threadsafe(deliver, result)
        except RuntimeError:
            discard(result)

    threading.Thread(target=run, name="kvpersist:daemon", daemon=True).start()
    return outcome


async def until_done(future: asyncio.Future[T]) -> T:
    """Return a result, or raise, when it is known, also if whoever waits is cancelled meanwhile."""
    while not future.done():
        with suppress(asyncio.CancelledError):
            await asyncio.wait([future])
    return future.result()
