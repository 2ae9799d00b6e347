"""A power cut at any moment loses nothing that was acknowledged. See `power_cut` for the how.

KVPERSIST_SEED says what a cut keeps; KVPERSIST_CUTS how many cuts there are at each moment.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections import Counter
from pathlib import Path

import pytest
from faults import rows_of_a_sound_file, transaction
from power_cut import Disk, Step, lay_out, recorded

SEED = int(os.environ.get("KVPERSIST_SEED", "1"))
CUTS = int(os.environ.get("KVPERSIST_CUTS", "1"))
KEPT = (0.0, 0.5, 0.95, 1.0)
"""Which part of what was not synced a power cut keeps: nothing, some, nearly all, all."""


def work(path: Path, numbers: range, *, closes: bool) -> list[Step]:
    """Write some transactions, close and open the store between them, return what was done."""
    return asyncio.run(_work(path, numbers, closes=closes))


async def _work(path: Path, numbers: range, *, closes: bool) -> list[Step]:
    with recorded(path) as (store, recorder):
        await store.open()
        for number in numbers:
            await store.apply(transaction(number))
            recorder.note("acknowledged", at=number)
            if closes and number % 7 == 0:
                await store.close()
                await store.open()
        await store.close()
    return recorder.steps


def found(path: Path) -> int:
    """Open what a power cut left, as a bot does, and return the transaction that it is at."""
    if not (rows := rows_of_a_sound_file(path)):
        return 0
    number = int(json.loads(rows["chat/2"])["n"])
    expected = {key: text for key, text in transaction(number).items() if text is not None}
    users = {f"user/{n}": b'{"n":%d}' % n for n in range(1, number + 1)}
    assert rows == expected | users, "a mix of two transactions"
    return number


def cut_everywhere(
    steps: list[Step], folder: Path, chance: random.Random, acknowledged: int = 0
) -> Counter[str]:
    """Cut the power after each step, in several ways; return how often after which kind."""
    disk = Disk()
    path = folder / "bot.db"
    cuts: Counter[str] = Counter()
    newest = max(step.at for step in steps if step.kind == "acknowledged")
    is_laid_out = False
    for step in steps:
        disk.do(step)
        if step.kind == "acknowledged":
            acknowledged = step.at
        is_laid_out = is_laid_out or (step.kind, step.name) == ("sync", "")
        for kept in KEPT * CUTS if is_laid_out else ():
            lay_out(folder, disk.cut(chance, kept))
            number = found(path)
            assert acknowledged <= number <= min(newest, acknowledged + 1), (step, kept)
            cuts[step.kind] += 1
    return cuts


def test_a_power_cut_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    """After each write, sync, removal: from the creation, over checkpoints and closes, to the end.

    The next start opens what is left, finds whole transactions, and all that were acknowledged.
    """
    (tmp_path / "made").mkdir()
    steps = work(tmp_path / "made" / "bot.db", range(1, 22), closes=True)
    cuts = cut_everywhere(steps, tmp_path / "left", random.Random(SEED))  # noqa: S311
    print(f"KVPERSIST_SEED={SEED} KVPERSIST_CUTS={CUTS}: {cuts}")  # noqa: T201  to repeat it
    assert {"create", "write", "truncate", "sync", "delete", "acknowledged"} <= cuts.keys()
    assert cuts["write"] > 500


@pytest.mark.parametrize("number", range(3))
def test_a_power_cut_after_a_power_cut_loses_nothing(tmp_path: Path, number: int) -> None:
    """A start that takes up what a cut has left may be cut itself."""
    chance = random.Random(f"{SEED} {number}")  # noqa: S311  it chooses moments, not secrets
    (tmp_path / "made").mkdir()
    path = tmp_path / "made" / "bot.db"
    steps = work(path, range(1, 6), closes=False)
    disk = Disk()
    for step in steps[: chance.randrange(len(steps) // 2, len(steps))]:
        disk.do(step)
    lay_out(path.parent, disk.cut(chance, 0.5))
    lay_out(tmp_path / "same", {file.name: file.read_bytes() for file in path.parent.iterdir()})
    start = found(tmp_path / "same" / "bot.db")
    steps = work(path, range(start + 1, start + 6), closes=False)
    assert cut_everywhere(steps, tmp_path / "left", chance, start)["write"] > 50


def test_the_simulator_finds_what_is_not_synced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a store that does not wait for the disk, acknowledged writes are lost: it can tell."""
    monkeypatch.setattr("power_cut._SYNCHRONOUS", "NORMAL")
    steps = work(tmp_path / "bot.db", range(1, 5), closes=False)
    with pytest.raises(AssertionError):
        cut_everywhere(steps, tmp_path / "left", random.Random(SEED))  # noqa: S311


def test_a_write_is_recorded_as_it_was_made(tmp_path: Path) -> None:
    """Played to its end the recording is the file, byte for byte."""
    path = tmp_path / "made" / "bot.db"
    path.parent.mkdir()
    steps = work(path, range(1, 22), closes=True)
    disk = Disk()
    for step in steps:
        disk.do(step)
    (data,) = disk.cut(random.Random(SEED), 1.0).values()  # noqa: S311
    assert data == path.read_bytes()
