"""Damaged files: what is said of them, and that a log that was cut or bent loses its end alone.

KVPERSIST_SEED says which bits of the log are bent.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from faults import rows_of_a_sound_file

from kvpersist import (
    KVPersistence,
    NotAStoreError,
    OpenError,
    ReadError,
    SqliteStore,
    WriteError,
)
from kvpersist.stores.sqlite_file import open_file
from kvpersist.stores.sqlite_schema import SCHEMA
from kvpersist.stores.sqlite_statements import _PUT

SEED = int(os.environ.get("KVPERSIST_SEED", "1"))
PAGE = 4096
SMALL_PAGE = 512
"""The least there is, so that each byte of some pages can be tried."""
FRAME_HEADER = 24
WAL_HEADER = 32
TRANSACTIONS = 8


@pytest.fixture
async def filled(bot_db: Path) -> Path:
    """A closed file of 1,000 rows, in which each page of the table has twelve."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({f"chat/{n}": b'{"text":"%s"}' % (b"x" * 300) for n in range(1000)})
    await store.close()
    return bot_db


def damage(path: Path, page: int) -> bytes:
    """Overwrite a page, numbered from 1, with zeros; return all of the file."""
    data = bytearray(path.read_bytes())
    data[(page - 1) * PAGE : page * PAGE] = bytes(PAGE)
    path.write_bytes(data)
    return bytes(data)


def page_of(path: Path, what: str) -> int:
    """Return the first page of the table, or of its index."""
    with closing(sqlite3.connect(path)) as reader:
        query = "SELECT rootpage FROM sqlite_master WHERE type = ?"
        (page,) = reader.execute(query, (what,)).fetchone()
        return int(page)


async def test_a_damaged_page_costs_its_rows_alone_and_says_which(filled: Path) -> None:
    """The error counts what can be read, names the first rows that cannot, and says what to do."""
    data = damage(filled, 40)
    persistence = KVPersistence(filled)
    with pytest.raises(ReadError, match=f"{filled}: .*malformed.*PRAGMA integrity_check") as caught:
        await persistence.get_chat_data()
    said = str(caught.value)
    assert "988 of the 1000 rows that were found can be read, not chat/" in said
    assert said.endswith(" and 2 more")
    assert f"after {filled} and all that is beside it, but -rescue, was moved away" in said
    assert len(said) < 1200
    store = SqliteStore(filled)
    await store.open()
    unreadable = said.partition(", not ")[2].partition(" and ")[0].split(", ")
    assert len(unreadable) == 10
    for key in unreadable:
        with pytest.raises(ReadError):
            await store.read([key])
    readable = {f"chat/{n}" for n in range(1000)} - set(unreadable)
    assert len([key for key in readable if await can_be_read(store, key)]) == 988
    await store.close()
    assert filled.read_bytes() == data


async def can_be_read(store: SqliteStore, key: str) -> bool:
    """Whether a row is there."""
    try:
        return len(await store.read([key])) == 1
    except ReadError:
        return False


async def test_with_a_damaged_index_all_rows_can_still_be_read(filled: Path) -> None:
    """None is named, since none is lost; ``.dump`` does not need it."""
    data = damage(filled, page_of(filled, "index"))
    store = SqliteStore(filled)
    await store.open()
    for _ in range(2):
        with pytest.raises(ReadError, match="1000 of the 1000 rows .* can be read$"):
            await store.read(["chat/1"])
    with pytest.raises(WriteError, match="malformed.*integrity_check"):
        await store.apply({"chat/1": b"{}"})
    await store.close()
    assert filled.read_bytes() == data


async def test_with_a_damaged_table_its_keys_are_named(filled: Path) -> None:
    """The index alone has them."""
    data = damage(filled, page_of(filled, "table"))
    store = SqliteStore(filled)
    await store.open()
    with pytest.raises(ReadError, match="0 of the 1000 .* not chat/0, chat/1, .* and 990 more"):
        await store.read(["chat/1"])
    await store.close()
    assert filled.read_bytes() == data


async def test_few_unreadable_rows_are_all_named(bot_db: Path) -> None:
    """A long key is cut."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"1", "x" * 900: b"1"})
    await store.close()
    damage(bot_db, page_of(bot_db, "table"))
    await store.open()
    with pytest.raises(ReadError, match="0 of the 2 .* not chat/1, x{60}$"):
        await store.read(["chat/1"])
    await store.close()


async def test_a_file_that_cannot_be_looked_at_is_damaged_all_the_same(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many reads fail at once; one look is made for all, and if it fails the error is ReadError."""
    damage(filled, page_of(filled, "index"))
    looks = []

    def fail(*_: object) -> sqlite3.Connection:
        looks.append(1)
        raise OpenError("too many open files")

    store = SqliteStore(filled)
    await store.open()
    monkeypatch.setattr("kvpersist.stores.sqlite.open_reader", fail)
    reads = [store.read([f"chat/{n}"]) for n in range(20)]
    errors = await asyncio.gather(*reads, return_exceptions=True)
    assert {type(error) for error in errors} == {ReadError}
    assert "malformed" in str(errors[0])
    assert looks == [1]
    errors.clear()  # blockbuster's frames, which they hold, hold cursors that keep the file open
    await store.close()


@pytest.mark.parametrize("page", [1, 2, 3, 5])  # 4 is that of the rows that were set aside
async def test_damage_is_never_taken_for_an_empty_store(filled: Path, page: int) -> None:
    """Whatever page it is, the start fails, says so, and changes nothing."""
    data = damage(filled, page)
    with pytest.raises((OpenError, ReadError), match="integrity_check|not a SQLite file"):
        await KVPersistence(filled).get_chat_data()
    assert filled.read_bytes() == data


async def test_a_first_page_that_is_damaged_is_thought_of(filled: Path) -> None:
    """Nothing tells whose the file is then; the error speaks of a backup too."""
    data = damage(filled, 1)
    with pytest.raises(NotAStoreError, match="if it was one, its first page .* from a backup$"):
        await KVPersistence(filled).get_chat_data()
    assert filled.read_bytes() == data


@pytest.mark.parametrize("rows", [1, 2])
async def test_rows_that_were_left_for_a_damaged_file_wait_for_another(
    filled: Path, rows: int
) -> None:
    """The start says which file is damaged, and what to do; the rows stay in the rescue file."""
    damage(filled, page_of(filled, "table"))
    left = filled.with_name("bot.db-rescue")
    waiting = {f"chat/{row}": "{}" for row in range(rows)}
    left.write_text(json.dumps({"format": "kvpersist rescue 1", "of": None, "rows": waiting}))
    found = left.read_bytes()
    words = f"{left} holds rows .*malformed.*; {filled}: it is damaged; .* leave the rescue file "
    with pytest.raises(OpenError, match=f"(?s){words}.*, or move it away"):
        await KVPersistence(filled).get_chat_data()
    assert left.read_bytes() == found


async def test_a_file_that_was_cut_off_is_damaged(filled: Path) -> None:
    """Its last half is missing."""
    data = filled.read_bytes()[: filled.stat().st_size // 2 // PAGE * PAGE]
    filled.write_bytes(data)
    with pytest.raises((OpenError, ReadError), match="malformed.*integrity_check"):
        await KVPersistence(filled).get_chat_data()
    assert filled.read_bytes() == data


def row(number: int) -> str:
    """A document that says in which transaction it was written, and needs a page of its own."""
    return f'{{"n": {number}, "text": "{"x" * 300}"}}'


@pytest.fixture
def logged(tmp_path: Path) -> Path:
    """A file and a log as a killed bot leaves them: some transactions of two rows that must agree.

    Its pages are small, and bent copies of it are put beside it.
    """
    path = tmp_path / "killed" / "bot.db"
    path.parent.mkdir()
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA page_size = {SMALL_PAGE}")
        connection.executescript(SCHEMA)
    connection = open_file(str(path), 0)
    for number in range(1, TRANSACTIONS + 1):
        connection.executemany(_PUT, [[(f"chat/{chat}", row(number), 0) for chat in (1, 2)]])
    kept = tmp_path / "kept"
    shutil.copytree(path.parent, kept)
    connection.close()
    (kept / "bot.db-shm").unlink()  # memory, which does not outlive the machine
    return kept / "bot.db"


def frames(log: bytes) -> list[int]:
    """For each frame of a log, in order: how many transactions are whole when it is."""
    size = FRAME_HEADER + SMALL_PAGE
    whole, found = 0, []
    for start in range(WAL_HEADER, len(log), size):
        whole += log[start + 4 : start + 8] != bytes(4)  # the last frame of a transaction
        found.append(whole)
    return found


@pytest.fixture
def reopened(logged: Path, tmp_path: Path) -> Iterator[Callable[[bytes], int]]:
    """Open the file with another log, and return the transaction that its rows are of."""
    path = tmp_path / "bent" / "bot.db"
    path.parent.mkdir()
    data = logged.read_bytes()

    def reopen(log: bytes) -> int:
        path.write_bytes(data)
        path.with_name("bot.db-wal").write_bytes(log)
        if not (rows := rows_of_a_sound_file(path)):
            return 0
        assert rows["chat/1"] == rows["chat/2"], "a mix of two transactions"
        (number,) = (n for n in range(TRANSACTIONS + 1) if rows["chat/1"] == row(n).encode())
        return number

    yield reopen
    shutil.rmtree(path.parent)


def test_a_log_that_is_cut_loses_its_last_transactions_alone(
    logged: Path, reopened: Callable[[bytes], int]
) -> None:
    """At each byte of the frames of the last two: what is whole is there, and nothing else."""
    log = logged.with_name("bot.db-wal").read_bytes()
    whole = frames(log)
    assert whole[-1] == TRANSACTIONS
    size = FRAME_HEADER + SMALL_PAGE
    first = whole.index(TRANSACTIONS - 2) + 1
    assert len(whole) - first == 4
    for end in range(WAL_HEADER + first * size, len(log) + 1):
        complete = (end - WAL_HEADER) // size
        assert reopened(log[:end]) == whole[complete - 1], end


def test_a_log_in_which_a_bit_is_bent_loses_what_follows_alone(
    logged: Path, reopened: Callable[[bytes], int]
) -> None:
    """One bit of each byte of the last two frames, and of the head of the log and each frame."""
    log = logged.with_name("bot.db-wal").read_bytes()
    whole = frames(log)
    size = FRAME_HEADER + SMALL_PAGE
    chance = random.Random(SEED)  # noqa: S311  it chooses bits, not secrets
    print(f"KVPERSIST_SEED={SEED}")  # noqa: T201  to repeat it
    heads = (WAL_HEADER + at * size + byte for at in range(len(whole)) for byte in (0, 4, 8, 16))
    for at in [*heads, *range(len(log) - 2 * size, len(log))]:
        bent = bytearray(log)
        bent[at] ^= 1 << chance.randrange(8)
        frame = (at - WAL_HEADER) // size
        assert reopened(bytes(bent)) == (whole[frame - 1] if frame else 0), at
