"""How everything here is measured: side by side in one process, in alternating order."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from row import Spread, spread

IS_QUICK = bool(os.environ.get("BENCH_QUICK"))
"""Whether only to see that everything runs."""

Turn: TypeAlias = Callable[[int], Awaitable[float]]
"""Takes the number of the round; returns a figure, most often seconds."""
Figures: TypeAlias = dict[str, dict[int, float]]
"""What each contender reached, by round."""


def size(full: int, quick: int) -> int:
    """Return how many of something are measured."""
    return quick if IS_QUICK else full


ROUNDS = size(15, 2)
"""How often each contender has its turn."""


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
    turns: Mapping[str, Turn], rounds: int = ROUNDS, slow: Collection[str] = ()
) -> Figures:
    """Let each contender have a turn a round, in alternating order.

    The first round is for the caches and does not count. Those that are `slow` have two turns.
    The collector of garbage leaves alone what there was before, for all of them.
    """
    figures: Figures = {name: {} for name in turns}
    gc.collect()
    gc.freeze()
    try:
        for number in range(rounds + 1):
            for name in list(turns)[:: 1 if number % 2 else -1]:
                if name in slow and number not in {1, 2}:
                    continue
                figure = await turns[name](number)
                if number:
                    figures[name][number] = figure
    finally:
        gc.unfreeze()
    return figures


def ratio(figures: Figures, one: str, other: str) -> Spread:
    """Return how much more `one` took than `other`, over the rounds in which both had a turn.

    Both had it in the same round, one soon after the other, so that what else the machine did at
    that moment was the same for both.
    """
    mine, theirs = figures[one], figures[other]
    return spread(mine[number] / theirs[number] for number in mine.keys() & theirs.keys())


def ratios(figures: Figures, other: str) -> dict[str, Spread]:
    """Return `ratio` for each contender."""
    return {name: ratio(figures, name, other) for name in figures}


class Stalls:
    """Looks how long the event loop does nothing but one thing.

    Attributes:
        longest: Seconds between two of its turns.
    """

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
