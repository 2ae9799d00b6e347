"""All who take part."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
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
async def bots(
    kinds: Iterable[type[Contender]], folder: Path, chats: Chats
) -> AsyncIterator[dict[str, App]]:
    """Give a bot with these chats for each contender, by name."""
    contenders = [kind(folder) for kind in kinds]
    apps = {}
    gc.disable()  # while there is more and more that is no garbage
    for contender in contenders:
        say(f"  {contender.name}: {len(chats):,} chats")
        await contender.store(chats)
        apps[contender.name] = await contender.start()
    gc.enable()
    yield apps
    for contender in contenders:
        await apps[contender.name].shutdown()
        await contender.end()
