"""How long the event loop does one thing while many chats are handed over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection

from chats import FIRST, chats
from contenders import Alone, App, Documents, Limit
from everybody import bots
from measure import Figures, Stalls, Turn, folder, ratio, side_by_side, size
from row import Row, Spread, report, spread

LARGE = size(10_000, 20)


def handing_over(app: App, touched: int, took: dict[int, float]) -> Turn:
    """Return a turn, which returns the longest stall in ms; the seconds go to `took`."""
    ids = range(FIRST, FIRST + touched)

    async def turn(number: int) -> float:
        for chat_id in ids:
            app.chat_data[chat_id]["count"] = number + 1
        async with Stalls() as seen:
            start = time.perf_counter()
            app.mark_data_for_update_persistence(chat_ids=ids)
            await app.update_persistence()
            took[number] = time.perf_counter() - start
        return 1000 * seen.longest

    return turn


def spreads(figures: Figures) -> dict[str, Spread]:
    """Return the figures themselves."""
    return {name: spread(found.values()) for name, found in figures.items()}


async def many(apps: dict[str, App], slow: Collection[str]) -> Row:
    """Touch 1,000 of 100,000; of the slow ones one."""
    stored = len(apps[Alone.name].chat_data)
    touched = stored // 100
    figures = await side_by_side(
        {name: handing_over(app, 1 if name in slow else touched, {}) for name, app in apps.items()},
        rounds=size(9, 1),
        slow=slow,
    )
    found = spreads(figures)
    return Row(
        f"longest stall of the event loop, {touched:,} touched of {stored:,}, documents",
        found[Documents.name],
        "<= 10",
        "ms",
        found,
        note="PicklePersistence: 1 touched",
    )


async def large() -> list[Row]:
    """Touch 10,000 of 10 KB, and a tenth of them."""
    took: Figures = {"all": {}, "a tenth": {}}
    with folder() as path:
        async with bots((Alone, Limit, Documents), path, chats(LARGE, messages=128)) as apps:
            turns = {name: handing_over(app, LARGE, {}) for name, app in apps.items()}
            app = apps[Documents.name]
            turns[Documents.name] = handing_over(app, LARGE, took["all"])
            turns["a tenth"] = handing_over(app, LARGE // 10, took["a tenth"])
            figures = await side_by_side(turns, rounds=size(5, 1), slow=(Alone.name, Limit.name))
    del figures["a tenth"]
    found = spreads(figures)
    linear = ratio(took, "all", "a tenth")
    return [
        Row(
            f"longest stall, {LARGE:,} documents of 10 KB touched",
            found[Documents.name],
            "<= 20",
            "ms",
            found,
        ),
        Row(
            f"time for each of {LARGE:,} documents of 10 KB touched",
            Spread(*(figure / 10 for figure in linear)),
            "<= 1.2",
            f"× that for each of {LARGE // 10:,}",
        ),
    ]


if __name__ == "__main__":
    report(asyncio.run(large()))
