"""Many workers handle the updates of one bot, and behave as one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from bots import text_update
from handlers import ANY, nothing, remember, text
from postgres_server import PostgresServer
from storages import PostgresStorage
from telegram import Update
from telegram.ext import PersistenceInput, TypeHandler
from through import counting, running
from workers import persistence_of, workers

from kvpersist import ConflictError, EncodeError, NotInMemoryError, StoreInUseError


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


async def test_each_worker_goes_on_where_another_was(bot: PostgresStorage) -> None:
    """What one has written the next one reads, in all scopes, whichever gets the update."""
    async with workers(bot, lambda: [text(remember)]) as (first, second):
        await first.say("one")
        await second.say("two")
        await first.say("three")
        assert bot.rows == {
            "bot": b'{"said":["one","two","three"]}',
            "chat/1": b'{"said":["one","two","three"]}',
            "user/1": b'{"said":["one","two","three"]}',
        }


async def test_updates_of_one_chat_run_one_after_the_other(bot: PostgresStorage) -> None:
    """Counting loses nothing, though all workers get updates of the same chat at once."""

    async def count(_: Update, context: Any) -> None:
        number = context.chat_data.get("count", 0)
        await asyncio.sleep(0)
        context.chat_data["count"] = number + 1

    async with workers(bot, lambda: [TypeHandler(Update, count)], 3) as all_workers:
        await asyncio.gather(*(each.say(f"{turn}") for turn in range(8) for each in all_workers))
    assert bot.rows["chat/1"] == b'{"count":24}'


async def test_updates_of_one_chat_keep_their_order_in_a_worker(bot: PostgresStorage) -> None:
    """The first that came is the first that is handled."""
    async with workers(bot, lambda: [text(remember)], 1) as (worker,):
        await asyncio.gather(*(worker.say(f"{number}") for number in range(20)))
    said = b",".join(b'"%d"' % number for number in range(20))
    assert bot.rows["chat/1"] == b'{"said":[' + said + b"]}"


async def test_updates_of_different_chats_run_at_the_same_time(bot: PostgresStorage) -> None:
    """Each waits for the other, in the same worker and in another."""
    inside: list[int] = []
    all_inside = asyncio.Event()

    async def meet(update: Update, _: Any) -> None:
        assert update.effective_chat is not None
        inside.append(update.effective_chat.id)
        if len(inside) == 3:
            all_inside.set()
        await all_inside.wait()

    async with workers(bot, lambda: [TypeHandler(Update, meet)]) as (first, second):
        await asyncio.gather(
            first.say("a", chat_id=1), first.say("b", chat_id=2), second.say("c", chat_id=3)
        )
    assert sorted(inside) == [1, 2, 3]


async def test_an_update_that_fails_to_commit_has_never_been(bot: PostgresStorage) -> None:
    """Neither its chat nor ``bot_data`` keeps anything of it, in the store or in memory."""

    async def overtaken(update: Update, context: Any) -> None:
        await remember(update, context)
        if context.chat_data["said"] == ["one", "lost"]:
            await asyncio.to_thread(bot.write, "chat/1", '{"said": ["by somebody"]}')

    async with workers(bot, lambda: [TypeHandler(Update, overtaken)]) as (first, second):
        await first.say("one")
        await first.say("lost")
        (error,) = first.errors
        assert "chat/1" in str(error)
        first.errors.clear()
        await first.say("two")
        await second.say("three")
    assert bot.rows["chat/1"] == b'{"said":["by somebody","two","three"]}'
    assert bot.rows["bot"] == b'{"said":["one","two","three"]}'
    assert bot.rows["user/1"] == b'{"said":["one","two","three"]}'


async def test_handle_update_raises_what_kept_it_from_being_written(bot: PostgresStorage) -> None:
    """So that a server can leave the update to Telegram, which sends it again."""

    async def spoil(_: Update, context: Any) -> None:
        context.chat_data["x"] = 1
        await asyncio.to_thread(bot.write, "chat/1", "{}")

    async with workers(bot, lambda: [TypeHandler(Update, spoil)], 1) as (worker,):
        update = Update.de_json(text_update("hi"), worker.app.bot)
        app: Any = worker.app
        with pytest.raises(Exception, match="chat/1: written by somebody else"):
            await app.handle_update(update)


async def test_only_the_documents_of_the_update_are_in_memory(bot: PostgresStorage) -> None:
    """Another chat's are not, nor any when it is over, whatever other updates use."""
    seen: list[Any] = []
    go_on = asyncio.Event()
    is_inside = asyncio.Event()

    async def look(update: Update, context: Any) -> None:
        if update.effective_chat is not None and update.effective_chat.id == 1:
            is_inside.set()
            await go_on.wait()
        seen.append([*context.application.chat_data])

    async with workers(bot, lambda: [TypeHandler(Update, look)], 1) as (worker,):
        waiting = asyncio.create_task(worker.say("hi", chat_id=1))
        await is_inside.wait()
        with pytest.raises(NotInMemoryError, match="edit"):
            worker.app.chat_data[1]["x"] = 1
        await worker.say("hi", chat_id=2)
        go_on.set()
        await waiting
        assert seen == [[2], [1]]
        assert len(worker.app.chat_data) == 0
        assert 1 not in worker.app.chat_data


async def test_what_cannot_be_stored_is_told_and_the_rest_is_written(bot: PostgresStorage) -> None:
    """The row that has it stays as it was."""

    async def spoil(update: Update, context: Any) -> None:
        await remember(update, context)
        assert update.message is not None
        if update.message.text == "bad":
            context.chat_data["bad"] = object()

    async with workers(bot, lambda: [TypeHandler(Update, spoil)], 1) as (worker,):
        await worker.say("good")
        await worker.say("bad")
        (error,) = worker.errors
        assert isinstance(error, EncodeError)
        assert str(error).startswith('chat/1 → ["bad"]')
        worker.errors.clear()
    assert bot.rows["chat/1"] == b'{"said":["good"]}'
    assert bot.rows["user/1"] == b'{"said":["good","bad"]}'


async def test_a_handler_that_fails_keeps_what_it_has_changed(bot: PostgresStorage) -> None:
    """As with PTB; an error handler may change the same data, too."""

    async def fail(update: Update, context: Any) -> None:
        await remember(update, context)
        raise RuntimeError("on purpose")

    async with workers(bot, lambda: [TypeHandler(Update, fail)], 1) as (worker,):

        async def note(_: object, context: Any) -> None:
            context.chat_data["error"] = str(context.error)

        worker.app.add_error_handler(note)
        await worker.say("hi")
        assert [str(error) for error in worker.errors] == ["on purpose"]
        worker.errors.clear()
    assert bot.rows["chat/1"] == b'{"said":["hi"],"error":"on purpose"}'


async def test_an_update_waits_for_handlers_that_do_not_block(bot: PostgresStorage) -> None:
    """They are a part of it; a task of the bot's own is not, and is told so."""
    late: list[Exception] = []

    async def work(update: Update, context: Any) -> None:
        async def after() -> None:
            while True:
                await asyncio.sleep(0)
                try:
                    len(context.chat_data)
                except NotInMemoryError as error:
                    late.append(error)
                    return

        context.application.create_task(after(), update)
        for _ in range(10):
            await asyncio.sleep(0)
        await remember(update, context)

    async with workers(bot, lambda: [TypeHandler(Update, work, block=False)], 1) as (worker,):
        await worker.say("hi")
        assert bot.rows["chat/1"] == b'{"said":["hi"]}'
    assert len(late) == 1


async def test_a_chat_that_nobody_handles_gets_no_row(bot: PostgresStorage) -> None:
    """One that a handler has looked at gets an empty one, as with PTB."""
    async with workers(bot, lambda: [text(nothing, "known")], 1) as (worker,):
        await worker.say("unknown", chat_id=1)
        await worker.say("known", chat_id=2)
    assert bot.rows == {"chat/2": b"{}", "user/2": b"{}", "bot": b"{}"}


async def test_an_update_that_changes_nothing_writes_nothing(bot: PostgresStorage) -> None:
    """The versions of the rows stay."""
    async with workers(bot, lambda: [ANY], 1) as (worker,):
        await worker.say("one")
        before = bot.all_columns()
        await worker.say("two")
        assert bot.all_columns() == before


async def test_a_dropped_chat_is_gone_and_may_begin_anew(bot: PostgresStorage) -> None:
    """Its row is removed when the update ends; what is written after the drop is kept."""

    async def drop(update: Update, context: Any) -> None:
        assert update.message is not None
        context.application.drop_chat_data(update.message.chat.id)
        context.application.drop_user_data(update.message.chat.id)
        if update.message.text == "drop, then write":
            context.chat_data["new"] = True

    async with workers(bot, lambda: [text(drop, "drop"), text(remember)]) as (first, second):
        await first.say("hi")
        await second.say("drop, then write")
        assert bot.rows["chat/1"] == b'{"new":true,"said":["drop, then write"]}'
    async with workers(bot, lambda: [text(drop, "drop")]) as (first, second):
        await first.say("drop")
        assert "chat/1" not in bot.rows
        assert "user/1" not in bot.rows
        await second.say("drop, then write")
        assert bot.rows["chat/1"] == b'{"new":true}'


async def test_a_dropped_chat_that_somebody_else_has_written_stays(bot: PostgresStorage) -> None:
    """A row is removed only if it is as it was read."""

    async def drop(_: Update, context: Any) -> None:
        context.application.drop_chat_data(1)
        await asyncio.to_thread(bot.write, "chat/1", '{"by": "hand"}')

    async with workers(bot, lambda: [text(remember, "hi"), text(drop, "drop")], 1) as (worker,):
        await worker.say("hi")
        await worker.say("drop")
        (error,) = worker.errors
        assert isinstance(error, ConflictError)
        assert error.keys == ("chat/1",)
        worker.errors.clear()
    assert bot.rows["chat/1"] == b'{"by": "hand"}'


async def test_the_data_of_another_chat_cannot_be_dropped_unseen(bot: PostgresStorage) -> None:
    """It has to be loaded, and so locked, first."""
    problems: list[Exception] = []

    async def drop(_: Update, context: Any) -> None:
        app: Any = context.application
        attempts: list[Callable[[], None]] = [
            lambda: app.drop_chat_data(2),
            lambda: app.drop_user_data(2),
            lambda: app.migrate_chat_data(old_chat_id=2, new_chat_id=3),
            lambda: app.mark_data_for_update_persistence(chat_ids=2),
            lambda: app.mark_data_for_update_persistence(user_ids=[1, 2]),
        ]
        for attempt in attempts:
            with pytest.raises(NotInMemoryError) as caught:
                attempt()
            problems.append(caught.value)
        app.mark_data_for_update_persistence(chat_ids=1, user_ids=1)
        await app.persistence.load("chat", [2])
        app.drop_chat_data(2)

    async with workers(bot, lambda: [text(remember, "hi"), text(drop, "drop")], 1) as (worker,):
        await worker.say("hi", chat_id=2)
        await worker.say("drop")
    assert len(problems) == 5
    assert "chat/2" not in bot.rows
    assert "user/2" in bot.rows


async def test_a_chat_that_moves_has_its_data_under_the_new_id(bot: PostgresStorage) -> None:
    """Both ids are locked by the message that tells it; the old row is removed."""

    async def move(update: Update, context: Any) -> None:
        assert update.message is not None
        context.application.migrate_chat_data(update.message)

    def handlers() -> list[Any]:
        return [text(remember, "hi"), TypeHandler(Update, move_if_told)]

    async def move_if_told(update: Update, context: Any) -> None:
        if update.message is not None and update.message.migrate_to_chat_id is not None:
            await move(update, context)

    async with workers(bot, handlers) as (first, second):
        await first.say("hi", chat_id=-1, user_id=5)
        message = text_update("", chat_id=-1, user_id=5, migrate_to_chat_id=-100)
        await second.receive(message)
        assert bot.rows["chat/-100"] == b'{"said":["hi"]}'
        assert "chat/-1" not in bot.rows


async def test_a_chat_that_moves_stays_where_it_is_if_it_cannot_be_stored(
    bot: PostgresStorage,
) -> None:
    """Its old row is the only copy there is."""

    async def move(update: Update, context: Any) -> None:
        if update.message is not None and update.message.migrate_to_chat_id is not None:
            context.chat_data["bad"] = object()
            context.application.migrate_chat_data(update.message)

    async with workers(bot, lambda: [text(remember, "hi"), TypeHandler(Update, move)], 1) as (one,):
        await one.say("hi", chat_id=-1, user_id=5)
        await one.receive(text_update("", chat_id=-1, user_id=5, migrate_to_chat_id=-100))
        (error,) = one.errors
        assert isinstance(error, EncodeError)
        one.errors.clear()
    assert bot.rows["chat/-1"] == b'{"said":["hi"]}'
    assert "chat/-100" not in bot.rows


async def test_edit_changes_a_document_from_anywhere(bot: PostgresStorage) -> None:
    """In a script, and in a handler, where it is a part of the update."""

    async def give(_: Update, context: Any) -> None:
        async with context.application.persistence.edit("user", 2) as other:
            context.user_data["coins"] = context.user_data.get("coins", 0) - 1
            other["coins"] = other.get("coins", 0) + 1

    async with workers(bot, lambda: [TypeHandler(Update, give)]) as (first, second):
        await first.say("hi")
        await second.say("hi")
        script = persistence_of(bot)
        async with script.edit("user", 2) as data:
            data["coins"] += 10
        assert bot.rows["user/2"] == b'{"coins":12}'
        async with script.edit("bot") as data:
            data["seen"] = True
        await script.flush()
        await first.say("hi")
    assert bot.rows["user/2"] == b'{"coins":13}'
    assert bot.rows["user/1"] == b'{"coins":-3}'
    assert bot.rows["bot"] == b'{"seen":true}'


async def test_two_tasks_of_an_update_have_the_same_document(bot: PostgresStorage) -> None:
    """Also if both ask for it at once, and one has changed it before the other hears of it."""

    async def give(_: Update, context: Any) -> None:
        async def add() -> None:
            async with context.application.persistence.edit("user", 2) as other:
                other["coins"] = other.get("coins", 0) + 1

        await asyncio.gather(add(), add(), add())

    async with workers(bot, lambda: [TypeHandler(Update, give)], 1) as (worker,):
        await worker.say("hi")
    assert bot.rows["user/2"] == b'{"coins":3}'


async def _spoil(persistence: Any) -> None:
    async with persistence.edit("chat", 1) as data:
        data["said"].append("never")
        data["x"] = 1
        raise KeyError("on purpose")


async def test_an_edit_that_fails_changes_nothing(bot: PostgresStorage) -> None:
    """Neither in a script nor in a handler, which may catch its own error and go on."""

    async def fail(update: Update, context: Any) -> None:
        await remember(update, context)
        with pytest.raises(KeyError, match="on purpose"):
            await _spoil(context.application.persistence)

    async with workers(bot, lambda: [TypeHandler(Update, fail)], 1) as (worker,):
        await worker.say("hi")
    script = persistence_of(bot)
    with pytest.raises(KeyError, match="on purpose"):
        await _spoil(script)
    with pytest.raises(EncodeError, match="chat/1"):
        async with script.edit("chat", 1) as data:
            data["bad"] = object()
    await script.flush()
    assert bot.rows["chat/1"] == b'{"said":["hi"]}'


async def test_a_script_reads_what_workers_have_written(bot: PostgresStorage) -> None:
    """While they run: `documents` yields all of a scope."""
    async with workers(bot, lambda: [text(remember)], 1) as (worker,):
        for chat_id in (1, 2):
            await worker.say("hi", chat_id=chat_id)
        script = persistence_of(bot)
        found = {chat_id: data async for chat_id, data in script.documents("chat")}
        async with script.edit("user", 7):
            pass
        await script.flush()
        assert "user/7" not in bot.rows
    assert found == {1: {"said": ["hi"]}, 2: {"said": ["hi"]}}


async def test_an_update_is_handled_once_if_that_is_asked(bot: PostgresStorage) -> None:
    """Telegram sends it again to another worker, or to both at once."""
    async with workers(bot, lambda: [text(remember)], deduplicate=True) as (first, second):
        update = text_update("hi")
        await asyncio.gather(*(each.receive(update) for each in (first, second, first)))
        again = Update.de_json(update, second.app.bot)
        app: Any = second.app
        assert await app.handle_update(again) is False
        assert await app.handle_update(Update.de_json(text_update("x"), app.bot)) is True
    assert bot.rows["chat/1"] == b'{"said":["hi","x"]}'
    assert bot.rows[f"update/{update['update_id']}"] == b"{}"


async def test_workers_and_a_bot_that_does_not_share_keep_each_other_out(
    bot: PostgresStorage,
) -> None:
    """Whoever comes second is told what to do."""
    async with workers(bot, lambda: [ANY], 1):
        alone = bot.store(lock_timeout=0.1)
        with pytest.raises(StoreInUseError, match="shared=True"):
            await alone.open()
    alone = bot.store()
    await alone.open()
    worker = bot.store(lock_timeout=0.1)
    worker.share()
    with pytest.raises(StoreInUseError, match="shared=True"):
        await worker.open()
    await alone.close()


async def test_a_bot_that_does_not_share_can_go_on_later(bot: PostgresStorage) -> None:
    """The rows are the same: documents, conversations and keyboards."""
    async with workers(bot, lambda: [text(remember)], 1) as (worker,):
        await worker.say("hi")
    async with running(bot.store(), text(remember)) as alone:
        await alone.say("again")
    assert bot.rows["chat/1"] == b'{"said":["hi","again"]}'


async def test_what_is_not_stored_stays_in_the_memory_of_each_worker(bot: PostgresStorage) -> None:
    """As with PTB itself: `store_data` switches it off."""
    kept = PersistenceInput(chat_data=False, bot_data=False, callback_data=False)
    async with workers(bot, lambda: [text(remember)], store_data=kept) as (first, second):
        await first.say("one")
        await second.say("two")
        assert first.app.chat_data[1] == {"said": ["one"]}
        assert second.app.chat_data[1] == {"said": ["two"]}
        assert first.app.bot_data == {"said": ["one"]}
        first.app.drop_chat_data(1)
        assert 1 not in first.app.chat_data
    assert bot.rows == {"user/1": b'{"said":["one","two"]}'}


async def test_a_row_that_cannot_be_read_stops_its_update_alone(bot: PostgresStorage) -> None:
    """No handler runs, an error handler hears which row it is, and nothing is overwritten."""
    async with workers(bot, lambda: [text(remember), counting("count")], 1) as (worker,):
        await worker.say("hi", chat_id=2)
        bot.write("chat/1", '{"$nonsense": 1}')
        await worker.say("hi", chat_id=1)
        (error,) = worker.errors
        assert str(error).startswith("chat/1")
        worker.errors.clear()
        await worker.say("hi", chat_id=2)
    assert bot.rows["chat/1"] == b'{"$nonsense": 1}'
    assert "user/1" not in bot.rows
    assert bot.rows["chat/2"] == b'{"said":["hi","hi"]}'


async def test_a_cancelled_update_has_never_been(bot: PostgresStorage) -> None:
    """Its documents are free at once, for other workers too."""
    is_inside = asyncio.Event()

    async def wait(update: Update, context: Any) -> None:
        await remember(update, context)
        assert update.message is not None
        if update.message.text == "wait":
            is_inside.set()
            await asyncio.Event().wait()

    async with workers(bot, lambda: [TypeHandler(Update, wait)]) as (first, second):
        task = asyncio.create_task(first.say("wait"))
        await is_inside.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await second.say("hi")
    assert bot.rows["chat/1"] == b'{"said":["hi"]}'
