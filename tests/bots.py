"""Real `Application`s without a network: a Telegram of their own, and what people do to a bot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import count
from typing import Any, TypeAlias, cast

from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.ext import (
    Application,
    ApplicationBuilder,
    BaseHandler,
    BasePersistence,
    CallbackDataCache,
    ContextTypes,
    ExtBot,
    JobQueue,
)
from telegram.request import BaseRequest, RequestData

App: TypeAlias = Application[Any, Any, Any, Any, Any, Any]
Handler: TypeAlias = BaseHandler[Any, Any, Any]
Json: TypeAlias = dict[str, Any]

BOT_USER: Json = {"id": 1000, "is_bot": True, "first_name": "Bot", "username": "the_bot"}
NEVER = 3600.0
"""Seconds between two runs of the persistence, so that a test alone says when one takes place."""


class Telegram(BaseRequest):
    """Answers what a bot asks the Bot API, offline, and keeps what it sent.

    Attributes:
        sent: The messages that the bot sent, as the Bot API returned them.
        updates: What the next ``getUpdates`` will be answered with.
    """

    def __init__(self) -> None:
        self.sent: list[Json] = []
        self.updates: asyncio.Queue[Json] = asyncio.Queue()

    @property
    def read_timeout(self) -> float | None:
        return None

    async def initialize(self) -> None:
        """Nothing to connect to."""

    async def shutdown(self) -> None:
        """Nothing to disconnect from."""

    async def do_request(  # noqa: PLR0917  PTB decides
        self,
        url: str,
        method: str,  # noqa: ARG002
        request_data: RequestData | None = None,
        read_timeout: object = None,  # noqa: ARG002
        write_timeout: object = None,  # noqa: ARG002
        connect_timeout: object = None,  # noqa: ARG002
        pool_timeout: object = None,  # noqa: ARG002
    ) -> tuple[int, bytes]:
        parameters = cast("Json", request_data.parameters) if request_data else {}
        result = await self._result(url.rsplit("/", maxsplit=1)[-1], parameters)
        return 200, json.dumps({"ok": True, "result": result}).encode()

    async def _result(self, call: str, parameters: Json) -> object:
        if call == "getMe":
            return BOT_USER
        if call == "getUpdates":
            return await self._updates(parameters)
        if call == "sendMessage":
            return self._message(parameters)
        return True  # answerCallbackQuery, deleteWebhook, …

    async def _updates(self, parameters: Json) -> list[Json]:
        if not parameters.get("timeout"):  # the last call, which confirms what was received
            return []
        return [await self.updates.get()]

    def _message(self, parameters: Json) -> Json:
        message: Json = {
            "message_id": len(self.sent) + 1,
            "date": 0,
            "chat": chat(int(parameters["chat_id"])),
            "from": BOT_USER,
            "text": parameters["text"],
        }
        markup = parameters.get("reply_markup", {})
        if "inline_keyboard" in markup:  # other keyboards are not part of a message
            message["reply_markup"] = markup
        self.sent.append(message)
        return message


_numbers = count(1)


def chat(chat_id: int) -> Json:
    """Return a chat as the Bot API shows it: groups have negative ids."""
    if chat_id < 0:
        return {"id": chat_id, "type": "supergroup", "title": "Group"}
    return {"id": chat_id, "type": "private", "first_name": "Person"}


def text_update(text: str, *, chat_id: int = 1, user_id: int | None = None, **more: object) -> Json:
    """Return an update with a text message; in a private chat the user has the chat's id."""
    message = {
        "message_id": next(_numbers),
        "date": 0,
        "chat": chat(chat_id),
        "from": {
            "id": chat_id if user_id is None else user_id,
            "is_bot": False,
            "first_name": "P",
        },
        "text": text,
        **more,
    }
    if text.startswith("/"):
        length = len(text.split(maxsplit=1)[0])
        message["entities"] = [{"type": "bot_command", "offset": 0, "length": length}]
    return {"update_id": next(_numbers), "message": message}


def press_update(message: Json, button: int = 0, *, user_id: int | None = None) -> Json:
    """Return an update in which someone presses a button of a message that the bot sent."""
    (row, *_) = message["reply_markup"]["inline_keyboard"]
    return query_update(row[button]["callback_data"], message=message, user_id=user_id)


def query_update(
    data: str,
    *,
    message: Json | None = None,
    inline_message_id: str | None = None,
    user_id: int | None = None,
) -> Json:
    """Return an update with a callback query, of a message or of an inline message."""
    chat_id = message["chat"]["id"] if message else 1
    query: Json = {
        "id": str(next(_numbers)),
        "from": {
            "id": chat_id if user_id is None else user_id,
            "is_bot": False,
            "first_name": "P",
        },
        "chat_instance": "0",
        "data": data,
    }
    if message is not None:
        query["message"] = message
    if inline_message_id is not None:
        query["inline_message_id"] = inline_message_id
    return {"update_id": next(_numbers), "callback_query": query}


class Bot:
    """One run of a bot.

    Attributes:
        app: Its application.
        telegram: What it talks to.
        errors: What its error handler was given.
    """

    def __init__(self, app: App, telegram: Telegram) -> None:
        self.app = app
        self.telegram = telegram
        self.errors: list[Exception] = []
        self._heard = 0

        async def note(_: object, context: Any) -> None:
            self.errors.append(context.error)

        app.add_error_handler(note)

    @property
    def cache(self) -> CallbackDataCache:
        """The cache of arbitrary callback data."""
        return cast("CallbackDataCache", cast("ExtBot[None]", self.app.bot).callback_data_cache)

    async def receive(self, update: Json) -> Update:
        """Handle an update, as it comes from the Bot API."""
        received = Update.de_json(update, self.app.bot)
        cast("ExtBot[None]", self.app.bot).insert_callback_data(received)
        await self.app.process_update(received)
        return received

    async def say(self, text: str, chat_id: int = 1, user_id: int | None = None) -> Update:
        """Let somebody say something to the bot."""
        return await self.receive(text_update(text, chat_id=chat_id, user_id=user_id))

    async def ask(self, *data: object, chat_id: int = 1) -> Json:
        """Let the bot send a keyboard of one button for each of `data`; return the message."""
        buttons = [InlineKeyboardButton(str(item), callback_data=item) for item in data]
        await self.app.bot.send_message(
            chat_id, "?", reply_markup=InlineKeyboardMarkup.from_row(buttons)
        )
        return self.telegram.sent[-1]

    async def press(self, message: Json, button: int = 0) -> Any:
        """Let somebody press a button below a message; return the query as the bot got it."""
        return (await self.receive(press_update(message, button))).callback_query

    def answers(self) -> list[str]:
        """Return what the bot said since this was last asked."""
        texts = [message["text"] for message in self.telegram.sent[self._heard :]]
        self._heard = len(self.telegram.sent)
        return texts

    async def save(self) -> None:
        """Run the persistence, as PTB does every `update_interval`."""
        await self.app.update_persistence()


def build(
    persistence: BasePersistence[Any, Any, Any] | None,
    handlers: Sequence[Handler] = (),
    *,
    arbitrary_callback_data: bool | int = False,
    concurrent_updates: bool = False,
    context_types: ContextTypes[Any, Any, Any, Any] | None = None,
    jobs: bool = False,
) -> Bot:
    """Return a bot that was not initialised yet."""
    telegram = Telegram()
    builder: Any = (
        ApplicationBuilder()
        .token("1000:TEST")
        .request(telegram)
        .get_updates_request(telegram)
        .arbitrary_callback_data(arbitrary_callback_data)
        .concurrent_updates(concurrent_updates)
        .job_queue(JobQueue() if jobs else None)
    )
    if persistence is not None:
        builder = builder.persistence(persistence)
    if context_types is not None:
        builder = builder.context_types(context_types)
    app: App = builder.build()
    for group, handler in enumerate(handlers):
        app.add_handler(handler, group)
    return Bot(app, telegram)
