"""How long the event loop does one thing while many chats are handed over."""

from __future__ import annotations

import asyncio
import statistics
import time
from typing import Any

from contenders import Nothing, application, kvpersist_at
from measure import Row, Stalls, document, folder, report, say
from telegram.ext import Application, PersistenceInput

App = Application[Any, Any, Any, Any, Any, Any]
ROUNDS = 7


async def stalls(app: App, touched: int) -> tuple[float, float]:
    """Return the longest stall of the loop, and how long it took, in milliseconds."""
    ids = list(app.chat_data)[:touched]
    longest, took = [], []
    for number in range(ROUNDS):
        for chat_id in ids:
            app.chat_data[chat_id]["count"] = number
        async with Stalls() as seen:
            start = time.perf_counter()
            app.mark_data_for_update_persistence(chat_ids=ids)
            await app.update_persistence()
            took.append(time.perf_counter() - start)
        longest.append(seen.longest)
    return 1000 * statistics.median(longest), 1000 * statistics.median(took)


async def run() -> list[Row]:
    rows = []
    with folder() as path:
        nothing = Nothing(store_data=PersistenceInput(callback_data=False))
        say("  100,000 chats")
        data = {1 + at: document(at) for at in range(100_000)}
        alone = await application(nothing, data)
        bot = await application(kvpersist_at(path / "bot.db"), data, writes_through=True)
        alone_stall, alone_took = await stalls(alone, 1_000)
        stall, took = await stalls(bot, 1_000)
        rows.append(
            Row(
                "longest stall, 1,000 touched of 100,000, documents",
                stall,
                "<= 10",
                "ms",
                times={"PTB alone, plain dicts": alone_stall, "kvpersist": stall},
                note=f"the cycle took {took:.0f} ms, PTB alone {alone_took:.0f} ms",
            )
        )
        await alone.shutdown()
        await bot.shutdown()
        del alone, bot, data
        say("  10,000 chats of 10 KB")
        large = {1 + at: document(at, messages=128) for at in range(10_000)}
        bot = await application(kvpersist_at(path / "large.db"), large, writes_through=True)
        tenth, tenth_took = await stalls(bot, 1_000)
        stall, took = await stalls(bot, 10_000)
        rows.append(
            Row(
                "longest stall, 10,000 documents of 10 KB touched",
                stall,
                "<= 20",
                "ms",
                times={"1,000 of them": tenth, "all": stall},
                note=f"took {took:.0f} ms, 1,000 of them {tenth_took:.0f} ms",
            )
        )
        await bot.shutdown()
    return rows


if __name__ == "__main__":
    report(asyncio.run(run()))
