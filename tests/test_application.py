"""`application_builder`: what an update changed is durable when it counts as processed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from bots import NEVER, Telegram, text_update
from handlers import ANY, conversation, nothing, remember, step, text
from stores import WatchedStore
from telegram import Bot as PlainBot
from telegram import Message, Update
from telegram.ext import (
    Application,
    ApplicationBuilder,
    CallbackDataCache,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    Defaults,
    DictPersistence,
    ExtBot,
    MessageHandler,
    PersistenceInput,
    TypeHandler,
    filters,
)
from through import build, counting, rows, running, settle, until

from kvpersist import (
    ConfigurationError,
    EncodeError,
    KVPersistence,
    MemoryStore,
    ReadError,
    SqliteStore,
    WriteError,
    WriteThroughApplication,
    application_builder,
)
from kvpersist import application as application_module
from kvpersist.callback_cache import watch
from kvpersist.rows import Rows


async def test_an_update_is_durable_when_it_was_processed(store: WatchedStore) -> None:
    """Chat, user and bot data of one update are one transaction, without a run of PTB's."""
    async with running(store, text(remember)) as bot:
        await bot.say("x")
        said = b'{"said":["x"]}'
        assert store.commits == [{"chat/1": said, "user/1": said, "bot": said}]


async def test_an_update_that_changes_nothing_writes_nothing(tmp_path: Path) -> None:
    """Reading costs no statement: no row is written, and none is read."""
    seen: list[str] = []

    async def look(_: Update, context: Any) -> None:
        seen.append(repr((context.chat_data, context.user_data, context.bot_data)))

    store = WatchedStore(SqliteStore(tmp_path / "bot.db"))
    async with running(store, text(remember), CommandHandler("look", look)) as bot:
        await bot.say("x")
        store.commits.clear()
        for _ in range(3):
            await bot.say("/look")
        await bot.app.update_persistence()
        assert store.commits == []
        assert len(seen) == 3


async def test_an_unhandled_update_costs_nothing(store: WatchedStore) -> None:
    """A chat that no handler cares for gets no row."""
    async with running(store, counting("count")) as bot:
        await bot.say("x")
        assert store.commits == []


async def test_reading_only_costs_no_statement_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the wal-index at hand, refreshing asks SQLite nothing while nobody has written."""
    sql: list[str] = []
    store = SqliteStore(tmp_path / "bot.db")
    watched = WatchedStore(store)
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(store, update_interval=NEVER)
    await persistence.get_chat_data()
    await persistence.update_chat_data(1, {"a": 1})
    await persistence.refresh_chat_data(1, {"a": 1})
    fetch = SqliteStore._fetch

    async def spy(self: SqliteStore, statement: str, *more: Any) -> Any:
        sql.append(statement)
        return await fetch(self, statement, *more)

    monkeypatch.setattr(SqliteStore, "_fetch", spy)
    for _ in range(3):
        await persistence.refresh_chat_data(1, {"a": 1})
        await persistence.refresh_chat_data(2, {})
    assert sql == []
    assert watched.commits == []
    await persistence.flush()


async def test_updates_that_end_together_share_transactions(store: WatchedStore) -> None:
    """While one commit is under way, those that end meanwhile form the next one."""
    async with running(store, text(remember), concurrent_updates=64) as bot:
        store.gate.clear()
        updates = [asyncio.create_task(bot.say("x", chat)) for chat in range(1, 41)]
        await store.entered.wait()
        await settle()
        assert not any(update.done() for update in updates[1:])
        store.gate.set()
        await asyncio.gather(*updates)
        assert len(store.commits) <= 3
        assert len(rows(store)) == 81


async def test_an_update_waits_for_what_another_writes_on_its_behalf(store: WatchedStore) -> None:
    """It is not processed before what it changed is durable, whoever handed it over."""
    async with running(store, text(remember), concurrent_updates=8) as bot:
        store.gate.clear()
        first = asyncio.create_task(bot.say("x", 1, 5))
        second = asyncio.create_task(bot.say("x", 1, 5))
        await store.entered.wait()
        await settle()
        assert not first.done()
        assert not second.done()
        store.gate.set()
        await asyncio.gather(first, second)
        assert rows(store)["chat/1"] == b'{"said":["x","x"]}'


@pytest.mark.parametrize("buttons", [False, True], ids=["no-buttons", "buttons"])
@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
async def test_people_whom_no_handler_has_heard_get_no_row(
    store: WatchedStore, *, lazy: bool, buttons: bool
) -> None:
    """In a group with many members a bot hears much that it does not handle."""
    async with running(
        store, CommandHandler("x", nothing), lazy=lazy, arbitrary_callback_data=buttons
    ) as bot:
        for chat in (5, 6, 7):
            await bot.say("chatter", chat)
        await bot.app.update_persistence()
    assert {*rows(store)} <= {"bot"}


async def test_a_concurrent_update_is_looked_at_once(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PTB marks a concurrent update twice; the second time there is nothing left to write."""
    encoded: list[str] = []
    encode = Rows.encode_document

    def count(rows: Rows, key: str, document: object, kind: type) -> bytes:
        encoded.append(key)
        return encode(rows, key, document, kind)

    async with running(store, text(remember), concurrent_updates=8) as bot:
        await bot.say("x")
        monkeypatch.setattr(Rows, "encode_document", count)
        update = Update.de_json(text_update("y"), bot.app.bot)
        await bot.app.update_queue.put(update)
        await until(lambda: len(store.commits) > 1)
        await settle()
        assert sorted(encoded) == ["bot", "chat/1", "user/1"]
        monkeypatch.undo()
    assert len(store.commits) == 2


async def test_a_handler_that_raises_keeps_its_changes(store: WatchedStore) -> None:
    """What it changed before it raised is written, as PTB does."""

    async def spoil(_: Update, context: Any) -> None:
        context.chat_data["half"] = "done"
        raise ValueError("spoilt")

    async with running(store, CommandHandler("spoil", spoil)) as bot:
        await bot.say("/spoil")
        assert rows(store)["chat/1"] == b'{"half":"done"}'
        (error,) = bot.errors
        assert str(error) == "spoilt"
        bot.errors.clear()


async def test_a_handler_that_does_not_block_is_written_when_it_is_done(
    store: WatchedStore,
) -> None:
    """Nothing waits for the next run of PTB's. It fails if PTB ceases to tell that it is done."""
    go_on = asyncio.Event()

    async def slow(_: Update, context: Any) -> None:
        await go_on.wait()
        context.chat_data["slow"] = "done"

    async with running(store, CommandHandler("slow", slow, block=False)) as bot:
        await bot.say("/slow")
        assert rows(store) == {}
        go_on.set()
        await until(lambda: "chat/1" in rows(store))
        assert rows(store)["chat/1"] == b'{"slow":"done"}'


async def test_what_a_job_changed_is_written_when_it_is_done(store: WatchedStore) -> None:
    """Nothing waits for the next run of PTB's. It fails if PTB ceases to tell that it is done."""

    async def tick(context: Any) -> None:
        context.chat_data["ticks"] = context.chat_data.get("ticks", 0) + 1
        context.user_data["ticked"] = True

    async with running(store, jobs=True) as bot:
        assert bot.app.job_queue is not None
        await bot.app.job_queue.run_once(tick, when=3600, chat_id=5, user_id=6).run(bot.app)
        await until(lambda: "user/6" in rows(store))
        assert rows(store)["chat/5"] == b'{"ticks":1}'


async def test_what_is_written_after_a_drop_is_kept(store: WatchedStore) -> None:
    """PTB by itself loses it: what is marked for deletion is not written in the same run."""

    async def drop(_: Update, context: Any) -> None:
        context.application.drop_chat_data(1)
        context.application.drop_user_data(1)

    async def again(_: Update, context: Any) -> None:
        context.application.drop_chat_data(1)
        context.application.chat_data[1]["new"] = True

    async with running(
        store, text(remember), CommandHandler("drop", drop), CommandHandler("again", again)
    ) as bot:
        await bot.say("x")
        await bot.say("/drop")
        assert {*rows(store)} == {"bot"}
        await bot.say("y")
        assert rows(store)["chat/1"] == b'{"said":["y"]}'
        await bot.say("/again")
        await bot.app.update_persistence()
        assert rows(store)["chat/1"] == b'{"new":true}'


async def test_a_dropped_row_goes_though_what_came_after_it_cannot_be_stored(
    store: WatchedStore,
) -> None:
    """What was to be forgotten must not come back with the next start."""

    async def spoil(_: Update, context: Any) -> None:
        context.application.drop_chat_data(1)
        context.application.chat_data[1]["bad"] = object()

    async with running(store, text(remember), CommandHandler("spoil", spoil)) as bot:
        await bot.say("x")
        await bot.say("/spoil")
        assert "chat/1" not in rows(store)
        assert isinstance(bot.errors.pop(), EncodeError)


async def test_a_state_that_cannot_be_stored_is_told(store: WatchedStore) -> None:
    """The data of the update is written; the error handlers run when nothing is handed over."""
    seen: list[bool] = []

    async def look(_: object, context: Any) -> None:
        seen.append(context.application.persistence.store_data.chat_data)

    async with running(store, conversation("order", object()), text(remember)) as bot:
        bot.app.add_error_handler(look)
        await bot.say("/start")
        await bot.say("x")
        assert rows(store)["chat/1"] == b'{"said":["x"]}'
        assert isinstance(bot.errors.pop(), EncodeError)
        assert seen == [True]


async def test_data_moves_with_a_chat_at_once(store: WatchedStore) -> None:
    """Both ways to call `migrate_chat_data` write the new row and remove the old one."""
    async with running(store, text(remember)) as bot:
        await bot.say("x")
        bot.app.migrate_chat_data(old_chat_id=1, new_chat_id=-2)
        await until(lambda: "chat/1" not in rows(store))
        assert rows(store)["chat/-2"] == b'{"said":["x"]}'
        moved = text_update("x", chat_id=-2, migrate_to_chat_id=-3)
        bot.app.migrate_chat_data(message=Message.de_json(moved["message"], bot.app.bot))
        await bot.app.update_persistence()
        assert {"chat/-3"} == {key for key in rows(store) if key.startswith("chat/")}


async def test_data_of_others_is_written_when_it_is_marked(store: WatchedStore) -> None:
    """Marked inside of a handler it is part of the update; outside it is written at once."""

    async def greet(_: Update, context: Any) -> None:
        context.application.user_data[7]["greeted"] = True
        context.application.mark_data_for_update_persistence(user_ids=7, chat_ids=[8, 9])

    async with running(store, CommandHandler("greet", greet)) as bot:
        await bot.say("/greet")
        assert rows(store)["user/7"] == b'{"greeted":true}'
        assert not {"chat/8", "chat/9"} & {*rows(store)}
        bot.app.chat_data[8]["later"] = 1
        bot.app.mark_data_for_update_persistence(chat_ids=8)
        bot.app.mark_data_for_update_persistence(chat_ids=9)
        await until(lambda: "chat/8" in rows(store))


def test_what_is_marked_before_the_bot_runs_is_written_when_it_does(store: WatchedStore) -> None:
    """Without an event loop nothing can be written yet."""
    telegram = Telegram()
    app = (
        application_builder(KVPersistence(store, update_interval=NEVER))
        .token("1000:TEST")
        .request(telegram)
        .get_updates_request(telegram)
        .build()
    )
    app.chat_data[1]["early"] = True
    app.mark_data_for_update_persistence(chat_ids=1)

    async def run() -> None:
        async with app:
            pass

    asyncio.run(run())
    assert rows(store)["chat/1"] == b'{"early":true}'
    app._is_live = True
    app.drop_chat_data(1)


async def test_a_step_of_a_conversation_is_part_of_the_update(store: WatchedStore) -> None:
    """State and data of an update are committed before it was processed; the end as well."""
    async with running(store, conversation()) as bot:
        await bot.say("/start")
        assert any(key.startswith("conversation/") for key in rows(store))
        before = len(store.commits)
        await bot.say("one")
        assert len(store.commits) > before


async def test_buttons_are_part_of_the_update(store: WatchedStore) -> None:
    """A button that was sent by a handler works after the bot was killed."""

    async def ask(_: Update, __: Any) -> None:
        await bot.ask(("data",))

    async with running(store, CommandHandler("ask", ask), arbitrary_callback_data=True) as bot:
        await bot.say("/ask")
        assert any(key.startswith("callback/") for key in rows(store))


async def test_a_value_that_cannot_be_stored_is_told_once_and_stops_nobody(
    store: WatchedStore,
) -> None:
    """Its row stays as it was, all others are written; it is told again if it differs."""

    async def spoil(_: Update, context: Any) -> None:
        context.chat_data["bad"] = object()
        context.bot_data["n"] = context.bot_data.get("n", 0) + 1

    async with running(store, text(remember), CommandHandler("spoil", spoil)) as bot:
        await bot.say("x")
        await bot.say("/spoil")
        await bot.say("/spoil")
        assert rows(store)["chat/1"] == b'{"said":["x"]}'
        assert rows(store)["bot"] == b'{"said":["x"],"n":2}'
        (error,) = bot.errors
        assert isinstance(error, EncodeError)
        assert error.key == "chat/1"
        bot.errors.clear()
        del bot.app.chat_data[1]["bad"]
        await bot.say("y")
        assert rows(store)["chat/1"] == b'{"said":["x","y"]}'


async def test_a_button_that_cannot_be_stored_is_told(store: WatchedStore) -> None:
    """The other keyboards of the update are written."""
    async with running(store, ANY, arbitrary_callback_data=True) as bot:
        await bot.ask(object())
        await bot.ask("fine")
        await bot.say("x")
        assert sum(key.startswith("callback/") for key in rows(store)) == 1
        (error,) = bot.errors
        assert isinstance(error, EncodeError)
        bot.errors.clear()


async def test_a_store_that_refuses_is_told_to_the_error_handlers(store: WatchedStore) -> None:
    """The update ends, what it changed is kept, and written with the next one."""
    async with running(store, text(remember)) as bot:
        store.failure = WriteError("the disk is full")
        await bot.say("x")
        (error,) = bot.errors
        assert isinstance(error, WriteError)
        bot.errors.clear()
        store.failure = None
        await bot.say("y")
        assert rows(store)["chat/1"] == b'{"said":["x","y"]}'


@pytest.mark.parametrize("how", ["no-block", "task", "update_persistence"])
async def test_an_error_handler_that_changes_data_is_told_once_of_an_outage(
    store: WatchedStore, how: str
) -> None:
    """It would be told of its own change, for ever; it is told again of the next outage."""
    told: list[object] = []

    async def report() -> None:
        bot.app.bot_data["reports"] = len(told)

    async def note(_: object, context: Any) -> None:
        told.append(context.error)
        context.bot_data["errors"] = len(told)
        if how == "task":
            context.application.create_task(report())
        if how == "update_persistence":
            await context.application.update_persistence()

    async with running(store, counting("count")) as bot:
        bot.app.add_error_handler(note, block=how != "no-block")
        for outage in (1, 2):
            told.clear()
            store.failure = WriteError("the disk is full")
            await bot.say("/count")
            await settle()
            await bot.app.update_persistence()
            await settle()
            # That of the bot's data, which the first one made the error handler change.
            assert 1 <= len(told) <= 2
            tries = store.tries
            await bot.app.update_persistence()
            assert store.tries == tries
            assert len(told) <= 2
            store.failure = None
            await bot.say("/count", 2)
            assert rows(store)["chat/1"] == b'{"count":%d}' % outage
        assert all(isinstance(error, WriteError) for error in bot.errors)
        bot.errors.clear()


async def test_what_was_mended_is_told_again_when_it_is_spoilt_again(store: WatchedStore) -> None:
    """Of conversations too, which PTB hands over only when they take a step."""
    spoilt = object()
    states: Any = {0: [text(step(spoilt, "spoilt"), "bad")], spoilt: []}
    handler: Any = ConversationHandler(
        [CommandHandler("start", step(0, "started"))],
        states,
        [],
        name="order",
        persistent=True,
        allow_reentry=True,
    )
    async with running(store, handler) as bot:
        for _ in range(2):
            await bot.say("/start")
            await bot.say("bad")
            assert isinstance(bot.errors.pop(), EncodeError)
            assert bot.errors == []


async def test_a_bot_of_the_plain_class_can_be_used(store: WatchedStore) -> None:
    """`telegram.Bot` has no cache of callback data."""
    telegram = Telegram()
    plain = PlainBot("1:x", request=telegram, get_updates_request=telegram)
    store_data = PersistenceInput(callback_data=False)
    persistence = KVPersistence[Any, Any, Any](store, store_data=store_data, update_interval=NEVER)
    async with application_builder(persistence).bot(plain).build() as app:
        app.add_handler(text(remember))
        await app.process_update(Update.de_json(text_update("x"), plain))
        assert rows(store)["chat/1"] == b'{"said":["x"]}'


class Stubborn(dict[str, Any]):
    """A class of a bot's that cannot be copied."""

    def __deepcopy__(self, _: object) -> None:
        raise TypeError("no copies")


async def test_data_that_cannot_be_copied_is_stored(store: WatchedStore) -> None:
    """PTB by itself would stop saving all chats; here nothing is ever copied."""
    types = ContextTypes(bot_data=Stubborn, chat_data=Stubborn)
    async with running(store, conversation(), text(remember), context_types=types) as bot:
        await bot.say("x")
        await bot.app.update_persistence()
        assert rows(store)["chat/1"] == rows(store)["bot"] == b'{"said":["x"]}'


async def test_what_is_switched_off_is_not_written(store: WatchedStore) -> None:
    """`store_data` decides here too."""
    store_data = PersistenceInput(chat_data=False, bot_data=False, callback_data=False)
    async with running(store, text(remember), store_data=store_data) as bot:
        await bot.say("x")
        bot.app.drop_chat_data(1)
        await bot.app.update_persistence()
        assert {*rows(store)} == {"user/1"}


async def test_many_documents_do_not_stop_the_event_loop(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are encoded in slices, between which others have their turn."""
    monkeypatch.setattr(application_module, "_SLICE", 0)
    turns = 0

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async with running(store) as bot:
        other = asyncio.create_task(turn())
        assert all(bot.app.chat_data[chat] == {} for chat in range(100))
        bot.app.mark_data_for_update_persistence(chat_ids=range(100))
        await bot.app.update_persistence()
        other.cancel()
        assert turns >= 100
        assert len(rows(store)) == 101


async def test_handlers_of_other_kinds_of_updates_are_written_through(
    store: WatchedStore,
) -> None:
    """An update of the bot's own kind may change the data of the bot."""

    async def note(update: str, context: Any) -> None:
        context.bot_data["heard"] = update

    async with running(store, TypeHandler(str, note)) as bot:
        await bot.app.process_update("news")
        assert rows(store)["bot"] == b'{"heard":"news"}'


async def test_a_handler_can_answer_when_its_changes_are_durable(store: WatchedStore) -> None:
    """`update_persistence` inside of a handler writes what it has changed so far."""
    seen: list[bytes] = []

    async def answer(_: Update, context: Any) -> None:
        context.chat_data["asked"] = 1
        await context.application.update_persistence()
        seen.append(rows(store)["chat/1"])
        context.chat_data["asked"] = 2

    async with running(store, CommandHandler("ask", answer)) as bot:
        await bot.say("/ask")
        assert seen == [b'{"asked":1}']
        assert rows(store)["chat/1"] == b'{"asked":2}'


async def test_an_answer_of_a_later_group_can_wait_for_the_state(store: WatchedStore) -> None:
    """There the step of the conversation is durable too; a chat that was dropped stays gone."""
    seen: list[set[str]] = []

    async def answer(_: Update, context: Any) -> None:
        await context.application.update_persistence()
        seen.append({*rows(store)})

    async def drop(_: Update, context: Any) -> None:
        context.application.drop_chat_data(1)

    order = conversation()
    async with running(store, order, CommandHandler("drop", drop), ANY) as bot:
        bot.app.add_handler(TypeHandler(Update, answer), group=9)
        await bot.say("/start")
        await bot.say("/drop")
        assert seen == [
            {"bot", "chat/1", "conversation/order/[1,1]", "user/1"},
            {"bot", "conversation/order/[1,1]", "user/1"},
        ]
        assert "chat/1" not in rows(store)


async def test_a_cancelled_update_loses_nothing(store: WatchedStore) -> None:
    """What its handler had changed is written by the next run; PTB would wait for its chat."""
    waiting = asyncio.Event()

    async def wait(_: Update, context: Any) -> None:
        context.chat_data["before"] = True
        await waiting.wait()

    async with running(store, CommandHandler("wait", wait)) as bot:
        update = asyncio.create_task(bot.say("/wait"))
        await until(lambda: "before" in bot.app.chat_data[1])
        update.cancel()
        await asyncio.wait([update])
        assert update.cancelled()
        await bot.app.update_persistence()
        assert rows(store)["chat/1"] == b'{"before":true}'


async def test_an_update_that_is_cancelled_while_it_is_written_loses_nothing(
    store: WatchedStore,
) -> None:
    """Data, states and buttons are handed over, and committed without it."""

    async def ask(_: Update, context: Any) -> int:
        context.chat_data["asked"] = True
        await bot.ask(("data",))
        return 0

    handler: Any = ConversationHandler(
        [CommandHandler("start", ask)], {0: []}, [], name="order", persistent=True
    )
    async with running(store, handler, arbitrary_callback_data=True) as bot:
        store.gate.clear()
        update = asyncio.create_task(bot.say("/start"))
        await store.entered.wait()
        update.cancel()
        await asyncio.wait([update])
        assert update.cancelled()
        store.gate.set()
        await until(lambda: len(store.commits) > 0)
        written = {key.partition("/")[0] for key in rows(store)}
        assert written == {"bot", "callback", "chat", "conversation", "user"}


async def test_a_long_write_that_is_cancelled_goes_on_with_the_next(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of many documents those that were not encoded yet are kept in mind, drops included."""
    monkeypatch.setattr(application_module, "_SLICE", 0)

    async def use_all(_: Update, context: Any) -> None:
        assert all(context.application.chat_data[chat] is not None for chat in range(100))
        context.application.mark_data_for_update_persistence(chat_ids=range(100))
        context.application.drop_chat_data(50)

    async with running(store, text(remember), CommandHandler("all", use_all)) as bot:
        await bot.say("x", 50)
        store.gate.clear()
        update = asyncio.create_task(bot.say("/all"))
        await settle()
        update.cancel()
        await asyncio.wait([update])
        assert update.cancelled()
        store.gate.set()
        await bot.app.update_persistence()
        chats = {key for key in rows(store) if key.startswith("chat/")}
        assert chats == {f"chat/{chat}" for chat in range(100)} - {"chat/50"}


async def test_an_error_handler_may_write_and_change_documents(store: WatchedStore) -> None:
    """It is told outside of everything that could wait for it; what it changes is written."""

    async def spoil(_: Update, context: Any) -> int:
        context.chat_data["bad"] = object()
        return 0

    async def note(_: object, context: Any) -> None:
        context.bot_data["errors"] = context.bot_data.get("errors", 0) + 1
        context.application.chat_data[7]["told"] = True
        context.application.mark_data_for_update_persistence(chat_ids=7)
        await context.application.update_persistence()

    handler: Any = ConversationHandler(
        [CommandHandler("start", spoil)], {0: []}, [], name="order", persistent=True
    )
    async with running(store, handler) as bot:
        bot.app.add_error_handler(note)
        await bot.say("/start")
        assert rows(store)["bot"] == b'{"errors":1}'
        assert rows(store)["chat/7"] == b'{"told":true}'
        assert "conversation/order/[1,1]" in rows(store)
        assert isinstance(bot.errors.pop(), EncodeError)


async def test_an_update_that_is_handled_again_is_written_again(store: WatchedStore) -> None:
    """The same object may come twice."""
    async with running(store, counting("count")) as bot:
        update = Update.de_json(text_update("/count"), bot.app.bot)
        for _ in range(2):
            await bot.app.process_update(update)
        assert rows(store)["chat/1"] == b'{"count":2}'


async def test_two_bots_in_one_process_do_not_meet(store: WatchedStore) -> None:
    """A handler of one may let the other handle an update, and both are written through."""
    other_store = WatchedStore(MemoryStore())
    async with running(other_store, conversation(), text(remember)) as other:

        async def pass_on(_: Update, context: Any) -> None:
            context.chat_data["before"] = True
            await other.say("/start")
            await other.say("x")
            await other.app.update_persistence()
            context.chat_data["after"] = True

        async with running(store, conversation(), CommandHandler("pass", pass_on)) as bot:
            await bot.say("/pass")
            assert rows(store)["chat/1"] == b'{"before":true,"after":true}'
            assert rows(other_store)["chat/1"] == b'{"said":["x"]}'


async def test_an_update_inside_of_an_update_is_written(store: WatchedStore) -> None:
    """A handler may hand another update to its own application."""

    async def inside(_: Update, context: Any) -> None:
        context.chat_data["outer"] = 1
        await bot.say("x", 2)
        context.chat_data["outer"] = 2

    async with running(store, text(remember), CommandHandler("inside", inside)) as bot:
        await bot.say("/inside")
        assert rows(store)["chat/1"] == b'{"outer":2}'
        assert rows(store)["chat/2"] == b'{"said":["x"]}'


@pytest.mark.parametrize("wrong", ["12", ["12"], 1.5, [None]])
async def test_an_id_that_cannot_be_one_is_refused(store: WatchedStore, wrong: Any) -> None:
    """PTB takes any key; a row needs an int."""
    async with running(store, lazy=True) as bot:
        with pytest.raises(ConfigurationError, match="an id is an int, not ('12'|1.5|None)"):
            bot.app.mark_data_for_update_persistence(chat_ids=wrong)
        with pytest.raises(ConfigurationError, match="an id is an int, not ('12'|1.5|None)"):
            await bot.app.persistence.load("chat", wrong)  # type: ignore[union-attr]


async def test_a_key_that_is_no_id_is_told(store: WatchedStore) -> None:
    """PTB's own calls take any."""
    async with running(store) as bot:
        bot.app.drop_chat_data("x")  # type: ignore[arg-type]
        await bot.app.update_persistence()
        assert isinstance(bot.errors.pop(), EncodeError)


async def test_a_persistence_has_one_application(store: WatchedStore) -> None:
    """At a time: two would have the same rows, each with a memory of its own."""
    persistence = KVPersistence(store, update_interval=NEVER)

    def application() -> Any:
        telegram = Telegram()
        builder = application_builder(persistence).token("1:x")
        return builder.request(telegram).get_updates_request(telegram).build()

    first, second = application(), application()
    await first.initialize()
    await first.initialize()
    with pytest.raises(ConfigurationError, match="one of its own"):
        await second.initialize()
    await first.shutdown()
    store.failure = ReadError("I/O error")
    with pytest.raises(ReadError):
        await first.initialize()
    store.failure = None
    await second.initialize()
    await second.shutdown()


def test_a_class_that_does_not_write_through_is_refused(store: WatchedStore) -> None:
    """A bot would lose what it was made for, and not know."""
    with pytest.raises(ConfigurationError, match="must derive from kvpersist.WriteThrough"):
        application_builder(KVPersistence(store)).application_class(Application)


async def test_a_shutdown_waits_for_what_is_being_written(store: WatchedStore) -> None:
    """And for error handlers that hear of it: nothing is left that opens the store again."""

    async def note(_: object, context: Any) -> None:
        for _turn in range(200):
            await asyncio.sleep(0)
        context.bot_data["told"] = True

    bot = build(store)
    bot.app.add_error_handler(note)
    async with bot.app:
        bot.app.chat_data[5]["x"] = 1
        bot.app.chat_data[6]["bad"] = object()
        bot.app.mark_data_for_update_persistence(chat_ids=[5, 6])
        await until(lambda: len(bot.errors) > 0)
    assert rows(store) == {"chat/5": b'{"x":1}', "bot": b'{"told":true}'}


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
async def test_a_bot_that_does_not_run_leaves_the_store_alone(
    store: WatchedStore, *, lazy: bool
) -> None:
    """Before its start PTB handles nothing; after its shutdown others may have the file."""
    bot = build(store, text(remember), lazy=lazy)
    with pytest.raises(RuntimeError, match="initialized"):
        await bot.say("x")
    assert (store.reads, store.tries) == (0, 0)
    async with bot.app:
        await bot.app.start()
        with pytest.raises(RuntimeError, match="still running"):
            await bot.app.shutdown()
        await bot.app.persistence.load("chat", 7)  # type: ignore[union-attr]
        bot.app.chat_data[7]["x"] = 1
        bot.app.mark_data_for_update_persistence(chat_ids=7)
        await until(lambda: "chat/7" in rows(store))
        await bot.app.stop()
    tries = store.tries
    bot.app.drop_chat_data(8)
    await settle()
    assert store.tries == tries


def test_another_persistence_is_refused(store: WatchedStore) -> None:
    """What is built must be what was asked for."""
    with pytest.raises(ConfigurationError, match="takes a KVPersistence"):
        application_builder("bot.db")  # type: ignore[arg-type]
    telegram = Telegram()
    builder = application_builder(KVPersistence(store, update_interval=NEVER))
    builder = builder.token("1:x").request(telegram).get_updates_request(telegram)
    with pytest.raises(ConfigurationError, match="do not set another persistence"):
        builder.persistence(DictPersistence()).build()


async def test_every_option_of_the_builder_can_be_used(store: WatchedStore) -> None:
    """Defaults, a subclass with arguments, context types of the bot's own."""

    class Custom(WriteThroughApplication):
        def __init__(self, name: str, **options: Any) -> None:
            super().__init__(**options)
            self.name = name

    telegram = Telegram()
    builder = application_builder(KVPersistence(store, update_interval=NEVER))
    app = (
        builder.token("1:x")
        .request(telegram)
        .get_updates_request(telegram)
        .defaults(Defaults(block=False))
        .application_class(Custom, {"name": "Ann"})
        .context_types(ContextTypes(chat_data=dict))
        .build()
    )
    assert isinstance(builder, ApplicationBuilder)
    assert app.name == "Ann"
    assert type(app.chat_data[1]) is dict
    assert type(app.bot_data) is dict


def test_the_private_name_of_ptb_is_there() -> None:
    """The one private name that `WriteThroughApplication` uses is called as it expects."""
    assert callable(Application._mark_for_persistence_update)


async def test_one_of_many_keyboards_is_one_row_and_one_encode(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a full cache costs is what was touched: made, pressed, evicted, dropped, cleared."""
    encoded: list[str] = []
    encode = Rows.encode

    def spy(self: Rows, key: str, value: object) -> bytes:
        encoded.append(key)
        return encode(self, key, value)

    async with running(store, ANY, arbitrary_callback_data=1024) as bot:
        messages = [await bot.ask((number,)) for number in range(1024)]
        await bot.say("x")
        assert sum(key.startswith("callback/") for key in rows(store)) == 1024
        monkeypatch.setattr(Rows, "encode", spy)
        store.commits.clear()
        await bot.press(messages[5])
        assert [list(commit) for commit in store.commits] == [encoded]
        assert len(encoded) == 1
        (document,) = (json.loads(text or b"") for text in store.commits[0].values())
        assert list(document["buttons"].values()) == [{"$tuple": [5]}]
        assert len(document["queries"]) == 1
        store.commits.clear()
        await bot.ask(("new",))
        await bot.say("x")
        assert sorted(text is None for text in store.commits[0].values()) == [False, True]
        await bot.app.update_persistence()
        assert len(store.commits) == 1
        bot.cache.clear_callback_data()
        await bot.say("x")
        assert sum(key.startswith("callback/") for key in rows(store)) == 1  # the press
        bot.cache.clear_callback_queries()
        await bot.say("x")
        assert not any(key.startswith("callback/") for key in rows(store))


async def test_buttons_survive_a_restart_of_a_bot_that_writes_through(store: WatchedStore) -> None:
    """Buttons, presses and who is evicted next are as they were, also in a cache watched before."""
    async with running(store, ANY, arbitrary_callback_data=3) as bot:
        messages = [await bot.ask((number,)) for number in range(3)]
        pressed = await bot.press(messages[0])
        await bot.app.stop()
        await bot.app.shutdown()
        await bot.app.initialize()
        await bot.app.start()
        assert (await bot.press(messages[1])).data == (1,)
        data = bot.cache.persistence_data
    async with running(store, ANY, arbitrary_callback_data=3) as bot:
        keyboards, queries = bot.cache.persistence_data
        assert [name for name, _, _ in keyboards] == [name for name, _, _ in data[0]]
        assert queries == data[1]
        assert (await bot.press(messages[2])).data == (2,)
        bot.cache.drop_data(pressed)
        await bot.say("x")


async def test_a_cache_that_ptb_has_changed_is_compared_as_a_whole(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What cannot be watched is handed over by PTB, and committed with the update all the same."""
    monkeypatch.setattr(application_module, "watch", lambda _: None)

    async def ask(_: Update, __: Any) -> None:
        await bot.ask(("data",))

    async with running(store, CommandHandler("ask", ask), arbitrary_callback_data=True) as bot:
        await bot.say("/ask")
        assert any(key.startswith("callback/") for key in rows(store))


async def test_ptb_keeps_its_cache_as_it_is_watched() -> None:
    """If PTB changes what is private about the cache, `watch` declines; this test tells."""
    telegram = Telegram()
    bot: ExtBot[None] = ExtBot(
        "1:x", request=telegram, get_updates_request=telegram, arbitrary_callback_data=True
    )
    cache = bot.callback_data_cache
    assert cache is not None
    watched = watch(cache)
    assert watched is not None
    watched.touch("the press of a button that is not known")
    assert watched.take() == ({}, {})
    cache._keyboard_data = {}
    cache.__class__ = CallbackDataCache
    assert watch(cache) is None


async def test_an_unhandled_press_is_written_and_an_update_of_nobody_is_too(
    store: WatchedStore,
) -> None:
    """What a press does to the cache is durable when it was processed, whoever handles it."""

    async def note(_: Update, context: Any) -> None:
        context.bot_data["noted"] = True

    nobody = MessageHandler(filters.ALL, note)
    async with running(store, nobody, arbitrary_callback_data=True) as bot:
        message = await bot.ask(("data",))
        await bot.press(message)
        assert any(key.startswith("callback/") for key in rows(store))
        assert "bot" in rows(store)
        await bot.app.process_update(Update(1))
    async with running(store, TypeHandler(Update, note)) as bot:
        await bot.app.process_update(Update(1))
        assert rows(store)["bot"] == b'{"noted":true}'
