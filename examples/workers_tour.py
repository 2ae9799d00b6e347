"""A tour of many workers that a person can follow: what `make demo-workers` runs.

It starts a PostgreSQL server and four workers of one bot, each a process of its own. Whichever
worker gets an update goes on where another was, also where that one was killed with SIGKILL.

Exits 0 if nothing was lost, or done twice, 1 if anything was, or if a worker did not behave. On a
terminal you may talk to the bot yourself at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import signal
import sys
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bot_api_server import Person, Reply
from bot_process import BotProcess
from front import Front, Upstream
from local_postgres import LocalPostgres, free_port
from stored import Row, table
from tour import TourError, check, conduct, converse, title

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")

ADA, YOU = Person(1, "Ada"), Person(3, "You")
CROWD = [Person(number, f"Person {number}") for number in range(100, 140)]
EACH = 10  # messages of each of them, all at once
SECRET = "known-to-the-front-and-the-workers"  # noqa: S105  # of this machine, for some seconds
ROWS = """
    SELECT coalesce(json_agg(json_build_array(key, value, version, updated_at) ORDER BY key), '[]')
    FROM documents WHERE key NOT LIKE 'update/%'
"""
HANDLED = "SELECT count(*) FROM documents WHERE key LIKE 'update/%'"
POLL = 0.02  # seconds between two tries to reach a worker that starts


class Worker(Upstream):
    """A worker, and its process."""

    def __init__(self, number: int, process: BotProcess, port: int) -> None:
        super().__init__(number, f"http://127.0.0.1:{port}/telegram")
        self.process = process
        self.port = port
        self.pid = 0

    def __str__(self) -> str:
        return f"worker {self.number}, process {self.pid}"


class WorkersTour:
    """What people do, and what must be stored after it."""

    def __init__(self, front: Front, database: LocalPostgres, patience: float) -> None:
        self.front = front
        self.database = database
        self.patience = patience
        self.workers: list[Worker] = []
        self.walk: list[Worker] = []  # who answered Ada

    async def start(self, worker: Worker) -> None:
        worker.pid = await worker.process.start()
        up = asyncio.ensure_future(_listens(worker.port))
        ended = asyncio.ensure_future(worker.process.ended())
        try:
            first = asyncio.wait({up, ended}, return_when=asyncio.FIRST_COMPLETED)
            await self.within(first, f"worker {worker.number} did not start")
            if ended.done():
                code = ended.result()
                raise TourError(f"{worker} did not start: it ended with exit code {code}")
        finally:
            up.cancel()
            ended.cancel()
        worker.is_up = True
        print(f"  Worker {worker.number} runs as process {worker.pid}.")

    async def kill(self, worker: Worker) -> None:
        """End a worker as `kill -9` does; the front finds out by itself."""
        code = await worker.process.kill()
        worker.is_up = False
        check(f"{worker} was ended by signal 9", code == -signal.SIGKILL, f"exit code {code}")

    async def say(self, text: str) -> Reply:
        self.send(text)
        return await self.hear()

    def send(self, text: str) -> None:
        print(f"  Ada:  {text}")
        self.front.say(ADA, text)

    async def hear(self) -> Reply:
        reply = await self.within(self.front.reply(ADA), "nobody answered Ada")
        self.show(ADA, reply)
        self.walk.append(self.asked(ADA))
        await self.within(self.front.confirmed(), "no worker confirmed the update")
        return reply

    def asked(self, person: Person) -> Worker:
        worker = self.front.asked[person.id]
        assert isinstance(worker, Worker)
        return worker

    def show(self, person: Person, reply: Reply) -> None:
        how = " (pop-up)" if reply.method == "answerCallbackQuery" else ""
        buttons = "".join(f"  [{button}]" for button in reply.buttons)
        print(f"        bot: {reply.text}{buttons}{how}    <- {self.asked(person)}")

    async def within(self, awaitable: Awaitable[T], otherwise: str) -> T:
        """Return the result, or raise when patience ends."""
        try:
            return await asyncio.wait_for(asyncio.ensure_future(awaitable), self.patience)
        except asyncio.TimeoutError:
            raise TourError(f"{otherwise} within {self.patience:g} seconds") from None

    async def rows(self) -> dict[str, Row]:
        """Return what is stored, as any program sees it."""
        text = await asyncio.to_thread(self.database.psql, ROWS)
        return {row.key: row for row in (Row(*columns) for columns in json.loads(text))}

    async def show_rows(self, *keys: str) -> None:
        rows = await self.rows()
        print("\n" + table(rows[key] for key in keys if key in rows) + "\n")


async def _listens(port: int) -> None:
    while True:
        with contextlib.suppress(ConnectionRefusedError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(POLL)


# --- The tour itself ----------------------------------------------------------------------------


async def one_conversation(tour: WorkersTour) -> None:
    title("2. One conversation, and every answer comes from another worker")
    await tour.say("/order")
    await tour.say("large")
    print("\n  What all of them know (read with psql, while they run):")
    await tour.show_rows("conversation/order/[1,1]", "chat/1", "user/1")


async def killed_in_the_middle(tour: WorkersTour) -> None:
    title("3. A worker is killed in the middle of an update")
    before = await tour.rows()
    held = tour.front.hold_next_message()
    tour.send("mushrooms")
    await tour.within(held, "no worker wanted to answer")
    worker = tour.asked(ADA)
    print(f"        ({worker}, has changed her order, and is about to answer)")
    print("\n  " + "#" * 60)
    print(f"  ####  kill -9 of worker {worker.number}")
    print("  " + "#" * 60)
    await tour.kill(worker)
    await tour.hear()
    check("Telegram's side had no answer, and delivered the update again", tour.front.again > 0)
    check("another worker went on", tour.walk[-1] is not worker)
    after = await tour.rows()
    check(
        "what the killed one had not committed has never been: her message was counted once",
        after["chat/1"].value["messages"] == before["chat/1"].value["messages"] + 1,
    )
    await tour.show_rows("conversation/order/[1,1]", "chat/1", "user/1")
    last = await tour.say("12 Long Street")
    check(
        "the conversation went on to its end",
        last.text == "Order 1: a large pizza with mushrooms, to 12 Long Street.",
        last.text,
    )
    walk = [each.number for each in tour.walk]
    check(
        f"it went from worker to worker: {', '.join(map(str, walk))}",
        all(one != other for one, other in pairwise(walk)),
    )
    print("  Ada:  (presses the button The same again)")
    tour.front.press(ADA, last.message_id or 0, "The same again")
    same = await tour.hear()
    check("a button of one worker works in another", same.text.startswith("Order 2: a large"))
    await tour.within(tour.front.reply(ADA), "the press was not answered")
    await tour.start(worker)


async def a_crowd(tour: WorkersTour) -> None:
    number = len(CROWD) * EACH
    title(f"4. {len(CROWD)} people send {EACH} messages each, all at once; two workers are killed")
    begin, again = tour.front.delivered, tour.front.again
    for person in CROWD * EACH:
        tour.front.say(person, "hello")
    killed = []
    for part in (1, 2):
        enough = begin + part * number // 4
        await tour.within(tour.front.until_delivered(enough), "the workers are too slow")
        alive = [worker for worker in tour.workers if worker not in killed]
        killed.append(max(alive, key=lambda worker: len(worker.handling)))
        print(f"  {tour.front.delivered - begin} messages are handled ...")
        await tour.kill(killed[-1])
    for worker in killed:
        await tour.start(worker)
    await tour.within(tour.front.confirmed(), "not all updates were confirmed")
    print(f"  all {number} are; {tour.front.again - again} deliveries had been in vain")
    rows = await tour.rows()
    counted = Counter(
        rows[f"chat/{person.id}"].value["messages"]
        for person in CROWD
        if f"chat/{person.id}" in rows
    )
    check(
        f"each of {len(CROWD)} chats has counted {EACH} messages: none was lost, none counts twice",
        counted == {EACH: len(CROWD)},
        f"how many chats have counted how many: {counted}",
    )
    handled = int(await asyncio.to_thread(tour.database.psql, HANDLED))
    check(
        f"{handled} updates were handled, each once",
        handled == tour.front.delivered,
        f"{tour.front.delivered} were delivered",
    )


async def at_the_end(tour: WorkersTour) -> None:
    title("The workers are asked to stop")
    for worker in tour.workers:
        code = await worker.process.stop()
        check(f"{worker} ended in peace", code == 0, worker.process.log())
    await tour.show_rows("bot", "chat/1", "user/1")


async def talk(tour: WorkersTour) -> None:
    """Let the person at the terminal talk to the bot."""
    title("Now you. Type /order; a button is pressed by typing its text; /quit ends.")
    ends = [asyncio.ensure_future(worker.process.ended()) for worker in tour.workers]
    try:
        await converse(tour.front, partial(tour.show, YOU), *ends)
    finally:
        for end in ends:
            end.cancel()


async def play(args: argparse.Namespace, folder: Path) -> None:
    print("Four workers of one bot behave as one, and survive kill -9\n")
    title("1. A PostgreSQL server starts, and four workers")
    async with AsyncExitStack() as stack:
        database = LocalPostgres()
        stack.callback(database.remove)
        print(f"  PostgreSQL listens on port {database.port}; folder: {database.folder}")
        front = await stack.enter_async_context(Front(SECRET))
        tour = WorkersTour(front, database, args.patience)
        own = {"SECRET_TOKEN": SECRET, "DATABASE_URL": database.url()}
        for number in range(1, 5):
            port = free_port()
            command = [sys.executable, str(args.worker), "--port", str(port)]
            process = BotProcess(command, front, folder / f"worker{number}.log", **own)
            await stack.enter_async_context(process)
            tour.workers.append(Worker(number, process, port))
        front.workers += tour.workers
        random.seed(args.seed)
        try:
            await asyncio.gather(*map(tour.start, tour.workers))  # together: one makes the tables
            await one_conversation(tour)
            await killed_in_the_middle(tour)
            await a_crowd(tour)
            if sys.stdin.isatty():
                await talk(tour)
            await at_the_end(tour)
        except TourError as error:
            logs = "".join(f"\n{worker}:\n{worker.process.log()}" for worker in tour.workers)
            raise TourError(f"{error}\n\nThe logs of the workers:{logs}") from None


def main() -> int:
    parser = argparse.ArgumentParser(description="Workers are killed, and nothing is lost.")
    parser.add_argument(
        "--worker",
        type=Path,
        default=Path(__file__).with_name("worker.py"),
        help="another script to play with, that takes the same arguments",
    )
    parser.add_argument(
        "--patience", type=float, default=120, help="seconds to wait for anything (default: 120)"
    )
    parser.add_argument("--seed", type=int, help="of the chance that chooses workers")
    return conduct(partial(play, parser.parse_args()))


if __name__ == "__main__":
    sys.exit(main())
