"""What an update of a worker's costs in round trips to the server: counted, not timed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

import pytest_asyncio
from bots import Bot
from handlers import ANY, conversation, nothing, text
from postgres_server import PostgresServer
from storages import PostgresStorage
from tcp_proxy import TcpProxy, proxied
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.ext import CallbackQueryHandler
from workers import persistence_of, workers

CHANGED, NOTHING_CHANGED, BOT_CHANGED = 3, 2, 4
"""Lock and read, write, commit. Without the write. With another lock, that of `bot`."""


class Wire(NamedTuple):
    """A schema that is reached over a network which counts."""

    bot: PostgresStorage
    proxy: TcpProxy

    async def trips(self, what: Callable[[], Awaitable[object]]) -> int:
        """Return how often something was sent, after a first time that prepares statements."""
        await what()
        before = self.proxy.requests
        await what()
        return self.proxy.requests - before


@pytest_asyncio.fixture
async def wire(postgres: PostgresServer) -> AsyncIterator[Wire]:
    async with proxied(postgres.port) as proxy:
        yield Wire(PostgresStorage(postgres, port=proxy.port), proxy)


async def count(_: Update, context: Any) -> None:
    context.chat_data["count"] = context.chat_data.get("count", 0) + 1
    context.user_data["count"] = context.user_data.get("count", 0) + 1


async def count_all(update: Update, context: Any) -> None:
    await count(update, context)
    context.bot_data["count"] = context.bot_data.get("count", 0) + 1


async def test_a_known_chat_that_changes_costs_three(wire: Wire) -> None:
    """So does one that is new."""
    async with workers(wire.bot, lambda: [text(count)], 1) as (worker,):
        assert await wire.trips(lambda: worker.say("hi")) == CHANGED
        chats = iter((2, 3))
        assert await wire.trips(lambda: worker.say("hi", chat_id=next(chats))) == CHANGED


async def test_an_update_that_changes_nothing_costs_two(wire: Wire) -> None:
    """The locks have to be taken and given back."""
    async with workers(wire.bot, lambda: [text(nothing)], 1) as (worker,):
        assert await wire.trips(lambda: worker.say("hi")) == NOTHING_CHANGED


async def test_bot_data_that_changes_costs_one_more(wire: Wire) -> None:
    """It is locked at the end, and merged; nothing if it was locked before."""

    async def lock(_: Update, context: Any) -> None:
        await context.application.persistence.lock("bot")
        context.bot_data["count"] = context.bot_data.get("count", 0) + 1

    async with workers(wire.bot, lambda: [text(count_all, "a"), text(lock, "b")]) as (one, other):
        assert await wire.trips(lambda: one.say("a")) == BOT_CHANGED
        await other.say("a")  # after which the one does not have it as it is stored
        assert await wire.trips(lambda: one.say("a")) == BOT_CHANGED
        assert await wire.trips(lambda: one.say("b")) == BOT_CHANGED
    assert wire.bot.rows["bot"] == b'{"count":7}'


async def test_what_others_change_in_bot_data_costs_nothing(wire: Wire) -> None:
    """It comes with the documents of the update, if it is not known."""
    async with workers(wire.bot, lambda: [text(count, "a"), text(count_all, "b")]) as (one, other):
        await other.say("b")
        await one.say("a")
        await other.say("b")
        before = wire.proxy.requests
        await one.say("a")
        assert wire.proxy.requests - before == CHANGED


async def test_a_step_of_a_conversation_costs_three(wire: Wire) -> None:
    """Its state is a row like the others, and is written with them."""
    async with workers(wire.bot, lambda: [conversation("order", 0, 1, 2, 3), text(count)], 1) as (
        worker,
    ):
        await worker.say("/start")
        assert await wire.trips(lambda: worker.say("on")) == CHANGED


async def test_many_conversations_cost_no_more(wire: Wire) -> None:
    """All states that an update may need are locked and read at once."""

    def handlers() -> list[Any]:
        return [*(conversation(f"order{number}", 0, 1, 2) for number in range(20)), text(count)]

    async with workers(wire.bot, handlers, 1) as (worker,):
        await worker.say("/start")
        assert await wire.trips(lambda: worker.say("on")) == CHANGED


async def test_the_record_of_updates_costs_a_write(wire: Wire) -> None:
    """It is a row that each update adds; it is written again if it is there, for a standby."""
    async with workers(wire.bot, lambda: [text(nothing)], 1, deduplicate=True) as (worker,):
        assert await wire.trips(lambda: worker.say("hi")) == CHANGED
    async with workers(wire.bot, lambda: [ANY], 1, deduplicate=True) as (worker,):
        assert await wire.trips(lambda: _again(worker)) == CHANGED


async def _again(worker: Bot) -> None:
    await worker.receive({"update_id": 1})


async def test_a_button_costs_three(wire: Wire) -> None:
    """One that is sent, and one that is pressed: its keyboard is read with the documents."""

    async def send(update: Update, context: Any) -> None:
        await count(update, context)
        button = InlineKeyboardButton("press", callback_data={"n": 1})
        await context.bot.send_message(1, "?", reply_markup=InlineKeyboardMarkup([[button]]))

    pressed = CallbackQueryHandler(count, pattern=dict)
    async with workers(
        wire.bot, lambda: [text(send), pressed], 1, arbitrary_callback_data=True
    ) as (worker,):
        assert await wire.trips(lambda: worker.say("hi")) == CHANGED
        message = worker.telegram.sent[-1]
        assert await wire.trips(lambda: worker.press(message)) == CHANGED
    assert wire.bot.rows["chat/1"] == b'{"count":4}'


async def test_an_edit_costs_three(wire: Wire) -> None:
    """From a script, when it is connected."""
    script = persistence_of(wire.bot)

    async def edit() -> None:
        async with script.edit("user", 5) as data:
            data["count"] = data.get("count", 0) + 1

    assert await wire.trips(edit) == CHANGED
    await script.flush()


async def test_the_data_of_somebody_else_costs_one_more(wire: Wire) -> None:
    """As in a transfer between two users."""

    async def give(_: Update, context: Any) -> None:
        async with context.application.persistence.edit("user", 2) as other:
            other["coins"] = other.get("coins", 0) + 1
            context.user_data["coins"] = context.user_data.get("coins", 0) - 1

    async with workers(wire.bot, lambda: [text(give)], 1) as (worker,):
        assert await wire.trips(lambda: worker.say("hi")) == CHANGED + 1


async def test_two_tasks_that_ask_at_once_cost_one_more_each(wire: Wire) -> None:
    """They take turns on the connection, which goes on."""

    async def load(update: Update, context: Any) -> None:
        persistence = context.application.persistence
        await asyncio.gather(*(persistence.load("user", [number]) for number in (2, 3)))
        await count(update, context)

    times = {"timeout": 1.0, "hold_timeout": 1.0}
    async with workers(wire.bot, lambda: [text(load)], 1, store=times) as (worker,):
        assert await wire.trips(lambda: worker.say("hi")) == CHANGED + 2
