"""A visit to a PostgreSQL schema of kvpersist's. See `visitor`."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg

from kvpersist.errors import (
    ConfigurationError,
    OpenError,
    ReadError,
    StoreInUseError,
    WriteError,
)
from kvpersist.stores.key_range import after
from kvpersist.stores.postgres_errors import FAILURES, words
from kvpersist.stores.postgres_owner import lock_key
from kvpersist.stores.postgres_schema import (
    LONGEST_NAME,
    SCHEMA_VERSION,
    has_tables,
    is_name,
    prepare,
    quoted,
)
from kvpersist.stores.postgres_statements import TAKE_OVER, now
from kvpersist.stores.postgres_url import shown
from kvpersist.stores.visitor import PAGE_ROWS, Change, Existing, StoredRow

if TYPE_CHECKING:
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

_COLUMNS: Final = "key, value::text, version, updated_at"
_READ: Final = f"SELECT {_COLUMNS} FROM {{schema}}.documents WHERE key = ANY($1::text[])"
_SCAN: Final = f"""
    SELECT {_COLUMNS} FROM {{schema}}.documents WHERE key {{above}} $1 {{below}}
    ORDER BY key LIMIT $2
"""
_VERSIONS: Final = "SELECT key, version, updated_at FROM {schema}.documents WHERE key >= $1 {below}"
_ASIDE: Final = f"SELECT {_COLUMNS} FROM {{schema}}.set_aside ORDER BY set_aside_at, key"
_ANY: Final = "SELECT 1 FROM {schema}.documents LIMIT 1"
_LOCK: Final = f"{_READ} FOR UPDATE"
_REMOVE: Final = "DELETE FROM {schema}.documents WHERE key = $1"
_ADD: Final = """
    INSERT INTO {schema}.documents AS old (key, value, version, updated_at)
    SELECT * FROM unnest($1::text[], $2::json[], $3::bigint[], $4::bigint[])
"""
_PUT: Final = f"""
    {_ADD} ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, version = old.version + 1, updated_at = excluded.updated_at
"""
_REMOVE_ASIDE: Final = "DELETE FROM {schema}.set_aside WHERE key = $1 AND value::text = $2"


class PostgresVisitor:
    """Looks at a PostgreSQL schema, and may change rows of it.

    Args:
        url: That of a `PostgresStore`. One more option, ``schema``, says which schema it is, if
            not ``public``: ``postgresql://db.example/bot?schema=shop``.
        timeout: Seconds to wait for a connection, and for the answer to a statement.

    Raises:
        ConfigurationError: It is no such URL.
    """

    def __init__(self, url: str, *, timeout: float = 30.0) -> None:
        self.shown = shown(url)
        self.url, self.schema = split_schema(url)
        if not is_name(self.schema):
            raise ConfigurationError(
                f"schema= must be a name of 1 to {LONGEST_NAME} bytes, not {self.schema!r}"
            )
        self._timeout = timeout
        self._connection: Connection | None = None

    async def open(self) -> None:
        """Connect. The tables must be there."""
        await self.connect()
        try:
            async with self._reading(), self._open.transaction(readonly=True):
                is_there = await has_tables(self._open, self.schema)
        except (OpenError, ReadError) as error:
            await self.close()
            raise OpenError(f"{error}") from error
        if not is_there:
            await self.close()
            raise OpenError(
                f"{self.shown}: the schema {self.schema!r} has no tables of kvpersist's; see its "
                "name: …?schema=NAME"
            )

    async def connect(self) -> None:
        """Connect, whether there are tables or not.

        Raises:
            OpenError: The server cannot be reached, or refuses the user.
        """
        try:
            self._connection = await asyncpg.connect(
                self.url, timeout=self._timeout, command_timeout=None, statement_cache_size=0
            )
        except FAILURES as error:
            if isinstance(error, ValueError) and not isinstance(error, OSError):
                reason = "asyncpg cannot read the URL, or what it names; see its options"
                raise OpenError(f"{self.shown}: {reason}") from None
            raise OpenError(f"{self.shown}: {words(error)}") from error

    async def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Return the rows of a statement about tables of others, in the schema. Raises `ReadError`.

        It must be within `snapshot`.
        """
        await self._fetch(f"SET LOCAL search_path = {quoted(self.schema)}")
        return [tuple(record) for record in await self._fetch(sql)]

    async def open_or_create(self) -> None:
        """Connect, and make the tables where they are missing. Raises as `open`."""
        await self.connect()
        try:
            await prepare(self._open, self.schema, is_shared=False)
        except (*FAILURES, OpenError) as error:
            await self.close()
            raise OpenError(f"{self.shown}: {words(error)}") from error

    async def close(self) -> None:
        """Disconnect."""
        if self._connection is not None:
            with suppress(*FAILURES):
                await self._connection.close(timeout=self._timeout)
            self._connection = None

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[None]:
        """Hold one read-only transaction of the level REPEATABLE READ."""
        transaction = self._open.transaction(isolation="repeatable_read", readonly=True)
        async with self._reading():
            await transaction.start()
        try:
            yield
        finally:
            with suppress(*FAILURES):
                await transaction.rollback()

    async def read(self, keys: Collection[str]) -> dict[str, StoredRow]:
        """Return those of `keys` that exist."""
        return {row.key: row for row in map(_row, await self._fetch(_READ, list(keys)))}

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[StoredRow]]:
        """Yield all rows whose key begins with `prefix`, ordered by key, 500 at a time."""
        end = after(prefix)
        bounds = () if end is None else (end,)
        start, above = prefix, ">="
        while True:
            below = "AND key < $3" if bounds else ""
            sql = _SCAN.replace("{above}", above).replace("{below}", below)
            found = await self._fetch(sql, start, PAGE_ROWS, *bounds)
            if not found:
                return
            yield [_row(record) for record in found]
            start, above = found[-1][0], ">"

    async def changes(self) -> object:
        """Return what differs from all others: PostgreSQL does not tell."""
        return object()

    async def versions(self, prefix: str) -> dict[str, tuple[int, int]]:
        """Return `version` and `updated_at` of all rows whose key begins with `prefix`."""
        end = after(prefix)
        bounds = () if end is None else (end,)
        sql = _VERSIONS.replace("{below}", "AND key < $2" if bounds else "")
        return {key: (version, at) for key, version, at in await self._fetch(sql, prefix, *bounds)}

    async def aside(self) -> Sequence[StoredRow]:
        """Return the rows that were set aside because they could not be read."""
        return [_row(record) for record in await self._fetch(_ASIDE)]

    async def faults(self) -> Sequence[str]:
        """Return nothing: a server is checked by its own means, such as ``pg_amcheck``."""
        return []

    async def schema_version(self) -> int:
        """Return the number of the stored schema."""
        return SCHEMA_VERSION  # `open` refuses all others

    async def change(
        self, changes: Mapping[str, Change], *, alone: bool, aside: Collection[StoredRow] = ()
    ) -> Sequence[str]:
        """Make all changes or none, in one transaction."""
        async with self._transaction(alone=alone):
            records = await self._run(_LOCK, list(changes))
            found = {row.key: row for row in map(_row, records)}
            other = [key for key, change in changes.items() if found.get(key) != change.before]
            if other:
                return other
            for key, change in changes.items():
                if change.value is None:
                    await self._run(_REMOVE, key)
                else:
                    await self._run(_PUT, *_columns([StoredRow(key, change.value, 1, now())]))
            for row in aside:
                await self._run(_REMOVE_ASIDE, row.key, row.value.decode())
        return []

    async def fill(self, pages: AsyncIterable[Sequence[StoredRow]], existing: Existing) -> int:
        """Write rows as they are, in one transaction, while no bot has the schema."""
        number = 0
        async with self._transaction(alone=True):
            if existing == "clear":
                await self._run("DELETE FROM {schema}.documents")
            elif existing == "none" and await self._run(_ANY):
                raise WriteError(
                    f"{self.shown}: the schema {self.schema!r} has rows already; name another: "
                    "…?schema=NAME"
                )
            sql = _PUT if existing == "replace" else _ADD
            async for page in pages:
                await self._run(sql, *_columns(page))
                await self._compare(page)
                number += len(page)
        return number

    async def _compare(self, page: Sequence[StoredRow]) -> None:
        records = await self._run(_READ, [row.key for row in page])
        written = {row.key: row.value for row in map(_row, records)}
        for row in page:
            if written.get(row.key) != row.value:
                raise WriteError(
                    f"{self.shown}: {row.key} is not what was written; nothing was changed"
                )

    @asynccontextmanager
    async def _transaction(self, *, alone: bool) -> AsyncIterator[None]:
        try:
            async with self._open.transaction(isolation="read_committed"):
                if alone:
                    key = lock_key("owner", self.schema)
                    if not await self._open.fetchval(f"SELECT pg_try_advisory_xact_lock({key})"):
                        raise StoreInUseError(
                            f"a bot has {self.shown}, schema {self.schema!r}, open; stop it first"
                        )
                    # A bot that was cut off, and has the rows in memory, must write none of them.
                    await self._run(TAKE_OVER, uuid.uuid4().hex)
                yield
        except asyncpg.UniqueViolationError as error:
            raise WriteError(
                f"{self.shown}: {error.detail or error}; remove it first, or say --replace"
            ) from error
        except FAILURES as error:
            raise WriteError(f"{self.shown}: {words(error)}; nothing was changed") from error

    @property
    def _open(self) -> Connection:
        assert self._connection is not None  # noqa: S101  `open` was called
        return self._connection

    async def _run(self, sql: str, *parameters: object) -> list[asyncpg.Record]:
        return await self._open.fetch(sql.replace("{schema}", quoted(self.schema)), *parameters)

    async def _fetch(self, sql: str, *parameters: object) -> list[asyncpg.Record]:
        async with self._reading():
            if self._open.is_in_transaction():
                return await self._run(sql, *parameters)
            # In a transaction, or a pooler might send the two parts of it to two servers.
            async with self._open.transaction(isolation="read_committed", readonly=True):
                return await self._run(sql, *parameters)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[None]:
        try:
            yield
        except FAILURES as error:
            raise ReadError(f"{self.shown}: {words(error)}") from error


def split_schema(url: str) -> tuple[str, str]:
    """Return a URL without the option ``schema``, and what that says."""
    parts = urlsplit(url)
    options = parse_qsl(parts.query, keep_blank_values=True)
    schemas = [value for name, value in options if name == "schema"]
    if not schemas:
        return url, "public"
    query = urlencode([(name, value) for name, value in options if name != "schema"])
    return urlunsplit((parts.scheme, parts.netloc, parts.path, query, "")), schemas[-1]


def _row(record: asyncpg.Record) -> StoredRow:
    key, value, version, updated_at = record
    return StoredRow(key, value.encode(), version, updated_at)


def _columns(rows: Sequence[StoredRow]) -> tuple[list[str], list[str], list[int], list[int]]:
    return (
        [row.key for row in rows],
        [row.value.decode() for row in rows],
        [row.version for row in rows],
        [row.updated_at for row in rows],
    )
