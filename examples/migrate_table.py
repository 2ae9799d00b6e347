"""Move a hand-made table of messages to kvpersist: a pattern for any schema.

Many bots begin with a table of their own::

    CREATE TABLE messages (id INTEGER PRIMARY KEY, chat_id INTEGER, message_ts TEXT, message TEXT)

Here each chat becomes one document, as examples/message_logger.py keeps it, and what was counted by
a query is counted once::

    chat/1  {"messages": [{"at": "2026-11-23T14:49:13+00:00", "text": "hello, bot"}]}

Three things make such a move safe, whatever the schema: the old file is only read; the new one is
made under another name, and gets its own when all of it was read again and compared; and nothing is
overwritten. For another schema, change `chats_of` alone.

    python migrate_table.py old.db bot.db
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
from contextlib import closing
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvpersist import KVPersistence

if TYPE_CHECKING:
    from collections.abc import Iterator

AT_ONCE = 100
"""Documents that are written in one transaction."""


def chats_of(old: sqlite3.Connection) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield each chat with the document that it is to have. Only one is in memory at a time."""
    rows = old.execute("SELECT chat_id, message_ts, message FROM messages ORDER BY chat_id, id")
    for chat_id, group in groupby(rows, key=itemgetter(0)):
        yield chat_id, {"messages": [{"at": at, "text": text} for _, at, text in group]}


async def move(source: Path, target: Path) -> tuple[int, int]:
    """Make `target` of the table in `source`; return how many chats and messages it has.

    Raises:
        FileExistsError: `target` exists, and was left as it is.
        ValueError: What was read again is not what was written; there is no `target`.
    """
    part = target.with_name(f"{target.name}.part")
    for path in (target, part):
        if path.exists():
            raise FileExistsError(f"{path} exists, and is not overwritten")
    try:
        with closing(sqlite3.connect(f"{source.as_uri()}?mode=ro", uri=True)) as old:
            old.execute("BEGIN")  # so that all of it is of one moment
            await write(old, part)
            counts = await compare(old, part)
        os.link(part, target)  # unlike a rename it overwrites nothing
    finally:
        for path in (part, Path(f"{part}-lock")):
            path.unlink(missing_ok=True)
    return counts


async def write(old: sqlite3.Connection, part: Path) -> None:
    """Write all chats into a new file."""
    persistence = KVPersistence(part)
    documents = chats_of(old)
    try:
        while some := list(islice(documents, AT_ONCE)):
            # Those that are waited for together share a transaction.
            await asyncio.gather(*(persistence.update_chat_data(*each) for each in some))
    finally:
        await persistence.flush()


async def compare(old: sqlite3.Connection, part: Path) -> tuple[int, int]:
    """Read all chats again, and compare them with the table."""
    persistence = KVPersistence(part)
    try:
        found = await persistence.get_chat_data()
    finally:
        await persistence.flush()
    if found != dict(chats_of(old)):
        raise ValueError("what was read again is not what was written")
    return len(found), sum(len(chat["messages"]) for chat in found.values())


if __name__ == "__main__":
    moved = asyncio.run(move(Path(sys.argv[1]).resolve(), Path(sys.argv[2])))
    print(f"moved {moved[1]} messages of {moved[0]} chats")
