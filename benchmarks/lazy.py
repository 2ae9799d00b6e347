"""Starting with 1,000,000 stored chats and ``lazy=True``, each time in a process of its own."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from chats import FIRST, update
from measure import folder, resident, say, size
from ptb_alone import Nothing, offline_bot
from row import Row, Spread, report, spread
from telegram import Update
from telegram.ext import Application, TypeHandler

# PTB alone must not pay for importing kvpersist: each kind imports what it needs.

STORED = size(1_000_000, 2_000)
STARTS = size(5, 1)
TOUCHED = size(200, 10)
ALONE, LAZY = "PTB alone", "kvpersist, lazy"
MIB = 1 << 20


async def start(how: str, path: str) -> Application[Any, Any, Any, Any, Any, Any]:
    """Return a bot that has started."""
    if how == LAZY:
        from contenders import Lazy  # noqa: PLC0415

        return await Lazy(Path(path)).start()
    app = Application.builder().persistence(Nothing()).bot(offline_bot()).job_queue(None).build()
    await app.initialize()
    return app


async def look(_: Update, context: Any) -> None:
    """Use the data of a chat, and change nothing."""
    context.chat_data.get("count")


async def seen(how: str, path: str) -> dict[str, Any]:
    """Start a bot in this process, and let it handle updates of chats that it has not used."""
    if how == LAZY:
        import contenders  # noqa: F401, PLC0415  before the clock runs
    begin = time.perf_counter()
    app = await start(how, path)
    taken, memory = time.perf_counter() - begin, resident()
    app.add_handler(TypeHandler(Update, look))
    chosen = random.Random(5).sample(range(FIRST, FIRST + STORED), TOUCHED)
    first = [await touch(app, chat_id) for chat_id in chosen]
    again = [await touch(app, chat_id) for chat_id in chosen]
    if how == LAZY:
        assert all(app.chat_data[chat_id]["messages"] for chat_id in chosen)
    await app.shutdown()
    return {"start": taken, "memory": memory, "first": first, "again": again}


async def touch(app: Application[Any, Any, Any, Any, Any, Any], chat_id: int) -> float:
    """Return the milliseconds that an update of this chat takes."""
    begin = time.perf_counter()
    await app.process_update(update(1, chat_id))
    return 1000 * (time.perf_counter() - begin)


def in_a_process(how: str, path: Path) -> dict[str, Any]:
    """Return what `seen` sees in a process of its own."""
    command = [sys.executable, __file__, how, str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
    found: dict[str, Any] = json.loads(done.stdout)
    return found


async def run() -> list[Row]:
    from contenders import Lazy  # noqa: PLC0415
    from flat import alike  # noqa: PLC0415

    with folder() as path:
        say(f"  {STORED:,} chats")
        await Lazy(path).store(alike(STORED))
        found: dict[str, list[dict[str, Any]]] = {ALONE: [], LAZY: []}
        for number in range(STARTS):
            for how in list(found)[:: 1 if number % 2 else -1]:
                found[how].append(await asyncio.to_thread(in_a_process, how, path))
    starts = {how: spread(one["start"] for one in seen) for how, seen in found.items()}
    more = [
        (lazy["memory"] - alone["memory"]) / MIB
        for lazy, alone in zip(found[LAZY], found[ALONE], strict=True)
    ]

    def touches(how: str, which: str) -> Spread:
        return spread(taken for one in found[how] for taken in one[which])

    return [
        Row(f"lazy start with {STORED:,}", starts[LAZY], "<= 0.1", "s", starts),
        Row("its memory, over PTB itself", spread(more), "<= 30", "MiB"),
        Row(
            "first touch of a chat",
            touches(LAZY, "first"),
            "<= 1",
            "ms",
            {
                LAZY: touches(LAZY, "first"),
                f"{LAZY}, touched before": touches(LAZY, "again"),
                ALONE: touches(ALONE, "again"),
            },
        ),
    ]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(json.dumps(asyncio.run(seen(*sys.argv[1:]))))
    else:
        report(asyncio.run(run()))
