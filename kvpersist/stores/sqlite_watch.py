"""Seeing that another program has written to a SQLite file, without asking SQLite each time.

All connections to a file in WAL mode share the wal-index, which is a file beside it. Its first 48
bytes change with each commit of whomever (https://sqlite.org/walformat.html#the_wal_index_header).
Nothing is read out of them here but that they are, or are not, what they were.
"""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Final

_HEADER: Final = 48


class WalIndex:
    """The head of the wal-index of a SQLite file that is open in WAL mode.

    Args:
        path: The file; its wal-index is the file beside it whose name ends with ``-shm``.

    Raises:
        OSError: There is none.
    """

    file: int

    def __init__(self, path: str | os.PathLike[str]) -> None:
        name = Path(f"{os.fspath(path)}-shm")
        with _LOCK:
            found = name.stat()
            kept = [kept for kept in _KEPT if os.path.samestat(os.fstat(kept.file), found)]
            for one in kept:
                _KEPT.remove(one)
            self.file = kept[0].file if kept else os.open(name, os.O_RDONLY | os.O_CLOEXEC)

    def header(self) -> bytes | None:
        """Return what differs after each commit; None if there is nothing in the file."""
        return os.pread(self.file, _HEADER, 0) or None

    def close(self) -> None:
        """Let go of the file, as soon as nobody has it open any more. Call it once.

        Closing a descriptor of a file gives up all locks that this process has on it, also those of
        other connections (https://sqlite.org/howtocorrupt.html, 2.2). The last connection deletes
        the file; until then it stays open, and is looked after when the next one is closed.
        """
        with _LOCK:
            _KEPT.append(self)
            for kept in [kept for kept in _KEPT if os.fstat(kept.file).st_nlink == 0]:
                _KEPT.remove(kept)
                os.close(kept.file)


def watch(path: str | os.PathLike[str]) -> WalIndex | None:
    """Return the wal-index of a file, or None where there is none to be looked at."""
    with suppress(OSError):
        return WalIndex(path)
    return None


_KEPT: Final[list[WalIndex]] = []
"""Those that must not be closed yet: see `WalIndex.close`."""
_LOCK: Final = threading.Lock()
"""Connections are closed by threads of their own."""
# None of which a forked child has: it would wait for ever for one that was at it just then.
os.register_at_fork(
    before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release
)
