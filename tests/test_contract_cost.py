"""What is written and read, by counting: never more than what changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

from bots import NEVER, Bot, Handler, build
from handlers import ANY, conversation, remember, text
from storages import KV
from stores import WatchedStore

from kvpersist import (
    KVPersistence,
    MemoryStore,
    Store,
)

Counted: TypeAlias = tuple[Bot, WatchedStore]


async def counting(*handlers: Handler, store: Store | None = None, **options: Any) -> Counted:
    """Return an initialised bot whose transactions are counted."""
    counted = WatchedStore(store or MemoryStore())
    bot = build(KVPersistence(counted, update_interval=NEVER), handlers, **options)
    await bot.app.initialize()
    return bot, counted


async def test_a_thousand_touched_chats_are_a_handful_of_transactions(kv: KV) -> None:
    """One run of the persistence does not cost a transaction a chat."""
    store = kv.persistence().store
    bot, counted = await counting(text(remember), store=store)
    for chat_id in range(1, 1001):
        await bot.say("x", chat_id)
    await bot.save()
    assert len(counted.commits) <= 5
    assert sum(map(len, counted.commits)) == 2001
    await bot.app.shutdown()


async def test_what_did_not_change_costs_no_write(kv: KV) -> None:
    """Touched, refreshed, restarted: a document that is the same is not written again."""
    for _ in range(2):
        store = kv.persistence().store
        bot, counted = await counting(
            ANY, conversation(), store=store, arbitrary_callback_data=True
        )
        if not bot.app.chat_data:
            for chat_id in range(1, 11):
                await bot.say("/start", chat_id)
                bot.app.chat_data[chat_id]["x"] = [chat_id, (1.5, None)]
            bot.app.bot_data["x"] = {"y": ["z"]}
            await bot.ask(("data",))
            await bot.save()
        counted.commits.clear()
        for chat_id in range(1, 11):
            await bot.say("/start", chat_id)
            await bot.save()
        await bot.save()
        assert counted.commits == []
        await bot.app.shutdown()
        assert counted.commits == []


async def test_one_changed_chat_of_many_is_one_row(kv: KV) -> None:
    """Of all that is stored, a run writes the documents that changed and nothing else."""
    bot, counted = await counting(ANY, store=kv.persistence().store)
    for chat_id in range(1, 101):
        await bot.say("x", chat_id)
    await bot.save()
    counted.commits.clear()
    for chat_id in range(1, 101):
        await bot.say("x", chat_id)
    bot.app.chat_data[50]["x"] = 1
    await bot.save()
    assert counted.commits == [{"chat/50": b'{"x":1}'}]
    await bot.app.shutdown()


async def test_one_changed_keyboard_of_many_is_one_row() -> None:
    """A full cache of which one keyboard was used, made or evicted writes that keyboard alone."""
    store = MemoryStore()
    bot, counted = await counting(ANY, store=store, arbitrary_callback_data=1024)
    messages = [await bot.ask((number,)) for number in range(1024)]
    await bot.save()
    assert sum(key.startswith("callback/") for key in store.rows) == 1024
    for number in (7, 1023, 7, 0):
        counted.commits.clear()
        await bot.press(messages[number])
        await bot.save()
        (written,) = [callback_rows(changes) for changes in counted.commits]
        assert len(written) == 1
    counted.commits.clear()
    await bot.ask(("new",))
    await bot.save()
    (written,) = [callback_rows(changes) for changes in counted.commits]
    assert sorted(text is None for text in written.values()) == [False, False]
    await bot.app.shutdown()


def callback_rows(changes: Mapping[str, bytes | None]) -> dict[str, bytes | None]:
    """Return those of `changes` that are of the callback data."""
    return {key: text for key, text in changes.items() if key.startswith("callback/")}


async def test_one_step_of_one_conversation_of_many_is_one_row(kv: KV) -> None:
    """A handler that everybody is in writes one small row when one of them takes a step."""
    store = kv.persistence().store
    bot, counted = await counting(conversation(), store=store)
    for chat_id in range(1, 501):
        await bot.say("/start", chat_id)
    await bot.save()
    counted.commits.clear()
    await bot.say("x", 250)
    await bot.save()
    assert counted.commits == [{"conversation/order/[250,250]": b'""'}]
    await bot.app.shutdown()


async def test_a_refresh_reads_three_rows_however_many_there_are() -> None:
    """An update costs one look at its chat, its user and the bot."""
    bot, counted = await counting(ANY)
    for chat_id in range(1, 101):
        await bot.say("x", chat_id)
    await bot.save()
    counted.reads = counted.scans = 0
    await bot.say("x", 5)
    assert (counted.reads, counted.scans) == (3, 0)
    await bot.app.shutdown()
