"""PostgreSQL: servers that go, connections that break, bots that are killed; nothing gets lost."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress

import asyncpg
import pytest
from postgres_server import PASSWORD, PostgresServer
from storages import PostgresStorage
from tcp_proxy import TcpProxy, proxied

from kvpersist import (
    KVPersistence,
    OpenError,
    ReadError,
    StoreInUseError,
    UnavailableError,
    WriteError,
)
from kvpersist.group_commit import GroupCommit
from kvpersist.stores.postgres import PostgresStore


@pytest.fixture
def own_server() -> Iterator[PostgresServer]:
    """A server that the test may end."""
    server = PostgresServer("fsync=on")  # and all else as it is by default
    yield server
    server.remove()


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


@pytest.fixture
async def proxy(postgres: PostgresServer) -> AsyncIterator[TcpProxy]:
    """A network to the server."""
    async with proxied(postgres.port) as network:
        yield network


def through(proxy: TcpProxy, bot: PostgresStorage, **options: float) -> PostgresStore:
    """Return a store behind a network."""
    options = {"lock_timeout": 30, **options}
    return PostgresStore(bot.server.url(port=proxy.port), schema=bot.schema, **options)  # type: ignore[arg-type]


async def waiting(bot: PostgresStorage, number: int) -> None:
    """Wait until that many statements of the schema wait for a lock."""
    query = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query ~ $1"
    while len(bot.server.query(query, rf"{bot.schema}\M")) < number:  # noqa: ASYNC110  the server tells nobody
        await asyncio.sleep(0)


async def test_a_commit_is_one_round_trip(bot: PostgresStorage, proxy: TcpProxy) -> None:
    """However many rows it puts and removes, once the statement is prepared."""
    store = through(proxy, bot)
    await store.open()
    await store.apply({"bot": b"0"})
    before = proxy.requests
    await store.apply({**{f"chat/{n}": b"1" for n in range(100)}, "bot": None})
    assert proxy.requests == before + 1
    await store.close()
    assert len(bot.rows) == 100


async def test_a_commit_whose_answer_is_lost_is_made_again(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """The writer is told that it failed, and the same row is written again: the value is right."""
    commits = GroupCommit(through(proxy, bot))
    await commits.write({"chat/1": b"1"})
    proxy.swallow = True
    with pytest.raises(WriteError):
        await commits.write({"chat/1": b"2", "chat/2": b"2"})
    assert bot.rows == {"chat/1": b"2", "chat/2": b"2"}  # it was committed
    assert commits.is_pending("chat/1")
    await commits.flush()
    await commits.write({"chat/1": b"3"})
    await commits.close()
    assert bot.rows == {"chat/1": b"3", "chat/2": b"2"}


@pytest.mark.parametrize("is_lock_lost", [True, False])
async def test_a_statement_that_was_given_up_never_overtakes_a_newer_one(
    bot: PostgresStorage, proxy: TcpProxy, *, is_lock_lost: bool
) -> None:
    """The server may run it long after its connection was cut: its rows are older, and stay so."""
    store = through(proxy, bot)
    await store.open()
    await store.apply({"chat/1": b"0"})
    locker = await asyncpg.connect(bot.server.url())
    lock = locker.transaction()
    await lock.start()
    await locker.fetch(f"SELECT 1 FROM {bot.schema}.documents WHERE key = 'chat/1' FOR UPDATE")
    old = asyncio.create_task(store.apply({"chat/1": b'"old"', "chat/2": b'"old"'}))
    await waiting(bot, 1)
    if is_lock_lost:
        proxy.cut()
    else:
        proxy.cut_last()
    with pytest.raises(UnavailableError):
        await old
    new = asyncio.create_task(store.apply({"chat/1": b'"new"', "chat/2": None}))
    await waiting(bot, 2)  # the old one is still there
    await lock.rollback()
    await new
    await store.close()
    await locker.close()
    assert bot.rows == {"chat/1": b'"new"'}


async def test_a_statement_that_comes_too_late_writes_nothing(bot: PostgresStorage) -> None:
    """Its epoch is over as soon as its sender has tried anything else."""
    store = bot.store()
    await store.open()
    bot.server.query(f"UPDATE {bot.schema}.kvpersist_schema SET epoch = epoch + 1")
    with pytest.raises(UnavailableError):
        await store.apply({"bot": b"1"})
    assert bot.rows == {}
    await store.apply({"bot": b"1"})
    await store.close()
    assert bot.rows == {"bot": b"1"}


async def test_a_read_goes_on_when_its_connection_was_cut(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """It connects again, once, and says so only if that does not help."""
    store = through(proxy, bot)
    await store.open()
    await store.apply({"bot": b"1"})
    proxy.swallow = True
    assert await store.read(["bot"]) == {"bot": b"1"}
    proxy.is_down = True
    proxy.cut()
    with pytest.raises(ReadError):
        await store.read(["bot"])
    with pytest.raises(UnavailableError):
        await store.apply({"bot": b"2"})
    proxy.is_down = False
    assert await store.read(["bot"]) == {"bot": b"1"}
    await store.apply({"bot": b"2"})
    await store.close()
    assert bot.rows == {"bot": b"2"}


async def test_a_start_that_is_cut_while_it_waits_leaves_nothing(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """It says so, and a later one works."""
    first = bot.store()
    await first.open()
    store = through(proxy, bot)
    opening = asyncio.create_task(store.open())
    while not bot.server.query("SELECT 1 FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
        await asyncio.sleep(0)
    proxy.cut()
    with pytest.raises(OpenError, match="closed"):
        await opening
    await first.close()
    await store.open()
    await store.close()


async def test_a_server_that_does_not_answer_counts_as_gone(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """After `timeout` seconds the write is refused, and kept by who made it."""
    store = through(proxy, bot, timeout=0.5)
    await store.open()
    await store.apply({"bot": b"1"})
    locker = await asyncpg.connect(bot.server.url())
    async with locker.transaction():
        await locker.execute(f"LOCK TABLE {bot.schema}.documents")
        with pytest.raises(UnavailableError, match="no answer"):
            await store.apply({"bot": b"2"})
        with pytest.raises(ReadError, match="no answer"):
            await store.read(["bot"])
    await store.apply({"bot": b"3"})
    await store.close()
    await locker.close()
    assert bot.rows == {"bot": b"3"}


async def test_the_lock_is_taken_again_when_its_connection_was_lost(bot: PostgresStorage) -> None:
    """Before the next write; so a second bot is refused as before."""
    store = bot.store()
    await store.open()
    await end_lock(store)
    await store.apply({"bot": b"1"})
    with pytest.raises(StoreInUseError):
        await bot.store(lock_timeout=0).open()
    await store.close()


async def test_who_lost_the_schema_to_another_bot_writes_nothing(bot: PostgresStorage) -> None:
    """While the other has it, and also later: what is waiting is older than the other's rows."""
    store = bot.store(lock_timeout=0)
    await store.open()
    await store.apply({"bot": b"1"})
    await end_lock(store)
    other = bot.store()
    await other.open()
    with pytest.raises(UnavailableError, match="another bot has the schema"):
        await store.apply({"bot": b"2"})
    await other.apply({"bot": b"3"})
    await other.close()
    with pytest.raises(UnavailableError, match="taken the schema"):
        await store.apply({"bot": b"2"})
    await store.close()
    with pytest.raises(StoreInUseError, match="taken the schema"):
        await store.open()
    assert bot.rows == {"bot": b"3"}


async def test_a_lost_schema_is_noticed_by_the_write_itself(bot: PostgresStorage) -> None:
    """Also where the lock seems to be held, as with servers whose advisory locks do nothing."""
    store = bot.store()
    await store.open()
    bot.server.query(f"UPDATE {bot.schema}.kvpersist_schema SET owner = 'another'")
    for _ in range(2):
        with pytest.raises(UnavailableError, match="taken the schema"):
            await store.apply({"bot": b"2"})
    await store.close()
    assert bot.rows == {}


async def end_lock(store: PostgresStore) -> None:
    """End the connection that holds the lock, from the other side."""
    assert store._opened is not None
    lock = store._opened.lock
    assert lock._connection is not None
    admin = await asyncpg.connect(store._url)
    await admin.fetch("SELECT pg_terminate_backend($1)", lock._connection.get_server_pid())
    await admin.close()
    while lock.is_held:  # noqa: ASYNC110  asyncpg tells nobody
        await asyncio.sleep(0)


def test_after_a_kill_the_next_start_works_at_once(bot: PostgresStorage) -> None:
    """The server lets go of the lock of a process that is no more; what it wrote is there."""
    code = """
        import asyncio, os, signal
        from kvpersist.stores.postgres import PostgresStore

        async def main():
            store = PostgresStore({url!r}, schema={schema!r})
            await store.open()
            await store.apply({{"bot": b"1"}})
            os.kill(os.getpid(), signal.SIGKILL)

        asyncio.run(main())
    """
    code = "\n".join(line[8:] for line in code.splitlines())
    code = code.format(url=bot.server.url(), schema=bot.schema)
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9

    async def check() -> None:
        store = bot.store()
        await store.open()
        assert await store.read(["bot"]) == {"bot": b"1"}
        await store.close()

    asyncio.run(check())


async def test_a_server_that_restarts_gets_what_was_refused(own_server: PostgresServer) -> None:
    """Writes are refused, kept and made; reads work again by themselves."""
    bot = PostgresStorage(own_server)
    persistence = bot.persistence()
    await persistence.update_chat_data(1, {"n": 1})
    own_server.stop()
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 2})
    own_server.start()
    await persistence.rows.commits.flush()
    assert bot.rows == {"chat/1": b'{"n":2}'}
    assert await persistence.store.read(["chat/1"]) == {"chat/1": b'{"n":2}'}
    own_server.stop()
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 3})
    with pytest.raises(WriteError):
        await persistence.flush()
    with pytest.raises(OpenError):
        await persistence.store.open()
    own_server.start()
    await persistence.flush()
    assert bot.rows == {"chat/1": b'{"n":3}'}


async def test_what_was_acknowledged_survives_a_crash_of_the_server(
    own_server: PostgresServer,
) -> None:
    """It is in the log on the disk, and the bot goes on when the server is back."""
    bot = PostgresStorage(own_server)
    persistence = bot.persistence()
    for number in range(20):
        await persistence.update_chat_data(number, {"n": number})
    own_server.kill()
    own_server.start()
    assert bot.rows == {f"chat/{n}": b'{"n":%d}' % n for n in range(20)}
    with suppress(WriteError):  # its connections are gone, of which it may not have heard
        await persistence.update_chat_data(0, {"n": 20})
    await persistence.flush()
    assert bot.rows["chat/0"] == b'{"n":20}'


async def test_what_was_acknowledged_survives_the_loss_of_the_primary() -> None:
    """With a synchronous standby, that takes over: the bot connects there, and goes on writing."""
    settings = "synchronous_commit=remote_apply", "synchronous_standby_names='standby'"
    primary = PostgresServer(*settings)
    standby = PostgresServer("synchronous_standby_names=''", standby_of=primary)
    try:
        while primary.query("SELECT sync_state FROM pg_stat_replication") != [("sync",)]:  # noqa: ASYNC110  the server tells nobody
            await asyncio.sleep(0)
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        persistence = KVPersistence(f"postgresql://postgres:{PASSWORD}@{hosts}/postgres")
        acknowledged: dict[int, int] = {}

        async def write(chat_id: int) -> None:
            for number in range(200):
                with suppress(WriteError):
                    await persistence.update_chat_data(chat_id, {"n": number})
                    acknowledged[chat_id] = number

        writers = [asyncio.create_task(write(chat_id)) for chat_id in range(5)]
        while acknowledged.get(0, 0) < 50:  # noqa: ASYNC110  the writers have better things to do
            await asyncio.sleep(0)
        primary.kill()
        await asyncio.gather(*writers)
        kept = dict(acknowledged)
        assert max(kept.values()) < 199
        standby.promote()
        rows = dict(standby.query("SELECT key, value FROM documents"))
        for chat_id, number in kept.items():
            assert json.loads(rows[f"chat/{chat_id}"])["n"] >= number
        await persistence.update_chat_data(9, {"n": 9})
        await persistence.flush()
        rows = dict(standby.query("SELECT key, value FROM documents"))
        assert {json.loads(rows[f"chat/{chat_id}"])["n"] for chat_id in kept} == {199}
        assert rows["chat/9"] == '{"n":9}'
    finally:
        primary.remove()
        standby.remove()
