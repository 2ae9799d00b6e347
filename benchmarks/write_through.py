"""Writing through after every update, one after the other and 64 at a time; reading only."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from copy import deepcopy
from pathlib import Path
from typing import Any

import aiosqlite
import orjson
from chats import FIRST, Chats, chats, document, update
from contenders import (
    PUT,
    Alone,
    App,
    Contender,
    Documents,
    Pickle,
    PickleFiles,
    connect,
    make_file,
)
from everybody import EVERYBODY, bots
from measure import Turn, folder, ratio, ratios, side_by_side, size
from peers import Django, Mongo
from ptb_alone import offline_bot
from row import Row, report, spread
from telegram import Update
from telegram.ext import TypeHandler

UPDATES = size(50, 10)
"""So few at a time, and often, because a thread that is waited for feels what else runs."""
ROUNDS = size(60, 2)
CHATS = 50
AT_A_TIME = 64
SMALLEST = "the smallest possible"
CHANGES_NOTHING = "an update that changes nothing"
SLOW = (Django.name, Mongo.name, Pickle.name, PickleFiles.name)


async def change(_: Update, context: Any) -> None:
    """Change the data of the chat: one row of 0.8 KB."""
    context.chat_data["count"] += 1


async def look(_: Update, context: Any) -> None:
    """Change nothing."""
    assert context.chat_data["count"] >= 0


def received(count: int = UPDATES) -> list[Update]:
    """Return messages of 50 chats."""
    return [update(at, FIRST + at % CHATS) for at in range(count)]


def through_the_queue(app: App, count: int = UPDATES) -> Turn:
    """Return a turn: let PTB handle the updates in its queue."""
    updates = received(count)

    async def turn(_: int) -> float:
        start = time.perf_counter()
        for one in updates:
            app.update_queue.put_nowait(one)
        await app.update_queue.join()
        return (time.perf_counter() - start) / count

    return turn


def saved_after_each(app: App) -> Turn:
    """Return a turn: tell PTB to save after each update, as a bot must that loses none."""
    updates = received()

    async def turn(_: int) -> float:
        start = time.perf_counter()
        for one in updates:
            await app.process_update(one)
            await app.update_persistence()
        return (time.perf_counter() - start) / UPDATES

    return turn


@asynccontextmanager
async def running(
    kind: type[Contender], folder: Path, data: Chats, handle: Any, at_a_time: int = 1
) -> AsyncIterator[App]:
    """Give a bot that takes updates from its queue."""
    folder.mkdir()
    contender = kind(folder)
    await contender.store(data)
    builder = contender.builder().bot(offline_bot()).job_queue(None)
    app: App = builder.concurrent_updates(at_a_time).build()
    app.add_handler(TypeHandler(Update, handle))
    async with app:
        await app.start()
        yield app
        await app.stop()


@asynccontextmanager
async def smallest(path: Path, data: Chats) -> AsyncIterator[Any]:
    """Give a handler that makes each update durable in the smallest possible way.

    It takes one hop and one transaction of one row: aiosqlite's thread, which is faster than an
    executor's, runs BEGIN, the row and COMMIT in one call. The hop is part of the update, because
    it takes longer when the thread had time to fall asleep.
    """
    await make_file(path, data)
    text = orjson.dumps(document(1)).decode()

    def transaction(update: Update) -> None:
        connection.execute("BEGIN IMMEDIATE")
        at = update.update_id
        connection.execute(PUT, (f"chat/{FIRST + at % CHATS}", text, at))
        connection.execute("COMMIT")

    async with aiosqlite.connect(":memory:") as thread:
        hop: Any = thread._execute  # noqa: SLF001  exactly one hop

        async def handle(update: Update, context: Any) -> None:
            await change(update, context)
            await hop(transaction, update)

        with closing(connect(path)) as connection:
            yield handle


async def copies(_: int) -> float:
    """Copy what an update may change: the chat, the user and the bot's own."""
    data: list[dict[str, Any]] = [document(1), {}, {}]
    start = time.perf_counter()
    for _ in range(UPDATES):
        for one in data:
            deepcopy(one)
    return (time.perf_counter() - start) / UPDATES


async def updates_a_second() -> list[Row]:
    """Compare how many updates a second are handled and durable."""
    data = chats(CHATS)
    others = [kind for kind in EVERYBODY if not issubclass(kind, Documents)]
    with folder() as path:
        async with (
            smallest(path / "smallest.db", data) as commit,
            running(Alone, path / "smallest", data, commit) as bare,
            running(Documents, path / "one", data, change) as one,
            running(Documents, path / "many", data, change, AT_A_TIME) as many,
            bots(others, path, data) as apps,
        ):
            for app in apps.values():
                app.add_handler(TypeHandler(Update, change))
            turns = {
                SMALLEST: through_the_queue(bare),
                Documents.name: through_the_queue(one),
                "64 at a time": through_the_queue(many, 3 * AT_A_TIME),
                **{name: saved_after_each(app) for name, app in apps.items()},
            }
            figures = await side_by_side(turns, ROUNDS, SLOW)
    per_second = {
        name: {number: 1 / took for number, took in figures[name].items()}
        for name in (SMALLEST, Documents.name, *apps)
    }
    found = ratios(per_second, SMALLEST)
    return [
        Row(
            "write-through after every update, one after the other",
            found[Documents.name],
            ">= 0.8",
            "× the updates/s of the smallest possible",
            found,
            note="the others save after each update",
        ),
        Row(
            "the same, `concurrent_updates=64`",
            ratio(figures, Documents.name, "64 at a time"),
            ">= 5",
            "× the updates/s one after the other",
        ),
    ]


def count_calls(app: App) -> list[str]:
    """Return what will name each call of the store's that reads or writes."""
    store = app.persistence.store  # type: ignore[union-attr]
    calls: list[str] = []

    def counted(name: str, method: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            return method(*arguments)

        return call

    for name in ("read", "scan", "apply"):
        setattr(store, name, counted(name, getattr(store, name)))
    return calls


async def changes_nothing() -> list[Row]:
    """Compare an update that changes nothing with a deep copy of what it might have changed."""
    data = chats(CHATS)
    with folder() as path:
        async with (
            running(Documents, path / "kvpersist", data, look) as app,
            running(Alone, path / "alone", data, look) as alone,
        ):
            turn = through_the_queue(app)
            turns = {Documents.name: turn, Alone.name: through_the_queue(alone), "copies": copies}
            figures = await side_by_side(turns, ROUNDS)
            calls = count_calls(app)
            await turn(0)
    figures["more than PTB"] = {
        number: took - figures[Alone.name][number]
        for number, took in figures[Documents.name].items()
    }
    statements = float(len(calls))
    return [
        Row(
            CHANGES_NOTHING,
            ratio(figures, "more than PTB", "copies"),
            "<= 1",
            "× `copy.deepcopy` of its documents",
        ),
        Row(f"{CHANGES_NOTHING}: its statements", spread([statements]), "<= 0", ""),
    ]


async def run() -> list[Row]:
    return await updates_a_second() + await changes_nothing()


if __name__ == "__main__":
    report(asyncio.run(run()))
