"""A process that is killed with SIGKILL loses nothing that was acknowledged.

KVPERSIST_KILL_ROUNDS says how often, KVPERSIST_SEED how many lines a process may say each time.
"""

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

KILLED_START = """
import asyncio, os, signal, sqlite3, sys
from kvpersist import KVPersistence
from kvpersist.stores import sqlite_file

path, statement, times = sys.argv[1], sys.argv[2], int(sys.argv[3])
connect = sqlite3.connect

def kill(text):
    global times
    times -= text.strip().startswith(statement)
    if times == 0:
        os.kill(os.getpid(), signal.SIGKILL)

def connect_traced(*args, **kwargs):
    connection = connect(*args, **kwargs)
    connection.set_trace_callback(kill)
    return connection

sqlite_file.sqlite3.connect = connect_traced

async def main():
    persistence = KVPersistence(path)
    await persistence.update_chat_data(1, {"n": 1})
    await persistence.flush()

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
    print(f"KVPERSIST_SEED={SEED} KVPERSIST_KILL_ROUNDS={ROUNDS}")  # noqa: T201  to repeat it
    acknowledged: dict[int, int] = {}
    for _ in range(ROUNDS):
        first, *lines = run_and_kill(path, chance.randrange(1, 120))
        assert int(first.split()[1]) >= len(acknowledged)
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


@pytest.mark.parametrize(
    ("statement", "times"),
    [
        ("PRAGMA application_id", 1),
        ("BEGIN EXCLUSIVE", 1),
        ("CREATE TABLE", 1),
        ("PRAGMA user_version = ", 1),
        ("PRAGMA journal_mode", 1),
        ("PRAGMA synchronous", 1),
        ("BEGIN IMMEDIATE", 1),
        ("INSERT INTO documents", 1),
        ("COMMIT", 1),
        ("COMMIT", 2),
        ("PRAGMA wal_checkpoint", 1),
    ],
)
def test_a_start_that_is_killed_can_be_repeated(tmp_path: Path, statement: str, times: int) -> None:
    """Killed as it is about to run any statement of its first start, a bot starts the next time."""
    path = tmp_path / "bot.db"
    command = [sys.executable, "-c", KILLED_START, str(path), statement, str(times)]
    assert subprocess.run(command, timeout=60, check=False).returncode == -9
    assert run_and_kill(path, 1)[0].startswith("started ")
