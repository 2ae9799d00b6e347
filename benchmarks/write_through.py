"""Writing through after every update, one after the other and 64 at a time; reading only."""

from __future__ import annotations

import asyncio
import time
from copy import deepcopy
from pathlib import Path
from typing import Any

import aiosqlite
import orjson
from chats import FIRST, Chats, chats, document, update
from contenders import PUT, Alone, App, Contender, Documents, connect, make_file
from everybody import EVERYBODY, bots
from measure import Turn, folder, ratio, ratios, side_by_side, size
from peers import Django, Mongo
from ptb_alone import offline_bot
from row import Row, report, spread
from telegram import Update
from telegram.ext import TypeHandler

UPDATES = size(200, 10)
CHATS = 50
SMALLEST = "the smallest possible"
CHANGES_NOTHING = "an update that changes nothing"
SLOW = (Django.name, Mongo.name)


async def change(_: Update, context: Any) -> None:
    """Change the data of the chat: one row of 0.8 KB."""
    context.chat_data["count"] += 1


async def look(_: Update, context: Any) -> None:
    """Change nothing."""
    assert context.chat_data["count"] >= 0


def received() -> list[Update]:
    """Return messages of 50 chats."""
    return [update(at, FIRST + at % CHATS) for at in range(UPDATES)]


def through_the_queue(app: App) -> Turn:
    """Return a turn: let PTB handle the updates in its queue."""
    updates = received()

    async def turn(_: int) -> float:
        start = time.perf_counter()
        for one in updates:
            app.update_queue.put_nowait(one)
        await app.update_queue.join()
        return (time.perf_counter() - start) / UPDATES

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


async def begin(contender: Contender, handle: Any, at_a_time: int = 1) -> App:
    """Return a bot that takes updates from its queue."""
    builder = contender.builder().bot(offline_bot()).job_queue(None)
    app: App = builder.concurrent_updates(at_a_time).build()
    app.add_handler(TypeHandler(Update, handle))
    await app.initialize()
    await app.start()
    return app


async def smallest(path: Path, data: Chats) -> tuple[Turn, aiosqlite.Connection]:
    """Return a turn: the smallest possible, one hop and one transaction of one row an update.

    aiosqlite's thread, which is faster than an executor's, runs BEGIN, the row and COMMIT in one
    call. There is no bot in it.
    """
    await make_file(path, data)
    connection = connect(path)
    thread = await aiosqlite.connect(":memory:")
    hop: Any = thread._execute  # noqa: SLF001  exactly one hop
    text = orjson.dumps(document(1)).decode()

    def transaction(at: int) -> None:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(PUT, (f"chat/{FIRST + at % CHATS}", text, at))
        connection.execute("COMMIT")

    async def turn(_: int) -> float:
        start = time.perf_counter()
        for at in range(UPDATES):
            await hop(transaction, at)
        return (time.perf_counter() - start) / UPDATES

    return turn, thread


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
    with folder() as path:
        documents = Documents(path / "one")
        documents.folder.mkdir()
        await documents.store(data)
        many = Documents(path / "many")
        many.folder.mkdir()
        await many.store(data)
        alone = Alone(path)
        await alone.store(data)
        own = {
            Documents.name: await begin(documents, change),
            "64 at a time": await begin(many, change, 64),
            "PTB's queue": await begin(alone, change),
        }
        others = [kind for kind in EVERYBODY if not issubclass(kind, Documents)]
        hop, thread = await smallest(path / "smallest.db", data)
        async with bots(others, path, data) as apps:
            for app in apps.values():
                app.add_handler(TypeHandler(Update, change))
            turns = {SMALLEST: hop}
            turns |= {name: through_the_queue(app) for name, app in own.items()}
            turns |= {name: saved_after_each(app) for name, app in apps.items()}
            figures = await side_by_side(turns, slow=SLOW)
        await thread.close()
        for app in own.values():
            await app.stop()
            await app.shutdown()
    figures[SMALLEST] = {
        number: took + figures["PTB's queue"][number] for number, took in figures[SMALLEST].items()
    }
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
    with folder() as path:
        apps = {}
        for contender in (Documents(path), Alone(path)):
            await contender.store(chats(CHATS))
            apps[contender.name] = await begin(contender, look)
        turns = {name: through_the_queue(app) for name, app in apps.items()}
        figures = await side_by_side({**turns, "copies": copies})
        calls = count_calls(apps[Documents.name])
        await turns[Documents.name](0)
        for app in apps.values():
            await app.stop()
            await app.shutdown()
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
