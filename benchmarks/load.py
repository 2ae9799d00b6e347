"""Loading 100,000 documents, each time in a process of its own: time, and memory."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import orjson
from chats import Chats, chats
from contenders import Alone, App, Dict, KVPersist, connect
from everybody import EVERYBODY, stored
from measure import Figures, Turn, folder, ratios, resident, side_by_side, size
from row import Row, report

STORED = size(100_000, 100)
PLAIN = "SELECT + orjson.loads"
LOADERS = tuple(kind for kind in EVERYBODY if not issubclass(kind, (Alone, Dict)))
SLOW = tuple(kind.name for kind in LOADERS if not issubclass(kind, KVPersist))


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


async def load(how: str, path: Path) -> None:
    """Load in this process, tell how long it took and how much memory it needs, and end."""
    before, start = resident(), time.perf_counter()
    found: Chats | App
    if how == PLAIN:
        found = select(path / f"{KVPersist.name}.db")
    else:
        found = await {kind.name: kind for kind in LOADERS}[how](path).start()
    seconds, grown = time.perf_counter() - start, resident() - before
    assert len(found if isinstance(found, dict) else found.chat_data) == STORED
    print(json.dumps([seconds, grown]), flush=True)
    os._exit(0)  # it would take long to give everything back


def loading(how: str, path: Path, grown: dict[int, float]) -> Turn:
    """Return a turn: load in a process of its own. The bytes by which it grows go to `grown`."""
    command = [sys.executable, __file__, how, str(path)]

    async def turn(number: int) -> float:
        done = await asyncio.to_thread(
            subprocess.run, command, check=True, stdout=subprocess.PIPE, text=True
        )
        seconds, grown[number] = json.loads(done.stdout)
        return float(seconds)

    return turn


async def run() -> list[Row]:
    names = (PLAIN, *(kind.name for kind in LOADERS))
    memory: Figures = {name: {} for name in names}
    with folder() as path:
        async with stored(LOADERS, path, chats(STORED)):
            turns = {name: loading(name, path, memory[name]) for name in names}
            seconds = await side_by_side(turns, rounds=size(7, 1), slow=SLOW)
    times, bytes_ = ratios(seconds, PLAIN), ratios(memory, PLAIN)
    work = f"load {STORED:,} documents"
    return [
        Row(work, times[KVPersist.name], "<= 1.25", f"× `{PLAIN}`", times),
        Row(
            "memory after that load", bytes_[KVPersist.name], "<= 1.1", "× the plain dicts", bytes_
        ),
    ]


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(load(sys.argv[1], Path(sys.argv[2])))
    else:
        report(asyncio.run(run()))
