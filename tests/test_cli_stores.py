"""The visitors themselves: what goes wrong with a store is said, and nothing is changed then."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command import Make, file_of, said, schema_of
from postgres_server import PostgresServer

from kvpersist import WriteError
from kvpersist.cli.opening import visitor_of
from kvpersist.stores import sqlite_visitor
from kvpersist.stores.sqlite_visitor import SqliteVisitor
from kvpersist.stores.visitor import Change, Digest, StoredRow

ROWS = {"chat/1": '{"a":1}', "chat/2": "{}"}


async def pages(*rows: StoredRow) -> AsyncIterator[Sequence[StoredRow]]:
    """Yield one page."""
    yield rows


async def test_a_store_is_filled_all_or_none(place: Make) -> None:
    """In place of what was there, beside it, over it, or only where nothing is."""
    at = await asyncio.to_thread(place, ROWS)
    visitor = visitor_of(at.name)
    await visitor.close()  # which does nothing
    await visitor.open()
    new = StoredRow("chat/1", b'{"b":1}', 7, 8)
    for existing in ("none", "other"):
        with pytest.raises(WriteError):
            await visitor.fill(pages(new), existing)
    assert len(at.all_columns()) == 2
    assert await visitor.fill(pages(new), "clear") == 1
    assert at.all_columns() == [("chat/1", '{"b":1}', 7, 8)]
    await visitor.close()


async def test_a_digest_tells_rows_apart_in_any_order() -> None:
    """Each column counts; so does their number."""
    rows = [StoredRow("a", b"1", 1, 1), StoredRow("b", b"1", 1, 1)]
    one, other = Digest(), Digest()
    one.add(rows)
    other.add(rows[::-1])
    assert one == other
    for more in (
        StoredRow("a", b"2", 1, 1),
        StoredRow("a", b"1", 2, 1),
        StoredRow("a", b"1", 1, 2),
    ):
        third = Digest()
        third.add([more, rows[1]])
        assert third != one
    assert one != 1


async def test_a_transaction_of_another_program_is_waited_for_and_said(tmp_path: Path) -> None:
    """As long as was asked for."""
    at = await asyncio.to_thread(file_of, tmp_path, ROWS)
    visitor = SqliteVisitor(at.name, busy_timeout=0)
    await visitor.open()
    row = (await visitor.read(["chat/1"]))["chat/1"]
    with closing(sqlite3.connect(at.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(WriteError, match="locked; nothing was changed"):
            await visitor.change({"chat/1": Change(row, None)}, alone=False)
    assert await visitor.change({"chat/1": Change(row, None)}, alone=False) == []
    assert await visitor.change({"chat/1": Change(row, None)}, alone=False) == ["chat/1"]
    await visitor.close()


def test_what_sqlite_says_of_a_file_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a schema that is damaged, a file that cannot be opened, and one that cannot be made."""
    at = file_of(tmp_path, ROWS)
    whole = at.path.read_bytes()
    at.path.write_bytes(whole.replace(b"CREATE TABLE documents", b"CREATE TABLE (ocuments"))
    assert "cannot be opened: malformed" in said("ls", at.name, code=1)
    at.path.write_bytes(whole)
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_visitor, "SCHEMA", "nonsense;")
        assert "syntax error" in said("copy", at.name, tmp_path / "new.db", code=1)

    def fail(*_: Any, **__: Any) -> None:
        raise sqlite3.OperationalError("unable to open database file")

    monkeypatch.setattr(sqlite_visitor.sqlite3, "connect", fail)  # type: ignore[attr-defined]
    assert "unable to open database file; see whose it is" in said("ls", at.name, code=1)


def test_what_postgres_says_of_a_schema_is_said(tmp_path: Path, postgres: PostgresServer) -> None:
    """Of rights that are missing, for the tables or for a new schema, and of a damaged one."""
    at = schema_of(postgres, ROWS)
    postgres.query("CREATE ROLE weak LOGIN PASSWORD 'weak'")
    weak = at.name.replace("postgres:s3cret-pa55word@", "weak:weak@")
    assert "permission denied" in said("ls", weak, code=1)
    file = file_of(tmp_path, ROWS)
    refused = said("copy", file.name, weak.replace(at.schema, "weakly"), code=1)
    assert "permission denied" in refused
    postgres.query(f"ALTER TABLE {at.schema}.documents DROP COLUMN version")
    assert "that kvpersist has not made so" in said("ls", at.name, code=1)
