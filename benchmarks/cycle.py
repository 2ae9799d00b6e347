"""`update_persistence()`: 100 touched chats of 1,000, of 100,000 and of 1,000,000 stored."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from contenders import (
    Limit,
    Nothing,
    application,
    dict_persistence,
    kvpersist_at,
    pickle_at,
)
from measure import Row, documents, folder, ratio, report, say, side_by_side, summary
from telegram.ext import Application, BasePersistence, PersistenceInput

TOUCHED = 100
App = Application[Any, Any, Any, Any, Any, Any]


def persistences(path: Path, stored: int) -> dict[str, BasePersistence[Any, Any, Any]]:
    """Return the contenders; the slow ones only where they end in this decade."""
    contenders: dict[str, BasePersistence[Any, Any, Any]] = {
        "PTB alone": Nothing(store_data=PersistenceInput(callback_data=False)),
        "the limit": Limit(path / "limit.db"),
        "kvpersist": kvpersist_at(path / "bot.db"),
        "kvpersist, documents": kvpersist_at(path / "documents.db"),
    }
    if stored <= 1_000:
        contenders["PicklePersistence"] = pickle_at(path / "bot.pickle")
        contenders["PicklePersistence, single_file=False"] = pickle_at(
            path / "bots.pickle", single_file=False
        )
        contenders["DictPersistence"] = dict_persistence()
    return contenders


def cycle(app: App) -> Callable[[int], Awaitable[float]]:
    """Return a turn: change 100 chats, and let PTB hand them over."""
    ids = list(app.chat_data)
    choose = random.Random(5)
    mark = app.mark_data_for_update_persistence

    async def turn(number: int) -> float:
        touched = choose.sample(ids, TOUCHED)
        for chat_id in touched:
            app.chat_data[chat_id]["count"] = number + 1
        start = time.perf_counter()
        mark(chat_ids=touched)
        await app.update_persistence()
        if isinstance(app.persistence, Limit):
            app.persistence.commit()
        return time.perf_counter() - start

    return turn


async def run(stored: int, rounds: int) -> list[Row]:
    with folder() as path:
        apps: dict[str, App] = {}
        for name, persistence in persistences(path, stored).items():
            say(f"  {name}: {stored:,} chats")
            apps[name] = await application(
                persistence, dict(documents(stored)), writes_through="documents" in name
            )
        seconds = await side_by_side(
            {name: cycle(app) for name, app in apps.items()},
            rounds,
            [name for name in apps if name.startswith("Pickle")],
        )
        for app in apps.values():
            await app.shutdown()
    documents_figure = ratio(seconds, "kvpersist, documents", "the limit")
    return [
        Row(
            f"update_persistence(), 100 touched of {stored:,}, documents",
            documents_figure,
            "<= 0.8",
            "x the limit",
        ),
        Row(
            f"update_persistence(), 100 touched of {stored:,}, plain dicts",
            ratio(seconds, "kvpersist", "the limit"),
            "<= 1.2",
            "x the limit",
            **summary(seconds),
        ),
    ]


if __name__ == "__main__":
    stored = int(sys.argv[1])
    report(asyncio.run(run(stored, 60 if stored > 1_000 else 15)))
