"""Whatever the file system refuses, and whenever, is an error of ours, and nothing is lost.

Each call of SQLite's to its files fails in turn, once or from then on: see `io_faults` for the how.
KVPERSIST_SEED says with which error; KVPERSIST_FAULT has one call fail alone, to repeat it.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from faults import transaction
from io_faults import Faults, faults_in

from kvpersist import BackupError, KVPersistence, OpenError, ReadError, SqliteStore, WriteError
from kvpersist.stores.file_lock import FileLock

SEED = os.environ.get("KVPERSIST_SEED", "1")
ALONE = os.environ.get("KVPERSIST_FAULT")
_ALL = "SELECT key, CAST(value AS BLOB) FROM documents"

Rows = dict[str, bytes]


@pytest.fixture(autouse=True)
def blockbuster() -> None:
    """Watch no calls here: that doubles the time, and is done where nothing fails."""


def after(rows: Rows, changes: dict[str, bytes | None]) -> Rows:
    """Return what a transaction makes of rows."""
    return {key: text for key, text in {**rows, **changes}.items() if text is not None}


def look(path: Path) -> Rows:
    """Return all rows, as a program sees them for which nothing fails."""
    if not path.exists() or path.stat().st_size == 0 or Path(f"{path}-journal").exists():
        return {}  # it was not made yet
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro&vfs=unix", uri=True)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return dict(reader.execute(_ALL))


class Life:
    """A store that is used while its file system fails, and what its file must hold."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.path = folder / "bot.db"
        self.copy = folder / "copy.db"
        self.store = SqliteStore(self.path, busy_timeout=0)
        self.refusals: list[Exception] = []
        self.possible: list[Rows] = [{}]
        """What the file may hold: a log whose sync was refused may be found whole by a restart."""

    async def fails(self, doing: Awaitable[object], error: type[Exception]) -> bool:
        """Whether something was refused, with an error of this kind: any other ends the test."""
        try:
            await doing
        except error as refusal:
            self.refusals.append(refusal)
            return True
        return False

    async def open(self) -> None:
        if not await self.fails(self.store.open(), OpenError):
            assert self.store._opened is not None
            # A checkpoint after each commit or two: that it fails must not be the commit's failure.
            await self.store._opened.writer.fetch("PRAGMA wal_autocheckpoint = 6")

    async def apply(self, number: int) -> None:
        changes = transaction(number)
        written = [after(rows, changes) for rows in self.possible]
        if await self.fails(self.store.apply(changes), WriteError):
            self.possible += written
            assert look(self.path) in self.possible
        else:
            self.possible = [rows for rows in written if rows == look(self.path)]
            assert self.possible, "it is not what was acknowledged"

    async def read(self) -> None:
        found: Rows = {}

        async def scan() -> None:
            async for page in self.store.scan(""):
                found.update(page)
            read = await self.store.read(["chat/2"])
            assert read.get("chat/2") == found.get("chat/2")
            await self.store.see_others()

        assert await self.fails(scan(), ReadError) or found in self.possible

    async def backup(self) -> None:
        if not await self.fails(self.store.backup(self.copy), BackupError):
            assert look(self.copy) in self.possible
            for file in self.path.parent.glob("copy.db*"):
                file.unlink()
        assert all(file.name.startswith("bot.db") for file in self.path.parent.iterdir())

    async def close(self) -> None:
        await self.fails(self.store.close(), WriteError)

    async def suffer(self) -> None:
        """Do all that a bot does with its store, and once more after it was closed."""
        await self.open()
        await self.apply(1)
        await self.apply(2)
        await self.read()
        await self.backup()
        await self.close()
        await self.open()
        await self.apply(3)

    async def recover(self) -> None:
        """See that all of it works again, with the same store and with another."""
        assert all(str(self.path.parent) in str(refusal) for refusal in self.refusals)
        self.refusals = []
        await self.store.open()
        await self.apply(4)
        await self.read()
        await self.store.close()
        FileLock(Path(f"{self.path}-lock")).release()  # which is free
        self.store = SqliteStore(self.path)
        await self.store.open()
        await self.read()
        await self.store.close()
        assert not self.refusals, "after the fault had ended"
        assert [look(self.path)] == self.possible


@contextmanager
def replayable(number: int) -> Iterator[None]:
    """Say with a failure how to repeat it."""
    try:
        yield
    except BaseException:
        print(f"KVPERSIST_SEED={SEED} KVPERSIST_FAULT={number}")  # noqa: T201
        raise


def numbers(faults: Faults) -> Iterator[int]:
    """Give the numbers of all calls, up to the first that the last run did not make."""
    number = int(ALONE or 1)
    while True:
        with replayable(number):
            yield number
        number += 1
        if ALONE or not faults.failed:
            return


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "lasting"])
async def test_whatever_call_fails_nothing_is_lost_and_all_works_again(
    tmp_path: Path, lasting: bool
) -> None:
    """Errors are ours, transactions whole; the store, and the next one, go on without repair."""
    failed: Counter[str] = Counter()
    refused: set[type[Exception]] = set()
    folder = tmp_path / "data"
    with faults_in(folder) as faults:
        for number in numbers(faults):
            life = Life(folder)
            faults.fail_at(number, f"{SEED} {number}", lasting=lasting)
            await life.suffer()
            failed.update(faults.failed)
            faults.end()
            refused.update(map(type, life.refusals))
            await life.recover()
            shutil.rmtree(folder)
    assert ALONE or refused >= {OpenError, ReadError, WriteError, BackupError}
    kinds = {each.rpartition(" ")[0] for each in failed}
    everything = {"open", "read", "write", "truncate", "sync", "size", "delete", "lock", "map"}
    assert ALONE or kinds == everything | {"lock map"}


async def save(persistence: KVPersistence[Any, Any, Any], chat: int, number: int) -> bool:
    """Save a chat; return whether that was acknowledged."""
    try:
        await persistence.update_chat_data(chat, {"n": number, "text": "x" * 3000 * number})
    except WriteError:
        return False
    return True


async def end(persistence: KVPersistence[Any, Any, Any]) -> bool:
    """Let a bot end; return whether the next one will have all that it saved."""
    try:
        await persistence.flush()
    except WriteError as error:
        return "for the next start" in error.reason
    return True


@pytest.mark.parametrize("restarts", [False, True], ids=["goes on", "restarts"])
async def test_what_a_failing_file_system_refused_is_written_when_it_works_again(
    tmp_path: Path, restarts: bool
) -> None:
    """By the same bot all of it; by the next one what was acknowledged or left beside the file."""
    folder = tmp_path / "data"
    with faults_in(folder) as faults:
        for number in numbers(faults):
            folder.mkdir()
            persistence = KVPersistence(SqliteStore(folder / "bot.db", busy_timeout=0))
            faults.fail_at(number, f"{SEED} {number}", lasting=True)
            saved = [(1, 0), (2, 1), (1, 2)]
            acknowledged = dict([each for each in saved if await save(persistence, *each)])
            is_kept = await end(persistence)
            faults.end()
            if restarts:
                persistence = KVPersistence(folder / "bot.db")
            found = await persistence.get_chat_data()
            await persistence.flush()
            if restarts and not is_kept:
                assert all(found[chat]["n"] >= n for chat, n in acknowledged.items())
            else:
                assert {chat: document["n"] for chat, document in found.items()} == dict(saved)
            shutil.rmtree(folder)


async def test_a_file_system_that_becomes_read_only_refuses_writes_alone(tmp_path: Path) -> None:
    """Reading goes on, a start says what is wrong, and nothing is lost."""
    path = tmp_path / "bot.db"
    with faults_in(tmp_path) as faults:
        persistence = KVPersistence(path)
        await persistence.update_chat_data(1, {"n": 1})
        faults.be_read_only()
        with pytest.raises(WriteError, match="chat/1: .*kept.*the file may be written"):
            await persistence.update_chat_data(1, {"n": 2})
        document = {"n": 0}
        await persistence.refresh_chat_data(1, document)
        with pytest.raises(WriteError, match="for the next start"):
            await persistence.flush()
        with pytest.raises(OpenError, match="bot.db-rescue holds rows .*readonly"):
            await KVPersistence(path).get_chat_data()
        with pytest.raises(OpenError, match="readonly.*whether the file system is read-only"):
            await KVPersistence(tmp_path / "new.db").get_chat_data()
        faults.end()
        restarted = KVPersistence(path)
        assert await restarted.get_chat_data() == {1: {"n": 2}}
        await restarted.flush()
