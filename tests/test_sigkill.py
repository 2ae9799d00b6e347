"""A process that is killed with SIGKILL loses nothing that was acknowledged.

KVPERSIST_KILL_ROUNDS says how often, KVPERSIST_SEED when. ``make torture`` does it for long.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from torture import RACERS, Race, Torture

ROUNDS = int(os.environ.get("KVPERSIST_KILL_ROUNDS", "24"))
SEED = int(os.environ.get("KVPERSIST_SEED", "1"))
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


def test_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    """In every round all that returned is there, no transaction is torn, and the next bot starts.

    Whatever the bot was doing: starting, writing, dropping, checkpointing, closing, backing up.
    """
    print(f"KVPERSIST_SEED={SEED} KVPERSIST_KILL_ROUNDS={ROUNDS}")  # noqa: T201  to repeat it
    torture = Torture(tmp_path, SEED)
    for _ in range(ROUNDS):
        torture.round()
    assert torture.lost == []
    assert torture.killed.total() == ROUNDS
    assert torture.done["wrote"] > ROUNDS


def test_what_is_lost_is_noticed(tmp_path: Path) -> None:
    """The rounds can tell: a row that is older than acknowledged, or gone, or half of a write."""
    torture = Torture(tmp_path, SEED)
    while not torture.done["user-dropped"] or not torture.done["wrote"]:
        torture.round()
    with closing(sqlite3.connect(torture.path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")  # all of it in one file
    assert torture._acknowledged.lost_from(torture.path) == []
    changed = tmp_path / "changed.db"
    for statement in (
        """UPDATE documents SET value = '{"n": 0}' WHERE key = 'chat/1'""",
        "UPDATE documents SET value = '0' WHERE key = 'conversation/c/[1,1]'",
        "DELETE FROM documents WHERE key = 'chat/7'",
        "DELETE FROM documents WHERE key LIKE 'user/-%'",
    ):
        shutil.copyfile(torture.path, changed)
        with closing(sqlite3.connect(changed, isolation_level=None)) as connection:
            connection.execute(statement)
            assert connection.total_changes
        assert torture._acknowledged.lost_from(changed), statement


def test_of_twenty_that_start_at_the_same_time_one_owns_the_file(tmp_path: Path) -> None:
    """Each time, by whatever name, right after the owner was killed, though its child lives on."""
    with closing(Race(tmp_path / "bot.db")) as race:
        for _ in range(4):
            assert race.run() == {"won": 1, "in-use": RACERS - 1}


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
    torture = Torture(tmp_path, SEED)
    torture.round()
    assert torture.lost == []
