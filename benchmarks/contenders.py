"""Who takes part, and how each is set up: kvpersist, PTB's own persistences, PTB alone."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import orjson
from chats import Chats
from ptb_alone import NEVER, NO_KEYBOARDS, Nothing, offline_bot
from telegram.ext import (
    Application,
    ApplicationBuilder,
    BasePersistence,
    DictPersistence,
    PicklePersistence,
)

from kvpersist import KVPersistence, application_builder

App: TypeAlias = Application[Any, Any, Any, Any, Any, Any]
Persistence: TypeAlias = BasePersistence[Any, Any, Any]

PUT = """
    INSERT INTO documents (key, value, version, updated_at) VALUES (?, ?, 1, ?)
    ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, version = version + 1, updated_at = excluded.updated_at
"""


class Contender:
    """A persistence, set up as well as it can be, with a folder of its own.

    Attributes:
        name: What it is called in the tables.
        is_slow: Whether a cycle costs more, the more is stored: then it has two turns.
    """

    name: ClassVar[str]
    is_slow: ClassVar[bool] = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def store(self, chats: Chats) -> None:
        """Store these chats, in any way."""
        raise NotImplementedError

    def open(self) -> Persistence:
        """Return the persistence for a bot, in this or another process, which finds them there."""
        raise NotImplementedError

    def builder(self) -> Any:
        """Return the builder of an application with it."""
        return ApplicationBuilder().persistence(self.open())

    async def start(self, **bot: Any) -> App:
        """Return a bot that has loaded what was stored."""
        app: App = self.builder().bot(offline_bot(**bot)).job_queue(None).build()
        await app.initialize()
        return app

    async def end(self) -> None:
        """End what `store` has begun, when the bot is shut down."""


class Alone(Contender):
    """PTB alone."""

    name = "PTB alone"

    async def store(self, chats: Chats) -> None:
        self._chats = chats

    def open(self) -> Persistence:
        return Nothing(self._chats)


class LimitPersistence(Nothing):
    """Keeps what PTB hands over until it is committed."""

    def __init__(self, chats: Chats, connection: sqlite3.Connection) -> None:
        super().__init__(chats)
        self._connection = connection
        self._rows: list[tuple[str, str, int]] = []

    async def update_chat_data(self, chat_id: int, data: Any) -> None:
        self._rows.append((f"chat/{chat_id}", orjson.dumps(data).decode(), 0))

    def commit(self) -> None:
        """Write the rows in one bare transaction."""
        rows, self._rows = self._rows, []
        put(self._connection, rows)

    async def flush(self) -> None:
        self._connection.close()


class LimitApplication(Application[Any, Any, Any, Any, Any, Any]):
    """Commits what one run of PTB's handed over."""

    persistence: LimitPersistence

    async def update_persistence(self) -> None:
        await super().update_persistence()
        self.persistence.commit()


class Limit(Alone):
    """The limit: PTB, and one bare synchronous transaction of the same rows in the same table.

    Nobody could run it: it blocks the event loop, notices nothing and checks nothing.
    """

    name = "the limit"

    async def store(self, chats: Chats) -> None:
        await super().store(chats)
        await make_file(self.folder / "limit.db", chats)

    def open(self) -> Persistence:
        return LimitPersistence(self._chats, connect(self.folder / "limit.db"))

    def builder(self) -> Any:
        return super().builder().application_class(LimitApplication)


class KVPersist(Contender):
    """kvpersist with PTB's own builder, and so with plain dicts."""

    name = "kvpersist, plain dicts"
    options: ClassVar[dict[str, Any]] = {}

    async def store(self, chats: Chats) -> None:
        await make_file(self.folder / f"{self.name}.db", chats)

    def open(self) -> KVPersistence[Any, Any, Any]:
        return KVPersistence(
            self.folder / f"{self.name}.db",
            store_data=NO_KEYBOARDS,
            update_interval=NEVER,
            **self.options,
        )


class Documents(KVPersist):
    """kvpersist with `application_builder`, and so with documents and write-through."""

    name = "kvpersist, documents"

    def builder(self) -> Any:
        return application_builder(self.open())


class Lazy(Documents):
    """The same, reading a chat when it is used first."""

    name = "kvpersist, lazy"
    options: ClassVar[dict[str, Any]] = {"lazy": True, "max_documents": 10_000}


class Pickle(Contender):
    """PTB's own persistence in one file."""

    name = "PicklePersistence"
    is_slow = True
    single_file: ClassVar[bool] = True

    async def store(self, chats: Chats) -> None:
        persistence = self.open()
        persistence.set_bot(offline_bot())  # without it, each None would be taken for the bot
        persistence.user_data, persistence.chat_data, persistence.bot_data = {}, chats, {}
        persistence.conversations = {}
        await persistence.flush()

    def open(self) -> PicklePersistence[Any, Any, Any]:
        return PicklePersistence(
            self.folder / self.name,
            store_data=NO_KEYBOARDS,
            single_file=self.single_file,
            update_interval=NEVER,
        )


class PickleFiles(Pickle):
    """PTB's own persistence in one file a scope."""

    name = "PicklePersistence, single_file=False"
    single_file = False


class Dict(Contender):
    """PTB's persistence in memory, which writes no file; it reads one that a bot has written."""

    name = "DictPersistence, in memory"

    async def store(self, chats: Chats) -> None:
        self._file.write_text(json.dumps(chats))

    def open(self) -> Persistence:
        return DictPersistence(
            store_data=NO_KEYBOARDS, chat_data_json=self._file.read_text(), update_interval=NEVER
        )

    @property
    def _file(self) -> Path:
        return self.folder / "dict.json"


async def make_file(path: Path, chats: Chats) -> None:
    """Make a file of kvpersist that holds these chats."""
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(path)
    await persistence.store.open()
    await persistence.store.close()
    rows = ((f"chat/{number}", orjson.dumps(chat).decode(), 0) for number, chat in chats.items())
    await asyncio.to_thread(_fill, path, rows)


def _fill(path: Path, rows: Iterable[tuple[str, str, int]]) -> None:
    with closing(connect(path)) as connection:
        put(connection, rows)
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def put(connection: sqlite3.Connection, rows: Iterable[tuple[str, str, int]]) -> None:
    """Write rows in one bare transaction."""
    connection.execute("BEGIN IMMEDIATE")
    connection.executemany(PUT, rows)
    connection.execute("COMMIT")


def connect(path: Path) -> sqlite3.Connection:
    """Open a file of kvpersist with the same settings, for any thread."""
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    return connection
