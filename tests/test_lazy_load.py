"""`KVPersistence.load` and `documents`: the data of others than those of an update."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from stores import WatchedStore
from telegram import Update
from telegram.ext import CommandHandler, ContextTypes
from through import rows, running


def calling(act: Callable[[Any], Awaitable[None]]) -> Any:
    """Return a handler of the command ``/act``."""

    async def handle(_: Update, context: Any) -> None:
        await act(context)

    return CommandHandler("act", handle)


class ChatData:
    """A bot's own class; a new one cannot be stored."""

    def __init__(self) -> None:
        self.lock: object = object()


async def test_a_new_document_need_not_be_one_that_can_be_stored(store: WatchedStore) -> None:
    """No document is like a new one then; what a handler has put right is written."""

    async def renew(context: Any) -> None:
        context.application.drop_chat_data(1)
        context.chat_data.lock = None

    types: ContextTypes[Any, Any, Any, Any] = ContextTypes(chat_data=ChatData)
    async with running(store, calling(renew), lazy=True, context_types=types) as bot:
        await bot.say("/act", 1)
    assert rows(store)["chat/1"] == b'{"lock":null}'
