"""Arbitrary callback data across a restart, through a real `Application`.

What PTB's own `PicklePersistence` promises too is asked of it as well, so that these tests are
checked against PTB's own idea of persistence. A run ends in two ways: shut down, and crashed after
the last run of `update_persistence`.
"""

from __future__ import annotations

from typing import Any

import pytest
from bots import NEVER
from handlers import ANY
from storages import KV, Storage, rows_of, running
from stores import WatchedStore
from telegram import Update
from telegram.ext import (
    CallbackQueryHandler,
    InvalidCallbackData,
)

from kvpersist import (
    EncodeError,
    KVPersistence,
    MemoryStore,
    WriteError,
)


async def test_a_button_of_an_earlier_run_still_has_its_data(storage: Storage, crash: bool) -> None:
    """What a button carries, tuples too, is what a press brings after a restart."""
    data = [("vote", 3), ("vote", ("nested", [1, 2])), {"page": 1}, 7, "word", True, 2.5]
    async with running(storage, ANY, arbitrary_callback_data=True, crash=crash) as bot:
        message = await bot.ask(*data)
        await bot.save()
    async with running(storage, ANY, arbitrary_callback_data=True) as bot:
        for number, item in enumerate(data):
            query = await bot.press(message, number)
            assert query.data == item
            assert type(query.data) is type(item)


async def test_the_callback_data_comes_back_in_its_order(storage: Storage, crash: bool) -> None:
    """Keyboards, queries, access times and the order of each are what they were."""
    async with running(storage, ANY, arbitrary_callback_data=True, crash=crash) as bot:
        messages = [await bot.ask((number, "x")) for number in range(12)]
        for number in (7, 2, 7, 11, 0):
            await bot.press(messages[number])
        await bot.save()
        keyboards, queries = bot.cache.persistence_data
    async with running(storage, arbitrary_callback_data=True, crash=crash) as bot:
        assert bot.cache.persistence_data == (keyboards, queries)
        assert list(bot.cache.persistence_data[1]) == list(queries)
        await bot.ask("another")
        await bot.save()
        keyboards, queries = bot.cache.persistence_data
    async with running(storage, arbitrary_callback_data=True) as bot:
        assert bot.cache.persistence_data == (keyboards, queries)
        assert list(bot.cache.persistence_data[1]) == list(queries)


async def test_a_restart_does_not_change_who_is_evicted_next(storage: Storage, crash: bool) -> None:
    """A small cache lets go of the same keyboards with and without a restart in between."""
    options: dict[str, Any] = {"arbitrary_callback_data": 3}
    async with running(storage, ANY, **options, crash=crash) as bot:
        old, *kept = [await bot.ask((number,)) for number in range(4)]
        await bot.press(kept[0])
        await bot.save()
    async with running(storage, ANY, **options, crash=crash) as bot:
        assert isinstance((await bot.press(old)).data, InvalidCallbackData)
        kept.append(await bot.ask((4,)))
        await bot.save()
    async with running(storage, ANY, **options) as bot:
        # PTB's cache counts being saved as being used, so age decides and not the press.
        assert isinstance((await bot.press(kept.pop(0))).data, InvalidCallbackData)
        assert [(await bot.press(message)).data for message in kept] == [(2,), (3,), (4,)]


async def test_a_keyboard_that_was_evicted_loses_its_row(kv: KV) -> None:
    """There is one row a keyboard, as many as the cache may hold."""
    async with running(kv, ANY, arbitrary_callback_data=3) as bot:
        for number in range(10):
            await bot.ask((number,))
            await bot.save()
        assert len(rows_of(kv, "callback/")) == 3
        keyboards, _ = bot.cache.persistence_data
    assert set(rows_of(kv, "callback/")) == {f"callback/{keyboard}" for keyboard, _, _ in keyboards}


async def test_dropped_callback_data_does_not_come_back(storage: Storage, crash: bool) -> None:
    """After `drop_callback_data` a press is invalid in the next run, that of others is not."""

    async def drop(update: Update, context: Any) -> None:
        context.drop_callback_data(update.callback_query)

    dropping = CallbackQueryHandler(drop)
    async with running(storage, arbitrary_callback_data=True) as bot:
        gone, kept = await bot.ask(("gone",)), await bot.ask(("kept",))
    async with running(storage, dropping, arbitrary_callback_data=True, crash=crash) as bot:
        await bot.press(gone)
        await bot.save()
    async with running(storage, ANY, arbitrary_callback_data=True) as bot:
        assert isinstance((await bot.press(gone)).data, InvalidCallbackData)
        assert (await bot.press(kept)).data == ("kept",)
    if isinstance(storage, KV):
        assert len(rows_of(storage, "callback/")) == 1


async def test_cleared_callback_data_leaves_the_queries(storage: Storage, crash: bool) -> None:
    """`clear_callback_data` removes keyboards for good; PTB still knows the queries' ids."""
    async with running(storage, ANY, arbitrary_callback_data=True) as bot:
        one, two = await bot.ask(("one",)), await bot.ask(("two",))
        await bot.press(two)
        await bot.press(one)
    async with running(storage, arbitrary_callback_data=True, crash=crash) as bot:
        queries = bot.cache.persistence_data[1]
        assert len(queries) == 2
        bot.cache.clear_callback_data()
        await bot.save()
    async with running(storage, arbitrary_callback_data=True, crash=crash) as bot:
        assert bot.cache.persistence_data == ([], queries)
        assert list(bot.cache.persistence_data[1]) == list(queries)
        bot.cache.clear_callback_queries()
        await bot.save()
    if isinstance(storage, KV):
        assert rows_of(storage, "callback/") == {}
    async with running(storage, ANY, arbitrary_callback_data=True) as bot:
        assert isinstance((await bot.press(one)).data, InvalidCallbackData)


async def test_cleared_queries_leave_the_keyboards(storage: Storage, crash: bool) -> None:
    """`clear_callback_queries` alone changes nothing about what buttons carry."""
    async with running(storage, ANY, arbitrary_callback_data=True, crash=crash) as bot:
        message = await bot.ask(("one",))
        await bot.press(message)
        await bot.save()
        bot.cache.clear_callback_queries()
        await bot.save()
    async with running(storage, ANY, arbitrary_callback_data=True) as bot:
        assert bot.cache.persistence_data[1] == {}
        assert (await bot.press(message)).data == ("one",)


async def test_a_keyboard_that_cannot_be_stored_fails_alone(kv: KV, crash: bool) -> None:
    """The others are written; the error names it, and comes again with every run until it goes."""
    async with running(kv, ANY, arbitrary_callback_data=True, crash=crash) as bot:
        first = await bot.ask(("first",))
        bad = await bot.ask(object())
        last = await bot.ask(("last",))
        (_, keyboard, _) = [keyboard for keyboard, _, _ in bot.cache.persistence_data[0]]
        for _ in range(2):
            await bot.save()
            (error,) = bot.errors
            assert isinstance(error, EncodeError)
            assert (error.key, error.scope) == (f"callback/{keyboard}", "callback")
            assert error.path.startswith('["buttons"]')
            bot.errors.clear()
        bot.cache.drop_data(await bot.press(bad))
        await bot.save()
    async with running(kv, ANY, arbitrary_callback_data=True) as bot:
        assert (await bot.press(first)).data == ("first",)
        assert (await bot.press(last)).data == ("last",)
        assert isinstance((await bot.press(bad)).data, InvalidCallbackData)


async def test_a_removal_that_was_refused_is_told_of_until_it_took_place() -> None:
    """The next run does not take a row for gone that the store refused to remove."""
    memory = MemoryStore()
    store = WatchedStore(memory)
    persistence = KVPersistence(store, update_interval=NEVER)
    await persistence.update_callback_data(([("old", 1.0, {}), ("new", 2.0, {})], {}))
    store.failure = WriteError("the disk is full")
    for _ in range(2):
        with pytest.raises(WriteError, match="callback/old"):
            await persistence.update_callback_data(([("new", 2.0, {})], {}))
    store.failure = None
    await persistence.update_callback_data(([("new", 2.0, {})], {}))
    assert set(memory.rows) == {"callback/new"}
    store.commits.clear()
    await persistence.update_callback_data(([("new", 2.0, {})], {}))
    assert store.commits == []
    await persistence.flush()
