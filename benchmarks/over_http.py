"""The message logger of the examples, answering over real HTTP on this machine."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "examples"))

import message_logger
from bot_api_server import TOKEN, BotApiServer, Person
from measure import Turn, folder, ratios, side_by_side, size
from row import Row, report
from telegram import Update
from telegram.ext import Application, ConversationHandler, PicklePersistence

from kvpersist import KVPersistence, application_builder

PEOPLE = size(16, 4)
EACH = size(8, 2)
NOTHING, KVPERSIST, PICKLE = "no persistence", "kvpersist, documents", "PicklePersistence"


def builder(how: str, path: Path) -> Any:
    """Return the builder of a bot that remembers in one way or another."""
    if how == KVPERSIST:
        return application_builder(KVPersistence(path / "bot.db"))
    if how == PICKLE:
        kept = PicklePersistence(path / "bot.pickle", update_interval=1)
        return Application.builder().persistence(kept)
    return Application.builder()


def serve(how: str, path: Path, base_url: str) -> None:
    """Be the bot, until SIGTERM."""
    example: Any = message_logger
    app = builder(how, path).token(TOKEN).base_url(base_url).arbitrary_callback_data(True).build()
    if how == NOTHING:  # where PTB refuses a conversation that is persistent
        example.ConversationHandler = lambda **options: ConversationHandler(
            **{**options, "persistent": False}
        )
    example.add_handlers(app)
    app.run_polling(allowed_updates=Update.ALL_TYPES)


@asynccontextmanager
async def bot(how: str, path: Path) -> AsyncIterator[BotApiServer]:
    """Give the server that a bot, in a process of its own, asks for updates."""
    async with BotApiServer() as server:
        is_up = server.next_poll()
        process = subprocess.Popen(  # noqa: S603
            [sys.executable, __file__, how, path, server.base_url]
        )
        await is_up
        yield server
        process.terminate()
        await asyncio.to_thread(process.wait)


def talking(server: BotApiServer) -> Turn:
    """Return a turn: people who have not yet been there talk, each waiting for each answer."""

    async def talk(person: Person) -> None:
        for _ in range(EACH):
            server.say(person, "this is a message")
            await server.reply(person)

    async def turn(number: int) -> float:
        people = [Person(1 + number * PEOPLE + at, "P") for at in range(PEOPLE)]
        start = time.perf_counter()
        await asyncio.gather(*map(talk, people))
        return PEOPLE * EACH / (time.perf_counter() - start)

    return turn


async def run() -> list[Row]:
    with folder() as path:
        async with bot(NOTHING, path) as a, bot(KVPERSIST, path) as b, bot(PICKLE, path) as c:
            figures = await side_by_side(
                {NOTHING: talking(a), KVPERSIST: talking(b), PICKLE: talking(c)}
            )
    found = ratios(figures, NOTHING)
    return [
        Row(
            "the message logger answering over local HTTP",
            found[KVPERSIST],
            ">= 0.9",
            "× the updates/s with no persistence",
            found,
        )
    ]


if __name__ == "__main__":
    if len(sys.argv) == 4:
        serve(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
    else:
        report(asyncio.run(run()))
