"""A bot that works for long takes no more of anything than at first: the short form of soak.py.

KVPERSIST_SEED, which a failure tells, has it do the same again.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from soak import LEAST_ROUNDS, Figures, Soak

SEED = int(os.environ.get("KVPERSIST_SEED", "1"))
MIB = 2**20


@pytest.mark.parametrize("lazy", [False, True], ids=["plain", "lazy"])
async def test_a_bot_takes_no_more_than_at_first(tmp_path: Path, *, lazy: bool) -> None:
    """Memory, objects, descriptors, threads, tasks and the file, over updates and restarts."""
    print(f"KVPERSIST_SEED={SEED}")  # noqa: T201  to repeat it
    soak = Soak(tmp_path, SEED, lazy=lazy)
    for _ in range(LEAST_ROUNDS):
        await soak.round(updates=60)
    soak.compare()
    assert soak.wrong == []
    assert soak.done["restarts"] == LEAST_ROUNDS


@pytest.mark.parametrize(
    "grows", ["objects", "blocks", "resident", "descriptors", "threads", "tasks", "file", "log"]
)
def test_what_grows_is_noticed(tmp_path: Path, grows: str) -> None:
    """Each figure has a bound that can fail, and those that do not grow keep it."""
    soak = Soak(tmp_path, SEED, lazy=False)
    for number in range(LEAST_ROUNDS):
        figures = Figures(100, 200_000, 50 * MIB, 16, 3, 4, 4 * MIB, 4 * MIB, number * 1000)
        first = getattr(figures, grows)
        setattr(figures, grows, first + number * max(10, 2 * first))
        soak.figures.append(figures)
    soak.compare()
    (wrong,) = soak.wrong
    assert wrong.startswith((f"{grows} grew", f"the {grows} had"))
