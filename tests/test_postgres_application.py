"""PostgreSQL through an application that writes through, lazily and from all sides."""

from __future__ import annotations

import asyncio

import pytest
from handlers import remember, text
from postgres_server import PostgresServer
from storages import PostgresStorage
from through import running


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


async def test_an_update_is_in_the_database_when_it_is_processed(bot: PostgresStorage) -> None:
    """Another program reads it at that moment."""
    async with running(bot.store(), text(remember)) as app:
        await app.say("hello")
        assert bot.rows["chat/1"] == b'{"said":["hello"]}'


async def test_an_edit_is_seen_by_the_next_update(bot: PostgresStorage) -> None:
    """What another program wrote is in memory before the handlers run."""
    async with running(bot.store(), text(remember)) as app:
        await app.say("hello")
        bot.write("chat/1", '{"said": ["edited"]}')
        await app.say("again")
    assert bot.rows["chat/1"] == b'{"said":["edited","again"]}'


async def test_documents_are_read_when_they_are_used(bot: PostgresStorage) -> None:
    """With ``lazy=True`` no more of them are in memory than asked for, and none is lost."""
    async with running(bot.store(), text(remember), lazy=True, max_documents=1) as app:
        for chat_id in (1, 2, 3):
            await app.say("one", chat_id=chat_id)
    async with running(
        bot.store(), text(remember), lazy=True, max_documents=1, concurrent_updates=True
    ) as app:
        await asyncio.gather(*(app.say("two", chat_id=chat_id) for chat_id in (1, 2, 3)))
    for chat_id in (1, 2, 3):
        assert bot.rows[f"chat/{chat_id}"] == b'{"said":["one","two"]}'
