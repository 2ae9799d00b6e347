"""Faults that a test has a real file suffer from."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

from kvpersist.stores.sqlite_file import open_file

LOCKER: Final = """
import sqlite3, sys
locker = sqlite3.connect(sys.argv[1], isolation_level=None)
locker.execute("BEGIN IMMEDIATE")
print("begun", flush=True)
input()
"""
ONE_READER: Final = """
import sqlite3, sys
reader = sqlite3.connect(sys.argv[1], isolation_level=None)
reader.execute("BEGIN")
reader.execute("SELECT count(*) FROM documents").fetchall()
print("begun", flush=True)
input()
"""
READERS_IN_TURNS: Final = """
import sqlite3, sys
readers = [sqlite3.connect(sys.argv[1], isolation_level=None) for _ in range(2)]
turn = 0
while True:
    readers[turn % 2].execute("BEGIN")
    readers[turn % 2].execute("SELECT count(*) FROM documents").fetchall()
    if turn:
        readers[(turn - 1) % 2].execute("COMMIT")
    if turn == 1:
        print("begun", flush=True)
    turn += 1
"""
"""There is no moment at which nobody reads."""
_NOBODY: Final = 65534


def locked_by_another_program(path: Path) -> AbstractContextManager[None]:
    """Have another process hold the write lock of a database."""
    return _another_program(path, LOCKER)


def read_by_another_program(path: Path, code: str = ONE_READER) -> AbstractContextManager[None]:
    """Have another process read a database."""
    return _another_program(path, code)


@contextmanager
def _another_program(path: Path, code: str) -> Iterator[None]:
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "begun\n"
        try:
            yield
        finally:
            program.kill()


@contextmanager
def quota(size: int) -> Iterator[None]:
    """Let no file of this process grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def unprivileged() -> Iterator[None]:
    """Let this process do no more than a user who is not root, also if it is root's."""
    was = os.getresuid()
    if 0 in was:
        os.setresuid(_NOBODY, _NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(*was)


def transaction(number: int) -> dict[str, bytes | None]:
    """Return rows that must agree; one comes and goes, one has several pages."""
    return {
        "chat/1": b'{"n":%d,"text":"%s"}' % (number, b"x" * (number * 4000 % 9000)),
        "chat/2": b'{"n":%d}' % number,
        "chat/3": b'{"n":%d}' % number if number % 2 else None,
        f"user/{number}": b'{"n":%d}' % number,
    }


def rows_of_a_sound_file(path: Path) -> dict[str, bytes]:
    """Open what a fault has left, as a bot does, and return its rows."""
    connection = open_file(str(path), 0)
    try:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return dict(connection.execute("SELECT key, CAST(value AS BLOB) FROM documents"))
    finally:
        connection.execute("PRAGMA synchronous = OFF")  # it takes long, and nobody needs it
        connection.close()
