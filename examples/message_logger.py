"""A bot that remembers what it is told, also when it is killed: the tutorial of kvpersist.

With a token from @BotFather this is a real Telegram bot:

    pip install ".[demo]"  # in a clone of kvpersist
    BOT_TOKEN=123:abc python message_logger.py

Everything it knows is in `message_logger.db`; look into it while the bot runs:

    sqlite3 message_logger.db "SELECT key, value FROM documents"

Without a token, `make demo` shows the same bot talking to people on this machine.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Coroutine
from typing import Any, cast

from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.ext import (
    Application,
    CallbackQueryHandler,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    InvalidCallbackData,
    MessageHandler,
    PicklePersistence,
    TypeHandler,
    filters,
)

from kvpersist import KVPersistence, application_builder

Context = ContextTypes.DEFAULT_TYPE
AnyApplication = Application[Any, Any, Any, Any, Any, Any]

# New text messages; an edited one is not a new one, and commands have handlers of their own.
TEXT = filters.UpdateType.MESSAGE & filters.TEXT & ~filters.COMMAND

# The states of /introduce. They are stored, so do not rename one while somebody may be in it.
NAME, CITY = "NAME", "CITY"

HELP = """I remember every text you send me.
/show_data - all that I know
/introduce - two questions about you
/count - a button that counts
/forget - erase this chat"""


async def start(update: Update, _: Context) -> None:
    assert update.effective_message  # for type checkers: a command always has one
    await update.effective_message.reply_text(HELP)


# --- What is said in a chat goes into `chat_data`: row `chat/<id>` ---------------------------


async def remember(update: Update, context: Context) -> None:
    """Append the message to `chat_data`, count it in `user_data`: that is all it takes."""
    assert update.message
    assert context.chat_data is not None
    assert context.user_data is not None
    # Plain str, int, list and dict are stored as plain JSON, which any tool can read.
    message = {"at": update.message.date.isoformat(), "text": update.message.text}
    context.chat_data.setdefault("messages", []).append(message)
    context.user_data["messages"] = context.user_data.get("messages", 0) + 1


async def acknowledge(update: Update, context: Context) -> None:
    assert update.message
    assert context.chat_data is not None
    text = f"Noted: message {len(context.chat_data['messages'])}."
    answer_with(context, update.message.reply_text(text))


async def show_data(update: Update, context: Context) -> None:
    assert update.effective_message
    assert context.chat_data is not None
    messages = context.chat_data.get("messages", [])
    lines = [f"{len(messages)} messages in this chat:"]
    lines += [f"{message['at']}  {message['text']}" for message in messages]
    lines += ["About you:"] + [
        f"{key}: {value}" for key, value in (context.user_data or {}).items()
    ]
    text = "\n".join(lines)
    for begin in range(0, len(text), 2000):  # Telegram takes 4096, and counts an emoji twice
        await update.effective_message.reply_text(text[begin : begin + 2000])


async def forget(update: Update, context: Context) -> None:
    assert update.effective_message
    context.application.drop_chat_data(update.effective_message.chat_id)
    answer_with(context, update.effective_message.reply_text("Forgotten."))


# --- Two questions: rows `user/<id>` and `conversation/introduce/[<chat>,<user>]` ------------


async def introduce(update: Update, context: Context) -> str:
    assert update.effective_message
    answer_with(context, update.effective_message.reply_text("What is your name?"))
    return NAME  # the state is stored: a restarted bot still knows what it asked


async def name(update: Update, context: Context) -> str:
    assert update.message
    assert context.user_data is not None
    context.user_data["name"] = update.message.text
    question = f"And where do you live, {update.message.text}?"
    answer_with(context, update.message.reply_text(question))
    return CITY


async def city(update: Update, context: Context) -> int:
    assert update.message
    assert context.user_data is not None
    context.user_data["city"] = update.message.text
    text = f"Nice to meet you, {context.user_data['name']} from {update.message.text}."
    answer_with(context, update.message.reply_text(text))
    return ConversationHandler.END  # removes the row


async def cancel(update: Update, context: Context) -> int:
    assert update.effective_message
    answer_with(context, update.effective_message.reply_text("Never mind."))
    return ConversationHandler.END


# --- A button that carries a Python object: row `callback/<keyboard>` ------------------------


async def count(update: Update, _: Context) -> None:
    assert update.effective_message
    # Telegram sees an id only. The tuples stay here, and outlive a restart.
    buttons = [InlineKeyboardButton(f"+{n}", callback_data=("add", n)) for n in (1, 10)]
    keyboard = InlineKeyboardMarkup([buttons])
    await update.effective_message.reply_text("Press to count.", reply_markup=keyboard)


async def pressed(update: Update, context: Context) -> None:
    assert update.callback_query
    assert context.chat_data is not None
    _, step = cast("tuple[str, int]", update.callback_query.data)  # the tuple, as `count` made it
    context.chat_data["count"] = context.chat_data.get("count", 0) + step
    text = f"The count is {context.chat_data['count']}."
    answer_with(context, update.callback_query.answer(text))


async def outdated(update: Update, _: Context) -> None:
    """Answer a press on a button that is not known: PTB keeps those of the last 1024 keyboards."""
    assert update.callback_query
    await update.callback_query.answer("This button is not known any more: send /count.")


# --- Answers ----------------------------------------------------------------------------------


def answer_with(context: Context, reply: Coroutine[Any, Any, object]) -> None:
    """Have a reply sent by `answer`, which comes after all other handlers of this update."""
    context.update({"reply": reply})


async def answer(_: Update, context: Context) -> None:
    """Reply when all that this update has changed is on the disk, the step of a conversation too.

    A bot that is killed in any moment has then promised nothing that it does not know. (But a new
    button is stored after it was sent, when the update ends.) While the store refuses, as on a
    full disk, `update_persistence` returns too, and error handlers are told: what is replied then
    is only kept in memory, until the store takes it.
    """
    if (reply := getattr(context, "reply", None)) is not None:
        await context.application.update_persistence()
        await reply


# --- The bot ----------------------------------------------------------------------------------


def add_handlers(app: AnyApplication) -> None:
    app.add_handler(MessageHandler(TEXT, remember), group=-1)  # before the others, for all texts
    conversation = ConversationHandler(
        entry_points=[CommandHandler("introduce", introduce)],
        states={NAME: [MessageHandler(TEXT, name)], CITY: [MessageHandler(TEXT, city)]},
        fallbacks=[CommandHandler("cancel", cancel)],
        name="introduce",  # names the rows
        persistent=True,
    )
    app.add_handler(conversation)
    app.add_handler(CommandHandler(["start", "help"], start))
    app.add_handler(CommandHandler("show_data", show_data))
    app.add_handler(CommandHandler("forget", forget))
    app.add_handler(CommandHandler("count", count))
    app.add_handler(CallbackQueryHandler(outdated, pattern=InvalidCallbackData))
    app.add_handler(CallbackQueryHandler(pressed, pattern=tuple))
    app.add_handler(MessageHandler(TEXT, acknowledge))
    app.add_handler(TypeHandler(Update, answer), group=1)  # after the others, for all updates


def main() -> None:
    parser = argparse.ArgumentParser(description="A bot that remembers what it is told.")
    parser.add_argument("data", nargs="?", default="message_logger.db", help="the file to keep")
    parser.add_argument("--persistence", choices=["kvpersist", "pickle"], default="kvpersist")
    parser.add_argument(
        "--base-url",
        default=os.environ.get("BOT_API", "https://api.telegram.org/bot"),
        help="where the Bot API is (default: $BOT_API, or Telegram's)",
    )
    args = parser.parse_args()
    token = os.environ.get("BOT_TOKEN") or parser.error(
        "set BOT_TOKEN to your bot's token, or type `make demo` to try the bot without one"
    )
    logging.basicConfig(level=logging.WARNING)
    builder: Any
    if args.persistence == "kvpersist":
        builder = application_builder(KVPersistence(args.data))
    else:  # for comparison
        builder = Application.builder().persistence(PicklePersistence(args.data, update_interval=1))
    app = builder.token(token).base_url(args.base_url).arbitrary_callback_data(True).build()
    add_handlers(app)
    app.run_polling(allowed_updates=Update.ALL_TYPES)


if __name__ == "__main__":
    main()
