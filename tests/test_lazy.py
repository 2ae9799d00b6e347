"""``lazy=True``: documents are read when they are used, and no row is overwritten unread."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import pytest
from bots import NEVER, text_update
from handlers import ANY
from stores import WatchedStore, stored
from telegram import Message, Update
from telegram.ext import (
    CallbackContext,
    CommandHandler,
    ContextTypes,
    MessageHandler,
    PersistenceInput,
    filters,
)
from through import build, counting, rows, running, settle, until

from kvpersist import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    KVPersistence,
    NotInMemoryError,
    OpenError,
    ReadError,
    SqliteStore,
    WriteError,
)


class ChatData:
    """A bot's own class for the data of a chat."""

    def __init__(self) -> None:
        self.visits = 0


class Context(CallbackContext[Any, dict[Any, Any], Any, dict[Any, Any]]):
    """A context that looks into the data before anything is refreshed, as PTB's example does."""

    @classmethod
    def from_update(cls, update: object, application: Any) -> Any:
        context: Any = super().from_update(update, application)
        context.seen = dict(context.chat_data)
        return context


def chats(bot: Any) -> list[int]:
    """The chats whose data is in memory."""
    return [*bot.app.chat_data]


def fill(store: WatchedStore, number: int = 3) -> None:
    """Store chats and users."""
    for at in range(1, number + 1):
        rows(store)[f"chat/{at}"] = b'{"count":%d}' % (10 * at)
        rows(store)[f"user/{at}"] = b'{"name":"%d"}' % at


async def test_nothing_is_loaded_at_the_start_but_the_data_of_the_bot(store: WatchedStore) -> None:
    """Rows of chats and users are not scanned; those that are used are read then."""
    fill(store)
    rows(store)["bot"] = b'{"x":1}'
    async with running(store, counting("count"), lazy=True) as bot:
        assert store.scans == 1
        assert bot.app.bot_data == {"x": 1}
        assert chats(bot) == []
        await bot.say("/count", 2)
        assert rows(store)["chat/2"] == b'{"count":21}'
        assert chats(bot) == [2]


async def test_what_was_loaded_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chat and the user of an update are one statement; once in memory they are none."""
    read = SqliteStore.read
    asked: list[list[str]] = []

    async def spy(self: SqliteStore, keys: Collection[str]) -> dict[str, bytes]:
        asked.append([*keys])
        return await read(self, keys)

    monkeypatch.setattr(SqliteStore, "read", spy)
    async with running(SqliteStore(tmp_path / "bot.db"), counting("count"), lazy=True) as bot:
        for _ in range(3):
            await bot.say("/count")
    assert asked == [["chat/1", "user/1"]]
    assert stored(tmp_path / "bot.db") == {"bot": {}, "chat/1": {"count": 3}, "user/1": {}}


async def test_it_is_there_before_the_context_is_made(store: WatchedStore) -> None:
    """Filters and `from_update` of a bot's own class may look into the data of the chat."""
    fill(store)
    seen: list[Any] = []

    async def look(_: Update, context: Any) -> None:
        seen.append(context.seen)

    types: ContextTypes[Any, Any, Any, Any] = ContextTypes(context=Context)
    handler = MessageHandler(filters.ALL, look)
    async with running(store, handler, lazy=True, context_types=types) as bot:
        await bot.say("x")
        assert seen == [{"count": 10}]


async def test_a_job_has_the_data_of_its_chat_and_user(store: WatchedStore) -> None:
    """It is loaded before the job runs, stays as long as it does, and is written after it."""
    fill(store)
    go_on = asyncio.Event()

    async def tick(context: Any) -> None:
        context.chat_data["count"] += 1
        await go_on.wait()
        context.user_data["late"] = True

    async with running(store, counting("count"), lazy=True, max_documents=1, jobs=True) as bot:
        job = bot.app.job_queue.run_once(tick, when=3600, chat_id=3, user_id=3)  # type: ignore[union-attr]
        running_job = asyncio.create_task(job.run(bot.app))
        await until(lambda: 3 in bot.app.chat_data and bot.app.chat_data[3]["count"] == 31)
        await bot.say("/count", 1)
        await bot.say("/count", 2)
        assert 3 in chats(bot)
        go_on.set()
        await running_job
        await until(lambda: rows(store)["user/3"] == b'{"name":"3","late":true}')
        assert rows(store)["chat/3"] == b'{"count":31}'
        await bot.say("/count", 1)
        assert 3 not in chats(bot)


USES: list[Callable[[Any], object]] = [
    lambda data: data["count"],
    lambda data: data.get("count", 0),
    lambda data: data.setdefault("count", 0),
    lambda data: data.update(count=1),
    lambda data: "count" in data,
    len,
    bool,
    lambda data: [*data],
    lambda data: {**data},
    dict,
    lambda data: data == {},
    lambda data: data != {},
    lambda data: data | {},
    lambda data: {} | data,
    copy.copy,
    copy.deepcopy,
    lambda data: data.visits,
    hash,
    lambda data: setattr(data, "visits", 1),
    lambda data: delattr(data, "visits"),
    lambda data: data.__setitem__("count", 1),
    lambda data: data.__delitem__("count"),
    lambda data: data.__ior__({}),
    lambda data: [*reversed(data)],
    lambda data: data < 1,
    lambda data: data(),
    str,
    lambda data: f"{data}",
]


@pytest.mark.parametrize("use", USES, ids=range(len(USES)))
async def test_what_is_not_in_memory_can_be_used_in_no_way(
    store: WatchedStore, use: Callable[[Any], object]
) -> None:
    """Whatever a handler does with it raises, says what to do, and leaves the row as it was."""
    fill(store)
    async with running(store, lazy=True) as bot:
        with pytest.raises(NotInMemoryError) as caught:
            use(bot.app.chat_data[2])
        assert (caught.value.scope, caught.value.document_id) == ("chat", 2)
        assert "persistence.load('chat', 2)" in str(caught.value)
        assert repr(bot.app.chat_data[2]) == "<chat/2, which is not in memory>"
        with pytest.raises(NotInMemoryError):
            bot.app.mark_data_for_update_persistence(chat_ids=2)
        await bot.app.update_persistence()
    assert rows(store)["chat/2"] == b'{"count":20}'


async def test_the_data_of_others_can_be_loaded(store: WatchedStore) -> None:
    """What was loaded is used as ever; where nothing is stored it is empty."""
    fill(store)

    async def invite(_: Update, context: Any) -> None:
        persistence = context.application.persistence
        await persistence.load("user", 2)
        await persistence.load("chat", [2, 3, 4])
        context.application.user_data[2]["invited"] = True
        context.application.mark_data_for_update_persistence(user_ids=2)
        assert context.application.chat_data[4] == {}

    async with running(store, CommandHandler("invite", invite), lazy=True) as bot:
        await bot.say("/invite", 1)
    assert rows(store)["user/2"] == b'{"name":"2","invited":true}'
    assert "chat/4" not in rows(store)


async def test_loading_does_nothing_where_all_is_in_memory(store: WatchedStore) -> None:
    """So a handler need not know whether the bot loads lazily."""
    fill(store)
    async with running(store) as bot:
        await bot.app.persistence.load("user", 2)  # type: ignore[union-attr]
        assert bot.app.user_data[2] == {"name": "2"}


async def test_what_is_not_stored_is_not_lazy(store: WatchedStore) -> None:
    """A kind of data that `store_data` switches off is PTB's alone."""
    stored_data = PersistenceInput(chat_data=False)
    async with running(store, counting("count"), lazy=True, store_data=stored_data) as bot:
        await bot.say("/count")
        bot.app.drop_chat_data(1)
        assert bot.app.chat_data[5] == {}
        await bot.app.persistence.load("chat", 6)  # type: ignore[union-attr]
        assert {*rows(store)} == {"bot", "user/1"}
    stored_data = PersistenceInput(user_data=False)
    async with running(store, counting("count"), lazy=True, store_data=stored_data) as bot:
        assert bot.app.user_data[5] == {}


@pytest.mark.parametrize("lazy", [False, True])
async def test_all_documents_can_be_looked_through(store: WatchedStore, *, lazy: bool) -> None:
    """They are read in pages, are copies, and fill no memory."""
    fill(store, 700)
    async with running(store, lazy=lazy) as bot:
        before = len(bot.app.chat_data)
        persistence: Any = bot.app.persistence
        found = {chat_id: data async for chat_id, data in persistence.documents("chat")}
        assert found == {at: {"count": 10 * at} for at in range(1, 701)}
        names = [data["name"] async for _, data in persistence.documents("user")]
        assert len(names) == 700
        found[1]["count"] = 0
        assert len(bot.app.chat_data) == before
        rows(store)["chat/5"] = b"{"
        with pytest.raises(DecodeError, match="chat/5"):
            [data async for _, data in persistence.documents("chat")]
        rows(store)["chat/5"] = b"{}"


async def test_the_least_recently_used_leave_memory(store: WatchedStore) -> None:
    """No more than `max_documents` stay, nor what was known of others; those are read again."""
    async with running(store, counting("count"), lazy=True, max_documents=2) as bot:
        for chat_id in (1, 2, 3, 1):
            await bot.say("/count", chat_id)
        assert chats(bot) == [3, 1]
        await bot.say("/count", 3)
        await bot.say("/count", 2)
        assert chats(bot) == [3, 2]
        assert rows(store)["chat/1"] == b'{"count":2}'
        commits = bot.app.persistence.rows.commits  # type: ignore[union-attr]
        assert commits.known("chat/1") is None
        assert commits.known("chat/2") is not None


async def test_what_an_update_uses_stays_in_memory(store: WatchedStore) -> None:
    """So does what a handler with ``block=False`` uses, and a task that was made for an update."""
    fill(store)
    go_on = asyncio.Event()

    async def slow(_: Update, context: Any) -> None:
        await go_on.wait()
        context.chat_data["slow"] = True

    handlers = CommandHandler("slow", slow, block=False), counting("count")
    async with running(store, *handlers, lazy=True, max_documents=1) as bot:
        await bot.say("/slow", 1)
        await bot.say("/count", 2)
        await bot.say("/count", 3)
        assert {*chats(bot)} == {1, 3}
        go_on.set()
        await until(lambda: b"slow" in rows(store)["chat/1"])
        await settle()
        await bot.say("/count", 2)
        assert chats(bot) == [2]


async def test_a_load_takes_the_place_of_no_other(store: WatchedStore) -> None:
    """Two updates of a chat read its row at one time; what the first one writes is kept."""
    fill(store)
    async with running(store, counting("count"), lazy=True, concurrent_updates=8) as bot:
        await asyncio.gather(*(bot.say("/count") for _ in range(8)))
    assert rows(store)["chat/1"] == b'{"count":18}'


async def test_unsaved_changes_keep_a_document_in_memory(store: WatchedStore) -> None:
    """What nobody has marked is written before it leaves; what cannot be stored stays and is told.

    PTB by itself would keep it in memory, and write it when the chat is heard of next.
    """
    fill(store)
    async with running(store, counting("count"), lazy=True, max_documents=1) as bot:
        await bot.say("/count", 1)
        bot.app.chat_data[1]["unmarked"] = True
        await bot.say("/count", 2)
        await bot.say("/count", 3)
        assert rows(store)["chat/1"] == b'{"count":11,"unmarked":true}'
        await bot.say("/count", 1)
        bot.app.chat_data[1]["bad"] = object()
        await bot.say("/count", 2)
        await bot.say("/count", 3)
        assert "bad" in bot.app.chat_data[1]
        (error,) = bot.errors
        assert isinstance(error, EncodeError)
        bot.errors.clear()
        del bot.app.chat_data[1]["bad"]
        await bot.say("/count", 1)
    assert rows(store)["chat/1"] == b'{"count":13,"unmarked":true}'


async def test_a_document_whose_write_was_refused_stays_in_memory(store: WatchedStore) -> None:
    """The store is behind; it would be read as it was before."""
    fill(store)
    async with running(store, counting("count"), lazy=True, max_documents=1) as bot:
        store.failure = WriteError("the disk is full")
        await bot.say("/count", 1)
        await bot.say("/count", 2)
        assert bot.app.chat_data == {1: {"count": 11}, 2: {"count": 21}}
        assert rows(store)["chat/1"] == b'{"count":10}'
        store.failure = None
        await bot.say("/count", 1)
        await bot.say("/count", 3)
        assert chats(bot) == [3]
        bot.errors.clear()
        assert rows(store)["chat/1"] == b'{"count":12}'
        assert rows(store)["chat/2"] == b'{"count":21}'


async def test_a_dropped_document_is_empty_and_has_no_row(store: WatchedStore) -> None:
    """It can be used at once, as with PTB, though nothing was loaded; and stays gone."""
    fill(store)

    async def forget(_: Update, context: Any) -> None:
        context.application.drop_chat_data(2)
        context.application.drop_user_data(1)
        assert context.user_data == {}

    async def again(_: Update, context: Any) -> None:
        context.application.drop_chat_data(1)
        context.chat_data["new"] = True

    handlers = CommandHandler("forget", forget), CommandHandler("again", again)
    async with running(store, *handlers, lazy=True, max_documents=1) as bot:
        await bot.say("/forget", 1)
        assert {*rows(store)} == {"bot", "chat/1", "chat/3", "user/2", "user/3"}
        await bot.say("/again", 1)
        assert rows(store)["chat/1"] == b'{"new":true}'
        await bot.say("/again", 3)
        await bot.app.persistence.load("chat", 2)  # type: ignore[union-attr]
        assert bot.app.chat_data[2] == {}


async def test_a_dropped_document_stays_while_its_row_is_still_there(store: WatchedStore) -> None:
    """Dropped while the store is busy, by no update, it would else be read from its old row."""
    fill(store)
    async with running(store, counting("count"), lazy=True, max_documents=1) as bot:
        store.gate.clear()
        bot.app.drop_chat_data(1)
        await store.entered.wait()
        bot.app.drop_chat_data(2)
        updates = [asyncio.create_task(bot.say("/count", chat_id)) for chat_id in (3, 2)]
        await settle()
        store.gate.set()
        await asyncio.gather(*updates)
        await bot.app.update_persistence()
    assert "chat/1" not in rows(store)
    assert rows(store)["chat/2"] == b'{"count":1}'


async def test_what_can_have_no_row_is_not_dropped(store: WatchedStore) -> None:
    """The error handlers hear it, and the bot goes on."""
    async with running(store, counting("count"), lazy=True, max_documents=1) as bot:
        bot.app.drop_chat_data("x")  # type: ignore[arg-type]
        for chat_id in (1, 2):
            await bot.say("/count", chat_id)
        assert chats(bot) == [2]
        await settle()
        (error,) = bot.errors
        assert isinstance(error, EncodeError)
        bot.errors.clear()


async def test_data_moves_with_a_chat(store: WatchedStore) -> None:
    """Both messages that tell of the move have both chats loaded; others must ask for that."""
    fill(store)

    async def move(update: Update, context: Any) -> None:
        context.application.migrate_chat_data(message=update.message)

    handler = MessageHandler(filters.StatusUpdate.MIGRATE, move)
    async with running(store, handler, lazy=True) as bot:
        await bot.receive(text_update("", chat_id=1, migrate_to_chat_id=-1))
        await bot.receive(text_update("", chat_id=-2, migrate_from_chat_id=2))
        with pytest.raises(NotInMemoryError):
            bot.app.migrate_chat_data(old_chat_id=3, new_chat_id=-3)
        message = Message.de_json(
            text_update("", chat_id=-1, migrate_to_chat_id=-4)["message"], bot.app.bot
        )
        bot.app.migrate_chat_data(message=message)
        await bot.app.update_persistence()
    left = {key: text for key, text in rows(store).items() if key.startswith("chat/")}
    assert left == {
        "chat/-4": b'{"count":10}',
        "chat/-2": b'{"count":20}',
        "chat/3": b'{"count":30}',
    }


async def test_both_ids_of_a_chat_that_moves_stay_in_memory(store: WatchedStore) -> None:
    """However few fit there, until the update ends."""
    fill(store)

    async def move(update: Update, context: Any) -> None:
        await context.application.persistence.load("chat", 3)
        context.application.migrate_chat_data(message=update.message)

    handler = MessageHandler(filters.StatusUpdate.MIGRATE, move)
    async with running(store, handler, ANY, lazy=True, max_documents=1) as bot:
        await bot.receive(text_update("", chat_id=-2, migrate_from_chat_id=2))
        for _ in range(3):
            await bot.say("x", 1)
        assert [*bot.app.chat_data] == [1]
    assert rows(store)["chat/-2"] == b'{"count":20}'


async def test_classes_of_the_bot_are_loaded_too(store: WatchedStore) -> None:
    """Objects have the same rule as dicts."""

    async def visit(_: Update, context: Any) -> None:
        context.chat_data.visits += 1

    types: ContextTypes[Any, Any, Any, Any] = ContextTypes(chat_data=ChatData)
    handler = MessageHandler(filters.ALL, visit)
    async with running(store, handler, lazy=True, context_types=types, max_documents=1) as bot:
        for chat_id in (1, 2, 1):
            await bot.say("x", chat_id)
        assert chats(bot) == [1]
        bot.app.drop_chat_data(1)
        await bot.app.update_persistence()
        assert rows(store)["chat/2"] == b'{"visits":1}'
        assert "chat/1" not in rows(store)


@pytest.mark.parametrize("failure", [ReadError("the disk is gone"), OpenError("no file")])
async def test_an_update_whose_data_cannot_be_read_is_not_handled(
    store: WatchedStore, failure: Exception
) -> None:
    """A read that failed is never an empty document; the error handlers hear of it."""
    fill(store)
    async with running(store, counting("count"), lazy=True) as bot:
        store.failure = failure
        await bot.say("/count")
        await settle()  # what error handlers may have changed is written, if it can be
        assert bot.errors[0] is failure
        assert all(isinstance(error, WriteError) for error in bot.errors[1:])
        bot.errors.clear()
        store.failure = None
        await bot.say("/count")
        rows(store)["chat/2"] = b"{"
        await bot.say("/count", 2)
        (error,) = bot.errors
        assert isinstance(error, DecodeError)
        assert rows(store)["chat/2"] == b"{"
        bot.errors.clear()
    assert rows(store)["chat/1"] == b'{"count":11}'


async def test_the_next_run_of_an_application_reads_what_others_wrote(store: WatchedStore) -> None:
    """After a shutdown the store is anybody's, so nothing stays in memory."""
    bot = build(store, counting("count"), lazy=True)
    async with bot.app:
        await bot.say("/count")
    rows(store)["chat/1"] = b'{"count":50}'
    async with bot.app:
        await bot.say("/count")
    assert rows(store)["chat/1"] == b'{"count":51}'
    assert bot.errors == []


async def test_it_needs_the_application_that_loads(store: WatchedStore) -> None:
    """PTB's own application knows no moment at which a document could be read."""
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(
        store, update_interval=NEVER, lazy=True
    )
    for load in (persistence.get_user_data, persistence.get_chat_data):
        with pytest.raises(ConfigurationError, match="application_builder"):
            await load()


async def progress(_: str, __: int) -> None:
    """Nobody would await this."""


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        *[("max_documents", number) for number in (0, -1, 1.5, "5")],
        ("lazy", "no"),
        ("progress", 5),
        ("progress", progress),
        ("types", None),
        ("types", ChatData),
        ("update_interval", "1"),
    ],
)
def test_an_option_that_cannot_work_is_refused(
    store: WatchedStore, option: str, wrong: Any
) -> None:
    """Before any file is touched, and by its name."""
    with pytest.raises(ConfigurationError, match=option):
        KVPersistence(store, **{option: wrong})


async def test_updates_of_nobody_need_nothing(store: WatchedStore) -> None:
    """An update without chat and user is handled as ever."""
    async with running(store, ANY, lazy=True) as bot:
        await bot.app.process_update("news")
        await bot.app.process_update(Update(1))
        assert chats(bot) == []
