"""What is a part of an update, and what is not: tasks, jobs, edits, error handlers."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest
from bots import press_update, text_update
from handlers import ANY, END, conversation, remember, step, text
from postgres_server import PostgresServer
from storages import PostgresStorage, rows_of
from tcp_proxy import proxied
from telegram import Update
from telegram.ext import CallbackQueryHandler, CommandHandler, ConversationHandler, TypeHandler
from test_workers_keyboards import take
from through import settle, until
from workers import persistence_of, workers

from kvpersist import (
    ConfigurationError,
    ConflictError,
    DecodeError,
    EncodeError,
    UnavailableError,
)
from kvpersist.workers import WorkerApplication

COMMIT = b"COMMIT AND CHAIN"


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


async def test_a_task_of_the_bots_own_is_no_part_of_the_update(bot: PostgresStorage) -> None:
    """Its edit is durable when it ends, also if the update was there when it began."""
    entered, go_on = asyncio.Event(), asyncio.Event()
    done: list[dict[str, bytes]] = []

    async def handle(_: Update, context: Any) -> None:
        async def work() -> None:
            async with context.application.persistence.edit("user", 7) as data:
                entered.set()
                await go_on.wait()
                data["coins"] = 10
            done.append(await asyncio.to_thread(lambda: bot.rows))

        context.application.create_task(work())
        await entered.wait()

    async with workers(bot, lambda: [TypeHandler(Update, handle)], 1) as (worker,):
        await worker.say("hi")
        go_on.set()
        await until(lambda: bool(done))
    assert done[0]["user/7"] == b'{"coins":10}'


async def test_a_job_is_no_part_of_the_update_that_has_planned_it(bot: PostgresStorage) -> None:
    """Its edit, and what it makes of ``bot_data``, stay though the update fails."""
    ran = asyncio.Event()

    async def work(context: Any) -> None:
        async with context.application.persistence.edit("user", 7) as data:
            data["coins"] = 10
        context.bot_data["job"] = 1
        ran.set()

    async def handle(update: Update, context: Any) -> None:
        await remember(update, context)
        context.job_queue.run_once(work, 0)
        await ran.wait()
        await asyncio.to_thread(bot.write, "chat/1", "{}")

    async with workers(bot, lambda: [TypeHandler(Update, handle)], 1, jobs=True) as (worker,):
        await worker.say("hi")
        (error,) = worker.errors
        assert isinstance(error, ConflictError)
        worker.errors.clear()
        await worker.save()
    assert bot.rows == {"chat/1": b"{}", "user/7": b'{"coins":10}', "bot": b'{"job":1}'}


async def test_an_update_waits_for_edits_of_its_handlers_tasks(bot: PostgresStorage) -> None:
    """They are a part of it, as the handler itself is."""
    go_on = asyncio.Event()

    async def handle(_: Update, context: Any) -> None:
        async def work(user_id: int) -> None:
            async with context.application.persistence.edit("user", user_id) as data:
                await go_on.wait()
                data["coins"] = 10

        handle.tasks = [asyncio.create_task(work(user_id)) for user_id in (7, 8)]  # type: ignore[attr-defined]
        await settle()
        asyncio.get_running_loop().call_later(0.01, go_on.set)

    async with workers(bot, lambda: [TypeHandler(Update, handle)], 1) as (worker,):
        await worker.say("hi")
        assert bot.rows["user/7"] == bot.rows["user/8"] == b'{"coins":10}'


async def test_an_edit_whose_update_has_failed_says_so(bot: PostgresStorage) -> None:
    """It does not return as if it had been written; one that begins later is on its own."""
    told: list[Exception] = []
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def handle(_: Update, context: Any) -> None:
        async def work() -> None:
            try:
                async with context.application.persistence.edit("user", 7) as data:
                    entered.set()
                    await go_on.wait()
                    data["coins"] = 10
            except UnavailableError as error:
                told.append(error)
            async with context.application.persistence.edit("user", 8) as data:
                data["coins"] = 10

        handle.task = asyncio.create_task(work())  # type: ignore[attr-defined]
        await entered.wait()
        await asyncio.Event().wait()

    async with workers(bot, lambda: [TypeHandler(Update, handle)], 1) as (worker,):
        task = asyncio.create_task(worker.say("hi"))
        await entered.wait()
        task.cancel()
        await asyncio.wait([task])
        go_on.set()
        await handle.task  # type: ignore[attr-defined]
    assert "nothing of it was written" in str(told[0])
    assert bot.rows == {"user/8": b'{"coins":10}'}


@pytest.mark.parametrize("way", ["cancelled", "failed"])
async def test_who_waits_for_documents_of_an_update_that_is_over_takes_no_connection(
    bot: PostgresStorage, way: str
) -> None:
    """All of them can be used again, and what was waited for is not locked."""
    inside = asyncio.Event()
    waiting: list[asyncio.Task[None]] = []

    async def wait(update: Update, context: Any) -> None:
        assert update.message is not None
        if update.message.text == "wait":
            inside.set()
            await context.application.persistence.load("user", 7)
        await remember(update, context)

    async def fail() -> None:
        await asyncio.sleep(0.05)
        raise RuntimeError("on purpose")

    script = persistence_of(bot)
    handlers = [TypeHandler(Update, wait, block=False)]
    async with workers(bot, lambda: handlers, 1, store={"pool_size": 1}) as (worker,):
        async with script.edit("user", 7):
            if way == "cancelled":
                task = asyncio.create_task(worker.say("wait"))
                await inside.wait()
                await settle()
                task.cancel()
                await asyncio.wait([task])
            else:
                persistence: Any = worker.app.persistence

                async def edit_both() -> None:
                    async with persistence.edit("user", 1):
                        waiting.append(asyncio.create_task(persistence.load("user", 7)))
                        await fail()

                with pytest.raises(RuntimeError):
                    await edit_both()
                await asyncio.wait(waiting)
                worker.errors.append(cast("Exception", waiting[0].exception()))
        await until(lambda: bool(worker.errors))
        (error,) = worker.errors
        assert isinstance(error, UnavailableError)
        worker.errors.clear()
        await worker.say("hi")
        await worker.say("hi", chat_id=7)
    await script.flush()
    assert bot.rows["chat/1"] == bot.rows["chat/7"] == b'{"said":["hi"]}'


@pytest.mark.parametrize("way", ["the update", "the step"])
async def test_what_is_cancelled_leaves_no_state_behind(bot: PostgresStorage, way: str) -> None:
    """Neither of its own conversation nor of others that the update could have been a step of."""
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def slow(_: object, __: object) -> int:
        inside.set()
        if way == "the step":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        await go_on.wait()
        return END

    def handlers() -> list[Any]:
        return [
            ConversationHandler(
                entry_points=[CommandHandler("start", step("A", "in A"))],
                states={"A": [text(slow, block=False)]},
                fallbacks=[],
                name="one",
                persistent=True,
            ),
            ConversationHandler(
                entry_points=[CommandHandler("start", step("B", "in B"))],
                states={"B": [text(step("B", "still in B"))]},
                fallbacks=[CommandHandler("end", step(END, "ended"))],
                name="two",
                persistent=True,
            ),
        ]

    async with workers(bot, handlers) as (first, second):
        await first.say("/start")
        task = asyncio.create_task(first.say("x"))
        await inside.wait()
        await settle()
        if way == "the update":
            task.cancel()
        await asyncio.wait([task])
        go_on.set()
        await settle()
        assert bot.rows["conversation/one/[1,1]"] == b'"A"'
        await second.say("/end")
        first.answers()
        await first.save()
        inside.clear()
        way = ""
        await first.say("x")
        assert first.answers() == []
        assert rows_of(bot, "conversation/") == {}


async def test_error_handlers_have_the_documents_of_the_update(bot: PostgresStorage) -> None:
    """Also those with ``block=False``, for which it waits."""

    async def fail(update: Update, context: Any) -> None:
        await remember(update, context)
        raise RuntimeError("on purpose")

    async def note(_: object, context: Any) -> None:
        await asyncio.sleep(0)
        context.chat_data["error"] = str(context.error)

    async with workers(bot, lambda: [TypeHandler(Update, fail)], 1) as (worker,):
        worker.app.add_error_handler(note, block=False)
        await worker.say("hi")
        worker.errors.clear()
    assert bot.rows["chat/1"] == b'{"said":["hi"],"error":"on purpose"}'


async def test_a_transfer_with_a_value_that_cannot_be_stored_is_none(bot: PostgresStorage) -> None:
    """Neither side of it is written, in an update, nor in a script."""

    async def give(_: Update, context: Any) -> None:
        async with context.application.persistence.edit("user", 2) as other:
            other["coins"] = 10
            context.user_data["coins"] = object()

    async with workers(bot, lambda: [TypeHandler(Update, give)], 1) as (worker,):
        await worker.say("hi")
        (error,) = worker.errors
        assert isinstance(error, EncodeError)
        assert str(error).startswith("user/1")
        worker.errors.clear()
    script = persistence_of(bot)

    async def transfer() -> None:
        async with script.edit("user", 1) as mine, script.edit("user", 2) as yours:
            mine["coins"] = object()
            yours["coins"] = 10

    with pytest.raises(EncodeError, match="user/1"):
        await transfer()
    await script.flush()
    assert bot.rows == {}


@pytest.mark.parametrize("fault", ["the body", "the row"])
async def test_half_a_transfer_is_never_written(bot: PostgresStorage, fault: str) -> None:
    """An exception that leaves the handler undoes the update, its conversation's step too.

    It counts as handled.
    """

    async def give(_: Update, context: Any) -> None:
        context.user_data["coins"] = -1
        async with context.application.persistence.edit("user", 2) as other:
            other["coins"] = 1
            raise KeyError("on purpose")

    def handlers() -> list[Any]:
        return [conversation(), TypeHandler(Update, give)]

    async with workers(bot, handlers, 1, deduplicate=True) as (worker,):
        bot.write("user/2", "[1]" if fault == "the row" else "{}")
        before = bot.rows
        update = Update.de_json(text_update("/start"), worker.app.bot)
        app: Any = worker.app
        assert await app.handle_update(update) is True
        (error,) = worker.errors
        assert isinstance(error, KeyError if fault == "the body" else DecodeError)
        worker.errors.clear()
        assert await app.handle_update(update) is False
    record = {f"update/{update.update_id}": b"{}"}
    assert bot.rows == before | record


async def test_a_keyboard_that_is_sent_in_an_edit_works(bot: PostgresStorage) -> None:
    """It is written at once, by whatever the edit is a part of no update."""

    def handlers() -> list[Any]:
        return [CallbackQueryHandler(take)]

    async with workers(bot, handlers, arbitrary_callback_data=True) as (first, second):
        persistence: Any = first.app.persistence
        async with persistence.edit("user", 7) as data:
            message = await first.ask(("tea", 1), ("cake", 1))
            data["asked"] = True
        await until(lambda: bool(rows_of(bot, "callback/")))
        await second.receive(press_update(message))
    assert b'["tea",1]' in bot.rows["chat/1"]


async def test_a_keyboard_of_which_nobody_knows_whether_it_was_written_holds_up_no_other(
    bot: PostgresStorage,
) -> None:
    """It is looked for, and left alone if it was."""
    async with proxied(bot.server.port) as proxy:
        storage = PostgresStorage(bot.server, port=proxy.port)
        options: dict[str, Any] = {"arbitrary_callback_data": True, "store": {"timeout": 0.3}}
        async with workers(storage, lambda: [ANY], 1, **options) as (worker,):
            await worker.say("hi")
            proxy.swallow_to = COMMIT
            proxy.is_down = True
            await worker.ask(1)
            await until(lambda: bool(worker.errors))
            assert "whether it was made" in str(worker.errors[0])
            worker.errors.clear()
            proxy.is_down = False
            await worker.ask(2)
            await worker.save()
            assert worker.errors == []
            assert len(rows_of(storage, "callback/")) == 2


async def test_the_same_update_can_be_handled_again(bot: PostgresStorage) -> None:
    """After it has failed, its buttons are looked for anew."""
    fails = True

    async def take_or_fail(update: Update, context: Any) -> None:
        await take(update, context)
        if fails:
            await asyncio.to_thread(bot.write, "chat/1", "{}")

    def handlers() -> list[Any]:
        return [CallbackQueryHandler(take_or_fail)]

    async with workers(bot, handlers, 1, arbitrary_callback_data=True) as (worker,):
        message = await worker.ask({"tea": 1}, {"cake": 1})
        await until(lambda: bool(rows_of(bot, "callback/")))
        update = Update.de_json(press_update(message), worker.app.bot)
        app: Any = worker.app
        with pytest.raises(ConflictError):
            await app.handle_update(update)
        fails = False
        await app.handle_update(update)
    assert bot.rows["chat/1"].startswith(b'{"pressed":[{"tea":1}]')


async def test_two_conversations_of_one_name_are_refused(bot: PostgresStorage) -> None:
    """They would have the same rows; one that is nested in several states is one."""

    def named(name: str) -> ConversationHandler[Any]:
        return ConversationHandler(
            entry_points=[text(remember)], states={}, fallbacks=[], name=name, persistent=True
        )

    child = named("child")
    parent = ConversationHandler(
        entry_points=[child], states={"A": [child], "B": [child]}, fallbacks=[], name="parent",
        persistent=True,
    )  # fmt: skip
    async with workers(bot, list, 1) as (worker,):
        app = worker.app
        assert isinstance(app, WorkerApplication)
        assert len(app._find_conversations(parent)) == 2
        with pytest.raises(ConfigurationError, match="'child'"):
            app._find_conversations(parent, named("child"))


async def test_bot_data_that_is_set_anew_is_the_updates(bot: PostgresStorage) -> None:
    """What a handler assigns to the application is what the update has, and nobody else."""

    async def renew(_: Update, context: Any) -> None:
        context.application.bot_data = {"new": 1}
        assert context.bot_data == {"new": 1}

    script = persistence_of(bot)
    async with script.edit("bot") as data:
        data["old"] = 1
    async with workers(bot, lambda: [TypeHandler(Update, renew)], 1) as (worker,):
        async with script.edit("bot") as data:
            data["others"] = 1
        await worker.say("hi")
        await worker.save()
    await script.flush()
    assert bot.rows["bot"] == b'{"new":1}'


async def test_starting_twice_forgets_nothing(bot: PostgresStorage) -> None:
    """What is in ``bot_data`` and not written yet is written."""
    async with workers(bot, lambda: [ANY], 1) as (worker,):
        worker.app.bot_data["x"] = 1
        await worker.app.initialize()
        await worker.save()
    assert bot.rows["bot"] == b'{"x":1}'


async def test_what_cannot_be_stored_is_told_once_and_holds_up_nothing(
    bot: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What jobs have made of ``bot_data``: old ids of updates are removed all the same."""
    monkeypatch.setattr("kvpersist.workers._TRIM_EVERY", 0.0)
    async with workers(bot, lambda: [ANY], 1, deduplicate=True) as (worker,):
        bot.write("update/1", "{}")
        worker.app.bot_data["bad"] = object()
        for _ in range(3):
            await worker.save()
        assert len(worker.errors) == 1
        assert "update/1" not in bot.rows
        worker.errors.clear()
        del worker.app.bot_data["bad"]
