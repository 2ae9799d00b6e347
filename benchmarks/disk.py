"""What one changed document writes to the disk."""

from __future__ import annotations

import asyncio

from chats import FIRST, chats
from contenders import Documents
from measure import folder, size
from row import Row, report, spread

STORED = size(1_000, 20)
_FRAME = 24 + 4096
"""A page in the log, with its header (https://sqlite.org/fileformat2.html#walformat)."""


async def run() -> list[Row]:
    with folder() as path:
        contender = Documents(path)
        await contender.store(chats(STORED))
        app = await contender.start()
        log = path / f"{contender.name}.db-wal"
        pages = []
        # Few enough that SQLite does not begin the log anew.
        for chat_id in range(FIRST, FIRST + STORED // 10):
            before = log.stat().st_size
            app.chat_data[chat_id]["count"] += 1
            app.mark_data_for_update_persistence(chat_ids=chat_id)
            await app.update_persistence()
            pages.append((log.stat().st_size - before) / _FRAME)
        await app.shutdown()
    return [
        Row(
            "written for one changed 0.8 KB document",
            spread(pages),
            "<= 3",
            "pages of WAL",
            note=f"at most {max(pages):.0f}",
        )
    ]


if __name__ == "__main__":
    report(asyncio.run(run()))
