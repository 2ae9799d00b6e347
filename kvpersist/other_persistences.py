"""What other persistences keep as JSON: `DictPersistence`, ptbcontrib's and Django's.

All of them keep what JSON makes of the data: dicts with keys of text, tuples as lists. That is what
is moved; nobody can tell any more what it was before.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from telegram.ext import DictPersistence

from kvpersist.errors import OpenError, TransferError
from kvpersist.migration import Data

_PARTS: Final = ("user_data", "chat_data", "bot_data", "callback_data", "conversations")
_TABLE: Final = "python_telegram_bot_django_persistence_"
_PAIR: Final = 2
_NOTHING: Final = "null"
"""What PTB writes for a part that its bot does not store, and does not read again."""


async def read_json(path: Path) -> Data:
    """Return what is in a file of the JSON strings of a `DictPersistence`.

    It is an object of ``user_data`` and so on (or ``user_data_json``), each a string or the JSON
    itself.

    Raises:
        TransferError: It is no such file.
    """
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise TransferError(f"{path} is no JSON: {error}; see docs/moving.md") from error
    return await of_strings(found, str(path))


async def of_strings(found: Any, name: str) -> Data:
    """Return what the JSON strings of a `DictPersistence` hold, by its own reading.

    Raises:
        TransferError: They are none. `name` says where they are.
    """
    if not isinstance(found, dict) or not found:
        raise TransferError(f"{name}: an object of {', '.join(_PARTS)} is wanted")
    parts = {part.removesuffix("_json"): value for part, value in found.items()}
    if more := parts.keys() - set(_PARTS):
        raise TransferError(f"{name}: nobody knows {', '.join(sorted(more))}; see docs/moving.md")
    strings: dict[str, Any] = {
        f"{part}_json": value if isinstance(value, str) else json.dumps(value)
        for part, value in parts.items()
        if value not in (None, _NOTHING)
    }
    try:
        read = DictPersistence(**strings)
    except (TypeError, ValueError, KeyError, LookupError) as error:
        raise TransferError(f"{name}: {error}; see docs/moving.md") from error
    return Data(
        user_data=read.user_data or {},
        chat_data=read.chat_data or {},
        bot_data=read.bot_data,
        callback_data=read.callback_data,
        conversations={name: dict(each) for name, each in (read.conversations or {}).items()},
    )


async def read_ptbcontrib(url: str) -> Data:
    """Return what is in the table ``persistence`` of ptbcontrib's `PostgresPersistence`.

    Raises:
        OpenError, TransferError: It cannot be read, or has no row.
    """
    (rows,) = await _fetch(url, ["SELECT data::text FROM persistence LIMIT 2"])
    if len(rows) != 1:
        raise TransferError("the table persistence must have one row; see docs/moving.md")
    return await of_strings(json.loads(rows[0][0]), "the table persistence")


async def read_django(store: str, namespace: str) -> Data:
    """Return what is in the tables of python-telegram-bot-django-persistence.

    Args:
        store: A SQLite file, or the URL of a PostgreSQL database.
        namespace: Which of those that the tables hold.

    Raises:
        OpenError, TransferError: They cannot be read.
    """
    statements = {
        "user_data": "SELECT namespace, user_id, data{} FROM {}userdata",
        "chat_data": "SELECT namespace, chat_id, data{} FROM {}chatdata",
        "bot_data": "SELECT namespace, id, data{} FROM {}botdata",
        "callback_data": "SELECT namespace, id, data{} FROM {}callbackdata",
        "conversations": "SELECT namespace, name, key, state{} FROM {}conversationdata",
    }
    is_url = store.startswith(("postgresql:", "postgres:"))
    cast = "::text" if is_url else ""
    every = [statement.format(cast, _TABLE) for statement in statements.values()]
    tables = await _fetch(store, every) if is_url else _fetch_sqlite(Path(store), every)
    found = {
        name: [row[1:] for row in rows if row[0] == namespace]
        for name, rows in zip(statements, tables, strict=True)
    }
    if not any(found.values()):
        there = sorted({row[0] for rows in tables for row in rows})
        raise TransferError(
            f"the tables have nothing of the namespace {namespace!r}; they have {there}: "
            "say --namespace"
        )
    return _of_django(found)


def _of_django(found: Mapping[str, list[tuple[Any, ...]]]) -> Data:
    data = Data(
        user_data={user: json.loads(text) for user, text in found["user_data"]},
        chat_data={chat: json.loads(text) for chat, text in found["chat_data"]},
    )
    for _, text in found["bot_data"]:
        data.bot_data = json.loads(text)
    for _, text in found["callback_data"]:
        data.callback_data = _callback(json.loads(text))
    for name, key, text in found["conversations"]:
        state = None if text is None else json.loads(text)
        data.conversations.setdefault(name, {})[tuple(json.loads(key))] = state
    return data


def _callback(found: Any) -> Any:
    try:
        keyboards, queries = found
        return [(one, float(two), dict(three)) for one, two, three in keyboards], dict(queries)
    except (TypeError, ValueError) as error:
        raise TransferError(f"the callback data are not what PTB hands over: {error}") from error


def _fetch_sqlite(path: Path, statements: list[str]) -> list[list[tuple[Any, ...]]]:
    if not path.is_file():
        raise OpenError(
            f"there is no file {path}. Is the path right? It is the file of the bot's database"
        )
    uri = f"{path.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True)) as connection:
            connection.execute("BEGIN")
            return [connection.execute(statement).fetchall() for statement in statements]
    except sqlite3.Error as error:
        raise OpenError(f"{path} cannot be read: {error}; see docs/moving.md") from error


async def _fetch(url: str, statements: list[str]) -> list[list[tuple[Any, ...]]]:
    from kvpersist.stores.postgres_visitor import PostgresVisitor  # noqa: PLC0415  an extra

    visitor = PostgresVisitor(url)
    await visitor.connect()
    try:
        async with visitor.snapshot():
            return [await visitor.query(statement) for statement in statements]
    finally:
        await visitor.close()
