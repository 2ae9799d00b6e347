"""How everything here is measured: side by side in one process, in alternating order, medians."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROUNDS = int(os.environ.get("BENCH_ROUNDS", "15"))
"""How often each contender has its turn."""

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    """One line of the table: what was done, what it cost, what the goal is.

    Attributes:
        work: What was done.
        figure: The figure that has a goal; None for a line that only compares.
        goal: The goal, with its comparison, for example ``<= 1.2``; empty if there is none.
        unit: What the figure is, for example ``x the limit``.
        times: Milliseconds of each contender: the median.
        spread: Milliseconds of each contender: the quartiles.
        note: What a reader must know.
    """

    work: str
    figure: float | None = None
    goal: str = ""
    unit: str = ""
    times: dict[str, float] = field(default_factory=dict)
    spread: dict[str, tuple[float, float]] = field(default_factory=dict)
    note: str = ""

    @property
    def is_reached(self) -> bool | None:
        """Whether the figure is at the goal; None without a goal."""
        if self.figure is None or not self.goal:
            return None
        comparison, _, limit = self.goal.partition(" ")
        below = self.figure <= float(limit)
        return below if comparison == "<=" else self.figure >= float(limit)

    def to_json(self) -> dict[str, object]:
        return {**asdict(self), "is_reached": self.is_reached}


def report(rows: list[Row]) -> None:
    """Hand the rows to the program that started this one, as its last line."""
    print("ROWS " + json.dumps([asdict(row) for row in rows]), flush=True)


def documents(count: int) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield chats of 0.8 KB each: ids and data."""
    return ((1_000_000 + number, document(number)) for number in range(count))


def document(number: int, messages: int = 8) -> dict[str, Any]:
    """Return the data of one chat: 0.8 KB as JSON with 8 messages, 10 KB with 128."""
    return {
        "name": f"user {number}",
        "messages": [
            {"at": "2026-11-23T14:49:13+00:00", "text": f"this is message {at}", "n": at}
            for at in range(messages)
        ],
        "count": 0,
        "flags": [True, False, None],
        "score": 1.5,
        "about": "Somebody who likes to talk to bots, and about whom 0.8 KB are known.",
    }


@contextmanager
def folder() -> Iterator[Path]:
    """Give a folder in memory, so that the code is measured and not the disk."""
    memory = Path("/dev/shm")  # noqa: S108  mkdtemp makes a folder of its own there
    parent = os.environ.get("BENCH_DIR") or (memory if memory.is_dir() else None)
    path = Path(tempfile.mkdtemp(prefix="kvpersist-bench-", dir=parent))
    try:
        yield path
    finally:
        shutil.rmtree(path)


async def side_by_side(
    turns: Mapping[str, Callable[[int], Awaitable[float]]],
    rounds: int = ROUNDS,
    slow: Collection[str] = (),
) -> dict[str, list[float]]:
    """Let each contender have a turn a round, in alternating order; return the seconds of each.

    Those that are `slow` have two turns altogether.
    """
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    gc.collect()
    gc.freeze()
    try:
        for number in range(rounds + 1):
            for name in list(turns)[:: 1 if number % 2 else -1]:
                if name in slow and number not in {1, 2}:
                    continue
                taken = await turns[name](number)
                if number:  # the first round is for the caches
                    seconds[name].append(taken)
    finally:
        gc.unfreeze()
    return seconds


def summary(seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """Return the `times` and `spread` of a row."""
    return {
        "times": {name: 1000 * statistics.median(taken) for name, taken in seconds.items()},
        "spread": {name: _quartiles(taken) for name, taken in seconds.items()},
    }


def ratio(seconds: Mapping[str, list[float]], one: str, other: str) -> float:
    """Return how much longer `one` took than `other`: the median over the rounds.

    Both had their turn in each round, one right after the other, so that what else the machine
    did at that moment was the same for both.
    """
    return statistics.median(
        mine / theirs for mine, theirs in zip(seconds[one], seconds[other], strict=True)
    )


def _quartiles(taken: list[float]) -> tuple[float, float]:
    if len(taken) < 2:
        return 1000 * taken[0], 1000 * taken[0]
    low, _, high = statistics.quantiles(taken, n=4)
    return 1000 * low, 1000 * high


@contextmanager
def stopwatch() -> Iterator[Callable[[], float]]:
    """Give what returns the seconds since the start."""
    start = time.perf_counter()
    yield lambda: time.perf_counter() - start


class Stalls:
    """Looks how long the event loop does nothing but one thing: a timer that should be on time."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Stalls:  # noqa: PYI034  Self is of Python 3.11
        self._task = asyncio.create_task(self._tick())
        await asyncio.sleep(0.005)
        self.longest = 0.0
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._task is not None
        await asyncio.sleep(0.002)
        self._task.cancel()

    async def _tick(self) -> None:
        last = time.perf_counter()
        while True:
            await asyncio.sleep(0)
            now = time.perf_counter()
            self.longest = max(self.longest, now - last)
            last = now


def resident() -> int:
    """Return the bytes of memory that this process has right now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def available_memory() -> int:
    """Return the bytes of memory that programs may still take."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable"):
            return 1024 * int(line.split()[1])
    return 0


def say(text: str) -> None:
    """Tell a person who waits what is going on."""
    print(text, file=sys.stderr, flush=True)
