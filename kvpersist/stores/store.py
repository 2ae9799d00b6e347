"""What a storage engine must do. See :mod:`kvpersist.testing` for the suite that checks one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeAlias, runtime_checkable

Row: TypeAlias = tuple[str, bytes]
"""A key and its value: one JSON document, as UTF-8."""
BadRow: TypeAlias = tuple[str, bytes, str]
"""A key, the value that was read, and why that cannot be used."""

Versioned: TypeAlias = tuple[bytes | None, int]
"""A value, and a number that is another one after each write. None for the value that is known."""
Changed: TypeAlias = Mapping[str, bytes | None]
"""What rows are to hold; None for those that are removed."""
LockMore: TypeAlias = Callable[
    [Collection[str], Collection[str], Mapping[str, int]], Awaitable[Mapping[str, Versioned]]
]


@runtime_checkable
class Store(Protocol):
    """An ordered map of keys to JSON texts that survives the process.

    One owner calls it, from one event loop at a time; after `close` it may be opened again, also on
    another loop. `read` and `scan` may run while `apply` does; two `apply` never overlap.
    """

    async def open(self) -> None:
        """Get ready to read and write. Does nothing on a store that is open.

        Raises:
            OpenError: With the reason; nothing is left behind: no connection, thread or lock.
        """

    async def close(self) -> None:
        """Give everything back: connections, threads, locks. Does nothing on a closed store.

        Raises:
            WriteError: What was written before would be lost now. It stays open; call this again.
        """

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return the values of those of `keys` that exist.

        Raises:
            ReadError: The store could not answer.
        """

    def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        """Yield all rows whose key begins with `prefix`, ordered by key, in pages of bounded size.

        Keys are ordered by their code points. Rows that change meanwhile may show either value.

        Raises:
            ReadError: The store could not answer.
        """

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes` or none; None removes the row. Durable when this returns.

        Cancelling it leaves all of the changes or none of them.

        Raises:
            WriteError: Nothing was written.
        """


@runtime_checkable
class SeesOthers(Protocol):
    """A store that can tell cheaply whether rows have to be read again. No store must."""

    def others_seen(self) -> int | None:
        """Return what `see_others` would return; None if that cannot be told without I/O."""

    async def see_others(self) -> int:
        """Return a number that differs after somebody else has written, or it was opened again.

        `open` was called before. It says nothing about the writes of `Store.apply`.

        Raises:
            ReadError: The store could not answer.
        """


@runtime_checkable
class SetsAside(Protocol):
    """A store that can keep rows where they are not read. No store must."""

    async def set_aside(self, rows: Collection[BadRow]) -> Collection[str]:
        """Move rows, as they are, to where neither `Store.read` nor `Store.scan` finds them.

        A row that is not what was read any more stays. What was set aside before stays too.

        Returns:
            The keys of the rows that were moved; those of others may be among them.

        Raises:
            WriteError: Nothing was moved.
            OpenError, ReadError: It cannot be told which were.
        """


@runtime_checkable
class Rescues(Protocol):
    """A store that can keep rows elsewhere when it cannot take them any more. No store must."""

    async def rescue(self, changes: Mapping[str, bytes | None]) -> str:
        """Close, and keep rows where the next `Store.open` finds and writes them before all else.

        It never overlaps `Store.apply`. Being cancelled does not end it: it returns, or raises
        `WriteError`, when that is decided; `Store.open` and `Store.close` wait for it.

        Returns:
            Where they are.

        Raises:
            WriteError: That is not possible either. `Store.close` is to be called all the same.
        """


class Transaction(Protocol):
    """Some documents, which one worker has for itself until it commits, or gives up."""

    async def lock(
        self,
        keys: Collection[str],
        reads: Collection[str] = (),
        *,
        known: Mapping[str, int] | None = None,
    ) -> Mapping[str, Versioned]:
        """Wait until nobody else has these documents, whether they exist or not, and read them.

        Args:
            keys: Those that are locked.
            reads: Others, which are read only.
            known: Versions of rows whose values need not be sent again.

        Returns:
            Those that exist.

        Raises:
            LockError: Another worker has had one for too long, or both wait for each other.
            ConflictError: The store was lost meanwhile, and others have written what was locked.
            UnavailableError: The store cannot be reached.
        """

    async def commit(self, prepare: Callable[[LockMore], Awaitable[Changed]]) -> int:
        """Write rows, all or none, durably, and let others have the documents.

        Args:
            prepare: Returns the rows, of which those that are written must be locked or new. It is
                called with `lock` for documents that are needed at the end alone, and again if the
                store was lost.

        Returns:
            The version of the rows that were written.

        Raises:
            LockError, ConflictError, UnavailableError: As `lock`. Nothing was written, and nothing
                ever will be; unless the last says that the answer to the commit was lost.
                ConflictError also if somebody writes without locking.
            WriteError: The store refuses a row. Nothing was written.
        """


@runtime_checkable
class Shareable(Protocol):
    """A store that many workers can have open at the same time. No store must.

    Attributes:
        patience: For how many seconds whoever wants a document waits for another who has it.
    """

    patience: float

    def share(self) -> None:
        """From now on open it together with others that share it, and with nobody else."""

    def transaction(self) -> AbstractAsyncContextManager[Transaction]:
        """Begin something that ends with `Transaction.commit`, or without a trace.

        Raises:
            OpenError: The store cannot be opened.
        """

    async def trim(self, prefix: str, *, older_than: int, newest: int) -> None:
        """Remove rows whose keys begin with `prefix`, but the `newest` ones.

        Args:
            prefix: Of which.
            older_than: Rows written since stay: Unix milliseconds.
            newest: How many stay, whenever they were written.

        Raises:
            WriteError: Nothing was removed.
        """
