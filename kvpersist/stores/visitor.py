"""A visit to a store that a bot may have open: rows with all their columns, and careful changes.

A `Store` has one owner. A visitor is not it: it reads through a connection of its own that no bot
waits for, and takes no lock. It changes rows only as they were when it read them. What a bot reads
at its start alone (conversations, keyboards) it changes only while nobody is the owner.

The methods are for a program that has nothing else to do meanwhile, such as the command
``kvpersist``: those of the SQLite visitor block the event loop.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, Literal, Protocol, TypeAlias

PAGE_ROWS: Final = 500

Existing: TypeAlias = Literal["none", "other", "replace", "clear"]
"""What becomes of rows that are there already: there must be none; there may be those of other
keys; those of the same key are replaced; or all are removed first."""


@dataclass(frozen=True, slots=True)
class StoredRow:
    """A row as it is stored.

    Attributes:
        key: Its key.
        value: The JSON text of its document.
        version: How often it was written.
        updated_at: When, in Unix milliseconds.
    """

    key: str
    value: bytes
    version: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Change:
    """What is to become of a row.

    Attributes:
        before: The row as it was read; None if there was none.
        value: Its new text; None removes it.
    """

    before: StoredRow | None
    value: bytes | None


class Digest:
    """Tells whether the same rows are in two places, in whichever order they come.

    It is the sum of the SHA-256 of each row.

    Attributes:
        rows: How many there are.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._sum = 0

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Digest) and self.hex == other.hex and self.rows == other.rows

    __hash__ = None  # type: ignore[assignment]  # it changes

    @property
    def hex(self) -> str:
        """The sum, as 64 hexadecimal digits."""
        return f"{self._sum % 2**256:064x}"

    def add(self, rows: Sequence[StoredRow]) -> None:
        """Count more rows."""
        self.rows += len(rows)
        for row in rows:
            columns = (row.key, row.value, row.version, row.updated_at)
            self._sum += int.from_bytes(sha256(repr(columns).encode()).digest(), "big")

    async def over(
        self, pages: AsyncIterable[Sequence[StoredRow]]
    ) -> AsyncIterator[Sequence[StoredRow]]:
        """Yield pages of rows, and count those."""
        async for page in pages:
            self.add(page)
            yield page


class Visitor(Protocol):
    """Somebody who looks at a store, and may change rows of it.

    Attributes:
        shown: Where the rows are, as it may be shown to anybody.
    """

    shown: str

    async def open(self) -> None:
        """Connect for reading. Nothing is created or changed.

        Raises:
            OpenError: There is no such store, it is not one of kvpersist's, ….
        """

    async def close(self) -> None:
        """Disconnect."""

    def snapshot(self) -> AbstractAsyncContextManager[None]:
        """Have everything that is read within be of one moment. Writes of others go on."""

    async def read(self, keys: Collection[str]) -> dict[str, StoredRow]:
        """Return those of `keys` that exist.

        Raises:
            ReadError: The store could not answer.
        """

    def scan(self, prefix: str) -> AsyncIterator[Sequence[StoredRow]]:
        """Yield all rows whose key begins with `prefix`, ordered by key, 500 at a time.

        Raises:
            ReadError: As `read`.
        """

    async def changes(self) -> object:
        """Return what differs after whoever has written to the store, for all that is known."""

    async def versions(self, prefix: str) -> dict[str, tuple[int, int]]:
        """Return `version` and `updated_at` of all rows whose key begins with `prefix`."""

    async def aside(self) -> Sequence[StoredRow]:
        """Return the rows that were set aside because they could not be read."""

    async def faults(self) -> Sequence[str]:
        """Return what is wrong with the store besides what its documents say."""

    async def schema_version(self) -> int:
        """Return the number of the stored schema."""

    async def change(
        self, changes: Mapping[str, Change], *, alone: bool, aside: Collection[StoredRow] = ()
    ) -> Sequence[str]:
        """Make all changes or none; durable when this returns.

        Args:
            changes: What is to become of which row. Each that is written gets the next version.
            alone: Nobody may be the owner of the store meanwhile.
            aside: Rows that are to be removed from where they were set aside.

        Returns:
            The keys of rows that are not as they were read any more. If there are any, nothing was
            changed.

        Raises:
            StoreInUseError: A bot is the owner, and `alone` was asked for.
            WriteError: Nothing was changed.
        """

    async def fill(self, pages: AsyncIterable[Sequence[StoredRow]], existing: Existing) -> int:
        """Write rows as they are, all of them or none; return how many. Nobody may be the owner.

        A row that replaces another gets that one's next version. What was written is read again,
        and compared, before it counts.

        Raises:
            StoreInUseError: A bot is the owner.
            WriteError: Nothing was written.
        """
