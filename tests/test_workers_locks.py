"""What updates of workers lock, in which order, and on how many connections."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import asyncpg
import pytest
from bots import query_update
from postgres_server import PostgresServer
from storages import PostgresStorage, rows_of
from telegram import Update
from telegram.ext import CallbackQueryHandler, ConversationHandler, TypeHandler
from through import running, until
from workers import persistence_of, until_waiting, waiting, workers

from kvpersist import UnavailableError
from kvpersist.stores.postgres import PostgresStore
from kvpersist.stores.postgres_schema import _CREATE_LOCK, _LOCK
from kvpersist.stores.postgres_statements import LOCK_NAME, STATE
from kvpersist.stores.postgres_transaction import _lock_of


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


@asynccontextmanager
async def shared(bot: PostgresStorage, **options: Any) -> AsyncIterator[PostgresStore]:
    """Open a store as a worker does."""
    store = bot.store(**options)
    store.share()
    await store.open()
    yield store
    await store.close()


async def lock(store: PostgresStore, keys: Sequence[str]) -> None:
    """Have documents for a moment."""
    async with store.transaction() as transaction:
        await transaction.lock(keys)


async def test_everybody_locks_in_the_same_order(bot: PostgresStorage) -> None:
    """Whichever it was asked in: so no two can have each what the other waits for."""
    locks = {f"user/{number}": _lock_of(bot.schema, f"user/{number}") for number in range(8)}
    keys = sorted(locks, key=lambda key: locks[key])
    last = locks[keys[-1]]
    outside = await asyncpg.connect(bot.server.url())
    await outside.execute(f"SELECT pg_advisory_lock({last})")
    async with shared(bot) as first, shared(bot) as second:
        backwards = asyncio.create_task(lock(first, keys[::-1]))
        await until_waiting(bot)
        forwards = asyncio.create_task(lock(second, keys))
        await until_waiting(bot, 2)
        held = await outside.fetch(
            "SELECT pid, (classid::bigint << 32) | objid::bigint AS lock FROM pg_locks "
            "WHERE locktype = 'advisory' AND granted AND pid <> pg_backend_pid() "
            "AND (classid::bigint << 32) | objid::bigint = ANY($1::bigint[])",
            [*locks.values()],
        )
        assert {each["lock"] for each in held} == {*locks.values()} - {last}
        assert len({each["pid"] for each in held}) == 1
        await outside.close()
        await asyncio.gather(backwards, forwards)


class Gate:
    """Handlers that wait there, and note what they were called with."""

    def __init__(self) -> None:
        self.inside: list[object] = []
        self.go_on = asyncio.Event()

    async def wait(self, what: object) -> None:
        """Wait until all may go on."""
        self.inside.append(what)
        await self.go_on.wait()

    async def until_second(self, bot: PostgresStorage) -> None:
        """Wait until a second one is there, or cannot come because of the first."""
        while len(self.inside) < 2 and not await waiting(bot):
            pass
        self.go_on.set()


@pytest.mark.filterwarnings("ignore:If 'per_message=True'")
async def test_a_conversation_of_nobody_is_locked(bot: PostgresStorage) -> None:
    """One that all have who see a message: two people press at once, in two workers."""
    gate = Gate()

    def press(state: int) -> Any:
        async def lead(_: Update, __: Any) -> int:
            await gate.wait(state)
            return state

        return CallbackQueryHandler(lead)

    def handlers() -> list[Any]:
        return [
            ConversationHandler(
                entry_points=[press(1)], states={1: [press(2)], 2: [press(3)]}, fallbacks=[],
                per_chat=False, per_user=False, per_message=True, name="game", persistent=True,
            )
        ]  # fmt: skip

    async with workers(bot, handlers) as (first, second):
        presses = [query_update("x", inline_message_id="m", user_id=each) for each in (7, 8)]
        one = asyncio.create_task(first.receive(presses[0]))
        await until(lambda: gate.inside == [1])
        other = asyncio.create_task(second.receive(presses[1]))
        await gate.until_second(bot)
        await asyncio.gather(one, other)
    assert gate.inside == [1, 2]
    assert [*rows_of(bot, "conversation/").values()] == [b"2"]


async def test_an_update_of_nobody_is_handled_once_too(bot: PostgresStorage) -> None:
    """With ``deduplicate=True``, though it has neither a chat nor a user that would be locked."""
    gate = Gate()

    async def handle(update: Update, _: Any) -> None:
        await gate.wait(update.update_id)

    async with workers(bot, lambda: [TypeHandler(Update, handle)], deduplicate=True) as both:
        one = asyncio.create_task(both[0].receive({"update_id": 5}))
        await until(lambda: gate.inside == [5])
        other = asyncio.create_task(both[1].receive({"update_id": 5}))
        await gate.until_second(bot)
        await asyncio.gather(one, other)
    assert gate.inside == [5]


async def test_the_newest_rows_stay_whatever_their_keys_are(bot: PostgresStorage) -> None:
    """The keys of keyboards are random."""
    async with shared(bot) as store:
        now = time.time_ns() // 1_000_000
        for age, name in enumerate("bdac"):
            bot.server.query(
                f"INSERT INTO {bot.schema}.documents VALUES ($1, '{{}}', 1, $2)",
                f"callback/{name}", now - 1000 * age,
            )  # fmt: skip
        await store.trim("callback/", older_than=now + 1, newest=2)
        assert {*bot.rows} == {"callback/b", "callback/d"}


async def test_workers_have_as_many_connections_as_the_page_says(bot: PostgresStorage) -> None:
    """For each its pool_size and three more, however much there is to do at once."""
    gate = Gate()

    async def handle(update: Update, context: Any) -> None:
        context.bot_data[update.update_id] = 1
        await gate.wait(update.update_id)

    url = f"{bot.server.url()}?application_name={bot.schema}"
    stores = [PostgresStore(url, schema=bot.schema, pool_size=2) for _ in range(2)]
    handler = TypeHandler(Update, handle)
    async with AsyncExitStack() as stack:
        those = [
            await stack.enter_async_context(
                running(store, handler, shared=True, concurrent_updates=True)
            )
            for store in stores
        ]
        updates = [
            asyncio.create_task(worker.say("hi", chat_id=number, user_id=number))
            for number, worker in enumerate(those * 4, 1)
        ]
        await asyncio.gather(*(store.read(["bot"]) for store in stores * 4))
        await until(lambda: len(gate.inside) == 4)
        query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1"
        assert bot.server.query(query, bot.schema) == [(2 * (2 + 3),)]
        gate.go_on.set()
        await asyncio.gather(*updates)
        assert bot.server.query(query, bot.schema) == [(2 * (2 + 3),)]


async def test_whoever_waits_too_long_for_a_connection_is_told(bot: PostgresStorage) -> None:
    """As a handler does that calls a web page of its own process, which edits something."""
    async with shared(bot, pool_size=1, hold_timeout=0.01) as store:
        async with store.transaction() as transaction:
            await transaction.lock(["user/1"])
            with pytest.raises(UnavailableError, match="pool_size=1"):
                await lock(store, ["user/2"])
        await lock(store, ["user/2"])


async def test_a_store_that_is_closed_during_an_edit_leaves_no_connection(
    bot: PostgresStorage,
) -> None:
    """What is in use then is closed when that has ended, which is written."""
    script = persistence_of(bot)
    async with script.edit("user", 1) as data:
        opened = script.store._opened  # type: ignore[attr-defined]
        await script.flush()
        data["x"] = 1
    assert all(connection.is_closed() for connection in opened._all)
    assert bot.rows == {"user/1": b'{"x":1}'}


def test_a_function_that_does_anything_else_has_another_number() -> None:
    """So that workers of two versions have each their own, while one after the other is updated.

    Whoever changes it gives it the next number here, and in `LOCK_NAME`.
    """
    digest = hashlib.sha256((_CREATE_LOCK + _LOCK + STATE).encode()).hexdigest()[:16]
    assert (LOCK_NAME, digest) == ("kvpersist_lock_1", "ed48d0555463445f")
