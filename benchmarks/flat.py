"""100 touched chats of 1,000,000 stored, beside 100 of 1,000."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from pathlib import Path
from typing import ClassVar

from chats import FIRST, Chats, document, update
from contenders import App, Contender, Documents, KVPersist, Lazy, Limit
from cycle import TOUCHED, cycle
from everybody import bots
from measure import Turn, available_memory, folder, ratio, side_by_side, size
from row import Row, report
from telegram import Update
from telegram.ext import TypeHandler
from write_through import change

FEW = size(1_000, 200)
MANY = size(1_000_000, 2_000)
NEEDED = 9_000 * MANY
"""So many bytes of memory: the file, once more for the limit, and the documents."""


class Reading(Lazy):
    """Keeps so few in memory that nearly each chat is read, with few stored and with many."""

    options: ClassVar = {"lazy": True, "max_documents": TOUCHED // 2}


def alike(count: int) -> Chats:
    """Return so many chats. In memory, until they are loaded, they are the same few."""
    some = [document(number) for number in range(1_000)]
    return {FIRST + at: some[at % len(some)] for at in range(count)}


def touched(app: App, _: int) -> Turn:
    """Return a turn: 100 touched chats."""
    return cycle(app)


def read_and_changed(app: App, count: int) -> Turn:
    """Return a turn: 100 updates, each of another chat, which are read, changed and written."""
    app.add_handler(TypeHandler(Update, change))
    choose = random.Random(5)

    async def turn(number: int) -> float:
        chosen = choose.sample(range(FIRST, FIRST + count), TOUCHED)
        start = time.perf_counter()
        for chat_id in chosen:
            await app.process_update(update(number, chat_id))
        return time.perf_counter() - start

    return turn


async def compare(kind: type[Contender], path: Path) -> list[Row]:
    """Compare kvpersist, and the limit, with few and with many stored."""
    assert available_memory() > NEEDED, f"{MANY:,} chats need {NEEDED >> 30} GiB of free memory"
    is_reading = kind is Reading
    kinds = (kind,) if is_reading else (Limit, kind)
    turn = read_and_changed if is_reading else touched
    (path / "few").mkdir()
    (path / "many").mkdir()
    async with (
        bots(kinds, path / "few", alike(FEW)) as few,
        bots(kinds, path / "many", alike(MANY)) as many,
    ):
        turns = {f"{name}, few": turn(app, FEW) for name, app in few.items()}
        turns |= {f"{name}, many": turn(app, MANY) for name, app in many.items()}
        figures = await side_by_side(turns, rounds=size(40, 2))
    found = {name: ratio(figures, f"{name}, many", f"{name}, few") for name in few}
    work = f"{TOUCHED} {'read, changed and written' if is_reading else 'touched'} of {MANY:,}"
    rows = [Row(f"{work} against of {FEW:,}, {kind.name}", found[kind.name], "<= 1.2", "×", found)]
    if not is_reading:
        costs = {name: ratio(figures, f"{name}, many", f"{Limit.name}, many") for name in few}
        rows.append(Row(f"{work}, {kind.name}", unit="× the limit", others=costs, stored=MANY))
    return rows


async def run(kind: type[Contender]) -> list[Row]:
    with folder() as path:
        return await compare(kind, path)


KINDS = {"plain": KVPersist, "documents": Documents, "lazy": Reading}

if __name__ == "__main__":
    report(asyncio.run(run(KINDS[sys.argv[1]])))
