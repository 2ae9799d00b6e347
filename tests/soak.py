"""Lets a bot work at full speed, with restarts, and sees whether anything grows with its work.

``make torture`` runs it too, or ``python tests/soak.py --seconds 600 --seed 1``. It says what was
done how often, and what was measured, and exits with 0 only when everything stayed as it was at
first: memory, objects, descriptors, threads, tasks, the file and its log.

The same people talk to it all the time; what it knows of them grows and shrinks, and is small at
the end of each round, when it is measured: so nothing may grow with the number of updates, or of
restarts. The first rounds are left out, since Python and PTB fill caches in them.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import random
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, fields
from pathlib import Path
from statistics import median
from typing import Any, Final

from bots import Bot
from faults import READERS_IN_TURNS, read_by_another_program
from handlers import conversation, text
from stores import stored
from telegram import Update
from telegram.ext import CallbackQueryHandler
from through import running

from kvpersist import SqliteStore
from kvpersist.stores.sqlite_log import LOG_LIMIT

CHATS: Final = 60
_IN_MEMORY: Final = 20
"""How many of them, where documents are lazy."""
_KEYBOARDS: Final = 30
_AT_ONCE: Final = 6
_SIZES: Final = [0, 100, 2000, 20_000]
_WARM_UP: Final = 3
LEAST_ROUNDS: Final = _WARM_UP + 6
_WEIGHTS: Final = {"text": 80, "order": 8, "keyboard": 8, "drop": 4}


@dataclass
class Figures:
    """What is there at the end of a round, in numbers, bytes and blocks of Python's memory."""

    objects: int
    blocks: int
    resident: int
    descriptors: int
    threads: int
    tasks: int
    file: int
    log: int
    updates: int
    """How many there were so far."""


_FLAT: Final = {"descriptors": 2, "threads": 1, "tasks": 1, "objects": 50}
"""By how many each may differ: a wal-index is kept until the next restart, and keyboards vary."""
_BLOCKS_PER_UPDATE: Final = 0.05
_BLOCKS_PER_RESTART: Final = 100
"""PTB alone leaves some 15; an application that is left has thousands."""
_BLOCKS: Final = 1500
"""Keyboards and orders are not the same at the end of each round."""
_RESIDENT: Final = 16 * 2**20
"""What the allocator keeps differs; a leak that one would notice in an hour is more."""
_PAGES: Final = 2**20


async def _talk(update: Update, context: Any) -> None:
    """Know as much of the chat and the user as they say."""
    assert update.message is not None
    assert update.message.text is not None
    _, size, number = update.message.text.split()
    for data in (context.chat_data, context.user_data):
        data["text"] = f"{number:>08}" * (int(size) // 8)
        data["list"] = [*range(int(size) // 100)]
    context.chat_data.pop("pressed", None)
    context.chat_data["count"] = context.chat_data.get("count", 0) + 1
    context.bot_data["last"] = number


async def _press(update: Update, context: Any) -> None:
    """Keep what the button says."""
    assert update.callback_query is not None
    context.chat_data["pressed"] = update.callback_query.data


class Soak:
    """Rounds of a bot that is started, works and ends, on one file.

    Attributes:
        done: How often each thing was done.
        figures: What was measured at the end of each round.
        wrong: What grew, or was lost. Must be empty.
    """

    def __init__(self, folder: Path, seed: int, *, lazy: bool) -> None:
        self.path = folder / f"soak-{lazy}.db"
        self.done: Counter[str] = Counter()
        self.figures: list[Figures] = []
        self.wrong: list[str] = []
        self._lazy = lazy
        self._chance = random.Random(seed)  # noqa: S311  it chooses deeds, not secrets
        self._counts: dict[int, int] = dict.fromkeys(range(1, CHATS + 1), 0)
        self._log = 0

    async def round(self, updates: int) -> None:
        """Start the bot, let people talk to it, measure, end it, and look at what is stored."""
        options: dict[str, Any] = {"arbitrary_callback_data": _KEYBOARDS}
        if self._lazy:
            options |= {"lazy": True, "max_documents": _IN_MEMORY}
        handlers = (text(_talk, "say"), conversation("order", 0, 1), CallbackQueryHandler(_press))
        self._log = 0
        until = self.done["updates"] + updates
        async with running(SqliteStore(self.path), *handlers, **options) as bot:
            with ExitStack() as stack:
                if self._chance.random() < 0.2:
                    self.done["rounds with others that read all the time"] += 1
                    stack.enter_context(read_by_another_program(self.path, READERS_IN_TURNS))
                await self._work(bot, until)
            await self._end_small(bot)
            self._measure()
        self.done["restarts"] += 1
        self._look()

    async def _work(self, bot: Bot, until: int) -> None:
        while self.done["updates"] < until:
            chats = self._chance.sample([*self._counts], _AT_ONCE)
            await asyncio.gather(*(self._deed(bot, chat) for chat in chats))
            bot.telegram.sent.clear()
            self._look_at_log()
            if self._chance.random() < 0.002:
                await self._back_up(bot)

    async def _deed(self, bot: Bot, chat: int) -> None:
        (deed,) = self._chance.choices([*_WEIGHTS], [*_WEIGHTS.values()])
        self.done[deed] += 1
        self.done["updates"] += 1
        if deed == "text":
            await self._say(bot, chat, self._chance.choice(_SIZES))
        elif deed == "order":
            for words in ("/start", "one", "two"):
                await bot.say(words, chat)
        elif deed == "keyboard":
            number = self.done["updates"]
            await bot.press(await bot.ask({"n": number}, {"m": number}, chat_id=chat), 1)
        else:
            self._counts[chat] = 0
            bot.app.drop_chat_data(chat)
            bot.app.drop_user_data(chat)
            await bot.app.update_persistence()

    async def _say(self, bot: Bot, chat: int, size: int) -> None:
        self._counts[chat] += 1
        await bot.say(f"say {size} {self.done['updates']}", chat)

    async def _back_up(self, bot: Bot) -> None:
        self.done["backups"] += 1
        copy = self.path.with_name("copy.db")
        persistence: Any = bot.app.persistence
        await persistence.backup(copy)
        copy.unlink()

    async def _end_small(self, bot: Bot) -> None:
        for chat in self._counts:
            await self._say(bot, chat, 0)

    def _look_at_log(self) -> None:
        self._log = max(self._log, Path(f"{self.path}-wal").stat().st_size)

    def _measure(self) -> None:
        gc.collect()
        objects = Counter(str(type(each).__module__).split(".")[0] for each in gc.get_objects())
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        figures = Figures(
            objects=objects["kvpersist"],
            blocks=sys.getallocatedblocks(),
            resident=pages * resource.getpagesize(),
            descriptors=len(os.listdir("/proc/self/fd")),  # noqa: PTH208  names are enough
            threads=threading.active_count(),
            tasks=len(asyncio.all_tasks()),
            file=self.path.stat().st_size,
            log=self._log,
            updates=self.done["updates"],
        )
        self.figures.append(figures)

    def _look(self) -> None:
        rows: dict[str, Any] = stored(self.path)
        for chat, count in self._counts.items():
            if (there := rows.get(f"chat/{chat}", {}).get("count")) != count:
                self.wrong.append(f"chat/{chat}: {there} in place of {count}")

    def compare(self) -> dict[str, tuple[float, float]]:
        """Note in `wrong` what grew; return the medians of the first and of the last third."""
        measured = self.figures[_WARM_UP:]
        third = len(measured) // 3
        compared = {}
        for figure in fields(Figures):
            first, last = (
                median(getattr(each, figure.name) for each in some)
                for some in (measured[:third], measured[-third:])
            )
            compared[figure.name] = first, last
        updates = compared["updates"][1] - compared["updates"][0]
        most = {name: compared[name][0] + slack for name, slack in _FLAT.items()}
        allowed = _BLOCKS_PER_RESTART * (len(measured) - third) + _BLOCKS_PER_UPDATE * updates
        most["blocks"] = compared["blocks"][0] + _BLOCKS + allowed
        most["resident"] = compared["resident"][0] + _RESIDENT
        most["file"] = compared["file"][0] * 1.25 + _PAGES
        for name, bound in most.items():
            if compared[name][1] > bound:
                self.wrong.append(f"{name} grew: {compared[name]}, at most {bound:.0f}")
        largest = max(each.log for each in self.figures)
        if largest > 4 * LOG_LIMIT:
            self.wrong.append(f"the log had {largest} bytes")
        return compared


async def soak(seconds: float, seed: int, updates: int) -> list[str]:
    """Let bots work for some time, plain and lazy ones in turns; return what was wrong."""
    say(f"bots at full speed, from seed {seed}, for {seconds:g} s")
    until = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as name:
        soaks = [Soak(Path(name), seed, lazy=lazy) for lazy in (False, True)]
        while time.monotonic() < until or len(soaks[0].figures) < LEAST_ROUNDS:
            for each in soaks:
                await each.round(updates)
        for each, kind in zip(soaks, ("plain dicts", "lazy"), strict=True):
            compared = each.compare()
            say(f"{kind}:", dict(each.done))
            for figure, (first, last) in compared.items():
                say(f"{figure:>12}: {first:>12,.0f} at first, {last:>12,.0f} at the end")
            say(f"{'largest log':>12}: {max(each.log for each in each.figures):>12,}")
    wrong = [fault for each in soaks for fault in each.wrong]
    say("wrong:", wrong or 0)
    return wrong


def say(*words: object) -> None:
    """Tell the person."""
    print(*words, flush=True)  # noqa: T201  it talks to a person


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description="Let bots work, and see whether anything grows.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--updates", type=int, default=500, help="in each round")
    given = parser.parse_args()
    return 1 if asyncio.run(soak(given.seconds, given.seed, given.updates)) else 0


if __name__ == "__main__":
    sys.exit(main())
