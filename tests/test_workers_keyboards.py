"""A button that one worker has sent works in all of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bots import press_update, text_update
from handlers import text
from postgres_server import PostgresServer
from storages import PostgresStorage, rows_of
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Message, Update
from telegram.ext import CallbackQueryHandler, InvalidCallbackData
from through import until
from workers import workers

from kvpersist import workers as workers_module

OPTIONS: dict[str, Any] = {"arbitrary_callback_data": True}


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


async def offer(update: Update, context: Any) -> None:
    """Send buttons with data."""
    assert update.effective_chat is not None
    buttons = [InlineKeyboardButton(name, callback_data=(name, 1)) for name in ("tea", "cake")]
    buttons.append(InlineKeyboardButton("link", url="https://example.org"))
    await context.bot.send_message(
        update.effective_chat.id, "?", reply_markup=InlineKeyboardMarkup.from_row(buttons)
    )


async def take(update: Update, context: Any) -> None:
    """Note the data of a button, and of all that are below the message."""
    query = update.callback_query
    assert query is not None
    context.chat_data.setdefault("pressed", []).append(
        "invalid" if isinstance(query.data, InvalidCallbackData) else query.data
    )
    if isinstance(query.message, Message):
        assert query.message.reply_markup is not None
        (row,) = query.message.reply_markup.inline_keyboard
        context.chat_data["seen"] = [str(button.callback_data) for button in row[:2]]


async def take_once(update: Update, context: Any) -> None:
    """Note the data of a button, and let it work no more."""
    await take(update, context)
    if not isinstance(update.callback_query.data, InvalidCallbackData):  # type: ignore[union-attr]
        context.drop_callback_data(update.callback_query)


def _handlers() -> list[Any]:
    return [text(offer), CallbackQueryHandler(take)]


async def test_a_button_works_in_another_worker(bot: PostgresStorage) -> None:
    """Again and again, with the data of the other buttons, and nothing is left in memory."""
    async with workers(bot, _handlers, 3, **OPTIONS) as (first, second, third):
        await first.say("offer")
        (message,) = first.telegram.sent
        for turn, worker in enumerate((second, third, first, second)):
            await worker.receive(press_update(message, turn % 2))
            assert worker.cache.persistence_data == ([], {})
            assert len(worker.cache._keyboard_data) == 0
    row = bot.rows["chat/1"]
    tea, cake = b'{"$tuple":["tea",1]}', b'{"$tuple":["cake",1]}'
    assert row.startswith(b'{"pressed":[' + b",".join([tea, cake, tea, cake]))
    assert row.endswith(b"""\"seen":["('tea', 1)","('cake', 1)"]}""")
    assert len(rows_of(bot, "callback/")) == 1


async def test_a_press_writes_nothing_of_the_keyboard(bot: PostgresStorage) -> None:
    """So that thousands who press the same one do not wait for each other."""
    async with workers(bot, _handlers, **OPTIONS) as (first, second):
        await first.say("offer")
        before = [row for row in bot.all_columns() if row[0].startswith("callback/")]
        await second.receive(press_update(first.telegram.sent[0]))
        assert [row for row in bot.all_columns() if row[0].startswith("callback/")] == before


async def test_one_that_was_dropped_works_nowhere(bot: PostgresStorage) -> None:
    """Neither where it was sent nor where it was dropped, though it comes twice at once."""

    def handlers() -> list[Any]:
        return [text(offer), CallbackQueryHandler(take_once)]

    async with workers(bot, handlers, **OPTIONS) as (first, second):
        await first.say("offer")
        (message,) = first.telegram.sent
        await asyncio.gather(
            second.receive(press_update(message)), first.receive(press_update(message))
        )
        await first.receive(press_update(message, 1))
    assert rows_of(bot, "callback/") == {}
    assert bot.rows["chat/1"].startswith(b'{"pressed":[{"$tuple":["tea",1]},"invalid","invalid"]')


async def test_two_who_drop_the_same_in_two_chats_both_go_on(bot: PostgresStorage) -> None:
    """An inline keyboard is in many chats; nobody locks it, and it can be gone but once."""
    inside = asyncio.Event()
    met: list[int] = []

    async def meet(update: Update, context: Any) -> None:
        met.append(1)
        if len(met) == 2:
            inside.set()
        await inside.wait()
        await take_once(update, context)

    def handlers() -> list[Any]:
        return [text(offer), CallbackQueryHandler(meet)]

    async with workers(bot, handlers, **OPTIONS) as (first, second):
        await first.say("offer")
        (message,) = first.telegram.sent
        await asyncio.gather(
            first.receive(press_update({**message, "chat": {"id": 2, "type": "private"}})),
            second.receive(press_update({**message, "chat": {"id": 3, "type": "private"}})),
        )
    assert rows_of(bot, "callback/") == {}
    for chat_id in (2, 3):
        assert bot.rows[f"chat/{chat_id}"].startswith(b'{"pressed":[{"$tuple":["tea",1]}]')


async def test_one_that_a_job_has_sent_works_everywhere(bot: PostgresStorage) -> None:
    """It is written at once, since no update is there to write it."""
    async with workers(bot, _handlers, **OPTIONS) as (first, second):
        message = await first.ask(("tea", 1), ("cake", 1))
        await until(lambda: bool(rows_of(bot, "callback/")))
        await second.receive(press_update(message))
    assert b'["tea",1]' in bot.rows["chat/1"]


async def test_buttons_in_a_message_that_is_answered_are_known(bot: PostgresStorage) -> None:
    """As PTB puts them into the messages that an update shows."""
    seen: list[object] = []

    async def look(update: Update, _: Any) -> None:
        assert update.message is not None
        if (replied := update.message.reply_to_message) is not None:
            assert replied.reply_markup is not None
            seen.append(replied.reply_markup.inline_keyboard[0][0].callback_data)

    async with workers(bot, lambda: [text(offer, "offer"), text(look, "x")], **OPTIONS) as both:
        await both[0].say("offer")
        (message,) = both[0].telegram.sent
        await both[1].receive(text_update("x", reply_to_message=message))
    assert seen == [("tea", 1)]


async def test_data_that_is_not_its_own_is_invalid(bot: PostgresStorage) -> None:
    """Also with buttons of nobody, forged ones, and rows that are no keyboards."""
    async with workers(bot, _handlers, **OPTIONS) as (first, second):
        await first.say("offer")
        (message,) = first.telegram.sent
        button = message["reply_markup"]["inline_keyboard"][0][0]
        button["callback_data"] = "x" * 64
        await second.receive(press_update(message))
        assert b'"invalid"' in bot.rows["chat/1"]
        bot.write(f"callback/{'y' * 32}", '{"queries": {}}')
        button["callback_data"] = "y" * 64
        await second.receive(press_update(message))
        bot.write(f"callback/{'z' * 32}", '{"no": "keyboard"}')
        button["callback_data"] = "z" * 64
        await second.receive(press_update(message))
        (error,) = second.errors
        assert str(error).startswith("callback/zzz")
        second.errors.clear()


async def test_the_oldest_are_removed_when_they_are_too_many(
    bot: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For the bot as a whole, PTB's own limit; and the ids of old updates are forgotten."""
    monkeypatch.setattr(workers_module, "_TRIM_EVERY", 0.0)
    options: dict[str, Any] = {"arbitrary_callback_data": 3, "deduplicate": True}
    async with workers(bot, _handlers, **options) as (first, second):
        for _ in range(3):
            await first.say("offer")
            await second.say("offer")
        newest = second.telegram.sent[-1]
        bot.write("update/1", "{}")
        await first.save()
        assert len(rows_of(bot, "callback/")) == 3
        assert "update/1" not in bot.rows
        assert len(rows_of(bot, "update/")) == 6
        await first.receive(press_update(newest))
    assert b'"invalid"' not in bot.rows["chat/1"]


@pytest.mark.parametrize("options", [{"deduplicate": True}, OPTIONS])
async def test_only_what_is_kept_is_looked_for(
    bot: PostgresStorage, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """Ids of updates, keyboards, or both."""
    monkeypatch.setattr(workers_module, "_TRIM_EVERY", 0.0)
    async with workers(bot, _handlers, 1, **options) as (worker,):
        bot.write("update/1", "{}")
        await worker.save()
    assert ("update/1" in bot.rows) != ("deduplicate" in options)


async def test_data_that_cannot_be_stored_is_told(bot: PostgresStorage) -> None:
    """That keyboard has no row; the rest of the update is written."""

    async def spoil(update: Update, context: Any) -> None:
        assert update.effective_chat is not None
        context.chat_data["x"] = 1
        button = InlineKeyboardButton("?", callback_data=object())
        await context.bot.send_message(
            update.effective_chat.id, "?", reply_markup=InlineKeyboardMarkup.from_button(button)
        )

    async with workers(bot, lambda: [text(spoil)], 1, **OPTIONS) as (worker,):
        await worker.say("x")
        assert [str(error).partition("/")[0] for error in worker.errors] == ["callback"]
        worker.errors.clear()
        await worker.ask(object())
        await until(lambda: bool(worker.errors))
        worker.errors.clear()
    assert bot.rows["chat/1"] == b'{"x":1}'
    assert rows_of(bot, "callback/") == {}
