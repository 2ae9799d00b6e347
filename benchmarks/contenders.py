"""Who takes part: kvpersist, PTB alone, the limit, PTB's own persistences, and peers."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import orjson
from telegram.ext import (
    Application,
    ApplicationBuilder,
    BasePersistence,
    DictPersistence,
    ExtBot,
    PersistenceInput,
    PicklePersistence,
)
from telegram.request import BaseRequest

from kvpersist import KVPersistence, application_builder

NEVER = 1e6
"""An update interval so long that PTB's background run does not disturb."""

SCHEMA = """
    CREATE TABLE documents (
        key TEXT NOT NULL PRIMARY KEY,
        value TEXT NOT NULL,
        version INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    )
"""
PUT = """
    INSERT INTO documents (key, value, version, updated_at) VALUES (?, ?, 1, ?)
    ON CONFLICT (key) DO UPDATE
    SET value = excluded.value, version = version + 1, updated_at = excluded.updated_at
"""


class Offline(BaseRequest):
    """Telegram, as far as a bot that sends nothing notices."""

    @property
    def read_timeout(self) -> float | None:
        return None

    async def initialize(self) -> None: ...

    async def shutdown(self) -> None: ...

    async def do_request(self, *_: Any, **__: Any) -> tuple[int, bytes]:
        me = b'{"id":1,"is_bot":true,"first_name":"Bot","username":"bot"}'
        return 200, b'{"ok":true,"result":%s}' % me


class Nothing(BasePersistence[dict[Any, Any], dict[Any, Any], dict[Any, Any]]):
    """PTB alone: a persistence that stores nothing."""

    def __init__(self, **options: Any) -> None:
        super().__init__(update_interval=NEVER, **options)

    async def get_user_data(self) -> dict[int, Any]:
        return {}

    async def get_chat_data(self) -> dict[int, Any]:
        return {}

    async def get_bot_data(self) -> dict[Any, Any]:
        return {}

    async def get_callback_data(self) -> None:
        return None

    async def get_conversations(self, name: str) -> dict[Any, Any]:  # noqa: ARG002
        return {}

    async def update_user_data(self, user_id: int, data: Any) -> None: ...

    async def update_chat_data(self, chat_id: int, data: Any) -> None: ...

    async def update_bot_data(self, data: Any) -> None: ...

    async def update_callback_data(self, data: Any) -> None: ...

    async def update_conversation(self, name: str, key: Any, new_state: Any) -> None: ...

    async def drop_user_data(self, user_id: int) -> None: ...

    async def drop_chat_data(self, chat_id: int) -> None: ...

    async def refresh_user_data(self, user_id: int, user_data: Any) -> None: ...

    async def refresh_chat_data(self, chat_id: int, chat_data: Any) -> None: ...

    async def refresh_bot_data(self, bot_data: Any) -> None: ...

    async def flush(self) -> None: ...


class Limit(Nothing):
    """The limit: PTB, and one bare synchronous transaction of the same rows in the same table.

    Nobody could run it: it blocks the event loop, notices nothing and checks nothing.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(store_data=PersistenceInput(callback_data=False))
        self.connection = connect(path)
        self._rows: list[tuple[str, str, int]] = []

    async def update_chat_data(self, chat_id: int, data: Any) -> None:
        self._rows.append((f"chat/{chat_id}", orjson.dumps(data).decode(), 0))

    def commit(self) -> None:
        """Write what this run of PTB's handed over."""
        rows, self._rows = self._rows, []
        self.connection.execute("BEGIN IMMEDIATE")
        self.connection.executemany(PUT, rows)
        self.connection.execute("COMMIT")

    async def flush(self) -> None:
        self.connection.close()


def connect(path: Path) -> sqlite3.Connection:
    """Open a SQLite file with the same settings as kvpersist's."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(SCHEMA.replace("TABLE", "TABLE IF NOT EXISTS", 1))
    return connection


def builder(
    persistence: BasePersistence[Any, Any, Any],
    *,
    writes_through: bool = False,
    arbitrary_callback_data: bool = False,
) -> Any:
    """Return PTB's builder, or kvpersist's, for a bot that never reaches Telegram."""
    offline = Offline()
    bot: ExtBot[None] = ExtBot(
        "1:offline",
        request=offline,
        get_updates_request=offline,
        arbitrary_callback_data=arbitrary_callback_data,
    )
    if writes_through and isinstance(persistence, KVPersistence):
        made: Any = application_builder(persistence)
    else:
        made = ApplicationBuilder().persistence(persistence)
    return made.bot(bot).job_queue(None)


async def application(
    persistence: BasePersistence[Any, Any, Any],
    data: Mapping[int, Any] | None = None,
    **options: Any,
) -> Application[Any, Any, Any, Any, Any, Any]:
    """Return an initialised application that holds, and has stored, this chat data."""
    app: Application[Any, Any, Any, Any, Any, Any] = builder(persistence, **options).build()
    await app.initialize()
    await fill(app, data or {})
    return app


async def fill(app: Application[Any, Any, Any, Any, Any, Any], data: Mapping[int, Any]) -> None:
    """Let an application have this chat data, and store it."""
    for chat_id, value in data.items():
        app.chat_data[chat_id].update(value)
    if isinstance(app.persistence, PicklePersistence):
        # What PTB would have after it had written the file once for each chat.
        app.persistence.chat_data = deepcopy(dict(app.chat_data))
    elif data:
        app.mark_data_for_update_persistence(chat_ids=list(data))
        await app.update_persistence()
    if isinstance(app.persistence, Limit):
        app.persistence.commit()


def kvpersist_at(path: Path, **options: Any) -> KVPersistence[Any, Any, Any]:
    """Return kvpersist as a user would have it, but for the callback data."""
    return KVPersistence(
        path,
        store_data=PersistenceInput(callback_data=False),
        update_interval=NEVER,
        **options,
    )


def pickle_at(path: Path, *, single_file: bool = True) -> PicklePersistence[Any, Any, Any]:
    """Return PTB's own persistence in a file, or in one file a scope."""
    return PicklePersistence(
        path,
        store_data=PersistenceInput(callback_data=False),
        single_file=single_file,
        update_interval=NEVER,
    )


def dict_persistence() -> DictPersistence:
    """Return PTB's persistence in memory, which a user would write to a file by hand."""
    return DictPersistence(store_data=PersistenceInput(callback_data=False), update_interval=NEVER)
