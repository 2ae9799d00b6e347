"""`KVPersistence.load` and `documents`: the data of others than those of an update."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from bots import Bot
from storages import SqliteStorage
from stores import WatchedStore, stored
from telegram import Update
from telegram.ext import CommandHandler, ContextTypes, MessageHandler, filters
from through import counting, rows, running, settle, until

from kvpersist import (
    ConfigurationError,
    KVPersistence,
    MemoryStore,
    NotInMemoryError,
    SqliteStore,
    WriteError,
)
from kvpersist.codec import Codec
from kvpersist.keys import document_key


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


async def turn(update: Update, context: Any) -> None:
    """Set what the message says."""
    assert update.message is not None
    assert update.message.text is not None
    context.chat_data["on"] = update.message.text


TURN = MessageHandler(filters.TEXT & ~filters.COMMAND, turn)


def calling(act: Callable[[Any], Awaitable[None]]) -> Any:
    """Return a handler of the command ``/act``."""

    async def handle(_: Update, context: Any) -> None:
        await act(context)

    return CommandHandler("act", handle)


def load(bot: Bot, scope: Any, ids: int | Collection[int]) -> asyncio.Task[None]:
    """Begin to load, in a task that is part of no update."""
    persistence: Any = bot.app.persistence
    return asyncio.create_task(persistence.load(scope, ids))


async def test_what_an_update_wrote_during_a_load_stays_known(file: SqliteStorage) -> None:
    """The load has read the row as it was before; a return to that value must be written."""
    store = await fill(file)
    async with running(store, TURN, lazy=True) as bot:
        store.slow = "chat/2"
        loading = load(bot, "chat", [1, 2])
        await store.reading.wait()
        await bot.say("B", 1)
        store.answer.set()
        await loading
        assert bot.app.chat_data[1] == {"on": "B"}
        await bot.say("A", 1)
        assert stored(file.path)["chat/1"] == {"on": "A"}


async def test_what_was_dropped_during_a_load_stays_so(file: SqliteStorage) -> None:
    """The row that the load has read is gone."""
    store = await fill(file)
    async with running(store, TURN, lazy=True) as bot:
        store.slow = "chat/2"
        loading = load(bot, "chat", [1, 2])
        await store.reading.wait()
        bot.app.drop_chat_data(1)
        await bot.app.update_persistence()
        store.answer.set()
        await loading
        assert bot.app.chat_data[1] == {}
        await bot.say("A", 1)
        assert stored(file.path)["chat/1"] == {"on": "A"}


async def test_a_row_that_was_written_without_the_application_is_read_again(
    file: SqliteStorage,
) -> None:
    """What a load has read before that is too old."""
    store = await fill(file)
    async with running(store, TURN, lazy=True) as bot:
        store.slow = "chat/1"
        loading = load(bot, "chat", 1)
        await store.reading.wait()
        await bot.app.persistence.update_chat_data(1, {"on": "B"})  # type: ignore[union-attr]
        store.answer.set()
        await loading
        assert bot.app.chat_data[1] == {"on": "B"}


async def test_a_row_that_is_waiting_is_not_read_as_it_was(store: WatchedStore) -> None:
    """It is written first; if it cannot be, the load cannot either."""
    rows(store)["chat/1"] = b'{"on":"A"}'
    async with running(store, lazy=True) as bot:
        persistence: Any = bot.app.persistence
        store.failure = WriteError("the disk is full")
        with pytest.raises(WriteError):
            await persistence.update_chat_data(1, {"on": "B"})
        with pytest.raises(WriteError):
            await persistence.load("chat", 1)
        assert 1 not in bot.app.chat_data
        store.failure = None
        await persistence.load("chat", 1)
        assert bot.app.chat_data[1] == {"on": "B"}


async def test_a_row_that_begins_to_wait_during_a_load_is_read_again(file: SqliteStorage) -> None:
    """Its old value has been read, and its new one is not in the store yet."""
    slow = await fill(file)
    store = WatchedStore(slow)
    async with running(store, TURN, lazy=True) as bot:
        slow.slow = "chat/1"
        loading = load(bot, "chat", 1)
        await slow.reading.wait()
        store.gate.clear()
        store.entered.clear()
        persistence: Any = bot.app.persistence
        writing = asyncio.create_task(persistence.update_chat_data(1, {"on": "B"}))
        await store.entered.wait()
        slow.answer.set()
        await settle()
        store.gate.set()
        await asyncio.gather(writing, loading)
        assert bot.app.chat_data[1] == {"on": "B"}


async def test_nothing_is_known_of_a_row_that_is_not_there(file: SqliteStorage) -> None:
    """Whatever the bot had written there: if it makes the document the same again it is written."""
    store = await fill(file)
    async with running(store, TURN, lazy=True) as bot:
        await bot.app.persistence.update_chat_data(1, {"on": "B"})  # type: ignore[union-attr]
        file.write("chat/1", None)
        await load(bot, "chat", 1)
        assert bot.app.chat_data[1] == {}
        await bot.say("B", 1)
        assert stored(file.path)["chat/1"] == {"on": "B"}


async def test_what_others_wrote_during_a_load_is_seen_by_the_next_update(
    file: SqliteStorage,
) -> None:
    """Also if another update has looked meanwhile whether others have written."""
    store = await fill(file)
    async with running(store, TURN, counting("count"), lazy=True) as bot:
        store.slow = "chat/1"
        loading = load(bot, "chat", 1)
        await store.reading.wait()
        file.write("chat/1", '{"count":5}')
        await bot.say("A", 2)
        store.answer.set()
        await loading
        await bot.say("/count", 1)
    assert stored(file.path)["chat/1"] == {"count": 6}


async def test_documents_do_not_leave_while_others_of_one_load_are_read(
    file: SqliteStorage,
) -> None:
    """All of them are there when it returns."""
    store = await fill(file)
    async with running(store, TURN, lazy=True, max_documents=1) as bot:
        await bot.say("B", 1)
        store.slow = "chat/2"
        loading = load(bot, "chat", [1, 2])
        await store.reading.wait()
        await bot.say("B", 3)
        store.answer.set()
        await loading
        assert bot.app.chat_data[1] == {"on": "B"}
        assert bot.app.chat_data[2] == {"on": "A"}


async def test_a_load_sees_what_others_wrote(file: SqliteStorage) -> None:
    """What was in memory before is refreshed, so that no edit is overwritten."""
    store = await fill(file)

    async def invite(context: Any) -> None:
        await context.application.persistence.load("chat", 2)
        context.application.chat_data[2]["invited"] = True
        context.application.mark_data_for_update_persistence(chat_ids=2)

    async with running(store, TURN, calling(invite), lazy=True) as bot:
        await bot.say("A", 2)
        file.write("chat/2", '{"edited":1}')
        await bot.say("/act", 1)
        assert stored(file.path)["chat/2"] == {"edited": 1, "invited": True}


async def test_a_load_overwrites_no_change_in_memory(file: SqliteStorage) -> None:
    """If bot and another program changed a document the bot wins, as in an update."""
    store = await fill(file)

    async def change(context: Any) -> None:
        context.chat_data["on"] = "B"
        await asyncio.to_thread(file.write, "chat/1", '{"edited":1}')
        await context.application.persistence.load("chat", 1)
        assert context.chat_data == {"on": "B"}

    async with running(store, calling(change), lazy=True) as bot:
        await bot.say("/act", 1)
        assert stored(file.path)["chat/1"] == {"on": "B"}


async def test_what_is_in_memory_is_read_only_after_others_wrote(file: SqliteStorage) -> None:
    """And then many documents at once."""
    store = await fill(file)
    async with running(store, lazy=True) as bot:
        await load(bot, "chat", [1, 2, 3])
        store.asked.clear()
        await load(bot, "chat", [1, 2, 3])
        assert store.asked == []
        file.write("chat/3", '{"edited":1}')
        await load(bot, "chat", [1, 2, 3])
        assert store.asked == [["chat/1", "chat/2", "chat/3"]]
        assert bot.app.chat_data[3] == {"edited": 1}


async def test_a_large_load_reads_little_at_once() -> None:
    """Others have their turns; all documents are there when it returns, however many may stay."""
    memory = MemoryStore()
    memory.rows = {f"chat/{at}": b"{}" for at in range(1_050)}
    sizes: list[int] = []

    class CountingStore(WatchedStore):
        async def read(self, keys: Collection[str]) -> dict[str, bytes]:
            sizes.append(len(keys))
            return await super().read(keys)

    turns = 0
    async with running(CountingStore(memory), lazy=True, max_documents=10) as bot:
        loading = load(bot, "chat", range(1_050))
        while not loading.done():
            turns += 1
            await asyncio.sleep(0)
        assert sizes == [100] * 10 + [50]
        assert turns >= len(sizes)
        assert len(bot.app.chat_data) == 1_050


async def test_what_is_too_much_leaves_little_by_little(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each update lets some of it go, and none of them many."""
    released: list[int] = []

    class Spy(deque[Any]):
        def popleft(self) -> Any:
            released[-1] += 1
            return super().popleft()

    monkeypatch.setattr("kvpersist.lazy.deque", Spy)
    async with running(store, counting("count"), lazy=True, max_documents=10) as bot:
        await load(bot, "chat", range(1, 1_051))
        left = [len(bot.app.chat_data)]
        while left[-1] > 10:
            released.append(0)
            await bot.say("/count", 2_000 + len(left))
            left.append(len(bot.app.chat_data))
        steps = [before - after for before, after in pairwise(left)]
        assert max(steps) <= 200
        assert max(released) <= 200
        assert len(steps) < 20


async def test_what_is_held_is_not_looked_at_again_and_again(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load costs what it loads, also in a handler that keeps a multiple of `max_documents`."""
    looks = 0

    def spy(scope: Any, document_id: int) -> str:
        nonlocal looks
        looks += 1
        return document_key(scope, document_id)

    async def read_all(context: Any) -> None:
        await context.application.persistence.load("chat", range(1, 5_001))
        assert len(context.application.chat_data) == 5_000

    monkeypatch.setattr("kvpersist.lazy.document_key", spy)
    async with running(store, calling(read_all), lazy=True, max_documents=1) as bot:
        await bot.say("/act", 1)
        assert looks < 4 * 5_000


@pytest.mark.parametrize("where", ["handler", "job", "task"])
async def test_what_was_loaded_stays_until_the_handler_job_or_task_is_done(
    store: WatchedStore, where: str
) -> None:
    """Whatever else is used meanwhile; then it may leave."""
    rows(store)["chat/2"] = b'{"on":"A"}'
    loaded, go_on = asyncio.Event(), asyncio.Event()

    async def work(context: Any) -> None:
        await context.application.persistence.load("chat", [2, 3])
        loaded.set()
        await go_on.wait()
        context.application.chat_data[2]["seen"] = True
        context.application.mark_data_for_update_persistence(chat_ids=2)

    async def begin(context: Any) -> None:
        context.application.create_task(work(context))

    handlers = calling(begin if where == "task" else work), counting("count")
    options: dict[str, Any] = {
        "lazy": True,
        "max_documents": 1,
        "jobs": True,
        "concurrent_updates": True,
    }
    async with running(store, *handlers, **options) as bot:
        queue = bot.app.job_queue
        assert queue is not None
        job = queue.run_once(work, when=3600, chat_id=1)
        working = asyncio.create_task(job.run(bot.app) if where == "job" else bot.say("/act", 1))
        await loaded.wait()
        for chat_id in (4, 5, 6):
            await bot.say("/count", chat_id)
        assert {2, 3} <= {*bot.app.chat_data}
        go_on.set()
        await working
        await until(lambda: b"seen" in rows(store)["chat/2"])
        for chat_id in (4, 5, 6):
            await bot.say("/count", chat_id)
        assert [*bot.app.chat_data] == [6]


async def test_what_is_loaded_after_the_update_stays_for_nobody(store: WatchedStore) -> None:
    """A task of asyncio's own may outlive the handler that made it, whose documents have left."""
    go_on = asyncio.Event()
    tasks: list[asyncio.Task[None]] = []

    async def outlive(context: Any) -> None:
        await go_on.wait()
        await context.application.persistence.load("chat", 2)

    async def begin(context: Any) -> None:
        tasks.append(asyncio.create_task(outlive(context)))

    handlers = calling(begin), counting("count")
    async with running(store, *handlers, lazy=True, max_documents=1) as bot:
        await bot.say("/act", 1)
        go_on.set()
        await tasks[0]
        assert 2 in bot.app.chat_data
        await bot.say("/count", 3)
        assert [*bot.app.chat_data] == [3]


async def test_the_mapping_tells_what_is_in_memory(store: WatchedStore) -> None:
    """Nothing false can be read out of it: `get` has no default for what may well be stored."""
    rows(store)["chat/1"] = b'{"on":"A"}'
    async with running(store, lazy=True) as bot:
        found: Any = bot.app.chat_data.get(1, {})
        with pytest.raises(NotInMemoryError):
            found.get("on")
        assert 1 not in bot.app.chat_data
        await load(bot, "chat", 1)
        assert bot.app.chat_data.get(1) == {"on": "A"}
        assert 1 in bot.app.chat_data


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


async def test_what_is_waiting_to_be_written_is_not_encoded_again(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the store refuses, an update encodes its own documents, however many are too many."""
    encode = Codec.encode_document
    encodes = 0

    def spy(self: Codec, document: object, kind: type) -> bytes:
        nonlocal encodes
        encodes += 1
        return encode(self, document, kind)

    monkeypatch.setattr(Codec, "encode_document", spy)
    async with running(store, counting("count"), lazy=True, max_documents=1) as bot:
        store.failure = WriteError("the disk is full")
        counts = []
        for chat_id in range(1, 31):
            encodes = 0
            await bot.say("/count", chat_id)
            counts.append(encodes)
        assert counts == [3] * 30  # bot_data, and the data of the chat and of the user
        bot.errors.clear()
        store.failure = None
        await bot.say("/count", 1)
    assert all(rows(store)[f"chat/{chat_id}"] for chat_id in range(1, 31))


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
