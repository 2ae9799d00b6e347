"""Cancelled wherever it waits, a call leaves nothing half done, nothing lost and nobody waiting."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import (
    Awaitable,
    Callable,
    Generator,
    Mapping,
)
from contextlib import closing
from itertools import count
from pathlib import Path
from types import coroutine
from typing import Any, TypeAlias

import pytest
from bots import NEVER, Bot, text_update
from handlers import conversation, remember, text
from stores import SlowStore, WatchedStore, stored
from telegram import Update
from through import build, rows, settle

from kvpersist import KVPersistence, MemoryStore, SqliteStore, Store, UnavailableError, WriteError

BOUND = 60
"""Seconds in which everything ends, however slow the machine."""


class Memory:
    """A store in memory that is slow, and what it holds."""

    def __init__(self, _: Path) -> None:
        self._rows = MemoryStore()

    def store(self) -> Store:
        """Return what the next run of a bot uses."""
        return SlowStore(self._rows)

    def stored(self) -> dict[str, object]:
        """Return all rows."""
        return {key: json.loads(text) for key, text in self._rows.rows.items()}


class File:
    """A SQLite file, and what it holds."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "bot.db"

    def store(self) -> Store:
        """Return what the next run of a bot uses."""
        return SqliteStore(self._path)

    def stored(self) -> dict[str, object]:
        """Return all rows."""
        return stored(self._path)


Kept: TypeAlias = Memory | File
Call: TypeAlias = Callable[[], Awaitable[object]]


class Interruption:
    """Cancels a call in one of its waits.

    Args:
        moment: In which, from 0.
        turns: After how many turns of the event loop.
        everybody: Cancel tasks of kvpersist's own in the same moment, as a program does that
            cancels all of its tasks.
    """

    def __init__(self, moment: int, turns: int, *, everybody: bool) -> None:
        self.has_come = False
        self._moment = moment
        self._turns = turns
        self._everybody = everybody
        self._caller: asyncio.Task[object] | None = None

    async def during(self, call: Call) -> None:
        """Make a call in a task, cancel it, and wait until it has ended."""
        self._caller = asyncio.ensure_future(self._make(call()))
        done, _ = await asyncio.wait([self._caller], timeout=BOUND)
        assert done, f"moment {self._moment}: it waits for ever"
        if not self._caller.cancelled():
            error = self._caller.exception()
            assert error is None or self.has_come, error

    async def _make(self, call: Awaitable[object]) -> object:
        return await self._step(call)

    @coroutine
    def _step(self, call: Awaitable[object]) -> Generator[Any, Any, object]:
        waits, answer = call.__await__(), None
        error: BaseException | None = None
        for moment in count():
            try:
                waits_for = waits.send(answer) if error is None else waits.throw(error)
            except StopIteration as done:
                return done.value
            if moment == self._moment:
                self.has_come = True
                self._cancel_after(self._turns)
            answer, error = None, None
            try:
                answer = yield waits_for
            except BaseException as raised:  # noqa: BLE001  it is passed on
                error = raised
        return None

    def _cancel_after(self, turns: int) -> None:
        if turns:
            asyncio.get_running_loop().call_soon(self._cancel_after, turns - 1)
            return
        assert self._caller is not None
        tasks = {self._caller}
        if self._everybody:
            tasks |= {task for task in asyncio.all_tasks() if task.get_name() in OURS}
        for task in tasks:
            task.cancel()


OURS = (
    "kvpersist:commit",
    "kvpersist:write-through",
    "kvpersist:open",
    "kvpersist:close",
    "kvpersist:end",
)
"""What kvpersist calls its tasks."""


async def at_each_moment(
    folder: Path, kept: type[Kept], visit: Callable[[Kept, Interruption], Awaitable[None]]
) -> int:
    """Call `visit` with each moment in which its call waits; return how many there are."""
    moments = 0
    for turns, everybody in ((0, False), (1, False), (4, False), (0, True), (4, True)):
        for moment in count():
            place = folder / f"{turns}-{everybody}-{moment}"
            place.mkdir()
            interruption = Interruption(moment, turns, everybody=everybody)
            await asyncio.wait_for(visit(kept(place), interruption), 2 * BOUND)
            if not interruption.has_come:
                break
            moments += 1
    return moments


async def end(bot: Bot) -> None:
    """Stop a bot."""
    await asyncio.wait_for(bot.app.stop(), BOUND)
    await asyncio.wait_for(bot.app.shutdown(), BOUND)


async def flush(bot: Bot) -> None:
    """Write what a bot has left."""
    assert bot.app.persistence is not None
    await asyncio.wait_for(bot.app.persistence.flush(), BOUND)


def in_memory(bot: Bot) -> dict[str, object]:
    """Return the documents of a bot as its rows should be."""
    found = {f"chat/{key}": value for key, value in bot.app.chat_data.items()}
    found |= {f"user/{key}": value for key, value in bot.app.user_data.items()}
    return {**found, "bot": bot.app.bot_data}


def without_empty(documents: Mapping[str, object]) -> dict[str, object]:
    """Leave out rows that say as much as none."""
    return {key: value for key, value in documents.items() if value != {}}


@pytest.fixture(params=[Memory, File], ids=["memory", "sqlite"])
def kept(request: pytest.FixtureRequest) -> type[Kept]:
    """Give what lasts."""
    kind: type[Kept] = request.param
    return kind


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
@pytest.mark.parametrize("in_conversation", [False, True], ids=["plain", "conversation"])
async def test_an_update_that_is_cancelled_is_written_as_memory_has_it(
    tmp_path: Path, kept: type[Kept], *, in_conversation: bool, lazy: bool
) -> None:
    """The next update is durable when it ends, and a shutdown leaves nothing out."""

    async def visit(kept: Kept, interruption: Interruption) -> None:
        conversations = [conversation()] if in_conversation else []
        bot = build(kept.store(), *conversations, text(remember), lazy=lazy)
        await bot.app.initialize()
        await bot.app.start()
        if in_conversation:
            await bot.say("/start", 2)
        await interruption.during(lambda: bot.say("x", 2))
        await asyncio.wait_for(bot.say("y", 1), BOUND)
        memory = in_memory(bot)
        if kept.stored()["chat/1"] != {"said": ["y"]}:  # it was told that the commit was cancelled
            assert interruption.has_come
            assert [type(error) for error in bot.errors] == [WriteError]
        await end(bot)
        found = kept.stored()
        state = found.pop("conversation/order/[2,2]", None)
        assert without_empty(found) == without_empty(memory)
        assert state in ([0, ""] if in_conversation else [None])
        said = [found.get(f"{scope}/2") or {} for scope in ("chat", "user")]
        assert said in ([{"said": ["x"]}] * 2, [{}] * 2)

    assert await at_each_moment(tmp_path, kept, visit) >= 5


async def test_a_write_that_is_cancelled_is_made_all_the_same(
    tmp_path: Path, kept: type[Kept]
) -> None:
    """By the next one, or by the flush."""

    async def visit(kept: Kept, interruption: Interruption) -> None:
        persistence = KVPersistence(kept.store(), update_interval=NEVER)
        await persistence.get_chat_data()
        await persistence.update_chat_data(1, {"n": 0})
        await interruption.during(lambda: persistence.update_chat_data(1, {"n": 1}))
        await asyncio.wait_for(persistence.update_chat_data(2, {"n": 2}), BOUND)
        assert kept.stored()["chat/2"] == {"n": 2}
        await asyncio.wait_for(persistence.flush(), BOUND)
        assert kept.stored() == {"chat/1": {"n": 1}, "chat/2": {"n": 2}}

    assert await at_each_moment(tmp_path, kept, visit) > 3


async def test_a_flush_that_is_cancelled_loses_nothing(tmp_path: Path, kept: type[Kept]) -> None:
    """What was waiting is written by whoever comes next, and the file can be had by another."""

    async def visit(kept: Kept, interruption: Interruption) -> None:
        persistence = KVPersistence(kept.store(), update_interval=NEVER)
        await persistence.update_chat_data(1, {"n": 0})
        writes = [
            asyncio.ensure_future(persistence.update_chat_data(chat, {"n": chat}))
            for chat in (1, 2)
        ]
        await asyncio.sleep(0)
        await interruption.during(persistence.flush)
        told = await asyncio.wait_for(asyncio.gather(*writes, return_exceptions=True), BOUND)
        assert all(error is None or isinstance(error, WriteError) for error in told)
        assert interruption.has_come or told == [None, None]
        await asyncio.wait_for(persistence.flush(), BOUND)
        assert kept.stored() == {"chat/1": {"n": 1}, "chat/2": {"n": 2}}
        other = KVPersistence(kept.store(), update_interval=NEVER)
        assert await other.get_chat_data() == {1: {"n": 1}, 2: {"n": 2}}
        await other.flush()

    assert await at_each_moment(tmp_path, kept, visit) > 3


async def test_a_start_that_is_cancelled_can_be_repeated(tmp_path: Path, kept: type[Kept]) -> None:
    """By the same object or another one, which finds everything."""

    async def visit(kept: Kept, interruption: Interruption) -> None:
        first = KVPersistence(kept.store(), update_interval=NEVER)
        await first.update_chat_data(1, {"n": 1})
        await first.flush()
        await interruption.during(first.get_chat_data)
        await asyncio.wait_for(first.flush(), BOUND)
        second = KVPersistence(kept.store(), update_interval=NEVER)
        assert await second.get_chat_data() == {1: {"n": 1}}
        await second.flush()
        assert await first.get_chat_data() == {1: {"n": 1}}
        await first.flush()

    assert await at_each_moment(tmp_path, kept, visit) > 3


@pytest.mark.parametrize("in_conversation", [False, True], ids=["plain", "conversation"])
async def test_a_shutdown_that_is_cancelled_can_be_repeated(
    tmp_path: Path, kept: type[Kept], *, in_conversation: bool
) -> None:
    """What memory has is stored after the second."""

    async def visit(kept: Kept, interruption: Interruption) -> None:
        conversations = [conversation()] if in_conversation else []
        bot = build(kept.store(), *conversations, text(remember))
        await bot.app.initialize()
        await bot.app.start()
        await bot.say("x")
        bot.app.chat_data[1]["last"] = "word"
        await bot.app.stop()
        bot.app.mark_data_for_update_persistence(chat_ids=1)
        await interruption.during(bot.app.shutdown)
        await asyncio.wait_for(bot.app.shutdown(), BOUND)
        await flush(bot)
        assert kept.stored() == in_memory(bot)
        other = KVPersistence(kept.store(), update_interval=NEVER)
        assert await other.get_chat_data() == {1: {"said": ["x"], "last": "word"}}
        await other.flush()

    assert await at_each_moment(tmp_path, kept, visit) > 3


async def test_a_shutdown_while_a_hundred_updates_wait_is_told_all_rows(
    store: WatchedStore,
) -> None:
    """The store refuses: it ends all the same, keeps the rows, and a later flush writes them."""
    store.failure = UnavailableError("the database is locked")
    store.gate.clear()
    bot = build(store, text(remember), concurrent_updates=128)
    await bot.app.initialize()
    await bot.app.start()
    updates = [
        Update.de_json(text_update("x", chat_id=chat), bot.app.bot) for chat in range(1, 101)
    ]
    for update in updates:
        await bot.app.update_queue.put(update)
    await store.entered.wait()
    await settle()
    store.gate.set()
    await asyncio.wait_for(bot.app.stop(), BOUND)
    with pytest.raises(WriteError) as caught:
        await asyncio.wait_for(bot.app.shutdown(), BOUND)
    expected = {f"{scope}/{chat}" for scope in ("chat", "user") for chat in range(1, 101)}
    assert {*caught.value.keys} == {"bot", *expected}
    store.failure = None
    await flush(bot)
    assert {key: json.loads(text) for key, text in rows(store).items()} == in_memory(bot)


async def test_a_shutdown_while_another_program_has_the_file_is_told_all_rows(
    bot_db: Path,
) -> None:
    """As above, with a lock that SQLite waits for."""
    bot = build(SqliteStore(bot_db, busy_timeout=0.05), text(remember), concurrent_updates=128)
    await bot.app.initialize()
    await bot.app.start()
    with closing(sqlite3.connect(bot_db, isolation_level=None)) as locker:
        locker.execute("BEGIN IMMEDIATE")
        for chat in range(1, 101):
            update = Update.de_json(text_update("x", chat_id=chat), bot.app.bot)
            await bot.app.update_queue.put(update)
        await settle()
        await asyncio.wait_for(bot.app.stop(), BOUND)
        with pytest.raises(WriteError) as caught:
            await asyncio.wait_for(bot.app.shutdown(), BOUND)
        assert len(caught.value.keys) == 201
    await flush(bot)
    assert stored(bot_db) == in_memory(bot)


WRITER = """
import asyncio, signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a script ignores it
sys.path.insert(0, sys.argv[2])
from telegram import Update
from bots import text_update
from through import build, counting
from kvpersist import SqliteStore

async def say(bot, chat, number):
    update = Update.de_json(text_update("/count", chat_id=chat), bot.app.bot)
    await bot.app.process_update(update)
    print(chat, number, flush=True)

async def main():
    bot = build(SqliteStore(sys.argv[1]), counting("count"), concurrent_updates=64)
    async with bot.app:
        await bot.app.start()
        try:
            for number in range(1, sys.maxsize):
                await asyncio.gather(*(say(bot, chat, number) for chat in range(1, 9)))
        finally:
            await bot.app.stop()

asyncio.run(main())
"""


@pytest.mark.timeout(BOUND)
@pytest.mark.parametrize("lines", [1, 8, 9, 30, 77])
def test_an_interrupted_program_ends_by_itself_and_loses_nothing(bot_db: Path, lines: int) -> None:
    """Ctrl-C while updates are written: what was said to be durable is stored."""
    # As a script begins a job in the background, which `make torture` may be.
    ignoring = ["sh", "-c", "trap '' INT; exec \"$@\"", "sh"]
    command = [sys.executable, "-c", WRITER, str(bot_db), str(Path(__file__).parent)]
    with subprocess.Popen(
        [*ignoring, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        assert writer.stderr is not None
        said = [writer.stdout.readline() for _ in range(lines)]
        writer.send_signal(signal.SIGINT)
        said += writer.stdout.readlines()
        errors = writer.stderr.read()
    assert "KeyboardInterrupt" in errors
    assert "was destroyed" not in errors
    # Python 3.10 interrupts this program wherever it is, also before it awaits what it has called.
    assert "never awaited" not in errors.replace("'say' was never awaited", "")
    found = stored(bot_db)
    assert len(said) >= lines
    for chat, number in map(str.split, said):
        document = found[f"chat/{chat}"]
        assert isinstance(document, dict)
        assert document["count"] >= int(number)
