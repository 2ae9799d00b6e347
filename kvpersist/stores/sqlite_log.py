"""Keeping the write-ahead log of a SQLite file small, also while somebody always reads.

After a commit SQLite moves into the file what no reader needs in the log any more, and waits for
nobody. It begins the log anew only when nobody reads from it at that moment. Where readers take
turns, so that one of them always does, the log would grow without bound
(https://sqlite.org/wal.html#avoiding_excessively_large_wal_files). So writing waits once in a while
for those who read just then; who begins to read after them reads from the file alone.

A transaction that never ends cannot be waited for: the log grows by all that is written meanwhile.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import suppress
from typing import Final

_LOGGER = logging.getLogger("kvpersist")

LOG_LIMIT: Final = 16 * 2**20
"""Bytes to which SQLite cuts a log that it begins anew, and beyond which it is made to."""
_WAIT: Final = 100
"""Milliseconds to wait for readers, for each LOG_LIMIT that the log has."""
_TOLD: Final = 4 * LOG_LIMIT
EMPTY_LOG: Final = "PRAGMA wal_checkpoint(TRUNCATE)"
"""Moves the log into the file. Its first column is 1 if somebody is reading what must stay."""


def empty_log(connection: sqlite3.Connection) -> bool:
    """Return whether all of the log is in the file now."""
    with suppress(sqlite3.Error):
        ((is_busy, *_),) = connection.execute(EMPTY_LOG).fetchall()
        return not is_busy
    return False


class LogLimit:
    """Empties a log that has become too large.

    If that cannot be done it is tried again when the log is twice as large, and then waited for
    twice as long, up to the busy timeout. So all waiting together stays in proportion to what was
    written, and the log in proportion to how long others read.
    """

    def __init__(self) -> None:
        self._tried_at = 0

    def keep(self, connection: sqlite3.Connection, log: str, size: int) -> bool:
        """Return whether it was tried to empty the log, which now has `size` bytes."""
        if size <= LOG_LIMIT:
            self._tried_at = 0
            return False
        if size < 2 * self._tried_at:
            return False
        is_empty = _empty_soon(connection, _WAIT * size // LOG_LIMIT)
        self._tried_at = 0 if is_empty else size
        if not is_empty and size >= _TOLD:
            _LOGGER.warning(
                "%s has grown to %d MiB, because another program has been reading for long: "
                "end its transaction, or the log grows by all that is written",
                log,
                size // 2**20,
            )
        return True


def _empty_soon(connection: sqlite3.Connection, wait: int) -> bool:
    """Empty the log, and wait for readers no longer than `wait` milliseconds."""
    ((usual,),) = connection.execute("PRAGMA busy_timeout").fetchall()
    connection.execute(f"PRAGMA busy_timeout = {min(wait, usual)}").fetchall()
    is_empty = empty_log(connection)
    connection.execute(f"PRAGMA busy_timeout = {usual}").fetchall()
    return is_empty
