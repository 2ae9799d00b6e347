"""Which documents an update uses."""

from __future__ import annotations

from collections.abc import Iterator

from telegram import Update

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
