"""Handlers that several tests let their bots have."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeAlias

from telegram import Update
from telegram.ext import (
    CommandHandler,
    ConversationHandler,
    MessageHandler,
    TypeHandler,
    filters,
)

Callback: TypeAlias = Callable[[Update, Any], Coroutine[Any, Any, Any]]

END = ConversationHandler.END


def text(callback: Callback, pattern: str = "", **options: Any) -> MessageHandler[Any, Any]:
    """Handle text messages that begin with `pattern`."""
    return MessageHandler(filters.Regex(f"^{pattern}") & ~filters.COMMAND, callback, **options)


async def nothing(_: Update, __: Any) -> None:
    """Handle an update without a trace."""


ANY = TypeHandler(Update, nothing)


async def remember(update: Update, context: Any) -> None:
    """Keep the text of a message for its chat, its user and the bot."""
    assert update.message is not None
    for data in (context.chat_data, context.user_data, context.bot_data):
        data.setdefault("said", []).append(update.message.text)


def step(state: object, answer: str) -> Callback:
    """Return a callback that answers and leads to `state`; None stays where it is."""

    async def take(update: Update, context: Any) -> object:
        assert update.effective_user is not None
        await context.bot.send_message(update.effective_user.id, answer)
        return state

    return take


def conversation(name: str = "order", *states: object, **options: Any) -> ConversationHandler[Any]:
    """Return a conversation that goes through `states` with each text, and then ends."""
    path = states or (0, "")
    return ConversationHandler(
        entry_points=[CommandHandler("start", step(path[0], "started"))],
        states={
            state: [text(step(after, f"was at {state!r}"))]
            for state, after in zip(path, [*path[1:], END], strict=True)
        },
        fallbacks=[],
        name=name,
        persistent=True,
        **options,
    )
