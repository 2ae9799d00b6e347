"""The PostgreSQL engine: one schema, one owner, one statement and one round trip a commit."""

from __future__ import annotations

import asyncio
import os
import uuid
import warnings
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Final, TypeAlias

import asyncpg

from kvpersist.errors import (
    ConfigurationError,
    OpenError,
    ReadError,
    StoreInUseError,
    UnavailableError,
    WriteError,
)
from kvpersist.stores.key_range import after
from kvpersist.stores.postgres_connections import Connections
from kvpersist.stores.postgres_errors import FAILURES, LOST, is_fault_of_rows, words
from kvpersist.stores.postgres_rescue import leave, write_rescued
from kvpersist.stores.postgres_schema import LONGEST_NAME, is_name
from kvpersist.stores.postgres_statements import (
    APPLY,
    BEGIN_EPOCH,
    READ,
    SCAN,
    SET_ASIDE,
    TAKE_OVER,
    TRIM,
    columns,
    columns_aside,
    now,
)
from kvpersist.stores.postgres_transaction import PostgresTransaction
from kvpersist.stores.postgres_url import names, shown
from kvpersist.stores.store import BadRow, Row

Columns: TypeAlias = tuple[list[str], ...]

_PAGE_ROWS: Final = 500
_MARGIN: Final = 1.0
"""Seconds that who waits for a document has more than who has it."""


class PostgresStore:
    """Keeps documents in a PostgreSQL database, durably, as its ``synchronous_commit`` says.

    The tables are made when they are missing. Other programs may read and write them at any time; a
    second `PostgresStore` of the same schema is refused (see `StoreInUseError`) for as long as this
    one is open, until its process ends, however it does.

    Args:
        url: ``postgresql://user:password@host:port/database?option=value``; several hosts are
            separated by commas. The options are asyncpg's, ``sslmode`` among them. Of several hosts
            the one is used that takes writes, unless ``target_session_attrs`` says otherwise.
        schema: The PostgreSQL schema that holds the tables, a name of 63 bytes at most. It is made
            when it is missing.
        pool_size: The most connections that read and write, 1 or more. There is one more, idle,
            that keeps others out. With ``shared=True``, how many updates a worker can handle at the
            same time, each on a connection of its own; then there are three more. One that gets
            none for as long as it would wait for a document fails with an `UnavailableError`.
        timeout: Seconds to wait for a connection, and for the answer to a statement, before the
            server counts as gone.
        lock_timeout: Seconds to wait for another bot that is about to end, before this one is
            refused.
        hold_timeout: For workers that share the schema: seconds after which the server takes its
            documents from one whose handlers have not ended. An update waits for each document
            that another has for a second more.
        statement_cache_size: How many prepared statements a connection keeps. 0 for a pooler in
            transaction mode that knows none, such as PgBouncer before 1.21.
        rescue_file: An absolute path in a folder that outlives the program, for what cannot be
            written before the end (see `rescue`); each bot has its own. Without it such rows are
            lost with the program, after a `WriteError` that names them.

    Raises:
        ConfigurationError: An argument cannot work. Nothing was connected.
    """

    def __init__(
        self,
        url: str,
        *,
        schema: str = "public",
        pool_size: int = 4,
        timeout: float = 30.0,
        lock_timeout: float = 3.0,
        hold_timeout: float = 60.0,
        statement_cache_size: int = 100,
        rescue_file: str | PathLike[str] | None = None,
    ) -> None:
        self._shown = shown(url)
        self._url = url
        if not is_name(schema):
            raise ConfigurationError(
                f"schema must be a name of 1 to {LONGEST_NAME} bytes, not {schema!r}"
            )
        if not isinstance(pool_size, int) or pool_size < 1:
            raise ConfigurationError(f"pool_size must be an int, 1 or more, not {pool_size!r}")
        if not timeout > 0 or not lock_timeout >= 0 or not hold_timeout > 0:
            raise ConfigurationError(
                f"timeout must be more than 0 seconds, not {timeout!r}, hold_timeout "
                f"too, not {hold_timeout!r}, and lock_timeout 0 or more, not "
                f"{lock_timeout!r}"
            )
        self._rescue_file = None if rescue_file is None else Path(rescue_file)
        if self._rescue_file is not None and not self._rescue_file.is_absolute():
            raise ConfigurationError(f"rescue_file must be an absolute path, not {rescue_file!r}")
        self.schema = schema
        self._pool_size = pool_size
        self._timeout = timeout
        self._lock_timeout = lock_timeout
        self._hold_timeout = hold_timeout
        self.patience = hold_timeout + _MARGIN
        self._options: dict[str, Any] = {
            "timeout": timeout,
            "command_timeout": timeout,
            "statement_cache_size": statement_cache_size,
        }
        if not names(url, "target_session_attrs") and "PGTARGETSESSIONATTRS" not in os.environ:
            self._options["target_session_attrs"] = "read-write"
        self._name = uuid.uuid4().hex  # as the owner
        self._is_shared = False
        self._has_failed = False
        self._was_owner = False
        self._opened: Connections | None = None
        self._lifecycle: asyncio.Lock | None = None
        self._lifecycle_loop: asyncio.AbstractEventLoop | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._shown!r}, schema={self.schema!r})"

    def __del__(self) -> None:
        if getattr(self, "_opened", None) is not None:
            warnings.warn(
                f"{self!r} was not closed: await Application.shutdown(), or the persistence's "
                "flush(), before the program ends",
                ResourceWarning,
                source=self,
                stacklevel=1,
            )

    async def open(self) -> None:
        """Connect, make the tables if they are missing, and become the owner.

        On another event loop than before, what was left open there is ended first.

        Raises:
            StoreInUseError: Another bot has the schema open. Or another had it after a write of
                this object had failed: what is waiting here is older than what that one wrote.
            NotAStoreError: The schema has tables of another program. They were left as they are.
            NewerSchemaError: A newer kvpersist has made the tables. They were left as they are.
            OpenError: The server cannot be reached, refuses the user, the rights do not suffice, ….
                Or rows in `rescue_file` cannot be written, or another bot had the schema since.
        """
        if self._opened is None or self._opened.loop is not asyncio.get_running_loop():
            # Shielded: a caller that gives up must not leave a connection that nobody knows.
            await asyncio.shield(self._open())

    async def close(self) -> None:
        """Disconnect, and let others have the schema."""
        await asyncio.shield(self._close())

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        """Return the values of those of `keys` that exist. One statement.

        If the connection was lost another one is tried, once.

        Raises:
            ReadError: The server could not answer.
        """
        found = await self._fetch(READ, list(keys)) if keys else []
        return {key: text.encode() for key, text in found}

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        """Yield all rows whose key begins with `prefix`, ordered by key, 500 at a time.

        Raises:
            ReadError: As `read`.
        """
        end = after(prefix)
        bounds = () if end is None else (end,)
        below = "AND key < $3" if bounds else ""
        start, above = prefix, ">="
        while True:
            sql = SCAN.replace("{above}", above).replace("{below}", below)
            found = await self._fetch(sql, start, _PAGE_ROWS, *bounds)
            if not found:
                return
            yield [(key, text.encode()) for key, text in found]
            start, above = found[-1][0], ">"

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        """Write all of `changes` or none, in one statement; None removes the row.

        When this returns the server has committed, and waited for its disk, and its synchronous
        standbys, as its ``synchronous_commit`` says. An error may mean that only the answer was
        lost: the same rows, or newer ones, may be written again.

        Raises:
            UnavailableError: The server cannot be reached, or takes no writes, or another bot has
                taken the schema over.
            WriteError: Nothing was written: a row is too large, is no JSON, ….
        """
        await self._write(changes, APPLY, partial(columns, changes))

    async def set_aside(self, rows: Collection[BadRow]) -> Collection[str]:
        """Move rows, as they are, from the table ``documents`` to the table ``set_aside``.

        A row that is not what was read any more stays. Each can be set aside any number of times.

        Returns:
            The keys of those that were moved.

        Raises:
            WriteError: Nothing was moved. As `apply`.
        """
        keys = [key for key, *_ in rows]
        _, moved = await self._write(keys, SET_ASIDE, partial(columns_aside, rows))
        return list(moved)

    def share(self) -> None:
        """From now on open the schema together with other workers. See `Shareable.share`.

        Raises:
            ConfigurationError: A `rescue_file` was named: a worker keeps nothing that it could not
                write, for others go on with the rows as they are.
        """
        if self._rescue_file is not None:
            raise ConfigurationError("with shared=True there is nothing to rescue: no rescue_file")
        self._is_shared = True

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[PostgresTransaction]:
        """Begin what many workers may do at the same time. See `Shareable.transaction`.

        Raises:
            OpenError: As `open`.
        """
        await self.open()
        opened = self._opened_here()
        if opened is None or opened.transactions is None:
            raise OpenError(self._not_open)  # closed in the same moment, or not shared
        transaction = PostgresTransaction(
            opened.transactions,
            self.schema,
            self._shown,
            self._timeout,
            hold_timeout=self._hold_timeout,
            patience=self.patience,
        )
        try:
            yield transaction
        except Exception:
            await transaction.end(at_once=False)
            raise
        except BaseException:
            await transaction.end(at_once=True)
            raise
        await transaction.end(at_once=False)

    async def trim(self, prefix: str, *, older_than: int, newest: int) -> None:
        """Remove rows whose keys begin with `prefix`. See `Shareable.trim`.

        Raises:
            WriteError: Nothing was removed.
        """
        try:
            await self._fetch(TRIM, prefix, after(prefix), older_than, newest)
        except ReadError as error:
            raise WriteError(str(error)) from error.__cause__

    async def rescue(self, changes: Mapping[str, bytes | None]) -> str:
        """Leave rows in `rescue_file`, readable by its owner alone, durably, and close.

        The next `open` with that file writes them before all else, and says so in the log; if
        another bot has had the schema meanwhile, it is refused.

        Raises:
            WriteError: No file was named; there is no room for it; or this never had the schema.
        """
        place = self._rescue_file
        if place is None:
            raise WriteError("no rescue_file was named for such rows", keys=changes)
        async with self._alone():
            if not self._was_owner:
                raise UnavailableError(self._not_open)
            opened, self._opened = self._opened, None  # nobody writes what is newer meanwhile
            try:
                await leave(place, changes, self._name, is_open=opened is not None)
            except (OSError, ValueError) as error:
                raise WriteError(f"{place}: {error}", keys=changes) from error
            finally:
                await self._disconnect(opened)
        return str(place)

    async def _write(
        self, keys: Collection[str], sql: str, make_columns: Callable[[], Columns]
    ) -> asyncpg.Record:
        """Run a statement as the owner; return its row."""
        if self._is_shared:
            raise UnavailableError("workers share the schema; write with KVPersistence.edit")
        opened = self._opened_here()
        if opened is None:
            raise UnavailableError(self._not_open)
        async with opened.writing:
            self._has_failed = True  # until the opposite is known
            try:
                row = await self._write_as_owner(opened, sql, *make_columns(), now())
            except FAILURES as error:
                if is_fault_of_rows(error):
                    raise WriteError(f"{self._shown}: {error}", keys=keys) from error
                with suppress(asyncpg.InterfaceError):  # it was closed meanwhile
                    await opened.pool.expire_connections()
                raise UnavailableError(f"{self._shown}: {words(error)}") from error
            self._has_failed = False
        return row

    async def _write_as_owner(
        self, opened: Connections, sql: str, *parameters: object
    ) -> asyncpg.Record:
        if not opened.lock.is_held:
            opened.epoch = None
            try:
                await opened.lock.take()
            except StoreInUseError as error:
                raise UnavailableError(f"{self._shown}: {error}") from error
        if opened.epoch is None:
            # What an earlier statement, whose end nobody saw, may be writing is waited for; if it
            # has not begun it will find that its epoch is over.
            opened.epoch = await opened.value(BEGIN_EPOCH, self._name)
            if opened.epoch is None:
                raise UnavailableError(f"{self._shown}: {self._taken_over}")
        epoch, opened.epoch = opened.epoch, None  # until the opposite is known
        (row,) = await opened.run(sql, self._name, epoch, *parameters)
        if not row[0]:
            raise UnavailableError(f"{self._shown}: {self._taken_over}")
        opened.epoch = epoch
        return row

    async def _fetch(self, sql: str, *parameters: object) -> list[asyncpg.Record]:
        opened = self._opened_here()
        if opened is None:
            raise ReadError(self._not_open)
        try:
            try:
                return await opened.run(sql, *parameters)
            except LOST:
                await opened.pool.expire_connections()
                return await opened.run(sql, *parameters)
        except FAILURES as error:
            raise ReadError(f"{self._shown}: {words(error)}") from error

    async def _open(self) -> None:
        async with self._alone():
            loop = asyncio.get_running_loop()
            if self._opened is not None and self._opened.loop is not loop:
                opened, self._opened = self._opened, None
                opened.abandon()
            if self._opened is None:
                try:
                    self._opened = await self._connect()
                except OpenError as error:
                    raise type(error)(f"{self._shown}: {error}") from error.__cause__
                except FAILURES as error:
                    # An OSError too is what `ssl` says of a certificate, which may be told.
                    if isinstance(error, ValueError) and not isinstance(error, OSError):
                        # asyncpg could not read the URL, and may quote any part of it.
                        reason = "asyncpg cannot read the URL, or what it names; see its options"
                        raise OpenError(f"{self._shown}: {reason}") from None
                    raise OpenError(f"{self._shown}: {words(error)}") from error

    async def _connect(self) -> Connections:
        opened = Connections(
            self._url,
            self.schema,
            self._pool_size,
            self._lock_timeout,
            self._options,
            patience=self.patience,
            is_shared=self._is_shared,
        )
        try:
            await opened.lock.take()
            await opened.prepare()
            if self._rescue_file is not None:
                await write_rescued(opened, self._rescue_file)
            # That of workers keeps out what is on its way of an owner from before them.
            sql = BEGIN_EPOCH if self._has_failed else TAKE_OVER
            opened.epoch = await opened.value(sql, self._name)
            if opened.epoch is None:
                raise StoreInUseError(self._taken_over)
        except BaseException:
            await opened.close()
            raise
        self._was_owner = True
        return opened

    async def _close(self) -> None:
        async with self._alone():
            opened, self._opened = self._opened, None
            await self._disconnect(opened)

    @staticmethod
    async def _disconnect(opened: Connections | None) -> None:
        if opened is not None and opened.loop is asyncio.get_running_loop():
            await opened.close()
        elif opened is not None:
            opened.abandon()

    def _opened_here(self) -> Connections | None:
        opened = self._opened
        return opened if opened and opened.loop is asyncio.get_running_loop() else None

    @property
    def _not_open(self) -> str:
        return f"{self._shown}: the store is not open; await open() first"

    @property
    def _taken_over(self) -> str:
        return (
            f"another bot has taken the schema {self.schema!r} over since; what is waiting here is "
            "older than what that one wrote, so it is not written. Stop one of the two"
        )

    def _alone(self) -> asyncio.Lock:
        """Return what keeps `open` and `close` apart; an asyncio.Lock belongs to one loop."""
        if self._lifecycle is None or self._lifecycle_loop is not asyncio.get_running_loop():
            self._lifecycle, self._lifecycle_loop = asyncio.Lock(), asyncio.get_running_loop()
        return self._lifecycle
