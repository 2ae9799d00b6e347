"""What docs/workers.md shows does what it says there."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from bots import text_update
from handlers import text
from postgres_server import PostgresServer
from storages import PostgresStorage
from telegram import Update
from workers import workers

from kvpersist import KVPersistence

PAGE = (Path(__file__).parent.parent / "docs" / "workers.md").read_text()


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


@pytest.fixture
def shown(bot: PostgresStorage) -> dict[str, Any]:
    """What the blocks of Python define. Where they name a database, it is the test's."""
    names: dict[str, Any] = {"TOKEN": "123:abc"}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, names)  # noqa: S102  it is the page of this repository
    names["KVPersistence"] = lambda _, **options: KVPersistence(bot.store(), **options)
    return names


async def test_counting_in_bot_data_needs_the_lock(
    bot: PostgresStorage, shown: dict[str, Any]
) -> None:
    """With it nothing is lost, whatever other workers count; the page's wrong way loses some."""
    inside: list[Update] = []
    are_both = asyncio.Event()

    async def wrong(update: Update, context: Any) -> None:
        await shown["wrong"](update, context)
        inside.append(update)
        if len(inside) == 2:
            are_both.set()
        await are_both.wait()  # both have read what is stored, and neither has written

    handlers = [text(shown["order"], "order"), text(shown["count"], "count"), text(wrong, "wrong")]
    async with workers(bot, lambda: handlers) as both:
        chats = range(1, 11)
        await asyncio.gather(*(each.say("order", chat_id=at) for at in chats for each in both))
        assert bot.rows["bot"] == b'{"orders":20}'
        await asyncio.gather(*(each.say("wrong", chat_id=1 + at) for at, each in enumerate(both)))
        assert bot.rows["bot"] == b'{"orders":21}'


async def test_counting_by_chat_is_added_up(bot: PostgresStorage, shown: dict[str, Any]) -> None:
    """In a handler, and by the SQL that the page shows."""
    handlers = [text(shown["count"], "count"), text(shown["total"], "total")]
    async with workers(bot, lambda: handlers) as both:
        chats = range(1, 11)
        await asyncio.gather(*(each.say("count", chat_id=at) for at in chats for each in both))
        await both[0].say("total")
        assert both[0].answers() == ["20 orders"]
    (sql,) = re.findall(r"`(SELECT sum.*?)`", PAGE)
    found = bot.server.query(sql.replace("documents", f"{bot.schema}.documents"))
    assert found == [(20,)]


async def test_a_transfer_is_committed_whole(bot: PostgresStorage, shown: dict[str, Any]) -> None:
    """Whoever gives, from whichever worker, at the same time."""
    async with workers(bot, lambda: [text(shown["give"])]) as both:
        people = range(1, 6)
        await asyncio.gather(*(each.say("give", chat_id=at) for at in people for each in both))
    assert bot.rows["user/7"] == b'{"coins":10}'
    assert [bot.rows[f"user/{at}"] for at in people] == [b'{"coins":-2}'] * 5


async def test_jobs_and_scripts_change_what_workers_read(
    bot: PostgresStorage, shown: dict[str, Any]
) -> None:
    """With `edit`, while the workers run."""
    async with workers(bot, lambda: [text(shown["give"])], 1) as (worker,):
        await shown["birthday"](type("Context", (), {"application": worker.app}))
        await shown["script"]()
        await worker.say("hi")
    assert bot.rows["user/7"] == b'{"coins":11}'
    assert bot.rows["bot"] == b'{"motto":"more"}'


async def test_the_webhook_confirms_what_is_committed(
    bot: PostgresStorage, shown: dict[str, Any]
) -> None:
    """200 after the commit, 403 for strangers, 503 for what somebody else has overwritten."""
    shown["SECRET"] = "s"  # noqa: S105  of nothing

    async def handle(update: Update, context: Any) -> None:
        await shown["count"](update, context)
        assert update.message is not None
        if update.message.text == "spoil":
            await asyncio.to_thread(bot.write, "chat/1", "{}")

    async with workers(bot, lambda: [text(handle)], 1) as (worker,):

        async def post(said: str, secret: str) -> int:
            async def json() -> Any:
                return text_update(said)

            headers = {"X-Telegram-Bot-Api-Secret-Token": secret}
            request = {"app": {"bot": worker.app}, "headers": headers, "json": json}
            answer = await shown["webhook"](type("Request", (), request))
            return int(answer.status)

        assert await post("hi", "s") == 200
        assert bot.rows["chat/1"] == b'{"orders":1}'
        assert await post("hi", "wrong") == 403
        assert await post("spoil", "s") == 503
    assert bot.rows["chat/1"] == b"{}"


async def test_partitions_work_as_shown(bot: PostgresStorage, shown: dict[str, Any]) -> None:
    """The table that the page shows is taken as the one that kvpersist makes."""
    (sql,) = re.findall(r"```sql\n(CREATE TABLE documents .*?)```", PAGE, re.DOTALL)
    store = bot.store()
    await store.open()
    await store.close()
    bot.server.query(f"DROP TABLE {bot.schema}.documents")
    for statement in sql.strip().split(";\n"):
        bot.server.psql(f"SET search_path = {bot.schema}; {statement}")
    async with workers(bot, lambda: [text(shown["count"])], deduplicate=True) as both:
        chats = range(1, 31)
        await asyncio.gather(*(each.say("hi", chat_id=at) for at in chats for each in both))
    assert [bot.rows[f"chat/{at}"] for at in chats] == [b'{"orders":2}'] * 30
    used = f"SELECT DISTINCT tableoid::regclass::text FROM {bot.schema}.documents"
    assert len(bot.server.query(used)) == 4
