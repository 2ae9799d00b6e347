"""What a power cut leaves of a database: a recording of all that is written, and its cuts.

Python's own `sqlite3` has no call for a VFS, the layer in which SQLite writes to files. `apsw` can,
but it brings a SQLite of its own, which nothing that uses `sqlite3` would use. So the modules of
the SQLite engine are loaded a second time here, with a module in the place of `sqlite3` that is
made of apsw: it is the very code of `SqliteStore`, its statements, settings, and order of calls,
that runs on the VFS that records. Recording below the process would need a compiler, for
``LD_PRELOAD``, or ``strace``, which a fresh machine does not have; apsw is a wheel.

What this leaves out: apsw's SQLite is newer than that of most Pythons, and the shared memory
(``-shm``) is not recorded, since nothing of it is ever read after a start. SQLite checkpoints after
20 pages in place of 1,000, so that a short workload has many checkpoints.

What a disk may do: until a file is synced each sector of 512 bytes of each write, and each change
of its length, may have reached the disk or not, whatever came later; so may the creation and the
removal of names until the folder is synced. SQLite's VFS for Unix syncs the folder in two places
that a VFS above it does not see (``unixSync`` and ``unixDelete`` in os_unix.c): at the first sync
of a journal or log that it has opened, and after a removal that is asked to be durable.
"""

from __future__ import annotations

import importlib
import os
import random
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import apsw

import kvpersist.stores
from kvpersist.stores import Store

SECTOR: Final = 512
_VFS: Final = "kvpersist-power-cut"
_CHECKPOINT_PAGES: Final = 20
_MODULES: Final = ("schema", "place", "log", "damage", "thread", "file", "backup")
_FOLDER: Final = ""
_SYNCHRONOUS = "FULL"
"""What the store's FULL becomes: a test has it be something else, to see that it is noticed."""


@dataclass(frozen=True)
class Step:
    """One thing that was done: to a file, or, where it has no name, to the folder."""

    kind: str
    """create, write, truncate, sync, delete or acknowledged."""
    name: str = _FOLDER
    data: bytes = b""
    at: int = 0
    """Where data was written; the new length; the number of the transaction."""


class Recorder(apsw.VFS):
    """Records what SQLite does to the files of one folder, and has it done."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.steps: list[Step] = []
        super().__init__(_VFS, "")

    def note(self, kind: str, path: str = "", data: bytes = b"", at: int = 0) -> None:
        """Add a step."""
        self.steps.append(Step(kind, Path(path).name if path else _FOLDER, data, at))

    def xOpen(  # noqa: N802  SQLite's name
        self, name: str | apsw.URIFilename | None, flags: list[int]
    ) -> apsw.VFSFile:
        path = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        is_new = flags[0] & apsw.SQLITE_OPEN_CREATE and not _is_there(self.steps, Path(path).name)
        file = _RecordedFile(self, path, name, flags)
        if is_new:
            self.note("create", path)
        return file

    def xDelete(self, name: str, sync_folder: bool) -> None:  # noqa: N802  SQLite's name
        super().xDelete(name, sync_folder)
        self.note("delete", name)
        if sync_folder:
            self.note("sync")


def _is_there(steps: Iterable[Step], name: str) -> bool:
    is_there = False
    for step in steps:
        if step.name == name and step.kind in ("create", "delete"):
            is_there = step.kind == "create"
    return is_there


class _RecordedFile(apsw.VFSFile):
    def __init__(
        self,
        recorder: Recorder,
        path: str,
        name: str | apsw.URIFilename | None,
        flags: list[int],
    ) -> None:
        super().__init__("", name, flags)
        self._recorder = recorder
        self._path = path
        beside = apsw.SQLITE_OPEN_WAL | apsw.SQLITE_OPEN_MAIN_JOURNAL
        self._syncs_folder = bool(flags[0] & beside and flags[0] & apsw.SQLITE_OPEN_CREATE)

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802  SQLite's name
        super().xWrite(data, offset)
        self._recorder.note("write", self._path, bytes(data), offset)

    def xTruncate(self, size: int) -> None:  # noqa: N802  SQLite's name
        super().xTruncate(size)
        self._recorder.note("truncate", self._path, at=size)

    def xSync(self, flags: int) -> None:  # noqa: N802  SQLite's name
        super().xSync(flags)
        self._recorder.note("sync", self._path)
        if self._syncs_folder:
            self._syncs_folder = False
            self._recorder.note("sync")


class _Rows:
    """What a cursor of sqlite3's is to the stores."""

    def __init__(self, connection: apsw.Connection) -> None:
        self._connection = connection
        self._rows: list[Any] = []

    def execute(self, sql: str, parameters: Iterable[Any] = ()) -> _Rows:
        sql = sql.replace("synchronous = FULL", f"synchronous = {_SYNCHRONOUS}")
        self._rows = list(self._connection.execute(sql, tuple(parameters)))
        return self

    def executemany(self, sql: str, parameters: Iterable[Iterable[Any]]) -> None:
        for row in parameters:
            self._connection.execute(sql, tuple(row))

    def fetchone(self) -> Any:
        return self._rows[0] if self._rows else None

    def fetchall(self) -> list[Any]:
        return self._rows

    def __iter__(self) -> Iterator[Any]:
        return iter(self._rows)

    def close(self) -> None: ...


class _Connection:
    """What a connection of sqlite3's is to the stores, in autocommit mode."""

    def __init__(self, path: object, timeout: float, *, uri: bool) -> None:
        flags = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
        flags |= apsw.SQLITE_OPEN_URI if uri else 0
        self._apsw = apsw.Connection(str(path), flags=flags, vfs=_VFS)
        self._apsw.set_busy_timeout(int(timeout * 1000))
        self._apsw.wal_autocheckpoint(_CHECKPOINT_PAGES)

    def cursor(self) -> _Rows:
        return _Rows(self._apsw)

    def execute(self, sql: str, parameters: Iterable[Any] = ()) -> _Rows:
        return self.cursor().execute(sql, parameters)

    def executescript(self, sql: str) -> None:
        self._apsw.execute(sql)

    def __enter__(self) -> None: ...

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._apsw.in_transaction:
            self._apsw.execute("COMMIT" if kind is None else "ROLLBACK")

    def close(self) -> None:
        # One that may only read tries to write the log into the file; sqlite3 does not tell either.
        with suppress(apsw.IOError):
            self._apsw.close()


def _sqlite3() -> ModuleType:
    """Make the module that the stores see as sqlite3."""

    def connect(
        path: object,
        *,
        timeout: float = 5.0,
        uri: bool = False,
        factory: type[_Connection] = _Connection,
        **_: object,
    ) -> _Connection:
        return factory(path, timeout, uri=uri)

    class OperationalError(apsw.Error):
        pass

    module = ModuleType("sqlite3")
    vars(module).update(
        connect=connect,
        Connection=_Connection,
        Cursor=_Rows,
        Error=apsw.Error,
        DatabaseError=apsw.Error,
        OperationalError=OperationalError,
    )
    return module


@contextmanager
def recorded(path: Path) -> Iterator[tuple[Store, Recorder]]:
    """Give a `SqliteStore` on a file, and the recorder of what it does; the code is loaded anew."""
    recorder = Recorder(path.parent)
    for file in path.parent.iterdir():
        if not file.name.endswith("-shm"):
            recorder.steps += [
                Step("create", file.name),
                Step("write", file.name, file.read_bytes()),
                Step("sync", file.name),
            ]
    recorder.note("sync")
    names = [f"kvpersist.stores.sqlite_{name}" for name in _MODULES] + ["kvpersist.stores.sqlite"]
    usual = {name: sys.modules.pop(name) for name in names} | {"sqlite3": sys.modules["sqlite3"]}
    sys.modules["sqlite3"] = _sqlite3()
    try:
        engine = importlib.import_module("kvpersist.stores.sqlite")
    finally:
        sys.modules.update(usual)
        for name in names:
            setattr(kvpersist.stores, name.rpartition(".")[2], usual[name])
    try:
        yield engine.SqliteStore(path), recorder
    finally:
        recorder.unregister()


@dataclass
class _File:
    """A file as it is on the disk for certain, and what may be."""

    data: bytearray = field(default_factory=bytearray)
    unsynced: list[Step] = field(default_factory=list)

    def sync(self) -> None:
        for step in self.unsynced:
            _do(self.data, step)
        self.unsynced = []


class Disk:
    """What is on the disk after some steps, and what a power cut may leave of it."""

    def __init__(self) -> None:
        self._names: dict[str, _File] = {}
        self._now: dict[str, _File] = {}
        self._unsynced: list[tuple[str, _File | None]] = []

    def do(self, step: Step) -> None:
        """Take one step further."""
        if step.kind == "create":
            self._now[step.name] = _File()
            self._unsynced.append((step.name, self._now[step.name]))
        elif step.kind == "delete":
            del self._now[step.name]
            self._unsynced.append((step.name, None))
        elif step.kind == "sync" and step.name == _FOLDER:
            self._names = dict(self._now)
            self._unsynced = []
        elif step.kind == "sync":
            self._now[step.name].sync()
        elif step.kind in ("write", "truncate"):
            self._now[step.name].unsynced.append(step)

    def cut(self, chance: random.Random, kept: float) -> dict[str, bytes]:
        """Return the files after a power cut that keeps this part of what was not synced."""
        names = dict(self._names)
        for name, file in self._unsynced:
            if chance.random() < kept:
                if file is None:
                    names.pop(name, None)
                else:
                    names[name] = file
        return {name: _torn(file, chance, kept) for name, file in names.items()}


def _torn(file: _File, chance: random.Random, kept: float) -> bytes:
    data = bytearray(file.data)
    for step in file.unsynced:
        for part in _sectors(step):
            if chance.random() < kept:
                _do(data, part)
    return bytes(data)


def _sectors(step: Step) -> Iterator[Step]:
    """Divide a write where the disk may have divided it."""
    if step.kind != "write":
        yield step
        return
    at, end = step.at, step.at + len(step.data)
    while at < end:
        until = min(end, (at // SECTOR + 1) * SECTOR)
        yield Step("write", step.name, step.data[at - step.at : until - step.at], at)
        at = until


def _do(data: bytearray, step: Step) -> None:
    """Write into, or cut off, what a file has."""
    if step.kind == "truncate":
        del data[step.at :]
        data.extend(bytes(step.at - len(data)))
        return
    data.extend(bytes(max(0, step.at - len(data))))
    data[step.at : step.at + len(step.data)] = step.data


def lay_out(folder: Path, files: dict[str, bytes]) -> None:
    """Have exactly these files in a folder."""
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir():
        os.unlink(old)  # noqa: PTH108  thousands of times
    for name, data in files.items():
        (folder / name).write_bytes(data)
