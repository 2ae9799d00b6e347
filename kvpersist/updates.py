"""Which documents an update uses."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from telegram import Message, Update
from telegram.ext import Application

from kvpersist.keys import Name


def used_by(update: object) -> Iterator[Name]:
    """Yield the documents that handlers of an update use; of other objects than updates, none."""
    if isinstance(update, Update):
        if update.effective_chat:
            yield "chat", update.effective_chat.id
        if update.effective_user:
            yield "user", update.effective_user.id


def moved_by(update: object) -> Iterator[Name]:
    """Yield the ids of a chat that a message tells to move: see `migrate_chat_data`."""
    if isinstance(update, Update) and (message := update.message) is not None:
        for chat_id in (message.migrate_from_chat_id, message.migrate_to_chat_id):
            if chat_id is not None:
                yield "chat", chat_id


def unmark(application: Application[Any, Any, Any, Any, Any, Any], chat_id: int) -> None:
    """Take a chat that moved out of those that PTB would copy and hand over by itself.

    A private set of PTB's; nothing public takes an id out of it.
    """
    application._chat_ids_to_be_updated_in_persistence.discard(chat_id)  # noqa: SLF001


def end_of_move(
    message: Message | None, old_chat_id: int | None, new_chat_id: int | None
) -> tuple[int, int]:
    """Return the old and the new id of a chat, from what `migrate_chat_data` was given."""
    if message is not None:
        old_chat_id = message.migrate_from_chat_id or message.chat.id
        new_chat_id = message.migrate_to_chat_id or message.chat.id
    return cast("int", old_chat_id), cast("int", new_chat_id)
