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


def stored(count: int) -> Chats:
    """Return so many chats. In memory, until they are loaded, they are the same few."""
    some = [document(number) for number in range(1_000)]
    return {FIRST + at: some[at % len(some)] for at in range(count)}


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
    (path / "few").mkdir()
    (path / "many").mkdir()
    async with (
        bots((Limit, kind), path / "few", stored(FEW)) as few,
        bots((Limit, kind), path / "many", stored(MANY)) as many,
    ):
        turns = {
            **{f"{name}, few": cycle(app) for name, app in few.items()},
            **{f"{name}, many": cycle(app) for name, app in many.items()},
        }
        if kind is Reading:
            turns[f"{kind.name}, few"] = read_and_changed(few[kind.name], FEW)
            turns[f"{kind.name}, many"] = read_and_changed(many[kind.name], MANY)
        figures = await side_by_side(turns, rounds=size(40, 2))
    names = (Limit.name, kind.name)
    work = "chats read, changed and written" if kind is Reading else "touched"
    return [
        Row(
            f"flatness: {TOUCHED} {work} of {MANY:,} stored against of {FEW:,}, {kind.name}",
            ratio(figures, f"{kind.name}, many", f"{kind.name}, few"),
            "<= 1.2",
            "×",
            {name: ratio(figures, f"{name}, many", f"{name}, few") for name in names},
        ),
        Row(
            f"{TOUCHED} {work} of {MANY:,}, {kind.name}",
            unit="× the limit",
            others={name: ratio(figures, f"{name}, many", f"{Limit.name}, many") for name in names},
            stored=None if kind is Reading else MANY,
        ),
    ]


async def run(kind: type[Contender]) -> list[Row]:
    with folder() as path:
        return await compare(kind, path)


KINDS = {"plain": KVPersist, "documents": Documents, "lazy": Reading}

if __name__ == "__main__":
    report(asyncio.run(run(KINDS[sys.argv[1]])))
