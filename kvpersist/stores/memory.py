"""The memory engine, for the tests of bots. Nothing in it lasts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Final

from kvpersist.stores.store import BadRow, Row

_PAGE_ROWS: Final = 500


class MemoryStore:
    """Keeps documents in a dict of this object, and nowhere else: nothing lasts.

    Give the same object to a second `KVPersistence` to see what a bot would find after a restart.

    Attributes:
        rows: The stored documents: the JSON text of each key.
        aside: The rows that could not be read, with the reason of each.
    """

    def __init__(self) -> None:
        self.rows: dict[str, bytes] = {}
        self.aside: list[BadRow] = []

    async def open(self) -> None:
        """Do nothing: there is nothing to open."""

    async def close(self) -> None:
        """Do nothing: the rows stay, for as long as this object does."""

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return the values of those of `keys` that exist."""
        return {key: self.rows[key] for key in keys if key in self.rows}

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        """Yield all rows whose key begins with `prefix`, ordered by key, 500 at a time."""
        rows = sorted(row for row in self.rows.items() if row[0].startswith(prefix))
        for start in range(0, len(rows), _PAGE_ROWS):
            yield rows[start : start + _PAGE_ROWS]

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes`; None removes the row. It lasts as long as this object does."""
        for key, text in changes.items():
            if text is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = text

    async def set_aside(self, rows: Collection[BadRow]) -> Collection[str]:
        """Move rows to `aside`, and return their keys; one that has changed meanwhile stays."""
        moved = [row for row in rows if self.rows.get(row[0]) == row[1]]
        for key, _, _ in moved:
            del self.rows[key]
        self.aside += moved
        return [key for key, _, _ in moved]
