"""PostgreSQL: rows that cannot be read are told at once, or set aside in a table of their own."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from handlers import remember, text
from postgres_server import PostgresServer
from storages import PostgresStorage
from through import build

from kvpersist import BadRowsError, KVPersistence

BAD = {
    "chat/2": '{"a":{"$nobody:knows":1}}',
    "chat/x": "{}",
    "chat/5": "[" * 500 + "]" * 500,
    "user/2": '{"a": "\\u0000", "n":123456789012345678901234567890}',
    "user/3": "null",
}
"""An unknown tag, no id, too deep, too large an int beside a NUL, no document."""


@pytest.fixture
async def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema with rows that cannot be read."""
    storage = PostgresStorage(postgres)
    store = storage.store()
    await store.open()
    await store.close()
    for key, value in {"chat/1": '{"n":1}', **BAD}.items():
        storage.write(key, value)
    return storage


def set_aside(bot: PostgresStorage) -> dict[str, str]:
    """Return the rows that were set aside."""
    found = bot.server.query(f"SELECT key, value, version FROM {bot.schema}.set_aside")
    assert {version for *_, version in found} <= {1}
    return {key: value for key, value, _ in found}


async def test_a_start_tells_of_all_rows_that_cannot_be_read(bot: PostgresStorage) -> None:
    """And leaves them; another bot can have the schema."""
    before = bot.all_columns()
    with pytest.raises(BadRowsError) as caught:
        await bot.persistence().get_chat_data()
    assert {error.key for error in caught.value.errors} == {*BAD}
    assert bot.all_columns() == before
    store = bot.store()
    await store.open()
    await store.close()


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
async def test_bad_rows_are_set_aside(
    bot: PostgresStorage, caplog: pytest.LogCaptureFixture, *, lazy: bool
) -> None:
    """At the start, or when they are used: byte for byte, with a line in the log for each."""
    caplog.set_level(logging.ERROR, "kvpersist")
    app = build(bot.store(), text(remember), on_bad_row="set-aside", lazy=lazy)
    async with app.app:
        await app.say("x", 2)
        bot.write("chat/7", "[]")
        await app.say("x", 7)
        found = [item async for item in app.app.persistence.documents("chat")]  # type: ignore[union-attr]
        assert [chat for chat, _ in found] == [1, 2, 7]
        found = [item async for item in app.app.persistence.documents("user")]  # type: ignore[union-attr]
        assert [user for user, _ in found] == [2, 7]
    assert app.errors == []
    assert set_aside(bot) == {**BAD, "chat/7": "[]"}
    assert bot.rows["chat/2"] == bot.rows["chat/7"] == b'{"said":["x"]}'
    told = [message for message in caplog.messages if message.startswith("set aside: ")]
    assert len(told) == len(BAD) + 1


async def test_what_was_set_aside_can_be_mended_and_put_back(bot: PostgresStorage) -> None:
    """With the SQL of the page, in place of what the bot has written since."""
    persistence = KVPersistence[Any, Any, Any](bot.store(), on_bad_row="set-aside")
    assert await persistence.get_chat_data() == {1: {"n": 1}}
    await persistence.update_chat_data(5, {"n": 5})
    await persistence.flush()
    page = Path(__file__).parents[1].joinpath("docs", "postgres.md").read_text()
    ((sql, *_),) = (block.split("```") for block in page.split("```sql\n") if "WITH bad" in block)
    for statement in sql.split(";\n"):
        at = f"(SELECT set_aside_at FROM {bot.schema}.set_aside WHERE key = 'chat/5')"
        for table in ("set_aside", "documents"):
            statement = statement.replace(f"FROM {table}", f"FROM {bot.schema}.{table}")  # noqa: PLW2901
            statement = statement.replace(f"INTO {table}", f"INTO {bot.schema}.{table}")  # noqa: PLW2901
        bot.server.query(statement.replace("1767225600000", at))
    assert await persistence.get_chat_data() == {1: {"n": 1}, 5: {"mended": True}}
    await persistence.flush()
    assert {*set_aside(bot)} == {"chat/2", "chat/x"}
