"""The data of users, chats and the bot across a restart, through a real `Application`.

What PTB's own `PicklePersistence` promises too is asked of it as well, so that these tests are
checked against PTB's own idea of persistence. A run ends in two ways: shut down, and crashed after
the last run of `update_persistence`.
"""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from bots import text_update
from handlers import ANY, remember, text
from storages import IDS, Storage, running
from telegram import Update
from telegram.ext import (
    CommandHandler,
    ContextTypes,
    MessageHandler,
    filters,
)


@pytest.mark.parametrize("chat_id", IDS)
async def test_data_of_chat_user_and_bot_is_there_after_a_restart(
    storage: Storage, crash: bool, chat_id: int
) -> None:
    """What a handler keeps of a chat, a user and the bot is there in the next run."""
    user_id = abs(chat_id) - 1 or 7
    async with running(storage, text(remember), crash=crash) as bot:
        await bot.say("one", chat_id, user_id)
        await bot.save()
        await bot.say("two", chat_id, user_id)
        await bot.save()
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {chat_id: {"said": ["one", "two"]}}
        assert dict(bot.app.user_data) == {user_id: {"said": ["one", "two"]}}
        assert bot.app.bot_data == {"said": ["one", "two"]}


async def test_what_was_not_saved_is_saved_by_shutdown(storage: Storage) -> None:
    """Shutting down writes what no run of the persistence has seen."""
    async with running(storage, text(remember)) as bot:
        await bot.say("last words")
    async with running(storage) as bot:
        assert bot.app.chat_data[1] == {"said": ["last words"]}


async def test_restored_data_can_be_changed_and_restored_again(
    storage: Storage, crash: bool
) -> None:
    """Several runs, one after the other, add to the same documents."""
    for number in range(4):
        async with running(storage, text(remember), crash=crash) as bot:
            await bot.say(str(number))
            await bot.save()
    async with running(storage) as bot:
        assert bot.app.user_data[1] == {"said": ["0", "1", "2", "3"]}


async def test_the_order_of_a_documents_keys_comes_back(storage: Storage, crash: bool) -> None:
    """A dict comes back with its keys in the order in which they were put in."""

    async def fill(_: Update, context: Any) -> None:
        context.chat_data.update(z=1, a=2, m={"y": 1, "b": 2})

    async with running(storage, text(fill), crash=crash) as bot:
        await bot.say("x")
        await bot.save()
    async with running(storage) as bot:
        assert list(bot.app.chat_data[1]) == ["z", "a", "m"]
        assert list(bot.app.chat_data[1]["m"]) == ["y", "b"]


async def test_tuples_come_back_as_tuples(storage: Storage, crash: bool) -> None:
    """A tuple in a document is a tuple after a restart, a list is a list."""
    value = {"pairs": [(1, 2), [3, 4]], "empty": (), "nested": ((("x",),),)}

    async def fill(_: Update, context: Any) -> None:
        context.user_data.update(value)

    async with running(storage, text(fill), crash=crash) as bot:
        await bot.say("x")
        await bot.save()
    async with running(storage) as bot:
        assert bot.app.user_data[1] == value


async def test_data_emptied_by_a_handler_stays_empty(storage: Storage, crash: bool) -> None:
    """A document whose last key was taken out comes back as an empty one, not as it was."""

    async def forget(_: Update, context: Any) -> None:
        for data in (context.chat_data, context.user_data, context.bot_data):
            data.clear()

    handlers = text(remember, "[a-z]"), CommandHandler("forget", forget)
    async with running(storage, *handlers) as bot:
        await bot.say("secret")
    async with running(storage, *handlers, crash=crash) as bot:
        await bot.say("/forget")
        await bot.save()
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {1: {}}
        assert dict(bot.app.user_data) == {1: {}}
        assert bot.app.bot_data == {}


async def test_a_handler_that_raises_keeps_what_it_changed(storage: Storage, crash: bool) -> None:
    """Data that a handler changed before it raised an error is saved like any other."""

    async def stumble(update: Update, context: Any) -> None:
        await remember(update, context)
        raise RuntimeError("stumbled")

    async with running(storage, text(stumble), crash=crash) as bot:
        await bot.say("before")
        (error,) = bot.errors
        assert str(error) == "stumbled"
        bot.errors.clear()
        await bot.save()
    async with running(storage) as bot:
        assert bot.app.chat_data[1] == {"said": ["before"]}
        assert bot.app.user_data[1] == {"said": ["before"]}


async def test_an_error_handler_may_change_data(storage: Storage, crash: bool) -> None:
    """What an error handler notes in the data of the bot is saved."""

    async def stumble(*_: object) -> None:
        raise RuntimeError("stumbled")

    async def note(_: object, context: Any) -> None:
        context.bot_data["last error"] = str(context.error)

    async with running(storage, text(stumble), crash=crash) as bot:
        bot.app.add_error_handler(note)
        await bot.say("x")
        bot.errors.clear()
        await bot.save()
    async with running(storage) as bot:
        assert bot.app.bot_data == {"last error": "stumbled"}


async def test_a_chat_that_only_looked_has_an_empty_document(storage: Storage) -> None:
    """PTB keeps an empty document of whoever a handler has seen; so it comes back."""
    async with running(storage, ANY) as bot:
        await bot.say("x", chat_id=-5, user_id=6)
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {-5: {}}
        assert dict(bot.app.user_data) == {6: {}}


async def test_an_update_that_no_handler_takes_leaves_nothing(storage: Storage) -> None:
    """Whoever no handler has seen has no document."""
    async with running(storage) as bot:
        await bot.say("x")
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {}
        assert dict(bot.app.user_data) == {}


@pytest.mark.parametrize("chat_id", IDS)
async def test_dropped_data_does_not_come_back(storage: Storage, crash: bool, chat_id: int) -> None:
    """After `drop_chat_data` and `drop_user_data` a restart brings nothing back."""
    async with running(storage, text(remember)) as bot:
        await bot.say("x", chat_id, 8)
        await bot.say("y", 9, 9)
    async with running(storage, crash=crash) as bot:
        bot.app.drop_chat_data(chat_id)
        bot.app.drop_user_data(8)
        await bot.save()
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {9: {"said": ["y"]}}
        assert dict(bot.app.user_data) == {9: {"said": ["y"]}}


async def test_the_same_data_can_be_written_again_after_it_was_dropped(
    storage: Storage, crash: bool
) -> None:
    """Nothing remembers a dropped document so well that it believes it still stored."""
    async with running(storage, text(remember), crash=crash) as bot:
        await bot.say("x")
        await bot.save()
        bot.app.drop_chat_data(1)
        bot.app.drop_user_data(1)
        await bot.save()
        bot.app.bot_data.clear()
        await bot.say("x")
        await bot.save()
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {1: {"said": ["x"]}}
        assert dict(bot.app.user_data) == {1: {"said": ["x"]}}


async def test_dropping_what_was_never_there_does_nothing(storage: Storage) -> None:
    """A drop of a chat and a user without data harms nobody."""
    async with running(storage, text(remember)) as bot:
        await bot.say("x")
        bot.app.drop_chat_data(404)
        bot.app.drop_user_data(404)
        await bot.save()
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {1: {"said": ["x"]}}


async def test_a_migrated_chat_has_its_data_under_its_new_id_alone(
    storage: Storage, crash: bool
) -> None:
    """A group that becomes a supergroup takes its data along, and leaves none behind."""

    async def migrate(update: Update, context: Any) -> None:
        context.application.migrate_chat_data(message=update.message)

    migrated = MessageHandler(filters.StatusUpdate.MIGRATE, migrate)
    async with running(storage, text(remember)) as bot:
        await bot.say("hello", -5, 6)
    async with running(storage, text(remember), migrated, crash=crash) as bot:
        await bot.receive(text_update("", chat_id=-5, user_id=6, migrate_to_chat_id=-1001))
        await bot.save()
        await bot.say("again", -1001, 6)
        await bot.save()
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {-1001: {"said": ["hello", "again"]}}


async def test_a_migration_by_ids_replaces_what_the_new_id_had(
    storage: Storage, crash: bool
) -> None:
    """`migrate_chat_data` with two ids overwrites the data of the new one."""
    async with running(storage, text(remember), crash=crash) as bot:
        await bot.say("old", -5, 6)
        await bot.say("new", -6, 6)
        await bot.save()
        bot.app.migrate_chat_data(old_chat_id=-5, new_chat_id=-6)
        await bot.save()
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {-6: {"said": ["old"]}}


async def test_marked_data_is_saved(storage: Storage, crash: bool) -> None:
    """`mark_data_for_update_persistence` saves what was changed behind PTB's back."""
    async with running(storage, crash=crash) as bot:
        bot.app.chat_data[5]["x"] = 1
        bot.app.chat_data[6]["x"] = 2
        bot.app.user_data[7]["x"] = 3
        bot.app.mark_data_for_update_persistence(chat_ids=5, user_ids=[7])
        await bot.save()
        bot.app.chat_data[6]["x"] = 4
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {5: {"x": 1}}
        assert dict(bot.app.user_data) == {7: {"x": 3}}


async def test_a_marked_id_that_was_never_used_gets_an_empty_document(
    storage: Storage, crash: bool
) -> None:
    """PTB makes an empty document of an id that is marked; so it comes back."""
    async with running(storage, crash=crash) as bot:
        bot.app.mark_data_for_update_persistence(chat_ids=[-5], user_ids=6)
        await bot.save()
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {-5: {}}
        assert dict(bot.app.user_data) == {6: {}}


async def test_a_job_that_changes_data_has_it_saved(storage: Storage, crash: bool) -> None:
    """What a job keeps of its chat, its user and the bot is there in the next run."""

    async def tick(context: Any) -> None:
        for data in (context.chat_data, context.user_data, context.bot_data):
            data["ticks"] = data.get("ticks", 0) + 1

    for _ in range(2):
        async with running(storage, jobs=True, started=True, crash=crash) as bot:
            assert bot.app.job_queue is not None
            job = bot.app.job_queue.run_once(tick, when=3600, chat_id=-5, user_id=6)
            await job.run(bot.app)
            await bot.save()
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {-5: {"ticks": 2}}
        assert dict(bot.app.user_data) == {6: {"ticks": 2}}
        assert bot.app.bot_data == {"ticks": 2}


async def test_a_job_that_raises_keeps_what_it_changed(storage: Storage, crash: bool) -> None:
    """Data that a job changed before it raised an error is saved like any other."""

    async def tick(context: Any) -> None:
        context.chat_data["ticks"] = 1
        raise RuntimeError("stumbled")

    async with running(storage, jobs=True, started=True, crash=crash) as bot:
        assert bot.app.job_queue is not None
        job = bot.app.job_queue.run_once(tick, when=3600, chat_id=5)
        await job.run(bot.app)
        assert [str(error) for error in bot.errors] == ["stumbled"]
        bot.errors.clear()
        await bot.save()
    async with running(storage) as bot:
        assert dict(bot.app.chat_data) == {5: {"ticks": 1}}


async def test_a_handler_with_block_false_has_its_changes_saved_when_it_is_done(
    storage: Storage, crash: bool
) -> None:
    """A handler that runs beside the others is saved in the run after it has finished."""
    go_on, done = asyncio.Event(), asyncio.Event()

    async def slow(update: Update, context: Any) -> None:
        context.chat_data["begun"] = True
        await go_on.wait()
        await remember(update, context)
        done.set()

    async with running(storage, text(slow, block=False), started=True, crash=crash) as bot:
        await bot.say("x")
        await bot.save()
        go_on.set()
        await done.wait()
        await bot.app.update_queue.join()
        await asyncio.sleep(0)  # the task marks its chat when it ends
        await bot.save()
    async with running(storage) as bot:
        assert bot.app.chat_data[1] == {"begun": True, "said": ["x"]}


class ChatData(dict[str, Any]):
    """A bot's own class for the data of a chat."""

    def shout(self) -> str:
        return str(self["said"]).upper()


class UserData(ChatData):
    """A bot's own class for the data of a user."""


class BotData(ChatData):
    """A bot's own class for the data of the bot, not empty to begin with."""

    def __init__(self) -> None:
        super().__init__(started=True)


CUSTOM: ContextTypes[Any, Any, Any, Any] = ContextTypes(
    chat_data=ChatData, user_data=UserData, bot_data=BotData
)


async def test_custom_data_comes_back_as_instances_of_its_classes(
    storage: Storage, crash: bool
) -> None:
    """Dict subclasses named in the context types are restored as such, methods and all."""
    async with running(storage, text(remember), context_types=CUSTOM, crash=crash) as bot:
        await bot.say("hello")
        await bot.save()
    async with running(storage, text(remember), context_types=CUSTOM) as bot:
        await bot.say("again")
        assert type(bot.app.chat_data[1]) is ChatData
        assert type(bot.app.user_data[1]) is UserData
        assert type(bot.app.bot_data) is BotData
        assert bot.app.chat_data[1].shout() == "['HELLO', 'AGAIN']"
        assert bot.app.bot_data == {"started": True, "said": ["hello", "again"]}


async def test_the_data_of_a_new_bot_is_an_instance_of_its_class(storage: Storage) -> None:
    """Where nothing is stored `bot_data` is a new instance of the class of the context types."""
    async with running(storage, context_types=CUSTOM) as bot:
        assert type(bot.app.bot_data) is BotData
        assert bot.app.bot_data == {"started": True}


async def test_a_key_that_the_class_sets_and_the_bot_removed_stays_removed(
    storage: Storage, crash: bool
) -> None:
    """What a class puts into a new instance is not put back into one that is restored."""

    async def forget(_: Update, context: Any) -> None:
        context.bot_data.clear()

    async with running(storage, text(forget), context_types=CUSTOM, crash=crash) as bot:
        await bot.say("x")
        await bot.save()
    async with running(storage, context_types=CUSTOM) as bot:
        assert type(bot.app.bot_data) is BotData
        assert bot.app.bot_data == {}
