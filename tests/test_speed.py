"""What is done once, or not at all: counted, never timed."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from kvpersist import KVPersistence, MemoryStore, ReadError, SqliteStore
from kvpersist import rows as rows_module
from kvpersist.callback_data import KeyboardDocuments
from kvpersist.stores import sqlite_watch
from kvpersist.stores.sqlite_file import FileConnection, open_file


def fill(path: Path, count: int) -> None:
    """Put chats into a file that kvpersist has made."""
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.executemany(
            "INSERT INTO documents VALUES (?, ?, 1, 0)",
            [(f"chat/{chat}", f'{{"n":{chat}}}') for chat in range(count)],
        )


async def create(path: Path) -> None:
    """Make a file."""
    store = SqliteStore(path)
    await store.open()
    await store.close()


async def test_a_large_load_pauses_the_collector_and_lets_the_loop_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It is restored; progress is told, page by page."""
    caplog.set_level(logging.INFO, "kvpersist")
    monkeypatch.setattr(rows_module, "_SAY_EVERY", 0)
    await create(tmp_path / "bot.db")
    fill(tmp_path / "bot.db", 2000)
    told: list[tuple[str, int]] = []
    enabled: list[bool] = []

    def progress(prefix: str, rows: int) -> None:
        told.append((prefix, rows))
        enabled.append(gc.isenabled())

    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    other = asyncio.create_task(others())
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(
        tmp_path / "bot.db", progress=progress
    )
    assert len(await persistence.get_chat_data()) == 2000
    other.cancel()
    assert told[-1] == ("chat/", 2000)
    assert not any(enabled)
    assert gc.isenabled()
    assert turns >= len(told)
    assert "loading chat/: 500 rows" in caplog.text
    await persistence.flush()


async def test_a_collector_that_is_off_stays_off() -> None:
    """Whoever has switched it off has a reason."""
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(MemoryStore())
    gc.disable()
    try:
        await persistence.get_chat_data()
        assert not gc.isenabled()
    finally:
        gc.enable()
    await persistence.flush()


async def test_documents_that_were_loaded_are_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody has written, so a refresh asks for nothing; when somebody has, each is read once."""
    sql: list[str] = []
    await create(tmp_path / "bot.db")
    fill(tmp_path / "bot.db", 3)
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(tmp_path / "bot.db")
    chats = await persistence.get_chat_data()
    fetch = SqliteStore._fetch

    async def spy(self: SqliteStore, statement: str, *more: Any) -> Any:
        sql.append(statement.split(maxsplit=1)[0])
        return await fetch(self, statement, *more)

    look = FileConnection.look_from_outside

    def spy_on_look(connection: FileConnection) -> None:
        sql.append("PRAGMA")
        look(connection)

    monkeypatch.setattr(SqliteStore, "_fetch", spy)
    monkeypatch.setattr(FileConnection, "look_from_outside", spy_on_look)
    for chat_id, data in chats.items():
        await persistence.refresh_chat_data(chat_id, data)
    assert sql == []
    with closing(sqlite3.connect(tmp_path / "bot.db")) as other, other:
        other.execute("UPDATE documents SET value = '{\"n\":7}' WHERE key = 'chat/1'")
    for _ in range(2):
        for chat_id, data in chats.items():
            await persistence.refresh_chat_data(chat_id, data)
    assert chats[1] == {"n": 7}
    assert sql == ["PRAGMA", "SELECT", "SELECT", "SELECT"]
    await persistence.flush()


async def test_a_commit_of_the_bot_is_no_reason_to_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever looks while one is under way asks SQLite whose it is, and reads no row."""
    store = SqliteStore(tmp_path / "bot.db")
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(store)
    await persistence.get_chat_data()
    assert store._opened is not None
    file = store._opened.file
    file.seen = b"as it was before", file.seen[1]
    monkeypatch.setattr(SqliteStore, "read", None)
    await persistence.refresh_chat_data(1, {})
    await persistence.flush()


async def test_without_a_wal_index_sqlite_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the memory cannot be shared, an edit is seen all the same."""
    monkeypatch.setattr("kvpersist.stores.sqlite_file.watch", lambda _: None)
    await create(tmp_path / "bot.db")
    fill(tmp_path / "bot.db", 1)
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(tmp_path / "bot.db")
    (data,) = (await persistence.get_chat_data()).values()
    with closing(sqlite3.connect(tmp_path / "bot.db")) as other, other:
        other.execute("UPDATE documents SET value = '{\"n\":7}'")
    await persistence.refresh_chat_data(0, data)
    assert data == {"n": 7}
    await persistence.flush()


async def test_what_others_wrote_shows_while_the_bot_is_writing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who looks while a commit is between the file and the loop waits for its verdict."""
    store = SqliteStore(tmp_path / "bot.db")
    await store.open()
    before = await store.see_others()
    look = FileConnection.look
    may_go_on = threading.Event()

    def edited(self: FileConnection) -> None:
        monkeypatch.setattr(FileConnection, "look", look)
        with closing(sqlite3.connect(tmp_path / "bot.db")) as other, other:
            other.execute("INSERT INTO documents VALUES ('chat/9', '{}', 1, 0)")
        assert may_go_on.wait(60)
        look(self)

    monkeypatch.setattr(FileConnection, "look", edited)
    writing = asyncio.create_task(store.apply({"chat/1": b"{}"}))
    while store.others_seen() is not None:  # noqa: ASYNC110  a thread is at work
        await asyncio.sleep(0)
    looking = asyncio.create_task(store.see_others())
    await asyncio.sleep(0)
    may_go_on.set()
    assert await looking > before
    await writing
    await store.close()
    assert store.others_seen() is None
    with pytest.raises(ReadError):
        await store.see_others()


def test_a_file_without_a_wal_index_is_not_watched(tmp_path: Path) -> None:
    """There is none, or nothing is in it. A descriptor is kept for as long as the file is there."""
    assert sqlite_watch.watch(tmp_path / "none.db") is None
    files = tmp_path / "one.db-shm", tmp_path / "other.db-shm"
    for file in files:
        file.touch()
    one, other = (sqlite_watch.WalIndex(file.with_suffix(".db")) for file in files)
    assert one.header() is None
    one.close()
    assert [one] == sqlite_watch._KEPT
    for file in files:
        file.unlink()
    other.close()
    assert sqlite_watch._KEPT == []


def test_the_documents_of_touched_keyboards_are_those_of_the_whole() -> None:
    """One change at a time leads to the same rows as handing everything over."""
    shown: dict[str, tuple[float, dict[str, Any]]] = {}
    documents = KeyboardDocuments()
    rows: dict[str, Any] = {}

    def change(keyboards: list[str], queries: dict[str, str | None]) -> None:
        changed = documents.change(
            {name: shown.get(name) for name in keyboards}, queries, shown.get
        )
        for name, document in changed.items():
            rows.pop(name, None)
            if document is not None:
                rows[name] = document

    shown.update(a=(1.0, {"x": 1}), b=(2.0, {"y": 2}))
    change(["a", "b", "never"], {})
    change([], {"q1": "a", "q2": "a", "q3": "b"})
    change([], {"q1": "a", "unknown": None})
    del shown["a"]
    change(["a"], {})
    assert rows == {
        "a": {"queries": {"q1": 3, "q2": 4}},
        "b": {"position": 2, "access_time": 2.0, "buttons": {"y": 2}, "queries": {"q3": 5}},
    }
    assert KeyboardDocuments().join(rows) == (
        [("b", 2.0, {"y": 2})],
        {"q1": "a", "q2": "a", "q3": "b"},
    )
    change([], {"q1": None, "q2": None, "q3": "c"})
    assert rows["c"] == {"queries": {"q3": 6}}
    assert "a" not in rows


async def test_a_connection_that_is_closed_twice_closes_its_files_once(tmp_path: Path) -> None:
    """The number of a closed descriptor may be that of another file by then."""
    connection = await asyncio.to_thread(open_file, str(tmp_path / "bot.db"), 1.0)
    await asyncio.to_thread(connection.close)
    await asyncio.to_thread(connection.close)
    assert sqlite_watch._KEPT == []
