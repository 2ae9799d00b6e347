"""Bots that write through, and what the tests of them have in common."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from bots import NEVER, Bot, Handler, Telegram
from stores import WatchedStore
from telegram import Update
from telegram.ext import CommandHandler, JobQueue

from kvpersist import KVPersistence, MemoryStore, Store, application_builder

PERSISTENCE = (
    "store_data", "types", "lazy", "max_documents", "shared", "deduplicate", "on_bad_row"
)  # fmt: skip
"""Options that are not the builder's."""


@asynccontextmanager
async def running(
    store: Store, *handlers: Handler, jobs: bool = False, **options: Any
) -> AsyncIterator[Bot]:
    """Run a bot that writes through, each handler in a group of its own. No error may be left."""
    bot = build(store, *handlers, jobs=jobs, **options)
    async with bot.app:
        await bot.app.start()
        try:
            yield bot
        finally:
            await bot.app.stop()
    assert bot.errors == [], bot.errors


def build(store: Store, *handlers: Handler, jobs: bool = False, **options: Any) -> Bot:
    """Return a bot that writes through and was not initialised yet."""
    telegram = Telegram()
    arguments = {name: options.pop(name) for name in PERSISTENCE if name in options}
    builder = (
        application_builder(KVPersistence(store, update_interval=NEVER, **arguments))
        .token("1000:TEST")
        .request(telegram)
        .get_updates_request(telegram)
        .job_queue(JobQueue() if jobs else None)
    )
    for name, value in options.items():
        builder = getattr(builder, name)(value)
    bot = Bot(builder.build(), telegram)
    for group, handler in enumerate(handlers):
        bot.app.add_handler(handler, group)
    return bot


def rows(store: WatchedStore) -> dict[str, bytes]:
    """The rows that are stored."""
    assert isinstance(store.store, MemoryStore)
    return store.store.rows


def counting(name: str) -> Any:
    """Return a handler of a command that counts in the data of the chat."""

    async def count(_: Update, context: Any) -> None:
        context.chat_data["count"] = context.chat_data.get("count", 0) + 1

    return CommandHandler(name, count)


async def until(happened: Callable[[], bool]) -> None:
    """Let every task run until something has happened."""
    while not happened():  # noqa: ASYNC110  the bot says nothing when it does
        await asyncio.sleep(0)


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(30):
        await asyncio.sleep(0)
