"""A copy of a SQLite file, made while a bot writes to it.

It is SQLite's online backup, a number of pages at a time, on a thread and a connection of its own.
That connection holds one read transaction from the beginning to the end: so the copy is of one
moment, and is not begun anew whenever the bot writes (https://sqlite.org/backup.html). In WAL mode
a reader holds up nobody. The copy is looked through before it gets its name, since pages are copied
as they are, damaged or not. ``VACUUM INTO`` would hold the same transaction, but it cannot tell how
far it is, nor be ended in between, and it writes everything anew where copied pages are enough.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import tempfile
import threading
from collections.abc import Callable
from contextlib import closing
from inspect import iscoroutinefunction
from pathlib import Path
from typing import Final, TypeAlias

from kvpersist.errors import BackupError, ConfigurationError, OpenError
from kvpersist.stores.daemon import begin_in_daemon
from kvpersist.stores.files import sync
from kvpersist.stores.sqlite_damage import advice, is_damage
from kvpersist.stores.sqlite_schema import TABLES

Progress: TypeAlias = Callable[[int, int], object]
"""Takes the number of pages that were copied, and of pages in all."""

_STEP_PAGES: Final = 256
_STEP_INSTRUCTIONS: Final = 100_000
"""Of SQLite's machine, after which it is asked whether the check is to go on."""
PREFIX: Final = ".kvpersist-"
"""How the name of a copy begins that is not whole; one that was killed may be removed."""


async def back_up(
    connect: Callable[[], sqlite3.Connection], name: str, progress: Progress | None
) -> None:
    """Copy what `connect`, called in a thread, connects to for reading into a new file `name`.

    If it is cancelled the copying ends first, and leaves nothing. Raises what `SqliteStore.backup`
    says.
    """
    check_progress(progress)
    copy = _Copy(connect, name, progress)
    # Not a task, which a program that ends would cancel with all others.
    copying = begin_in_daemon(copy.make, lambda _: None)
    copying.add_done_callback(lambda done: done.exception())  # if nobody asks for it any more
    try:
        await asyncio.shield(copying)
    except asyncio.CancelledError:
        copy.stopped.set()
        await asyncio.wait([copying])
        raise
    except _StoppedError as stopped:
        raise (copy.failure or stopped) from None


def check_progress(progress: object) -> None:
    """Raise ConfigurationError unless it can be called, and does all it does then; or is None."""
    if progress is not None and (not callable(progress) or iscoroutinefunction(progress)):
        raise ConfigurationError(f"progress must be a function, not async, not {progress!r}")


class _StoppedError(Exception):
    """Nobody waits for the copy any more."""


class _Copy:
    """One copy. `make` blocks."""

    def __init__(
        self, connect: Callable[[], sqlite3.Connection], name: str, progress: Progress | None
    ) -> None:
        self._connect = connect
        self._name = name
        self._progress = progress
        self._source = ""
        self.stopped = threading.Event()
        self.failure: BaseException | None = None
        """What the caller's function raised."""

    def make(self) -> None:
        try:
            name = Path(self._name)
            path = Path(os.path.realpath(name.parent), name.name)
            _check_free(path)
            self._write(path)
        except (sqlite3.Error, OSError, ValueError, OpenError) as error:
            what_to_do = (
                "name a file in a folder that exists, on a disk that has room and hard links"
            )
            if is_damage(error):
                what_to_do = f"{self._source}: {advice(self._source)}"
            raise BackupError(f"{self._name} was not written: {error}; {what_to_do}") from error

    def _write(self, path: Path) -> None:
        descriptor, name = tempfile.mkstemp(prefix=PREFIX, dir=path.parent)  # its mode is 0600
        os.close(descriptor)
        temporary = Path(name)
        try:
            self._copy_pages(temporary)
            self._check(temporary)
            sync(temporary)
            self._go_on()
            _publish(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_name(path)

    def _copy_pages(self, temporary: Path) -> None:
        with closing(self._connect()) as source, closing(sqlite3.connect(temporary)) as target:
            # Nobody sees the file before it is whole, so that it needs no journal beside it.
            target.execute("PRAGMA journal_mode = OFF")
            target.execute("PRAGMA synchronous = OFF")
            ((_, _, self._source),) = source.execute("PRAGMA database_list").fetchall()
            source.execute("BEGIN")
            source.execute("SELECT 1 FROM documents LIMIT 1").fetchall()  # begins to read
            source.backup(target, pages=_STEP_PAGES, progress=self._tell)

    def _check(self, temporary: Path) -> None:
        """Raise if the copy, which must get no log, is damaged: also where no table is."""
        uri = f"{temporary.as_uri()}?immutable=1"
        with closing(sqlite3.connect(uri, uri=True)) as copy:
            copy.set_progress_handler(self.stopped.is_set, _STEP_INSTRUCTIONS)
            try:
                _check_by(copy, "PRAGMA integrity_check")
            except sqlite3.OperationalError:
                # Tables of others may need functions that nobody has here. Asked for the schema
                # SQLite looks through the free pages too (https://sqlite.org/pragma.html).
                for table in ("sqlite_master", *TABLES):
                    _check_by(copy, f"PRAGMA integrity_check({table})")

    def _tell(self, _: int, remaining: int, total: int) -> None:
        self._go_on()
        if self._progress is not None:
            try:
                self._progress(total - remaining, total)
            except BaseException as error:
                self.failure = error
                raise _StoppedError from error

    def _go_on(self) -> None:
        if self.stopped.is_set():
            raise _StoppedError


def _check_by(copy: sqlite3.Connection, pragma: str) -> None:
    (found,), *_ = copy.execute(pragma).fetchall()
    if found != "ok":
        raise sqlite3.DatabaseError(f"malformed: {found}")


def _check_free(path: Path) -> None:
    """Raise if a file is in the way, or would be taken for a part of the copy."""
    for taken in (path, *(Path(f"{path}-{end}") for end in ("wal", "journal", "rescue"))):
        if os.path.lexists(taken):
            raise _taken(taken)


def _taken(path: Path) -> BackupError:
    return BackupError(f"{path} exists, and is not overwritten; name a new file")


def _publish(temporary: Path, path: Path) -> None:
    """Give the copy its name, unless there is a file of that name by now."""
    try:
        os.link(temporary, path)
    except FileExistsError as error:
        raise _taken(path) from error


def _sync_name(path: Path) -> None:
    """Have the name of a new file on the disk, or no file."""
    try:
        sync(path.parent)
    except BaseException:
        path.unlink()
        raise
