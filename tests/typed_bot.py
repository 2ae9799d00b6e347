"""A small bot with context types of its own; that it passes ``mypy --strict`` is part of the test.

What a type checker must refuse is marked ``type: ignore``, which it must then find to be needed.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from telegram import Update
from telegram.ext import (
    Application,
    ApplicationBuilder,
    CallbackContext,
    ContextTypes,
    ExtBot,
    JobQueue,
    TypeHandler,
)

from kvpersist import KVPersistence, MemoryStore


class UserData(dict[str, int]):
    """What is kept of a user."""

    def count(self) -> int:
        self["visits"] = self.get("visits", 0) + 1
        return self["visits"]


class ChatData(dict[str, list[str]]):
    """What is kept of a chat."""

    @property
    def names(self) -> list[str]:
        return self.setdefault("names", [])


class BotData(dict[str, str]):
    """What is kept of the bot."""

    greeting = "Hello"


class Context(CallbackContext[ExtBot[None], UserData, ChatData, BotData]):
    """What a handler gets."""

    @property
    def visitor(self) -> UserData:
        assert self.user_data is not None
        return self.user_data


TypedApplication = Application[
    ExtBot[None], Context, UserData, ChatData, BotData, JobQueue[Context]
]


async def greet(update: Update, context: Context) -> None:
    """Count a visit."""
    assert update.effective_user is not None
    assert context.chat_data is not None
    context.chat_data.names.append(update.effective_user.first_name)
    context.bot_data["last"] = f"{context.bot_data.greeting} {context.visitor.count()}"


def build(
    path: Path, builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any]
) -> TypedApplication:
    """Return the bot."""
    context_types = ContextTypes(
        context=Context, user_data=UserData, chat_data=ChatData, bot_data=BotData
    )
    persistence = KVPersistence(path, context_types=context_types)
    app: TypedApplication = builder.context_types(context_types).persistence(persistence).build()
    app.add_handler(TypeHandler(Update, greet))
    return app


def default_builder() -> ApplicationBuilder[Any, Any, Any, Any, Any, Any]:
    """Return what the quick start of the documentation begins with, for the type checker."""
    app = Application.builder().token("1:A").persistence(KVPersistence(MemoryStore())).build()
    app.add_handler(TypeHandler(Update, quick))
    return Application.builder()


async def quick(_: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    """Change data of the default types."""
    assert context.chat_data is not None
    context.chat_data["x"] = 1


if TYPE_CHECKING:
    _types = ContextTypes(user_data=UserData, chat_data=ChatData, bot_data=BotData)
    _some_types = ContextTypes(chat_data=ChatData)
    _typed = KVPersistence("bot.db", context_types=_types)
    _partly_typed = KVPersistence("bot.db", context_types=_some_types)
    _untyped = KVPersistence("bot.db")

    _1: KVPersistence[UserData, ChatData, BotData] = _typed
    _2: KVPersistence[dict[Any, Any], ChatData, dict[Any, Any]] = _partly_typed
    _3: KVPersistence[dict[Any, Any], dict[Any, Any], dict[Any, Any]] = _untyped
    _4: KVPersistence[ChatData, ChatData, BotData] = _typed  # type: ignore[assignment]
    _5: KVPersistence[UserData, ChatData, BotData] = _untyped  # type: ignore[assignment]
    KVPersistence(5)  # type: ignore[call-overload]
    KVPersistence("bot.db", context_types=UserData)  # type: ignore[call-overload]

    async def _check() -> None:
        users: dict[int, UserData] = await _typed.get_user_data()
        bot_data: BotData = await _typed.get_bot_data()
        await _typed.update_user_data(1, users[1])
        await _typed.update_chat_data(1, users[1])  # type: ignore[arg-type]
        await _typed.update_bot_data(bot_data)
