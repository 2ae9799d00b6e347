"""What can still be read of a damaged SQLite file. It is looked at, and never written to."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from typing import Final

from kvpersist.errors import OpenError, some_of

_MOST_ROWS: Final = 100_000
_SHOWN_LENGTH: Final = 60
# From both ends of the table, and of its index: what is damaged in the middle of one of them ends
# two of these ways. A row is then read by its number, for which no index is needed.
_WAYS: Final = (
    "SELECT rowid, key FROM documents ORDER BY key",
    "SELECT rowid, key FROM documents ORDER BY key DESC",
    "SELECT rowid, key FROM documents NOT INDEXED ORDER BY rowid",
    "SELECT rowid, key FROM documents NOT INDEXED ORDER BY rowid DESC",
)


def is_damage(error: BaseException) -> bool:
    """Whether SQLite says that the file is damaged (https://sqlite.org/rescode.html#corrupt)."""
    return isinstance(error, sqlite3.DatabaseError) and "malformed" in str(error)


def advice(path: str) -> str:
    """Return what to do with a damaged file."""
    return (
        f"it is damaged; stop the bot, look with `sqlite3 {path} 'PRAGMA integrity_check'`, then "
        f"restore it from a backup, after {path} and all that is beside it, but -rescue, was moved "
        "away, or its log would be applied to the backup; or save what can be read with `.dump`, "
        "whose ROLLBACK at the end is to be COMMIT"
    )


def survey(connect: Callable[[], sqlite3.Connection]) -> str:
    """Say which rows can be read, of those whose keys can be found, up to 100,000. It blocks."""
    found: dict[int, str] = {}
    unreadable: list[str] = []
    with suppress(sqlite3.Error, OpenError), closing(connect()) as connection:
        for way in _WAYS:
            with suppress(sqlite3.Error):
                for rowid, key in connection.execute(f"{way} LIMIT {_MOST_ROWS}"):
                    found[rowid] = str(key)
        for rowid, key in found.items():
            if not _is_readable(connection, rowid):
                unreadable.append(key)
    return _sentence(len(found), sorted(unreadable))


def _is_readable(connection: sqlite3.Connection, rowid: int) -> bool:
    sql = "SELECT CAST(value AS BLOB) FROM documents WHERE rowid = ?"
    try:
        return connection.execute(sql, (rowid,)).fetchone() is not None
    except sqlite3.Error:
        return False


def _sentence(found: int, unreadable: list[str]) -> str:
    said = f"{found - len(unreadable)} of the {found} rows that were found can be read"
    if not unreadable:
        return said
    return f"{said}, not {some_of([key[:_SHOWN_LENGTH] for key in unreadable])}"
