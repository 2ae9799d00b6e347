"""The statements that read and write rows."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final

ABOVE_ALL: Final = b""
"""Any BLOB is above any TEXT (https://sqlite.org/datatype3.html#sort_order)."""

_PUT: Final = """
    INSERT INTO documents (key, value, version, updated_at) VALUES (?, ?, 1, ?)
    ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, version = version + 1, updated_at = excluded.updated_at
"""
_REMOVE: Final = "DELETE FROM documents WHERE key = ?"
_APPLY: Final = f"{_REMOVE};{_PUT}"
# CAST, because a value that another program wrote may have any type, and bytes need no decoding.
READ: Final = "SELECT key, CAST(value AS BLOB) FROM documents WHERE key IN ({})"
SCAN: Final = """
    SELECT key, CAST(value AS BLOB) FROM documents WHERE key >= CAST(? AS TEXT) AND key < ?
    ORDER BY key LIMIT ?
"""
SET_ASIDE: Final = """
    INSERT INTO set_aside
    SELECT key, value, version, updated_at, ?, ? FROM documents
    WHERE key = CAST(? AS TEXT) AND CAST(value AS BLOB) = ?;
    DELETE FROM documents WHERE key = CAST(? AS TEXT) AND CAST(value AS BLOB) = ?
"""
WAS_SET_ASIDE: Final = "SELECT key FROM set_aside WHERE set_aside_at = ?"


def transaction(changes: Mapping[str, bytes | None]) -> tuple[str, list[Iterable[Any]]]:
    """Return the statements that write rows, each with its parameters."""
    now = time.time_ns() // 1_000_000
    rows = tuple(changes.items())
    # Whoever runs them makes them, one by one.
    puts = ((key, text.decode(), now) for key, text in rows if text is not None)
    if None not in changes.values():
        return _PUT, [puts]
    return _APPLY, [((key,) for key, text in rows if text is None), puts]


def as_stored(key: str) -> bytes:
    """Return a key that was read as it is, also if it is no UTF-8: see `SqliteThread.fetch`."""
    return key.encode(errors="surrogateescape")
