"""Rows that cannot be written before the end are left beside the file, for the next start."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import os
import sqlite3
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import locked_by_another_program, quota
from handlers import remember, text
from stores import WatchedStore, stored
from through import build, settle

from kvpersist import (
    KVPersistence,
    MemoryStore,
    OpenError,
    SqliteStore,
    StoreInUseError,
    UnavailableError,
    WriteError,
)
from kvpersist.stores import rescue, sqlite_rescue
from kvpersist.stores.sqlite_file import leave_beside, open_file


def rescued(bot_db: Path) -> dict[str, Any]:
    """Return what the rescue file holds."""
    found: dict[str, Any] = json.loads(place(bot_db).read_bytes())
    return {key: text and json.loads(text) for key, text in found["rows"].items()}


def place(bot_db: Path) -> Path:
    """Where the rescue file is."""
    return bot_db.with_name("bot.db-rescue")


def impatient(bot_db: Path) -> KVPersistence[Any, Any, Any]:
    """Return a persistence that does not wait for locks."""
    return KVPersistence(SqliteStore(bot_db, busy_timeout=0))


async def end_with_a_locked_file(bot_db: Path) -> KVPersistence[Any, Any, Any]:
    """Let a run end that could not write what it was given last."""
    persistence = impatient(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    await persistence.update_chat_data(2, {"n": 1})
    with locked_by_another_program(bot_db):
        with pytest.raises(WriteError):
            await persistence.update_chat_data(1, {"n": 2})
        with pytest.raises(WriteError):
            await persistence.drop_chat_data(2)
        with pytest.raises(WriteError, match="bot.db-rescue for the next start: .*locked") as error:
            await persistence.flush()
    assert {*error.value.keys} == {"chat/1", "chat/2"}
    return persistence


async def test_the_next_start_writes_what_the_last_could_not(
    bot_db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so; the file, which its owner alone could read, is gone then."""
    caplog.set_level(logging.WARNING, "kvpersist")
    umask = os.umask(0)
    await end_with_a_locked_file(bot_db)
    os.umask(umask)
    assert rescued(bot_db) == {"chat/1": {"n": 2}, "chat/2": None}
    assert stat.S_IMODE(place(bot_db).stat().st_mode) == 0o600
    assert stored(bot_db) == {"chat/1": {"n": 1}, "chat/2": {"n": 1}}
    caplog.clear()
    persistence = KVPersistence(bot_db)
    assert await persistence.get_chat_data() == {1: {"n": 2}}
    assert not place(bot_db).exists()
    assert caplog.messages == [
        f"{place(bot_db)}: wrote 2 rows that an earlier run had to leave there"
    ]
    await persistence.flush()
    assert [*bot_db.parent.glob("bot.db-r*")] == []


async def test_a_second_flush_writes_them(bot_db: Path) -> None:
    """As soon as that is possible; until then it says that it is not."""
    persistence = await end_with_a_locked_file(bot_db)
    with locked_by_another_program(bot_db), pytest.raises(WriteError, match="chat/1.*locked"):
        await persistence.flush()
    assert rescued(bot_db) == {"chat/1": {"n": 2}, "chat/2": None}
    await persistence.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}}
    await persistence.flush()


async def end_twice(
    persistence: KVPersistence[Any, Any, Any], document: dict[str, Any], match: str
) -> None:
    """Let a persistence that has left its rows leave one more."""
    with pytest.raises(WriteError):
        await persistence.update_chat_data(3, document)
    with pytest.raises(WriteError, match=match):
        await persistence.flush()


async def test_what_is_left_after_that_joins_what_was_left_before(bot_db: Path) -> None:
    """The next start writes both."""
    persistence = await end_with_a_locked_file(bot_db)
    with locked_by_another_program(bot_db):
        await end_twice(persistence, {"n": 3}, "for the next start")
        with pytest.raises(WriteError):
            await persistence.update_chat_data(1, {"n": 4})
        with pytest.raises(WriteError, match="for the next start"):
            await persistence.flush()
    assert rescued(bot_db) == {"chat/1": {"n": 4}, "chat/2": None, "chat/3": {"n": 3}}
    restarted = KVPersistence(bot_db)
    assert await restarted.get_chat_data() == {1: {"n": 4}, 3: {"n": 3}}
    await restarted.flush()
    await persistence.flush()
    assert {*bot_db.parent.iterdir()} == {bot_db, bot_db.with_name("bot.db-lock")}


async def test_what_was_left_before_stays_if_no_more_can_be_left(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those rows are the next start's already; the others are kept in memory."""
    persistence = await end_with_a_locked_file(bot_db)
    before = rescued(bot_db)
    with locked_by_another_program(bot_db):
        with quota(100_000):
            await end_twice(persistence, {"text": "x" * 200_000}, "nor rescued: .*too large")
        assert rescued(bot_db) == before
        with monkeypatch.context() as patch:
            patch.setattr(rescue, "sync", _fail_to_sync)
            await end_twice(persistence, {"n": 3}, "nor rescued: .*no")
        assert rescued(bot_db) == before
    await persistence.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}, "chat/3": {"n": 3}}


async def test_what_may_not_last_is_not_left_beside_a_file_that_is_not_open(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with one that is open: the rows are kept in memory."""
    monkeypatch.setattr(rescue, "sync", _fail_to_sync)
    with pytest.raises(OSError, match="no"):
        await asyncio.to_thread(leave_beside, str(bot_db), {"chat/1": b"1"}, None)
    assert not place(bot_db).exists()


async def test_rows_of_two_files_are_not_left_in_one(bot_db: Path) -> None:
    """It could be said of one of them alone which file may have them."""
    await end_with_a_locked_file(bot_db)
    before = place(bot_db).read_bytes()
    with pytest.raises(ValueError, match="holds rows of another"):
        await asyncio.to_thread(leave_beside, str(bot_db), {"chat/9": b"9"}, "in some state")
    assert place(bot_db).read_bytes() == before
    restarted = KVPersistence(bot_db)
    await restarted.get_chat_data()
    await restarted.flush()


async def test_what_others_wrote_since_is_not_overwritten(bot_db: Path) -> None:
    """Who left rows there does not write them again when it is used once more."""
    first = await end_with_a_locked_file(bot_db)
    second = KVPersistence(bot_db)
    await second.update_chat_data(1, {"n": 3})
    await second.flush()
    assert await first.get_chat_data() == {1: {"n": 3}}
    await first.flush()
    assert stored(bot_db) == {"chat/1": {"n": 3}}


async def test_a_start_that_still_cannot_write_them_does_not_take_place(bot_db: Path) -> None:
    """The bot would work with old data; nothing is lost, and nobody is kept out."""
    await end_with_a_locked_file(bot_db)
    with locked_by_another_program(bot_db):
        for _ in range(2):
            with pytest.raises(OpenError, match=r"bot\.db-rescue holds rows .*locked"):
                await impatient(bot_db).get_chat_data()
    persistence = KVPersistence(bot_db)
    assert await persistence.get_chat_data() == {1: {"n": 2}}
    await persistence.flush()


async def test_a_rescue_file_that_somebody_put_there_is_kept(
    bot_db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Under a name that no start reads, which the log tells: a start has not written its rows."""
    await end_with_a_locked_file(bot_db)
    earlier = place(bot_db).read_bytes()
    persistence = impatient(bot_db)
    await persistence.get_bot_data()
    place(bot_db).write_bytes(earlier)
    bot_db.with_name("bot.db-rescue-old").write_text("another one")
    bot_db.with_name("bot.db-rescue-new").write_text("left by a run that was killed")
    with locked_by_another_program(bot_db):
        with pytest.raises(WriteError):
            await persistence.update_user_data(3, {"n": 9})
        with pytest.raises(WriteError):
            await persistence.flush()
    assert rescued(bot_db) == {"user/3": {"n": 9}}
    assert place(bot_db).with_name("bot.db-rescue-old").read_text() == "another one"
    assert place(bot_db).with_name("bot.db-rescue-old2").read_bytes() == earlier
    assert f"{bot_db}-rescue-old2: this is what somebody put" in caplog.text
    await persistence.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}, "user/3": {"n": 9}}


@pytest.fixture
def hold_up(monkeypatch: pytest.MonkeyPatch) -> Callable[[], tuple[asyncio.Event, threading.Event]]:
    """Have rescuing say that it has begun, and wait until it may go on."""

    def hold() -> tuple[asyncio.Event, threading.Event]:
        loop = asyncio.get_running_loop()
        has_begun, may_go_on = asyncio.Event(), threading.Event()
        write = rescue.write

        def wait(*args: Any, **more: Any) -> Path:
            monkeypatch.undo()
            loop.call_soon_threadsafe(has_begun.set)
            assert may_go_on.wait(60)
            return write(*args, **more)

        monkeypatch.setattr(rescue, "write", wait)
        return has_begun, may_go_on

    return hold


Hold = Callable[[], tuple[asyncio.Event, threading.Event]]


async def begin_to_leave(
    persistence: KVPersistence[Any, Any, Any], hold_up: Hold
) -> tuple[asyncio.Task[None], threading.Event]:
    """Have a flush begin to leave a row of a locked file; return it, and what lets it go on."""
    has_begun, may_go_on = hold_up()
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 1})
    ending = asyncio.create_task(persistence.flush())
    await has_begun.wait()
    return ending, may_go_on


async def test_a_flush_that_is_cancelled_keeps_the_file_until_its_rows_are_left(
    bot_db: Path, hold_up: Hold
) -> None:
    """Or the next bot would write newer ones, and the start after that the older ones again."""
    persistence = impatient(bot_db)
    await persistence.get_bot_data()
    with locked_by_another_program(bot_db):
        ending, may_go_on = await begin_to_leave(persistence, hold_up)
        ending.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    with pytest.raises(StoreInUseError):
        await KVPersistence(bot_db).get_chat_data()
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await ending
    second = KVPersistence(bot_db)
    assert await second.get_chat_data() == {1: {"n": 1}}
    await second.update_chat_data(1, {"n": 2})
    await second.flush()
    await persistence.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}}


@pytest.mark.parametrize("key", [1, 2])
async def test_a_write_while_rows_are_left_is_newer_than_they(
    bot_db: Path, hold_up: Hold, key: int
) -> None:
    """It waits until they are, and is acknowledged after they are in the file."""
    persistence = impatient(bot_db)
    await persistence.get_bot_data()
    with locked_by_another_program(bot_db):
        ending, may_go_on = await begin_to_leave(persistence, hold_up)
    writing = asyncio.create_task(persistence.update_chat_data(key, {"n": 2}))
    for _ in range(5):
        await asyncio.sleep(0)
    assert not writing.done()
    assert stored(bot_db) == {}
    may_go_on.set()
    with pytest.raises(WriteError, match="chat/1: left in .* for the next start"):
        await ending
    await writing
    await persistence.flush()
    assert not place(bot_db).exists()
    assert stored(bot_db) == {"chat/1": {"n": 1}} | {f"chat/{key}": {"n": 2}}


async def test_a_store_that_leaves_rows_takes_no_others(bot_db: Path, hold_up: Hold) -> None:
    """It is closed, whether it could leave them or not; nobody may have it before that."""
    store = SqliteStore(bot_db)
    await store.open()
    has_begun, may_go_on = hold_up()
    leaving = asyncio.create_task(store.rescue({"chat/1": b"1"}))
    await has_begun.wait()
    with pytest.raises(UnavailableError, match="not open"):
        await store.apply({"chat/1": b"2"})
    may_go_on.set()
    await leaving
    with pytest.raises(UnavailableError, match="not open"):
        await SqliteStore(bot_db).rescue({"chat/1": b"2"})
    await store.open()
    assert await store.read(["chat/1"]) == {"chat/1": b"1"}
    with quota(10), pytest.raises(WriteError, match="bot.db-rescue: .*too large"):
        await store.rescue({"chat/1": b"2"})
    with pytest.raises(UnavailableError, match="not open"):
        await store.apply({"chat/1": b"2"})
    assert stored(bot_db) == {"chat/1": 1}


async def test_a_row_that_can_never_be_written_is_named_and_the_others_are_written(
    bot_db: Path,
) -> None:
    """It alone stays in the file, and keeps the bot from starting with what is older."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.rescue({"chat/1": b"1", "chat/\ud800": b"2", "chat/3": b"3"})
    for _ in range(2):
        with pytest.raises(OpenError, match=r"surrogates not allowed, for chat/\\ud800;"):
            await store.open()
        assert stored(bot_db) == {"chat/1": 1, "chat/3": 3}
        assert rescued(bot_db) == {"chat/\ud800": 2}
    place(bot_db).unlink()
    await store.open()
    await store.close()


LONGEST_NAME = 255 - len("-rescue-old99")
"""In bytes, for a file whose rows can be left beside it."""


@pytest.mark.parametrize("length", range(LONGEST_NAME + 1, 249))
async def test_a_name_that_is_too_long_for_a_rescue_file_is_refused_at_the_start(
    tmp_path: Path, length: int
) -> None:
    """Though SQLite could open it: at the end it would be too late."""
    with pytest.raises(OpenError, match="name too long.*; give it, or its folder, a shorter name"):
        await SqliteStore(tmp_path / ("b" * length)).open()
    assert [*tmp_path.iterdir()] == []


async def test_a_name_that_is_not_refused_is_short_enough(tmp_path: Path) -> None:
    """For the rescue file, and for what is in its place."""
    path = tmp_path / ("b" * LONGEST_NAME)
    store = SqliteStore(path)
    for _ in range(3):
        await store.open()
        Path(f"{path}-rescue").touch()
        assert await store.rescue({"chat/1": b"1"}) == f"{path}-rescue"


async def test_a_half_of_a_rescue_file_is_not_left(bot_db: Path) -> None:
    """What does not fit is told, and there is room again."""
    store = SqliteStore(bot_db)
    await store.open()
    with quota(100_000), pytest.raises(WriteError, match="bot.db-rescue: .*too large"):
        await store.rescue({"chat/1": b'"%s"' % (b"x" * 200_000)})
    assert [*bot_db.parent.glob("bot.db-rescue*")] == []


@pytest.mark.parametrize(
    "damaged",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"format":"kvpersist rescue 1","rows":{"chat/1":1}}',
        "[" * 100_000,
        '{"format":"kvpersist rescue 1","of":1,"rows":{}}',
    ],
)
async def test_a_damaged_rescue_file_stops_the_start(bot_db: Path, damaged: str) -> None:
    """It is named, and stays as it is."""
    await end_with_a_locked_file(bot_db)
    place(bot_db).write_text(damaged)
    with pytest.raises(OpenError, match=r"bot\.db-rescue holds rows"):
        await KVPersistence(bot_db).get_chat_data()
    assert place(bot_db).read_text() == damaged


async def test_a_link_in_its_place_is_not_followed(bot_db: Path, tmp_path: Path) -> None:
    """No file is read or written that nobody has named."""
    await end_with_a_locked_file(bot_db)
    other = tmp_path / "other"
    place(bot_db).rename(other)
    place(bot_db).symlink_to(other)
    with pytest.raises(OpenError, match=r"bot\.db-rescue is a symbolic link"):
        await KVPersistence(bot_db).get_chat_data()
    other.rename(place(bot_db))
    persistence = KVPersistence(bot_db)
    assert await persistence.get_chat_data() == {1: {"n": 2}}
    await persistence.flush()


async def test_what_cannot_be_rescued_either_is_told_and_kept(bot_db: Path) -> None:
    """With no room for any file flush says both; the rows wait for the next try."""
    persistence = KVPersistence(bot_db)
    await persistence.get_bot_data()
    with quota(50_000):
        with pytest.raises(WriteError):
            await persistence.update_chat_data(1, {"text": "x" * 100_000})
        with pytest.raises(WriteError, match="nor rescued: .*bot.db-rescue: .*too large"):
            await persistence.flush()
    await persistence.flush()
    assert [*stored(bot_db)] == ["chat/1"]


async def test_what_cannot_be_rescued_either_is_not_written_over_newer_rows(bot_db: Path) -> None:
    """Those of another bot that has had the file since; a person says which of the two lasts."""
    first, second = KVPersistence(bot_db), KVPersistence(bot_db)
    await first.update_chat_data(1, {"n": 1})
    with quota(10_000):
        with pytest.raises(WriteError):
            await first.update_chat_data(1, {"n": 2, "text": "x" * 20_000})
        with pytest.raises(WriteError, match="nor rescued"):
            await first.flush()
    assert await second.get_chat_data() == {1: {"n": 1}}
    await second.update_chat_data(1, {"n": 3})
    await second.flush()
    with pytest.raises(OpenError, match="another bot has written to it since this one closed it"):
        await first.get_chat_data()
    with pytest.raises(WriteError, match="chat/2: .*is not as this bot has left it"):
        await first.update_chat_data(2, {"n": 2})
    assert stored(bot_db) == {"chat/1": {"n": 3}}
    with pytest.raises(WriteError, match="for the next start: .*is not as this bot has left it"):
        await first.flush()
    with pytest.raises(OpenError, match='by "of": null'):
        await KVPersistence(bot_db).get_chat_data()
    assert stored(bot_db) == {"chat/1": {"n": 3}}


async def test_a_file_that_others_own_gets_no_rescue_file(bot_db: Path) -> None:
    """Their next start would write old rows over new ones."""
    owner = KVPersistence(bot_db)
    await owner.get_bot_data()
    other = KVPersistence(bot_db)
    with pytest.raises(WriteError):
        await other.update_chat_data(1, {"n": 1})
    with pytest.raises(WriteError, match="not open"):
        await other.flush()
    assert not place(bot_db).exists()
    await owner.flush()
    await other.flush()
    assert stored(bot_db) == {"chat/1": {"n": 1}}


async def test_a_store_that_rescues_nothing_keeps_rows_in_memory() -> None:
    """As long as the program runs they are tried again."""
    store = WatchedStore(MemoryStore())
    persistence = KVPersistence(store)
    store.failure = WriteError("full")
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {})
    with pytest.raises(WriteError, match="kept and tried again"):
        await persistence.flush()
    store.failure = None
    await persistence.flush()
    assert [*store.commits[0]] == ["chat/1"]


async def test_a_bot_that_must_end_while_the_file_is_locked_loses_nothing(bot_db: Path) -> None:
    """The next run has what its people said last."""
    bot = build(SqliteStore(bot_db, busy_timeout=0), text(remember))
    await bot.app.initialize()
    await bot.say("before")
    with locked_by_another_program(bot_db):
        await bot.say("last")
        with pytest.raises(WriteError, match="for the next start"):
            await bot.app.shutdown()
    bot = build(SqliteStore(bot_db), text(remember))
    async with bot.app:
        assert bot.app.chat_data[1] == {"said": ["before", "last"]}


async def test_a_flush_that_is_given_up_leaves_its_rows(bot_db: Path) -> None:
    """A time limit ends the waiting, not the care for what is waiting; nothing opens it again."""
    persistence = KVPersistence[Any, Any, Any](SqliteStore(bot_db, busy_timeout=1))
    await persistence.get_bot_data()
    with locked_by_another_program(bot_db):
        writing = asyncio.create_task(persistence.update_chat_data(1, {"n": 1}))
        await asyncio.sleep(0)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(persistence.flush(), 0.1)
        with pytest.raises(WriteError):
            await writing
    assert rescued(bot_db) == {"chat/1": {"n": 1}}
    other = KVPersistence(bot_db)
    assert await other.get_chat_data() == {1: {"n": 1}}
    await other.flush()
    await persistence.flush()


async def test_a_flush_ends_though_others_go_on_writing(bot_db: Path) -> None:
    """They wait for its end, and then open the file again."""
    persistence = impatient(bot_db)
    await persistence.get_bot_data()
    may_write = True

    async def write(chat: int) -> None:
        number = 0
        while may_write:
            number += 1
            try:
                await persistence.update_chat_data(chat, {"n": number})
            except WriteError:
                await asyncio.sleep(0)

    with locked_by_another_program(bot_db):
        writers = [asyncio.create_task(write(chat)) for chat in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(WriteError, match="for the next start"):
            await asyncio.wait_for(persistence.flush(), 30)
        may_write = False
    await asyncio.wait(writers)
    await persistence.flush()
    assert len(stored(bot_db)) == 3


async def test_rows_are_left_also_if_the_file_cannot_be_opened_again(bot_db: Path) -> None:
    """Nobody else must have it; and the store must have had it."""
    persistence = impatient(bot_db)
    await persistence.get_bot_data()
    await persistence.flush()
    bot_db.rename(bot_db.with_name("other.db"))
    bot_db.mkdir()
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 1})
    with pytest.raises(WriteError, match="for the next start: .*is a directory"):
        await persistence.flush()
    bot_db.rmdir()
    bot_db.with_name("other.db").rename(bot_db)
    owner = KVPersistence(bot_db)
    assert await owner.get_chat_data() == {1: {"n": 1}}
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 2})
    with pytest.raises(WriteError, match="nor rescued: .*another bot has"):
        await persistence.flush()
    await owner.flush()
    await persistence.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}}


async def test_what_may_not_last_is_not_left(bot_db: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or who keeps the rows in memory would write them once more, over newer ones."""
    store = SqliteStore(bot_db)
    await store.open()
    fsync = os.fsync

    def fail_for_folders(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError("no")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail_for_folders)
    with pytest.raises(WriteError, match="bot.db-rescue: no"):
        await store.rescue({"chat/1": b"1"})
    assert not place(bot_db).exists()


async def test_what_is_no_file_is_not_read(bot_db: Path) -> None:
    """A pipe in the place of a rescue file would be waited for."""
    await end_with_a_locked_file(bot_db)
    place(bot_db).unlink()
    os.mkfifo(place(bot_db))
    with pytest.raises(OpenError, match="it is no file"):
        await KVPersistence(bot_db).get_chat_data()


async def test_rows_of_another_file_stay_marked_though_their_file_is_locked(bot_db: Path) -> None:
    """So that a file that is put there after that does not get them."""
    store = SqliteStore(bot_db, busy_timeout=0)
    await store.open()
    bot_db.rename(bot_db.with_name("other.db"))
    await store.rescue({"chat/1": b"1"})
    before = place(bot_db).read_bytes()
    bot_db.with_name("other.db").rename(bot_db)
    with locked_by_another_program(bot_db), pytest.raises(OpenError, match="locked"):
        await store.open()
    assert place(bot_db).read_bytes() == before
    await store.open()
    await store.close()
    assert stored(bot_db) == {"chat/1": 1}


async def test_a_transaction_that_is_refused_as_a_whole_leaves_all_marked(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing was written then, so that the file is as it was."""
    store = SqliteStore(bot_db)
    await store.open()
    bot_db.rename(bot_db.with_name("other.db"))
    await store.rescue({"chat/1": b'"%s"' % (b"x" * 100_000)})
    before = place(bot_db).read_bytes()
    bot_db.with_name("other.db").rename(bot_db)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_rescue, "_write_each", _fail_with_a_full_disk)
        with pytest.raises(OpenError, match="full"):
            await store.open()
    assert place(bot_db).read_bytes() == before
    await store.open()
    await store.close()
    assert [*stored(bot_db)] == ["chat/1"]


def _fail_with_a_full_disk(*_: object) -> None:
    raise sqlite3.OperationalError("database or disk is full")


def _fail_to_sync(_: Path) -> None:
    raise OSError("no")


def test_a_program_whose_tasks_are_all_cancelled_knows_what_it_has_left(
    bot_db: Path, hold_up: Hold
) -> None:
    """What the next owner has written since is not written over by it."""
    persistence = impatient(bot_db)

    async def first() -> None:
        await persistence.get_bot_data()
        ending, may_go_on = await begin_to_leave(persistence, hold_up)
        asyncio.get_running_loop().call_later(0.1, may_go_on.set)
        assert not ending.done()  # asyncio.run cancels it now, with all others

    async def second() -> None:
        owner = KVPersistence(bot_db)
        assert await owner.get_chat_data() == {1: {"n": 1}}
        await owner.update_chat_data(1, {"n": 2})
        await owner.flush()
        await persistence.flush()

    store = SqliteStore(bot_db)
    asyncio.run(store.open())
    asyncio.run(store.close())
    with locked_by_another_program(bot_db):
        asyncio.run(first())
    asyncio.run(second())
    assert stored(bot_db) == {"chat/1": {"n": 2}}


def test_a_loop_that_cancels_all_tasks_during_flush_leaves_its_rows(bot_db: Path) -> None:
    """As `asyncio.run` does when it is interrupted; `test_to_the_end.py` has real processes."""
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(SqliteStore(bot_db, busy_timeout=0.5))

    async def first() -> None:
        await persistence.get_bot_data()
        writing = asyncio.create_task(persistence.update_chat_data(1, {"n": 1}))
        await settle()
        ending = asyncio.create_task(persistence.flush())
        await settle()
        ending.cancel()
        await settle()
        assert not writing.done()  # asyncio.run cancels all tasks now, group commit's own too

    async def second() -> None:
        await persistence.flush()

    store = SqliteStore(bot_db)
    asyncio.run(store.open())
    asyncio.run(store.close())
    with locked_by_another_program(bot_db):
        asyncio.run(first())
    assert rescued(bot_db) == {"chat/1": {"n": 1}}
    asyncio.run(second())
    assert stored(bot_db) == {"chat/1": {"n": 1}}


def test_a_loop_that_ends_while_rows_are_left_does_not_disturb_the_next(
    bot_db: Path, hold_up: Hold, caplog: pytest.LogCaptureFixture
) -> None:
    """When the garbage collector ends the call, the store is another loop's."""
    caplog.set_level(logging.CRITICAL, "asyncio")  # "Task was destroyed", as intended
    store = SqliteStore(bot_db)

    async def begin() -> threading.Event:
        await store.open()
        has_begun, may_go_on = hold_up()
        asyncio.ensure_future(store.rescue({"chat/1": b"1"}))  # noqa: RUF006  it is to be lost
        await has_begun.wait()
        return may_go_on

    async def go_on() -> None:
        await store.open()
        gc.collect()
        await store.apply({"chat/2": b"2"})
        await store.close()

    loop = asyncio.new_event_loop()
    may_go_on = loop.run_until_complete(begin())
    loop.close()
    may_go_on.set()
    asyncio.run(go_on())
    assert stored(bot_db) == {"chat/1": 1, "chat/2": 2}


async def test_leaving_rows_is_not_ended_by_being_cancelled(bot_db: Path) -> None:
    """However often, in whatever it waits for: it says where they are."""
    store = SqliteStore(bot_db)
    await store.open()
    leaving = [asyncio.create_task(store.rescue({f"chat/{chat}": b"1"})) for chat in (1, 2)]
    while {each for each in leaving if not each.done()}:
        await asyncio.sleep(0)
        for each in leaving:
            each.cancel()
    assert [await each for each in leaving] == [str(place(bot_db))] * 2
    await store.open()
    await store.close()
    assert stored(bot_db) == {"chat/1": 1, "chat/2": 1}


async def test_a_connection_that_was_closed_leaves_nothing(bot_db: Path) -> None:
    """Others may have the file by then."""
    connection = await asyncio.to_thread(open_file, str(bot_db), 0)
    await asyncio.to_thread(connection.close)
    with pytest.raises(ValueError, match="closed meanwhile"):
        await asyncio.to_thread(connection.rescue, str(bot_db), {"chat/1": b"1"})
    assert await asyncio.to_thread(connection.state) == ""
    assert not place(bot_db).exists()


async def test_a_transaction_that_sqlite_has_ended_itself_leaves_the_file_as_it_was(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it may do when the disk is full; whether the file was marked or not."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.rescue({"chat/1": b"1"})
    before = place(bot_db).read_bytes()

    def end(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("ROLLBACK")
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_rescue, "_write_each", end)
        with pytest.raises(OpenError, match="full"):
            await store.open()
    assert place(bot_db).read_bytes() == before
    await store.open()
    await store.close()
    assert stored(bot_db) == {"chat/1": 1}
