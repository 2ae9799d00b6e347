"""A storage engine in one file: documents in a log that only grows, as a pattern for your own.

    from kvpersist import KVPersistence
    from log_store import LogStore

    persistence = KVPersistence(LogStore("bot.log"))

Each line of the log is one transaction, a JSON object of keys and documents. A line that is whole
counts; one that is not was cut off by a crash, before anybody was told that it is there. All
documents are in memory, and `open` writes the log anew without what was replaced.

It keeps every promise of `kvpersist.stores.store.Store`: `tests/test_examples_log_store.py` has it
pass `StoreContract`.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import threading
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from io import FileIO
from pathlib import Path
from typing import Any, TypeVar

from kvpersist import OpenError, ReadError, StoreInUseError, WriteError

T = TypeVar("T")
PAGE = 500


class LogStore:
    """Keeps documents in a file, one line a transaction.

    Args:
        path: The file. It is made if it is not there; so is a lock, beside it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._rows: dict[str, bytes] | None = None  # None while it is closed
        self._log: FileIO | None = None
        self._lock: FileIO | None = None
        self._turn = threading.Lock()

    async def open(self) -> None:
        """Take the lock, read the log, and write it anew.

        Raises:
            OpenError: The file cannot be read or written; `StoreInUseError`: another bot has it.
        """
        await self._do(self._open)

    async def close(self) -> None:
        """Give file and lock back."""
        await self._do(self._close)

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return the documents that exist. They are in memory."""
        rows = self._all()
        return {key: rows[key] for key in keys if key in rows}

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[tuple[str, bytes]]]:
        """Yield rows, ordered by key. What changes meanwhile may or may not be seen."""
        rows = sorted(item for item in self._all().items() if item[0].startswith(prefix))
        for start in range(0, len(rows), PAGE):
            yield rows[start : start + PAGE]

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        """Append a line, and return when it is on the disk.

        Raises:
            WriteError: Nothing was written.
        """
        await self._do(lambda: self._apply(dict(changes)))

    async def _do(self, work: Callable[[], T]) -> T:
        """Run something in a thread, never two at a time: no file is touched on the event loop.

        If the caller is cancelled the thread goes on to the end, so that there is no half of it.
        """

        def in_turn() -> T:
            with self._turn:
                return work()

        return await asyncio.to_thread(in_turn)

    def _all(self) -> dict[str, bytes]:
        if self._rows is None:
            raise ReadError(f"{self.path} is not open")
        return self._rows

    def _open(self) -> None:
        if self._rows is not None:
            return
        try:
            self._lock = _private(Path(f"{self.path}-lock"))
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            rows = _replay(self.path)
            self._log = _written_anew(self.path, rows)
        except BlockingIOError as error:
            self._close()
            raise StoreInUseError(f"{self.path}: another bot has it open") from error
        except (OSError, ValueError) as error:
            self._close()  # nothing may be left behind
            raise OpenError(f"{self.path}: {error}") from error
        self._rows = rows

    def _close(self) -> None:
        self._rows = None
        for file in (self._log, self._lock):
            if file is not None:
                file.close()
        self._log = self._lock = None

    def _apply(self, changes: dict[str, bytes | None]) -> None:
        if self._rows is None or self._log is None:
            raise WriteError(f"{self.path} is not open")
        end = self._log.seek(0, os.SEEK_END)
        try:
            _write(self._log, _line(changes))
        except OSError as error:
            self._log.truncate(end)  # or half a line would be in front of the next one
            raise WriteError(f"{self.path}: {error}") from error
        for key, text in changes.items():  # after it is durable: readers see nothing that may go
            if text is None:
                self._rows.pop(key, None)
            else:
                self._rows[key] = text


def _line(changes: Mapping[str, bytes | None]) -> bytes:
    texts = {key: None if text is None else text.decode() for key, text in changes.items()}
    return json.dumps(texts).encode() + b"\n"


def _replay(path: Path) -> dict[str, bytes]:
    rows: dict[str, bytes] = {}
    if not path.exists():
        return rows
    for line in path.read_bytes().split(b"\n")[:-1]:  # the last part is empty, or was cut off
        changes: dict[str, Any] = json.loads(line)
        for key, text in changes.items():
            rows.pop(key, None)
            if text is not None:
                rows[key] = text.encode()
    return rows


def _written_anew(path: Path, rows: Mapping[str, bytes]) -> FileIO:
    """Replace the log by one of what there is. It is at every moment there whole."""
    new = Path(f"{path}-new")
    new.unlink(missing_ok=True)
    log = _private(new)
    if rows:
        _write(log, _line(rows))
    new.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # so that the new name is on the disk too
    finally:
        os.close(folder)
    return log


def _write(log: FileIO, line: bytes) -> None:
    """Return when a line is on the disk. The file has no buffer, which would keep what failed."""
    left = memoryview(line)
    while left:
        left = left[log.write(left) :]
    os.fsync(log.fileno())


def _private(path: Path) -> FileIO:
    """Open a file that its owner alone may read."""
    return FileIO(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600), "r+b")
