"""Kills bots with SIGKILL, again and again, and sees whether anything acknowledged was lost.

``make torture SECONDS=600 SEED=1``, or ``python tests/torture.py --seconds 600 --seed 1``. It says
what was tried how often, and exits with 0 only when nothing was lost.

A bot opens the file, loads, writes, drops, checkpoints, closes, opens again and backs up, in an
order of chance, and says on a pipe what it is about to do, and what has returned, before it goes
on. It is killed after a number of lines, and a moment, of chance. Then a copy of what is on the
disk is looked at, and the next bot starts on the files as they are.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeAlias

from kvpersist import KVPersistence, SqliteStore, StoreInUseError
from kvpersist.stores.sqlite_backup import PREFIX

CHATS: Final = 8
RACERS: Final = 20
Persistence: TypeAlias = KVPersistence[Any, Any, Any]
_MOST_LINES: Final = 120
_LONGEST_MOMENT: Final = 0.01
_WEIGHTS: Final = {"write": 60, "drop": 15, "checkpoint": 8, "close": 10, "backup": 7}


def say(*words: object) -> None:
    """Tell the parent."""
    print(*words, flush=True)  # noqa: T201  that is the pipe


async def bot(path: Path, seed: str) -> None:
    """Work until killed."""
    chance = random.Random(seed)  # noqa: S311  it chooses deeds, not secrets
    persistence = KVPersistence(path)
    number = await load(persistence)
    while True:
        number += 1
        (deed,) = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        say("at", deed)
        if deed == "write":
            size = chance.choice([10, 300, 5000, 200_000])
            await asyncio.gather(*(write(persistence, chat, number, size) for chat in range(CHATS)))
        elif deed == "drop":
            await write_and_drop(persistence, number)
        elif deed == "checkpoint":
            await asyncio.to_thread(checkpoint, path)
        elif deed == "close":
            await persistence.flush()
            number = max(number, await load(persistence))
        else:
            name = f"backup-{number}.db"
            say("backs-up", name)
            await persistence.backup(path.with_name(name))
            say("backed-up", name)


async def load(persistence: Persistence) -> int:
    """Start, and return the number of the newest write."""
    say("at", "start")
    chats = await persistence.get_chat_data()
    users = await persistence.get_user_data()
    await persistence.get_conversations("c")
    say("loaded", len(chats))
    # Of a user that was dropped the other one, of the same number, is left: no number comes twice.
    numbers: list[int] = [0, *map(abs, users), *(chat["n"] for chat in chats.values())]
    return max(numbers)


async def write(persistence: Persistence, chat: int, number: int, size: int) -> None:
    """Write two rows that share a transaction, and say so when it has returned."""
    await asyncio.gather(
        persistence.update_chat_data(chat, {"n": number, "text": "x" * size}),
        persistence.update_conversation(name="c", key=(chat, 1), new_state=number),
    )
    say("wrote", chat, number)


async def write_and_drop(persistence: Persistence, number: int) -> None:
    """Write two rows, drop one of them."""
    await persistence.update_user_data(number, {})
    say("user-wrote", number)
    await persistence.update_user_data(-number, {})
    say("user-wrote", -number)
    say("user-drops", number)
    await persistence.drop_user_data(number)
    say("user-dropped", number)


def checkpoint(path: Path) -> None:
    """Move the log into the file, as another connection may at any time."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


@dataclass
class Acknowledged:
    """What a bot has said to be durable."""

    chats: dict[int, int] = field(default_factory=dict)
    users: dict[int, bool] = field(default_factory=dict)
    """Whether each user has a row; one that is being dropped may or may not."""

    def hear(self, words: list[str]) -> None:
        """Take note of one line."""
        match words:
            case ["wrote", chat, number]:
                self.chats[int(chat)] = int(number)
            case ["user-wrote", number]:
                self.users[int(number)] = True
            case ["user-drops", number]:
                del self.users[int(number)]
            case ["user-dropped", number]:
                self.users[int(number)] = False

    def copy(self) -> Acknowledged:
        """Return what was acknowledged so far."""
        return Acknowledged(dict(self.chats), dict(self.users))

    def lost_from(self, path: Path) -> list[str]:
        """Return what is wrong with a file."""
        with closing(sqlite3.connect(path)) as reader:
            integrity = reader.execute("PRAGMA integrity_check").fetchall()
            rows = dict(reader.execute("SELECT key, value FROM documents"))
        lost = [] if integrity == [("ok",)] else [f"{path.name}: {integrity}"]
        for chat, number in self.chats.items():
            there = json.loads(rows.get(f"chat/{chat}", '{"n": -1}'))["n"]
            state = json.loads(rows.get(f"conversation/c/[{chat},1]", "-1"))
            if there < number or there != state:
                lost.append(f"{path.name}: chat/{chat} {number=} {there=} {state=}")
        for user, is_there in self.users.items():
            if (f"user/{user}" in rows) != is_there:
                lost.append(f"{path.name}: user/{user} {is_there=}")
        return lost


class Torture:
    """Rounds of bots that are killed, in one folder.

    Attributes:
        killed: How often a bot was killed at each deed.
        done: What bots have said, how often each.
        lost: What was lost, or was wrong. Must be empty.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        self.path = folder / "bot.db"
        self.killed: Counter[str] = Counter()
        self.done: Counter[str] = Counter()
        self.lost: list[str] = []
        self._seed = seed
        self._chance = random.Random(seed)  # noqa: S311  it chooses moments, not secrets
        self._acknowledged = Acknowledged()

    def round(self) -> None:
        """Have a bot start, kill it, and look at what it leaves."""
        seed = f"{self._seed} {self._chance.random()}"
        command = [sys.executable, __file__, "--bot", str(self.path), "--seed", seed]
        lines = self._chance.randrange(1, _MOST_LINES)
        if self._chance.random() < 0.2:
            lines = 1  # killed as it starts
        with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as killed:
            assert killed.stdout is not None
            assert killed.stderr is not None
            said = [killed.stdout.readline() for _ in range(lines)]
            time.sleep(self._chance.random() * _LONGEST_MOMENT)
            killed.kill()
            said += killed.stdout.readlines()
            errors = killed.stderr.read()
        if killed.returncode != -signal.SIGKILL or errors:
            self.lost.append(f"a bot failed: {errors}")
        self._hear([line.split() for line in said if line.endswith("\n")])

    def _hear(self, said: list[list[str]]) -> None:
        deed = "start"
        backups: dict[str, Acknowledged] = {}
        for words in said:
            self._acknowledged.hear(words)
            if words[0] == "at":
                deed = words[1]
            else:
                self.done[words[0]] += 1
            if words[0] == "backs-up":
                backups[words[1]] = self._acknowledged.copy()
            if words[0] == "backed-up" and not self.path.with_name(words[1]).exists():
                self.lost.append(f"{words[1]} is not there")
        self.killed[deed] += 1
        self._look(backups)

    def _look(self, backups: dict[str, Acknowledged]) -> None:
        folder = self.path.parent
        for name, acknowledged in backups.items():
            if folder.joinpath(name).exists():
                self.lost += acknowledged.lost_from(folder / name)
        for file in [*folder.glob("backup-*"), *folder.glob(f"{PREFIX}*")]:
            file.unlink()
        # A copy, so that the next bot, and nobody else, takes up what this one has left.
        with tempfile.TemporaryDirectory(dir=folder) as other:
            for name in ("bot.db", "bot.db-wal", "bot.db-journal"):
                if folder.joinpath(name).exists():
                    shutil.copyfile(folder / name, Path(other, name))
            if self._acknowledged.chats:
                self.lost += self._acknowledged.lost_from(Path(other, "bot.db"))


async def racer(names: list[str]) -> None:
    """Try to open a file whenever told to; keep it, and a forked child, until killed."""
    stores = []
    while True:
        say("ready")
        if not (name := await asyncio.to_thread(sys.stdin.readline)):
            return
        store = SqliteStore(names[int(name)])
        try:
            await store.open()
        except StoreInUseError:
            say("in-use")
        else:
            stores.append(store)
            child = os.fork()
            if child == 0:
                signal.pause()
            say("won", child)


class Race:
    """Processes that all want the same file, by several of its names, at the same time."""

    def __init__(self, path: Path, racers: int = RACERS) -> None:
        link = path.with_name("link.db")
        link.symlink_to(path.name)
        self._folder = path.parent
        self._names = [str(path), path.name, str(link), f"./{link.name}"]
        self._racers = [self._start() for _ in range(racers)]
        self._children: list[int] = []

    def run(self) -> Counter[str]:
        """Have all of them try, and kill who wins; return how many said what."""
        for racer in self._racers:
            _expect(racer, "ready")
        for at, racer in enumerate(self._racers):
            assert racer.stdin is not None
            racer.stdin.write(f"{at % len(self._names)}\n")
            racer.stdin.flush()
        said = [_expect(racer, "won", "in-use") for racer in self._racers]
        for at, words in enumerate(said):
            if words[0] == "won":
                self._children.append(int(words[1]))  # it lives on, and must not keep the lock
                _kill(self._racers[at])
                self._racers[at] = self._start()
        return Counter(words[0] for words in said)

    def close(self) -> None:
        """End all processes."""
        for racer in self._racers:
            _kill(racer)
        for child in self._children:
            os.kill(child, signal.SIGKILL)

    def _start(self) -> subprocess.Popen[str]:
        command = [sys.executable, __file__, "--racer", *self._names]
        return subprocess.Popen(
            command, cwd=self._folder, stdin=-1, stdout=-1, stderr=subprocess.DEVNULL, text=True
        )


def _expect(racer: subprocess.Popen[str], *words: str) -> list[str]:
    assert racer.stdout is not None
    said = racer.stdout.readline().split()
    if not said or said[0] not in words:
        raise AssertionError(f"a racer said {said} in place of {words}")
    return said


def _kill(racer: subprocess.Popen[str]) -> None:
    racer.kill()
    racer.wait()
    for pipe in (racer.stdin, racer.stdout):
        assert pipe is not None
        pipe.close()


def torture(seconds: float, seed: int) -> list[str]:
    """Kill bots for some time, with races of starts every 25 rounds; return what was lost."""
    say(f"bots that are killed, from seed {seed}, for {seconds:g} s")
    until = time.monotonic() + seconds
    races: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rounds = Torture(folder, seed)
        while time.monotonic() < until and not rounds.lost:
            rounds.round()
            if rounds.killed.total() % 25 == 1:
                with (
                    tempfile.TemporaryDirectory() as other,
                    closing(Race(Path(other, "bot.db"))) as race,
                ):
                    for _ in range(5):
                        said = race.run()
                        races["races"] += 1
                        races["started at the same time"] += said.total()
                        if said["won"] != 1:
                            rounds.lost.append(f"{said['won']} processes own the file")
    say("killed at:", dict(rounds.killed), "in all", rounds.killed.total())
    say("bots said:", dict(rounds.done))
    say("one owner:", dict(races))
    say("lost:", rounds.lost or 0)
    return rounds.lost


def main() -> int:
    """Be who the arguments say."""
    parser = argparse.ArgumentParser(description="Kill bots, and see whether anything was lost.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", default="1")
    parser.add_argument("--bot", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--racer", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.bot:
        asyncio.run(bot(given.bot, given.seed))
    elif given.racer:
        asyncio.run(racer(given.racer))
    else:
        return 1 if torture(given.seconds, int(given.seed)) else 0
    return 0


if __name__ == "__main__":
    sys.exit(main())
