"""A bot in the shape of PTB's ``persistentconversationbot.py``; one line makes it persistent.

It asks what to learn about its user, in a conversation that any restart may interrupt, and tells
all of it at ``/show_data``. Run as a program it reads one update a line from standard input, and
answers each, after a run of the persistence, with one line: what it said.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

from bots import NEVER, build
from telegram import ReplyKeyboardMarkup, ReplyKeyboardRemove, Update
from telegram.ext import CommandHandler, ConversationHandler, MessageHandler, filters

from kvpersist import KVPersistence

CHOOSING, TYPING_ANSWER, TYPING_TOPIC = range(3)
KEYBOARD = ReplyKeyboardMarkup([["Colour", "Town"], ["Something else", "Done"]])
TOPICS = filters.Regex("^(Colour|Town)$")
ELSE = filters.Regex("^Something else$")
DONE = filters.Regex("^Done$")
PLAIN = filters.TEXT & ~(filters.COMMAND | DONE)


def told(user_data: dict[str, str]) -> str:
    """Return what the user told, a line a topic."""
    return "; ".join(f"{topic}: {answer}" for topic, answer in user_data.items()) or "nothing"


async def start(update: Update, context: Any) -> int:
    """Begin, or go on from what is known."""
    assert update.message is not None
    await update.message.reply_text(f"I know {told(context.user_data)}.", reply_markup=KEYBOARD)
    return CHOOSING


async def choose(update: Update, context: Any) -> int:
    """Ask about a topic; remember, beside the state, which one it is."""
    assert update.message is not None
    topic = context.user_data["topic"] = str(update.message.text).lower()
    known = context.user_data.get(topic)
    await update.message.reply_text(f"Your {topic}? It was {known}." if known else f"Your {topic}?")
    return TYPING_ANSWER


async def choose_else(update: Update, _: Any) -> int:
    """Ask for a topic of the user's own."""
    assert update.message is not None
    await update.message.reply_text("What is it about?")
    return TYPING_TOPIC


async def learn(update: Update, context: Any) -> int:
    """Keep an answer."""
    assert update.message is not None
    context.user_data[context.user_data.pop("topic")] = update.message.text
    await update.message.reply_text(f"I know {told(context.user_data)}.", reply_markup=KEYBOARD)
    return CHOOSING


async def show_data(update: Update, context: Any) -> None:
    """Tell everything, in whatever state the conversation is."""
    assert update.message is not None
    await update.message.reply_text(f"You told me {told(context.user_data)}.")


async def done(update: Update, context: Any) -> int:
    """End the conversation; what was learnt stays."""
    assert update.message is not None
    context.user_data.pop("topic", None)
    await update.message.reply_text(
        f"I learnt {told(context.user_data)}.", reply_markup=ReplyKeyboardRemove()
    )
    return ConversationHandler.END


def conversation() -> ConversationHandler[Any]:
    """Return the conversation."""
    return ConversationHandler(
        entry_points=[CommandHandler("start", start)],
        states={
            CHOOSING: [MessageHandler(TOPICS, choose), MessageHandler(ELSE, choose_else)],
            TYPING_ANSWER: [MessageHandler(PLAIN, learn)],
            TYPING_TOPIC: [MessageHandler(PLAIN, choose)],
        },
        fallbacks=[MessageHandler(DONE, done), CommandHandler("done", done)],
        name="facts",
        persistent=True,
    )


async def main(path: str) -> None:
    """Answer the updates on standard input until it ends."""
    persistence = KVPersistence(path, update_interval=NEVER)  # the one line
    bot = build(persistence, [conversation(), CommandHandler("show_data", show_data)])
    loop = asyncio.get_running_loop()
    async with bot.app:
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            await bot.receive(json.loads(line))
            await bot.save()
            sys.stdout.write(json.dumps(bot.answers() + [repr(error) for error in bot.errors]))
            sys.stdout.write("\n")
            sys.stdout.flush()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
