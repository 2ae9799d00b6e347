"""A lock on a file that ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from weakref import WeakSet


class FileLock:
    """Holds an exclusive lock on a file from its creation to `release`.

    It is flock(2), because other programs and other parts of this one may open and close the file,
    to back up the folder for example: a POSIX record lock, such as SQLite uses, would be lost then.

    Args:
        path: The file. It is created, readable by its owner alone, and stays when the lock goes:
            removing it would let two processes lock two files of one name.

    Raises:
        BlockingIOError: Somebody else holds the lock.
        OSError: The file cannot be opened, or is a symbolic link, which may lead anywhere.
    """

    def __init__(self, path: Path) -> None:
        self.path = os.fspath(path)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o600)
        try:
            os.fchmod(self._descriptor, 0o600)  # whatever the umask took away
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(self._descriptor)
            raise
        self._file = os.fstat(self._descriptor)
        _HELD.add(self)

    def is_in_place(self) -> bool:
        """Whether the file is where it was, so that nobody can lock another of its name."""
        try:
            found = os.stat(self.path)  # noqa: PTH116  a Path takes twice as long
        except OSError:
            return False
        return os.path.samestat(found, self._file)

    def release(self) -> None:
        """Let go of the lock. Does nothing if that was done."""
        if self in _HELD:
            _HELD.discard(self)
            os.close(self._descriptor)

    def __del__(self) -> None:
        self.release()


_HELD: WeakSet[FileLock] = WeakSet()


def _release_in_child() -> None:  # pragma: no cover  a forked child is not measured
    """Close a forked child's copies, or the lock would stay for as long as the child lives."""
    for lock in list(_HELD):
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
