"""A small Telegram Bot API server on this machine: enough to talk to one bot, offline.

It speaks real HTTP on 127.0.0.1, so a bot talks to it with its own client and another `base_url`.
Whoever holds the `BotApiServer` plays the people: `say`, `press`, and `reply` for the answers.

What matters for a persistence is as with Telegram (https://core.telegram.org/bots/api#getupdates):
an update is delivered again and again until a `getUpdates` with a higher `offset` confirms it, and
what is said while no bot is running waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import time
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from typing_extensions import Self

Json: TypeAlias = dict[str, Any]

TOKEN = "1234567:a-token-for-the-local-server"  # noqa: S105  # opens nothing but this server
BOT: Json = {"id": 1234567, "is_bot": True, "first_name": "Logger", "username": "logger_bot"}
ALWAYS_TRUE = (
    "setMyCommands", "deleteMyCommands", "setWebhook", "deleteWebhook", "sendChatAction", "logOut"
)  # fmt: skip
MAX_TEXT = 4096


class Person(NamedTuple):
    """Someone who talks to the bot, in a private chat of the same id."""

    id: int
    name: str

    def user(self) -> Json:
        return {"id": self.id, "is_bot": False, "first_name": self.name}

    def chat(self) -> Json:
        return {"id": self.id, "type": "private", "first_name": self.name}


@dataclass(frozen=True)
class Reply:
    """What the bot did in a chat: the method it called, and what a person saw of it."""

    method: str
    text: str
    message_id: int | None = None
    buttons: tuple[str, ...] = ()


class ApiError(Exception):
    """An answer with `ok` false; raised by the methods, turned into JSON by `_answer`."""

    def __init__(self, code: int, description: str) -> None:
        super().__init__(description)
        self.code = code
        self.description = description


class BotApiServer:
    """The server; `async with BotApiServer() as server` listens until the block is left.

    One bot is served, that which has `token`, and one event loop: nothing here may be called from
    another thread.
    """

    def __init__(self, token: str = TOKEN) -> None:
        self.token = token
        self.base_url = ""  # as PTB's `base_url` wants it; known once the server listens
        self._ids = itertools.count(1)
        self._unconfirmed: list[Json] = []
        self._polls = 0
        self._messages: dict[tuple[int, int], Json] = {}
        self._queries: dict[str, int] = {}
        self._replies: defaultdict[int, asyncio.Queue[Reply]] = defaultdict(asyncio.Queue)
        self._chats: set[int] = set()
        self._changed = asyncio.Event()
        self._methods: dict[str, Callable[[Json], Awaitable[Any]]] = {
            "getMe": self._get_me,
            "getUpdates": self._get_updates,
            "sendMessage": self._send_message,
            "editMessageText": self._edit_message,
            "editMessageReplyMarkup": self._edit_message,
            "answerCallbackQuery": self._answer_callback_query,
            **dict.fromkeys(ALWAYS_TRUE, self._true),
        }

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/bot{token}/{method}", self._answer)
        # A killed bot leaves its long poll behind: cancel it, or closing would wait for it.
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}/bot"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    # --- The people's side --------------------------------------------------------------------

    def say(self, person: Person, text: str) -> None:
        """Send `text` to the bot; it waits here until the bot asks for it."""
        self._chats.add(person.id)
        message = self._message(person.id, text, sender=person.user(), chat=person.chat())
        if text.startswith("/"):
            length = len(text.split(maxsplit=1)[0])
            message["entities"] = [{"type": "bot_command", "offset": 0, "length": length}]
        self.deliver({"message": message})

    def press(self, person: Person, message_id: int, button: str) -> None:
        """Press the button that reads `button` under a message of the bot."""
        message = self._messages[person.id, message_id]
        rows = message["reply_markup"]["inline_keyboard"]
        data = {cell["text"]: cell["callback_data"] for row in rows for cell in row}[button]
        query_id = str(next(self._ids))
        self._queries[query_id] = person.id
        query = {"id": query_id, "from": person.user(), "chat_instance": str(person.id)}
        self.deliver({"callback_query": {**query, "message": message, "data": data}})

    async def reply(self, person: Person) -> Reply:
        """Return the next thing that the bot did in this person's chat; wait for it."""
        return await self._replies[person.id].get()

    async def confirmed(self) -> None:
        """Return once the bot has confirmed every update: it will not get them again."""
        await self._until(lambda: not self._unconfirmed)

    async def next_poll(self) -> None:
        """Return once a bot has asked for updates after this call: it is up."""
        before = self._polls
        await self._until(lambda: self._polls > before)

    # --- The bot's side: the methods of the Bot API -----------------------------------------------

    async def _answer(self, request: web.Request) -> web.Response:
        try:
            if request.match_info["token"] != self.token:
                raise ApiError(401, "Unauthorized")
            method = self._methods.get(request.match_info["method"])
            if method is None:
                raise ApiError(404, "Not Found: this server has few methods; add it to `_methods`")
            parameters = await _parameters(request)
            result = await method({**parameters, "method": request.match_info["method"]})
        except ApiError as error:
            body = {"ok": False, "error_code": error.code, "description": error.description}
            return web.json_response(body, status=error.code)
        return web.json_response({"ok": True, "result": result})

    async def _true(self, _: Json) -> bool:
        return True

    async def _get_me(self, _: Json) -> Json:
        return BOT

    async def _get_updates(self, asked: Json) -> list[Json]:
        self._confirm(int(asked.get("offset", 0)))
        self._polls += 1
        this_poll = self._polls
        self._wake()  # whoever waits for a confirmation or a poll; and an older poll, to end it
        timeout = float(asked.get("timeout", 0))
        if not self._unconfirmed and timeout > 0:
            ready = self._until(lambda: self._unconfirmed or self._polls != this_poll)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(ready, timeout)
        if self._polls != this_poll:
            raise ApiError(409, "Conflict: terminated by other getUpdates request")
        return self._unconfirmed[: int(asked.get("limit", 100))]

    def _confirm(self, offset: int) -> None:
        """Drop what the offset confirms: all updates before it, or all but the last -offset."""
        if offset < 0:
            self._unconfirmed = self._unconfirmed[offset:]
        elif offset > 0:
            self._unconfirmed = [u for u in self._unconfirmed if u["update_id"] >= offset]

    async def _send_message(self, asked: Json) -> Json:
        chat_id = int(asked["chat_id"])
        if chat_id not in self._chats:
            raise ApiError(400, "Bad Request: chat not found")
        chat = {"id": chat_id, "type": "private"}
        message = self._message(chat_id, _checked_text(asked), sender=BOT, chat=chat)
        return self._shown(asked, message)

    async def _edit_message(self, asked: Json) -> Json:
        place = int(asked["chat_id"]), int(asked["message_id"])
        message = self._messages.get(place)
        if message is None or message["from"] != BOT:
            raise ApiError(400, "Bad Request: message to edit not found")
        edited = {name: part for name, part in message.items() if name != "reply_markup"}
        edited["edit_date"] = int(time.time())
        if asked["method"] == "editMessageText":
            edited["text"] = _checked_text(asked)
        self._messages[place] = edited
        return self._shown(asked, edited)

    async def _answer_callback_query(self, asked: Json) -> bool:
        chat_id = self._queries.pop(asked["callback_query_id"], None)
        if chat_id is None:
            raise ApiError(400, "Bad Request: query is too old or query ID is invalid")
        self._replies[chat_id].put_nowait(Reply(asked["method"], asked.get("text", "")))
        return True

    # --- What both sides share ----------------------------------------------------------------

    def _message(self, chat_id: int, text: str, *, sender: Json, chat: Json) -> Json:
        number = next(self._ids)
        message = {"message_id": number, "date": int(time.time()), "from": sender, "chat": chat}
        self._messages[chat_id, number] = message | {"text": text}
        return self._messages[chat_id, number]

    def _shown(self, asked: Json, message: Json) -> Json:
        """Put the keyboard under a message of the bot, and show it to the people."""
        rows: list[list[Json]] = []
        if "reply_markup" in asked:
            message["reply_markup"] = _decoded(asked["reply_markup"])
            rows = message["reply_markup"].get("inline_keyboard", [])
        buttons = tuple(cell["text"] for row in rows for cell in row)
        reply = Reply(asked["method"], message["text"], message["message_id"], buttons)
        self._replies[message["chat"]["id"]].put_nowait(reply)
        return message

    def deliver(self, content: Json) -> Json:
        """Keep an update until the bot confirms it, and return it."""
        update = {"update_id": next(self._ids), **content}
        self._unconfirmed.append(update)
        self._wake()
        return update

    def _wake(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    async def _until(self, condition: Callable[[], object]) -> None:
        while not condition():
            await self._changed.wait()


async def _parameters(request: web.Request) -> Json:
    """Return the parameters of a call, which may come in the address, as a form or as JSON."""
    if request.content_type == "application/json":
        return {**request.query, **await request.json()}
    return {**request.query, **await request.post()}


def _checked_text(asked: Json) -> str:
    text = str(asked.get("text", ""))
    if not text:
        raise ApiError(400, "Bad Request: message text is empty")
    if len(text) > MAX_TEXT:
        raise ApiError(400, "Bad Request: message is too long")
    return text


def _decoded(value: Any) -> Any:
    """Return an object that a form carries as JSON text."""
    return json.loads(value) if isinstance(value, str) else value
