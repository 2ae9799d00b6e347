"""Workers that are told to stop waiting: what they have begun is whole, or has never been."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from handlers import remember, text
from postgres_server import PostgresServer
from storages import PostgresStorage
from telegram import Update
from telegram.ext import TypeHandler
from workers import persistence_of, workers

from kvpersist import ConflictError


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


async def waiting(bot: PostgresStorage, number: int = 1) -> None:
    """Wait until that many transactions of the schema wait for a document."""
    query = (
        "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
        "AND wait_event = 'advisory' AND query ~ $1"
    )
    while len(await asyncio.to_thread(bot.server.query, query, rf"{bot.schema}\M")) < number:
        pass


class Impatient:
    """A handler that stops waiting for a user whom another worker has."""

    def __init__(self, bot: PostgresStorage) -> None:
        self.bot = bot

    async def __call__(self, update: Update, context: Any) -> None:
        """Do so, and change the chat before and after."""
        await remember(update, context)
        loading = asyncio.create_task(context.application.persistence.load("user", [7]))
        await waiting(self.bot)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        await self.then(context)

    async def then(self, context: Any) -> None:
        """Go on."""
        context.chat_data["busy"] = True


async def test_an_update_that_stops_waiting_for_somebody_else_goes_on(
    bot: PostgresStorage,
) -> None:
    """As with ``asyncio.wait_for``: what it had is locked again, and all that it does is written."""
    script = persistence_of(bot)
    async with workers(bot, lambda: [TypeHandler(Update, Impatient(bot))], 1) as (worker,):
        async with script.edit("user", 7) as other:
            await worker.say("hi")
            other["x"] = 1
    await script.flush()
    assert bot.rows["chat/1"] == b'{"said":["hi"],"busy":true}'
    assert bot.rows["user/7"] == b'{"x":1}'


async def test_one_that_has_stopped_waiting_asks_again_before_it_overwrites(
    bot: PostgresStorage,
) -> None:
    """The server has taken back all of its locks: what others have done then is seen."""

    class Overtaken(Impatient):
        async def then(self, context: Any) -> None:
            async with other.edit("chat", 1) as data:
                data["theirs"] = True
            with pytest.raises(ConflictError, match="chat/1"):
                await context.application.persistence.load("user", [8])

    other, script = persistence_of(bot), persistence_of(bot)
    async with workers(bot, lambda: [TypeHandler(Update, Overtaken(bot))], 1) as (worker,):
        async with script.edit("user", 7):
            await worker.say("hi")
        (error,) = worker.errors
        assert isinstance(error, ConflictError)
        worker.errors.clear()
    await script.flush()
    await other.flush()
    assert bot.rows == {"chat/1": b'{"theirs":true}'}


async def test_one_that_is_cancelled_while_it_waits_keeps_nobody_waiting(
    bot: PostgresStorage,
) -> None:
    """The server does not go on waiting for it, with what it had."""

    async def ask(update: Update, context: Any) -> None:
        await remember(update, context)
        await context.application.persistence.load("user", [7])

    script = persistence_of(bot)
    handlers = [text(ask, "ask"), text(remember, "hi")]
    async with workers(bot, lambda: handlers, store={"hold_timeout": 300}) as (first, second):
        async with script.edit("user", 7):
            asking = asyncio.create_task(first.say("ask"))
            await waiting(bot)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            await second.say("hi")
    await script.flush()
    assert bot.rows["chat/1"] == b'{"said":["hi"]}'
