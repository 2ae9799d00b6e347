"""What other programs write, and when the bot takes it over."""

from __future__ import annotations

import asyncio
import json
from ast import literal_eval
from collections.abc import Collection
from typing import Any

import pytest
from bots import NEVER, Bot, build
from handlers import remember, text
from storages import KV, Storage, running
from stores import WatchedStore
from telegram import Update
from telegram.ext import (
    CommandHandler,
    ContextTypes,
)

from kvpersist import (
    DecodeError,
    KVPersistence,
    MemoryStore,
)


class ChatData(dict[str, Any]):
    """A bot's own class for the data of a chat."""


class BotData(dict[str, Any]):
    """A bot's own class for the data of the bot, not empty to begin with."""

    def __init__(self) -> None:
        super().__init__(started=True)


async def look(_: Update, context: Any) -> None:
    """Tell the chat what is known of it, its user and the bot."""
    await context.bot.send_message(
        0, repr((context.chat_data, context.user_data, context.bot_data))
    )


async def seen(bot: Bot, chat_id: int = 1) -> Any:
    """Return what the next handler sees in the data of the chat, its user and the bot."""
    await bot.say("/look", chat_id)
    (answer,) = bot.answers()
    return literal_eval(answer)


LOOK = CommandHandler("look", look)
"""Shows a handler's view."""


async def test_the_next_handler_sees_what_another_program_wrote(kv: KV) -> None:
    """An edited row is taken over before a handler runs, however its JSON is laid out."""
    async with running(kv, text(remember), LOOK) as bot:
        await bot.say("x")
        await bot.save()
        kv.write("chat/1", ' {\n "said" : [ "edited" ] } ')
        kv.write("user/1", '{"name":"Ann"}')
        kv.write("bot", '{"motd": {"$tuple": ["hi", 1]}}')
        assert await seen(bot) == ({"said": ["edited"]}, {"name": "Ann"}, {"motd": ("hi", 1)})
        await bot.say("y")
        await bot.save()
        assert kv.rows["chat/1"] == b'{"said":["edited","y"]}'
        kv.write("chat/1", '{"again": 1}')
        assert (await seen(bot))[0] == {"again": 1}
        kv.write("chat/1", '{"and again": 2}')
        assert (await seen(bot))[0] == {"and again": 2}


async def test_data_that_was_loaded_from_an_edited_row_is_not_written_back(kv: KV) -> None:
    """A row with spaces in its JSON stays as it was laid out while its value is the same."""
    kv_text = '{ "a" : 1 }'
    async with running(kv, text(remember)) as bot:
        await bot.say("x")
    kv.write("chat/1", kv_text)
    kv.write("bot", kv_text)
    async with running(kv, LOOK) as bot:
        assert await seen(bot) == ({"a": 1}, {"said": ["x"]}, {"a": 1})
        await bot.save()
        kv.write("user/1", kv_text)
        assert (await seen(bot))[1] == {"a": 1}
    assert kv.rows == dict.fromkeys(["bot", "chat/1", "user/1"], kv_text.encode())


async def test_a_row_that_another_program_deleted_is_empty_for_the_next_handler(kv: KV) -> None:
    """What is not there any more is not in memory any more either."""
    async with running(kv, text(remember), LOOK) as bot:
        await bot.say("x")
        await bot.save()
        for key in ("chat/1", "user/1", "bot"):
            kv.write(key, None)
        assert await seen(bot) == ({}, {}, {})
        kv.write("chat/1", '{"back": true}')
        assert (await seen(bot))[0] == {"back": True}


async def test_a_row_that_another_program_made_is_there_for_the_first_handler(kv: KV) -> None:
    """A chat that the bot has never seen has the data that was put there for it."""
    async with running(kv, text(remember), LOOK) as bot:
        await bot.say("x")
        await bot.save()
        kv.write("chat/-5", '{"prepared": 1}')
        assert (await seen(bot, -5))[0] == {"prepared": 1}
        await bot.save()
        assert kv.rows["chat/-5"] == b'{"prepared": 1}'


async def test_a_job_sees_what_another_program_wrote(kv: KV) -> None:
    """Data is refreshed before a job as before a handler."""
    found: list[Any] = []

    async def tick(context: Any) -> None:
        found.append(dict(context.chat_data))

    async with running(kv, jobs=True, started=True) as bot:
        kv.write("chat/5", '{"x": 1}')
        assert bot.app.job_queue is not None
        await bot.app.job_queue.run_once(tick, when=3600, chat_id=5).run(bot.app)
        kv.write("chat/5", '{"x": 2}')
        await bot.app.job_queue.run_once(tick, when=3600, chat_id=5).run(bot.app)
        assert found == [{"x": 1}, {"x": 2}]


async def test_a_custom_class_is_refreshed_in_place(kv: KV) -> None:
    """What is taken over goes into the instance that the application holds."""
    context_types: ContextTypes[Any, Any, Any, Any] = ContextTypes(
        chat_data=ChatData, bot_data=BotData
    )
    async with running(kv, text(remember), context_types=context_types) as bot:
        await bot.say("x")
        await bot.save()
        held = bot.app.chat_data[1], bot.app.bot_data
        kv.write("chat/1", '{"said": ["edited"]}')
        kv.write("bot", "{}")
        await bot.say("y")
        assert held == ({"said": ["edited", "y"]}, {"said": ["y"]})
        assert bot.app.chat_data[1] is held[0]
        assert bot.app.bot_data is held[1]
        assert type(held[0]) is ChatData


async def test_unsaved_memory_is_never_overwritten(
    kv: KV, caplog: pytest.LogCaptureFixture
) -> None:
    """If bot and another program changed a document the bot wins, and says so in the log."""
    async with running(kv, text(remember)) as bot:
        await bot.say("x")
        await bot.save()
        await bot.say("y")
        for key in ("chat/1", "user/1", "bot"):
            kv.write(key, '{"edited": 1}')
        await bot.say("z")
        await bot.save()
        for key in ("chat/1", "user/1", "bot"):
            assert kv.rows[key] == b'{"said":["x","y","z"]}'
            assert f"{key}: changed by another program and by the bot" in caplog.text


async def test_a_new_documents_unsaved_content_is_not_overwritten(kv: KV) -> None:
    """A chat that was never saved keeps what it has when another program makes its row."""
    async with running(kv, text(remember)) as bot:
        await bot.say("x")
        kv.write("chat/1", '{"prepared": 1}')
        await bot.say("y")
        assert bot.app.chat_data[1] == {"said": ["x", "y"]}


async def test_dropped_data_is_not_refreshed_from_its_old_row(storage: Storage) -> None:
    """Between `drop_chat_data` and the next run the old row is of no interest any more."""
    async with running(storage, text(remember), LOOK) as bot:
        await bot.say("x")
        await bot.save()
        bot.app.drop_chat_data(1)
        bot.app.drop_user_data(1)
        assert (await seen(bot))[:2] == ({}, {})


async def test_data_of_a_value_that_cannot_be_stored_is_not_overwritten(kv: KV) -> None:
    """A change that cannot be written is a change all the same: memory keeps it."""
    unstorable = object()

    async def spoil(_: Update, context: Any) -> None:
        context.chat_data["bad"] = unstorable

    async with running(kv, CommandHandler("spoil", spoil), text(remember)) as bot:
        await bot.say("x")
        await bot.save()
        await bot.say("/spoil")
        kv.write("chat/1", '{"edited": 1}')
        await bot.say("y")
        assert bot.app.chat_data[1] == {"said": ["x", "y"], "bad": unstorable}
        del bot.app.chat_data[1]["bad"]


@pytest.mark.parametrize("has_changed", [False, True])
async def test_a_refresh_beside_a_handler_at_work(kv: KV, has_changed: bool) -> None:
    """Of two handlers of a chat the second sees an edit, unless the first changed something."""
    at_work, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: Update, context: Any) -> None:
        if has_changed:
            context.chat_data["slow"] = "begun"
        at_work.set()
        await go_on.wait()
        context.chat_data["slow"] = "done"

    handlers = CommandHandler("slow", slow), text(remember)
    async with running(kv, *handlers, started=True, concurrent_updates=True) as bot:
        await bot.say("x")
        await bot.save()
        working = asyncio.create_task(bot.say("/slow"))
        await at_work.wait()
        kv.write("chat/1", '{"edited": 1}')
        await bot.say("y")
        go_on.set()
        await working
    expected: dict[str, Any] = {"said": ["x", "y"]} if has_changed else {"edited": 1, "said": ["y"]}
    assert json.loads(kv.rows["chat/1"]) == {**expected, "slow": "done"}


class GatedStore(WatchedStore):
    """Holds back what it has read while `answer` is cleared; `reading` says that it does."""

    def __init__(self, rows: dict[str, bytes]) -> None:
        memory = MemoryStore()
        memory.rows = rows
        super().__init__(memory)
        self.answer = asyncio.Event()
        self.answer.set()
        self.reading = asyncio.Event()

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        rows = await super().read(keys)
        if not self.answer.is_set():
            self.reading.set()
            await self.answer.wait()
        return rows


async def test_what_changes_while_the_store_is_read_is_not_overwritten() -> None:
    """What a handler changes while another's refresh waits for the store is kept."""
    rows: dict[str, bytes] = {}
    store = GatedStore(rows)
    at_work, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: Update, context: Any) -> None:
        at_work.set()
        await go_on.wait()
        context.chat_data["slow"] = "done"

    handlers = [CommandHandler("slow", slow), text(remember)]
    bot = build(KVPersistence(store, update_interval=NEVER), handlers, concurrent_updates=True)
    async with bot.app:
        await bot.say("x")
        await bot.save()
        working = asyncio.create_task(bot.say("/slow"))
        await at_work.wait()
        rows["chat/1"] = b'{"edited": 1}'
        rows["bot"] = b'{"edited": 1}'
        store.answer.clear()
        refreshing = asyncio.create_task(bot.say("y"))
        await store.reading.wait()
        go_on.set()
        await working
        store.answer.set()
        await refreshing
        assert bot.app.chat_data[1] == {"said": ["x", "y"], "slow": "done"}
        assert bot.app.bot_data == {"edited": 1, "said": ["y"]}
    assert bot.errors == []


async def test_a_write_that_overtakes_a_refresh_is_not_undone_by_it() -> None:
    """What was read before the bot's own write is older than what memory holds."""
    rows: dict[str, bytes] = {}
    store = GatedStore(rows)
    persistence = KVPersistence(store, update_interval=NEVER)
    memory: dict[str, Any] = {"a": 1}
    await persistence.update_chat_data(1, {"a": 1})
    store.answer.clear()
    refreshing = asyncio.create_task(persistence.refresh_chat_data(1, memory))
    await store.reading.wait()
    memory["a"] = 2
    await persistence.update_chat_data(1, {"a": 2})
    store.answer.set()
    await refreshing
    assert memory == {"a": 2}
    await persistence.flush()


async def test_an_edit_that_cannot_be_read_stops_the_handler_with_its_name(kv: KV) -> None:
    """A row that another program broke is an error for the next handler, and is left alone."""
    async with running(kv, text(remember)) as bot:
        await bot.say("x")
        await bot.save()
        kv.write("chat/1", '{"$broken":1}')
        await bot.say("y")
        await bot.save()
        (error,) = bot.errors
        assert isinstance(error, DecodeError)
        assert error.key == "chat/1"
        assert bot.app.chat_data[1] == {"said": ["x"]}
        assert kv.rows["chat/1"] == b'{"$broken":1}'
        bot.errors.clear()
