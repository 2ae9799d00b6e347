"""PTB alone: a bot that never reaches Telegram, and a persistence that stores nothing."""

from __future__ import annotations

from typing import Any

from telegram.ext import BasePersistence, ExtBot, PersistenceInput
from telegram.request import BaseRequest

NEVER = 1e6
"""An update interval so long that PTB's background run does not disturb."""

NO_KEYBOARDS = PersistenceInput(callback_data=False)


class Offline(BaseRequest):
    """Telegram, as far as a bot that sends nothing notices."""

    @property
    def read_timeout(self) -> float | None:
        return None

    async def initialize(self) -> None: ...

    async def shutdown(self) -> None: ...

    async def do_request(self, *_: Any, **__: Any) -> tuple[int, bytes]:
        me = b'{"id":1,"is_bot":true,"first_name":"Bot","username":"bot"}'
        return 200, b'{"ok":true,"result":%s}' % me


def offline_bot(*, arbitrary_callback_data: bool = False) -> ExtBot[None]:
    """Return a bot that never reaches Telegram."""
    offline = Offline()
    return ExtBot(
        "1:offline",
        request=offline,
        get_updates_request=offline,
        arbitrary_callback_data=arbitrary_callback_data,
    )


class Nothing(BasePersistence[dict[Any, Any], dict[Any, Any], dict[Any, Any]]):
    """A persistence that stores nothing; a bot begins with `chats`."""

    def __init__(
        self, chats: dict[int, Any] | None = None, store_data: PersistenceInput = NO_KEYBOARDS
    ) -> None:
        super().__init__(store_data=store_data, update_interval=NEVER)
        self._chats = chats or {}

    async def get_user_data(self) -> dict[int, Any]:
        return {}

    async def get_chat_data(self) -> dict[int, Any]:
        return self._chats

    async def get_bot_data(self) -> dict[Any, Any]:
        return {}

    async def get_callback_data(self) -> None:
        return None

    async def get_conversations(self, name: str) -> dict[Any, Any]:  # noqa: ARG002
        return {}

    async def update_user_data(self, user_id: int, data: Any) -> None: ...

    async def update_chat_data(self, chat_id: int, data: Any) -> None: ...

    async def update_bot_data(self, data: Any) -> None: ...

    async def update_callback_data(self, data: Any) -> None: ...

    async def update_conversation(self, name: str, key: Any, new_state: Any) -> None: ...

    async def drop_user_data(self, user_id: int) -> None: ...

    async def drop_chat_data(self, chat_id: int) -> None: ...

    async def refresh_user_data(self, user_id: int, user_data: Any) -> None: ...

    async def refresh_chat_data(self, chat_id: int, chat_data: Any) -> None: ...

    async def refresh_bot_data(self, bot_data: Any) -> None: ...

    async def flush(self) -> None: ...
