"""What the bots know: chats of 0.8 KB, and updates of them."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any, TypeAlias

from telegram import Chat, Message, Update, User

Document: TypeAlias = dict[str, Any]
Chats: TypeAlias = dict[int, Document]

FIRST = 1_000_000
"""The id of the first chat."""
_NOW = datetime.now(timezone.utc)


def chats(count: int, messages: int = 8) -> Chats:
    """Return so many chats, by id."""
    return {FIRST + at: document(at, messages) for at in range(count)}


def document(number: int, messages: int = 8) -> Document:
    """Return the data of one chat: 0.8 KB as JSON with 8 messages, 10 KB with 128."""
    return {
        "name": f"user {number}",
        "messages": [message(at) for at in range(messages)],
        "count": 0,
        "flags": [True, False, None],
        "score": 1.5,
        "about": "Somebody who likes to talk to bots, and about whom 0.8 KB are known.",
    }


def message(number: int) -> Document:
    """Return a message as a chat keeps it."""
    return {"at": "2026-11-23T14:49:13+00:00", "text": f"this is message {number}", "n": number}


def update(number: int, chat_id: int) -> Update:
    """Return a message as Telegram sends it, in the private chat of a user."""
    sender = User(chat_id, "P", is_bot=False)
    return Update(number, Message(number, _NOW, Chat(chat_id, "private"), sender))
