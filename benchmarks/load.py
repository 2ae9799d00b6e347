"""Loading 100,000 documents: time, beside SELECT and orjson.loads, and memory."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import orjson
from contenders import PUT, application, kvpersist_at, pickle_at
from measure import Row, document, folder, ratio, report, resident, side_by_side, summary

STORED = 100_000


def store(path: Path, stored: int) -> None:
    """Put documents into a file that kvpersist has made."""

    async def make() -> None:
        app = await application(kvpersist_at(path))
        await app.shutdown()

    asyncio.run(make())
    connection = sqlite3.connect(path)
    connection.executemany(
        PUT,
        (
            (f"chat/{1_000_000 + at}", orjson.dumps(document(at)).decode(), 0)
            for at in range(stored)
        ),
    )
    connection.commit()
    connection.close()


def plain(path: Path) -> dict[int, Any]:
    """Load as fast as it can be done: one query, and orjson, with the collector off."""
    connection = sqlite3.connect(path)
    gc.disable()
    found = {
        int(key[5:]): orjson.loads(value)
        for key, value in connection.execute("SELECT key, value FROM documents")
        if key[:5] == "chat/"
    }
    gc.enable()
    connection.close()
    return found


async def kvpersist(path: Path) -> dict[int, Any]:
    """Load as the bot does."""
    persistence = kvpersist_at(path)
    found = await persistence.get_chat_data()
    await persistence.flush()
    return found


async def run() -> list[Row]:
    with folder() as path:
        await asyncio.to_thread(store, path / "bot.db", STORED)
        pickled = pickle_at(path / "bot.pickle")
        pickled.chat_data = plain(path / "bot.db")
        pickled.user_data, pickled.bot_data, pickled.conversations = {}, {}, {}
        await pickled.flush()
        del pickled

        async def timed_plain(_: int) -> float:
            start = time.perf_counter()
            found = plain(path / "bot.db")
            taken = time.perf_counter() - start
            del found
            return taken

        async def timed_kvpersist(_: int) -> float:
            start = time.perf_counter()
            found = await kvpersist(path / "bot.db")
            taken = time.perf_counter() - start
            gc.unfreeze()
            del found
            return taken

        async def timed_pickle(_: int) -> float:
            start = time.perf_counter()
            found = await pickle_at(path / "bot.pickle").get_chat_data()
            taken = time.perf_counter() - start
            del found
            return taken

        seconds = await side_by_side(
            {
                "SELECT + orjson.loads": timed_plain,
                "kvpersist": timed_kvpersist,
                "PicklePersistence": timed_pickle,
            },
            rounds=5,
        )
        memory = {
            how: int(
                subprocess.run(  # noqa: S603
                    [sys.executable, __file__, how, path / "bot.db"],
                    check=True,
                    capture_output=True,
                ).stdout
            )
            for how in ("plain", "kvpersist")
        }
    return [
        Row(
            f"load {STORED:,} documents",
            ratio(seconds, "kvpersist", "SELECT + orjson.loads"),
            "<= 1.25",
            "x SELECT + orjson.loads",
            **summary(seconds),
        ),
        Row(
            "memory after that load",
            memory["kvpersist"] / memory["plain"],
            "<= 1.1",
            "x the plain dicts",
        ),
    ]


def memory_of(how: str, path: Path) -> int:
    """Return how many bytes the process has grown by a load."""
    before = resident()
    found = plain(path) if how == "plain" else asyncio.run(kept(path))
    grown = resident() - before
    assert len(found) == STORED
    return grown


KEPT: list[Any] = []


async def kept(path: Path) -> dict[int, Any]:
    """Load, and go on running: what is remembered of each row counts."""
    persistence = kvpersist_at(path)
    KEPT.append(persistence)
    found = await persistence.get_chat_data()
    await persistence.store.close()
    return found


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(memory_of(sys.argv[1], Path(sys.argv[2])))
    else:
        report(asyncio.run(run()))
