"""One worker of a bot that many share: start as many as you like, on as many machines.

With a token from @BotFather this is a real Telegram bot:

    pip install ".[demo,postgres]"  # in a clone of kvpersist
    export BOT_TOKEN=123:abc SECRET_TOKEN=any-letters-and-digits
    export DATABASE_URL=postgresql://bot:secret@db.example/bot
    python worker.py --set-webhook https://bot.example/telegram  # once
    python worker.py --port 8001  # a worker; docs/workers.md has what stands before them

Without a token, `make demo-workers` shows four of them on this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import logging
import os
from collections.abc import AsyncIterator
from typing import Any, cast

from aiohttp import web
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.ext import (
    CallbackQueryHandler,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    MessageHandler,
    filters,
)

from kvpersist import (
    EncodeError,
    KVPersistence,
    KVPersistError,
    WorkerApplication,
    application_builder,
)
from kvpersist.stores.postgres import PostgresStore

Context = ContextTypes.DEFAULT_TYPE

LOGGER = logging.getLogger("worker")
TEXT = filters.UpdateType.MESSAGE & filters.TEXT & ~filters.COMMAND
SIZE, TOPPING, ADDRESS = "SIZE", "TOPPING", "ADDRESS"

UPDATES_AT_ONCE = 8
"""How many updates a worker handles at the same time, each on a connection of its own."""
REQUESTS_AT_ONCE = 100
"""More than that, since those of one chat wait for each other, and need no connection meanwhile."""


# --- The bot: handlers as in any other, which need not know that there are other workers -------


async def count(_: Update, context: Context) -> None:
    """Count every text. Nobody else has this chat's data until the update is committed."""
    assert context.chat_data is not None
    context.chat_data["messages"] = context.chat_data.get("messages", 0) + 1


async def acknowledge(update: Update, context: Context) -> None:
    assert update.message
    assert context.chat_data is not None
    await update.message.reply_text(f"Noted: message {context.chat_data['messages']}.")


async def order(update: Update, _: Context) -> str:
    assert update.message
    await update.message.reply_text("A pizza. Which size?")
    return SIZE


async def size(update: Update, context: Context) -> str:
    assert update.message
    assert context.user_data is not None
    context.user_data["pizza"] = {"size": update.message.text}
    await update.message.reply_text("And what on it?")
    return TOPPING


async def topping(update: Update, context: Context) -> str:
    assert update.message
    assert context.user_data is not None
    context.user_data["pizza"]["topping"] = update.message.text
    await update.message.reply_text("Where to?")
    return ADDRESS


async def address(update: Update, context: Context) -> int:
    assert update.message
    assert context.user_data is not None
    context.user_data["pizza"]["to"] = update.message.text
    await send_pizza(update, context)
    return ConversationHandler.END


async def again(update: Update, context: Context) -> None:
    assert update.callback_query
    assert context.user_data is not None
    context.user_data["pizza"] = cast("dict[str, str]", update.callback_query.data)
    await send_pizza(update, context)
    await update.callback_query.answer("With pleasure.")


async def send_pizza(update: Update, context: Context) -> None:
    assert update.effective_message
    assert context.user_data is not None
    pizza = context.user_data["pizza"]
    persistence: Any = context.application.persistence
    # No two orders may have one number, so nobody else may change `bot_data` until this is
    # committed. It comes late, because all workers wait for it.
    await persistence.lock("bot")
    number = context.bot_data["orders"] = context.bot_data.get("orders", 0) + 1
    text = f"Order {number}: a {pizza['size']} pizza with {pizza['topping']}, to {pizza['to']}."
    button = InlineKeyboardButton("The same again", callback_data=pizza)
    await update.effective_message.reply_text(text, reply_markup=InlineKeyboardMarkup([[button]]))


async def cancel(update: Update, _: Context) -> int:
    assert update.message
    await update.message.reply_text("No pizza.")
    return ConversationHandler.END


def build(database: str, token: str, base_url: str) -> WorkerApplication:
    """Return the worker. `deduplicate` is for updates that Telegram sends again."""
    store = PostgresStore(database, pool_size=UPDATES_AT_ONCE)
    builder = application_builder(KVPersistence(store, shared=True, deduplicate=True))
    app: WorkerApplication = (
        builder.token(token).base_url(base_url).arbitrary_callback_data(True).updater(None).build()
    )
    app.add_handler(MessageHandler(TEXT, count), group=-1)
    conversation = ConversationHandler(
        entry_points=[CommandHandler("order", order)],
        states={
            SIZE: [MessageHandler(TEXT, size)],
            TOPPING: [MessageHandler(TEXT, topping)],
            ADDRESS: [MessageHandler(TEXT, address)],
        },
        fallbacks=[CommandHandler("cancel", cancel)],
        name="order",
        persistent=True,
    )
    app.add_handler(conversation)
    app.add_handler(CallbackQueryHandler(again, pattern=dict))
    app.add_handler(MessageHandler(TEXT, acknowledge))
    return app


# --- The web server that Telegram, or what stands before the workers, sends the updates to -----


class Webhook:
    """Answers 200 when an update is committed, and not before: else Telegram sends it again."""

    def __init__(self, app: WorkerApplication, secret: str) -> None:
        self._app = app
        self._secret = secret.encode()
        self._free = asyncio.Semaphore(REQUESTS_AT_ONCE)

    async def answer(self, request: web.Request) -> web.Response:
        """Handle one update."""
        secret = request.headers.get("X-Telegram-Bot-Api-Secret-Token", "")
        if not hmac.compare_digest(secret.encode(), self._secret):
            return web.Response(status=403)  # somebody else than Telegram
        update = Update.de_json(await request.json(), self._app.bot)
        async with self._free:
            try:
                await self._app.handle_update(update)
            except EncodeError:  # a fault of the handlers', which would be the same the next time
                LOGGER.exception("update %s: nothing of it is written", update.update_id)
            except KVPersistError:
                LOGGER.exception("update %s: to be sent again", update.update_id)
                return web.Response(status=503)
        return web.Response()

    async def run_bot(self, _: web.Application) -> AsyncIterator[None]:
        """Start the bot before the first request, and end it after the last."""
        async with self._app:
            await self._app.start()
            yield
            await self._app.stop()


def serve(app: WorkerApplication, secret: str, host: str, port: int) -> None:
    """Be a worker until SIGTERM; updates that are under way are handled to their end."""
    webhook = Webhook(app, secret)
    server = web.Application()
    server.router.add_post("/telegram", webhook.answer)
    server.cleanup_ctx.append(webhook.run_bot)
    web.run_app(server, host=host, port=port, print=None)


async def set_webhook(app: WorkerApplication, secret: str, url: str) -> None:
    """Tell Telegram where the updates go: once for all workers, again if that changes."""
    async with app.bot:
        await app.bot.set_webhook(
            url, secret_token=secret, max_connections=100, allowed_updates=Update.ALL_TYPES
        )


def main() -> None:
    parser = argparse.ArgumentParser(description="One worker of a bot that many share.")
    parser.add_argument("--host", default="127.0.0.1", help="where to listen")
    parser.add_argument("--port", type=int, default=8001)
    parser.add_argument("--set-webhook", metavar="URL", help="tell Telegram this address, and end")
    args = parser.parse_args()
    try:
        database, token, secret = (
            os.environ[name] for name in ("DATABASE_URL", "BOT_TOKEN", "SECRET_TOKEN")
        )
    except KeyError as name:
        parser.error(f"set {name.args[0]}, or type `make demo-workers` to try it without a token")
    if not secret:
        parser.error("SECRET_TOKEN is empty: anybody could send updates")
    logging.basicConfig(level=logging.WARNING)
    app = build(database, token, os.environ.get("BOT_API", "https://api.telegram.org/bot"))
    if args.set_webhook:
        asyncio.run(set_webhook(app, secret, args.set_webhook))
    else:
        serve(app, secret, args.host, args.port)


if __name__ == "__main__":
    main()
