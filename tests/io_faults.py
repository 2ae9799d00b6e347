"""A file system that fails where a test tells it to: below SQLite, in the process of the test.

SQLite reaches its files through a table of functions, its VFS (https://sqlite.org/vfs.html), and a
program may register another. Python's `sqlite3` has no call for that, but the library that it uses
has, and `ctypes` finds it. So it is the installed `SqliteStore`, on the SQLite that bots have, that
suffers here. apsw's VFS, which `power_cut` records with, cannot serve: it knows no shared memory,
and its errors come out as exceptions even where SQLite goes on after them, as it does when the
checkpoint after a commit fails.

Each function here counts its calls, fails where it is to, and else calls the function of the usual
VFS. Nothing is synced, because that takes long, and no test cuts the power.
"""

from __future__ import annotations

import _sqlite3
import ctypes
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import POINTER, Structure, byref, c_char_p, c_int, c_int64, c_void_p
from pathlib import Path
from typing import Any, Final

_OK: Final = 0
_CANTOPEN: Final = 14
_FULL: Final = 13
_IOERR: Final = 10
_OPEN_READONLY: Final = 0x1
_OPEN_READWRITE: Final = 0x2
_OPEN_CREATE: Final = 0x4
_OPEN_EXCLUSIVE: Final = 0x10
_SHM_LOCK: Final = 2


def _ioerr(detail: int) -> int:
    return _IOERR | detail << 8


CODES: Final = {
    "open": (_CANTOPEN,),
    "read": (_ioerr(1), _ioerr(33)),
    "write": (_ioerr(3), _FULL),
    "truncate": (_ioerr(6),),
    "sync": (_ioerr(4),),
    "size": (_ioerr(7),),
    "delete": (_ioerr(10), _ioerr(17)),
    "map": (_ioerr(19), _ioerr(21), _FULL),
    "lock": (_ioerr(15),),
    "lock map": (_ioerr(20),),
}
"""What each function says when it fails (https://sqlite.org/rescode.html): READ or CORRUPTFS, …."""
_CHANGES: Final = ("write", "truncate", "sync", "delete")

_File = c_void_p
# The name is an address, because SQLite keeps it.
_OPEN = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, _File, c_int, POINTER(c_int))
_DELETE = ctypes.CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_TRANSFER = ctypes.CFUNCTYPE(c_int, _File, c_void_p, c_int, c_int64)
_TRUNCATE = ctypes.CFUNCTYPE(c_int, _File, c_int64)
_FLAGS = ctypes.CFUNCTYPE(c_int, _File, c_int)
_SIZE = ctypes.CFUNCTYPE(c_int, _File, POINTER(c_int64))
_MAP = ctypes.CFUNCTYPE(c_int, _File, c_int, c_int, c_int, POINTER(c_void_p))
_LOCK_MAP = ctypes.CFUNCTYPE(c_int, _File, c_int, c_int, c_int)


class _Vfs(Structure):
    """SQLite's ``sqlite3_vfs``."""

    _fields_ = (
        ("version", c_int),
        ("file_size", c_int),
        ("longest_name", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", _OPEN),
        ("delete", _DELETE),
        ("others", c_void_p * 13),
    )


class _Methods(Structure):
    """SQLite's ``sqlite3_io_methods``."""

    _fields_ = (
        ("version", c_int),
        ("close", c_void_p),
        ("read", _TRANSFER),
        ("write", _TRANSFER),
        ("truncate", _TRUNCATE),
        ("sync", _FLAGS),
        ("size", _SIZE),
        ("lock", _FLAGS),
        ("others", c_void_p * 5),
        ("map", _MAP),
        ("lock_map", _LOCK_MAP),
        ("more", c_void_p * 4),
    )


class Faults:
    """Counts what SQLite does to the files of one folder, and has some of it fail.

    Attributes:
        calls: What was done since this was last set to an empty list, such as ``write bot.db-wal``.
        failed: Those of them that failed.
    """

    def __init__(self, folder: Path, usual: _Vfs) -> None:
        self.calls: list[str] = []
        self.failed: list[str] = []
        self._folder = folder
        self._usual = usual
        self._names: dict[int, str] = {}
        self._methods: dict[int, tuple[_Methods, _Methods]] = {}
        self._is_due: Callable[[str], bool] = lambda _: False
        self._chance = random.Random(0)  # noqa: S311  it chooses errors, not secrets
        self._is_read_only = False

    def fail_at(self, number: int, seed: str, *, lasting: bool) -> None:
        """Have the call of this number fail, counted from now; or, if lasting, all from then on."""
        self.calls, self.failed = [], []
        self._chance = random.Random(seed)  # noqa: S311
        self._is_due = lambda _: len(self.calls) >= number if lasting else len(self.calls) == number

    def be_read_only(self) -> None:
        """Have each change fail, and each file be opened for reading only."""
        self._is_read_only = True
        self._is_due = lambda kind: kind in _CHANGES

    def end(self) -> None:
        """Let nothing fail any more."""
        self._is_due = lambda _: False
        self._is_read_only = False

    def _fails(self, kind: str, name: str) -> int:
        """Count a call; return what is to be said in place of doing it, or 0."""
        self.calls.append(f"{kind} {name}")
        if not self._is_due(kind):
            return _OK
        self.failed.append(f"{kind} {name}")
        return self._chance.choice(CODES[kind])

    def open(self, _: int, name: int | None, file: int, flags: int, out: Any) -> int:
        path = Path(ctypes.string_at(name).decode()) if name else None
        is_ours = path is not None and path.parent == self._folder
        if is_ours and path is not None and (code := self._fails("open", path.name)):
            _methods_of(file).value = None  # or SQLite would close it
            return code
        if is_ours and self._is_read_only and flags & _OPEN_READWRITE:
            flags &= ~(_OPEN_READWRITE | _OPEN_CREATE | _OPEN_EXCLUSIVE)
            flags |= _OPEN_READONLY
        code = int(self._usual.open(ctypes.addressof(self._usual), name, file, flags, out))
        pointer = _methods_of(file)
        if is_ours and path is not None and code == _OK and pointer.value:
            self._names[file] = path.name
            if pointer.value not in self._methods:
                self._methods[pointer.value] = self._make(pointer.value)
            pointer.value = ctypes.addressof(self._methods[pointer.value][0])
        return code

    def delete(self, _: int, name: bytes, flags: int) -> int:
        path = Path(name.decode())
        if path.parent == self._folder and (code := self._fails("delete", path.name)):
            return code
        return int(self._usual.delete(ctypes.addressof(self._usual), name, flags))

    def _make(self, address: int) -> tuple[_Methods, _Methods]:
        """Return methods that may fail, in the place of those at an address."""
        usual = _Methods.from_address(address)
        failing = _Methods.from_buffer_copy(usual)

        def may_fail(kind: str, make: Any, method: Callable[..., int]) -> Any:
            def call(file: int, *arguments: Any) -> int:
                return self._fails(kind, self._names[file]) or method(file, *arguments)

            return make(call)

        def lock_map(file: int, offset: int, number: int, flags: int) -> int:
            if flags & _SHM_LOCK and (code := self._fails("lock map", self._names[file])):
                return code  # letting go of it is never refused
            return int(usual.lock_map(file, offset, number, flags))

        failing.read = may_fail("read", _TRANSFER, usual.read)
        failing.write = may_fail("write", _TRANSFER, usual.write)
        failing.truncate = may_fail("truncate", _TRUNCATE, usual.truncate)
        failing.sync = may_fail("sync", _FLAGS, lambda *_: _OK)
        failing.size = may_fail("size", _SIZE, usual.size)
        failing.lock = may_fail("lock", _FLAGS, usual.lock)
        failing.map = may_fail("map", _MAP, usual.map)
        failing.lock_map = _LOCK_MAP(lock_map)
        return failing, usual


def _methods_of(file: int) -> c_void_p:
    """Return the one field of a ``sqlite3_file`` that SQLite itself reads."""
    return c_void_p.from_address(file)


@contextmanager
def faults_in(folder: Path) -> Iterator[Faults]:
    """Have all files of a folder that SQLite opens meanwhile be on a file system that can fail.

    Nothing fails until `Faults` is told so. All must be closed at the end.
    """
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype = c_void_p
    library.sqlite3_vfs_find.argtypes = [c_char_p]
    library.sqlite3_vfs_register.argtypes = [c_void_p, c_int]
    library.sqlite3_vfs_unregister.argtypes = [c_void_p]
    address = library.sqlite3_vfs_find(None)
    usual = _Vfs.from_address(address)
    faults = Faults(folder, usual)
    failing = _Vfs.from_buffer_copy(usual)
    failing.name = b"kvpersist-faults"
    failing.open, failing.delete = _OPEN(faults.open), _DELETE(faults.delete)
    assert library.sqlite3_vfs_register(byref(failing), 1) == _OK
    try:
        yield faults
    finally:
        library.sqlite3_vfs_unregister(byref(failing))
        library.sqlite3_vfs_register(address, 1)
