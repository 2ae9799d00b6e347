"""The table that tutorials show: a row for each message, all of them written at every update."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any, ClassVar

from chats import Chats, Document
from contenders import Contender, Persistence
from ptb_alone import Nothing

_SCHEMA = """
    CREATE TABLE IF NOT EXISTS chats (chat_id INTEGER PRIMARY KEY, data TEXT NOT NULL);
    CREATE TABLE IF NOT EXISTS messages (
        chat_id INTEGER NOT NULL,
        n INTEGER NOT NULL,
        at TEXT NOT NULL,
        text TEXT NOT NULL,
        PRIMARY KEY (chat_id, n)
    );
"""


class RowPerMessage(Nothing):
    """One SELECT and one INSERT or UPDATE for each message of the chat, in one transaction.

    Its author has set the log and the index as well as they can be. Like its models it runs on the
    event loop.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._database = sqlite3.connect(path)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.executescript(_SCHEMA)

    async def get_chat_data(self) -> Chats:
        query = "SELECT chat_id, data FROM chats"
        chats: Chats = {
            chat_id: json.loads(data) | {"messages": []}
            for chat_id, data in self._database.execute(query)
        }
        query = "SELECT chat_id, n, at, text FROM messages ORDER BY chat_id, n"
        for chat_id, n, at, text in self._database.execute(query):
            chats[chat_id]["messages"].append({"at": at, "text": text, "n": n})
        return chats

    async def update_chat_data(self, chat_id: int, data: Any) -> None:
        with self._database:
            self.put(chat_id, data)

    def put(self, chat_id: int, data: Document) -> None:
        """Write a chat, in whatever transaction there is."""
        rest = json.dumps({name: value for name, value in data.items() if name != "messages"})
        self._database.execute("INSERT OR REPLACE INTO chats VALUES (?, ?)", (chat_id, rest))
        for message in data["messages"]:
            names = {"chat_id": chat_id, **message}
            found = self._database.execute(
                "SELECT 1 FROM messages WHERE chat_id = :chat_id AND n = :n", names
            ).fetchone()
            statement = (
                "UPDATE messages SET at = :at, text = :text WHERE chat_id = :chat_id AND n = :n"
                if found
                else "INSERT INTO messages VALUES (:chat_id, :n, :at, :text)"
            )
            self._database.execute(statement, names)

    def put_all(self, chats: Chats) -> None:
        """Write many chats in one transaction."""
        with self._database:
            for chat_id, data in chats.items():
                self.put(chat_id, data)

    async def flush(self) -> None:
        self._database.close()


class Table(Contender):
    """A bot with such a table."""

    name: ClassVar[str] = "a row for each message, by hand"

    async def store(self, chats: Chats) -> None:
        persistence = self._open()
        persistence.put_all(chats)
        await persistence.flush()

    def open(self) -> Persistence:
        return self._open()

    def _open(self) -> RowPerMessage:
        return RowPerMessage(self.folder / "messages.db")
