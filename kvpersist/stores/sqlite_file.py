"""Opening a kvpersist file: whose it is, that nobody else has it, its schema. All of it blocks."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from kvpersist.errors import NewerSchemaError, NotAStoreError, OpenError, StoreInUseError
from kvpersist.stores.file_lock import FileLock
from kvpersist.stores.sqlite_watch import WalIndex, watch

APPLICATION_ID: Final = int.from_bytes(b"kvps", "big")
"""Tells kvpersist's files from all others (https://sqlite.org/fileformat2.html#application_id)."""

SCHEMA_VERSION: Final = 1
"""The ``user_version`` of the files that this code writes."""

_SCHEMA: Final = f"""
    BEGIN EXCLUSIVE;
    CREATE TABLE documents (
        key TEXT NOT NULL PRIMARY KEY,
        value TEXT NOT NULL,
        version INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    );
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {SCHEMA_VERSION};
    COMMIT;
"""

_WAL: Final = "PRAGMA journal_mode = WAL"


class FileConnection(sqlite3.Connection):
    """A connection that owns its file, and whose ``executemany`` is a transaction of its own.

    aiosqlite hands every call to its thread separately. BEGIN, the rows and COMMIT in one call cost
    one hop instead of four, and a caller that is cancelled in between leaves no transaction open.
    """

    _ownership: FileLock
    _wal_index: WalIndex | None = None
    seen: tuple[bytes | None, int] = (None, 0)
    """The wal-index as it was when, after the last transaction, SQLite gave this data_version."""

    def own(self, ownership: FileLock) -> None:
        """Take `ownership`, which is given up when this connection is closed, and not before."""
        self._ownership = ownership

    def watch(self, path: Path) -> None:
        """Begin to look for commits of other programs."""
        self.look()  # which makes SQLite create the wal-index
        self._wal_index = watch(path)
        self.look()

    def header(self) -> bytes | None:
        """Return what differs after each commit of whomever; None where that cannot be seen.

        Any thread may call it while the connection is open. It does not block.
        """
        return self._wal_index.header() if self._wal_index else None

    def look(self) -> None:
        """Note whether another program has written since this was last called: see `seen`."""
        header = self.header()  # before SQLite is asked, so that no commit is in neither
        ((version,),) = self.execute("PRAGMA data_version").fetchall()
        self.seen = header, version

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """Run the statements in `sql`, separated by ``;``, each with its own rows of parameters."""
        # Closed, because the cursor lives on in an exception's traceback, and would keep the file.
        with self, closing(self.cursor()) as cursor:
            cursor.execute("BEGIN IMMEDIATE")
            for statement, rows in zip(sql.split(";"), parameters, strict=True):
                cursor.executemany(statement, rows)
        self.look()
        return cursor

    def close(self) -> None:
        """Truncate the write-ahead log if nobody is reading, close, let others have the file."""
        # A log that cannot be moved now (disk full) is as durable as the file; the next start will.
        with suppress(sqlite3.Error):
            self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        try:
            super().close()
        finally:
            wal_index, self._wal_index = self._wal_index, None  # this may be called twice
            if wal_index is not None:
                wal_index.close()
            self._ownership.release()


def open_file(name: str, busy_timeout: float) -> FileConnection:
    """Open the kvpersist file `name`, or make it one when it does not exist or has 0 bytes.

    `busy_timeout` is in seconds. Raises what `SqliteStore.open` says.
    """
    try:
        path = Path(os.path.realpath(name))
        _check_place(path)
        if not _lock_of(path).exists():  # a file that is not ours gets no lock beside it
            _is_new(path, busy_timeout)
        ownership = _take_ownership(path)
        try:
            return _connect(path, ownership, busy_timeout, is_new=_is_new(path, busy_timeout))
        except BaseException:
            ownership.release()
            raise
    except (sqlite3.Error, OSError, ValueError) as error:
        raise OpenError(f"{name} cannot be opened: {error}; name a file on a local disk") from error


def open_reader(name: str, busy_timeout: float) -> sqlite3.Connection:
    """Open for reading a file that `open_file` has open. `busy_timeout` is in seconds."""
    uri = f"{Path(os.path.realpath(name)).as_uri()}?mode=ro"
    try:
        connection = sqlite3.connect(
            uri, uri=True, timeout=busy_timeout, isolation_level=None, check_same_thread=False
        )
        connection.execute("PRAGMA trusted_schema = OFF")
    except sqlite3.Error as error:
        raise OpenError(f"{name} cannot be opened: {error}") from error
    return connection


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise OpenError(f"{path} is a directory; name a file in it, for example {path / 'bot.db'}")
    if not path.parent.is_dir():
        raise OpenError(f"the folder {path.parent} does not exist; make it first")
    # The folder too, because SQLite keeps the write-ahead log beside the file.
    for place in filter(os.path.exists, (path.parent, path)):
        if not os.access(place, os.R_OK | os.W_OK):  # pragma: no cover  seen by another user
            raise OpenError(f"no permission to read and write {place}; whose is it, and who runs?")


def _is_new(path: Path, busy_timeout: float) -> bool:
    """Return whether there is no database at `path` yet; raise if there is one of others."""
    if not path.exists():
        return True
    try:
        with closing(_connect_to_look(path, busy_timeout)) as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            objects = connection.execute("SELECT type, name FROM sqlite_master").fetchall()
    except sqlite3.DatabaseError as error:
        if "not a database" in str(error):
            raise NotAStoreError(
                f"{path} is not a SQLite file, nor one of kvpersist's (PicklePersistence's files "
                "are none); name another file"
            ) from error
        raise
    if pages == 0:
        return True
    if application_id != APPLICATION_ID:
        raise NotAStoreError(f"{path} is another program's SQLite file; name another file")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{path} has schema {version}, this kvpersist knows {SCHEMA_VERSION}; update kvpersist"
        )
    if ("table", "documents") not in objects:
        raise OpenError(f"{path} has no table documents; restore it from a backup")
    return False


def _connect_to_look(path: Path, busy_timeout: float) -> sqlite3.Connection:
    """Connect in the way that leaves the file, and what lies beside it, as they are.

    Another program's last commits may be in its write-ahead log alone.
    """
    if Path(f"{path}-journal").exists():
        _check_journal(path)
        mode = "mode=rw"  # a journal can only be rolled back by a connection that may write
    elif Path(f"{path}-wal").exists():
        mode = "mode=ro"
    else:
        mode = "immutable=1"
    return sqlite3.connect(f"{path.as_uri()}?{mode}", uri=True, timeout=busy_timeout)


def _check_journal(path: Path) -> None:
    """Raise if a transaction of another program was cut off: opening the file would roll it back.

    kvpersist uses a journal only while it creates a file. The journal says how many pages there
    were before, none then (https://sqlite.org/fileformat2.html#the_rollback_journal).
    """
    try:
        pages_before = int.from_bytes(Path(f"{path}-journal").read_bytes()[16:20], "big")
    except FileNotFoundError:  # pragma: no cover  the transaction has ended just now
        return
    with path.open("rb") as file:
        application_id = int.from_bytes(file.read(72)[68:], "big")
    if pages_before and application_id != APPLICATION_ID:
        raise NotAStoreError(f"{path} is another program's SQLite file; name another file")


def _lock_of(path: Path) -> Path:
    return Path(f"{path}-lock")


def _take_ownership(path: Path) -> FileLock:
    """Lock a file beside the database: a lock on the database itself would keep readers out."""
    try:
        return FileLock(_lock_of(path))
    except BlockingIOError as error:
        raise StoreInUseError(
            f"another bot has {path} open, in this process or another; stop it first, or give each "
            "bot a file of its own"
        ) from error


def _connect(
    path: Path, ownership: FileLock, busy_timeout: float, *, is_new: bool
) -> FileConnection:
    if is_new:
        _create_private(path)
    connection = sqlite3.connect(
        path,
        timeout=busy_timeout,
        isolation_level=None,
        factory=FileConnection,
        check_same_thread=False,  # opened by one thread, used by aiosqlite's
    )
    connection.own(ownership)
    try:
        connection.execute("PRAGMA trusted_schema = OFF")
        if is_new:
            # Before the write-ahead log: or the application_id might so far be in the log alone.
            connection.executescript(_SCHEMA)
        (mode,) = connection.execute(_WAL).fetchone()
        if mode != "wal":
            raise OpenError(f"{path} lies on a file system without write-ahead logs ({mode})")
        connection.execute("PRAGMA synchronous = FULL")
        connection.watch(path)
    except BaseException:
        sqlite3.Connection.close(connection)
        raise
    return connection


def _create_private(path: Path) -> None:
    """Create an empty file that its owner alone may read; SQLite gives -wal and -shm its mode."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        path.chmod(0o600)
        return
    try:
        os.fchmod(descriptor, 0o600)  # whatever the umask took away
    finally:
        os.close(descriptor)
