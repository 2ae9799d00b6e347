"""What one changed document writes to the disk."""

from __future__ import annotations

import asyncio

from contenders import application, kvpersist_at
from measure import Row, document, folder, report

_FRAME = 4096 + 24
_HEADER = 32


async def run() -> list[Row]:
    with folder() as path:
        app = await application(
            kvpersist_at(path / "bot.db"), {at: document(at) for at in range(1, 1001)}
        )
        wal = path / "bot.db-wal"
        pages = []
        for chat_id in range(1, 101):
            # Each write begins a log of its own, whose length is what was written.
            await app.persistence.store._opened.writer.fetch("PRAGMA wal_checkpoint(TRUNCATE)")  # type: ignore[union-attr]  # noqa: SLF001
            app.chat_data[chat_id]["count"] += 1
            app.mark_data_for_update_persistence(chat_ids=chat_id)
            await app.update_persistence()
            pages.append((wal.stat().st_size - _HEADER) / _FRAME)
        await app.shutdown()
    return [
        Row(
            "pages of WAL for one changed 0.8 KB document",
            max(pages),
            "<= 3",
            "pages",
            note=f"{sum(pages) / len(pages):.1f} on average",
        )
    ]


if __name__ == "__main__":
    report(asyncio.run(run()))
