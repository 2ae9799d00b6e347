"""Telegram with a webhook, and the load balancer before the workers: both in one, on this machine.

An update goes to one of the workers at random, as an HTTP request. It is delivered again, to any of
them, until one answers with 200 (https://core.telegram.org/bots/api#setwebhook).
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict, deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import aiohttp
from bot_api_server import BotApiServer, Json

if TYPE_CHECKING:
    from typing_extensions import Self

AGAIN = 0.1  # seconds until an update is delivered again; Telegram takes longer


@dataclass(eq=False)
class Upstream:
    """A worker as the front knows it: its number and address, and what it is handling."""

    number: int
    url: str
    is_up: bool = False
    handling: set[int] = field(default_factory=set)


class Front(BotApiServer):
    """A `BotApiServer` that brings the updates to workers, in place of being asked for them.

    Args:
        secret: What the workers know Telegram by.

    Attributes:
        workers: Who may get an update.
        asked: Who got the last update of each person, by the person's id.
        delivered: How many updates the workers have confirmed.
        again: How many deliveries were in vain: that worker had died, or refused.
    """

    def __init__(self, secret: str) -> None:
        super().__init__()
        self._headers = {"X-Telegram-Bot-Api-Secret-Token": secret}
        self.workers: list[Upstream] = []
        self.asked: dict[int, Upstream] = {}
        self.delivered = 0
        self.again = 0
        self._last: defaultdict[int, deque[Upstream]] = defaultdict(lambda: deque(maxlen=2))
        self._bringing: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None
        self._held: asyncio.Future[None] | None = None

    async def __aenter__(self) -> Self:
        no_limit = aiohttp.TCPConnector(limit=0)
        self._session = aiohttp.ClientSession(headers=self._headers, connector=no_limit)
        return await super().__aenter__()

    async def __aexit__(self, *_: object) -> None:
        for task in self._bringing:
            task.cancel()
        if self._session is not None:
            await self._session.close()
        await super().__aexit__()

    def hold_next_message(self) -> asyncio.Future[None]:
        """Leave the bot's next message without an answer; return what is done when it has come.

        Its handler then waits in the middle of an update, as with a slow network.
        """
        self._held = asyncio.get_running_loop().create_future()
        return self._held

    async def until_delivered(self, number: int) -> None:
        """Return once so many updates are confirmed."""
        await self._until(lambda: self.delivered >= number)

    def deliver(self, content: Json) -> Json:
        """Bring an update to a worker, again and again until one confirms it."""
        update = super().deliver(content)
        task = asyncio.create_task(self._bring(update))
        self._bringing.add(task)
        task.add_done_callback(self._bringing.discard)
        return update

    async def _bring(self, update: Json) -> None:
        (person,) = {part["from"]["id"] for name, part in update.items() if name != "update_id"}
        while not await self._try(update, person):
            self.again += 1
            await asyncio.sleep(AGAIN)
        self._unconfirmed.remove(update)
        self.delivered += 1
        self._wake()

    async def _try(self, update: Json, person: int) -> bool:
        # At random, but if possible nobody who had the last update of this person: to have it seen.
        alive = [each for each in self.workers if each.is_up]
        others = [each for each in alive if each not in self._last[person]]
        if not alive:
            return False
        worker = self.asked[person] = random.choice(others or alive)  # noqa: S311
        self._last[person].append(worker)
        worker.handling.add(update["update_id"])
        assert self._session is not None
        try:
            async with self._session.post(worker.url, json=update) as response:
                return response.status == 200  # noqa: PLR2004
        except aiohttp.ClientError:  # it has died, or is not there yet
            return False
        finally:
            worker.handling.discard(update["update_id"])

    async def _send_message(self, asked: Json) -> Any:
        if (held := self._held) is not None:
            self._held = None
            held.set_result(None)
            await asyncio.Event().wait()  # until the worker is gone
        return await super()._send_message(asked)
