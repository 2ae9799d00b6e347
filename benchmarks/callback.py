"""One new keyboard in the callback cache, beside 1,024 others and beside none."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

from contenders import NEVER, application
from measure import Row, folder, ratio, report, side_by_side, summary
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.ext import Application, ExtBot, TypeHandler

from kvpersist import KVPersistence

App = Application[Any, Any, Any, Any, Any, Any]


def keyboard(app: App) -> None:
    """Do what sending a keyboard does."""
    cache = cast("ExtBot[None]", app.bot).callback_data_cache
    assert cache is not None
    cache.process_keyboard(
        InlineKeyboardMarkup.from_button(InlineKeyboardButton("?", callback_data=("data", 1)))
    )


async def bot(path: Path, keyboards: int) -> App:
    """Return a bot with so many keyboards in its cache."""

    async def ask(_: Update, __: Any) -> None:
        keyboard(app)

    app = await application(
        KVPersistence(path, update_interval=NEVER),
        writes_through=True,
        arbitrary_callback_data=True,
    )
    app.add_handler(TypeHandler(Update, ask))
    for _ in range(keyboards):
        keyboard(app)
    await app.update_persistence()
    return app


def turn(app: App, *, clears: bool) -> Callable[[int], Awaitable[float]]:
    async def one(number: int) -> float:
        start = time.perf_counter()
        await app.process_update(Update(number))
        taken = time.perf_counter() - start
        if clears:
            cache = cast("ExtBot[None]", app.bot).callback_data_cache
            assert cache is not None
            cache.clear_callback_data()
            await app.update_persistence()
        return taken

    return one


async def run() -> list[Row]:
    with folder() as path:
        full, empty = await bot(path / "full.db", 1024), await bot(path / "empty.db", 0)
        seconds = await side_by_side(
            {"1,024 keyboards": turn(full, clears=False), "none": turn(empty, clears=True)}
        )
        await full.shutdown()
        await empty.shutdown()
    return [
        Row(
            "1,024 keyboards in the callback cache, one new",
            ratio(seconds, "1,024 keyboards", "none"),
            "<= 2",
            "x an empty cache",
            **summary(seconds),
        )
    ]


if __name__ == "__main__":
    report(asyncio.run(run()))
