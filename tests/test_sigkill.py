"""A process that is killed with SIGKILL loses nothing that was acknowledged."""

from __future__ import annotations

import json
import os
import random
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

ROUNDS = int(os.environ.get("KVPERSIST_KILL_ROUNDS", "24"))
SEED = int(os.environ.get("KVPERSIST_SEED", "1"))
WRITER = """
import asyncio, sys
from kvpersist import KVPersistence

persistence = KVPersistence(sys.argv[1])

async def write(chat, number):
    await persistence.update_chat_data(chat, {"n": number, "text": "x" * (number % 3000)})
    await persistence.update_conversation(name="c", key=(chat, 1), new_state=number)
    print(chat, number, flush=True)

async def main():
    chats = await persistence.get_chat_data()
    await persistence.get_conversations("c")
    start = max((chat["n"] for chat in chats.values()), default=0)
    print("started", len(chats), flush=True)
    for number in range(start + 1, sys.maxsize):
        await asyncio.gather(*(write(chat, number) for chat in range(8)))

asyncio.run(main())
"""


def run_and_kill(path: Path, lines: int) -> list[str]:
    """Run the writer, kill it after that many lines of output, return all that it said."""
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        said = [writer.stdout.readline() for _ in range(lines)]
        writer.kill()
        said += writer.stdout.readlines()
    assert writer.returncode == -9
    return [line for line in said if line.endswith("\n")]


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """In every round each row is at least as new as the last write that returned, none is torn."""
    path = tmp_path / "bot.db"
    chance = random.Random(SEED)  # noqa: S311  it chooses moments, not secrets
    print(f"KVPERSIST_SEED={SEED} KVPERSIST_KILL_ROUNDS={ROUNDS}")  # noqa: T201  for a replay
    acknowledged: dict[int, int] = {}
    for _ in range(ROUNDS):
        first, *lines = run_and_kill(path, chance.randrange(1, 120))
        assert first == f"started {len(acknowledged)}\n" or not acknowledged
        for line in lines:
            chat, number = map(int, line.split())
            acknowledged[chat] = number
        with closing(sqlite3.connect(path)) as reader:
            rows = dict(reader.execute("SELECT key, value FROM documents"))
            assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        for chat, number in acknowledged.items():
            document = json.loads(rows[f"chat/{chat}"])
            assert document["n"] >= number
            assert document["text"] == "x" * (document["n"] % 3000)
            assert json.loads(rows[f"conversation/c/[{chat},1]"]) >= number


@pytest.mark.parametrize("moment", range(4))
def test_a_start_that_is_killed_can_be_repeated(tmp_path: Path, moment: int) -> None:
    """A bot that is killed while it opens or creates its file opens it the next time."""
    path = tmp_path / "bot.db"
    command = [sys.executable, "-X", "importtime", "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as writer:
        assert writer.stderr is not None
        while b"kvpersist.persistence" not in writer.stderr.readline():
            pass
        for _ in range(moment * 20_000):
            pass
        writer.kill()
        writer.communicate()
    assert run_and_kill(path, 1)[0].startswith("started ")
