"""purge: what is of no use any more goes, when it is asked for, and nothing else."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from command import Make, documents, file_of, run, said

from kvpersist.cli import purging

ROWS = {
    "bot": "{}",
    "chat/1": "{}",
    "chat/2": '{"a":1}',
    "conversation/order/[1,1]": "-1",
    "conversation/order/[2,2]": "null",
    "conversation/order/[3,3]": '"PHOTO"',
    "user/1": "{}",
    "callback/5f": '{"queries":{}}',
}
GONE = {
    "--ended": {"conversation/order/[1,1]", "conversation/order/[2,2]"},
    "--empty": {"chat/1", "user/1"},
    "--untouched=0s": {"chat/1", "chat/2", "user/1"},
}


@pytest.mark.parametrize("kind", GONE)
def test_what_is_named_is_removed(kind: str, place: Make) -> None:
    """After it was listed, with --dry-run, as long as one likes."""
    at = place(ROWS)
    dry = documents("purge", at.name, kind, "--dry-run")
    assert {line["key"] for line in dry} == GONE[kind]
    assert not any(line["removed"] for line in dry)
    assert "would remove" in said("purge", at.name, kind, "--dry-run")
    assert len(at.all_columns()) == len(ROWS)
    assert "nobody to ask" in said("purge", at.name, kind, code=2)
    assert f"{len(GONE[kind])} rows" in said("purge", at.name, kind, "--yes")
    assert {key for key, *_ in at.all_columns()} == {*ROWS} - GONE[kind]
    assert documents("purge", at.name, kind) == []


def test_what_was_written_lately_stays(tmp_path: Path) -> None:
    """By the row's own time."""
    at = file_of(tmp_path, ROWS)
    with closing(sqlite3.connect(at.path)) as other, other:
        other.execute("UPDATE documents SET updated_at = 0 WHERE key IN ('chat/2', 'bot')")
    run("purge", at.name, "--untouched", "30d", "--empty", "--yes")
    assert {key for key, *_ in at.all_columns()} == {*ROWS} - {"chat/1", "chat/2", "user/1"}


def test_something_must_be_named(tmp_path: Path) -> None:
    """Or nothing is removed."""
    assert "say what is to be removed" in said("purge", tmp_path / "bot.db", "--yes", code=2)


async def test_a_bot_that_runs_loses_nothing_that_it_uses(
    place: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What changed after it was looked at stays; conversations are refused."""
    at = await asyncio.to_thread(place, ROWS)
    store = at.new()
    await store.open()
    refused = await asyncio.to_thread(said, "purge", at.name, "--ended", "--yes", code=1)
    assert "stop it first" in refused

    async def meanwhile(*_: object, **__: object) -> None:
        at.write("chat/1", '{"new":1}')

    monkeypatch.setattr(purging, "confirm", meanwhile)
    await asyncio.to_thread(run, "purge", at.name, "--empty", "--yes")
    await store.close()
    assert {key for key, *_ in at.all_columns()} == {*ROWS} - {"user/1"}
