"""One new keyboard in the callback cache, beside 1,024 others and beside none."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, cast

from contenders import App
from measure import Turn, folder, ratios, side_by_side, size
from ptb_alone import NEVER, Nothing, offline_bot
from row import Row, report
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.ext import (
    ApplicationBuilder,
    CallbackDataCache,
    DictPersistence,
    ExtBot,
    PersistenceInput,
    PicklePersistence,
    TypeHandler,
)

from kvpersist import KVPersistence, application_builder

KEYBOARDS = size(1024, 16)


def cache_of(app: App) -> CallbackDataCache:
    """Return where PTB keeps the data of keyboards."""
    cache = cast("ExtBot[None]", app.bot).callback_data_cache
    assert cache is not None
    return cache


def keyboard(app: App) -> None:
    """Do what sending a keyboard does."""
    cache_of(app).process_keyboard(
        InlineKeyboardMarkup.from_button(InlineKeyboardButton("?", callback_data=["data", 1]))
    )


async def bot(builder: Any, keyboards: int) -> App:
    """Return a bot with so many keyboards in its cache, that sends one at each update."""
    app: App = builder.bot(offline_bot(arbitrary_callback_data=True)).job_queue(None).build()

    async def ask(_: Update, __: Any) -> None:
        keyboard(app)

    app.add_handler(TypeHandler(Update, ask))
    await app.initialize()
    for _ in range(keyboards):
        keyboard(app)
    await app.update_persistence()
    return app


def by_kvpersist(path: Path) -> Any:
    """Return a builder that saves when an update ends."""
    return application_builder(KVPersistence(path, update_interval=NEVER))


def others(path: Path) -> dict[str, Any]:
    """Return the builders of bots that are told to save."""
    persistences = {
        "PTB alone": Nothing(store_data=PersistenceInput()),
        "PicklePersistence": PicklePersistence(path / "pickle", update_interval=NEVER),
        "PicklePersistence, single_file=False": PicklePersistence(
            path / "pickles", single_file=False, update_interval=NEVER
        ),
        "DictPersistence, in memory": DictPersistence(update_interval=NEVER),
    }
    return {name: ApplicationBuilder().persistence(one) for name, one in persistences.items()}


def ask(app: App, *, saves: bool, clears: bool = False) -> Turn:
    """Return a turn: one new keyboard."""

    async def turn(number: int) -> float:
        start = time.perf_counter()
        await app.process_update(Update(number))
        if saves:
            await app.update_persistence()
        taken = time.perf_counter() - start
        if clears:
            cache_of(app).clear_callback_data()
            await app.update_persistence()
        return taken

    return turn


async def run() -> list[Row]:
    with folder() as path:
        empty = await bot(by_kvpersist(path / "empty.db"), 0)
        full = await bot(by_kvpersist(path / "full.db"), KEYBOARDS)
        apps = {name: await bot(made, KEYBOARDS) for name, made in others(path).items()}
        figures = await side_by_side(
            {
                "an empty cache": ask(empty, saves=False, clears=True),
                "kvpersist, documents": ask(full, saves=False),
                **{name: ask(app, saves=True) for name, app in apps.items()},
            },
            rounds=size(60, 2),
        )
        for app in (empty, full, *apps.values()):
            await app.shutdown()
    found = ratios(figures, "an empty cache")
    return [
        Row(
            f"{KEYBOARDS:,} keyboards in the callback cache, one new",
            found["kvpersist, documents"],
            "<= 2",
            "× an empty cache",
            found,
        )
    ]


if __name__ == "__main__":
    report(asyncio.run(run()))
