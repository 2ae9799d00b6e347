"""Loading 100,000 documents: time, beside SELECT and orjson.loads, and memory."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import orjson
from chats import Chats, chats
from contenders import Alone, App, Contender, Documents, KVPersist, connect
from everybody import EVERYBODY
from measure import Turn, folder, ratios, resident, say, side_by_side, size
from row import Row, Spread, report, spread

STORED = size(100_000, 100)
PLAIN = "SELECT + orjson.loads"
LOADERS = tuple(kind for kind in EVERYBODY if not issubclass(kind, Alone))
TWICE = tuple(kind.name for kind in LOADERS if not issubclass(kind, KVPersist))


def select(path: Path) -> Chats:
    """Load as fast as it can be done: one query, and orjson, with the collector off."""
    with closing(connect(path)) as connection:
        gc.disable()
        found = {
            int(key[5:]): orjson.loads(value)
            for key, value in connection.execute("SELECT key, value FROM documents")
            if key[:5] == "chat/"
        }
        gc.enable()
    return found


def by_query(path: Path) -> Turn:
    """Return a turn: load without any bot."""

    async def turn(_: int) -> float:
        start = time.perf_counter()
        found = select(path)
        taken = time.perf_counter() - start
        assert len(found) == STORED
        return taken

    return turn


def by_bot(contender: Contender) -> Turn:
    """Return a turn: start a bot."""

    async def turn(_: int) -> float:
        start = time.perf_counter()
        app = await contender.start()
        taken = time.perf_counter() - start
        assert len(app.chat_data) == STORED
        await app.shutdown()
        del app
        gc.unfreeze()  # what kvpersist has put out of the collector's way is gone
        gc.collect()
        gc.freeze()
        return taken

    return turn


async def loading(path: Path) -> Row:
    """Compare how long a bot takes to start."""
    contenders = [kind(path) for kind in LOADERS]
    for contender in contenders:
        say(f"  {contender.name}: {STORED:,} chats")
        await contender.store(chats(STORED))
    turns = {contender.name: by_bot(contender) for contender in contenders}
    figures = await side_by_side(
        {PLAIN: by_query(path / f"{KVPersist.name}.db"), **turns},
        rounds=size(9, 1),
        slow=TWICE,
    )
    for contender in contenders:
        await contender.end()
    found = ratios(figures, PLAIN)
    return Row(
        f"load {STORED:,} documents",
        found[KVPersist.name],
        "<= 1.25",
        f"× `{PLAIN}`",
        found,
    )


def grown(how: str, path: Path) -> int:
    """Return the bytes by which a process of its own grows when it loads."""
    command = [sys.executable, __file__, how, str(path)]
    return int(subprocess.run(command, check=True, capture_output=True).stdout)  # noqa: S603


def grow(how: str, path: Path) -> int:
    """Load, and return the bytes by which this process has grown."""
    before = resident()
    if how == PLAIN:
        found = select(path / f"{KVPersist.name}.db")
        assert len(found) == STORED
        return resident() - before
    kind = {kind.name: kind for kind in (KVPersist, Documents)}[how]
    return asyncio.run(started(kind(path), before))


async def started(contender: Contender, before: int) -> int:
    """Start a bot, and return the bytes by which this process has grown."""
    app: App = await contender.start()
    taken = resident() - before
    assert len(app.chat_data) == STORED
    await app.shutdown()
    return taken


async def memory(path: Path) -> Row:
    """Compare how much memory a bot that has started needs."""
    rounds = range(size(3, 1))
    taken = {
        how: [await asyncio.to_thread(grown, how, path) for _ in rounds]
        for how in (PLAIN, KVPersist.name, Documents.name)
    }
    found: dict[str, Spread] = {
        how: spread(mine / plain for mine, plain in zip(bytes_, taken[PLAIN], strict=True))
        for how, bytes_ in taken.items()
    }
    return Row(
        "memory after that load", found[KVPersist.name], "<= 1.1", "× the plain dicts", found
    )


async def run() -> list[Row]:
    with folder() as path:
        return [await loading(path), await memory(path)]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(grow(sys.argv[1], Path(sys.argv[2])))
    else:
        report(asyncio.run(run()))
