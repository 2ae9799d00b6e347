"""One worker of a bot, as a process that can be killed: see cluster.py, which starts several.

Each update is noted in the data of its chat and of its user, in the order in which it was handled,
beside whatever it does. So `cluster_checker` can tell from the rows what must have happened.

It ends when its standard input does: with whoever has started it, however that ends.
"""

from __future__ import annotations

import argparse
import asyncio
import enum
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Any, Final

from aiohttp import web
from bots import App, Json, Telegram
from handlers import Callback
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.ext import (
    CallbackQueryHandler,
    CommandHandler,
    ConversationHandler,
    InvalidCallbackData,
    TypeHandler,
)

from kvpersist import KVPersistence, KVPersistError, application_builder
from kvpersist.stores import postgres_transaction
from kvpersist.stores.postgres import PostgresStore

COINS: Final = 100
"""What each user begins with."""
HOLD_TIMEOUT: Final = 3.0
POOL: Final = 8
END: Final = ConversationHandler.END


class Step(enum.Enum):
    """Where the inner conversation is."""

    SIZE = "size"
    COLOUR = "colour"


@dataclass
class Coupon:
    """What a button carries: which update has sent it, and which button it is."""

    origin: int
    button: int


TYPES: Final = (Step, Coupon)
MENU, PICK, DETAILS, CONFIRM = 0, "pick", ("details", 1), ""
"""States of the outer conversation, of types that a careless store would mix up."""
DONE: Final = "done"
ANYWHERE: Final = "*"
BUTTONS: Final = 3

_DONE: Final[Json] = {"is_new": True, "replies": [], "errors": []}
_REPLIES: ContextVar[list[Json]] = ContextVar("replies")
_ERRORS: ContextVar[list[str]] = ContextVar("errors")


class WatchedTelegram(Telegram):
    """A Telegram that keeps what an update has sent with the request that brought the update."""

    def __init__(self, worker: int) -> None:
        super().__init__()
        self._ids = count(worker * 1_000_000_000 + 1)

    def _message(self, parameters: Json) -> Json:
        message = super()._message(parameters)
        self.sent.clear()
        message["message_id"] = next(self._ids)
        _REPLIES.get().append(message)
        return message


async def note(update: Update, context: Any) -> None:
    """Note an update in the data of its chat and user, count it, and tell which it is."""
    assert update.effective_chat is not None
    for data in (context.chat_data, context.user_data):
        number = data.get("count", 0)
        await asyncio.sleep(0)
        data.setdefault("seen", []).append(update.update_id)
        data["count"] = number + 1
    await context.bot.send_message(update.effective_chat.id, str(context.chat_data["count"]))


async def give(update: Update, context: Any) -> None:
    """Give coins to another user: ``/give 5 10``, or take them if they are less than 0."""
    other, coins = map(int, context.args)
    mine = context.user_data
    async with context.application.persistence.edit("user", other) as theirs:
        for data, change in ((mine, -coins), (theirs, coins)):
            before = data.get("coins", COINS)
            await asyncio.sleep(0)
            data["coins"] = before + change
            data.setdefault("ledger", []).append([update.update_id, change])


async def total(_: Update, context: Any) -> None:
    """Count for all, as the documents say that it is done."""
    await context.application.persistence.lock("bot")
    number = context.bot_data.get("total", 0)
    await asyncio.sleep(0)
    context.bot_data["total"] = number + 1


async def tally(update: Update, context: Any) -> None:
    """Count for a user, whose key nobody else changes, without a lock."""
    assert update.effective_user is not None
    key = f"user-{update.effective_user.id}"
    context.bot_data[key] = context.bot_data.get(key, 0) + 1


async def buttons(update: Update, context: Any) -> None:
    """Send a keyboard: ``/buttons``, or ``/once`` if only one press of it counts."""
    assert update.message is not None
    assert update.message.text is not None
    is_once = update.message.text == "/once"
    data = [(Coupon(update.update_id, number), is_once) for number in range(BUTTONS)]
    row = [InlineKeyboardButton(str(coupon.button), callback_data=(coupon, is_once))
           for coupon, is_once in data]  # fmt: skip
    markup = InlineKeyboardMarkup.from_row(row)
    await context.bot.send_message(update.message.chat.id, "buttons", reply_markup=markup)


async def press(update: Update, context: Any) -> None:
    """Note what was pressed, as far as this worker can tell."""
    query = update.callback_query
    assert query is not None
    await query.answer()
    data: Any = query.data
    found: list[int] | None = None
    if not isinstance(data, InvalidCallbackData):
        coupon, is_once = data
        found = [coupon.origin, coupon.button]
        if is_once:
            context.drop_callback_data(query)
    context.chat_data.setdefault("pressed", []).append([update.update_id, found])


def move(before: object, after: object, *, level: str = "outer") -> Callback:
    """Return a step of a conversation, that notes itself as part of the path."""

    async def take(update: Update, context: Any) -> object:
        assert update.effective_user is not None
        await asyncio.sleep(0)
        paths = context.chat_data.setdefault("paths", {})
        path = paths.setdefault(str(update.effective_user.id), [])
        path.append([update.update_id, level, repr(before), repr(after)])
        return after

    return take


def inner() -> ConversationHandler[Any]:
    """Return the conversation within the other."""
    size, colour = Step.SIZE, Step.COLOUR
    return ConversationHandler(
        entry_points=[CommandHandler("next", move(None, size, level="inner"))],
        states={
            size: [
                CommandHandler("next", move(size, colour, level="inner")),
                CommandHandler("back", move(size, END, level="inner")),
            ],
            colour: [
                CommandHandler("next", move(colour, DONE, level="inner")),
                CommandHandler("back", move(colour, size, level="inner")),
            ],
        },
        fallbacks=[],
        map_to_parent={DONE: CONFIRM, END: PICK},
        name="details",
        persistent=True,
    )


def outer() -> ConversationHandler[Any]:
    """Return a conversation of a user in a chat."""

    async def stop(update: Update, context: Any) -> object:
        return await move(ANYWHERE, END)(update, context)

    return ConversationHandler(
        entry_points=[CommandHandler("order", move(None, MENU))],
        states={
            MENU: [CommandHandler("next", move(MENU, PICK), block=False)],
            PICK: [
                CommandHandler("next", move(PICK, DETAILS)),
                CommandHandler("back", move(PICK, MENU)),
            ],
            DETAILS: [inner()],
            CONFIRM: [
                CommandHandler("next", move(CONFIRM, END)),
                CommandHandler("back", move(CONFIRM, DETAILS)),
            ],
        },
        fallbacks=[CommandHandler("stop", stop)],
        name="order",
        persistent=True,
    )


async def hear(_: object, context: Any) -> None:
    """Tell the hammer of an error in a handler, or of one that nobody has expected."""
    if (errors := _ERRORS.get(None)) is not None:
        errors.append(repr(context.error))
    elif not isinstance(context.error, KVPersistError):
        print(repr(context.error), file=sys.stderr, flush=True)  # noqa: T201


def build(url: str, worker: int, *, deduplicate: bool) -> App:
    """Return the application of a worker."""
    store = PostgresStore(url, pool_size=POOL, timeout=10, hold_timeout=HOLD_TIMEOUT)
    persistence = KVPersistence(store, shared=True, deduplicate=deduplicate, types=TYPES)
    telegram = WatchedTelegram(worker)
    app: App = (
        application_builder(persistence)
        .token("1000:TEST")
        .request(telegram)
        .get_updates_request(telegram)
        .arbitrary_callback_data(1_000_000)
        .job_queue(None)
        .build()
    )
    app.add_handler(TypeHandler(Update, note), -1)
    app.add_handler(outer(), 0)
    for command, callback in (("give", give), ("total", total), ("tally", tally)):
        app.add_handler(CommandHandler(command, callback), 1)
    app.add_handler(CommandHandler(["buttons", "once"], buttons), 1)
    app.add_handler(CallbackQueryHandler(press), 1)
    app.add_error_handler(hear)
    return app


def routes(app: Any) -> web.Application:
    """Return what Telegram's webhook calls, and a page that changes the data of a user."""

    async def receive(request: web.Request) -> web.Response:
        replies: list[Json] = []
        errors: list[str] = []
        _REPLIES.set(replies)
        _ERRORS.set(errors)
        update = Update.de_json(await request.json(), app.bot)
        if update.update_id % 2:
            app.bot.insert_callback_data(update)  # as PTB's own server does, and others do not
        try:
            is_new = await app.handle_update(update)
        except KVPersistError as error:
            return web.json_response({"error": repr(error)}, status=503)
        return web.json_response({"is_new": is_new, "replies": replies, "errors": errors})

    async def edit(request: web.Request) -> web.Response:
        given = await request.json()
        try:
            async with app.persistence.edit("user", given["user"]) as data:
                _put(data.setdefault("edits", []), given["number"])
        except KVPersistError as error:
            return web.json_response({"error": repr(error)}, status=503)
        return web.json_response(_DONE)

    async def work(request: web.Request) -> web.Response:
        """Do what a job would: change ``bot_data`` outside of any update."""
        given = await request.json()
        errors: list[str] = []
        _ERRORS.set(errors)
        try:
            await app.context_types.context(app).refresh_data()
            app.bot_data.setdefault(f"job-{given['number']}", 1)
            await app.update_persistence()
        except KVPersistError as error:
            errors.append(repr(error))
        if errors:
            return web.json_response({"error": errors[0]}, status=503)
        return web.json_response(_DONE)

    server = web.Application()
    server.router.add_post("/update", receive)
    server.router.add_post("/edit", edit)
    server.router.add_post("/job", work)
    return server


def _put(numbers: list[int], number: int) -> None:
    if number not in numbers:
        numbers.append(number)


def be_naive() -> None:
    """Have this process lock nothing, and compare no versions, as if there were no others."""
    transaction: Any = postgres_transaction.PostgresTransaction
    fetch_locked = transaction._fetch_locked

    async def fetch(self: Any, _: object, reads: object, known: object) -> Any:
        return await fetch_locked(self, (), reads, known)

    transaction._fetch_locked = fetch
    module: Any = postgres_transaction
    module.WRITE = """
        WITH given AS (
            SELECT * FROM unnest($1::text[], $2::json[], $3::bigint[]) AS given (key, value, _)
        ),
        removed AS (
            DELETE FROM {schema}.documents AS old USING given
            WHERE old.key = given.key AND given.value IS NULL
        ),
        put AS (
            INSERT INTO {schema}.documents AS old (key, value, version, updated_at)
            SELECT key, value, 1, $4 FROM given WHERE value IS NOT NULL ORDER BY key
            ON CONFLICT (key) DO UPDATE SET value = excluded.value, version = old.version + 1
        )
        SELECT pg_current_xact_id()::text, $1::text[]
    """


@asynccontextmanager
async def serving(server: web.Application, port: int) -> AsyncIterator[None]:
    """Serve on 127.0.0.1."""
    runner = web.AppRunner(server, access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port, shutdown_timeout=30).start()
        yield
    finally:
        await runner.cleanup()


async def work(url: str, port: int, worker: int, *, deduplicate: bool) -> None:
    """Handle updates until standard input ends."""
    app = build(url, worker, deduplicate=deduplicate)
    input_ends = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(input_ends), sys.stdin
    )
    async with app:
        await app.start()
        async with serving(routes(app), port):
            print("ready", flush=True)  # noqa: T201  the hammer waits for it
            await input_ends.read()
        await app.stop()


def main() -> None:
    """Be a worker."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("port", type=int)
    parser.add_argument("worker", type=int, help="its number, which no other run of one has had")
    parser.add_argument("--deduplicate", action="store_true")
    parser.add_argument("--naive", action="store_true", help="without locks and versions")
    given = parser.parse_args()
    # Slow commits are no news where the database is killed.
    logging.getLogger("kvpersist").addFilter(lambda record: "took" not in record.msg)
    if given.naive:
        be_naive()
    asyncio.run(work(given.url, given.port, given.worker, deduplicate=given.deduplicate))


if __name__ == "__main__":
    main()
