"""Writing through after every update, one after the other and 64 at a time; reading only."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Awaitable, Callable
from copy import deepcopy
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import aiosqlite
import orjson
from contenders import PUT, Nothing, application, connect, kvpersist_at
from measure import Row, document, folder, ratio, report, side_by_side, summary
from telegram import Chat, Message, Update, User
from telegram.ext import Application, PersistenceInput, TypeHandler

UPDATES = 200
CHATS = 50
App = Application[Any, Any, Any, Any, Any, Any]
Turn = Callable[[int], Awaitable[float]]
_NOW = datetime.now(timezone.utc)


def updates() -> list[Update]:
    """Return messages of 50 chats."""
    return [update(at, at % CHATS + 1) for at in range(UPDATES)]


def update(number: int, chat_id: int) -> Update:
    """Return a message."""
    sender = User(chat_id, "P", is_bot=False)
    return Update(number, Message(number, _NOW, Chat(chat_id, "private"), sender))


async def change(_: Update, context: Any) -> None:
    """Change the data of the chat: one row of 0.8 KB."""
    context.chat_data["count"] += 1


async def look(_: Update, context: Any) -> None:
    """Change nothing."""
    assert context.chat_data["count"] >= 0


async def bot(path: Path | None, handle: Any) -> App:
    """Return a bot that writes through, or one without persistence, and its 50 chats."""
    stored = PersistenceInput(callback_data=False)
    persistence: Any = Nothing(store_data=stored) if path is None else kvpersist_at(path)
    data = {chat: document(chat) for chat in range(1, CHATS + 1)}
    app = await application(persistence, data, writes_through=True)
    app.add_handler(TypeHandler(Update, handle))
    return app


def one_after_the_other(app: App) -> Turn:
    """Return a turn: handle all updates, each when the one before is durable."""
    received = updates()

    async def turn(_: int) -> float:
        start = time.perf_counter()
        for update in received:
            await app.process_update(update)
        return (time.perf_counter() - start) / UPDATES

    return turn


def at_a_time(app: App, number: int) -> Turn:
    """Return a turn: handle all updates, so many at a time."""
    received = updates()

    async def turn(_: int) -> float:
        gate = asyncio.Semaphore(number)

        async def handle(update: Update) -> None:
            async with gate:
                await app.process_update(update)

        start = time.perf_counter()
        await asyncio.gather(*map(handle, received))
        return (time.perf_counter() - start) / UPDATES

    return turn


async def smallest(path: Path) -> tuple[Turn, aiosqlite.Connection]:
    """Return a turn: the smallest possible, one hop and one transaction of one row an update.

    aiosqlite's thread, which is faster than an executor's, runs BEGIN, the row and COMMIT in one
    call. There is no bot in it.
    """
    connect(path).close()
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    thread = await aiosqlite.connect(":memory:")
    hop: Any = thread._execute  # noqa: SLF001  exactly one hop
    text = orjson.dumps(document(1)).decode()

    def transaction(at: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(PUT, (f"chat/{at % CHATS}", text, at))
        connection.execute("COMMIT")

    async def turn(_: int) -> float:
        start = time.perf_counter()
        for at in range(UPDATES):
            await hop(transaction, at)
        return (time.perf_counter() - start) / UPDATES

    return turn, thread


async def run() -> list[Row]:
    with folder() as path:
        writing, reading, bare = (
            await bot(path / "bot.db", change),
            await bot(path / "read.db", look),
            await bot(None, look),
        )
        hop, thread = await smallest(path / "smallest.db")
        bare_turn = one_after_the_other(bare)
        data: list[dict[str, Any]] = [document(1), {}, {}]

        async def copies(_: int) -> float:
            start = time.perf_counter()
            for _ in range(UPDATES):
                for one in data:
                    deepcopy(one)
            return (time.perf_counter() - start) / UPDATES

        seconds = await side_by_side(
            {
                "the smallest possible": hop,
                "kvpersist": one_after_the_other(writing),
                "kvpersist, 64 at a time": at_a_time(writing, 64),
                "kvpersist, reading": one_after_the_other(reading),
                "PTB alone": bare_turn,
                "deepcopy of the documents": copies,
            }
        )
        await thread.close()
        for app in (writing, reading, bare):
            await app.shutdown()
    smallest_possible = [
        one + other
        for one, other in zip(seconds["the smallest possible"], seconds["PTB alone"], strict=True)
    ]
    seconds["hop + PTB"] = smallest_possible
    extra = [
        one - other
        for one, other in zip(seconds["kvpersist, reading"], seconds["PTB alone"], strict=True)
    ]
    seconds["reading - PTB"] = extra
    return [
        Row(
            "write-through after every update, one after the other",
            ratio(seconds, "hop + PTB", "kvpersist"),
            ">= 0.8",
            "x the updates/s of the smallest possible",
            **summary(seconds),
        ),
        Row(
            "the same, 64 at a time",
            ratio(seconds, "kvpersist", "kvpersist, 64 at a time"),
            ">= 5",
            "x the updates/s one after the other",
        ),
        Row(
            "an update that changes nothing",
            ratio(seconds, "reading - PTB", "deepcopy of the documents"),
            "<= 1",
            "x copy.deepcopy of its documents",
        ),
    ]


if __name__ == "__main__":
    report(asyncio.run(run()))
