"""The command beside workers of one bot: what is safe is done, and nothing is overwritten."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from command import documents, run, said, schema_of
from handlers import text
from postgres_server import PostgresServer
from workers import workers

from kvpersist import ConflictError

ROWS = {"chat/1": '{"a":1}', "conversation/order/[1,1]": '"CITY"'}


async def test_an_update_does_not_overwrite_what_was_set_meanwhile(
    postgres: PostgresServer,
) -> None:
    """It fails, with nothing of it written; sent again, it is on top of the change."""
    at = await asyncio.to_thread(schema_of, postgres, ROWS)
    seen: list[dict[Any, Any]] = []

    async def work(_: Any, context: Any) -> None:
        seen.append(dict(context.chat_data))
        context.chat_data["n"] = len(seen)
        if len(seen) == 1:
            await asyncio.to_thread(run, "set", at.name, "chat/1", "b", "2")

    async with workers(at, lambda: [text(work)], 1) as (worker,):
        await worker.say("one", 1)
        (error,) = worker.errors
        assert isinstance(error, ConflictError)
        worker.errors.clear()
        await worker.say("one", 1)
    assert seen == [{"a": 1}, {"a": 1, "b": 2}]
    (row,) = await asyncio.to_thread(documents, "show", at.name, "chat/1")
    assert row["value"] == {"a": 1, "b": 2, "n": 2}


async def test_what_is_refused_under_a_bot_is_refused_under_workers(
    postgres: PostgresServer,
) -> None:
    """They share the lock of the schema, and the command sees it."""
    at = await asyncio.to_thread(schema_of, postgres, ROWS)
    lines = f"{json.dumps({'key': 'chat/2', 'value': {}})}\n"
    async with workers(at, list, 2):
        for command in (
            ("rm", at.name, "conversation/order/[1,1]", "--yes"),
            ("import", at.name, "-"),
        ):
            refused = await asyncio.to_thread(said, *command, code=1, given=lines)
            assert "stop it first" in refused
    assert len(at.all_columns()) == len(ROWS)
