"""The data of buttons in an update: which keyboards it needs, and having PTB look for it again."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from telegram import InlineKeyboardButton, Message, Update
from telegram.ext import CallbackDataCache, InvalidCallbackData


def keyboards_of(update: Update) -> set[str]:
    """Return the keyboards whose buttons are in an update, in which PTB has not found them."""
    texts = [button.callback_data for button in _buttons(update)]
    if update.callback_query is not None:
        texts.append(update.callback_query.data)
    raw = {_raw(text) for text in texts}
    return {CallbackDataCache.extract_uuids(text)[0] for text in raw if text}


def restore(update: Update) -> Callable[[], None]:
    """Have an update as it came from Telegram, so that PTB can look for its buttons again.

    Returns:
        What does that once more, after PTB has found them.
    """
    buttons = [(button, _raw(button.callback_data)) for button in _buttons(update)]
    query = update.callback_query
    pressed = None if query is None else _raw(query.data)

    def put_back() -> None:
        for button, raw in buttons:
            if raw is not None:
                button.update_callback_data(raw)
        if pressed is not None:
            # PTB's objects are frozen; it does this itself when it puts in what it has found.
            object.__setattr__(query, "data", pressed)

    put_back()
    return put_back


def _raw(data: object) -> str | None:
    """Return what Telegram sent."""
    raw = data.callback_data if isinstance(data, InvalidCallbackData) else data
    return raw if isinstance(raw, str) else None


def _buttons(update: Update) -> Iterator[InlineKeyboardButton]:
    query = update.callback_query
    message = query.message if query is not None else update.effective_message
    for shown in _messages(message):
        if shown.reply_markup is not None:
            for row in shown.reply_markup.inline_keyboard:
                yield from row


def _messages(message: object) -> Iterator[Message]:
    """Yield a message, and those that it shows, in which PTB looks for buttons of the bot's."""
    if isinstance(message, Message):
        yield message
        yield from _messages(message.reply_to_message)
        yield from _messages(message.pinned_message)
