"""Opening a kvpersist file: whose it is, that nobody else has it, its schema. All of it blocks."""

from __future__ import annotations

import hashlib
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Final

from kvpersist.errors import NotAStoreError, OpenError, StoreInUseError
from kvpersist.stores import rescue
from kvpersist.stores.file_lock import FileLock
from kvpersist.stores.files import open_regular
from kvpersist.stores.sqlite_backup import PREFIX
from kvpersist.stores.sqlite_damage import advice, is_damage
from kvpersist.stores.sqlite_log import LOG_LIMIT, LogLimit, empty_log
from kvpersist.stores.sqlite_place import (
    RESTART,
    LockRemovedError,
    MovedError,
    Place,
    is_unavailable,
)
from kvpersist.stores.sqlite_schema import ADD_MISSING, APPLICATION_ID, SCHEMA, check_schema
from kvpersist.stores.sqlite_watch import WalIndex, watch

_LOGGER = logging.getLogger("kvpersist")

_WAL: Final = "PRAGMA journal_mode = WAL"
_STATE: Final = "SELECT CAST(key AS BLOB), version, updated_at FROM documents ORDER BY rowid"
_IMPATIENCE: Final = 100
"""Milliseconds that a write waits for locks after one was refused, until one succeeds."""
# No setting can be relied on to be SQLite's default: it may have been built with another.
_DEFENCES: Final = (
    "PRAGMA trusted_schema = OFF",
    "PRAGMA cell_size_check = ON",  # a damaged page is found when it is read
    "PRAGMA foreign_keys = OFF",  # a table of somebody else's may refer to documents
)


class FileConnection(sqlite3.Connection):
    """A connection that owns its file, and whose ``executemany`` is a transaction of its own.

    aiosqlite hands every call to its thread separately. BEGIN, the rows and COMMIT in one call cost
    one hop instead of four, and a caller that is cancelled in between leaves no transaction open.
    """

    place: Place
    """Where the file was when it was opened."""
    _ownership: FileLock
    _alone: threading.Lock
    _log_limit: LogLimit
    _patience: int
    _is_patient = True
    _is_closed = False
    _is_lost = False
    _wal_index: WalIndex | None = None
    is_coming_back = False
    """Whether it is closed only to be opened anew at once, so that `last_state` is to be noted."""
    last_state: str | None = None
    """The `state` in which the file must be found again, if it is not where it was."""
    copies = 0
    """How many backups are being made."""
    seen: tuple[bytes | None, int] = (None, 0)
    """The wal-index as it was when, after the last transaction, SQLite gave this data_version."""

    def own(self, ownership: FileLock, place: Place) -> None:
        """Take `ownership`, which is given up when this connection is closed, and not before."""
        self._ownership = ownership
        self._alone = threading.Lock()
        self._log_limit = LogLimit()
        ((self._patience,),) = self.execute("PRAGMA busy_timeout").fetchall()
        self.place = place

    def watch(self, path: Path) -> None:
        """Begin to look for commits of other programs."""
        self.look()  # which makes SQLite create the log and its wal-index
        self.place.note_beside()
        self._wal_index = watch(path)
        self.look()

    def header(self) -> bytes | None:
        """Return what differs after each commit of whomever; None where that cannot be seen.

        Any thread may call it while the connection is open. It does not block.
        """
        return self._wal_index.header() if self._wal_index else None

    def look_from_outside(self) -> None:
        """Do `look`, in any thread, while no other one uses this connection.

        It is this one that is asked, because it tells the commits of others from its own. SQLite
        would refuse to empty the log meanwhile, as if another program were reading.

        Raises:
            sqlite3.Error: SQLite's.
        """
        with self._alone:
            if self._is_closed:  # and so is its wal-index, whose descriptor may be another file's
                raise sqlite3.ProgrammingError("the file was closed meanwhile")
            self.look()

    def look(self) -> None:
        """Note whether another program has written since this was last called: see `seen`."""
        header = self.header()  # before SQLite is asked, so that no commit is in neither
        ((version,),) = self.execute("PRAGMA data_version").fetchall()
        self.seen = header, version

    def executemany(self, sql: str, parameters: Iterable[Any], /) -> sqlite3.Cursor:
        """Run the statements in `sql`, separated by ``;``, each with its own rows of parameters.

        Raises:
            MovedError: It was not done in a file that a start would find. Or it was, but what is
                beside it is gone: then all is in the file, which has to be opened anew first.
            LockRemovedError: Nothing was done: another bot may have the file.
        """
        with self._alone:
            return self._execute_many(sql, parameters)

    def _execute_many(self, sql: str, parameters: Iterable[Any]) -> sqlite3.Cursor:
        is_owned = self._ownership.is_in_place()  # or a second bot's rows might be overwritten
        if self._is_lost or not is_owned:
            self._check(self.place.check_file)
        if not is_owned:
            raise LockRemovedError(_LOCK_REMOVED.format(self._ownership.path))
        try:
            # Closed, as the cursor lives on in an exception's traceback, and would keep the file.
            with self, closing(self.cursor()) as cursor:
                cursor.execute("BEGIN IMMEDIATE")
                for statement, rows in zip(sql.split(";"), parameters, strict=True):
                    cursor.executemany(statement, rows)
        except sqlite3.Error as error:
            if is_unavailable(error):
                self._wait_for_locks(is_patient=False)
            raise
        if not self._is_patient:
            self._wait_for_locks(is_patient=True)
        self.look()
        self._check(self.place.check)
        self._keep_log_small()
        return cursor

    def _wait_for_locks(self, *, is_patient: bool) -> None:
        # Or each of the many that wait for a file that stays locked would wait as long again.
        self._is_patient = is_patient
        wait = self._patience if is_patient else min(self._patience, _IMPATIENCE)
        self.execute(f"PRAGMA busy_timeout = {wait}").fetchall()

    def _keep_log_small(self) -> None:
        # No write waits for a copy, which would not end within that time anyway.
        if not self.copies and self._log_limit.keep(self, self.place.log, self.place.log_size):
            self.look()

    def _check(self, check: Callable[[], None]) -> None:
        self._is_lost = True
        try:
            check()
        except MovedError as error:
            if not error.is_beside:
                self.last_state = self.last_state or self.state()
            # The log must be in its own file before it is lost, or found beside another.
            self._save_log(error)
            raise
        self._is_lost = False
        self.last_state = None

    def state(self) -> str:
        """Return what differs after whatever is written, also in another file of the same name.

        It is empty if that cannot be read, which is the state of no file.
        """
        digest = hashlib.sha256()
        try:
            for row in self.execute(_STATE):
                digest.update(repr(row).encode())
        except sqlite3.Error:
            return ""
        return digest.hexdigest()

    def rescue(self, path: str, changes: Mapping[str, bytes | None]) -> Path:
        """Leave rows beside the file for as long as it is owned. Any thread may call it.

        Raises:
            OSError, ValueError: They were not left.
        """
        with self._alone:
            if self._is_closed:
                raise ValueError("the file was closed meanwhile")
            if not self._ownership.is_in_place():
                self.last_state = ""  # what a second bot has written by now cannot be told
                raise ValueError(_LOCK_REMOVED.format(self._ownership.path))
            with suppress(MovedError):
                self._check(self.place.check_file)
            return rescue.leave(rescue.place_of(path), changes, self.last_state)

    def save_log(self) -> None:
        """Move a log that no start would find into the file. Any thread may call it.

        Raises:
            MovedError: That cannot be done now: what it holds would be lost with this connection.
        """
        with self._alone:
            try:
                self.place.check()
            except MovedError as error:
                self._save_log(error)

    def _save_log(self, why: MovedError) -> None:
        if not empty_log(self):
            raise MovedError(f"{why}. {_NOT_SAVED}") from why

    def close(self) -> None:
        """Truncate the write-ahead log if nobody is reading, close, let others have the file."""
        with self._alone:
            if self._is_closed:
                return
            self._say_if_lost(is_saved=empty_log(self))
            if self.is_coming_back:
                self.last_state = self.last_state or self.state()
            self._is_closed = True
            try:
                super().close()
            finally:
                if self._wal_index is not None:
                    self._wal_index.close()
                self._ownership.release()

    def _say_if_lost(self, *, is_saved: bool) -> None:
        # Nobody is left to raise an error to.
        try:
            self.place.check()
        except MovedError as error:
            if not (is_saved and error.is_beside):
                gone = _GONE if is_saved else "What was written last is lost"
                _LOGGER.error("%s. %s", error, gone)  # noqa: TRY400  no traceback


_GONE: Final = "It is closed now: what was in it is gone, unless it has another name"
_LOCK_REMOVED: Final = (
    "{} was removed while the bot has it open; leave it alone: it keeps a second bot out"
)
_NOT_SAVED: Final = (
    "What was in its log is not saved yet, because a backup or another program is reading: let "
    "that end, or the disk is full: make room; then write, or close, again"
)


def real_path(name: str) -> str:
    """Return where a file really is, whatever becomes of symlinks and the working directory.

    Raises:
        OpenError: It is no path.
    """
    try:
        return os.path.realpath(name)
    except (OSError, ValueError) as error:
        raise OpenError(
            f"{name!r} cannot be opened: {error}; {_what_to_do(name, error)}"
        ) from error


def open_file(name: str, busy_timeout: float, state: str | None = None) -> FileConnection:
    """Open the kvpersist file `name`, or make it one when it does not exist or has 0 bytes.

    `name` is a `real_path`. `busy_timeout` is in seconds. If `state` is given, the file
    must be in that state. Raises what `SqliteStore.open` says.
    """
    path = Path(name)
    try:
        if state is not None and not path.exists():
            _check_alone(path, state)
        _check_place(path)
        _check_log(path)  # before anything connects: SQLite removes a log that has no file
        if not _lock_of(path).exists():  # a file that is not ours gets no lock beside it
            _is_new(path, busy_timeout)
        ownership = _take_ownership(path)
        try:
            is_new = _is_new(path, busy_timeout)
            if is_new:
                _check_alone(path, state)
            return _connect(path, ownership, busy_timeout, state, is_new=is_new)
        except BaseException:
            ownership.release()
            raise
    except (sqlite3.Error, OSError, ValueError) as error:
        raise OpenError(f"{name} cannot be opened: {error}; {_what_to_do(name, error)}") from error


def _what_to_do(name: str, error: Exception) -> str:
    if is_damage(error):
        return advice(name)
    if isinstance(error, PermissionError):
        return _WHOSE
    found = (what for words, what in _ADVICE.items() if words in str(error).lower())
    return next(found, "name a file on a local disk")


_WHOSE: Final = "see whose it is, who runs the bot, and whether the file system is read-only"
_ADVICE: Final = {
    "readonly": _WHOSE,
    "full": "make room on the disk",
    "locked": "end the other program's transaction",
    "null": "take the NUL out of its name",
    "too long": "give it, or its folder, a shorter name",
    "i/o error": "see what the system's log says of the disk; name a file on a local one",
}


def defend(connection: sqlite3.Connection) -> None:
    """Have SQLite trust nothing that is in the file."""
    for pragma in _DEFENCES:
        connection.execute(pragma)


def open_reader(name: str, busy_timeout: float) -> sqlite3.Connection:
    """Open for reading a file that `open_file` has open. `busy_timeout` is in seconds."""
    uri = f"{Path(name).as_uri()}?mode=ro"
    try:
        connection = sqlite3.connect(
            uri, uri=True, timeout=busy_timeout, isolation_level=None, check_same_thread=False
        )
        defend(connection)
    except sqlite3.Error as error:
        raise OpenError(f"{name} cannot be opened: {error}") from error
    return connection


def _check_place(path: Path) -> None:
    if path.is_dir():
        raise OpenError(f"{path} is a directory; name a file in it, for example {path / 'bot.db'}")
    if not path.parent.is_dir():
        raise OpenError(f"the folder {path.parent} does not exist; make it first")
    # The folder too, because SQLite keeps the write-ahead log beside the file. An earlier run, as
    # another user, may have left one.
    for place in (path.parent, path, Path(f"{path}-wal"), Path(f"{path}-shm")):
        if _is_denied(place):
            raise OpenError(f"no permission to read and write {place}; {_WHOSE}")
    for end in ("wal", "shm", "journal", "lock", "rescue"):
        if (place := Path(f"{path}-{end}")).is_symlink():
            raise OpenError(
                f"{place} is a symbolic link; see who has made it, then remove it: what belongs to "
                "the file is beside it, and a link may lead into the file of somebody else"
            )
    _check_names(path)
    rescue.check_name(str(path))


def _check_log(path: Path) -> None:
    """Raise if there is a log, but no file that it can be of: what is acknowledged may be in it."""
    log = Path(f"{path}-wal")
    # The log first: whoever creates the file at this moment has it written before there is a log.
    if _size(log) and not _size(path):
        raise OpenError(
            f"{path} is gone, or empty, and {log} holds what was written last; put back the file "
            f"that was here; if it is to be a backup of it, or a new one, move {log} away first"
        )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _check_names(path: Path) -> None:
    """Raise if the file has other names: each would have a log, a lock and an owner of its own."""
    names = path.stat().st_nlink if path.exists() else 1
    if names > 1:
        raise OpenError(
            f"{path} is one of {names} names of one file (hard links): a bot at each would lose "
            f"rows of the others; find them, with `find {path.parent} -samefile {path}` or in "
            "other folders, and remove all but one: the one with a -wal beside it, if there "
            f"is one. A name {PREFIX}… was left by a backup that was killed, and may be removed"
        )


def _is_denied(place: Path) -> bool:
    # Asked twice: whoever has the file open may create or remove the log at this moment.
    return not _is_ours(place) and place.exists() and not _is_ours(place)


def _is_ours(place: Path) -> bool:
    return os.access(place, os.R_OK | os.W_OK)


def _is_new(path: Path, busy_timeout: float) -> bool:
    """Return whether there is no database at `path` yet; raise if there is one of others."""
    if not path.exists():
        return True
    try:
        with closing(_connect_to_look(path, busy_timeout)) as connection:
            (pages,) = connection.execute("PRAGMA page_count").fetchone()
            if pages == 0:
                return True
            check_schema(path, connection)
    except sqlite3.DatabaseError as error:
        if "not a database" in str(error):
            raise NotAStoreError(
                f"{path} is not a SQLite file, nor one of kvpersist's (PicklePersistence's files "
                "are none); name another file. Or if it was one, its first page is damaged: "
                "restore it from a backup"
            ) from error
        raise
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
    journal = Path(f"{path}-journal")
    try:
        with open_regular(journal) as file:
            pages_before = int.from_bytes(file.read(20)[16:], "big")
    except FileNotFoundError:  # pragma: no cover  the transaction has ended just now
        return
    except ValueError as error:
        raise OpenError(f"{journal}: {error}; see who has made it, then remove it") from error
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
    path: Path, ownership: FileLock, busy_timeout: float, state: str | None, *, is_new: bool
) -> FileConnection:
    if is_new:
        _create_private(path)
    place = Place(path)  # before SQLite opens it: if another one comes between, no write counts
    connection = sqlite3.connect(
        path,
        timeout=busy_timeout,
        isolation_level=None,
        factory=FileConnection,
        check_same_thread=False,  # opened by one thread, used by aiosqlite's
    )
    connection.own(ownership, place)
    try:
        defend(connection)
        if is_new:
            # Before the write-ahead log: or the application_id might so far be in the log alone.
            connection.executescript(SCHEMA)
        elif state is not None:
            _check_state(path, connection, state)  # before anything in the file is changed
        (mode,) = connection.execute(_WAL).fetchone()
        if mode != "wal":
            raise OpenError(f"{path} lies on a file system without write-ahead logs ({mode})")
        connection.execute("PRAGMA synchronous = FULL")
        # One that has been larger is cut when it is begun anew; by itself SQLite only reuses it.
        connection.execute(f"PRAGMA journal_size_limit = {LOG_LIMIT}")
        connection.execute(ADD_MISSING)
        connection.watch(path)
    except BaseException:
        sqlite3.Connection.close(connection)
        raise
    return connection


def leave_beside(name: str, changes: Mapping[str, bytes | None], state: str | None) -> Path:
    """Leave rows beside a file that is not open; nobody must have it. See `rescue.add`.

    Raises:
        OpenError: Another bot has it.
        OSError, ValueError: They were not left.
    """
    ownership = _take_ownership(Path(name))
    try:
        return rescue.add(rescue.place_of(name), changes, state)
    finally:
        ownership.release()


def _check_alone(path: Path, state: str | None) -> None:
    """Raise if there was a file before the one that is to be created."""
    if state is not None:
        raise OpenError(f"{path} was removed, or renamed, {RESTART}")
    if os.path.lexists(left := rescue.place_of(str(path))):
        raise OpenError(
            f"{path} is gone, or empty, and {left} holds rows that an earlier run could not write "
            "there; put the file back, or a backup of it: a new one would have these rows alone"
        )


def _check_state(path: Path, connection: FileConnection, state: str) -> None:
    if not state or state != connection.state():
        raise OpenError(
            f"{path} is not as this bot has left it: it was replaced by another file, or another "
            f"bot has written to it since this one closed it, or {_lock_of(path)} was removed; put "
            f"back the one that was here, or restart the bot: its end leaves what is waiting in "
            f"{rescue.place_of(str(path))}"
        )


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
