"""The write-ahead log stays small whoever reads; of a reader that never ends the bot tells."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from pathlib import Path

import pytest
from faults import ONE_READER, READERS_IN_TURNS, quota, read_by_another_program
from stores import stored

from kvpersist import SqliteStore
from kvpersist.stores.sqlite_log import LOG_LIMIT

MIB = 2**20


async def opened(path: Path, busy_timeout: float = 5.0) -> SqliteStore:
    """Return an open store with a row."""
    store = SqliteStore(path, busy_timeout=busy_timeout)
    await store.open()
    await store.apply({"chat/0": b"{}"})
    return store


async def write(store: SqliteStore, size: int) -> list[int]:
    """Write rows of a megabyte, of `size` bytes in all; return how large the log was after each.

    Each differs from the one before it, since SQLite does not write what a page holds already.
    """
    sizes = []
    for number in range(1, size // MIB + 1):
        text = b'"' + b"%08x" % number * (MIB // 8) + b'"'
        await store.apply({f"chat/{number % 8}": text})
        sizes.append(log_size(store))
    return sizes


def log_size(store: SqliteStore) -> int:
    """Return how large the write-ahead log is now."""
    return Path(f"{store.path}-wal").stat().st_size


def traced(store: SqliteStore) -> list[str]:
    """Return a list to which each attempt to empty the log will be added."""
    tries: list[str] = []

    def note(statement: str) -> None:
        if "wal_checkpoint" in statement:
            tries.append(statement)

    assert store._opened is not None
    store._opened.file.set_trace_callback(note)
    return tries


def busy_timeout(store: SqliteStore) -> int:
    """Return for how many milliseconds a write waits for others."""
    assert store._opened is not None
    ((timeout,),) = store._opened.file.execute("PRAGMA busy_timeout").fetchall()
    return int(timeout)


async def test_nothing_is_done_about_a_small_log(bot_db: Path) -> None:
    """While nobody reads SQLite begins it anew by itself, after each 1,000 pages."""
    store = await opened(bot_db)
    tries = traced(store)
    assert max(await write(store, 64 * MIB)) < LOG_LIMIT
    assert tries == []
    await store.close()


async def test_the_log_is_bounded_though_somebody_always_reads(bot_db: Path) -> None:
    """Readers that take turns never let SQLite begin it anew by itself: it would be 128 MiB."""
    store = await opened(bot_db)
    with read_by_another_program(bot_db, READERS_IN_TURNS):
        assert max(await write(store, 128 * MIB)) < 4 * LOG_LIMIT
    await store.close()


async def test_a_reader_that_never_ends_is_told_of_and_hardly_waited_for(
    bot_db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The log grows by what is written; each time it has doubled it is tried to empty it."""
    caplog.set_level(logging.WARNING, "kvpersist")
    store = await opened(bot_db, busy_timeout=0.05)
    tries = traced(store)
    with read_by_another_program(bot_db, ONE_READER):
        sizes = await write(store, 160 * MIB)
        assert sizes == sorted(sizes)
        assert sizes[-1] > 160 * MIB
        assert len(tries) == 4  # at 16, 32, 64 and 128 MiB
        assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
        assert "bot.db-wal has grown to 6" in caplog.text
        assert "another program has been reading for long: end its transaction" in caplog.text
    assert busy_timeout(store) == 50
    await store.close()


async def test_readers_are_waited_for_twice_as_long_when_the_log_has_doubled(
    bot_db: Path,
) -> None:
    """About 0.1 seconds at 16 MiB, and never longer than the busy timeout, which stays as it is."""
    store = await opened(bot_db, busy_timeout=0.3)
    waits: list[int] = []

    def note(statement: str) -> None:
        if (found := re.fullmatch(r"PRAGMA busy_timeout = (\d+)", statement)) is not None:
            waits.append(int(found[1]))

    assert store._opened is not None
    store._opened.file.set_trace_callback(note)
    with read_by_another_program(bot_db, ONE_READER):
        await write(store, 70 * MIB)
    assert [round(wait, -2) for wait in waits[::2]] == [100, 200, 300]  # at 16, 32 and 64 MiB
    assert waits[1::2] == [300] * 3
    await store.close()


async def test_the_log_is_small_again_when_the_reader_has_ended(bot_db: Path) -> None:
    """Not at the end of the bot: after two writes. And it is bounded from then on as before."""
    store = await opened(bot_db, busy_timeout=0.05)
    with read_by_another_program(bot_db, ONE_READER):
        assert (await write(store, 40 * MIB))[-1] > 40 * MIB
    await write(store, 2 * MIB)
    assert log_size(store) <= LOG_LIMIT
    tries = traced(store)
    with read_by_another_program(bot_db, ONE_READER):
        await write(store, 20 * MIB)
        assert len(tries) == 1
    await store.close()


async def test_no_write_waits_for_a_backup(bot_db: Path) -> None:
    """The log grows until the copy is made, and is small again after it."""
    store = await opened(bot_db)
    tries = traced(store)
    begun, go_on = threading.Event(), threading.Event()

    def hold(*_: int) -> None:
        begun.set()
        assert go_on.wait(60)

    backup = asyncio.create_task(store.backup(bot_db.with_name("copy.db"), hold))
    await asyncio.to_thread(begun.wait)
    assert (await write(store, 40 * MIB))[-1] > 40 * MIB
    assert tries == []
    go_on.set()
    await backup
    await write(store, 2 * MIB)
    assert log_size(store) <= LOG_LIMIT
    await store.close()


async def test_emptying_the_log_is_no_write_of_others(bot_db: Path) -> None:
    """After it, here after an enormous row, the bot knows without asking that nobody wrote."""
    store = await opened(bot_db)
    before = await store.see_others()
    tries = traced(store)
    await store.apply({"chat/1": b'"%s"' % (b"x" * 20 * MIB)})
    assert (len(tries), log_size(store)) == (1, 0)
    assert store.others_seen() == before
    await store.close()


async def test_a_log_that_does_not_fit_into_the_file_holds_up_no_write(bot_db: Path) -> None:
    """It is emptied when the disk has room again; until then the rows are in the log, and safe."""
    store = await opened(bot_db)
    await store.apply({"chat/1": b'"%s"' % (b"x" * 40 * MIB)})
    tries = traced(store)
    with quota(50 * MIB):
        await store.apply({"chat/2": b'"%s"' % (b"y" * 20 * MIB)})
        assert len(tries) == 1
        assert log_size(store) > 20 * MIB
        assert stored(bot_db)["chat/2"] == "y" * 20 * MIB
    await write(store, 2 * MIB)
    assert log_size(store) <= LOG_LIMIT
    await store.close()
