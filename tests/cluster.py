"""Hammers a bot of several workers, kills them and their database, and checks what is stored.

``make cluster UPDATES=10000 SEED=1``, or ``python tests/cluster.py --updates 10000 --seed 1``. It
says what was done how often, and exits with 0 only when nothing was wrong.

It starts a PostgreSQL server that forgets nothing, and workers, each a process with a server of its
own. It does to them what Telegram does to webhooks: sends each update to one of them, many at the
same time, and again to another until one has confirmed it. Meanwhile workers are killed with
SIGKILL, and the database ends, in the midst of it. All that was acknowledged is then looked for in
the rows: see `cluster_checker`.

What is sent, and who is killed after how many updates, depends on the seed alone; how it all comes
together, on the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any, Final

import aiohttp
import asyncpg
from bots import Json, press_update, text_update
from cluster_checker import WORDS, History, Keyboard, Sent, check, outcome
from postgres_server import PostgresServer, free_port
from worker_process import BUTTONS, HOLD_TIMEOUT

USERS: Final = 200
GROUPS: Final = 20
_HOT: Final = 5
"""Users who send a quarter of all."""
_WEIGHTS: Final = {
    "count": 20, "give": 15, "total": 4, "tally": 10, "buttons": 5, "once": 5, "press": 15,
    "edit": 3, "job": 3, "order": 6, "next": 17, "back": 4, "stop": 2,
}  # fmt: skip
_DEEDS: Final = {"kill": 10, "freeze": 1, "cut": 3, "reset": 2, "restart": 1, "crash": 2}
"""What happens to the cluster: see `Hammer.deeds`."""
_FROZEN: Final = HOLD_TIMEOUT + 1.5
"""Seconds after which a worker goes on that has lost all that it had."""
_IMPATIENT: Final = 0.02
"""Which part of the updates is sent again before the first worker can have answered."""
_PATIENCE: Final = 30.0
"""Seconds after which any other is sent again."""
_MOST_ATTEMPTS: Final = 300
_MOST_SHOWN: Final = 20


def moves(seed: int, users: int = USERS) -> Iterator[Sent]:
    """Yield, without end, what people do."""
    chance = random.Random(f"moves {seed}")  # noqa: S311  it chooses deeds, not secrets
    for number in count(1):
        (kind,) = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        most = users // 5 if kind in WORDS else users  # or hardly one would come to an end
        user = chance.randint(1, _HOT if chance.random() < 0.25 else most)
        chat = user if chance.random() < 0.75 else -(user % GROUPS) - 1
        other = chance.choice([each for each in (1, 2, user % users + 1) if each != user])
        yield Sent(number, kind, user, chat, coins=chance.randint(1, 9), other=other)


def deeds(seed: int, every: int) -> Iterator[tuple[int, str]]:
    """Yield, without end, after how many updates what happens to the cluster."""
    chance = random.Random(f"deeds {seed}")  # noqa: S311
    for number in count(1):
        (deed,) = chance.choices(list(_DEEDS), list(_DEEDS.values()))
        yield number * every + chance.randrange(every // 2), deed


@dataclass
class Plan:
    """What a hammer does.

    Attributes:
        moves: What people do.
        deeds: After how many acknowledged updates what happens to the cluster.
        workers: How many there are.
        in_flight: How many updates are sent at the same time.
        deduplicate: Whether workers keep the ids of updates.
        naive: Whether they do without locks and versions.
        until: The moment after which no more updates are begun, by `time.monotonic`.
    """

    moves: Iterable[Sent]
    deeds: Iterable[tuple[int, str]] = ()
    seed: int = 1
    workers: int = 4
    in_flight: int = 32
    deduplicate: bool = True
    naive: bool = False
    until: float = float("inf")


@dataclass
class Report:
    """What came of it."""

    history: History
    rows: dict[str, str]
    done: Counter[str]
    wrong: list[str]
    pressed: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


class Worker:
    """A worker that is started again whenever it ends.

    Attributes:
        url: Of its web server.
    """

    numbers = count(1)

    def __init__(self, arguments: list[str], log: Path, report: Report) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.number = 0
        self._arguments = arguments
        self._log = log
        self._report = report
        self._process: asyncio.subprocess.Process | None = None
        self._is_ending = False
        self.is_ready = asyncio.Event()

    async def run(self) -> None:
        """Start it, again and again, until `end`."""
        while not self._is_ending:
            self.number = next(self.numbers)
            self._report.done["workers started"] += 1
            position = self._log.stat().st_size if self._log.exists() else 0
            with self._log.open("ab") as log:
                url, *options = self._arguments
                process = self._process = await asyncio.create_subprocess_exec(
                    sys.executable, "-X", "faulthandler", str(_PROGRAM),
                    url, str(self.port), str(self.number), *options,
                    stdin=-1, stdout=-1, stderr=log,
                )  # fmt: skip
            try:
                await self._watch(process)
            finally:
                if process.returncode is None:
                    process.kill()
                await process.wait()
            self._judge(process, position)

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        if await process.stdout.readline() == b"ready\n":
            self.is_ready.set()
            if self._is_ending:
                self._close(process)
        await process.wait()
        self.is_ready.clear()

    def _judge(self, process: asyncio.subprocess.Process, position: int) -> None:
        """Take note of how it ended; all that it may say is that the database was not there."""
        with self._log.open("rb") as log:
            log.seek(position)
            said = log.read().decode()
        if process.returncode == -9:
            self._report.done["workers killed"] += 1
        elif process.returncode == 1 and "kvpersist.errors.OpenError" in said:
            self._report.done["workers that found no database"] += 1
            return
        elif process.returncode != 0:
            raise RuntimeError(f"a worker ended with {process.returncode}: {said[-3000:]}")
        if said:
            self._report.wrong.append(f"a worker said: {said[-3000:]}")

    def kill(self) -> None:
        """Kill it, if it is not just starting."""
        if self._process is not None and self.is_ready.is_set():
            self.is_ready.clear()
            self._process.kill()

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def end(self) -> None:
        """Have it end by itself, when it has done what it has begun."""
        self._is_ending = True
        if self._process is not None and self.is_ready.is_set():
            self._close(self._process)

    @staticmethod
    def _close(process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        process.stdin.close()


_CLIENT: Final = """
    SELECT pid FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() ORDER BY random() LIMIT 1
"""
_CUT: Final = """
    SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < 0.5
"""
_PROGRAM: Final = Path(__file__).with_name("worker_process.py")


class Hammer:
    """Sends what people do to workers, until each has been acknowledged.

    Attributes:
        report: What has come of it so far.
        deeds: What it does to the cluster.
    """

    def __init__(self, plan: Plan, server: PostgresServer, folder: Path) -> None:
        self.report = Report(History(), {}, Counter(), [])
        self._plan = plan
        self._server = server
        options = ["--deduplicate"] * plan.deduplicate + ["--naive"] * plan.naive
        self._workers = [
            Worker([server.url(), *options], folder / f"worker-{number}.log", self.report)
            for number in range(plan.workers)
        ]
        self._clock = count(1)
        self._acknowledged = 0
        self._progress = asyncio.Event()
        self._is_over = False
        self._keyboards: dict[int, deque[Keyboard]] = {}
        self.deeds = {
            "kill": self._kill,
            "freeze": self._freeze,
            "cut": self._cut,
            "reset": self._reset,
            "restart": self._restart,
            "crash": self._crash,
        }
        self._thread = ThreadPoolExecutor(1)  # a server ends with the thread that started it

    async def run(self) -> None:
        """Do all that is planned, end the workers, and read the rows."""
        started = time.monotonic()
        running = [asyncio.create_task(each.run()) for each in self._workers]
        try:
            await _first_failure(running, self._all_ready())
            self.report.seconds = -time.monotonic()
            async with aiohttp.ClientSession() as session:
                await _first_failure(running, self._do_all(session))
            self.report.seconds += time.monotonic()
            for worker in self._workers:
                worker.end()
            await asyncio.wait_for(asyncio.gather(*running), 60)
            found = await self._query("SELECT key, value FROM documents")
            self.report.rows.update((key, value) for key, value in found)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)
            self._thread.shutdown()
        self.report.done["seconds in all"] = round(time.monotonic() - started)

    async def _all_ready(self) -> None:
        for worker in self._workers:
            await worker.is_ready.wait()

    async def _do_all(self, session: aiohttp.ClientSession) -> None:
        todo = iter(self._plan.moves)
        chaos = asyncio.create_task(self._make_trouble())
        senders = [
            asyncio.create_task(self._send_all(session, todo)) for _ in range(self._plan.in_flight)
        ]
        try:
            await _first_failure([chaos], _all(senders))
            self._is_over = True
            self._progress.set()
            await chaos
        finally:
            for task in (*senders, chaos):
                task.cancel()
            await asyncio.gather(*senders, chaos, return_exceptions=True)

    async def _send_all(self, session: aiohttp.ClientSession, todo: Iterator[Sent]) -> None:
        for move in todo:
            if time.monotonic() > self._plan.until:
                return
            chance = random.Random(f"{self._plan.seed} {move.number}")  # noqa: S311
            if move.kind in {"edit", "job"}:
                self.report.history.edits[move.number] = move
                body = {"number": move.number, "user": move.user}
                await self._send(session, move, move.kind, body, chance)
            else:
                self.report.history.updates[move.number] = move
                update = self._update(move, chance)
                await self._send(session, move, "update", update, chance)
            self.report.done[move.kind] += 1
            self._acknowledged += 1
            self._progress.set()

    def _update(self, move: Sent, chance: random.Random) -> Json:
        """Return an update as Telegram sends it."""
        if move.kind == "press" and not self._keyboards:
            move.kind = "count"  # there is nothing to press yet
        if move.kind != "press":
            words = f"/give {move.other} {move.coins}" if move.kind == "give" else f"/{move.kind}"
            update = text_update(words, chat_id=move.chat, user_id=move.user)
        else:
            if move.chat not in self._keyboards:
                move.chat = chance.choice([*self._keyboards])
                move.user = move.chat if move.chat > 0 else move.user
            move.keyboard = chance.choice(self._keyboards[move.chat])
            move.button = chance.randrange(BUTTONS)
            update = press_update(move.keyboard.message, move.button, user_id=move.user)
        return update | {"update_id": move.number}

    async def _send(
        self,
        session: aiohttp.ClientSession,
        move: Sent,
        path: str,
        body: Json,
        chance: random.Random,
    ) -> None:
        """Send something to one worker after the other, until one has confirmed it."""
        move.sent = next(self._clock)
        is_impatient = chance.random() < _IMPATIENT
        worker = chance.choice(self._workers)
        while True:
            move.attempts += 1
            patience = 0.005 if is_impatient and move.attempts == 1 else _PATIENCE
            number = worker.number
            timeout = aiohttp.ClientTimeout(total=patience)
            try:
                async with session.post(f"{worker.url}/{path}", json=body, timeout=timeout) as got:
                    status, answer = got.status, await got.text()
                    found = await got.json() if status in {200, 503} else {}
            except (aiohttp.ClientError, TimeoutError, asyncio.TimeoutError, OSError) as error:
                self.report.done[f"sent again: {type(error).__name__}"] += 1
            else:
                if status == 200:
                    break
                what = found["error"].partition("(")[0] if found else status
                self.report.done[f"sent again: {what}"] += 1
                if status != 503:
                    self.report.wrong.append(f"{move}: {status} {answer}")
            if move.attempts == _MOST_ATTEMPTS:
                raise RuntimeError(f"never acknowledged: {move}; {self.report.done}")
            await asyncio.sleep(min(0.02 * move.attempts, 0.5))
            others = [each for each in self._workers if each is not worker]
            worker = chance.choice(others or [worker])
        move.acknowledged = next(self._clock)
        self._hear(move, found, number)

    def _hear(self, move: Sent, answer: Json, worker: int) -> None:
        """Take note of what was confirmed, and of what the bot has said."""
        if answer["errors"]:
            self.report.wrong.append(f"{move}: {answer['errors']}")
        if not answer["is_new"]:
            self.report.done["handled before"] += 1
            return
        if move.keyboard is not None:
            is_own = worker == move.keyboard.worker
            self.report.pressed["in the same" if is_own else "in another"] += 1
        for reply in answer["replies"]:
            if reply["chat"]["id"] != move.chat:
                self.report.wrong.append(f"{move}: answered in {reply['chat']['id']}")
            elif reply["text"] != "buttons":
                move.position = int(reply["text"])
            else:
                (row,) = reply["reply_markup"]["inline_keyboard"]
                name = row[0]["callback_data"][:32]
                keyboard = Keyboard(name, move.number, move.kind == "once", reply, worker)
                self.report.history.keyboards.append(keyboard)
                self._keyboards.setdefault(move.chat, deque(maxlen=4)).append(keyboard)

    async def _make_trouble(self) -> None:
        chance = random.Random(f"trouble {self._plan.seed}")  # noqa: S311
        for after, deed in self._plan.deeds:
            while self._acknowledged < after and not self._is_over:
                self._progress.clear()
                await self._progress.wait()
            if self._is_over:
                return
            await self.deeds[deed](chance)
            self.report.done[f"deed: {deed}"] += 1

    async def _kill(self, chance: random.Random) -> None:
        """Kill a worker, once it has started."""
        worker = chance.choice(self._workers)
        await worker.is_ready.wait()
        worker.kill()

    async def _freeze(self, chance: random.Random) -> None:
        """Have a worker do nothing for so long that others go on with what it had."""
        worker = chance.choice(self._workers)
        await worker.is_ready.wait()
        worker.send(signal.SIGSTOP)
        await asyncio.sleep(_FROZEN)
        worker.send(signal.SIGCONT)

    async def _cut(self, _: random.Random) -> None:
        """Cut half of the connections to the database."""
        await self._query(_CUT)

    async def _reset(self, _: random.Random) -> None:
        """Kill a child of the database, that then forgets all that was not committed."""
        for (process,) in await self._query(_CLIENT):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)

    async def _restart(self, _: random.Random) -> None:
        """Stop the database, and start it again."""
        await self._in_thread(self._server.stop)
        await self._in_thread(self._server.start)

    async def _crash(self, _: random.Random) -> None:
        """Kill the database, and start it again."""
        await self._in_thread(self._server.kill)
        await self._in_thread(self._server.start)

    async def _query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the database, once it is there."""
        while True:
            await self._in_thread(self._server.wait)
            try:
                found: list[tuple[Any, ...]] = await self._in_thread(
                    partial(self._server.query, sql)
                )
            except (
                OSError,
                asyncpg.PostgresError,
            ):  # it has not noticed yet that a child died
                continue
            return found

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, call)


async def _all(tasks: list[asyncio.Task[None]]) -> None:
    await asyncio.gather(*tasks)


async def _first_failure(watched: Iterable[asyncio.Task[None]], work: Awaitable[None]) -> None:
    """Do some work; raise what one of the watched tasks raises meanwhile."""
    main = asyncio.ensure_future(work)
    try:
        waiting = {main, *watched}
        while not main.done():
            done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
    finally:
        main.cancel()
        await asyncio.gather(main, return_exceptions=True)
    main.result()


async def hammer(plan: Plan) -> Report:
    """Do what is planned, and check what came of it."""
    server = PostgresServer("fsync=on", "deadlock_timeout=100ms")
    try:
        with tempfile.TemporaryDirectory(prefix="kvpersist-cluster-") as name:
            work = Hammer(plan, server, Path(name))
            await work.run()
    finally:
        server.remove()
    report = work.report
    report.done += outcome(report.rows)
    report.wrong += check(report.history, report.rows, deduplicate=plan.deduplicate)
    return report


def show(report: Report) -> None:
    """Tell what was done, and what was wrong."""
    history = report.history
    sent = sorted({**history.updates, **history.edits}.items())
    attempts = Counter(min(each.attempts, 4) for _, each in sent)
    say(f"{len(sent)} updates acknowledged in {report.seconds:.1f} s,",
        f"{len(sent) / max(report.seconds, 0.001):.0f} a second")  # fmt: skip
    say("sent:", {f"{times} times": number for times, number in sorted(attempts.items())})
    say("done:", dict(sorted(report.done.items())))
    say("buttons pressed where they were sent, or not:", dict(report.pressed))
    say("rows:", dict(Counter(key.partition("/")[0] for key in report.rows)))
    say("wrong:", len(report.wrong))
    for fault in report.wrong[:_MOST_SHOWN]:
        say("-", fault)


def say(*words: object) -> None:
    """Tell the person."""
    print(*words, flush=True)  # noqa: T201  it talks to a person


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--updates", type=int, help="10000 by default, without --seconds")
    parser.add_argument("--seconds", type=float, default=float("inf"))
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=200, help="updates between two deeds")
    parser.add_argument("--twice", action="store_true", help="without deduplicate")
    parser.add_argument("--naive", action="store_true", help="without locks: this must fail")
    given = parser.parse_args()
    updates = given.updates or (10_000 if given.seconds == float("inf") else None)
    say(f"a cluster of {given.workers} workers, from seed {given.seed}")
    plan = Plan(
        islice(moves(given.seed), updates),
        deeds(given.seed, given.every),
        seed=given.seed,
        workers=given.workers,
        deduplicate=not given.twice,
        naive=given.naive,
        until=time.monotonic() + given.seconds,
    )
    report = asyncio.run(hammer(plan))
    show(report)
    return 1 if report.wrong else 0


if __name__ == "__main__":
    sys.exit(main())
