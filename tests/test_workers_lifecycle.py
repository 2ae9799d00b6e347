"""Workers that start, end, and are told what they cannot do."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from bots import Telegram, text_update
from handlers import ANY, remember, text
from postgres_server import PostgresServer
from storages import PostgresStorage, rows_of
from tcp_proxy import proxied
from telegram import Update
from telegram.ext import Application, CallbackDataCache, PersistenceInput, TypeHandler
from through import build, running, until
from workers import persistence_of, workers

from kvpersist import (
    ConfigurationError,
    KVPersistence,
    MemoryStore,
    NotInMemoryError,
    UnavailableError,
    WorkerApplication,
    WriteThroughApplication,
    application_builder,
)
from kvpersist.shared import Shared
from kvpersist.stores.postgres import PostgresStore


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"lazy": True}, "no lazy=True"),
        ({"on_bad_row": "set-aside"}, "no on_bad_row"),
        ({"shared": False, "deduplicate": True}, "goes with shared=True"),
        ({"shared": 1}, "shared must be a bool"),
        ({"deduplicate": "yes"}, "deduplicate must be a bool"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    bot: PostgresStorage, options: dict[str, Any], told: str
) -> None:
    """Before anything is connected."""
    with pytest.raises(ConfigurationError, match=told):
        KVPersistence(bot.store(), **{"shared": True, **options})


def test_only_postgresql_can_be_shared(tmp_path: Path) -> None:
    """With the reason; and without a file for what could not be written, for there is nothing."""
    for store in (tmp_path / "bot.db", MemoryStore()):
        with pytest.raises(ConfigurationError, match="PostgreSQL"):
            KVPersistence(store, shared=True)
    with pytest.raises(ConfigurationError, match="hold_timeout"):
        from_url(hold_timeout=0)
    store = from_url(rescue_file=tmp_path / "rescue.json")
    with pytest.raises(ConfigurationError, match="no rescue_file"):
        KVPersistence(store, shared=True)


def from_url(**options: Any) -> Any:
    """Return a store that is never opened."""
    return PostgresStore("postgresql://nobody@127.0.0.1/none", **options)


async def test_without_shared_nothing_can_be_locked() -> None:
    """There is nobody else who could write: one owner has the store."""
    alone = KVPersistence(MemoryStore())
    with pytest.raises(ConfigurationError, match="shared=True"):
        await alone.lock("bot")
    with pytest.raises(ConfigurationError, match="shared=True"):
        async with alone.edit("user", 1):
            pass


async def test_a_builder_of_ptbs_is_refused(bot: PostgresStorage) -> None:
    """It could not have each update's documents locked."""
    for kept in (PersistenceInput(), PersistenceInput(chat_data=False, user_data=False)):
        persistence = persistence_of(bot, store_data=kept)
        app = (
            Application.builder().token("1000:TEST").request(Telegram()).persistence(persistence)
        ).build()
        with pytest.raises(ConfigurationError, match="application_builder"):
            await app.initialize()
        await app.bot.shutdown()
        await persistence.flush()


def test_the_class_of_an_application_goes_with_its_persistence(bot: PostgresStorage) -> None:
    """Which of the two it is, and one that derives from it."""

    class Worker(WorkerApplication):
        """A bot's own."""

    class Alone(WriteThroughApplication):
        """Another."""

    shared = application_builder(persistence_of(bot)).token("1000:TEST")
    assert type(shared.application_class(Worker).build()) is Worker
    with pytest.raises(ConfigurationError, match="WorkerApplication"):
        application_builder(persistence_of(bot)).token("1:X").application_class(Alone).build()
    with pytest.raises(ConfigurationError, match="WorkerApplication"):
        application_builder(KVPersistence(MemoryStore())).application_class(Worker).token(
            "1:X"
        ).build()
    with pytest.raises(ConfigurationError, match="WorkerApplication"):
        application_builder(persistence_of(bot)).application_class(Application)


async def test_one_persistence_is_of_one_application(bot: PostgresStorage) -> None:
    """Another worker needs its own; and one that could not start leaves it to the next."""
    async with workers(bot, lambda: [ANY], 1) as (worker,):
        other = (
            application_builder(worker.app.persistence)  # type: ignore[arg-type]
            .token("1000:TEST")
            .request(Telegram())
            .get_updates_request(Telegram())
            .build()
        )
        with pytest.raises(ConfigurationError, match="another application"):
            await other.initialize()


async def test_a_worker_starts_again_in_another_event_loop(bot: PostgresStorage) -> None:
    """With the same application, as PTB allows; and reads what others have written meanwhile."""
    worker = build(bot.store(), text(remember), shared=True)

    async def live() -> None:
        async with worker.app:
            await worker.say("hi")

    await live()
    await asyncio.to_thread(asyncio.run, live())
    async with running(bot.store(), text(remember), shared=True) as other:
        await other.say("other")
    await live()
    assert bot.rows["chat/1"] == b'{"said":["hi","hi","other","hi"]}'


async def test_a_worker_that_is_not_running_handles_nothing(bot: PostgresStorage) -> None:
    """PTB's own words, and nothing is opened."""
    worker = build(bot.store(), text(remember), shared=True)
    with pytest.raises(RuntimeError, match="initialized"):
        await worker.say("hi")


async def test_a_worker_that_is_running_cannot_be_shut_down(bot: PostgresStorage) -> None:
    """As PTB says; it goes on."""
    async with workers(bot, lambda: [text(remember)], 1) as (worker,):
        with pytest.raises(RuntimeError, match="still running"):
            await worker.app.shutdown()
        await worker.say("hi")
    assert bot.rows["chat/1"] == b'{"said":["hi"]}'


async def test_a_worker_that_cannot_start_says_why(bot: PostgresStorage) -> None:
    """And can be started again, when the server is there."""
    async with proxied(bot.server.port) as proxy:
        storage = PostgresStorage(bot.server, port=proxy.port)
        proxy.is_down = True
        worker = build(storage.store(timeout=0.5), text(remember), shared=True)
        with pytest.raises(Exception, match=str(proxy.port)):
            await worker.app.initialize()
        proxy.is_down = False
        async with worker.app:
            await worker.say("hi")
    assert storage.rows["chat/1"] == b'{"said":["hi"]}'


async def test_what_a_handler_must_not_do_is_refused(bot: PostgresStorage) -> None:
    """With what to do instead; all else in the update is written."""
    told: list[str] = []

    async def try_all(update: Update, context: Any) -> None:
        app: Any = context.application
        again = Update.de_json(text_update("again"), app.bot)
        for attempt in (app.update_persistence(), app.handle_update(again)):
            with pytest.raises(ConfigurationError) as caught:
                await attempt
            told.append(str(caught.value))
        await remember(update, context)

    async with workers(bot, lambda: [TypeHandler(Update, try_all)], 1) as (worker,):
        await worker.say("hi")
    assert "written as a whole" in told[0]
    assert "update_queue" in told[1]
    assert bot.rows["chat/1"] == b'{"said":["hi"]}'


async def test_scopes_that_are_not_stored_cannot_be_edited(bot: PostgresStorage) -> None:
    """`store_data` switches them off."""
    kept = PersistenceInput(user_data=False, bot_data=False)
    script = persistence_of(bot, store_data=kept)
    for scope, told in (("user", "user"), ("bot", "bot")):
        with pytest.raises(ConfigurationError, match=f"the data of {told} is not stored"):
            async with script.edit(scope, 1):  # type: ignore[arg-type]
                pass
    await script.flush()


async def test_a_bot_without_bot_data_and_chat_data_works(bot: PostgresStorage) -> None:
    """They stay in the memory of each worker, as with PTB."""
    kept = PersistenceInput(user_data=False, bot_data=False, callback_data=False)

    async def look(_: Update, context: Any) -> None:
        await context.application.persistence.load("chat", 5)
        context.application.chat_data[5]["seen"] = True
        context.application.drop_user_data(1)

    async with workers(
        bot, lambda: [text(remember), TypeHandler(Update, look)], store_data=kept
    ) as (
        first,
        second,
    ):
        await first.say("hi")
        await second.say("ho")
        await first.save()
        await first.app.process_update("no update")
        assert first.app.bot_data == {"said": ["hi"]}
        assert first.app.user_data[1] == {}
    assert bot.rows == {"chat/1": b'{"said":["hi","ho"]}', "chat/5": b'{"seen":true}'}


async def test_a_message_that_tells_of_a_move_makes_no_row_of_the_new_chat(
    bot: PostgresStorage,
) -> None:
    """Unless the bot moves it."""
    async with workers(bot, lambda: [TypeHandler(Update, remember_in_chat)], 1) as (worker,):
        await worker.receive(text_update("", chat_id=-1, user_id=5, migrate_to_chat_id=-100))
    assert set(rows_of(bot, "chat/")) == {"chat/-1"}


async def remember_in_chat(_: Update, context: Any) -> None:
    """Keep something."""
    context.chat_data["seen"] = True


async def test_nothing_can_be_put_into_memory_from_outside(bot: PostgresStorage) -> None:
    """PTB moves the data of chats; that of a chat which is not here cannot be moved."""
    async with workers(bot, lambda: [ANY], 1) as (worker,):
        table: Any = worker.app._chat_data
        assert repr(table.get(1)) == "<chat/1, which is not in memory>"
        with pytest.raises(NotInMemoryError):
            table[1] = {}
        assert list(table) == []


async def test_a_keyboard_of_a_job_is_kept_until_it_can_be_written(bot: PostgresStorage) -> None:
    """The server is away; the next run of the persistence writes it."""
    async with proxied(bot.server.port) as proxy:
        storage = PostgresStorage(bot.server, port=proxy.port)
        options: dict[str, Any] = {
            "arbitrary_callback_data": True,
            "store": {"timeout": 0.3},
        }
        async with workers(storage, lambda: [ANY], 1, **options) as (worker,):
            proxy.is_down = True
            proxy.cut()
            await worker.ask(1)
            await until(lambda: bool(worker.errors))
            (error,) = worker.errors
            assert isinstance(error, UnavailableError)
            await worker.save()
            worker.errors.clear()
            proxy.is_down = False
            await worker.save()
            assert len(rows_of(storage, "callback/")) == 1


async def test_a_worker_ends_when_what_it_has_begun_is_written(bot: PostgresStorage) -> None:
    """A keyboard that was sent in the last moment."""
    async with workers(bot, lambda: [ANY], 1, arbitrary_callback_data=True) as (worker,):
        await worker.ask(1)
    assert len(rows_of(bot, "callback/")) == 1


async def test_what_is_not_stored_can_be_moved_from_anywhere(bot: PostgresStorage) -> None:
    """It is in the memory of this worker alone."""
    kept = PersistenceInput(chat_data=False)
    async with workers(bot, lambda: [text(remember)], 1, store_data=kept) as (worker,):
        await worker.say("hi")
        worker.app.migrate_chat_data(old_chat_id=1, new_chat_id=2)
        await worker.save()
        assert worker.app.chat_data[2] == {"said": ["hi"]}


async def test_a_ptb_that_keeps_callback_data_otherwise_is_refused(
    bot: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rather than have buttons that work in one worker only."""
    real = CallbackDataCache.__init__

    def without(self: Any, *arguments: Any, **options: Any) -> None:
        real(self, *arguments, **options)
        del self._keyboard_data

    monkeypatch.setattr(CallbackDataCache, "__init__", without)
    with pytest.raises(ConfigurationError, match="arbitrary_callback_data"):
        build(bot.store(), shared=True, arbitrary_callback_data=True)


def test_what_is_shared_is_of_one_persistence(bot: PostgresStorage) -> None:
    """Two in one process do not see each other's documents."""
    first, second = persistence_of(bot), persistence_of(bot)
    assert isinstance(first.shared, Shared)
    assert first.shared is not second.shared
