"""Applications that start again, and data that is switched off.

What PTB's own `PicklePersistence` promises too is asked of it as well, so that these tests are
checked against PTB's own idea of persistence. A run ends in two ways: shut down, and crashed after
the last run of `update_persistence`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import through
from bots import NEVER, Bot, build, text_update
from faults import locked_by_another_program
from handlers import conversation, remember, text
from storages import KV, Storage, running
from stores import WatchedStore, stored
from telegram import Update
from telegram.ext import (
    CommandHandler,
    PersistenceInput,
)

from kvpersist import (
    KVPersistence,
    MemoryStore,
    SqliteStore,
    Store,
    WriteError,
)


async def test_an_application_can_be_initialised_again(storage: Storage) -> None:
    """After `shutdown` the same application goes on with `initialize`, as often as one likes."""
    bot = build(storage.persistence(), [text(remember), conversation()])
    for number in range(3):
        async with bot.app:
            await bot.say(str(number))
    assert bot.errors == []
    async with running(storage) as later:
        assert later.app.chat_data[1] == {"said": ["0", "1", "2"]}


def test_an_application_can_be_initialised_again_on_another_event_loop(storage: Storage) -> None:
    """A program may call `asyncio.run` for each run of the same application."""
    bot = build(storage.persistence(), [text(remember), conversation()])

    async def run(said: str, answers: list[str]) -> None:
        async with bot.app:  # without `start`: PTB's queue cannot move to another event loop
            await bot.say(said)
            assert bot.answers() == answers
            await bot.save()

    asyncio.run(run("/start", ["started"]))
    asyncio.run(run("one", ["was at 0"]))
    asyncio.run(run("two", ["was at ''"]))

    async def look() -> None:
        async with running(storage) as later:
            assert later.app.chat_data[1] == {"said": ["one", "two"]}

    asyncio.run(look())
    assert bot.errors == []


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # asyncpg's sockets, of a dead loop
def test_what_a_dying_event_loop_left_behind_is_taken_up_by_the_next(kv: KV) -> None:
    """An event loop that ended without `shutdown` takes nothing with it that was told before."""
    bot = build(kv.persistence(), [text(remember)])

    async def die() -> None:
        await bot.app.initialize()
        await bot.say("one")
        await bot.save()

    async def live() -> None:
        await bot.say("two")
        await bot.app.shutdown()

    asyncio.run(die())
    asyncio.run(live())
    assert kv.rows["chat/1"] == b'{"said":["one","two"]}'
    assert bot.errors == []


async def test_rows_that_vanish_between_two_runs_are_written_again() -> None:
    """A persistence that starts again does not take for stored what another program deleted."""
    store = MemoryStore()
    persistence = KVPersistence(store, update_interval=NEVER)

    async def run() -> dict[str, bytes]:
        await persistence.get_user_data()
        await persistence.get_chat_data()
        await persistence.get_bot_data()
        await persistence.get_callback_data()
        await persistence.get_conversations("order")
        await persistence.update_user_data(1, {"a": 1})
        await persistence.update_chat_data(1, {"a": 1})
        await persistence.update_bot_data({"a": 1})
        await persistence.update_callback_data(([("keyboard", 1.0, {"button": 1})], {}))
        await persistence.update_conversation(name="order", key=(1, 1), new_state="a")
        await persistence.flush()
        return dict(store.rows)

    before = await run()
    assert len(before) == 5
    store.rows.clear()
    assert await run() == before


async def test_a_whole_life_of_polling_starting_and_stopping(storage: Storage) -> None:
    """What `run_polling` does, from `initialize` to `shutdown`, keeps what came in by polling."""
    heard = asyncio.Event()

    async def hear(update: Update, context: Any) -> None:
        await remember(update, context)
        heard.set()

    for said in ("one", "two"):
        bot = build(storage.persistence(), [text(hear)])
        assert bot.app.updater is not None
        await bot.app.initialize()
        await bot.app.updater.start_polling()
        await bot.app.start()
        await bot.telegram.updates.put(text_update(said))
        await heard.wait()
        heard.clear()
        await bot.app.updater.stop()
        await bot.app.stop()
        await bot.app.shutdown()
        assert bot.errors == []
    async with running(storage) as later:
        assert later.app.chat_data[1] == {"said": ["one", "two"]}


class SignallingStore(WatchedStore):
    """Says when it has written for the first time."""

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.written = asyncio.Event()

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        await super().apply(changes)
        self.written.set()


async def test_the_background_run_writes_without_being_asked() -> None:
    """A started application hands everything over every `update_interval` by itself."""
    store = SignallingStore(MemoryStore())
    bot = build(KVPersistence(store, update_interval=0.001), [text(remember)])
    async with bot.app:
        await bot.app.start()
        await bot.say("x")
        await store.written.wait()
        assert store.commits[0]["chat/1"] == b'{"said":["x"]}'
        await bot.app.stop()


SCOPES = ("bot", "chat", "user", "callback")


@pytest.mark.parametrize("arbitrary_callback_data", [False, True])
@pytest.mark.parametrize("on", list(product([False, True], repeat=4)))
async def test_what_is_off_is_neither_read_nor_written(
    kv: KV, on: tuple[bool, bool, bool, bool], arbitrary_callback_data: bool
) -> None:
    """Rows of a kind of data that `store_data` leaves out stay as they are, byte for byte."""
    options: dict[str, Any] = {"arbitrary_callback_data": arbitrary_callback_data}
    async with running(kv, text(remember), arbitrary_callback_data=True) as bot:
        await bot.ask(("old",))
        await bot.say("old")
    before = kv.all_columns()
    assert {scope_of(key) for key, *_ in before} == set(SCOPES)

    chosen = dict(zip(SCOPES, on, strict=True))
    store_data = PersistenceInput(**{f"{scope}_data": kept for scope, kept in chosen.items()})
    is_kept = {**chosen, "callback": chosen["callback"] and arbitrary_callback_data}
    async with running(kv, text(remember), store_data=store_data, **options) as bot:
        loaded = {
            "bot": bool(bot.app.bot_data),
            "chat": bool(bot.app.chat_data),
            "user": bool(bot.app.user_data),
            "callback": arbitrary_callback_data and bool(bot.cache.persistence_data[0]),
        }
        assert loaded == is_kept
        await bot.say("new")
        await bot.save()
        if arbitrary_callback_data:
            bot.cache.clear_callback_data()
            await bot.ask(("new",))
        await bot.save()
        bot.app.drop_chat_data(1)
        bot.app.drop_user_data(1)
    after = kv.all_columns()

    for scope, kept in is_kept.items():
        old, new = ([row for row in rows if scope_of(row[0]) == scope] for rows in (before, after))
        assert (old != new) is kept, scope


def scope_of(key: str) -> str:
    """Return what a row holds."""
    return key.partition("/")[0]


async def test_switched_off_data_is_not_touched_even_if_the_calls_are_made(
    kv: KV,
) -> None:
    """The persistence does not rely on PTB to keep away from what is switched off."""
    async with running(kv, text(remember), arbitrary_callback_data=True) as bot:
        await bot.ask(("old",))
        await bot.say("old")
    before = kv.all_columns()
    store_data = PersistenceInput(
        bot_data=False, chat_data=False, user_data=False, callback_data=False
    )
    store = WatchedStore(kv.persistence().store)
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(store, store_data=store_data)
    document = {"mine": 1}
    assert await persistence.get_user_data() == {}
    assert await persistence.get_chat_data() == {}
    assert await persistence.get_bot_data() == {}
    assert await persistence.get_callback_data() is None
    await persistence.update_user_data(1, document)
    await persistence.update_chat_data(1, document)
    await persistence.update_bot_data(document)
    await persistence.update_callback_data(([], {}))
    await persistence.refresh_user_data(1, document)
    await persistence.refresh_chat_data(1, document)
    await persistence.refresh_bot_data(document)
    await persistence.drop_user_data(1)
    await persistence.drop_chat_data(1)
    await persistence.flush()
    assert document == {"mine": 1}
    assert (store.reads, store.scans, store.tries) == (0, 0, 0)
    assert kv.all_columns() == before


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
async def test_after_a_shutdown_that_failed_others_may_have_written(
    bot_db: Path, *, lazy: bool
) -> None:
    """PTB loads nothing when it is initialised again, and memory may be old."""

    async def tick(_: Update, context: Any) -> None:
        for data in (context.bot_data, context.chat_data):
            data["n"] = data.get("n", 0) + 1

    def new() -> Bot:
        store = SqliteStore(bot_db, busy_timeout=0.1)
        return through.build(store, CommandHandler("tick", tick), lazy=lazy)

    one, other = new(), new()
    await one.app.initialize()
    for chat in (1, 2, 3):
        await one.say("/tick", chat)
    with locked_by_another_program(bot_db):
        await one.say("/tick", 2)
        with pytest.raises(WriteError, match="left in"):
            await one.app.shutdown()
    assert {type(error) for error in one.errors} == {WriteError}
    async with other.app:
        for chat in (1, 1, 2):
            await other.say("/tick", chat)
        other.app.drop_chat_data(3)
    await one.app.initialize()
    await one.app.update_persistence()
    for chat in (1, 2, 3):
        await one.say("/tick", chat)
    await one.app.shutdown()
    counts = {key: row["n"] for key, row in stored(bot_db).items() if isinstance(row, dict) and row}
    assert counts == {"chat/1": 4, "chat/2": 4, "chat/3": 1, "bot": 10}


async def test_a_failed_shutdown_takes_no_row_for_stored_that_is_not(store: WatchedStore) -> None:
    """A persistence that is loaded anew knows what it has found, and nothing else."""
    persistence = KVPersistence(store, update_interval=NEVER)
    await persistence.update_chat_data(1, {"a": 1})
    await persistence.update_chat_data(2, {"a": 1})
    store.failure = WriteError("the disk is full")
    for changes in (persistence.drop_chat_data(2), persistence.flush()):
        with pytest.raises(WriteError):
            await changes
    store.failure = None
    await store.store.apply({"chat/1": None})
    assert await persistence.get_chat_data() == {}
    await persistence.update_chat_data(1, {"a": 1})
    await persistence.update_chat_data(2, {"a": 1})
    await persistence.flush()
    assert await persistence.get_chat_data() == {1: {"a": 1}, 2: {"a": 1}}
    await persistence.flush()
