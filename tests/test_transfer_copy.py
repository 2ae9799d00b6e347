"""copy, backup and restore: whole stores, of one moment, compared, and never half."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from command import File, Make, Place, documents, file_of, fill, run, said, schema_of
from postgres_server import PostgresServer
from storages import Columns

from kvpersist.stores import postgres_visitor, sqlite_restore, sqlite_visitor
from kvpersist.stores.visitor import Digest, StoredRow

ROWS = {
    "bot": '{"a":1.0}',
    "chat/1": '{"text":"\\u0000 ü 😀","n":18446744073709551615}',
    **{f"chat/{n}": f'{{"n":{n}}}' for n in range(2, 700)},
    "conversation/order/[1,1]": '"PHOTO"',
    "user/1": '{ "spaces" : 1 }',
}


def at_path(path: Path) -> File:
    """Return a SQLite file that is there."""
    found = File(path.parent)
    found.path = path
    return found


def other_place(at: Place, folder: Path, server: PostgresServer) -> Place:
    """Return an empty store of the other engine."""
    return schema_of(server, {}) if isinstance(at, File) else at_path(folder / "copy.db")


def test_all_rows_are_copied_into_the_other_engine_and_back(
    place: Make, tmp_path: Path, postgres: PostgresServer
) -> None:
    """With versions and times; the hashes of both are the same."""
    at = place(ROWS)
    there = other_place(at, tmp_path, postgres)
    (done,) = documents("copy", at.name, there.name)
    assert done["documents"] == len(ROWS)
    assert there.all_columns() == at.all_columns()
    back = tmp_path / "back.db"
    assert documents("copy", there.name, back) == [{**done, "to": str(back)}]
    assert at_path(back).all_columns() == at.all_columns()


def test_a_schema_is_made_for_a_copy(tmp_path: Path, postgres: PostgresServer) -> None:
    """With its tables."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    run("copy", at.name, f"{postgres.url()}?schema=made_by_copy")
    assert postgres.query("SELECT key FROM made_by_copy.documents") == [("chat/1",)]


def test_nothing_is_copied_over_what_is_there(place: Make, tmp_path: Path) -> None:
    """Nor beside what would be taken for a part of it."""
    at = place({"chat/1": "{}"})
    refused = said("copy", file_of(tmp_path / "..", {}).name, at.name, code=1)
    assert "exists, and is not overwritten" in refused or "has rows already" in refused
    Path(tmp_path / "new.db-wal").touch()
    refused = said("copy", at.name, tmp_path / "new.db", code=1)
    assert "would be taken for a part" in refused


async def test_a_copy_is_of_one_moment(place: Make, tmp_path: Path) -> None:
    """While a bot writes: what it writes after the first page was read is not in it."""
    at = await asyncio.to_thread(place, ROWS)
    store = at.new()
    await store.open()
    before = at.all_columns()
    loop = asyncio.get_running_loop()
    add = Digest.add

    def add_late(self: Digest, rows: list[StoredRow]) -> None:
        if not self.rows:
            changes = {"user/1": b'{"new":1}', "chat/2": None}
            asyncio.run_coroutine_threadsafe(store.apply(changes), loop).result()
        add(self, rows)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Digest, "add", add_late)
        await asyncio.to_thread(run, "copy", at.name, tmp_path / "copy.db")
    await store.close()
    assert at_path(tmp_path / "copy.db").all_columns() == before
    assert at.all_columns() != before


def test_a_copy_that_differs_is_told(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it has a name, or is committed, if it can be; nothing is left then."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    empty = schema_of(postgres, {})

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_visitor, "_ALL", f"{sqlite_visitor._ALL} LIMIT 0")
        assert "read again differs" in said("copy", at.name, tmp_path / "new.db", code=1)
        assert not (tmp_path / "new.db").exists()
    with monkeypatch.context() as patch:
        add = "INSERT INTO documents VALUES (CAST(? AS TEXT), CAST(? AS TEXT) || ' ', ?, ?)"
        patch.setattr(sqlite_visitor, "_ADD", add)
        assert "is not what was written" in said("copy", at.name, tmp_path / "new.db", code=1)
    with monkeypatch.context() as patch:
        patch.setattr(postgres_visitor, "_READ", f"{postgres_visitor._READ} LIMIT 0")
        assert "is not what was written" in said("copy", at.name, empty.name, code=1)
        assert empty.all_columns() == []

    columns: Columns = []
    with monkeypatch.context() as patch:
        fills = postgres_visitor.PostgresVisitor.close

        async def close_late(self: postgres_visitor.PostgresVisitor) -> None:
            await fills(self)
            if not columns:
                columns.extend(empty.all_columns())
                empty.write("chat/7", "{}")

        patch.setattr(postgres_visitor.PostgresVisitor, "close", close_late)
        assert "is a bot running there" in said("copy", at.name, empty.name, code=1)


async def test_a_backup_is_made_while_a_bot_runs(place: Make, tmp_path: Path) -> None:
    """A file that a bot can open; nothing is overwritten."""
    at = await asyncio.to_thread(place, ROWS)
    store = at.new()
    await store.open()
    await store.apply({"chat/1": b'{"late":1}'})
    copy = tmp_path / "backup.db"
    shown = await asyncio.to_thread(said, "backup", at.name, copy)
    assert f"to: {copy}" in shown
    assert "is not overwritten" in await asyncio.to_thread(said, "backup", at.name, copy, code=1)
    await store.close()
    assert at_path(copy).all_columns() == at.all_columns()
    await asyncio.to_thread(fill, at_path(copy), {"chat/1": "{}"})


def test_a_file_that_may_not_be_written_is_backed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a disk that is mounted for reading."""
    at = file_of(tmp_path, ROWS)
    monkeypatch.setattr(sqlite_visitor.SqliteVisitor, "_is_writable", lambda _: False)
    run("backup", at.name, tmp_path / "copy.db")
    assert at_path(tmp_path / "copy.db").all_columns() == at.all_columns()


def test_a_backup_is_restored(place: Make, tmp_path: Path) -> None:
    """In the place of what is there; of a file that is kept."""
    at = place({"chat/1": '{"good":1}'})
    copy = tmp_path / "backup.db"
    run("backup", at.name, copy)
    good = at.all_columns()
    fill(at, {"chat/1": '{"bad":1}', "chat/2": "{}"})
    bad = at.all_columns()
    (done,) = documents("restore", at.name, copy, "--yes")
    assert at.all_columns() == good
    if isinstance(at, File):
        kept = Path(done["kept"])
        assert kept == tmp_path / "bot.db-before-1"
        assert at_path(kept / "bot.db").all_columns() == bad
        assert kept.stat().st_mode & 0o777 == 0o700
        assert os.stat(at.path).st_nlink == 1  # noqa: PTH116
    fill(at, {"chat/3": "{}"})


def test_a_backup_is_restored_where_nothing_is(tmp_path: Path) -> None:
    """Or where only what was beside the file is; each time what is there is kept."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    copy = tmp_path / "backup.db"
    run("backup", at.name, copy)
    for path in tmp_path.glob("bot.db*"):
        path.unlink()
    assert documents("restore", at.name, copy, "--yes")[0]["kept"] is None
    at.path.unlink()
    Path(f"{at.path}-rescue").write_text("rows")
    assert "bot.db-rescue has rows that a bot could not" in said("restore", at.name, copy, "--yes")
    assert (tmp_path / "bot.db-before-1" / "bot.db-rescue").read_text() == "rows"
    assert "rescue" not in said("restore", at.name, copy, "--yes")
    assert (tmp_path / "bot.db-before-2" / "bot.db").exists()
    assert [key for key, *_ in at.all_columns()] == ["chat/1"]


def test_a_damaged_file_is_replaced_with_its_log(tmp_path: Path) -> None:
    """Which is kept beside it."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    copy = tmp_path / "backup.db"
    run("backup", at.name, copy)
    at.path.write_bytes(b"damaged" * 1000)
    Path(f"{at.path}-wal").write_bytes(b"log")
    run("restore", at.name, copy, "--yes")
    assert [key for key, *_ in at.all_columns()] == ["chat/1"]
    kept = tmp_path / "bot.db-before-1"
    assert (kept / "bot.db").read_bytes() == b"damaged" * 1000
    assert (kept / "bot.db-wal").read_bytes() == b"log"


@pytest.mark.parametrize("step", ["link", "sync", "rename"])
def test_a_restore_that_fails_puts_back_what_it_moved(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has its one name and its log again."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    copy = tmp_path / "backup.db"
    run("backup", at.name, copy)
    with closing(sqlite3.connect(at.path)) as killed:
        with killed:
            killed.execute("UPDATE documents SET value = '{\"n\":2}'")
        at.wreck()
    before = {path.name for path in tmp_path.iterdir()}

    def fail(*_: object) -> None:
        raise OSError("the disk is gone")

    link, rename = os.link, Path.rename

    def link_but(path: Path, target: Path) -> None:
        fail() if "-before-" in str(target) else link(path, target)

    def rename_but(path: Path, target: Path) -> Path:
        if path.name.startswith(".kvpersist-"):
            raise OSError("the disk is gone")
        return rename(path, target)

    with monkeypatch.context() as patch:
        if step == "link":
            patch.setattr(os, "link", link_but)
        elif step == "sync":
            patch.setattr(sqlite_restore, "sync", fail)
        else:
            patch.setattr(Path, "rename", rename_but)
        run("restore", at.name, copy, "--yes", code=1)
    assert {path.name for path in tmp_path.iterdir()} - {f"{at.path.name}-lock"} == before
    assert at.path.stat().st_nlink == 1
    assert at.all_columns()[0][1] == '{"n":2}'


async def test_nothing_is_restored_under_a_bot(place: Make, tmp_path: Path) -> None:
    """It is refused, and nothing is left behind."""
    at = await asyncio.to_thread(place, {"chat/1": "{}"})
    copy = tmp_path / "backup.db"
    await asyncio.to_thread(run, "backup", at.name, copy)
    store = at.new()
    await store.open()
    refused = await asyncio.to_thread(said, "restore", at.name, copy, "--yes", code=1)
    assert "open; stop it first" in refused
    await store.apply({"chat/1": b'{"n":1}'})
    await store.close()
    assert at.all_columns()[0][1] == '{"n":1}'
    assert not list(tmp_path.glob(".kvpersist-*"))


def test_what_is_no_backup_is_refused(
    tmp_path: Path, postgres: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And changes nothing."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    before = at.all_columns()
    bad = tmp_path / "bad.db"
    run("backup", at.name, bad)
    with closing(sqlite3.connect(bad)) as other, other:
        other.execute("UPDATE documents SET version = 'x'")
    assert "is no good backup" in said("restore", at.name, bad, "--yes", code=1)
    assert "nobody to ask" in said("restore", at.name, at.name, code=2)
    url = schema_of(postgres, {}).name
    assert "see `copy`" in said("restore", at.name, url, "--yes", code=2)
    bad.unlink()
    run("backup", at.name, bad)
    assert "No such file" in said("restore", tmp_path / "no" / "bot.db", bad, "--yes", code=1)

    def fail(_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(sqlite_restore, "_new_folder", fail)
    assert "the disk is full" in said("restore", at.name, bad, "--yes", code=1)
    assert at.all_columns() == before
    assert not list(tmp_path.glob(".kvpersist-*"))


def test_what_postgres_refuses_is_said(tmp_path: Path, postgres: PostgresServer) -> None:
    """A row that is no JSON; nothing is written."""
    at = file_of(tmp_path, {"chat/0": "{}", "chat/1": "{}"})
    at.write("chat/1", "{")
    empty = schema_of(postgres, {})
    assert "nothing was changed" in said("copy", at.name, empty.name, code=1)
    assert empty.all_columns() == []
