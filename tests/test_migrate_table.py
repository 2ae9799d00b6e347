"""The example that moves a hand-made table: all of it, or nothing."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import migrate_table
import pytest
from stores import stored

EXAMPLE = Path(__file__).parents[1] / "examples" / "migrate_table.py"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A file with the usual table."""
    path = tmp_path / "old.db"
    with closing(sqlite3.connect(path)) as old, old:
        old.execute(
            "CREATE TABLE messages "
            "(id INTEGER PRIMARY KEY, chat_id INTEGER, message_ts TEXT, message TEXT)"
        )
        rows = [
            (n % 205 - 3, f"2026-11-23T14:49:{n % 60:02}+00:00", f"text {n}") for n in range(999)
        ]
        sql = "INSERT INTO messages (chat_id, message_ts, message) VALUES (?, ?, ?)"
        old.executemany(sql, rows)
    return path


def test_each_chat_becomes_a_document(table: Path, tmp_path: Path) -> None:
    """With its messages in their order; the table stays as it is."""
    before = table.read_bytes()
    command = [sys.executable, str(EXAMPLE), str(table), str(tmp_path / "bot.db")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "moved 999 messages of 205 chats\n"
    rows = stored(tmp_path / "bot.db")
    assert rows["chat/-3"] == {
        "messages": [
            {"at": f"2026-11-23T14:49:{n % 60:02}+00:00", "text": f"text {n}"}
            for n in range(0, 999, 205)
        ]
    }
    assert len(rows) == 205
    assert table.read_bytes() == before


async def test_nothing_is_overwritten(table: Path, tmp_path: Path) -> None:
    """And nothing is left of a move that did not end well."""
    (tmp_path / "bot.db").write_text("mine")
    with pytest.raises(FileExistsError):
        await migrate_table.move(table, tmp_path / "bot.db")
    assert (tmp_path / "bot.db").read_text() == "mine"


async def test_what_differs_is_not_kept(
    table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is compared with the table, not with what was meant to be written."""
    seen: list[int] = []
    chats_of = migrate_table.chats_of

    def other(old: sqlite3.Connection) -> object:
        seen.append(1)
        return chats_of(old) if len(seen) == 1 else iter([(1, {"messages": []})])

    monkeypatch.setattr(migrate_table, "chats_of", other)
    with pytest.raises(ValueError, match="read again"):
        await migrate_table.move(table, tmp_path / "bot.db")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.db"]
