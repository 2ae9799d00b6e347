"""Seeing that an open SQLite file, or what lies beside it, is not where it was.

What is written to a file that was removed, or renamed, no start will find; nor what is in a log
that was removed (https://sqlite.org/howtocorrupt.html, 4.2). Without the wal-index other programs
make one of their own, and so wait for no lock of this one's. SQLite does not look. As long as it is
open a file is known by its device and number, as SQLite knows it where it does look, in rollback
mode; once it is closed the number may be given to another.
"""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from typing import Final, TypeAlias

_Identity: TypeAlias = tuple[int, int]
RESTART: Final = "while the bot has it open; put it back where it was, or restart the bot"


class MovedError(sqlite3.OperationalError):
    """The file, or what lies beside it, is not where a start would look for it.

    Attributes:
        is_beside: The file is in its place. What is gone comes back when it is opened anew.
    """

    def __init__(self, reason: str, *, is_beside: bool = False) -> None:
        super().__init__(reason)
        self.is_beside = is_beside


class LockRemovedError(sqlite3.OperationalError):
    """The lock that keeps a second bot out is not where that one would look for it."""


class Place:
    """Knows which file was at `path` when this was made, and what was beside it when noted.

    Attributes:
        log: The path of the log.
        log_size: How many bytes it had when `check` was last called.

    Raises:
        OSError: There is no file.
    """

    def __init__(self, path: Path) -> None:
        # Texts, because os.stat of a Path takes twice as long, and each commit pays for it.
        self._file = os.fspath(path)
        self.log = f"{self._file}-wal"
        self.log_size = 0
        self._wal_index = f"{self._file}-shm"
        self._file_was = _identity(os.stat(self._file))  # noqa: PTH116  a Path takes twice as long
        self._log_was: _Identity | None = None
        self._wal_index_was: _Identity | None = None

    def note_beside(self) -> None:
        """Note which log and which wal-index there are, after SQLite has opened them.

        Raises:
            OSError: One of them is missing.
        """
        self._log_was = _identity(os.stat(self.log))  # noqa: PTH116  as above
        self._wal_index_was = _identity(os.stat(self._wal_index))  # noqa: PTH116  as above

    def check(self) -> None:
        """Raise MovedError unless all of them are where they were."""
        self.check_file()
        _check_beside(self._wal_index, self._wal_index_was)
        self.log_size = _check_beside(self.log, self._log_was).st_size

    def check_file(self) -> None:
        """Raise MovedError unless the file is where it was; a log belongs to one that is open."""
        found = _found(self._file)
        if found is None:
            raise MovedError(f"{self._file} was removed, or renamed, {RESTART}")
        if _identity(found) != self._file_was:
            raise MovedError(f"{self._file} was replaced by another file {RESTART}")


def is_unavailable(error: Exception) -> bool:
    """Whether no row can be written now, whichever it is."""
    return isinstance(error, MovedError) or "locked" in str(error)


def _check_beside(path: str, was: _Identity | None) -> os.stat_result:
    found = _found(path)
    if found is None or _identity(found) != was:
        raise MovedError(
            f"{path} was removed while the bot has it open; leave it alone", is_beside=True
        )
    return found


def _identity(found: os.stat_result) -> _Identity:
    return found.st_dev, found.st_ino


def _found(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116  a Path takes twice as long
    except OSError:
        return None
