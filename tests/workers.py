"""Workers of one bot, all in this process: what one does the others must see."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from bots import Bot, Handler
from storages import PostgresStorage
from through import running

from kvpersist import KVPersistence


@asynccontextmanager
async def workers(
    storage: PostgresStorage,
    handlers: Callable[[], Sequence[Handler]],
    number: int = 2,
    *,
    store: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[list[Bot]]:
    """Run a number of workers, each with handlers of its own. No error may be left in any.

    Args:
        storage: What they share.
        handlers: Makes the handlers of one.
        number: Of workers.
        store: Options of the store.
        options: Those of the persistence, and of the builder.
    """
    options.setdefault("concurrent_updates", True)
    async with AsyncExitStack() as stack:
        yield [
            await stack.enter_async_context(
                running(storage.store(**(store or {})), *handlers(), shared=True, **options)
            )
            for _ in range(number)
        ]


async def waiting(storage: PostgresStorage) -> int:
    """Return how many transactions wait for documents that others have."""
    query = (
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
        "AND wait_event = 'advisory' AND query ~ $1"
    )
    name = rf"{storage.schema}\M"
    ((number,),) = await asyncio.to_thread(storage.server.query, query, name)
    return int(number)


async def until_waiting(storage: PostgresStorage, number: int = 1) -> None:
    """Wait until that many do."""
    while await waiting(storage) < number:
        pass


def persistence_of(storage: PostgresStorage, **options: Any) -> KVPersistence[Any, Any, Any]:
    """Return what a script or a web page would use, beside the workers."""
    return KVPersistence(storage.store(), shared=True, **options)
