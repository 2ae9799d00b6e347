"""What one update, job or task changes is its own until it is written, whatever others do."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from bots import text_update
from handlers import ANY, conversation, remember, step, text
from stores import WatchedStore
from telegram import Update
from telegram.ext import (
    CallbackQueryHandler,
    CommandHandler,
    ConversationHandler,
    TypeHandler,
)
from through import build, counting, rows, running, settle, until

from kvpersist import DecodeError, MemoryStore, ReadError, SqliteStore
from kvpersist import application as application_module

Body: TypeAlias = Callable[[Any], Awaitable[None]]
"""What changes data, and looks what is stored."""


async def within_wait_for(body: Body, context: Any) -> None:
    """Let a task with the same context do it, as `asyncio.wait_for` does on Python 3.11."""
    await asyncio.wait_for(asyncio.ensure_future(body(context)), 60)


async def after_another_update(body: Body, context: Any) -> None:
    """Do it after another update was handled."""
    another = Update.de_json(text_update("x", chat_id=9), context.bot)
    await context.application.process_update(another)
    await body(context)


async def in_a_task(body: Body, context: Any) -> None:
    """Let a task do it that may outlive the handler."""
    context.application.create_task(body(context))


async def in_a_task_of_the_update(body: Body, context: Any) -> None:
    """Let a task do it that PTB knows to belong to the update."""
    update = Update.de_json(text_update("x"), context.bot)
    context.application.create_task(body(context), update)


async def here(body: Body, context: Any) -> None:
    """Do it."""
    await body(context)


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
@pytest.mark.parametrize("block", [True, False], ids=["block", "no-block"])
@pytest.mark.parametrize(
    "way", [here, within_wait_for, after_another_update, in_a_task, in_a_task_of_the_update]
)
async def test_it_is_durable_when_update_persistence_returns(
    store: WatchedStore,
    way: Callable[[Body, Any], Awaitable[None]],
    *,
    block: bool,
    lazy: bool,
) -> None:
    """Wherever in an update that is awaited, though others are being written meanwhile."""
    seen: list[bytes | None] = []

    async def change(context: Any) -> None:
        context.chat_data["asked"] = True
        await context.application.update_persistence()
        seen.append(rows(store).get("chat/1"))

    async def handle(_: Update, context: Any) -> None:
        await way(change, context)

    handler = CommandHandler("ask", handle, block=block)
    async with running(store, handler, text(remember), lazy=lazy, concurrent_updates=8) as bot:
        await asyncio.gather(bot.say("/ask"), *[bot.say("x", chat) for chat in range(2, 9)])
        await until(lambda: len(seen) > 0)
        assert seen == [b'{"asked":true}']


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
async def test_it_is_durable_when_update_persistence_returns_in_a_job(
    store: WatchedStore, *, lazy: bool
) -> None:
    """A job that PTB runs, and the data of its chat and user."""
    seen: list[set[str]] = []

    async def tick(context: Any) -> None:
        context.chat_data["ticked"] = context.user_data["ticked"] = True
        await context.application.update_persistence()
        seen.append({*rows(store)})

    async with running(store, jobs=True, lazy=lazy) as bot:
        assert bot.app.job_queue is not None
        bot.app.job_queue.run_once(tick, when=0, chat_id=5, user_id=6)
        await until(lambda: len(seen) > 0)
        assert seen == [{"bot", "chat/5", "user/6"}]


async def test_an_update_is_durable_though_another_writes_much(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written in slices does not take along what others have marked, and drop it."""
    monkeypatch.setattr(application_module, "_SLICE", 0)

    async def much(_: Update, context: Any) -> None:
        for chat in range(100, 200):
            context.application.chat_data[chat]["x"] = 1
        context.application.mark_data_for_update_persistence(chat_ids=range(100, 200))

    async def little(_: Update, context: Any) -> None:
        context.application.chat_data[7]["x"] = 1
        context.application.mark_data_for_update_persistence(chat_ids=7)
        for _turn in range(5):
            await asyncio.sleep(0)
        context.chat_data["x"] = 1

    seen: list[set[str]] = []

    async def say_little() -> None:
        await bot.say("/little")
        seen.append({"chat/1", "chat/7"} & rows(store).keys())

    handlers = CommandHandler("much", much), CommandHandler("little", little)
    async with running(store, *handlers, concurrent_updates=8) as bot:
        await asyncio.gather(say_little(), bot.say("/much", 2))
        assert seen == [{"chat/1", "chat/7"}]


@pytest.mark.parametrize("who", ["another", "itself"])
async def test_what_is_changed_after_it_was_written_is_written_again(
    store: WatchedStore, who: str
) -> None:
    """What an update has marked stays marked until that update ends."""
    saved = asyncio.Event()

    async def change(_: Update, context: Any) -> None:
        other = context.application.chat_data[7]
        other["step"] = 1
        context.application.mark_data_for_update_persistence(chat_ids=7)
        if who == "itself":
            await context.application.update_persistence()
        await saved.wait()
        other["step"] = 2

    async with running(store, CommandHandler("change", change)) as bot:
        update = asyncio.create_task(bot.say("/change"))
        await settle()
        await bot.save()
        saved.set()
        await update
        assert rows(store)["chat/7"] == b'{"step":2}'


@pytest.mark.parametrize("turns", range(25))
async def test_no_step_of_a_conversation_is_lost_with_a_cancelled_update(
    store: WatchedStore, turns: int
) -> None:
    """PTB tells of a step once; whoever was told goes on, though nobody waits for it any more."""
    order = conversation("order", 0, 1, 2)
    async with running(store, order, text(remember)) as bot:
        await bot.say("/start")
        update = asyncio.create_task(bot.say("x"))
        for _ in range(turns):
            await asyncio.sleep(0)
        update.cancel()
        await asyncio.wait([update])
        await bot.save()
        states = order._conversations
        assert rows(store)["conversation/order/[1,1]"] == str(states[1, 1]).encode()


async def test_what_a_task_marks_while_its_update_is_written_is_written_too(
    store: WatchedStore,
) -> None:
    """An update that is over writes nothing more; such a mark is nobody's, and written at once."""
    go_on = asyncio.Event()

    async def mark(app: Any) -> None:
        await go_on.wait()
        app.chat_data[7]["x"] = 1
        app.mark_data_for_update_persistence(chat_ids=7)

    tasks: list[asyncio.Task[None]] = []

    async def begin(_: Update, context: Any) -> None:
        tasks.append(asyncio.create_task(mark(context.application)))

    async with running(store, CommandHandler("begin", begin)) as bot:
        store.gate.clear()
        update = asyncio.create_task(bot.say("/begin"))
        await store.entered.wait()
        go_on.set()
        await asyncio.wait(tasks)
        store.gate.set()
        await update
        await until(lambda: "chat/7" in rows(store))


async def test_what_an_update_uses_is_looked_at_once(store: WatchedStore) -> None:
    """Its data is refreshed before PTB does it, which then has nothing to refresh."""
    async with running(store, text(remember), text(remember)) as bot:
        reads = store.reads
        await bot.say("x")
        assert store.reads - reads == len(["bot", "chat", "user"])


async def test_a_handler_can_look_again_what_others_wrote(store: WatchedStore) -> None:
    """`CallbackContext.refresh_data` is PTB's, and public."""

    async def look(_: Update, context: Any) -> None:
        rows(store)["chat/1"] = b'{"edited":true}'
        await context.refresh_data()
        assert context.chat_data == {"edited": True}

    async with running(store, text(remember), CommandHandler("look", look)) as bot:
        await bot.say("x")
        await bot.say("/look")
        assert rows(store)["chat/1"] == b'{"edited":true}'


async def test_a_task_of_a_job_may_change_its_data(store: WatchedStore) -> None:
    """Also after the job has ended."""
    go_on = asyncio.Event()

    async def change(context: Any) -> None:
        await go_on.wait()
        context.chat_data["later"] = True

    async def tick(context: Any) -> None:
        context.application.create_task(change(context))

    async with running(store, jobs=True) as bot:
        assert bot.app.job_queue is not None
        await bot.app.job_queue.run_once(tick, when=3600, chat_id=5).run(bot.app)
        await until(lambda: "chat/5" in rows(store))
        go_on.set()
        await until(lambda: rows(store)["chat/5"] == b'{"later":true}')


async def test_what_outlives_a_job_is_written(store: WatchedStore) -> None:
    """What a task marks after the job that made it; and what another does after it has failed."""
    go_on = asyncio.Event()

    async def mark(app: Any) -> None:
        await go_on.wait()
        app.chat_data[7]["x"] = 1
        app.mark_data_for_update_persistence(chat_ids=7)

    async def fail_and_go_on(context: Any) -> None:
        await context.application.process_error(None, ValueError("told by a task of its own"))
        await go_on.wait()
        await settle()
        context.chat_data["later"] = True

    tasks: list[asyncio.Task[None]] = []

    async def tick(context: Any) -> None:
        tasks.append(asyncio.create_task(mark(context.application)))
        context.application.create_task(fail_and_go_on(context))

    async def note(_: object, __: Any) -> None:
        """Take note, in a task that PTB makes for it."""

    async with running(store, jobs=True) as bot:
        bot.app.add_error_handler(note, block=False)
        assert bot.app.job_queue is not None
        await bot.app.job_queue.run_once(tick, when=3600, chat_id=5).run(bot.app)
        await until(lambda: "chat/5" in rows(store))
        go_on.set()
        await until(lambda: "chat/7" in rows(store))
        await until(lambda: rows(store)["chat/5"] == b'{"later":true}')
        bot.errors.clear()


async def test_an_update_may_be_handled_inside_of_itself(store: WatchedStore) -> None:
    """What is changed before, in and after the inner handling is written."""

    async def again(update: Update, context: Any) -> None:
        context.chat_data["depth"] = context.chat_data.get("depth", 0) + 1
        if context.chat_data["depth"] < 3:
            await context.application.process_update(update)
            context.chat_data["after"] = True

    async with running(store, CommandHandler("again", again)) as bot:
        await bot.say("/again")
        assert rows(store)["chat/1"] == b'{"depth":3,"after":true}'


async def test_a_task_may_follow_an_update_in_the_same_task(store: WatchedStore) -> None:
    """What was used by an update that is over says nothing about what comes after it."""

    async def change() -> None:
        await asyncio.sleep(0)
        bot.app.chat_data[1]["later"] = True

    async with running(store, counting("count")) as bot:
        update = await bot.say("/count")
        await bot.app.create_task(change(), update)
        await settle()
        assert rows(store)["chat/1"] == b'{"count":1,"later":true}'


@pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12 made tasks that begin at once")
async def test_tasks_may_begin_at_once(store: WatchedStore) -> None:
    """Also if they end before whoever makes them knows them."""
    loop = asyncio.get_running_loop()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009  not in 3.11

    async def mark(_: Update, context: Any) -> None:
        context.application.chat_data[7]["x"] = 1
        context.application.mark_data_for_update_persistence(chat_ids=7)

    async with running(store, CommandHandler("mark", mark, block=False)) as bot:
        await bot.say("/mark")
        await until(lambda: "chat/7" in rows(store))
    loop.set_task_factory(None)


@pytest.mark.parametrize("failure", [None, ReadError("I/O error")], ids=["damaged", "unreadable"])
@pytest.mark.parametrize("how", ["block", "no-block", "update_persistence"])
@pytest.mark.parametrize("is_known", [True, False], ids=["known", "new"])
@pytest.mark.parametrize("buttons", [True, False], ids=["buttons", "no-buttons"])
async def test_what_cannot_be_read_is_not_overwritten(
    store: WatchedStore, failure: ReadError | None, how: str, *, is_known: bool, buttons: bool
) -> None:
    """Not by handlers, which PTB would run for later groups, nor by error handlers."""

    async def note(_: object, context: Any) -> None:
        context.chat_data["failed"] = True
        if how == "update_persistence":
            await context.application.update_persistence()

    handlers = text(remember), text(remember)
    async with running(store, *handlers, arbitrary_callback_data=buttons) as bot:
        bot.app.add_error_handler(note, block=how != "no-block")
        if is_known:
            await bot.say("x")
        precious = b'{"said":["x"],"precious":true' + (b"," if failure is None else b"") + b"}"
        rows(store)["chat/1"] = precious
        store.failure = failure
        await bot.say("y")
        await settle()
        store.failure = None
        await bot.save()
        assert rows(store)["chat/1"] == precious
        assert all(isinstance(error, ReadError | DecodeError) for error in bot.errors)
        assert len(bot.errors) == 1
        bot.errors.clear()
        rows(store)["chat/1"] = b'{"said":[]}'
        await bot.say("z")
        # What an error handler has put into data that was never read is not kept.
        kept = b'{"said":["x","x","z","z"],"failed":true}' if is_known else b'{"said":["z","z"]}'
        assert rows(store)["chat/1"] == kept


async def test_a_job_whose_data_cannot_be_read_overwrites_nothing(store: WatchedStore) -> None:
    """PTB does not run it then, but counts it as done."""

    async def tick(context: Any) -> None:
        context.chat_data["ticked"] = True

    async with running(store, jobs=True) as bot:
        assert bot.app.job_queue is not None
        job = bot.app.job_queue.run_once(tick, when=3600, chat_id=5)
        rows(store)["chat/5"] = b'{"precious":true}'
        store.failure = ReadError("I/O error")
        await job.run(bot.app)
        await settle()
        store.failure = None
        await bot.save()
        assert rows(store)["chat/5"] == b'{"precious":true}'
        assert isinstance(bot.errors.pop(), ReadError)
        await job.run(bot.app)
        await until(lambda: rows(store)["chat/5"] == b'{"precious":true,"ticked":true}')


async def test_what_is_marked_is_written_though_its_task_goes_on(store: WatchedStore) -> None:
    """By PTB's next run, or at once; and again when the task has ended."""
    go_on = asyncio.Event()

    async def work(_: Update, context: Any) -> None:
        context.application.chat_data[7]["step"] = 1
        context.application.drop_chat_data(8)
        context.application.mark_data_for_update_persistence(chat_ids=7)
        await go_on.wait()
        context.application.chat_data[7]["step"] = 2

    for block in (True, False):
        go_on.clear()
        rows(store)["chat/8"] = b"{}"
        async with running(store, CommandHandler("work", work, block=block)) as bot:
            update = asyncio.create_task(bot.say("/work"))
            await settle()
            await bot.save()
            assert rows(store)["chat/7"] == b'{"step":1}'
            assert "chat/8" not in rows(store)
            go_on.set()
            await update
            await until(lambda: rows(store)["chat/7"] == b'{"step":2}')


async def test_what_a_task_marks_that_looks_again_is_part_of_the_update(
    store: WatchedStore,
) -> None:
    """`refresh_data` in a task of asyncio's makes that a run of its own, which PTB never ends."""

    async def look_and_mark(context: Any) -> None:
        await context.refresh_data()
        context.application.chat_data[7]["x"] = 1
        context.application.drop_chat_data(8)
        context.application.mark_data_for_update_persistence(chat_ids=7)

    async def gather(_: Update, context: Any) -> None:
        await asyncio.gather(look_and_mark(context))

    rows(store)["chat/8"] = b"{}"
    async with running(store, CommandHandler("gather", gather)) as bot:
        await bot.say("/gather")
        assert rows(store)["chat/7"] == b'{"x":1}'
        assert "chat/8" not in rows(store)
        context = bot.app.context_types.context(bot.app, chat_id=1)
        rows(store)["chat/8"] = b"{}"
        bot.app.chat_data[7]["x"] = 2
        await asyncio.create_task(look_and_mark(context))
        await until(lambda: "chat/8" not in rows(store))


async def test_a_cancelled_step_of_a_conversation_stays_where_it_was(store: WatchedStore) -> None:
    """PTB would raise it in the update of whoever comes next, and forget the steps of others."""
    tasks: list[asyncio.Task[Any]] = []

    async def wait(_: Update, __: Any) -> int:
        tasks.append(asyncio.current_task())  # type: ignore[arg-type]
        await asyncio.Event().wait()
        return 1

    states: Any = {0: [CommandHandler("wait", wait, block=False)], 1: []}
    order: Any = ConversationHandler(
        [CommandHandler("start", step(0, "started"))], states, [], name="order", persistent=True
    )
    async with running(store, order, text(remember)) as bot:
        await bot.say("/start", 1)
        await bot.say("/wait", 1)
        await settle()
        tasks[0].cancel()
        await settle()
        await bot.say("/start", 2)
        assert rows(store)["conversation/order/[1,1]"] == b"0"
        assert rows(store)["conversation/order/[2,2]"] == b"0"


async def test_a_conversation_that_has_not_begun_is_not_removed_again_and_again(
    store: WatchedStore,
) -> None:
    """While its entry point works PTB tells in each run that it has no state."""
    go_on = asyncio.Event()

    async def wait(_: Update, __: Any) -> int:
        await go_on.wait()
        return 0

    states: Any = {0: []}
    order: Any = ConversationHandler(
        [CommandHandler("start", wait, block=False)], states, [], name="order", persistent=True
    )
    async with running(store, order) as bot:
        await bot.say("/start", 1)
        await settle()
        await bot.save()
        commits = len(store.commits)
        for _ in range(5):
            await bot.say("x", 1)
            await bot.save()
        assert len(store.commits) == commits
        go_on.set()
        await until(lambda: "conversation/order/[1,1]" in rows(store) or not bot.app.running)


async def test_a_drop_is_waited_for_by_whoever_asks(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though another run of the same update has it in its hands."""
    monkeypatch.setattr(application_module, "_SLICE", 0)
    seen: list[bool] = []

    async def drop(_: Update, context: Any) -> None:
        app = context.application
        for chat in range(100, 130):
            app.chat_data[chat]["x"] = 1
        app.mark_data_for_update_persistence(chat_ids=range(100, 130))
        app.drop_chat_data(8)

        async def save() -> None:
            await app.update_persistence()
            seen.append("chat/8" in rows(store))

        await asyncio.gather(save(), save())

    rows(store)["chat/8"] = b'{"secret":1}'
    async with running(store, CommandHandler("drop", drop)) as bot:
        await bot.say("/drop")
        assert seen == [False, False]


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
async def test_what_was_dropped_and_is_like_new_has_no_row(
    store: WatchedStore, *, lazy: bool
) -> None:
    """Also after `update_persistence`; what is put there, and taken away again, has one."""

    async def drop(_: Update, context: Any) -> None:
        context.application.drop_chat_data(1)
        await context.application.update_persistence()

    async def change(_: Update, context: Any) -> None:
        context.application.drop_chat_data(1)
        context.application.chat_data[1]["x"] = 1
        await context.application.update_persistence()
        context.chat_data.clear()

    drops = CommandHandler("drop", drop), CommandHandler("change", change)
    async with running(store, text(remember), *drops, lazy=lazy) as bot:
        await bot.say("x")
        await bot.say("/drop")
        assert "chat/1" not in rows(store)
        await bot.say("/change")
        assert rows(store)["chat/1"] == b"{}"
        leftovers = bot.app._chat_ids_to_be_deleted_in_persistence
        await bot.save()
        assert not leftovers


@pytest.mark.parametrize("block", [True, False], ids=["block", "no-block"])
@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
async def test_what_error_handlers_change_is_written(
    store: WatchedStore, *, lazy: bool, block: bool
) -> None:
    """The data of the update stays in memory until they are done; what they load does too."""
    go_on = asyncio.Event()

    async def fail(_: Update, __: Any) -> None:
        raise ValueError

    async def note(_: object, context: Any) -> None:
        data, app = context.chat_data, context.application
        await app.persistence.load("user", 7)
        other = app.user_data[7]
        if not block:
            await go_on.wait()
        data["failures"] = other["failures"] = 1
        app.mark_data_for_update_persistence(user_ids=7)

    handlers = CommandHandler("fail", fail), text(remember)
    async with running(store, *handlers, lazy=lazy, max_documents=1) as bot:
        bot.app.add_error_handler(note, block=block)
        await bot.say("/fail")
        for chat in range(2, 9):
            await bot.say("x", chat)
        go_on.set()
        await until(lambda: {"chat/1", "user/7"} <= rows(store).keys())
        await until(lambda: rows(store)["chat/1"] == b'{"failures":1}')
        await until(lambda: b'"failures":1' in rows(store)["user/7"])
        bot.errors.clear()


async def test_error_handlers_that_take_their_time_hold_up_nobody(store: WatchedStore) -> None:
    """What jobs and handlers with ``block=False`` have changed is written meanwhile."""
    go_on = asyncio.Event()

    async def wait(_: object, __: Any) -> None:
        await go_on.wait()

    async def spoil(_: Update, context: Any) -> None:
        context.chat_data["bad"] = object()

    handlers = CommandHandler("spoil", spoil, block=False), counting("count")
    async with running(store, *handlers) as bot:
        bot.app.add_error_handler(wait)
        await bot.say("/spoil", 1)
        await until(lambda: len(bot.errors) > 0)
        bot.app.chat_data[7]["x"] = 1
        bot.app.mark_data_for_update_persistence(chat_ids=7)
        await until(lambda: "chat/7" in rows(store))
        go_on.set()
        bot.errors.clear()


@pytest.mark.parametrize("block", [True, False], ids=["block", "no-block"])
async def test_callback_data_that_its_handler_changes_is_written(
    store: WatchedStore, *, block: bool
) -> None:
    """Also if it was handed over before that."""
    go_on = asyncio.Event()

    async def press(update: Update, context: Any) -> None:
        await context.application.update_persistence()
        await go_on.wait()
        assert update.callback_query is not None
        data: Any = update.callback_query.data
        data.append("more")

    handler = CallbackQueryHandler(press, block=block)
    async with running(store, handler, arbitrary_callback_data=True) as bot:
        message = await bot.ask(["a"])
        press_task = asyncio.create_task(bot.press(message))
        await settle()
        go_on.set()
        await press_task
        await until(lambda: any(b'["a","more"]' in row for row in rows(store).values()))


async def test_an_update_that_outlives_the_bot_leaves_the_store_closed(tmp_path: Path) -> None:
    """Others may have the file; what it changed is written all the same."""
    go_on = asyncio.Event()

    async def wait(_: Update, context: Any) -> None:
        await go_on.wait()
        context.chat_data["late"] = True

    bot_db = tmp_path / "bot.db"
    async with running(SqliteStore(bot_db), CommandHandler("wait", wait)) as bot:
        update = asyncio.create_task(bot.say("/wait"))
        await until(lambda: 1 in bot.app.chat_data)
    go_on.set()
    await update
    other = SqliteStore(bot_db)
    await other.open()
    assert (await other.read(["chat/1"])) == {"chat/1": b'{"late":true}'}
    await other.close()


async def test_what_is_changed_when_a_conversation_times_out_is_written(
    store: WatchedStore,
) -> None:
    """PTB by itself does not know whose data the handlers of `TIMEOUT` have changed."""

    async def note(_: Update, context: Any) -> None:
        context.chat_data["timeout"] = True

    handler: Any = ConversationHandler(
        [CommandHandler("start", step(0, "started"))],
        {0: [text(step(0, "again"))], ConversationHandler.TIMEOUT: [TypeHandler(Update, note)]},
        [],
        name="order",
        persistent=True,
        conversation_timeout=timedelta(milliseconds=1),
    )
    async with running(store, handler, jobs=True) as bot:
        await bot.say("/start")
        await until(lambda: rows(store)["chat/1"] == b'{"timeout":true}')
        await until(lambda: "conversation/order/[1,1]" not in rows(store))


async def test_a_program_that_ends_in_a_handler_loses_nothing(store: WatchedStore) -> None:
    """What it had changed before is written by the next run, or at shutdown."""

    class Ended(BaseException):
        """Ends a program, as `SystemExit` does; asyncio handles that one by itself."""

    async def end(_: Update, context: Any) -> None:
        context.chat_data["before"] = True
        raise Ended

    async with running(store, CommandHandler("end", end)) as bot:
        with pytest.raises(Ended):
            await bot.say("/end")
    assert rows(store)["chat/1"] == b'{"before":true}'


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_ends_leaves_the_rest_to_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it was writing in the background is written by the next, which can be shut down."""
    caplog.set_level("CRITICAL", "asyncio")  # "Task was destroyed", as intended
    bot = build(WatchedStore(MemoryStore()), ANY)
    store = bot.app.persistence.store  # type: ignore[union-attr]

    async def begin() -> None:
        await bot.app.initialize()
        store.gate.clear()
        bot.app.chat_data[1]["x"] = 1
        bot.app.mark_data_for_update_persistence(chat_ids=1)
        await store.entered.wait()

    async def go_on() -> None:
        store.gate = asyncio.Event()
        store.gate.set()
        bot.app.chat_data[2]["x"] = 1
        bot.app.mark_data_for_update_persistence(chat_ids=2)
        await until(lambda: "chat/2" in rows(store))
        await bot.app.shutdown()

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    asyncio.run(asyncio.wait_for(go_on(), 60))
    assert {*rows(store)} == {"bot", "chat/1", "chat/2"}


@pytest.mark.parametrize("how", ["job", "task", "error"])
async def test_what_a_job_has_dropped_has_no_row(store: WatchedStore, how: str) -> None:
    """With ``lazy=True`` an empty document is in memory, which is no row unless it is changed."""

    async def drop(context: Any) -> None:
        await context.application.persistence.load("chat", [1, 2])
        for chat in (1, 2):
            context.application.drop_chat_data(chat)
        await settle()
        context.application.mark_data_for_update_persistence(chat_ids=[1, 2])
        context.application.chat_data[2]["new"] = 1

    async def in_task(_: Update, context: Any) -> None:
        context.application.create_task(drop(context))

    async def on_error(_: object, context: Any) -> None:
        await drop(context)

    handlers = text(remember), CommandHandler("task", in_task)
    async with running(store, *handlers, lazy=True, jobs=True) as bot:
        for chat in (1, 2):
            await bot.say("x", chat)
        if how == "job":
            assert bot.app.job_queue is not None
            await bot.app.job_queue.run_once(drop, when=3600, chat_id=1).run(bot.app)
        elif how == "task":
            await bot.say("/task", 5)
        else:
            bot.app.add_error_handler(on_error, block=False)
            await bot.app.process_error(None, ValueError())
        await until(lambda: rows(store).get("chat/2") == b'{"new":1}')
        await settle()
        await bot.save()
        assert "chat/1" not in rows(store)
        bot.errors.clear()
