"""A persistence that writes down each call of PTB's, and keeps nothing longer than the test."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeAlias

from bots import NEVER, Bot, Handler, build
from telegram.ext import BasePersistence, PersistenceInput

Data: TypeAlias = dict[Any, Any]


class Call(NamedTuple):
    """One call: its name, and the arguments in the order of the signature."""

    name: str
    arguments: tuple[Any, ...]


class Recorder(BasePersistence[Data, Data, Data]):
    """Stores documents as they are handed over.

    Attributes:
        calls: What PTB called since `take` was last asked, in the order in which the calls began.
        ended: How many of all calls have ended.
        chats, users, conversations, bot, callback: What is stored.
        raising: What a call of a name raises, in place of doing anything.
        gate: What each update waits for before it ends, if anything.
    """

    def __init__(
        self, update_interval: float = NEVER, store_data: PersistenceInput | None = None
    ) -> None:
        super().__init__(store_data, update_interval)
        self.calls: list[Call] = []
        self.ended = 0
        self.raising: dict[str, BaseException] = {}
        self.gate: asyncio.Event | None = None
        self.chats: dict[int, Data] = {}
        self.users: dict[int, Data] = {}
        self.conversations: dict[str, dict[Any, object]] = {}
        self.bot_document: Any = {}
        self.callback: Any = None

    def take(self) -> list[Call]:
        """Return the calls since this was last asked."""
        calls, self.calls = self.calls, []
        return calls

    def names(self) -> list[str]:
        """Return the names of the calls since they were last asked for."""
        return [call.name for call in self.take()]

    async def _note(self, name: str, *arguments: Any, waits: bool = False) -> None:
        self.calls.append(Call(name, arguments))
        if waits and self.gate is not None:
            await self.gate.wait()
        self.ended += 1
        if name in self.raising:
            raise self.raising[name]

    async def get_user_data(self) -> dict[int, Data]:
        await self._note("get_user_data")
        return dict(self.users)

    async def get_chat_data(self) -> dict[int, Data]:
        await self._note("get_chat_data")
        return {chat_id: dict(data) for chat_id, data in self.chats.items()}

    async def get_bot_data(self) -> Data:
        await self._note("get_bot_data")
        data: Data = self.bot_document
        return data

    async def get_callback_data(self) -> Any:
        await self._note("get_callback_data")
        return self.callback

    async def get_conversations(self, name: str) -> dict[Any, object]:
        await self._note("get_conversations", name)
        return dict(self.conversations.get(name, {}))

    async def refresh_user_data(self, user_id: int, user_data: Data) -> None:
        await self._note("refresh_user_data", user_id, user_data)

    async def refresh_chat_data(self, chat_id: int, chat_data: Data) -> None:
        await self._note("refresh_chat_data", chat_id, chat_data)

    async def refresh_bot_data(self, bot_data: Data) -> None:
        await self._note("refresh_bot_data", bot_data)

    async def update_user_data(self, user_id: int, data: Data) -> None:
        await self._note("update_user_data", user_id, data, waits=True)
        self.users[user_id] = data

    async def update_chat_data(self, chat_id: int, data: Data) -> None:
        await self._note("update_chat_data", chat_id, data, waits=True)
        self.chats[chat_id] = data

    async def update_bot_data(self, data: Data) -> None:
        await self._note("update_bot_data", data, waits=True)
        self.bot_document = data

    async def update_callback_data(self, data: Any) -> None:
        await self._note("update_callback_data", data, waits=True)
        self.callback = data

    async def update_conversation(self, **given: Any) -> None:  # type: ignore[override]
        name, key, new_state = given["name"], given["key"], given["new_state"]
        await self._note("update_conversation", name, key, new_state, waits=True)
        self.conversations.setdefault(name, {})[key] = new_state

    async def drop_chat_data(self, chat_id: int) -> None:
        await self._note("drop_chat_data", chat_id)
        self.chats.pop(chat_id, None)

    async def drop_user_data(self, user_id: int) -> None:
        await self._note("drop_user_data", user_id)
        self.users.pop(user_id, None)

    async def flush(self) -> None:
        await self._note("flush")


class Recorded:
    """A bot of PTB's own application whose persistence is a `Recorder`."""

    def __init__(
        self, *handlers: Handler, recorder: Recorder | None = None, **options: Any
    ) -> None:
        self.recorder = recorder or Recorder()
        self.bot: Bot = build(self.recorder, handlers, **options)
        self.app = self.bot.app

    @property
    def errors(self) -> list[Exception]:
        """What the error handler was given."""
        return self.bot.errors

    @asynccontextmanager
    async def held(self) -> AsyncIterator[None]:
        """Have no update end meanwhile."""
        self.recorder.gate = asyncio.Event()
        try:
            yield
        finally:
            self.recorder.gate.set()

    async def run(self) -> Counter[tuple[str, Any]]:
        """Save, as PTB does every `update_interval`; return what was called, with which id."""
        self.recorder.take()
        await self.app.update_persistence()
        return Counter(
            (call.name, call.arguments[0] if len(call.arguments) > 1 else None)
            if not call.name.startswith("drop")
            else (call.name, call.arguments[0])
            for call in self.recorder.take()
        )

    def handed(self, calls: Sequence[Call], name: str) -> list[tuple[Any, ...]]:
        """Return the arguments of each call of a name."""
        return [call.arguments for call in calls if call.name == name]
