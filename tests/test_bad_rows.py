"""Rows that cannot be read: all of them are told at once, or set aside, and none is lost."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
from collections.abc import Collection
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bots import NEVER
from handlers import conversation, remember, text
from stores import WatchedStore, stored
from telegram.ext import PersistenceInput
from through import build, counting, running

from kvpersist import (
    BadRowsError,
    Codec,
    ConfigurationError,
    DecodeError,
    KVPersistence,
    MemoryStore,
    SqliteStore,
    WriteError,
    keys,
)
from kvpersist.rows import Rows
from kvpersist.stores.store import BadRow

GOOD = {"chat/1": '{"n":1}', "user/1": '{"n":1}'}
BAD = {
    "chat/2": "{",
    "chat/3": '{"a":{"$nobody:knows":1}}',
    "chat/x": "{}",
    "chat/5": "[" * 5000 + "]" * 5000,
    "user/2": '{"n":123456789012345678901234567890}',
    "user/3": "null",
    "callback/k": '{"buttons":7}',
    "conversation/order/[2,2]": '{"$:Unknown":1}',
    "conversation/order/2": "0",
}
"""Not JSON, an unknown tag, no id, too deep, too large an int, no document, no keyboard, …."""


def write(path: Path, rows: dict[str, str]) -> None:
    """Write rows as another program does."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany("INSERT OR REPLACE INTO documents VALUES (?, ?, 7, 8)", rows.items())


def set_aside(path: Path) -> dict[str, str]:
    """Return the rows that were set aside."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT key, value, version, updated_at FROM set_aside")
        found = {key: value for key, value, *rest in rows if rest == [7, 8]}
        (number,) = connection.execute("SELECT count(*) FROM set_aside").fetchone()
    assert number == len(found)
    return found


def kept(path: Path) -> dict[str, str]:
    """Return the rows that are read."""
    with closing(sqlite3.connect(path)) as connection:
        return dict(connection.execute("SELECT key, value FROM documents").fetchall())


@pytest.fixture
async def bad_db(bot_db: Path) -> Path:
    """A file with rows that cannot be read."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.close()
    write(bot_db, GOOD | BAD)
    return bot_db


async def test_a_start_tells_of_all_rows_that_cannot_be_read(bad_db: Path) -> None:
    """Of whatever kind, whichever is looked at first; the file stays as it is, and is closed."""
    persistence = KVPersistence(bad_db)
    for load in (
        persistence.get_user_data,
        persistence.get_chat_data,
        persistence.get_callback_data,
        lambda: persistence.get_conversations("order"),
    ):
        with pytest.raises(BadRowsError) as caught:
            await load()
        assert {error.key for error in caught.value.errors} == {*BAD}
        assert caught.value.key in BAD
        shown = str(caught.value)
        assert "9 rows cannot be read" in shown
        assert '- chat/3 → ["a"]: ' in shown
        assert shown.startswith(f"{bad_db}: ")
        assert shown.endswith('Or start without: KVPersistence(..., on_bad_row="set-aside")')
    assert kept(bad_db) == GOOD | BAD
    other = SqliteStore(bad_db)
    await other.open()
    await other.close()


async def test_only_what_is_kept_is_looked_at(bad_db: Path) -> None:
    """One row alone is its own error; with many the message has the first ones."""
    with closing(sqlite3.connect(bad_db)) as connection, connection:
        connection.execute("DELETE FROM documents WHERE key NOT IN ('chat/1', 'chat/2')")
    with pytest.raises(DecodeError) as caught:
        await KVPersistence(bad_db).get_chat_data()
    assert type(caught.value) is DecodeError
    assert str(caught.value).startswith(f"{bad_db}: chat/2: ")
    assert str(caught.value).endswith('KVPersistence(..., on_bad_row="set-aside")')
    write(bad_db, {f"chat/{chat}": "{" for chat in range(10, 30)})
    with pytest.raises(BadRowsError, match="and 11 more"):
        await KVPersistence(bad_db).get_chat_data()


async def test_what_is_switched_off_is_not_looked_at(bad_db: Path) -> None:
    """Neither read nor told of; conversations are kept for whoever says so."""
    nothing = PersistenceInput(False, False, False, False)
    with pytest.raises(BadRowsError) as caught:
        await KVPersistence(bad_db, store_data=nothing).get_conversations("order")
    assert {error.scope for error in caught.value.errors} == {"conversation"}


async def test_bad_rows_are_set_aside(bad_db: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The bot starts without them; each is in the log, and in a table of its own as it was."""
    caplog.set_level(logging.ERROR, "kvpersist")
    bot = build(SqliteStore(bad_db), text(remember), conversation(), on_bad_row="set-aside")
    async with bot.app:
        assert bot.app.chat_data == {1: {"n": 1}}
        assert bot.app.user_data == {1: {"n": 1}}
        await bot.say("x", 2)
        await bot.say("/start", 2)
    assert bot.errors == []
    # The conversation and the keyboards of a bot that has none are not read, and stay.
    assert set_aside(bad_db) == {
        key: value for key, value in BAD.items() if not key.startswith("callback")
    }
    assert kept(bad_db)["chat/2"] == '{"said":["x"]}'
    told = [message for message in caplog.messages if message.startswith("set aside: ")]
    assert len(told) == len(BAD) - 1
    assert any('chat/3 → ["a"]' in message for message in told)


async def test_what_was_set_aside_can_be_mended_and_put_back(bad_db: Path) -> None:
    """With SQL; a row can be set aside more than once."""
    persistence = KVPersistence(bad_db, on_bad_row="set-aside")
    assert await persistence.get_chat_data() == {1: {"n": 1}}
    await persistence.flush()
    write(bad_db, {"chat/2": "again {"})
    assert await persistence.get_chat_data() == {1: {"n": 1}}
    await persistence.flush()
    with closing(sqlite3.connect(bad_db)) as connection, connection:
        aside = connection.execute("SELECT value FROM set_aside WHERE key = 'chat/2'").fetchall()
        assert aside == [("{",), ("again {",)]
    await persistence.update_chat_data(2, {"n": 3})
    await persistence.flush()
    readme = Path(__file__).parents[1].joinpath("README.md").read_text()
    ((sql, *_),) = (
        block.split("```") for block in readme.split("```sql\n") if "SELECT rowid" in block
    )
    number = "(SELECT rowid FROM set_aside WHERE value LIKE 'again%' OR value LIKE '%mended%')"
    with closing(sqlite3.connect(bad_db)) as connection:
        connection.executescript(sql.replace("rowid = 1", f"rowid = {number}"))
    assert await persistence.get_chat_data() == {1: {"n": 1}, 2: {"mended": True}}
    await persistence.flush()
    assert set_aside(bad_db)["chat/2"] == "{"


@pytest.mark.parametrize("value", ["7", "x'ff00'", "'{' || char(0) || 'x'"])
async def test_values_of_any_type_are_set_aside_as_they_are(bad_db: Path, value: str) -> None:
    """Other programs may store numbers, bytes, and texts with NUL in them."""
    with closing(sqlite3.connect(bad_db)) as connection, connection:
        connection.execute("DELETE FROM documents")
        connection.execute(f"INSERT INTO documents VALUES ('chat/1', {value}, 7, 8)")
        before = connection.execute("SELECT value, typeof(value) FROM documents").fetchall()
    persistence = KVPersistence(bad_db, on_bad_row="set-aside")
    assert await persistence.get_chat_data() == {}
    await persistence.flush()
    with closing(sqlite3.connect(bad_db)) as connection:
        assert before == connection.execute("SELECT value, typeof(value) FROM set_aside").fetchall()


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
async def test_a_row_that_becomes_bad_is_set_aside_when_it_is_used(
    bot_db: Path, *, lazy: bool
) -> None:
    """What another program has spoilt does not keep a chat from the bot; what it was is kept."""
    bot = build(SqliteStore(bot_db), text(remember), on_bad_row="set-aside", lazy=lazy)
    async with bot.app:
        await bot.say("x", 1)
        write(bot_db, {"chat/1": "{", "chat/2": "[", "user/2": "{"})
        await bot.say("y", 1)
        await bot.say("y", 2)
        found = [item async for item in bot.app.persistence.documents("chat")]  # type: ignore[union-attr]
        assert [chat for chat, _ in found] == [1, 2]
    assert bot.errors == []
    assert set_aside(bot_db) == {"chat/1": "{", "chat/2": "[", "user/2": "{"}
    assert stored(bot_db)["chat/1"] == {"said": ["x", "y"]}
    assert stored(bot_db)["chat/2"] == {"said": ["y"]}


async def test_looking_through_sets_aside(bad_db: Path) -> None:
    """`documents` yields what can be read, or raises for those that it comes across."""
    persistence = KVPersistence(bad_db)
    with pytest.raises(BadRowsError) as caught:
        _ = [item async for item in persistence.documents("chat")]
    assert {error.key for error in caught.value.errors} == {k for k in BAD if k[:4] == "chat"}
    await persistence.flush()
    persistence = KVPersistence(bad_db, on_bad_row="set-aside")
    assert [item async for item in persistence.documents("chat")] == [(1, {"n": 1})]
    await persistence.flush()
    assert {*set_aside(bad_db)} == {key for key in BAD if key.startswith("chat")}


async def test_only_what_was_read_is_set_aside(kv: Any) -> None:
    """A row that was mended, or written by the bot, meanwhile stays."""
    store = kv.persistence().store
    await store.open()
    bad = b'{"$nobody":1}'
    await store.apply({"chat/1": bad, "chat/2": b"{}"})
    rows = [("chat/1", bad, "why"), ("chat/2", bad, "why"), ("chat/3", bad, "")]
    assert [*await store.set_aside(rows)] == ["chat/1"]
    assert await store.read(["chat/1", "chat/2", "chat/3"]) == {"chat/2": b"{}"}
    await store.close()


@pytest.mark.parametrize("is_first", [True, False])
async def test_what_is_written_while_a_row_is_set_aside_is_known(is_first: bool) -> None:
    """So that it is removed, or emptied, when the chat is."""
    store = MemoryStore()
    store.rows["chat/1"] = b"{"
    rows = Rows(store, Codec(), aside=store)
    set_aside = store.set_aside

    async def write_meanwhile(bad: Collection[BadRow]) -> Collection[str]:
        if is_first:
            await rows.commits.write({"chat/1": b'{"n":1}'})
        moved = await set_aside(bad)
        if not is_first:
            await rows.commits.write({"chat/1": b'{"n":1}'})
        return moved

    store.set_aside = write_meanwhile  # type: ignore[method-assign, assignment]
    await rows.load("chat/", partial(keys.document_id, "chat"), dict)
    assert store.rows == {"chat/1": b'{"n":1}'}
    assert rows.may_be_stored("chat/1")
    assert rows.is_changed("chat/1", {}, dict)
    await rows.commits.close()


async def test_a_row_that_cannot_be_set_aside_stops_the_start(bad_db: Path) -> None:
    """Nothing was moved then."""
    persistence = KVPersistence[Any, Any, Any](
        SqliteStore(bad_db, busy_timeout=0), on_bad_row="set-aside"
    )
    await persistence.store.open()
    with closing(sqlite3.connect(bad_db, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        with pytest.raises(
            WriteError, match="chat/x: cannot be read, nor set aside: .*locked"
        ) as e:
            await persistence.get_chat_data()
        locker.execute("ROLLBACK")
    assert {*e.value.keys} == {key for key in BAD if key.startswith("chat")}
    await persistence.flush()
    assert kept(bad_db) == GOOD | BAD
    with pytest.raises(WriteError, match="not open"):
        await persistence.store.set_aside([])  # type: ignore[attr-defined]


class Mended(SqliteStore):
    """Another program is faster than a row is set aside."""

    def __init__(self, path: Path, **rows: str) -> None:
        super().__init__(path)
        self.rows = {key.replace("_", "/"): value for key, value in rows.items()}

    async def set_aside(self, rows: Collection[BadRow]) -> Collection[str]:
        """Have a row rewritten before one time, and then another."""
        for key in {key for key, *_ in rows} & self.rows.keys():
            await asyncio.to_thread(write, Path(self.path), {key: self.rows.pop(key)})
        return await super().set_aside(rows)


@pytest.mark.parametrize("now", ["again {", '{"n":2}'])
async def test_a_row_that_was_mended_meanwhile_is_read(
    bad_db: Path, caplog: pytest.LogCaptureFixture, now: str
) -> None:
    """At a start and in a look through all: it is not set aside, and nobody says so."""
    persistence = KVPersistence(Mended(bad_db, chat_2=now, bot=now), on_bad_row="set-aside")
    write(bad_db, {"bot": "{"})
    expected = {1: {"n": 1}} | ({2: {"n": 2}} if "2" in now else {})
    assert await persistence.get_chat_data() == expected
    assert await persistence.get_bot_data() == expected.get(2, {})
    await persistence.flush()
    aside = set_aside(bad_db)
    told = {*caplog.messages}
    assert aside.get("chat/2") == aside.get("bot") == (None if 2 in expected else now)
    assert (2 in expected) is not any("set aside: chat/2" in each for each in told)
    write(bad_db, {"chat/2": "{"})
    persistence = KVPersistence(Mended(bad_db, chat_2=now), on_bad_row="set-aside")
    assert dict([item async for item in persistence.documents("chat")]) == expected
    await persistence.flush()


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
async def test_a_row_that_was_mended_before_it_is_used_is_taken_over(
    bot_db: Path, *, lazy: bool
) -> None:
    """It is not written over by what memory had."""
    store = Mended(bot_db, chat_1='{"said":["mended"]}')
    bot = build(store, text(remember), on_bad_row="set-aside", lazy=lazy)
    async with bot.app:
        await bot.say("x", 1)
        write(bot_db, {"chat/1": "{"})
        await bot.say("y", 1)
    assert bot.errors == []
    assert stored(bot_db)["chat/1"] == {"said": ["mended", "y"]}
    assert set_aside(bot_db) == {}


async def test_keys_that_are_no_utf_8_are_bad_rows(
    bad_db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of whatever kind; each is named, set aside as it is, and holds up no other."""
    odd = [b"chat/\xff\xfe", b"chat/1\xff", b"conversation/order/[\xff]"]
    with closing(sqlite3.connect(bad_db)) as connection, connection:
        connection.execute("DELETE FROM documents WHERE key NOT IN ('chat/1', 'user/1')")
        put = "INSERT INTO documents VALUES (CAST(? AS TEXT), '{}', 7, 8)"
        connection.executemany(put, [(key,) for key in odd])
        connection.executemany(put, [(b"chat/0\xff%d" % number,) for number in range(1200)])
    with pytest.raises(BadRowsError, match=r"chat/0\\udcff0: ") as caught:
        await KVPersistence(bad_db).get_chat_data()
    assert len(caught.value.errors) == len(odd) + 1200
    persistence = KVPersistence(bad_db, on_bad_row="set-aside")
    assert await persistence.get_chat_data() == {1: {"n": 1}}
    assert await persistence.get_user_data() == {1: {"n": 1}}
    assert await persistence.get_conversations("order") == {}
    await persistence.flush()
    assert any(r"chat/1\udcff: " in message for message in caplog.messages)
    with closing(sqlite3.connect(bad_db)) as connection:
        keys_aside = connection.execute("SELECT CAST(key AS BLOB) FROM set_aside").fetchall()
    assert len(keys_aside) == len(odd) + 1200
    assert {(key,) for key in odd} <= {*keys_aside}


def test_a_policy_that_cannot_work_is_refused(store: WatchedStore) -> None:
    """A word that is none, and a store that cannot."""
    with pytest.raises(ConfigurationError, match='"raise" or "set-aside"'):
        KVPersistence(store, on_bad_row="skip", update_interval=NEVER)  # type: ignore[call-overload]
    with pytest.raises(ConfigurationError, match="cannot set rows aside"):
        KVPersistence(store, on_bad_row="set-aside")
    KVPersistence(MemoryStore(), on_bad_row="set-aside")


@pytest.mark.parametrize("is_used", [True, False])
async def test_a_handler_that_is_added_later_spoils_nothing(bot_db: Path, *, is_used: bool) -> None:
    """What a bot that runs knows of its rows says what is in its memory, not what a start finds."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 0})
    await persistence.flush()
    chat = (await persistence.get_chat_data())[1]
    if is_used:
        await persistence.update_chat_data(2, {"in": "use"})
    write(bot_db, {"chat/1": '{"n":0,"other":"program"}', "conversation/x/[1]": "{"})
    with pytest.raises(DecodeError):
        await persistence.get_conversations("x")
    await persistence.refresh_chat_data(1, chat)
    chat["mine"] = 1
    await persistence.update_chat_data(1, chat)
    await persistence.flush()
    assert kept(bot_db)["chat/1"] == '{"n":0,"other":"program","mine":1}'


async def test_a_handler_that_is_added_later_lets_nothing_be_overwritten(bot_db: Path) -> None:
    """Another program has left half a document, which the bot must not overwrite."""
    async with running(SqliteStore(bot_db), counting("count")) as bot:
        await bot.say("/count")
        write(bot_db, {"chat/1": '{"half": ', "conversation/x/[1]": "{"})
        await bot.say("/count")
        with pytest.raises(DecodeError):
            await bot.app.persistence.get_conversations("x")  # type: ignore[union-attr]
        bot.app.chat_data[1]["n"] = 99
        bot.app.mark_data_for_update_persistence(chat_ids=1)
        await bot.save()
        assert kept(bot_db)["chat/1"] == '{"half": '
        assert [type(error) for error in bot.errors] == [DecodeError]
        bot.errors.clear()
