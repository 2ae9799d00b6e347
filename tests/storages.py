"""What lasts between two runs of a bot, in each way in which kvpersist and PTB can keep it.

A `Storage` can end a run as `Application.shutdown` does, or as a crash would: then the next run
finds what was there at that moment, and nothing that is written afterwards.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager, closing
from itertools import count
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from bots import NEVER, Bot, Handler, build
from postgres_server import PostgresServer
from telegram.ext import (
    BasePersistence,
    ContextTypes,
    DictPersistence,
    PersistenceInput,
    PicklePersistence,
)

from kvpersist import KVPersistence, MemoryStore, SqliteStore, Store
from kvpersist.codec import Named
from kvpersist.stores.postgres import PostgresStore

IDS = [1, -1001234567890, 2**62 + 1, -(2**63), 2**63 - 1]
"""Ids of chats: private ones, groups, and the largest that there can be."""

Columns: TypeAlias = list[tuple[str, str, int, int]]
"""Rows, ordered by key: the key, the text, how often it was written, and when."""


class Storage(Protocol):
    """What lasts between two runs of a bot."""

    def persistence(
        self,
        *,
        store_data: PersistenceInput | None = None,
        context_types: ContextTypes[Any, Any, Any, Any] | None = None,
    ) -> BasePersistence[Any, Any, Any]:
        """Return a new persistence on what the last run left."""

    async def crash(self, persistence: BasePersistence[Any, Any, Any]) -> None:
        """Take what is there now as what the next run finds, and clean up after this one."""


class PickleStorage:
    """PTB's own persistence: what it promises, this suite may promise."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "bot.pickle"

    def persistence(
        self,
        *,
        store_data: PersistenceInput | None = None,
        context_types: ContextTypes[Any, Any, Any, Any] | None = None,
    ) -> BasePersistence[Any, Any, Any]:
        return PicklePersistence(
            self.path, store_data=store_data, update_interval=NEVER, context_types=context_types
        )

    async def crash(self, _persistence: BasePersistence[Any, Any, Any]) -> None:
        """Nothing: the file was written at each update."""


class MemoryStorage:
    """kvpersist on a store that a test can look into: `rows`."""

    def __init__(self, *types: type | Named) -> None:
        self.store = MemoryStore()
        self.types = types

    @property
    def rows(self) -> dict[str, bytes]:
        """The text of each stored document."""
        return self.store.rows

    def all_columns(self) -> Columns:
        """Return each row; it has no other columns."""
        return [(key, text.decode(), 0, 0) for key, text in sorted(self.rows.items())]

    def write(self, key: str, text: str | None) -> None:
        """Do to a row what another program would; None deletes it."""
        self.rows.pop(key, None)
        if text is not None:
            self.rows[key] = text.encode()

    def persistence(
        self,
        *,
        store_data: PersistenceInput | None = None,
        context_types: ContextTypes[Any, Any, Any, Any] | None = None,
    ) -> KVPersistence[Any, Any, Any]:
        return _kvpersistence(self.store, store_data, context_types, self.types)

    async def crash(self, _persistence: BasePersistence[Any, Any, Any]) -> None:
        rows = dict(self.rows)
        self.store = MemoryStore()
        self.store.rows.update(rows)


class SqliteStorage:
    """kvpersist on a SQLite file; `rows` and `write` go past it, as other programs do."""

    def __init__(self, folder: Path, *types: type | Named) -> None:
        self.path = folder / "bot.db"
        self.types = types
        self._crashes = count(1)

    @property
    def rows(self) -> dict[str, bytes]:
        """The text of each stored document."""
        return {key: value.encode() for key, value, _, _ in self.all_columns()}

    def all_columns(self) -> Columns:
        """Return each row with all its columns."""
        with closing(sqlite3.connect(self.path)) as connection:
            return connection.execute("SELECT * FROM documents ORDER BY key").fetchall()

    def write(self, key: str, text: str | None) -> None:
        """Do to a row what another program would; None deletes it."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DELETE FROM documents WHERE key = ?", [key])
            if text is not None:
                connection.execute(
                    "INSERT INTO documents (key, value, version, updated_at) VALUES (?, ?, 1, 0)",
                    [key, text],
                )

    def persistence(
        self,
        *,
        store_data: PersistenceInput | None = None,
        context_types: ContextTypes[Any, Any, Any, Any] | None = None,
    ) -> KVPersistence[Any, Any, Any]:
        return _kvpersistence(SqliteStore(self.path), store_data, context_types, self.types)

    async def crash(self, persistence: BasePersistence[Any, Any, Any]) -> None:
        self.wreck()
        await persistence.flush()

    def wreck(self) -> None:
        """Go on with copies of the files as they are now, before anything is closed."""
        wreck, self.path = self.path, self.path.with_name(f"copy{next(self._crashes)}.db")
        for suffix in ("", "-wal"):
            shutil.copy(f"{wreck}{suffix}", f"{self.path}{suffix}")


class PostgresStorage:
    """kvpersist in a schema of a PostgreSQL server; `rows` and `write` go past it."""

    _names = count(1)

    def __init__(
        self, server: PostgresServer, *types: type | Named, port: int | None = None
    ) -> None:
        self.server = server
        self.port = port  # if it is not reached directly
        self.types = types
        self.schema = self._next_name()

    @property
    def rows(self) -> dict[str, bytes]:
        """The text of each stored document."""
        return {key: value.encode() for key, value, _, _ in self.all_columns()}

    def all_columns(self) -> Columns:
        """Return each row with all its columns."""
        found = self.server.query(f"SELECT * FROM {self.schema}.documents ORDER BY key")
        return [(key, value, version, at) for key, value, version, at in found]

    def write(self, key: str, text: str | None) -> None:
        """Do to a row what another program would; None deletes it."""
        self.server.query(f"DELETE FROM {self.schema}.documents WHERE key = $1", key)
        if text is not None:
            put = f"INSERT INTO {self.schema}.documents VALUES ($1, $2, 1, 0)"
            self.server.query(put, key, text)

    def store(self, **options: Any) -> PostgresStore:
        """Return a closed store of the schema."""
        return PostgresStore(self.server.url(port=self.port), schema=self.schema, **options)

    def persistence(
        self,
        *,
        store_data: PersistenceInput | None = None,
        context_types: ContextTypes[Any, Any, Any, Any] | None = None,
    ) -> KVPersistence[Any, Any, Any]:
        return _kvpersistence(self.store(), store_data, context_types, self.types)

    async def crash(self, persistence: BasePersistence[Any, Any, Any]) -> None:
        wreck, self.schema = self.schema, self._next_name()
        self.server.query(f"CREATE SCHEMA {self.schema}")
        for table in ("documents", "set_aside", "kvpersist_schema"):
            copy = f"{self.schema}.{table}"
            self.server.query(f"CREATE TABLE {copy} (LIKE {wreck}.{table} INCLUDING ALL)")
            self.server.query(f"INSERT INTO {copy} SELECT * FROM {wreck}.{table}")
        await persistence.flush()

    def _next_name(self) -> str:
        return f"bot{next(self._names)}"


KV: TypeAlias = MemoryStorage | SqliteStorage | PostgresStorage
"""A storage with rows to look at."""


def rows_of(kv: KV, prefix: str) -> dict[str, bytes]:
    """Return the stored rows whose keys begin with `prefix`."""
    return {key: text for key, text in kv.rows.items() if key.startswith(prefix)}


def _kvpersistence(
    store: Store,
    store_data: PersistenceInput | None,
    context_types: ContextTypes[Any, Any, Any, Any] | None,
    types: Collection[type | Named],
) -> KVPersistence[Any, Any, Any]:
    return KVPersistence(
        store,
        store_data=store_data,
        update_interval=NEVER,
        context_types=context_types or ContextTypes(),
        types=types,
    )


@asynccontextmanager
async def running(
    storage: Storage,
    *handlers: Handler,
    crash: bool = False,
    started: bool = False,
    store_data: PersistenceInput | None = None,
    context_types: ContextTypes[Any, Any, Any, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Bot]:
    """Run a bot on what its last run left in `storage`, each handler in a group of its own.

    At the end it is shut down; with `crash`, it is never heard of again instead. With `started`,
    its background tasks run as well. No errors may be left in `Bot.errors`.
    """
    persistence = storage.persistence(store_data=store_data, context_types=context_types)
    bot = build(persistence, handlers, context_types=context_types, **options)
    await bot.app.initialize()
    try:
        if started:
            await bot.app.start()
        yield bot
        if crash:
            await storage.crash(persistence)
            bot.app.persistence = DictPersistence(update_interval=NEVER)  # its last words get lost
    finally:
        if started:
            await bot.app.stop()
        await bot.app.shutdown()
    assert bot.errors == []
