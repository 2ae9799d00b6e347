"""The states of PTB's conversations, put into its memory for one update, and taken out again.

PTB looks at states before anything can be awaited, in `ConversationHandler.check_update`, and only
in its own memory. So the states that an update needs have to be there before it is handled.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterable, Iterator, MutableMapping
from typing import Any, TypeAlias, cast

from telegram import Update
from telegram.ext import BaseHandler, ConversationHandler

from kvpersist.errors import ConfigurationError

Handler: TypeAlias = BaseHandler[Any, Any, Any]
Conversation: TypeAlias = ConversationHandler[Any]
Key: TypeAlias = tuple[int | str, ...]


def find(handlers: Iterable[Handler]) -> list[Conversation]:
    """Return the conversations among handlers, and those that are nested in them.

    Raises:
        ConfigurationError: One cannot be shared by several workers, or two have the same name.
    """
    found = [*dict.fromkeys(_find(handlers))]
    names = Counter(handler.name for handler in found)
    for name, number in names.items():
        if number > 1:
            raise ConfigurationError(
                f"{number} ConversationHandlers have the name {name!r}: their states would be the "
                "same rows; give each another name"
            )
    return found


def _find(handlers: Iterable[Handler]) -> Iterator[Conversation]:
    for handler in handlers:
        if not isinstance(handler, ConversationHandler):
            continue
        check(handler)
        yield handler
        states = [each for among in handler.states.values() for each in among]
        yield from _find([*handler.entry_points, *states, *handler.fallbacks])


def check(handler: Conversation) -> None:
    """Refuse a conversation that lives in the memory of one worker.

    Raises:
        ConfigurationError: With what to do about it.
    """
    if not handler.persistent:
        raise ConfigurationError(
            f"with shared=True a ConversationHandler must be persistent=True, with a name, unlike "
            f"{handler!r}: its states would be those of one worker"
        )
    if handler.conversation_timeout is not None:
        raise ConfigurationError(
            f"with shared=True the ConversationHandler {handler.name!r} cannot have a "
            "conversation_timeout: the job that ends it is in one worker, and the conversation "
            "goes on in others"
        )


def key_of(handler: Conversation, update: Update) -> Key | None:
    """Return which conversation of a handler an update belongs to, as PTB does; None for none."""
    chat, user, query = update.effective_chat, update.effective_user, update.callback_query
    message: int | str | None = None
    if query is not None:
        of_chat = query.message.message_id if query.message is not None else None
        message = query.inline_message_id or of_chat
    parts: list[int | str | None] = []
    if handler.per_chat:
        parts.append(chat.id if chat else None)
    if handler.per_user:
        parts.append(user.id if user else None)
    if handler.per_message:
        parts.append(message)
    return None if None in parts else tuple(cast("list[int | str]", parts))


def put(handler: Conversation, key: Key, state: object) -> None:
    """Have PTB find a conversation in a state."""
    _states(handler)[key] = state


def take(handler: Conversation, key: Key) -> object | None:
    """Return the state that a conversation is in, which PTB finds no more; None for none."""
    state: Any = _states(handler).pop(key, None)
    if hasattr(state, "resolve") and hasattr(state, "old_state"):  # of a handler with block=False
        is_known = state.task.done() and not state.task.cancelled()
        state = state.resolve() if is_known else state.old_state
        state = None if state == ConversationHandler.END else state
    return cast("object | None", state)


async def stay_if_cancelled(coroutine: Awaitable[object]) -> object:
    """Return the state that a handler returns; None, which is the old one, if it is cancelled.

    PTB would raise it later, in whoever asks for the states of all conversations.
    """
    try:
        return await coroutine
    except asyncio.CancelledError:
        return None


def _states(handler: Conversation) -> MutableMapping[Key, Any]:
    """Return the states in PTB's memory.

    A private name of PTB's: nothing public tells one state, or sets it.
    """
    states: MutableMapping[Key, Any] = handler._conversations  # noqa: SLF001
    return states
