"""A backup: a whole copy of one moment, made while the bot writes, or nothing at all."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from faults import quota
from stores import stored

from kvpersist import (
    BackupError,
    ConfigurationError,
    KVPersistence,
    MemoryStore,
    OpenError,
    SqliteStore,
    StoreInUseError,
)
from kvpersist.stores import sqlite_backup

ROWS = {f"chat/{number}": b'{"text":"%s"}' % (b"x" * 3000) for number in range(1000)}
"""Some megabytes: four steps of a copy."""
KILLED = """
import asyncio, os, signal, sys
from kvpersist import SqliteStore
from kvpersist.stores import sqlite_backup

path, moment, times = sys.argv[1], sys.argv[2], int(sys.argv[3])

def die(*_):
    global times
    times -= 1
    if times == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def before(module, name):
    function = getattr(module, name)
    def patched(*args):
        die()
        return function(*args)
    setattr(module, name, patched)

def after_link():
    link = os.link
    def patched(*args):
        link(*args)
        die()
    os.link = patched

async def main():
    store = SqliteStore(path)
    await store.open()
    await store.apply({"chat/acknowledged": b"1"})
    if moment == "linked":
        after_link()
    elif moment != "progress":
        before(os, moment)
    await store.backup(path + ".copy", die if moment == "progress" else None)

asyncio.run(main())
"""


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """Where the copy will be: in a folder of its own."""
    (tmp_path / "copies").mkdir()
    return tmp_path / "copies" / "bot.db"


async def opened(path: Path) -> SqliteStore:
    """Return an open store with some megabytes of rows."""
    store = SqliteStore(path)
    await store.open()
    await store.apply(ROWS)
    return store


def rows(path: Path) -> dict[str, bytes]:
    """All rows of a file, which must be whole."""
    with closing(sqlite3.connect(path)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return dict(reader.execute("SELECT key, CAST(value AS BLOB) FROM documents"))


async def test_a_copy_is_of_one_moment_while_the_bot_writes(bot_db: Path, copy: Path) -> None:
    """It has all that was written before, nothing of later, and holds up no write."""
    store = await opened(bot_db)
    loop = asyncio.get_running_loop()
    steps: list[tuple[int, int]] = []

    def write_meanwhile(copied: int, total: int) -> None:
        steps.append((copied, total))
        assert len(steps) < 100, "it begins anew at each write"
        changes = {"chat/1": b"%d" % copied, f"chat/new{copied}": b"1", f"chat/{copied + 5}": None}
        asyncio.run_coroutine_threadsafe(store.apply(changes), loop).result(60)

    await store.backup(copy, write_meanwhile)
    assert {path.name for path in copy.parent.iterdir()} == {"bot.db"}
    assert copy.stat().st_mode & 0o777 == 0o600
    assert rows(copy) == ROWS
    ((_, total), *_) = steps
    step = sqlite_backup._STEP_PAGES
    assert steps == [(min(at + step, total), total) for at in range(0, total, step)]
    assert len(steps) > 3
    assert (await store.read(["chat/1"]))["chat/1"] == b"%d" % total
    await store.close()


async def test_a_bot_starts_from_a_copy(bot_db: Path, copy: Path) -> None:
    """A backup is a file like the original, and has what was acknowledged before it began."""
    persistence = KVPersistence(bot_db)
    await persistence.get_chat_data()
    await persistence.backup(copy.with_name("empty.db"))
    await persistence.update_chat_data(1, {"n": 1})
    await persistence.update_conversation(name="c", key=(1, 1), new_state=5)
    await persistence.backup(copy)
    await persistence.update_chat_data(1, {"n": 2})
    await persistence.flush()
    assert stored(copy.with_name("empty.db")) == {}
    restored = KVPersistence(copy)
    assert await restored.get_chat_data() == {1: {"n": 1}}
    assert await restored.get_conversations("c") == {(1, 1): 5}
    await restored.update_chat_data(1, {"n": 3})
    await restored.flush()
    assert stored(copy)["chat/1"] == {"n": 3}


@pytest.mark.parametrize("taken", ["bot.db", "bot.db-wal", "bot.db-journal"])
async def test_nothing_is_overwritten(bot_db: Path, copy: Path, taken: str) -> None:
    """Nor is a log of an earlier file taken for the copy's; the error names what is there."""
    store = await opened(bot_db)
    existing = copy.with_name(taken)
    existing.write_bytes(b"mine")
    with pytest.raises(BackupError, match=f"{existing} exists, .*name a new file"):
        await store.backup(copy)
    assert existing.read_bytes() == b"mine"
    assert list(copy.parent.iterdir()) == [existing]
    with pytest.raises(BackupError, match="exists"):
        await store.backup(bot_db)
    await store.close()


@pytest.mark.parametrize(
    "appear", [lambda path: path.write_bytes(b"mine"), lambda path: path.symlink_to("nowhere")]
)
async def test_a_file_that_appears_meanwhile_is_not_overwritten(
    bot_db: Path, copy: Path, appear: Callable[[Path], object]
) -> None:
    """Of two backups to one name the later to end is refused; a symlink is not followed."""
    store = await opened(bot_db)

    def race(copied: int, total: int) -> None:
        if copied == total:
            appear(copy)

    with pytest.raises(BackupError, match="exists"):
        await store.backup(copy, race)
    assert list(copy.parent.iterdir()) == [copy]
    assert copy.is_symlink() or copy.read_bytes() == b"mine"
    await store.close()


async def test_two_backups_at_the_same_time_are_two_copies(bot_db: Path, copy: Path) -> None:
    """To one name, one of them wins."""
    store = await opened(bot_db)
    other = copy.with_name("other.db")
    targets = [copy, other, copy]
    results = await asyncio.gather(*map(store.backup, targets), return_exceptions=True)
    assert results[1] is None
    assert {type(results[0]), type(results[2])} == {type(None), BackupError}
    assert rows(copy) == rows(other) == ROWS
    assert len(list(copy.parent.iterdir())) == 2
    await store.close()


@pytest.mark.parametrize(
    ("raised", "comes_out"),
    [
        (LookupError, LookupError),
        (ValueError, ValueError),
        (OSError, OSError),
        (StopIteration, RuntimeError),  # as out of every coroutine
        (asyncio.CancelledError, asyncio.CancelledError),
        (GeneratorExit, GeneratorExit),
    ],
)
async def test_what_progress_raises_ends_the_copying(
    bot_db: Path, copy: Path, raised: type[BaseException], comes_out: type[BaseException]
) -> None:
    """It is raised by `backup`, whatever it is, and nothing is left."""
    store = await opened(bot_db)

    def fail(copied: int, total: int) -> None:
        raise raised(copied, total)

    with pytest.raises(comes_out):
        await store.backup(copy, fail)
    assert list(copy.parent.iterdir()) == []
    await store.close()


async def test_a_backup_needs_no_application(bot_db: Path, copy: Path) -> None:
    """It opens the file; `flush` closes it."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    await persistence.flush()
    await persistence.backup(copy)
    with pytest.raises(StoreInUseError):
        await KVPersistence(bot_db).backup(copy.with_name("other.db"))
    await persistence.flush()
    assert rows(copy) == {"chat/1": b'{"n":1}'}


async def test_a_full_disk_leaves_nothing(bot_db: Path, copy: Path) -> None:
    """The error says so; the store goes on; with room the same call succeeds."""
    store = await opened(bot_db)
    with quota(1_000_000), pytest.raises(BackupError, match=f"{copy} was not written: .*room"):
        await store.backup(copy)
    assert list(copy.parent.iterdir()) == []
    await store.backup(copy)
    assert rows(copy) == ROWS
    await store.close()


@pytest.mark.parametrize("damaged", ["table", "index", "end"])
async def test_a_damaged_file_gives_no_copy(bot_db: Path, copy: Path, damaged: str) -> None:
    """The error says that the file is damaged, whatever page it is; nothing is left."""
    store = await opened(bot_db)
    await store.close()
    data = bytearray(bot_db.read_bytes())
    start = {"table": 4096, "index": 2 * 4096, "end": len(data) - 4096}[damaged]
    data[start : start + 4096] = bytes(4096)
    bot_db.write_bytes(data)
    persistence = KVPersistence(bot_db)
    words = f"{copy} was not written: .*malformed.*; {bot_db}: it is damaged; .*integrity_check"
    with pytest.raises(BackupError, match=f"(?s){words}"):
        await persistence.backup(copy)
    assert list(copy.parent.iterdir()) == []
    await persistence.flush()
    assert bot_db.read_bytes() == data


@pytest.mark.parametrize("has_functions", [False, True])
async def test_damage_of_free_pages_gives_no_copy_either(
    bot_db: Path, copy: Path, *, has_functions: bool
) -> None:
    """Though all rows can be read, later ones would go there; also beside tables of others."""
    store = await opened(bot_db)
    await store.apply({f"chat/{number}": None for number in range(100, 500)})
    await store.close()
    if has_functions:
        add_table_that_needs_a_function(bot_db)
    data = bytearray(bot_db.read_bytes())
    first_free = int.from_bytes(data[32:36], "big")  # https://sqlite.org/fileformat2.html#freelist
    data[(first_free - 1) * 4096 : first_free * 4096] = b"\xff" * 4096
    bot_db.write_bytes(data)
    persistence = KVPersistence(bot_db)
    with pytest.raises(BackupError, match=f"(?s)was not written: .*freelist.*{bot_db}: it is dam"):
        await persistence.backup(copy)
    assert list(copy.parent.iterdir()) == []
    await persistence.flush()
    assert bot_db.read_bytes() == data


def add_table_that_needs_a_function(path: Path) -> None:
    """Have another program put a row into a file."""
    with closing(sqlite3.connect(path)) as connection:
        connection.create_function("f", 1, lambda value: value, deterministic=True)
        connection.executescript("CREATE TABLE notes (note); CREATE INDEX i ON notes (f(note))")
        connection.execute("INSERT INTO notes VALUES (5)")
        connection.commit()


async def test_tables_of_others_are_copied_as_they_are(bot_db: Path, copy: Path) -> None:
    """They may need functions that their program alone has."""
    store = await opened(bot_db)
    await store.close()
    add_table_that_needs_a_function(bot_db)
    await store.open()
    await store.backup(copy)
    await store.close()
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("SELECT note FROM notes").fetchall() == [(5,)]


async def test_looking_through_the_copy_ends_when_nobody_waits_for_it(
    bot_db: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes long for a large file; nothing else of it is done then."""
    store = await opened(bot_db)
    loop = asyncio.get_running_loop()

    async def cancel() -> None:
        backup.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    def cancel_at_the_end(copied: int, total: int) -> None:
        if copied == total:
            asyncio.run_coroutine_threadsafe(cancel(), loop).result(60)

    synced: list[Path] = []
    monkeypatch.setattr("kvpersist.stores.sqlite_backup._STEP_INSTRUCTIONS", 1)
    monkeypatch.setattr("kvpersist.stores.sqlite_backup.sync", synced.append)
    backup = asyncio.create_task(store.backup(copy, cancel_at_the_end))
    with pytest.raises(asyncio.CancelledError):
        await backup
    assert synced == list(copy.parent.iterdir()) == []
    await store.close()


async def test_a_file_that_is_not_there_is_not_made(bot_db: Path, copy: Path) -> None:
    """An empty copy of an empty file would be taken for a backup."""
    with pytest.raises(BackupError, match=f"no file {bot_db} to be copied"):
        await KVPersistence(bot_db).backup(copy)
    assert [*bot_db.parent.iterdir()] == [copy.parent]
    assert list(copy.parent.iterdir()) == []


async def test_a_progress_that_cannot_work_is_refused(bot_db: Path, copy: Path) -> None:
    """Before anything is copied, as by the constructor."""
    store = await opened(bot_db)

    async def progress(_: int, __: int) -> None:
        pass

    for wrong in (5, progress):
        with pytest.raises(ConfigurationError, match="progress must be a function, not async"):
            await store.backup(copy, wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigurationError, match="progress must be a function, not async"):
            await KVPersistence(bot_db).backup(copy, wrong)  # type: ignore[arg-type]
    assert list(copy.parent.iterdir()) == []
    await store.close()


async def test_names_that_cannot_be_are_refused(bot_db: Path) -> None:
    """A folder that is missing, a path that is none."""
    store = await opened(bot_db)
    for name in ("missing/copy.db", "a\0b", "x" * 300, "."):
        with pytest.raises(BackupError):
            await store.backup(name)
    for name in ("", "~/copy.db", ":memory:"):
        with pytest.raises(ConfigurationError):
            await store.backup(name)
    assert {path.name for path in bot_db.parent.iterdir()} >= {"bot.db"}
    await store.close()


async def test_stores_that_have_no_open_file_say_so(bot_db: Path, copy: Path) -> None:
    """A closed store, and one in memory."""
    with pytest.raises(BackupError, match="not open"):
        await SqliteStore(bot_db).backup(copy)
    with pytest.raises(BackupError, match="MemoryStore.*not in a SQLite file"):
        await KVPersistence(MemoryStore()).backup(copy)
    assert list(copy.parent.iterdir()) == []


async def test_a_store_that_cannot_be_read_gives_no_copy(
    bot_db: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the backup that failed, for the reason that is told."""
    store = await opened(bot_db)

    def fail(*_: object) -> sqlite3.Connection:
        raise OpenError("too many open files")

    monkeypatch.setattr("kvpersist.stores.sqlite.open_reader", fail)
    with pytest.raises(BackupError, match="not written: too many open files"):
        await store.backup(copy)
    assert list(copy.parent.iterdir()) == []
    await store.close()


@pytest.mark.parametrize("times", [1, 2])
async def test_a_backup_that_is_cancelled_leaves_nothing(
    bot_db: Path, copy: Path, times: int
) -> None:
    """When the caller gets CancelledError the copying has ended; even if it did not wait for it."""
    store = await opened(bot_db)
    loop = asyncio.get_running_loop()
    has_begun, may_go_on = asyncio.Event(), threading.Event()

    def hold_up(*_: int) -> None:
        loop.call_soon_threadsafe(has_begun.set)
        assert may_go_on.wait(60)

    backup = asyncio.create_task(store.backup(copy, hold_up))
    await has_begun.wait()
    (thread,) = (each for each in threading.enumerate() if each.name == "kvpersist:daemon")
    for _ in range(times):
        backup.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    assert backup.done() == (times == 2)
    may_go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await backup
    if times == 2:
        await asyncio.to_thread(thread.join)
    assert list(copy.parent.iterdir()) == []
    await store.close()


def test_a_program_that_ends_meanwhile_leaves_nothing(bot_db: Path, copy: Path) -> None:
    """The end of `asyncio.run`, which cancels all tasks at once, waits for the copying's end."""

    async def main() -> None:
        store = await opened(bot_db)
        has_begun = asyncio.Event()
        loop = asyncio.get_running_loop()
        backup = store.backup(copy, lambda *_: loop.call_soon_threadsafe(has_begun.set))
        task = asyncio.create_task(backup)
        await has_begun.wait()
        await store.close()
        assert task

    async def start_again() -> None:
        store = SqliteStore(bot_db)
        await store.open()
        assert await store.read(ROWS) == ROWS
        await store.close()

    asyncio.run(main())
    assert list(copy.parent.iterdir()) in ([], [copy])
    asyncio.run(start_again())


@pytest.mark.parametrize(
    ("moment", "times"),
    [("progress", 1), ("progress", 2), ("fsync", 1), ("link", 1), ("linked", 1), ("fsync", 2)],
)
async def test_a_process_that_is_killed_leaves_no_half_copy(
    bot_db: Path, moment: str, times: int
) -> None:
    """Under the final name there is a whole copy or none; the store lost nothing."""
    store = await opened(bot_db)
    await store.close()
    command = [sys.executable, "-c", KILLED, str(bot_db), moment, str(times)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    copy = bot_db.with_name("bot.db.copy")
    everything = ROWS | {"chat/acknowledged": b"1"}
    assert copy.exists() == ((moment, times) in {("linked", 1), ("fsync", 2)})
    left = [path for path in bot_db.parent.iterdir() if path.name.startswith(sqlite_backup.PREFIX)]
    assert len(left) <= 1
    if copy.exists():
        assert rows(copy) == everything
        if moment == "linked":  # the copy has two names now
            with pytest.raises(OpenError, match="kvpersist-.* was killed, and may be removed"):
                await SqliteStore(copy).open()
            left[0].unlink()
        of_copy = SqliteStore(copy)
        await of_copy.open()
        await of_copy.close()
        copy.unlink()
    await store.open()
    await store.backup(copy)
    await store.close()
    assert rows(copy) == rows(bot_db) == everything


async def test_a_copy_is_on_the_disk_before_it_has_its_name(
    bot_db: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First all pages, then the name, then the folder."""
    store = await opened(bot_db)
    calls: list[tuple[str, str]] = []
    fsync, link = os.fsync, os.link

    def note_fsync(descriptor: int) -> None:
        calls.append(("fsync", str(Path(f"/proc/self/fd/{descriptor}").readlink())))
        fsync(descriptor)

    def note_link(source: Path, target: Path) -> None:
        calls.append(("link", str(source)))
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "link", note_link)
    await store.backup(copy)
    await store.close()
    temporary = calls[0][1]
    assert Path(temporary).parent == copy.parent
    assert calls == [("fsync", temporary), ("link", temporary), ("fsync", str(copy.parent))]


async def test_a_name_that_may_not_last_is_taken_back(
    bot_db: Path, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the folder cannot be written to the disk, there is no copy, and the error says so."""
    store = await opened(bot_db)
    fsync = os.fsync

    def fail_for_folders(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink().is_dir():
            raise OSError("input/output error")
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail_for_folders)
        with pytest.raises(BackupError, match="input/output error"):
            await store.backup(copy)
    assert list(copy.parent.iterdir()) == []
    await store.close()
