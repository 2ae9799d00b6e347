"""Workers whose server, network or handlers fail: an update is whole, or it has never been."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from handlers import remember, text
from postgres_server import PASSWORD, PostgresServer
from storages import PostgresStorage
from tcp_proxy import TcpProxy, proxied
from telegram import Update
from telegram.ext import TypeHandler
from through import settle, until
from workers import until_waiting, workers

from kvpersist import (
    ConflictError,
    KVPersistence,
    LockError,
    OpenError,
    UnavailableError,
    WriteError,
)
from kvpersist.stores.postgres import PostgresStore
from kvpersist.stores.postgres_transaction import PostgresTransaction, _Sent
from kvpersist.stores.store import Changed, LockMore

COMMIT = b"COMMIT AND CHAIN"


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that the test may end."""
    # And all else as it is by default; but what nobody waits for is not on the disk soon.
    server = PostgresServer("fsync=on", "wal_writer_delay=10s")
    yield server
    server.remove()


@pytest.fixture
async def proxy(postgres: PostgresServer) -> AsyncIterator[TcpProxy]:
    """A network to the server."""
    async with proxied(postgres.port) as network:
        yield network


@asynccontextmanager
async def shared(
    bot: PostgresStorage, port: int | None = None, **options: Any
) -> AsyncIterator[PostgresStore]:
    """Open a store as a worker does, and have its connections used once."""
    store = PostgresStore(bot.server.url(port=port), schema=bot.schema, **options)
    store.share()
    await store.open()
    async with store.transaction() as transaction:
        await transaction.lock(["bot"])
    yield store
    await store.close()


async def write(transaction: PostgresTransaction, **changes: bytes | None) -> None:
    """Commit rows of users."""

    async def prepare(_: LockMore) -> Changed:
        return {f"user/{name[1:]}": value for name, value in changes.items()}

    await transaction.commit(prepare)


async def test_a_commit_whose_answer_is_lost_is_not_made_twice(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """The server tells what has become of it, and nobody hears of the loss."""
    async with shared(bot, proxy.port) as store, store.transaction() as transaction:
        await transaction.lock(["user/1"])
        proxy.swallow_to = COMMIT
        await write(transaction, _1=b"1")
        assert [row[:3] for row in bot.all_columns()] == [("user/1", "1", 1)]


async def test_a_commit_that_is_lost_before_it_arrives_is_made_again(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """The documents are locked again, and are as they were."""
    async with shared(bot, proxy.port) as store, store.transaction() as transaction:
        await transaction.lock(["user/1"])
        proxy.lose = COMMIT
        await write(transaction, _1=b"1")
        assert [row[:3] for row in bot.all_columns()] == [("user/1", "1", 1)]


@pytest.mark.parametrize("lost", [COMMIT, b"unnest"])
async def test_nothing_that_others_have_written_meanwhile_is_overwritten(
    bot: PostgresStorage, proxy: TcpProxy, lost: bytes
) -> None:
    """Once its locks are lost, another worker may be faster: then the first one has lost."""
    async with (
        shared(bot, proxy.port) as store,
        shared(bot) as other,
        store.transaction() as transaction,
    ):
        await transaction.lock(["user/1", "user/2"])

        async def overtake() -> None:
            async with other.transaction() as overtaking:
                await overtaking.lock(["user/2"])
                await write(overtaking, _2=b'"other"')
            proxy.is_down = False

        proxy.lose = lost
        proxy.is_down = True
        overtaking = asyncio.create_task(overtake())
        with pytest.raises(ConflictError) as caught:
            await write(transaction, _1=b'"mine"')
        await overtaking
        assert caught.value.keys == ("user/2",)
    assert bot.rows == {"user/2": b'"other"'}


async def test_a_commit_in_doubt_whose_documents_others_have_is_told(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """A `LockError` alone would say that it was not made."""
    async with (
        shared(bot, proxy.port, hold_timeout=0.1) as store,
        shared(bot) as other,
        store.transaction() as transaction,
        other.transaction() as another,
    ):
        await transaction.lock(["user/1"])
        proxy.swallow_to = COMMIT
        proxy.is_down = True
        writing = asyncio.create_task(write(transaction, _1=b"1"))
        await until(lambda: transaction._sent is not None and transaction._connection is None)
        await another.lock(["user/1"])
        proxy.is_down = False
        with pytest.raises(UnavailableError, match="given it back .* whether it was made"):
            await writing
    assert bot.rows == {"user/1": b"1"}


async def test_a_commit_that_the_server_refuses_is_in_no_doubt(bot: PostgresStorage) -> None:
    """As a trigger of somebody's can, which waits for the commit."""
    async with shared(bot) as store:
        bot.server.query(
            f"CREATE FUNCTION {bot.schema}.refuse() RETURNS trigger LANGUAGE plpgsql "
            "AS $$BEGIN RAISE 'on purpose'; END$$"
        )
        bot.server.query(
            f"CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON {bot.schema}.documents DEFERRABLE "
            f"INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION {bot.schema}.refuse()"
        )
        async with store.transaction() as transaction:
            await transaction.lock(["user/1"])
            with pytest.raises(WriteError, match="on purpose$"):
                await write(transaction, _1=b"1")
    assert bot.rows == {}


async def test_an_update_that_only_reads_does_not_care(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """There is nothing that could be lost at its end."""
    async with shared(bot, proxy.port) as store:
        async with store.transaction() as transaction:
            await transaction.lock(["user/1"])
            proxy.lose = COMMIT
            await write(transaction)
        async with store.transaction() as transaction:
            await transaction.lock(["user/1"])
            await write(transaction, _1=b"1")
    assert bot.rows == {"user/1": b"1"}


async def test_documents_are_locked_again_if_the_connection_is_lost_in_between(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """Also those that a handler asks for later; an idle connection that was cut costs nothing."""
    async with shared(bot, proxy.port) as store:
        proxy.cut()
        async with store.transaction() as transaction:
            await transaction.lock(["user/1"])
            proxy.cut()
            assert await transaction.lock(["user/2"]) == {}
            proxy.cut()
            await write(transaction, _1=b"1", _2=b"2")
    assert bot.rows == {"user/1": b"1", "user/2": b"2"}


async def test_nothing_is_written_on_what_was_read_before_the_locks_were_lost(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """Also if taking them again was cancelled, as by ``wait_for``; then they are taken later."""
    async with (
        shared(bot, proxy.port) as store,
        shared(bot) as other,
        store.transaction() as transaction,
    ):
        await transaction.lock(["user/1"])
        proxy.cut()
        async with other.transaction() as overtaking:
            await overtaking.lock(["user/1"])
            locking = asyncio.create_task(transaction.lock(["user/2"]))
            await until_waiting(bot)
            locking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await locking
            await write(overtaking, _1=b"1")
        with pytest.raises(ConflictError, match="user/1"):
            await write(transaction, _2=b"2")
    assert bot.rows == {"user/1": b"1"}


async def test_a_commit_of_which_the_new_server_never_heard_is_made_again(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """After a failover without a synchronous standby: its transaction ids are behind."""
    async with shared(bot, proxy.port) as store, store.transaction() as transaction:
        await transaction.lock(["user/1"])
        transaction._sent = _Sent(str(2**40 + 5000), 0, {})
        proxy.cut()
        await write(transaction, _1=b"1")
    assert bot.rows == {"user/1": b"1"}


async def test_a_connection_that_cannot_begin_is_given_up(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """And so is one that has died while nobody used it; the next one does."""
    async with shared(bot, proxy.port) as store:
        proxy.cut()
        await settle()
        proxy.lose = b"BEGIN ISOLATION"
        async with store.transaction() as transaction:
            await transaction.lock(["user/1"])
            await write(transaction, _1=b"1")
    assert bot.rows == {"user/1": b"1"}


async def test_a_bot_of_its_own_that_has_come_in_between_is_told(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """The worker's network was gone; now the other one must be stopped first."""
    async with shared(bot, proxy.port, hold_timeout=0.1) as store:
        proxy.is_down = True
        proxy.cut()
        alone = bot.store(lock_timeout=30)
        await alone.open()
        proxy.is_down = False
        async with store.transaction() as transaction:
            with pytest.raises(LockError, match="stop that one first"):
                await transaction.lock(["user/1"])
        await alone.close()
        async with store.transaction() as transaction:
            await transaction.lock(["user/1"])


async def test_a_server_that_stays_away_is_told(bot: PostgresStorage, proxy: TcpProxy) -> None:
    """After `timeout` seconds; and it is told too that a commit may have been made."""
    async with shared(bot, proxy.port, timeout=0.5) as store:
        for lost, is_in_doubt in ((COMMIT, True), (b"unnest", False)):
            async with store.transaction() as transaction:
                await transaction.lock(["user/1"])
                proxy.lose = lost
                proxy.is_down = True
                with pytest.raises(UnavailableError) as caught:
                    await write(transaction, _1=b"1")
                assert ("whether it was made" in str(caught.value)) == is_in_doubt
                assert PASSWORD not in str(caught.value)
                proxy.is_down = False
                with pytest.raises(UnavailableError):  # it is over
                    await transaction.lock(["user/1"])
    assert bot.rows == {}


async def test_a_restart_of_the_server_in_the_middle_of_updates_loses_nothing(
    own_server: PostgresServer,
) -> None:
    """They lock again what they had, and go on; nobody hears of it."""
    bot = PostgresStorage(own_server)
    inside: list[int] = []
    go_on = asyncio.Event()

    async def wait(update: Update, context: Any) -> None:
        await remember(update, context)
        inside.append(1)
        await go_on.wait()

    async with workers(bot, lambda: [TypeHandler(Update, wait)]) as (first, second):
        updates = asyncio.gather(
            first.say("a", chat_id=1), second.say("a", chat_id=2), second.say("b", chat_id=2)
        )
        await until(lambda: len(inside) == 2)
        await asyncio.to_thread(own_server.kill)
        go_on.set()
        await asyncio.to_thread(own_server.start)
        await updates
        await first.say("c", chat_id=1)
    assert bot.rows["chat/1"] == b'{"said":["a","c"]}'
    assert bot.rows["chat/2"] == b'{"said":["a","b"]}'


async def test_a_commit_that_a_crash_undid_is_not_taken_for_another_one(
    own_server: PostgresServer,
) -> None:
    """A server that has forgotten a transaction gives its number to the next one."""
    bot = PostgresStorage(own_server)
    async with (
        proxied(own_server.port) as proxy,
        shared(bot, proxy.port) as store,
        store.transaction() as transaction,
    ):
        await transaction.lock(["user/1"])
        proxy.lose = COMMIT
        proxy.is_down = True
        writing = asyncio.create_task(write(transaction, _1=b"1"))
        await until(lambda: transaction._sent is not None and transaction._connection is None)
        await asyncio.to_thread(own_server.kill)
        await asyncio.to_thread(own_server.start)
        assert transaction._sent is not None
        number = int(transaction._sent.transaction)
        while (other := _next_number(own_server)) < number:
            pass
        assert other == number
        proxy.is_down = False
        await writing
    assert bot.rows == {"user/1": b"1"}


async def test_a_commit_whose_traces_are_gone_is_told(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """All that it has written was written again since: it may be that it was never made."""
    async with (
        shared(bot, proxy.port) as store,
        shared(bot) as other,
        store.transaction() as transaction,
    ):
        await transaction.lock(["user/1"])
        proxy.swallow_to = COMMIT
        proxy.is_down = True
        writing = asyncio.create_task(write(transaction, _1=b"1"))
        await until(lambda: transaction._sent is not None and transaction._connection is None)
        async with other.transaction() as next_one:
            await next_one.lock(["user/1"])
            await write(next_one, _1=b"2")
        proxy.is_down = False
        with pytest.raises(UnavailableError, match="user/1 since; .* whether it was made"):
            await writing
    assert bot.rows == {"user/1": b"2"}


@pytest.mark.parametrize("keys", [["user/1"], []], ids=["locked", "not locked"])
@pytest.mark.parametrize("value", [b"1", None], ids=["put", "removed"])
async def test_it_does_not_matter_what_the_commit_was_of(
    bot: PostgresStorage, proxy: TcpProxy, keys: list[str], value: bytes | None
) -> None:
    """Rows that were removed leave no traces; keyboards, which nobody else has, are not locked."""
    async with shared(bot, proxy.port) as store:
        if value is None:
            bot.write("user/1", "0")
        async with store.transaction() as transaction:
            await transaction.lock(keys, ["user/1"])
            proxy.swallow_to = COMMIT
            await write(transaction, _1=value)
    assert [row[:3] for row in bot.all_columns()] == ([] if value is None else [("user/1", "1", 1)])


def _next_number(server: PostgresServer) -> int:
    """Have another transaction, and return its number."""
    ((number,),) = server.query("SELECT pg_current_xact_id()::text::bigint")
    return int(number)


async def test_an_update_without_a_server_is_told_and_not_handled(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """No handler runs; when the server is back the same update can come again."""
    storage = PostgresStorage(bot.server, port=proxy.port)
    async with workers(storage, lambda: [text(remember)], 1, store={"timeout": 0.3}) as (worker,):
        await worker.say("one")
        proxy.is_down = True
        proxy.cut()
        await worker.say("two")
        (error,) = worker.errors
        assert isinstance(error, UnavailableError)
        worker.errors.clear()
        proxy.is_down = False
        await worker.say("two")
    assert storage.rows["chat/1"] == b'{"said":["one","two"]}'


async def test_whoever_waits_too_long_hears_for_what(bot: PostgresStorage) -> None:
    """It names the document, and the process of the server that has it."""
    async with shared(bot, hold_timeout=0.1) as store:
        async with shared(bot) as other, other.transaction() as transaction:
            await transaction.lock(["user/1", "user/5"])
            async with store.transaction() as waiting:
                with pytest.raises(LockError) as caught:
                    await waiting.lock(["user/5", "user/6"])
                assert caught.value.keys == ("user/5",)
                assert "user/5 has process" in str(caught.value)
                with pytest.raises(LockError):
                    await write(waiting, _6=b"1")
        async with store.transaction() as transaction:  # the connection can be used again
            await transaction.lock(["user/5"])
    assert bot.rows == {}


async def test_whoever_waits_too_long_in_the_same_worker_hears_it_too(bot: PostgresStorage) -> None:
    """The handler that it waits for hangs; others go on, and so does who comes later."""
    is_inside = asyncio.Event()
    go_on = asyncio.Event()

    async def work(update: Update, context: Any) -> None:
        await remember(update, context)
        assert update.message is not None
        if update.message.text == "slow":
            is_inside.set()
            await go_on.wait()

    handlers = [TypeHandler(Update, work)]
    async with workers(bot, lambda: handlers, 1, store={"hold_timeout": 0.1}) as (worker,):
        slow = asyncio.create_task(worker.say("slow"))
        await is_inside.wait()
        given_up = asyncio.create_task(worker.say("given up"))
        await settle()
        given_up.cancel()
        await worker.say("in vain")
        await worker.say("another chat", chat_id=2)
        (error,) = worker.errors
        assert isinstance(error, LockError)
        assert error.keys == ("chat/1",)
        assert "of this worker" in str(error)
        worker.errors.clear()
        later = asyncio.create_task(worker.say("later"))
        await settle()
        go_on.set()
        await asyncio.gather(slow, later)
    assert bot.rows["chat/1"] == b'{"said":["slow","later"]}'


async def test_a_worker_that_says_nothing_loses_its_documents(bot: PostgresStorage) -> None:
    """After `hold_timeout` another one has them; the first one's update has never been."""
    is_inside = asyncio.Event()
    go_on = asyncio.Event()

    async def work(update: Update, context: Any) -> None:
        await remember(update, context)
        assert update.message is not None
        if update.message.text == "slow":
            is_inside.set()
            await go_on.wait()

    handlers = [TypeHandler(Update, work)]
    async with workers(bot, lambda: handlers, store={"hold_timeout": 0.2}) as (first, second):
        slow = asyncio.create_task(first.say("slow"))
        await is_inside.wait()
        await second.say("fast")
        go_on.set()
        await slow
        (error,) = first.errors
        assert isinstance(error, ConflictError)
        first.errors.clear()
    assert bot.rows["chat/1"] == b'{"said":["fast"]}'


async def test_a_slow_handler_that_nobody_waits_for_loses_nothing(bot: PostgresStorage) -> None:
    """The server has taken its locks, but nobody else has written."""

    async def work(update: Update, context: Any) -> None:
        await remember(update, context)
        query = "SELECT 1 FROM pg_stat_activity WHERE state = 'idle in transaction' AND query ~ $1"
        while await asyncio.to_thread(bot.server.query, query, rf"{bot.schema}.*kvpersist_lock"):
            pass

    handlers = [TypeHandler(Update, work)]
    async with workers(bot, lambda: handlers, 1, store={"hold_timeout": 0.05}) as (worker,):
        await worker.say("slow")
    assert bot.rows["chat/1"] == b'{"said":["slow"]}'


async def test_two_handlers_that_want_each_others_user_do_not_wait_for_ever(
    bot: PostgresStorage,
) -> None:
    """One gives way, and its update has never been; its error handler hears why."""
    inside: list[int] = []
    both_inside = asyncio.Event()

    async def give(update: Update, context: Any) -> None:
        assert update.effective_user is not None
        inside.append(1)
        if len(inside) == 2:
            both_inside.set()
        await both_inside.wait()
        context.user_data["given"] = 1
        async with context.application.persistence.edit("user", 3 - update.effective_user.id) as to:
            to["got"] = 1

    async with workers(bot, lambda: [TypeHandler(Update, give)]) as (first, second):
        await asyncio.gather(first.say("x", chat_id=1), second.say("x", chat_id=2))
        errors = [*first.errors, *second.errors]
        assert {type(error) for error in errors} == {LockError}
        assert "gives way" in str(errors[0])
        first.errors.clear()
        second.errors.clear()
    given, got = (bot.rows[f"user/{user_id}"] for user_id in (1, 2))
    assert sorted([given, got]) == [b'{"given":1}', b'{"got":1}']


async def test_a_row_that_the_server_refuses_is_told(bot: PostgresStorage) -> None:
    """With the reason; the connection goes on."""
    async with shared(bot) as store:
        async with store.transaction() as transaction:
            await transaction.lock(["user/1"])
            with pytest.raises(WriteError, match="json"):
                await write(transaction, _1=b"no json")
        async with store.transaction() as transaction:
            await transaction.lock(["user/1"])
            await write(transaction, _1=b"1")
        with pytest.raises(WriteError, match="edit"):
            await store.apply({"user/1": b"2"})
    assert bot.rows == {"user/1": b"1"}


async def test_a_table_that_is_gone_is_told(bot: PostgresStorage) -> None:
    """It is no fault of the rows."""
    async with shared(bot) as store:
        bot.server.query(f"ALTER TABLE {bot.schema}.documents RENAME TO gone")
        async with store.transaction() as transaction:
            with pytest.raises(UnavailableError, match="documents"):
                await transaction.lock(["user/1"])
        with pytest.raises(WriteError, match="documents"):
            await store.trim("callback/", older_than=0, newest=0)


async def test_a_store_that_is_not_shared_has_no_transactions(bot: PostgresStorage) -> None:
    """It has one owner, who needs none."""
    store = bot.store()
    with pytest.raises(OpenError):
        async with store.transaction():
            pass
    await store.close()


_VICTIM = """
import asyncio, sys
from kvpersist.stores.postgres import PostgresStore

async def main() -> None:
    store = PostgresStore(sys.argv[1], schema=sys.argv[2])
    store.share()
    async with store.transaction() as transaction:
        await transaction.lock(["user/1"])

        async def prepare(lock):
            async def never():
                print("inside", flush=True)
                await asyncio.Event().wait()
            await never()

        await transaction.commit(prepare)

asyncio.run(main())
"""


async def test_a_killed_worker_lets_go_at_once(bot: PostgresStorage) -> None:
    """SIGKILL in the middle of an update: others have its documents, as they were."""
    async with shared(bot) as store:
        victim = subprocess.Popen(
            [sys.executable, "-c", _VICTIM, bot.server.url(), bot.schema],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert victim.stdout is not None
        assert await asyncio.to_thread(victim.stdout.readline) == "inside\n"
        victim.send_signal(signal.SIGKILL)
        async with store.transaction() as transaction:
            assert await transaction.lock(["user/1"]) == {}
            await write(transaction, _1=b"1")
        victim.wait()
        victim.stdout.close()
    assert bot.rows == {"user/1": b"1"}


async def test_ten_workers_can_start_at_once(bot: PostgresStorage) -> None:
    """On an empty schema: one makes the tables, and the function, and all have them."""
    stores = [bot.store() for _ in range(10)]
    for store in stores:
        store.share()
    await asyncio.gather(*(store.open() for store in stores))
    await asyncio.gather(*(store.close() for store in stores))
    query = "SELECT count(*) FROM pg_proc WHERE proname = 'kvpersist_lock_1' AND prosrc ~ $1"
    assert bot.server.query(query, rf"{bot.schema}\M") == [(1,)]


@pytest.mark.parametrize("is_shared", [True, False], ids=["workers", "one bot"])
async def test_nothing_is_acknowledged_that_the_standby_has_not(*, is_shared: bool) -> None:
    """Also if the process that waits for it is ended: its commit is made, but here alone."""
    primary = PostgresServer("synchronous_standby_names='standby'")
    standby = PostgresServer("synchronous_standby_names=''", standby_of=primary)
    store = PostgresStore(primary.url(), pool_size=1)
    persistence = KVPersistence(store, shared=is_shared)

    async def put(number: int) -> None:
        if is_shared:
            async with persistence.edit("chat", 1) as data:
                data["n"] = number
            return
        with suppress(WriteError):  # which is raised, and kept, when the process is ended
            await persistence.update_chat_data(1, {"n": number})
        await persistence.rows.commits.flush()

    async def is_waiting(but: object = 0) -> list[tuple[Any, ...]]:
        query = "SELECT pid FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND pid <> $1"
        return await asyncio.to_thread(primary.query, query, but)

    try:
        while primary.query("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:  # noqa: ASYNC110  the server tells nobody
            await asyncio.sleep(0)
        await put(1)
        standby.pause()
        writing = asyncio.create_task(put(2))
        while not (found := await is_waiting()):
            pass
        ((process,),) = found
        await asyncio.to_thread(primary.query, "SELECT pg_terminate_backend($1)", process)
        while not writing.done() and not await is_waiting(but=process):
            pass
        assert not writing.done()
        assert primary.query("SELECT value FROM documents") == [('{"n":2}',)]
        standby.go_on()
        await writing
        await asyncio.to_thread(primary.kill)
        await asyncio.to_thread(standby.promote)
        assert standby.query("SELECT value FROM documents") == [('{"n":2}',)]
        await persistence.flush()
    finally:
        standby.go_on()
        primary.remove()
        standby.remove()


async def test_no_update_is_lost_or_doubled_when_a_standby_takes_over() -> None:
    """The primary is killed under writes; counters are right on the synchronous standby."""
    settings = "synchronous_commit=remote_apply", "synchronous_standby_names='standby'"
    primary = PostgresServer(*settings)
    standby = PostgresServer("synchronous_standby_names=''", standby_of=primary)
    try:
        while primary.query("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:  # noqa: ASYNC110  the server tells nobody
            await asyncio.sleep(0)
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        store = PostgresStore(f"postgresql://postgres:{PASSWORD}@{hosts}/postgres", pool_size=5)
        persistence = KVPersistence(store, shared=True)
        acknowledged: Counter[int] = Counter()
        is_over = False

        async def count(chat_id: int) -> None:
            while not is_over:
                async with persistence.edit("chat", chat_id) as data:
                    data["n"] = data.get("n", 0) + 1
                acknowledged[chat_id] += 1

        writers = [asyncio.create_task(count(chat_id)) for chat_id in range(5)]
        await until(lambda: min(acknowledged[chat_id] for chat_id in range(5)) >= 20)
        await asyncio.to_thread(primary.kill)
        before = sum(acknowledged.values())
        await asyncio.to_thread(standby.promote)
        await until(lambda: sum(acknowledged.values()) > before + 100)
        is_over = True
        await asyncio.gather(*writers)
        await persistence.flush()
        rows = standby.query("SELECT key, value FROM documents")
        assert {key: json.loads(value)["n"] for key, value in rows} == {
            f"chat/{chat_id}": number for chat_id, number in acknowledged.items()
        }
    finally:
        primary.remove()
        standby.remove()
