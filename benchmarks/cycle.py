"""`update_persistence()`: 100 touched chats of 1,000, of 10,000 and of 100,000 stored."""

from __future__ import annotations

import asyncio
import random
import sys
import time

from chats import chats
from contenders import App, Documents, KVPersist, Limit
from everybody import ALL, bots
from measure import Turn, folder, ratios, side_by_side, size
from row import Row, report
from stall import many

TOUCHED = size(100, 10)
MOST = size(100_000, 100)
"""With so many stored, the bots show how long they stall, too."""
SLOW = frozenset(kind.name for kind in ALL if kind.is_slow)


def cycle(app: App, touched: int = TOUCHED) -> Turn:
    """Return a turn: change some chats, and let PTB hand them over. Returns seconds for 100."""
    ids = list(app.chat_data)
    choose = random.Random(5)

    async def turn(number: int) -> float:
        chosen = choose.sample(ids, touched)
        for chat_id in chosen:
            app.chat_data[chat_id]["count"] = number + 1
        start = time.perf_counter()
        app.mark_data_for_update_persistence(chat_ids=chosen)
        await app.update_persistence()
        return (time.perf_counter() - start) * TOUCHED / touched

    return turn


async def cost(apps: dict[str, App], stored: int) -> list[Row]:
    """Compare what 100 touched chats cost."""
    # Each touched chat costs the slow ones as much as the one before: seconds, in the end.
    touched = TOUCHED if stored <= 1_000 else 2
    figures = await side_by_side(
        {name: cycle(app, touched if name in SLOW else TOUCHED) for name, app in apps.items()},
        size(30, 2),
        SLOW,
    )
    found = ratios(figures, Limit.name)
    work = f"`update_persistence()`, {TOUCHED} touched of {stored:,}"
    return [
        Row(f"{work}, documents", found[Documents.name], "<= 0.8", "× the limit"),
        Row(
            f"{work}, plain dicts",
            found[KVPersist.name],
            "<= 1.2",
            "× the limit",
            found,
            note=f"PicklePersistence: {touched} touched" if touched < TOUCHED else "",
            stored=stored,
        ),
    ]


async def run(stored: int) -> list[Row]:
    with folder() as path:
        async with bots(ALL, path, chats(stored)) as apps:
            rows = await cost(apps, stored)
            if stored == MOST:
                rows.append(await many(apps, SLOW))
            return rows


if __name__ == "__main__":
    report(asyncio.run(run(int(sys.argv[1]))))
