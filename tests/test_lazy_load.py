"""`KVPersistence.load` and `documents`: the data of others than those of an update."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from storages import SqliteStorage
from stores import WatchedStore, stored
from telegram import Update
from telegram.ext import CommandHandler, ContextTypes
from through import counting, rows, running

from kvpersist import (
    ConfigurationError,
    KVPersistence,
    NotInMemoryError,
    SqliteStore,
)


class SlowStore(SqliteStore):
    """Holds back what it has read of the row `slow` until `answer` is set.

    Attributes:
        reading: Set while it does.
        asked: The keys of each `read`.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.slow = ""
        self.answer = asyncio.Event()
        self.reading = asyncio.Event()
        self.asked: list[list[str]] = []

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        self.asked.append([*keys])
        found = await super().read(keys)
        if self.slow in keys:
            self.reading.set()
            await self.answer.wait()
        return found


@pytest.fixture
def file(tmp_path: Path) -> SqliteStorage:
    """A file that another program writes too."""
    return SqliteStorage(tmp_path)


async def fill(file: SqliteStorage, number: int = 3) -> SlowStore:
    """Return the store of a file with some chats."""
    store = SlowStore(file.path)
    await store.open()
    await store.apply({f"chat/{at}": b'{"on":"A"}' for at in range(1, number + 1)})
    await store.close()
    return store


def calling(act: Callable[[Any], Awaitable[None]]) -> Any:
    """Return a handler of the command ``/act``."""

    async def handle(_: Update, context: Any) -> None:
        await act(context)

    return CommandHandler("act", handle)


async def test_the_error_says_what_to_do(store: WatchedStore) -> None:
    """Both ways, as they are written in a handler."""
    async with running(store, lazy=True) as bot:
        with pytest.raises(NotInMemoryError) as caught:
            len(bot.app.user_data[7])
    assert "`await application.persistence.load('user', 7)`" in str(caught.value)
    assert "application.persistence.documents('user')" in str(caught.value)


@pytest.mark.parametrize("lazy", [False, True])
async def test_there_are_two_scopes(store: WatchedStore, *, lazy: bool) -> None:
    """A wrong name is an error, not a load of nothing."""
    async with running(store, lazy=lazy) as bot:
        persistence: Any = bot.app.persistence
        with pytest.raises(ConfigurationError, match='"chat" or "user", not \'users\''):
            await persistence.load("users", 7)
        with pytest.raises(ConfigurationError, match='"chat" or "user", not \'bot\''):
            [found async for found in persistence.documents("bot")]


async def test_a_script_can_look_through_documents(file: SqliteStorage) -> None:
    """Without an application; after `flush` a bot can have the file, also if not all was read."""
    await fill(file, 1_000)
    script: KVPersistence[Any, Any, Any] = KVPersistence(file.path)
    found = {chat_id: data async for chat_id, data in script.documents("chat")}
    assert found == {chat_id: {"on": "A"} for chat_id in range(1, 1_001)}
    async for _ in script.documents("chat"):
        break
    await script.flush()
    async with running(SqliteStore(file.path), counting("count")) as bot:
        await bot.say("/count", 1)
    assert stored(file.path)["chat/1"] == {"on": "A", "count": 1}


class ChatData:
    """A bot's own class; a new one cannot be stored."""

    def __init__(self) -> None:
        self.lock: object = object()


async def test_a_new_document_need_not_be_one_that_can_be_stored(store: WatchedStore) -> None:
    """No document is like a new one then; what a handler has put right is written."""

    async def renew(context: Any) -> None:
        context.application.drop_chat_data(1)
        context.chat_data.lock = None

    types: ContextTypes[Any, Any, Any, Any] = ContextTypes(chat_data=ChatData)
    async with running(store, calling(renew), lazy=True, context_types=types) as bot:
        await bot.say("/act", 1)
    assert rows(store)["chat/1"] == b'{"lock":null}'
