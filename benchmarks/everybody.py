"""All who take part."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from chats import Chats
from contenders import (
    Alone,
    App,
    Contender,
    Dict,
    Documents,
    KVPersist,
    Limit,
    Pickle,
    PickleFiles,
)
from measure import IS_QUICK, say
from peers import Django, Mongo
from row_per_message import Table

ALL: tuple[type[Contender], ...] = (
    Alone,
    Limit,
    KVPersist,
    Documents,
    Table,
    Dict,
    Pickle,
    PickleFiles,
    Django,
    Mongo,
)
EVERYBODY = ALL if not IS_QUICK else (Alone, Limit, KVPersist, Documents, Table, Pickle)
"""Those that begin soon, where it is only to be seen that everything runs."""


@asynccontextmanager
async def stored(
    kinds: Iterable[type[Contender]], folder: Path, chats: Chats
) -> AsyncIterator[list[Contender]]:
    """Give contenders who have stored these chats."""
    async with AsyncExitStack() as ends:
        contenders = []
        for kind in kinds:
            say(f"  {kind.name}: {len(chats):,} chats")
            contender = kind(folder)
            ends.push_async_callback(contender.end)
            await contender.store(chats)
            contenders.append(contender)
        yield contenders


@asynccontextmanager
async def bots(
    kinds: Iterable[type[Contender]], folder: Path, chats: Chats
) -> AsyncIterator[dict[str, App]]:
    """Give a bot with these chats for each contender, by name."""
    gc.disable()  # while there is more and more that is no garbage
    async with stored(kinds, folder, chats) as contenders:
        apps = {contender.name: await contender.start() for contender in contenders}
        gc.enable()
        yield apps
        for app in apps.values():
            await app.shutdown()
