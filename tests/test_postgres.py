"""PostgreSQL: what is stored and how, who may have it, what is refused, and what is never shown."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from postgres_server import PASSWORD, PostgresServer
from storages import PostgresStorage

from kvpersist import (
    BackupError,
    ConfigurationError,
    KVPersistence,
    NewerSchemaError,
    NotAStoreError,
    OpenError,
    ReadError,
    StoreInUseError,
    UnavailableError,
    WriteError,
)
from kvpersist.stores.postgres import PostgresStore
from kvpersist.stores.store import SetsAside


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


async def create(storage: PostgresStorage, **rows: bytes) -> None:
    """Have the tables, with rows."""
    store = storage.store()
    await store.open()
    await store.apply(rows)
    await store.close()


async def test_a_url_is_a_store(postgres: PostgresServer) -> None:
    """The first argument of a persistence may be one; the tables are in the schema ``public``."""
    persistence = KVPersistence(postgres.url())
    await persistence.update_chat_data(1, {"name": "Ada"})
    await persistence.flush()
    assert postgres.psql("SELECT value->>'name' FROM documents WHERE key = 'chat/1'") == "Ada"
    persistence = KVPersistence(postgres.url().replace("postgresql:", "postgres:"))
    assert await persistence.get_chat_data() == {1: {"name": "Ada"}}
    with pytest.raises(BackupError, match="by its own means"):
        await persistence.backup("copy")
    await persistence.flush()


async def test_a_row_counts_its_writes_and_has_a_time(bot: PostgresStorage) -> None:
    """As in a SQLite file: `version`, and `updated_at` in Unix milliseconds."""
    store = bot.store()
    await store.open()
    before = time.time_ns() // 1_000_000
    await store.apply({"bot": b"1"})
    await store.apply({"bot": b"2"})
    await store.close()
    query = f"SELECT version, updated_at FROM {bot.schema}.documents"
    ((version, updated_at),) = bot.server.query(query)
    assert version == 2
    assert before <= updated_at <= time.time_ns() // 1_000_000


@pytest.mark.parametrize(
    "text",
    [
        '{"a":"\\u0000","\\u0000":1}',
        '"\\ud800"',
        '{"b": 1,"a":1.0,  "a":2}',
        f"[{'9' * 5000},1e400,-0,1.50]",
        '"🎲 \\ud83c\\udfb2 \\/ \\u00e9"',
        "[" * 500 + "]" * 500,
    ],
    ids=["NUL", "surrogate", "two of one name", "numbers", "escapes", "deep"],
)
async def test_a_text_comes_back_byte_for_byte(bot: PostgresStorage, text: str) -> None:
    """The type json keeps a text as it is; jsonb would not."""
    store = bot.store()
    await store.open()
    await store.apply({"chat/1": text.encode()})
    assert await store.read(["chat/1"]) == {"chat/1": text.encode()}
    assert [page async for page in store.scan("")] == [[("chat/1", text.encode())]]
    await store.close()
    assert bot.server.psql(f"SELECT value FROM {bot.schema}.documents") == text


async def test_operators_refuse_a_document_with_a_nul(bot: PostgresStorage) -> None:
    """All of it, since they make texts, which cannot hold one; the document's text is shown."""
    await create(bot, **{"chat/1": b'{"a":"\\u0000","b":1}', "chat/2": b'{"b":2}'})
    table = f"FROM {bot.schema}.documents ORDER BY key"
    with pytest.raises(subprocess.CalledProcessError):
        bot.server.psql(f"SELECT value->>'b' {table}")
    careful = "CASE WHEN value::text NOT LIKE '%\\\\u0000%' THEN value->>'b' ELSE 'NUL' END"
    assert bot.server.psql(f"SELECT {careful} {table}") == "NUL\n2"


async def test_a_row_that_postgresql_refuses_is_refused_alone(bot: PostgresStorage) -> None:
    """It is named; the others of the same commit are written."""
    store = bot.store()
    await store.open()
    for rows in ({"chat/1": b"{"}, {"chat/\0": b"1"}, {"chat/\ud800": b"1"}, {"chat/1": b"\xff"}):
        with pytest.raises(WriteError) as caught:
            await store.apply(rows)
        assert not isinstance(caught.value, UnavailableError)
        assert caught.value.keys == tuple(rows)
    await store.apply({"bot": b"1"})
    with pytest.raises(ReadError):
        await store.read(["chat/\0"])
    await store.close()
    assert bot.rows == {"bot": b"1"}


async def test_a_second_bot_is_refused_until_the_first_has_closed(bot: PostgresStorage) -> None:
    """It waits `lock_timeout` seconds for the first to end; other schemas are not concerned."""
    store, second = bot.store(), bot.store(lock_timeout=0.1)
    await store.open()
    with pytest.raises(StoreInUseError, match="stop that one first"):
        await second.open()
    elsewhere = PostgresStorage(bot.server).store()
    await elsewhere.open()
    await elsewhere.close()
    patient = bot.store(lock_timeout=30)
    opening = asyncio.create_task(patient.open())
    while not bot.server.query("SELECT 1 FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
        await asyncio.sleep(0)
    await store.close()
    await opening
    await patient.close()


async def test_other_connections_may_write_while_a_bot_runs(bot: PostgresStorage) -> None:
    """The lock concerns bots alone, and the bot sees what others wrote."""
    store = bot.store()
    await store.open()
    bot.write("chat/1", '{"n":1}')
    assert await store.read(["chat/1"]) == {"chat/1": b'{"n":1}'}
    await store.close()


async def test_ten_bots_may_start_at_once(bot: PostgresStorage) -> None:
    """One makes the tables and has them, the others are refused; none meets half a schema."""
    stores = [bot.store(lock_timeout=0.01) for _ in range(10)]
    found = await asyncio.gather(*(store.open() for store in stores), return_exceptions=True)
    assert found.count(None) == 1
    assert all(each is None or type(each) is StoreInUseError for each in found)
    for store in stores:
        await store.close()


@pytest.mark.parametrize("table", ["documents", "set_aside"])
async def test_tables_of_others_are_left_as_they_are(bot: PostgresStorage, table: str) -> None:
    """A schema that has a table of that name, and is not kvpersist's, is refused."""
    bot.server.query(f"CREATE SCHEMA {bot.schema}")
    bot.server.query(f"CREATE TABLE {bot.schema}.{table} (key text)")
    bot.server.query(f"CREATE TABLE {bot.schema}.others (key text)")
    with pytest.raises(NotAStoreError, match="name another schema"):
        await bot.store().open()
    query = "SELECT tablename FROM pg_tables WHERE schemaname = $1 ORDER BY 1"
    assert bot.server.query(query, bot.schema) == sorted([("others",), (table,)])


async def test_tables_may_stand_beside_those_of_others(bot: PostgresStorage) -> None:
    """In a schema that exists, and with columns that somebody has added."""
    bot.server.query(f"CREATE SCHEMA {bot.schema}")
    bot.server.query(f"CREATE TABLE {bot.schema}.others (key text)")
    await create(bot, bot=b"1")
    bot.server.query(
        f"ALTER TABLE {bot.schema}.documents "
        "ADD name text GENERATED ALWAYS AS (value->>'name') STORED"
    )
    await create(bot, **{"chat/1": b'{"name":"Ada"}'})
    assert bot.server.query(f"SELECT name FROM {bot.schema}.documents WHERE key <> 'bot'") == [
        ("Ada",)
    ]


@pytest.mark.parametrize(
    ("statement", "error", "words"),
    [
        ("UPDATE {}.kvpersist_schema SET version = 2", NewerSchemaError, "have version 2"),
        ("UPDATE {}.kvpersist_schema SET version = 0", OpenError, "restore"),
        ("DELETE FROM {}.kvpersist_schema", OpenError, "restore"),
        ("ALTER TABLE {}.kvpersist_schema DROP version", OpenError, "restore"),
        ("ALTER TABLE {}.documents ALTER value TYPE jsonb", OpenError, "table documents"),
        ('ALTER TABLE {}.documents ALTER key TYPE text COLLATE "default"', OpenError, "documents"),
        ("ALTER TABLE {}.set_aside DROP reason", OpenError, "table set_aside"),
        ("DROP TABLE {}.documents", OpenError, "table documents"),
    ],
)
async def test_tables_that_are_not_as_made_are_refused(
    bot: PostgresStorage, statement: str, error: type[OpenError], words: str
) -> None:
    """With what was found; a later start works once that is undone."""
    await create(bot)
    bot.server.query(statement.format(bot.schema))
    store = bot.store()
    with pytest.raises(error, match=words):
        await store.open()
    await store.close()


async def test_a_database_of_another_encoding_is_refused(postgres: PostgresServer) -> None:
    """Its texts are others; nothing is created."""
    postgres.query("CREATE DATABASE ascii ENCODING 'SQL_ASCII' TEMPLATE template0")
    with pytest.raises(OpenError, match="UTF8"):
        await PostgresStore(postgres.url("ascii")).open()


async def test_a_schema_may_have_any_name(postgres: PostgresServer) -> None:
    """It is an identifier, not a part of SQL."""
    store = PostgresStore(postgres.url(), schema='Bot "1"; {schema} --')
    await store.open()
    await store.apply({"bot": b"1"})
    assert await store.read(["bot"]) == {"bot": b"1"}
    await store.close()


async def test_rows_are_set_aside(bot: PostgresStorage) -> None:
    """As they are, with the reason; what was mended meanwhile stays."""
    bad = b'{"$nobody": 1}'
    await create(bot, **{"chat/1": bad, "chat/2": b"{}"})
    store = bot.store()
    assert isinstance(store, SetsAside)
    await store.open()
    await store.set_aside([("chat/1", bad, "why"), ("chat/2", bad, "why")])
    await store.close()
    query = f"SELECT key, value, version, reason FROM {bot.schema}.set_aside"
    assert bot.server.query(query) == [("chat/1", bad.decode(), 1, "why")]
    assert bot.rows == {"chat/2": b"{}"}


async def test_a_role_without_rights_is_told_so(bot: PostgresStorage) -> None:
    """PostgreSQL's own words say what is missing."""
    bot.server.query(f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'")
    url = bot.server.url().replace("//postgres:", "//reader:")
    with pytest.raises(OpenError, match="permission denied"):
        await PostgresStore(url, schema=bot.schema).open()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda url: url.replace(PASSWORD, "another-pa55word"), "password authentication failed"),
        (lambda url: url.replace("127.0.0.1", "nowhere.invalid"), "known|resolution|resolve"),
        (lambda url: url.rpartition(":")[0] + ":1/postgres", "Connect"),
        (lambda url: url + "?sslmode=require", "SSL"),
        (lambda url: url + "?sslmode=verify-full&sslrootcert=/none", "No such file"),
        (lambda url: url + "?sslmode=sometimes", "asyncpg cannot read the URL"),
        (lambda url: url + "?target_session_attrs=standby", "target"),
    ],
)
async def test_no_error_has_the_password(
    postgres: PostgresServer,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[str], str],
    words: str,
) -> None:
    """Neither its text, nor that of its causes, nor the log; TLS options reach asyncpg."""
    caplog.set_level(logging.DEBUG)
    persistence = KVPersistence(change(postgres.url()))
    with pytest.raises(OpenError, match=words) as caught:
        await persistence.get_bot_data()
    with pytest.raises(WriteError) as refused:
        await persistence.update_bot_data({})
    with pytest.raises(WriteError):
        await persistence.flush()
    error: BaseException | None = caught.value
    shown = [repr(refused.value), caplog.text, repr(persistence.store), repr(persistence)]
    while error is not None:
        shown += [repr(error), str(error)]
        error = error.__cause__
    assert "pa55word" not in "".join(shown)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql:bot",
        "postgresql://ada:pa55/word@db/bot",
        "postgresql://ada:123/pa55word@db/bot",
        "postgresql://ada:pa55#word@db/bot",
        "postgresql://ada:123?pa55word@db/bot",
        "postgresql://ada:123#pa55word@db/bot",
        "postgresql://ada:pa55@word@db/bot",
        "postgresql://ada:pa55[word@db/bot",
        "postgresql://ada:pa55\u2100word@db/bot",
    ],
)
def test_a_url_that_cannot_be_read_is_refused_without_showing_it(url: str) -> None:
    """Any part of it may be one of the password."""
    with pytest.raises(ConfigurationError, match="PostgreSQL URL") as caught:
        KVPersistence(url)
    assert "word" not in str(caught.value).replace("password", "")
    assert "55" not in repr(caught.value)
    assert caught.value.__cause__ is None


def test_a_store_shows_where_its_rows_are() -> None:
    """Without the user, the password, and the options."""
    store = PostgresStore("postgres://ada:pw@db1:5432,[::1]:1/bot?password=pw", schema="b")
    assert repr(store) == "PostgresStore('postgresql://db1:5432,[::1]:1/bot', schema='b')"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"url": b"postgresql://db"}, "this is a bytes"),
        ({"schema": ""}, "schema"),
        ({"schema": "a\0"}, "schema"),
        ({"schema": None}, "schema"),
        ({"schema": "é" * 32}, "schema"),
        ({"timeout": 0}, "timeout"),
        ({"lock_timeout": -1}, "lock_timeout"),
        ({"pool_size": 0}, "pool_size"),
        ({"pool_size": "4"}, "pool_size"),
        ({"rescue_file": "unwritten.json"}, "absolute"),
    ],
)
def test_arguments_that_cannot_work_are_refused(options: dict[str, Any], words: str) -> None:
    """Before anything is connected."""
    with pytest.raises(ConfigurationError, match=words):
        PostgresStore(**{"url": "postgresql://db", **options})


async def test_a_store_that_is_not_open_says_so(bot: PostgresStorage) -> None:
    """Reading does not mean that there is nothing."""
    store = bot.store()
    with pytest.raises(ReadError, match="await open"):
        await store.read(["bot"])
    with pytest.raises(UnavailableError, match="await open"):
        await store.apply({"bot": b"1"})
    assert await store.read([]) == {}


async def test_a_write_while_the_store_is_closed_is_refused(bot: PostgresStorage) -> None:
    """Or it is made: never half."""
    store = bot.store()
    await store.open()
    assert store._opened is not None
    await store._opened.pool.close()
    with pytest.raises(UnavailableError, match="closed"):
        await store.apply({"bot": b"1"})
    await store.close()


async def test_an_open_that_nobody_waits_for_leaves_nothing(bot: PostgresStorage) -> None:
    """It goes on, and `close` finds what it has opened."""
    store = bot.store()
    opening = asyncio.create_task(store.open())
    await asyncio.sleep(0)
    opening.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await store.close()
    await create(bot)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # asyncpg's sockets, of a dead loop
@pytest.mark.parametrize("is_closed", [True, False])
def test_the_next_loop_takes_over_from_a_dead_one(bot: PostgresStorage, *, is_closed: bool) -> None:
    """Its connections are ended, not awaited, and their lock with them."""
    store = bot.store()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(store.open())
    loop.run_until_complete(store.apply({"bot": b"1"}))
    if is_closed:
        loop.close()

    async def go_on() -> None:
        with pytest.raises(ReadError):
            await store.read(["bot"])
        await store.open()
        assert await store.read(["bot"]) == {"bot": b"1"}
        await store.apply({"bot": b"2"})
        await store.close()

    asyncio.run(go_on())
    loop.close()
    assert bot.rows == {"bot": b"2"}
    assert threading.active_count() == 1


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_store_can_be_closed_on_another_loop(bot: PostgresStorage) -> None:
    """So that nothing warns of it."""
    store = bot.store()
    asyncio.run(store.open())
    asyncio.run(store.close())
    asyncio.run(create(bot))


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_store_that_is_lost_warns(bot: PostgresStorage) -> None:
    """As a SQLite store does."""
    store: PostgresStore | None = bot.store()
    assert store is not None
    asyncio.run(store.open())
    opened, store._opened = store._opened, None
    assert opened is not None
    opened.abandon()
    store._opened = opened
    with pytest.warns(ResourceWarning, match="was not closed"):
        store.__del__()
    store._opened = None


def test_asyncpg_is_imported_only_for_a_url() -> None:
    """It is an extra."""
    code = "import kvpersist, sys; assert 'asyncpg' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_asyncpg_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a URL is given."""
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    monkeypatch.delitem(sys.modules, "kvpersist.stores.postgres")
    with pytest.raises(
        ConfigurationError, match=r'the extra postgres: .* pip install "\.\[postgres\]"'
    ):
        KVPersistence("postgresql://db/bot")


async def test_a_dump_restores_all(bot: PostgresStorage, tmp_path: Path) -> None:
    """`pg_dump` of the schema is a backup, with the numbers of the rows."""
    await create(bot, **{"chat/1": b'{"a": "\\u0000"}'})
    dump = bot.server.run("pg_dump", "--schema", bot.schema, "-d", bot.server.url())
    before = bot.server.query(f"SELECT * FROM {bot.schema}.documents")
    bot.server.query(f"DROP SCHEMA {bot.schema} CASCADE")
    (tmp_path / "dump.sql").write_text(dump)
    bot.server.run("psql", "-X", "-q", "-d", bot.server.url(), "-f", str(tmp_path / "dump.sql"))
    assert bot.server.query(f"SELECT * FROM {bot.schema}.documents") == before
    await create(bot, bot=b"1")


async def test_an_idle_bot_does_not_hold_up_vacuum(bot: PostgresStorage) -> None:
    """The transaction of its lock has neither a snapshot nor a number of its own."""
    store = bot.store()
    await store.open()
    query = "SELECT backend_xid, backend_xmin FROM pg_stat_activity WHERE state LIKE 'idle in%'"
    assert bot.server.query(query) == [(None, None)]
    await store.close()


async def test_the_environment_may_say_which_host_is_wanted(
    bot: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for every program that uses PostgreSQL; without it, one that takes writes."""
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "standby")
    with pytest.raises(OpenError):
        await bot.store().open()
    monkeypatch.setenv("PGTARGETSESSIONATTRS", "any")
    await create(bot)


async def test_a_read_only_server_takes_no_writes(bot: PostgresStorage) -> None:
    """It is not one row's fault: all are kept and tried again."""
    store = bot.store()
    await store.open()
    bot.server.query("ALTER ROLE postgres SET default_transaction_read_only = on")
    try:
        assert store._opened is not None
        await store._opened.pool.expire_connections()
        with pytest.raises(UnavailableError):
            await store.apply({"bot": b"1"})
    finally:
        connection = await asyncpg.connect(bot.server.url())
        await connection.execute("SET default_transaction_read_only = off")
        await connection.execute("ALTER ROLE postgres RESET default_transaction_read_only")
        await connection.close()
    await store.apply({"bot": b"1"})
    await store.close()
