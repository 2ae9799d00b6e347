"""The rescue file survives a kill, and a power cut, at every step of leaving and of taking it."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import stored

from kvpersist import OpenError, SqliteStore
from kvpersist.stores.sqlite_file import FileConnection

STARTS = """
import asyncio, os, signal, sys, warnings
from itertools import count
from pathlib import Path
from kvpersist import KVPersistence, SqliteStore
from kvpersist.stores.sqlite_file import FileConnection

warnings.simplefilter("ignore")  # of a fork beside threads
folder, is_marked = Path(sys.argv[1]), sys.argv[2] == "marked"
steps = stop = 0

def step():
    global steps
    steps += 1
    if steps == stop:
        os.kill(os.getpid(), signal.SIGKILL)

def around(owner, name, concerns=lambda *_: True):
    function = getattr(owner, name)
    def patched(*args, **more):
        if not concerns(*args):
            return function(*args, **more)
        step()
        result = function(*args, **more)
        step()
        return result
    setattr(owner, name, patched)

async def leave(path):
    store = SqliteStore(path)
    await store.open()
    await store.apply({"chat/1": b'{"n":1}', "chat/3": b'{"n":1}'})
    if is_marked:
        path.rename(path.with_name("other.db"))
    await store.rescue({"chat/1": b'{"n":2}', "chat/2": b'{"n":2}', "chat/3": None})
    if is_marked:
        path.with_name("other.db").rename(path)

async def start(path):
    persistence = KVPersistence(path)
    found = await persistence.get_chat_data()
    await persistence.flush()
    return found

def die(path):
    for name in ("fsync", "fchmod"):
        around(os, name)
    for name in ("replace", "unlink"):
        around(Path, name)
    words = ("BEGIN", "COMMIT", "SAVEPOINT", "RELEASE", "INSERT", "DELETE")
    around(FileConnection, "execute", lambda _, sql, *more: sql.split()[0] in words)
    asyncio.run(start(path))

for stop in count(1):
    path = folder / str(stop) / "bot.db"
    path.parent.mkdir()
    asyncio.run(leave(path))
    pid = os.fork()
    if pid == 0:
        try:
            die(path)
        finally:
            os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, -9), status
    try:
        found = asyncio.run(start(path))
    except Exception as error:
        found = error
    if found != {1: {"n": 2}, 2: {"n": 2}} or path.with_name("bot.db-rescue").exists():
        print(f"killed at step {stop}: {found}")
    if status == 0:
        break
print(f"{stop - 1} steps")
"""
NEW = ["sync file", "rename", "sync folder"]
"""How a file gets its name so that it is there, whole, or not at all."""


@pytest.mark.parametrize("kind", ["plain", "marked"])
def test_a_start_that_is_killed_while_it_writes_what_was_left_loses_nothing(
    tmp_path: Path, kind: str
) -> None:
    """At every statement and every change of a file: the next start has all of it, by itself."""
    command = [sys.executable, "-c", STARTS, str(tmp_path), kind]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    *lost, steps = ran.stdout.splitlines() or [""]
    assert lost == [], ran.stderr
    assert int(steps.split()[0]) > 20, steps + ran.stderr


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is done that a power cut could undo, or do before its turn; SQLite's own is not here."""
    noted: list[str] = []

    def note(owner: object, name: str, word: Callable[..., str]) -> None:
        function = getattr(owner, name)

        def patched(*args: Any, **more: Any) -> Any:
            what = word(*args)
            result = function(*args, **more)
            noted.extend([what] if what else [])
            return result

        monkeypatch.setattr(owner, name, patched)

    note(os, "fsync", _what_is_synced)
    note(Path, "replace", lambda *_: "rename")
    note(Path, "unlink", lambda path: "remove" if path.exists() else "")
    note(FileConnection, "execute", lambda _, sql, *__: "commit" if sql == "COMMIT" else "")
    return noted


def _what_is_synced(descriptor: int) -> str:
    return "sync folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "sync file"


async def leave(path: Path, *, is_marked: bool) -> SqliteStore:
    """Return a store that has left a row, of a file that is back where it was, if it is marked."""
    store = SqliteStore(path)
    await store.open()
    if is_marked:
        path.rename(path.with_name("other.db"))
    await store.rescue({"chat/1": b"1"})
    if is_marked:
        path.with_name("other.db").rename(path)
    return store


@pytest.mark.parametrize("is_marked", [False, True])
async def test_each_step_is_on_the_disk_before_the_next(
    bot_db: Path, steps: list[str], *, is_marked: bool
) -> None:
    """The rows before their name, that before the commit, that before they are removed."""
    store = await leave(bot_db, is_marked=is_marked)
    assert steps == NEW
    steps.clear()
    await store.open()
    assert steps == [*(NEW if is_marked else []), "commit", "remove", "sync folder"]
    await store.close()
    assert stored(bot_db) == {"chat/1": 1}


@pytest.mark.parametrize("is_marked", [False, True])
async def test_a_commit_that_is_refused_leaves_the_rows_as_they_were(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch, *, is_marked: bool
) -> None:
    """Nothing was written then, so that they are still of the file that they were of."""
    store = await leave(bot_db, is_marked=is_marked)
    place = bot_db.with_name("bot.db-rescue")
    before = place.read_bytes()
    execute = FileConnection.execute

    def refuse(connection: FileConnection, sql: str, *more: Any) -> sqlite3.Cursor:
        if sql == "COMMIT":
            raise sqlite3.OperationalError("database or disk is full")
        return execute(connection, sql, *more)

    with monkeypatch.context() as patch:
        patch.setattr(FileConnection, "execute", refuse)
        with pytest.raises(OpenError, match="full"):
            await store.open()
    assert place.read_bytes() == before
    assert stored(bot_db) == {}
    await store.open()
    await store.close()
    assert stored(bot_db) == {"chat/1": 1}
