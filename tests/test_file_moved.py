"""Somebody removes, renames or replaces the file, or its log, while the bot runs."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from faults import locked_by_another_program, quota, read_by_another_program
from stores import stored

from kvpersist import (
    BackupError,
    KVPersistence,
    KVPersistError,
    OpenError,
    ReadError,
    SqliteStore,
    StoreInUseError,
    UnavailableError,
    WriteError,
)
from kvpersist.group_commit import GroupCommit
from kvpersist.stores import rescue
from kvpersist.stores.sqlite_file import FileConnection, open_file, open_reader


def remove(path: Path) -> None:
    """Remove the file, and leave what lies beside it."""
    path.unlink()


def rename(path: Path) -> None:
    """Keep the file under another name."""
    path.rename(path.with_name("other.db"))


def remove_all(path: Path) -> None:
    """Remove whatever the name begins like, as people do."""
    for file in path.parent.glob("bot.db*"):
        file.unlink()


def replace(path: Path) -> None:
    """Put a copy, of before perhaps, in its place."""
    shutil.copyfile(path, path.with_name("copy.db"))
    path.with_name("copy.db").replace(path)


def remove_log(path: Path) -> None:
    """Remove what was not moved into the file yet."""
    path.with_name("bot.db-wal").unlink()


@asynccontextmanager
async def being_read(store: SqliteStore, by: str) -> AsyncIterator[None]:
    """Have a transaction read what is in the log."""
    if by == "backup":
        has_begun, may_go_on = asyncio.Event(), threading.Event()
        loop = asyncio.get_running_loop()

        def hold_up(*_: int) -> None:
            loop.call_soon_threadsafe(has_begun.set)
            assert may_go_on.wait(60)

        copy = Path(store.path).with_name("backup.db")
        backup = asyncio.create_task(store.backup(copy, hold_up))
        await has_begun.wait()
        yield
        may_go_on.set()
        await backup
        return
    with read_by_another_program(Path(store.path)):
        yield


def move_folder(path: Path) -> None:
    """Rename the folder."""
    path.parent.rename(path.parent.with_name("elsewhere"))


@pytest.fixture
def bot_db(tmp_path: Path) -> Path:
    """A path in a folder that can be renamed."""
    (tmp_path / "data").mkdir()
    return tmp_path / "data" / "bot.db"


@pytest_asyncio.fixture(autouse=True)
async def nothing_kept(tmp_path: Path) -> AsyncIterator[None]:
    """Let go of the wal-index of a file that was moved: it stays open until it is removed."""
    yield
    for folder in (tmp_path / "data", tmp_path / "elsewhere"):
        shutil.rmtree(folder, ignore_errors=True)
    store = SqliteStore(tmp_path / "next.db")
    await store.open()
    await store.close()


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (remove, "was removed, or renamed, while the bot has it open; put it back"),
        (rename, "was removed, or renamed, "),
        (remove_all, "was removed, or renamed, "),
        (move_folder, "was removed, or renamed, "),
        (replace, "was replaced by another file while the bot has it open; put it back"),
    ],
)
async def test_a_write_into_a_file_that_nobody_would_find_is_refused(
    bot_db: Path, move: Callable[[Path], None], words: str
) -> None:
    """The error says what happened; the row is kept, and no new file has it alone."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    await persistence.update_chat_data(2, {"n": 1})
    move(bot_db)
    there = bot_db.exists()
    with pytest.raises(WriteError, match=f"chat/1: not written, but kept .*{bot_db} {words}"):
        await persistence.update_chat_data(1, {"n": 2})
    with pytest.raises(WriteError, match="chat/2: not written"):
        await persistence.update_chat_data(2, {"n": 2})
    with pytest.raises(WriteError, match="chat/2, chat/1|chat/1, chat/2"):
        await persistence.flush()
    with pytest.raises(WriteError, match="chat/2, chat/1|chat/1, chat/2"):
        await persistence.flush()
    # The store was closed by flush: now it is opening it that is refused.
    with pytest.raises(OpenError, match="restart the bot"):
        await persistence.get_chat_data()
    assert bot_db.exists() == there


async def test_a_new_start_takes_what_is_there(bot_db: Path) -> None:
    """A file that was put in the place of the other is the new store's, whole and unmixed.

    Until a person says that it is to have what waits.
    """
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    await persistence.flush()
    await persistence.update_chat_data(1, {"n": 2})
    replace(bot_db)
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 3})
    # As if the bot were killed now: a log beside a file that it is not of would be taken up.
    assert bot_db.with_name("bot.db-wal").stat().st_size == 0
    with pytest.raises(WriteError):
        await persistence.flush()
    restarted = KVPersistence(bot_db)
    for _ in range(2):
        with pytest.raises(OpenError, match='they are of another .* by "of": null'):
            await restarted.get_chat_data()
        assert stored(bot_db) == {"chat/1": {"n": 1}}
    allow_for_any_file(bot_db)
    assert await restarted.get_chat_data() == {1: {"n": 3}}
    await restarted.flush()


async def test_what_could_not_be_written_waits_for_its_file(bot_db: Path) -> None:
    """The next start makes no file of these rows alone; with the file back it writes them."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    rename(bot_db)
    with pytest.raises(WriteError):
        await persistence.update_chat_data(2, {"n": 2})
    with pytest.raises(WriteError, match="for the next start"):
        await persistence.flush()
    with pytest.raises(OpenError, match="is gone, or empty, and .*bot.db-rescue"):
        await KVPersistence(bot_db).get_chat_data()
    assert not bot_db.exists()
    bot_db.touch()
    with pytest.raises(OpenError, match="is gone, or empty, and"):
        await KVPersistence(bot_db).get_chat_data()
    bot_db.unlink()
    # As if it were on another disk meanwhile.
    shutil.copyfile(bot_db.with_name("other.db"), bot_db)
    restarted = KVPersistence(bot_db)
    assert await restarted.get_chat_data() == {1: {"n": 1}, 2: {"n": 2}}
    await restarted.flush()


async def test_a_restored_backup_does_not_get_rows_of_the_newer_file(bot_db: Path) -> None:
    """Even if it has the number that the removed file had: nobody asked for a mixture."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    await persistence.backup(bot_db.with_name("copy.db"))
    await persistence.update_chat_data(2, {"n": 1})
    bot_db.unlink()
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 2})
    with pytest.raises(WriteError, match="for the next start"):
        await persistence.flush()
    shutil.copyfile(bot_db.with_name("copy.db"), bot_db)
    with pytest.raises(OpenError, match="they are of another file"):
        await KVPersistence(bot_db).get_chat_data()


async def test_a_file_that_is_replaced_at_the_end_gets_no_rows_of_the_other(bot_db: Path) -> None:
    """Where the file is, is looked at when the rows are left, not only when they were refused."""
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(SqliteStore(bot_db, busy_timeout=0))
    await persistence.update_chat_data(1, {"n": 1})
    with locked_by_another_program(bot_db), pytest.raises(WriteError, match="locked"):
        await persistence.update_chat_data(1, {"n": 2})
    with quota(100), pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 2, "text": "x" * 10_000})
    rename(bot_db)
    other = KVPersistence(bot_db.with_name("copy.db"))
    await other.update_chat_data(9, {"n": 9})
    await other.flush()
    bot_db.with_name("copy.db").rename(bot_db)
    with pytest.raises(WriteError, match="for the next start"):
        await persistence.flush()
    with pytest.raises(OpenError, match="they are of another file"):
        await KVPersistence(bot_db).get_chat_data()
    assert stored(bot_db) == {"chat/9": {"n": 9}}


@pytest.mark.parametrize("is_closed", [False, True])
async def test_writing_goes_on_when_the_file_is_back(bot_db: Path, is_closed: bool) -> None:
    """By itself; with all that was acknowledged, and all that was kept."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    rename(bot_db)
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 2})
    if is_closed:
        with pytest.raises(WriteError):
            await persistence.flush()
    bot_db.with_name("other.db").rename(bot_db)
    await persistence.update_chat_data(2, {"n": 2})
    assert stored(bot_db) == {"chat/1": {"n": 2}, "chat/2": {"n": 2}}
    await persistence.flush()
    replace(bot_db)  # which nobody has open
    assert await persistence.get_chat_data() == {1: {"n": 2}, 2: {"n": 2}}
    await persistence.flush()


async def test_what_was_acknowledged_is_in_the_file_that_was_moved(bot_db: Path) -> None:
    """Its log is moved into it as soon as the move is seen, so that it is whole by itself."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1"})
    rename(bot_db)
    with pytest.raises(WriteError):
        await store.apply({"chat/2": b"2"})
    assert stored(bot_db.with_name("other.db")) == {"chat/1": 1, "chat/2": 2}
    await store.close()


@pytest.mark.parametrize("end", ["wal", "shm"])
@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_log_that_is_removed_costs_nothing(
    bot_db: Path, end: str, is_replaced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """All that was in it is saved in the file at once; then the file is opened anew.

    So it is without the wal-index, in which the bot's locks are.
    """
    caplog.set_level(logging.WARNING, "kvpersist")
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    log = bot_db.with_name(f"bot.db-{end}")
    log.unlink()
    if is_replaced:
        log.touch()
    await persistence.update_chat_data(2, {"n": 2})
    (said,) = caplog.messages
    assert re.search(f"bot.db-{end} was removed .*; leave it alone. All .* is saved", said)
    alone = bot_db.with_name("alone.db")
    shutil.copyfile(bot_db, alone)
    assert stored(alone) == {"chat/1": {"n": 1}, "chat/2": {"n": 2}}
    await persistence.update_chat_data(2, {"n": 3})
    await persistence.refresh_chat_data(2, {"n": 3})
    assert stored(bot_db) == {"chat/1": {"n": 1}, "chat/2": {"n": 3}}
    assert log.stat().st_size > 0
    await persistence.flush()


@pytest.mark.parametrize("move", [remove_log, replace])
@pytest.mark.parametrize("by", ["backup", "another program"])
async def test_a_log_that_is_being_read_is_saved_when_that_ends(
    bot_db: Path, move: Callable[[Path], None], by: str
) -> None:
    """Until then nothing is acknowledged, and nothing closed: it would be lost with its log."""
    store = SqliteStore(bot_db, busy_timeout=0)
    commits = GroupCommit(store)
    big = {f"chat/{n}": b'"%s"' % (b"x" * 3000) for n in range(1000)}
    await commits.write(big)
    async with being_read(store, by):
        await commits.write({"user/1": b"1"})
        move(bot_db)
        for _ in range(2):
            with pytest.raises(WriteError, match="not saved yet, because a backup or another"):
                await commits.write({"user/2": b"2"})
        for _ in range(2):
            with pytest.raises(WriteError, match="user/2: .*not saved yet") as error:
                await commits.close()
            assert error.value.keys == ("user/2",)
        with pytest.raises(StoreInUseError):
            await SqliteStore(bot_db).open()
    if move is replace:
        with pytest.raises(WriteError, match="for the next start: .*replaced by another file"):
            await commits.close()
        assert bot_db.with_name("bot.db-wal").stat().st_size == 0
        return
    await commits.close()
    assert stored(bot_db).keys() == big.keys() | {"user/1", "user/2"}


@pytest.fixture
def slow_close(
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[[], tuple[asyncio.Event, threading.Event]]:
    """Have closing say that it has begun, and wait until it may go on."""

    def hold() -> tuple[asyncio.Event, threading.Event]:
        loop = asyncio.get_running_loop()
        has_begun, may_go_on = asyncio.Event(), threading.Event()
        close = FileConnection.close

        def wait(connection: FileConnection) -> None:
            monkeypatch.undo()
            loop.call_soon_threadsafe(has_begun.set)
            assert may_go_on.wait(60)
            close(connection)

        monkeypatch.setattr(FileConnection, "close", wait)
        return has_begun, may_go_on

    return hold


Hold = Callable[[], tuple[asyncio.Event, threading.Event]]


async def everything(store: SqliteStore) -> list[str]:
    """Return all keys, as a scan finds them."""
    return [key async for page in store.scan("") for key, _ in page]


async def test_whoever_comes_while_a_file_is_opened_anew_waits_for_it(
    bot_db: Path, slow_close: Hold
) -> None:
    """Nobody is told to open what this has closed: that is not over for them."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1", "chat/2": b"2"})
    has_begun, may_go_on = slow_close()
    remove_log(bot_db)
    writing = asyncio.create_task(store.apply({"chat/1": b"3"}))
    await has_begun.wait()
    scanning = asyncio.create_task(everything(store))
    reading = asyncio.create_task(store.read(["chat/1"]))
    others = [
        asyncio.ensure_future(store.see_others()),
        asyncio.ensure_future(store.backup(bot_db.with_name("copy.db"))),
        asyncio.ensure_future(store.set_aside([("chat/2", b"2", "bad")])),
    ]
    await asyncio.sleep(0)
    may_go_on.set()
    assert "chat/1" in await scanning
    assert await reading == {"chat/1": b"3"}
    await asyncio.gather(writing, *others)
    await store.close()
    with pytest.raises(UnavailableError, match="not open"):
        await store.apply({"chat/1": b"4"})
    assert stored(bot_db) == {"chat/1": 3}


async def test_whoever_comes_after_a_file_could_not_be_opened_anew_is_told_why(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each tries it once more."""
    store = SqliteStore(bot_db)
    await store.open()
    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite.open_file", _fail_to_open)
        remove_log(bot_db)
        await store.apply({"chat/1": b"1"})
        with pytest.raises(ReadError, match="too many open files"):
            await everything(store)
        with pytest.raises(UnavailableError, match="too many open files"):
            await store.apply({"chat/1": b"2"})
    assert await everything(store) == ["chat/1"]
    await store.close()


@pytest.mark.parametrize("is_coming_back", [True, False])
async def test_who_looks_for_commits_of_others_while_a_file_is_closed_looks_again(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch, *, is_coming_back: bool
) -> None:
    """In the file as it is open then; or is told that it is not."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1"})
    before = await store.see_others()
    with closing(sqlite3.connect(bot_db)) as other, other:
        other.execute("UPDATE documents SET value = '2'")
    has_begun, may_go_on = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    look = FileConnection.look_from_outside

    def look_late(connection: FileConnection) -> None:
        loop.call_soon_threadsafe(has_begun.set)
        assert may_go_on.wait(60)
        look(connection)

    monkeypatch.setattr(FileConnection, "look_from_outside", look_late)
    looking = [asyncio.create_task(store.see_others()) for _ in range(2)]
    await has_begun.wait()
    if is_coming_back:
        remove_log(bot_db)
        await store.apply({"chat/3": b"3"})
    else:
        await store.close()
    may_go_on.set()
    done = await asyncio.gather(*looking, return_exceptions=True)
    if is_coming_back:
        assert done == [before + 1] * 2
    else:
        assert [str(error) for error in done] == [
            f"{bot_db}: the store is not open; await open() first"
        ] * 2
    await store.close()


async def test_a_look_for_commits_of_others_that_fails_is_a_read_that_fails(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the file's name; those who wait for their turn look themselves."""
    store = SqliteStore(bot_db)
    await store.open()
    with closing(sqlite3.connect(bot_db)) as other, other:
        other.execute("INSERT INTO documents VALUES ('chat/1', '{}', 1, 0)")

    def fail(_: FileConnection) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(FileConnection, "look_from_outside", fail)
        looks = (store.see_others(), store.see_others())
        for error in await asyncio.gather(*looks, return_exceptions=True):
            assert isinstance(error, ReadError)
            assert str(error) == f"{bot_db}: disk I/O error"
    await store.see_others()
    await store.close()


async def test_those_who_look_for_commits_of_others_at_one_moment_look_once(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread is enough for a hundred updates."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1"})
    before = await store.see_others()
    with closing(sqlite3.connect(bot_db)) as other, other:
        other.execute("UPDATE documents SET value = '2'")
    looked: list[FileConnection] = []
    look = FileConnection.look_from_outside

    def note(connection: FileConnection) -> None:
        looked.append(connection)
        look(connection)

    monkeypatch.setattr(FileConnection, "look_from_outside", note)
    assert await asyncio.gather(*(store.see_others() for _ in range(100))) == [before + 1] * 100
    assert len(looked) == 1
    await store.close()


async def test_a_log_is_saved_though_the_bot_looks_for_commits_of_others(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In another thread, by the same connection: that is nobody's reading, and is waited for."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1"})
    with closing(sqlite3.connect(bot_db)) as other, other:
        other.execute("UPDATE documents SET value = '2'")
    has_begun, may_end = asyncio.Event(), threading.Event()
    loop = asyncio.get_running_loop()
    execute = FileConnection.execute

    def take_long(connection: FileConnection, sql: str, *more: Any) -> sqlite3.Cursor:
        cursor = execute(connection, sql, *more)
        if sql == "PRAGMA data_version":
            loop.call_soon_threadsafe(has_begun.set)
            assert may_end.wait(60)
        return cursor

    monkeypatch.setattr(FileConnection, "execute", take_long)
    looking = asyncio.create_task(store.see_others())
    await has_begun.wait()
    remove_log(bot_db)
    loop.call_later(0.1, may_end.set)
    await store.close()
    await looking
    assert stored(bot_db) == {"chat/1": 2}


def read_elsewhere(path: Path) -> object:
    """Have another process read all rows, and see that it finds no damage."""
    code = (
        "import json, sqlite3, sys; c = sqlite3.connect(sys.argv[1])\n"
        "assert c.execute('PRAGMA integrity_check').fetchall() == [('ok',)]\n"
        "print(json.dumps(dict(c.execute('SELECT key, value FROM documents')))); c.close()"
    )
    command = [sys.executable, "-c", code, os.fspath(path)]
    return json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)


@pytest.mark.parametrize("is_read_first", [False, True])
async def test_a_reader_after_the_removal_of_the_wal_index_costs_nothing(
    bot_db: Path, is_read_first: bool
) -> None:
    """It makes a wal-index of its own, and sees all that was acknowledged; so does a restart."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1"})
    bot_db.with_name("bot.db-shm").unlink()
    if is_read_first:
        assert read_elsewhere(bot_db) == {"chat/1": "1"}
    await store.apply({"chat/2": b"2"})
    assert read_elsewhere(bot_db) == {"chat/1": "1", "chat/2": "2"}
    await store.open()
    await store.apply({"chat/2": b"3"})
    assert read_elsewhere(bot_db) == {"chat/1": "1", "chat/2": "3"}
    await store.close()
    assert stored(bot_db) == {"chat/1": 1, "chat/2": 3}


@pytest.mark.parametrize("is_replaced", [False, True])
async def test_a_lock_that_is_removed_costs_nothing(
    bot_db: Path, is_replaced: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """If no other bot has come the lock is made anew, and keeps the next one out."""
    caplog.set_level(logging.WARNING, "kvpersist")
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    lock = bot_db.with_name("bot.db-lock")
    lock.unlink()
    if is_replaced:
        lock.touch()
    await persistence.update_chat_data(1, {"n": 2})
    (said,) = caplog.messages
    assert re.search("bot.db-lock was removed .*; leave it alone", said)
    assert stored(bot_db) == {"chat/1": {"n": 2}}
    with pytest.raises(StoreInUseError):
        await SqliteStore(bot_db).open()
    await persistence.flush()


async def test_a_second_bot_without_the_lock_is_not_overwritten(bot_db: Path) -> None:
    """The first writes nothing more, and says why, also when the second has ended.

    Which of two values is the newer one only a person can tell: the first's are left beside the
    file, and the next start says how to have them written.
    """
    first, second = KVPersistence(bot_db), KVPersistence(bot_db)
    await first.update_chat_data(1, {"n": 1})
    bot_db.with_name("bot.db-lock").unlink()
    await second.update_chat_data(1, {"n": 2})
    for chat in (1, 3, 3):
        with pytest.raises(WriteError, match="another bot has .*bot.db open"):
            await first.update_chat_data(chat, {"n": 3})
    with pytest.raises(WriteError, match="another bot has .*bot.db open"):
        await first.flush()
    await second.update_chat_data(2, {"n": 2})
    await second.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}, "chat/2": {"n": 2}}
    with pytest.raises(
        WriteError, match="chat/1: .* since .*bot.db-lock was removed.*restart the bot"
    ):
        await first.update_chat_data(1, {"n": 4})
    with pytest.raises(WriteError, match="for the next start"):
        await first.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}, "chat/2": {"n": 2}}
    with pytest.raises(OpenError, match='replace its "of": ".+" by "of": null'):
        await KVPersistence(bot_db).get_chat_data()
    allow_for_any_file(bot_db)
    restarted = KVPersistence(bot_db)
    assert await restarted.get_chat_data() == {1: {"n": 4}, 2: {"n": 2}, 3: {"n": 3}}
    await restarted.flush()


async def test_two_who_find_the_lock_removed_open_the_file_once(bot_db: Path) -> None:
    """The second does not close what the first has opened anew, and maybe written to."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1"})
    bot_db.with_name("bot.db-lock").unlink()
    others = await store.see_others()
    writing = [store.apply({"chat/2": b"2"}), store.set_aside([("chat/1", b"1", "bad")])]
    await asyncio.gather(*writing)
    assert await store.see_others() == others + 1
    await store.close()
    assert stored(bot_db) == {"chat/2": 2}


async def test_a_second_bot_that_has_written_nothing_costs_nothing(bot_db: Path) -> None:
    """When it has ended the first goes on by itself."""
    first, second = KVPersistence(bot_db), KVPersistence(bot_db)
    await first.update_chat_data(1, {"n": 1})
    bot_db.with_name("bot.db-lock").unlink()
    await second.get_chat_data()
    with pytest.raises(WriteError, match="another bot has .*bot.db open"):
        await first.update_chat_data(1, {"n": 2})
    await second.flush()
    await first.update_chat_data(2, {"n": 2})
    await first.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}, "chat/2": {"n": 2}}


def allow_for_any_file(path: Path) -> None:
    """Change the rescue file as its error says."""
    left = path.with_name("bot.db-rescue")
    left.write_text(re.sub('"of": "[^"]*"', '"of": null', left.read_text()))


@pytest.mark.parametrize("move", [rename, replace])
async def test_a_file_that_is_moved_after_its_log_was_removed_is_missed(
    bot_db: Path, move: Callable[[Path], None]
) -> None:
    """The file is opened anew at once, so that none of another bot's gets the next row."""
    persistence = KVPersistence(bot_db)
    chats = {chat: {"n": chat} for chat in range(3)}
    for chat, document in chats.items():
        await persistence.update_chat_data(chat, document)
    other = KVPersistence(bot_db.with_name("other.db"))
    await other.update_chat_data(1, {"of": "another bot"})
    await other.flush()
    remove_log(bot_db)
    await persistence.update_chat_data(1, {"n": 1.5})
    bot_db.with_name("other.db").rename(bot_db.with_name("copy.db"))
    move(bot_db)
    there = bot_db.exists() and stored(bot_db)
    with suppress(KVPersistError):  # what is in memory stays as it is
        await persistence.refresh_chat_data(2, chats[2])
    assert chats[2] == {"n": 2}
    with pytest.raises(WriteError, match="was removed|was replaced"):
        await persistence.update_chat_data(1, {"n": 2})
    assert (bot_db.exists() and stored(bot_db)) == there
    with pytest.raises(WriteError, match="for the next start"):
        await persistence.flush()


@pytest.mark.parametrize("end", ["wal", "lock"])
@pytest.mark.parametrize("is_there", [False, True])
async def test_a_file_that_cannot_be_opened_anew_is_opened_by_nobody_else_s_state(
    bot_db: Path, end: str, is_there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until it can be: what somebody puts there meanwhile gets no row of this one's."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1"})
    bot_db.with_name(f"bot.db-{end}").unlink()
    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite.open_file", _fail_to_open)
        if end == "lock":
            with pytest.raises(UnavailableError, match="too many"):
                await store.apply({"chat/1": b"2"})
        else:
            await store.apply({"chat/1": b"2"})
    rename(bot_db)
    if is_there:
        other = SqliteStore(bot_db)
        await other.open()
        await other.apply({"chat/9": b"9"})
        await other.close()
    with pytest.raises(OpenError, match="replaced" if is_there else "removed"):
        await store.open()
    bot_db.with_name("other.db").replace(bot_db)
    await store.open()
    await store.apply({"chat/2": b"2"})
    await store.close()
    assert stored(bot_db) == {"chat/1": 2 if end == "wal" else 1, "chat/2": 2}


def _fail_to_open(*_: object) -> None:
    raise OpenError("too many open files")


async def test_a_file_that_has_got_what_was_left_for_it_is_not_another(bot_db: Path) -> None:
    """The same object goes on with it, whether all of that could be written or not."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 0})
    rename(bot_db)
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 1})
    with pytest.raises(WriteError, match="for the next start"):
        await persistence.flush()
    bot_db.with_name("other.db").rename(bot_db)
    left = bot_db.with_name("bot.db-rescue")
    bad = left.read_text().replace('"rows": {', '"rows": {"chat/\\ud800": "{}", ')
    left.write_text(bad)
    with pytest.raises(OpenError, match="surrogates not allowed"):
        await persistence.get_chat_data()
    left.unlink()
    assert await persistence.get_chat_data() == {1: {"n": 1}}
    await persistence.flush()
    await persistence.update_chat_data(1, {"n": 2})
    await persistence.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}}


async def test_where_the_file_is_is_remembered_if_it_is_seen_when_rows_are_left(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though they could not be left: no file is made of them alone."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1"})
    rename(bot_db)
    with monkeypatch.context() as patch:
        patch.setattr(rescue, "write", _fail_to_write)
        with pytest.raises(WriteError, match="bot.db-rescue: too many"):
            await store.rescue({"chat/1": b"2"})
    with pytest.raises(OpenError, match="was removed, or renamed"):
        await store.open()
    assert not bot_db.exists()


def _fail_to_write(*_: object) -> None:
    raise OSError("too many open files")


async def test_a_file_whose_lock_was_removed_gets_no_rescue_file(bot_db: Path) -> None:
    """A second bot may have it, whose newer rows the next start would write over."""
    first, second = SqliteStore(bot_db), SqliteStore(bot_db)
    await first.open()
    bot_db.with_name("bot.db-lock").unlink()
    await second.open()
    with pytest.raises(WriteError, match="bot.db-lock was removed.*leave it alone"):
        await first.rescue({"chat/1": b"1"})
    await second.apply({"chat/1": b"2"})
    await second.close()
    assert not bot_db.with_name("bot.db-rescue").exists()


async def test_a_copy_is_never_of_another_file(bot_db: Path) -> None:
    """A backup of a file that was replaced is refused."""
    store = SqliteStore(bot_db)
    await store.open()
    replace(bot_db)
    with pytest.raises(BackupError, match="was replaced by another file"):
        await store.backup(bot_db.with_name("backup.db"))
    await store.close()
    assert not bot_db.with_name("backup.db").exists()


async def test_a_commit_looks_at_four_files(bot_db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That, and no more, is the cost: the lock before it, the others after it."""
    store = SqliteStore(bot_db)
    await store.open()
    looked: list[str] = []
    stat = os.stat

    def note(path: str) -> os.stat_result:
        looked.append(path)
        return stat(path)

    monkeypatch.setattr(os, "stat", note)
    await store.apply({f"chat/{chat}": b"1" for chat in range(100)})
    monkeypatch.undo()
    await store.close()
    assert looked == [f"{bot_db}{end}" for end in ("-lock", "", "-shm", "-wal")]


@pytest.mark.parametrize("end", ["wal", "shm", "lock"])
def test_what_was_acknowledged_survives_the_removal_of_the_log_and_a_kill(
    bot_db: Path, end: str
) -> None:
    """From the next commit on: a process that is killed right after it has lost nothing."""
    code = (
        "import asyncio, os, sys; from kvpersist import KVPersistence\n"
        "async def main():\n"
        "    persistence = KVPersistence(sys.argv[1])\n"
        "    await persistence.update_chat_data(1, {'n': 1})\n"
        "    os.unlink(sys.argv[1] + '-' + sys.argv[2])\n"
        "    await persistence.update_chat_data(2, {'n': 2})\n"
        "    print('written', flush=True)\n"
        f"    os.kill(os.getpid(), {signal.SIGKILL:d})\n"
        "asyncio.run(main())"
    )
    command = [sys.executable, "-c", code, os.fspath(bot_db), end]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (killed.returncode, killed.stdout) == (-9, "written\n")
    assert stored(bot_db) == {"chat/1": {"n": 1}, "chat/2": {"n": 2}}


@pytest.mark.parametrize("how", ["close", "open"])
def test_a_log_that_is_being_read_is_not_lost_with_its_event_loop(bot_db: Path, how: str) -> None:
    """Nor closed by the next one, until all that was in it is in the file."""
    store = SqliteStore(bot_db, busy_timeout=0)

    async def begin() -> None:
        await store.open()
        await store.apply({"chat/1": b"1"})

    async def end() -> None:
        with pytest.raises((WriteError, OpenError), match="not saved yet"):
            await getattr(store, how)()

    asyncio.run(begin())
    with read_by_another_program(bot_db):

        async def write() -> None:
            await store.open()
            await store.apply({"chat/2": b"2"})

        asyncio.run(write())
        remove_log(bot_db)
        asyncio.run(end())
    asyncio.run(getattr(store, how)())
    asyncio.run(store.close())
    assert stored(bot_db) == {"chat/1": 1, "chat/2": 2}


async def test_a_restored_backup_does_not_get_rows_that_wait_in_memory(bot_db: Path) -> None:
    """By no later write either: it is the state of the file that tells, not its number."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    await persistence.backup(bot_db.with_name("copy.db"))
    await persistence.update_chat_data(1, {"n": 2})
    bot_db.unlink()
    with pytest.raises(WriteError):
        await persistence.update_chat_data(3, {"n": 3})
    with quota(10), pytest.raises(WriteError, match="nor rescued"):
        await persistence.flush()
    for present in (False, True):
        if present:
            shutil.copyfile(bot_db.with_name("copy.db"), bot_db)
        with pytest.raises(WriteError, match="replaced" if present else "removed"):
            await persistence.update_chat_data(4, {"n": 4})
    with pytest.raises(WriteError, match="for the next start"):
        await persistence.flush()
    assert stored(bot_db) == {"chat/1": {"n": 1}}
    bot_db.write_bytes(b"")
    with pytest.raises(OpenError, match="was removed, or renamed"):
        await persistence.store.open()


async def test_a_log_that_is_lost_in_the_end_is_told_in_the_log(
    bot_db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A connection that is closed all the same has nobody to raise an error to."""
    connection = await asyncio.to_thread(open_file, str(bot_db), 0)
    with read_by_another_program(bot_db):
        put = "INSERT INTO documents VALUES (?, ?, 1, 1)"
        await asyncio.to_thread(connection.executemany, put, [[("chat/1", "1")]])
        remove_log(bot_db)
        await asyncio.to_thread(connection.close)
    (said,) = (record.getMessage() for record in caplog.records if record.levelname == "ERROR")
    assert "bot.db-wal was removed" in said
    assert said.endswith("What was written last is lost")


@pytest.mark.parametrize("move", [None, remove, replace])
async def test_what_goes_with_the_end_is_told_in_the_log(
    bot_db: Path, move: Callable[[Path], None] | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Though nothing was to be written any more, so that no write was refused."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    if move is not None:
        move(bot_db)
    await persistence.flush()
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    if move is None:
        assert said == []
    else:
        assert re.search(
            f"{bot_db} was .* what was in it is gone, unless it has another", " ".join(said)
        )


async def test_a_file_that_is_another_is_left_as_it_is(bot_db: Path) -> None:
    """Nothing is added to it, nor is its journal switched over, before it is refused."""
    other = bot_db.with_name("copy.db")
    store = SqliteStore(other)
    await store.open()
    await store.close()
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("DROP TABLE set_aside")
    before = other.read_bytes()
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1"})
    rename(bot_db)
    with pytest.raises(UnavailableError):
        await store.apply({"chat/1": b"2"})
    await store.close()
    other.rename(bot_db)
    with pytest.raises(OpenError, match="was replaced"):
        await store.open()
    assert bot_db.read_bytes() == before


async def test_reading_is_never_from_another_file(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The two connections are opened by name, one after the other."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.close()

    def replace_first(name: str, busy_timeout: float) -> sqlite3.Connection:
        replace(bot_db)
        return open_reader(name, busy_timeout)

    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite.open_reader", replace_first)
        with pytest.raises(OpenError, match="was replaced"):
            await store.open()
    await store.open()
    await store.close()


async def test_two_states_differ_though_the_clock_stands_still(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row was removed and another one was made: as many rows, written as often, at that time."""
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    store = SqliteStore(bot_db)
    await store.open()
    assert store._opened is not None
    states = set()
    for row in (1, 2):
        await store.apply({"chat/1": None, "chat/2": None} | {f"chat/{row}": b"1"})
        states.add(await asyncio.to_thread(store._opened.file.state))
    await store.close()
    assert len(states) == 2
