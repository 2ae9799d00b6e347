"""What is very large, very odd or goes backwards confuses nothing."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import sys
import time
from contextlib import closing
from itertools import count
from pathlib import Path

import pytest

from kvpersist import EncodeError, KVPersistence, MemoryStore, SqliteStore, keys
from kvpersist.rows import MOST_BYTES
from kvpersist.stores.sqlite_schema import SCHEMA

NAMES = 10_000
ODD = [
    "/",
    "%",
    "'",
    '"',
    "\0",
    "\n",
    "%2F",
    "[1]",
    ",",
    "order",
    "Order",
    " ",
    "é",
    "😀",
    "\ud800",
]
IDS = [0, 1, -1, 2**31, -(2**31), 2**52, 2**63 - 1, -(2**63), 2**63, 10**30]


def odd_names(number: int) -> list[str]:
    """Return names of conversations that nobody would choose."""
    choose = random.Random(1)  # noqa: S311  no secret
    names = {"".join(choose.choices(ODD, k=choose.randrange(12))) for _ in range(2 * number)}
    return sorted(names, key=repr)[:number]


def test_no_two_conversations_have_one_key() -> None:
    """However they are called; nor does one handler's prefix begin another's."""
    names = odd_names(NAMES)
    prefixes = sorted(keys.conversation_prefix(name) for name in names)
    assert len({*prefixes}) == len(names) == NAMES
    assert not any(after.startswith(before) for before, after in zip(prefixes, prefixes[1:]))  # noqa: RUF007, B905  3.10
    assert all(prefix.count("/") == 2 for prefix in prefixes)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_states_of_odd_conversations_and_ids_come_back(bot_db: Path, kind: str) -> None:
    """Each to its own, after a restart."""
    store = MemoryStore() if kind == "memory" else SqliteStore(bot_db)
    persistence = KVPersistence(store)
    names = odd_names(300)
    states = (
        persistence.update_conversation(name, (number, name), number)
        for number, name in enumerate(names)
    )
    ids = (persistence.update_chat_data(each, {"id": each % 97}) for each in IDS)
    await asyncio.gather(*states, *ids)
    await persistence.flush()
    again = KVPersistence(store if kind == "memory" else SqliteStore(bot_db))
    for number, name in enumerate(names):
        assert await again.get_conversations(name) == {(number, name): number}
    assert await again.get_chat_data() == {each: {"id": each % 97} for each in IDS}
    await again.flush()


async def test_an_enormous_document_is_stored_with_the_others(bot_db: Path) -> None:
    """100 MB are stored as they are; what cannot be fails alone, however large."""
    persistence = KVPersistence(bot_db)
    large = {"text": "x" * 100_000_000}
    results = await asyncio.gather(
        persistence.update_chat_data(0, large),
        persistence.update_chat_data(1, {"bad": [*range(1_000_000), object()]}),
        *(persistence.update_chat_data(chat, {"n": chat}) for chat in range(2, 50)),
        return_exceptions=True,
    )
    (error,) = [result for result in results if result is not None]
    assert isinstance(error, EncodeError)
    assert str(error).startswith('chat/1 → ["bad"][1000000]: ')
    await persistence.flush()
    found = await persistence.get_chat_data()
    assert found[0] == large
    assert len(found) == 49
    await persistence.flush()


async def test_a_document_that_no_store_takes_is_refused_at_once(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be tried again for ever, and rescued in vain: of whatever kind it is."""
    monkeypatch.setattr("kvpersist.rows.MOST_BYTES", 1000)
    persistence = KVPersistence(bot_db)
    large = "x" * 1000
    await persistence.update_chat_data(1, {"n": 1})
    for update in (
        persistence.update_chat_data(1, {"text": large}),
        persistence.update_conversation("c", (1,), large),
        persistence.update_callback_data(([("k", 1.0, {"b": large})], {})),
    ):
        with pytest.raises(EncodeError, match=r"/.*: it has 1,0.. bytes, and .* at most 1,000"):
            await update
    with pytest.raises(EncodeError, match="it has . bytes, and with its key at most 1,000"):
        await persistence.update_conversation("c" * 300, (1,), "st")
    await persistence.flush()
    assert await persistence.get_chat_data() == {1: {"n": 1}}
    await persistence.flush()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="no sqlite3.Connection.setlimit")
def test_sqlite_takes_what_is_not_refused() -> None:
    """Of its bytes for a row, 100 are enough for all but the key and the value."""
    least = 10_000
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.executescript(SCHEMA)
        connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, least)
        room = least - (10**9 - MOST_BYTES)
        row = ("k" * 1000, "x" * (room - 1000), 2**62, 2**62)
        connection.execute("INSERT INTO documents VALUES (?, ?, ?, ?)", row)


async def test_a_clock_that_jumps_changes_no_order(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest value is the one that was handed over last, whatever time it is."""
    backwards = count(time.time_ns(), -(10**18))
    monkeypatch.setattr(time, "time_ns", lambda: next(backwards))
    persistence = KVPersistence(bot_db)
    for number in range(5):
        await persistence.update_chat_data(1, {"n": number})
    await persistence.flush()
    assert await persistence.get_chat_data() == {1: {"n": 4}}
    await persistence.flush()
    with closing(sqlite3.connect(bot_db)) as connection:
        assert connection.execute("SELECT version FROM documents").fetchall() == [(5,)]
