"""PostgreSQL behind PgBouncer in transaction mode, where no session is the bot's."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from handlers import conversation, remember, text
from pgbouncer import PgBouncer
from postgres_server import PostgresServer
from storages import PostgresStorage
from through import running
from workers import workers

from kvpersist import StoreInUseError, UnavailableError
from kvpersist.stores.postgres import PostgresStore
from kvpersist.testing import StoreContract


@pytest.fixture
def bot(postgres: PostgresServer, pgbouncer: PgBouncer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres, port=pgbouncer.port)


def pooled(bot: PostgresStorage, **options: float) -> PostgresStore:
    """Return a store as docs/postgres.md says that it has to be."""
    return bot.store(statement_cache_size=0, **options)


class TestPooledStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _storage(self, bot: PostgresStorage) -> None:
        self.storage = bot

    def make_store(self, folder: Path) -> PostgresStore:  # noqa: ARG002  each test has a schema
        return pooled(self.storage)


async def test_a_bot_goes_on_where_it_was(bot: PostgresStorage) -> None:
    """Its updates come all at once, and share the server's sessions."""
    for number in (0, 1):
        async with running(
            pooled(bot), text(remember), conversation(), concurrent_updates=True
        ) as app:
            chats = range(1, 21)
            await asyncio.gather(*(app.say(str(number), chat_id=chat) for chat in chats))
    assert {bot.rows[f"chat/{chat}"] for chat in chats} == {b'{"said":["0","1"]}'}


async def test_workers_behave_as_one(bot: PostgresStorage) -> None:
    """Each of their connections keeps one of the pooler's; the locks are the server's."""
    options = {"statement_cache_size": 0, "pool_size": 2}
    async with workers(bot, lambda: [text(remember), conversation()], 3, store=options) as three:
        chats = range(1, 11)
        for said in ("/start", "on", "done"):
            await asyncio.gather(*(each.say(said, chat_id=at) for at in chats for each in three))
    assert {bot.rows[f"chat/{at}"].count(b'"on"') for at in chats} == {3}
    assert not [key for key in bot.rows if key.startswith("conversation/")]


async def test_a_second_bot_is_refused_until_the_first_has_closed(bot: PostgresStorage) -> None:
    """Though both come over the same pool."""
    store = pooled(bot)
    await store.open()
    for _ in range(2):
        with pytest.raises(StoreInUseError):
            await pooled(bot, lock_timeout=0).open()
        await store.apply({"bot": b"1"})
    await store.close()
    other = pooled(bot)
    await other.open()
    await other.close()


async def test_who_lost_the_schema_writes_nothing(bot: PostgresStorage) -> None:
    """The fence is in the statement, whichever session runs it."""
    store = pooled(bot)
    await store.open()
    bot.server.query(f"UPDATE {bot.schema}.kvpersist_schema SET owner = 'another'")
    with pytest.raises(UnavailableError, match="taken the schema"):
        await store.apply({"bot": b"2"})
    await store.close()
    assert bot.rows == {}


def test_after_a_kill_the_next_start_works(bot: PostgresStorage) -> None:
    """PgBouncer ends the session whose transaction a dead client has left open."""
    code = (
        "import asyncio, os, signal\n"
        "from kvpersist.stores.postgres import PostgresStore\n"
        "async def main():\n"
        f"    store = PostgresStore({bot.server.url(port=bot.port)!r}, schema={bot.schema!r},\n"
        "        statement_cache_size=0)\n"
        "    await store.open()\n"
        "    await store.apply({'bot': b'1'})\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9

    async def check() -> None:
        store = pooled(bot)
        await store.open()
        assert await store.read(["bot"]) == {"bot": b"1"}
        await store.close()

    asyncio.run(check())
