"""An update of a chat with few and with many messages, beside a row for each message."""

from __future__ import annotations

import asyncio

from chats import chats
from contenders import Alone, Documents, KVPersist, Limit
from everybody import bots
from measure import folder, ratios, side_by_side, size
from row import Row, report
from row_per_message import Table
from telegram import Update
from telegram.ext import TypeHandler
from write_through import CHATS, change, running, saved_after_each, through_the_queue

MESSAGES = (8, size(128, 16), size(1024, 32))


async def compare(messages: int) -> Row:
    """Compare an update of a chat with so many messages."""
    data = chats(CHATS, messages)
    with folder() as path:
        async with (
            running(Documents, path / "kvpersist", data, change) as app,
            bots((Alone, Limit, KVPersist, Table), path, data) as others,
        ):
            for other in others.values():
                other.add_handler(TypeHandler(Update, change))
            turns = {
                Documents.name: through_the_queue(app),
                **{name: saved_after_each(other) for name, other in others.items()},
            }
            figures = await side_by_side(turns, rounds=size(9, 2))
    found = ratios(figures, Documents.name)
    return Row(
        f"an update of a chat with {messages:,} messages",
        found[Table.name],
        unit=f"× kvpersist, documents: {Table.name}",
        others=found,
    )


async def run() -> list[Row]:
    return [await compare(messages) for messages in MESSAGES]


if __name__ == "__main__":
    report(asyncio.run(run()))
