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
from through import settle
from workers import persistence_of, until_waiting, workers

from kvpersist import ConflictError, KVPersistence, UnavailableError


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


class Impatient:
    """A handler that stops waiting for a user whom another worker has."""

    def __init__(self, bot: PostgresStorage) -> None:
        self.bot = bot

    async def __call__(self, update: Update, context: Any) -> None:
        """Do so, and change the chat before and after."""
        await remember(update, context)
        loading = asyncio.create_task(context.application.persistence.load("user", [7]))
        await until_waiting(self.bot)
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
    """As with ``asyncio.wait_for``: it locks again what it had, and all of it is written."""
    script = persistence_of(bot)
    handlers = [TypeHandler(Update, Impatient(bot))]
    async with workers(bot, lambda: handlers, 1) as (one,), script.edit("user", 7) as other:
        await one.say("hi")
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
    async with (
        workers(bot, lambda: handlers, 1) as (first,),
        workers(bot, lambda: handlers, 1, store={"hold_timeout": 1}) as (second,),
        script.edit("user", 7),
    ):
        asking = asyncio.create_task(first.say("ask"))
        await until_waiting(bot)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await second.say("hi")
    await script.flush()
    assert bot.rows["chat/1"] == b'{"said":["hi"]}'


async def test_an_edit_that_fails_while_a_task_of_it_waits_keeps_nobody_waiting(
    bot: PostgresStorage,
) -> None:
    """Likewise; the task is told that it is over."""
    tasks: list[asyncio.Task[None]] = []

    async def also() -> None:
        async with script.edit("user", 7):
            pass

    async def fail() -> None:
        async with script.edit("user", 1):
            tasks.append(asyncio.create_task(also()))
            await until_waiting(bot)
            raise RuntimeError("on purpose")

    script, other = persistence_of(bot), persistence_of(bot)
    impatient = KVPersistence(bot.store(hold_timeout=1), shared=True)
    async with other.edit("user", 7):
        with pytest.raises(RuntimeError, match="on purpose"):
            await fail()
        with pytest.raises(UnavailableError, match="is over"):
            await tasks[0]
        async with impatient.edit("user", 1) as data:
            data["x"] = 1
    for persistence in (script, other, impatient):
        await persistence.flush()
    assert bot.rows == {"user/1": b'{"x":1}'}


async def test_a_task_that_waits_for_a_connection_of_what_is_over_takes_none(
    bot: PostgresStorage,
) -> None:
    """It is told so when there is one, which goes to whoever is next."""
    store = bot.store(pool_size=1)
    store.share()
    await store.open()
    async with store.transaction() as first:
        await first.lock(["user/1"])
        async with store.transaction() as second:
            task = asyncio.create_task(second.lock(["user/2"]))
            await settle()
    with pytest.raises(UnavailableError, match="is over"):
        await task
    async with store.transaction() as third:
        await third.lock(["user/1", "user/2"])
    await store.close()
