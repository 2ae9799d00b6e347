"""Many workers on PostgreSQL: how updates/s grow with them; what an update costs in round trips.

The workers are processes of their own, each of which handles updates of its own making: there is no
HTTP. Each handles one at a time, as PTB does by default, or as many as `pool_size` allows. Beside
them, in the same rounds, one process on SQLite does the same.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).parent.parent / "examples"))
sys.path.append(str(Path(__file__).parent.parent / "tests"))

from local_postgres import LocalPostgres
from measure import Figures, Turn, folder, ratio, ratios, say, side_by_side, size
from ptb_alone import NEVER, NO_KEYBOARDS, offline_bot
from row import Row, Spread, report, spread
from tcp_proxy import proxied
from telegram import Update
from telegram.ext import ConversationHandler, MessageHandler, TypeHandler, filters

from kvpersist import KVPersistence, WorkerApplication, application_builder

WORKERS = (1, 2, 4, 8)
POOL_SIZE = 4
"""The default."""
WAIT = 0.05
CHATS = 32
"""Those of each worker, all known after the first round."""
WAITING, COUNTING = "wait", "count"
EACH = {WAITING: size(20, 2), COUNTING: size(100, 4)}
"""How many updates a worker handles in a turn, for each that it handles at a time."""
ROUNDS = size(9, 1)
SQLITE, SQLITE_WIDE = "one process on SQLite", "one process on SQLite, 8 times as many at a time"
TRIPS = "round trips to PostgreSQL of an update"


async def handle(update: Update, context: Any) -> None:
    assert update.message
    if update.message.text == WAITING:
        await asyncio.sleep(WAIT)
    if update.message.text != "look":
        context.chat_data["count"] = context.chat_data.get("count", 0) + 1
    if update.message.text == "bot":
        context.bot_data["count"] = context.bot_data.get("count", 0) + 1


def message(text: str, chat_id: int) -> Update:
    person = {"id": chat_id, "is_bot": False, "first_name": "P"}
    chat = {"id": chat_id, "type": "private"}
    content: dict[str, Any] = {"message_id": 1, "date": 1, "chat": chat, "from": person}
    update = Update.de_json({"update_id": 1, "message": content | {"text": text}}, BOT)
    assert update is not None
    return update


BOT = offline_bot()


def build(place: str, **options: Any) -> Any:
    """Return an application on PostgreSQL, if that is the place, or else on SQLite."""
    is_shared = place.startswith("postgresql:")
    kept = KVPersistence(
        place, shared=is_shared, store_data=NO_KEYBOARDS, update_interval=NEVER, **options
    )
    app = application_builder(kept).bot(offline_bot()).job_queue(None).build()
    app.add_handler(TypeHandler(Update, handle))
    return app


# --- A worker -----------------------------------------------------------------------------------


async def work(place: str, number: int) -> None:
    """Do what each line of the input says: which updates, how many, and how many at a time."""
    app = build(place)
    handle_one = app.handle_update if isinstance(app, WorkerApplication) else app.process_update
    async with app:
        print("ready", flush=True)
        while line := await asyncio.to_thread(sys.stdin.readline):
            text, count, at_once = line.split()
            left = iter(range(int(count)))

            async def go_on(left: Iterator[int], text: str) -> None:
                for at in left:
                    await handle_one(message(text, 1_000 * number + at % CHATS))

            await asyncio.gather(*(go_on(left, text) for _ in range(int(at_once))))
            print("done", flush=True)


class Crew:
    """Some workers, in processes of their own."""

    def __init__(self, processes: list[asyncio.subprocess.Process]) -> None:
        self._processes = processes

    async def hear(self) -> None:
        """Wait until each has said something."""
        for process in self._processes:
            assert process.stdout
            assert await process.stdout.readline(), "a worker has ended"

    def turn(self, workers: int, text: str, at_once: int, each: int) -> Turn:
        """Return a turn of the first `workers`, whose figure is updates/s."""
        crew = Crew(self._processes[:workers])

        async def turn(_: int) -> float:
            start = time.perf_counter()
            for process in crew._processes:
                assert process.stdin
                process.stdin.write(f"{text} {each} {at_once}\n".encode())
            await crew.hear()
            return workers * each / (time.perf_counter() - start)

        return turn


@asynccontextmanager
async def running(place: str, workers: int) -> AsyncIterator[Crew]:
    """Give a crew that is ready, and end it."""
    processes = [
        await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            place,
            str(1 + number),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        for number in range(workers)
    ]
    try:
        crew = Crew(processes)
        await crew.hear()
        yield crew
    finally:
        for process in processes:
            assert process.stdin
            process.stdin.close()
            await process.wait()


# --- What is measured ---------------------------------------------------------------------------


@contextmanager
def postgres() -> Iterator[LocalPostgres]:
    """Give a server that waits for no disk, as the files in memory of all others."""
    server = LocalPostgres()
    try:
        yield server
    finally:
        server.remove()


async def measure(many: Crew, one: Crew, text: str, at_once: int) -> Figures:
    each = EACH[text] * at_once
    turns = {_called(number): many.turn(number, text, at_once, each) for number in WORKERS}
    turns[SQLITE] = one.turn(1, text, at_once, each)
    turns[SQLITE_WIDE] = one.turn(1, text, 8 * at_once, 8 * each)
    return await side_by_side(turns, ROUNDS)


def grown(figures: Figures) -> dict[int, Spread]:
    """Return how many times as many updates/s so many workers handle as one."""
    return {number: ratio(figures, _called(number), _called(1)) for number in WORKERS}


def _called(number: int) -> str:
    return "1 worker" if number == 1 else f"{number} workers"


def _note(figures: Figures) -> str:
    reached = {name: spread(figures[name].values()) for name in (_called(1), _called(8), SQLITE)}
    found = ", ".join(f"{name} {figure.median:,.0f}" for name, figure in reached.items())
    say(f"  updates/s: {found}")
    return f"updates/s: {found}"


def waiting(figures: Figures, at_once: int) -> list[Row]:
    work = f"updates whose handlers wait 50 ms, {_times(at_once)} in each process"
    most = max(WORKERS)
    one, all_ = figures[_called(1)], figures[_called(most)]
    linear = spread(all_[number] / one[number] / most for number in one)
    return [
        Row(f"{work}, {most} workers", linear, ">= 0.9", f"× {most} times the updates/s of one"),
        Row(
            work,
            unit="× the updates/s of one worker",
            others=ratios(figures, _called(1)),
            note=_note(figures),
            workers=grown(figures),
        ),
    ]


def counting(figures: Figures, at_once: int) -> Row:
    return Row(
        f"updates whose handlers only count, {os.cpu_count()} cores, {_times(at_once)} in each "
        "process",
        unit="× the updates/s of one process on SQLite",
        others=ratios(figures, SQLITE),
        note=_note(figures),
        workers=grown(figures),
    )


def _times(at_once: int) -> str:
    return "one at a time" if at_once == 1 else f"{at_once} at a time"


async def scaling(server: LocalPostgres) -> list[Row]:
    rows: list[Row] = []
    with folder() as path:
        async with AsyncExitStack() as stack:
            many = await stack.enter_async_context(running(server.url(), max(WORKERS)))
            one = await stack.enter_async_context(running(str(path / "bot.db"), 1))
            for at_once in (1, POOL_SIZE):
                rows += waiting(await measure(many, one, WAITING, at_once), at_once)
            rows.append(counting(await measure(many, one, COUNTING, POOL_SIZE), POOL_SIZE))
    return rows


async def trips(server: LocalPostgres) -> list[Row]:
    """Count how often a worker sends something for an update, when its statements are prepared."""
    steps = iter(range(1_000))

    async def go_on(_: Update, __: Any) -> int:
        return next(steps)

    on: list[Any] = [MessageHandler(filters.Text(["step"]), go_on)]
    conversation: Any = ConversationHandler(
        on, dict.fromkeys(range(9), on), [], name="steps", persistent=True
    )
    found: dict[str, float] = {}
    server.psql("CREATE DATABASE trips")
    async with proxied(server.port) as proxy:
        app = build(server.url("trips", port=proxy.port))
        app.add_handler(conversation, 1)
        async with app:
            for name, text in (
                ("of a known chat", COUNTING),
                ("that changes nothing", "look"),
                ("that changes bot_data too", "bot"),
                ("that is a step of a conversation", "step"),
            ):
                await app.handle_update(message(text, 1))
                before = proxy.requests
                await app.handle_update(message(text, 1))
                found[name] = proxy.requests - before
        assert next(steps) == 2, "the conversation did not go on"
    goals = {"of a known chat": "<= 3", "that changes nothing": "<= 2"}
    return [
        *(Row(f"{TRIPS} {name}", spread([found[name]]), goal) for name, goal in goals.items()),
        Row(TRIPS, unit="round trips", others={name: spread([at]) for name, at in found.items()}),
    ]


async def run() -> list[Row]:
    with postgres() as server:
        return await trips(server) + await scaling(server)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run(work(sys.argv[1], int(sys.argv[2])))
    else:
        report(asyncio.run(run()))
