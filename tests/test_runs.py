"""What one update, job or task changes is its own until it is written, whatever others do."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any, TypeAlias

import pytest
from bots import text_update
from handlers import ANY, conversation, remember, step, text
from stores import WatchedStore
from telegram import Update
from telegram.ext import CommandHandler, ConversationHandler, TypeHandler
from through import build, counting, rows, running, settle, until

from kvpersist import MemoryStore, ReadError
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
async def test_what_cannot_be_read_is_not_overwritten(
    store: WatchedStore, failure: ReadError | None
) -> None:
    """PTB would run the handlers of later groups with what memory has, and that be written."""
    async with running(store, text(remember), text(remember)) as bot:
        await bot.say("x")
        precious = b'{"said":["x"],"precious":true' + (b"," if failure is None else b"") + b"}"
        rows(store)["chat/1"] = precious
        store.failure = failure
        await bot.say("y")
        store.failure = None
        assert rows(store)["chat/1"] == precious
        assert rows(store)["user/1"] == b'{"said":["x","x"]}'
        (error,) = bot.errors
        assert failure is None or error is failure
        bot.errors.clear()
        rows(store)["chat/1"] = b'{"said":[]}'
        await bot.say("z")
        assert rows(store)["chat/1"] == b'{"said":["z","z"]}'


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
