"""export and import: documents as JSON Lines, exactly, all or none."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command import File, Make, Place, documents, file_of, fill, run, said, schema_of
from hypothesis import given, settings
from hypothesis import strategies as st
from postgres_server import PostgresServer

from kvpersist import TransferError, transfer
from kvpersist.stores.visitor import StoredRow

ROWS = {
    "bot": '{"a":1.0,"b":[null,{"$tuple":[1,2]}]}',
    "chat/1": '{"text":"\\u0000 ü 😀"}',
    "chat/2": "{}",
    "conversation/order/[1,1]": '"PHOTO"',
    "user/1": '{ "spaces" : 1 }',
}
_KEYS = st.text(st.characters(exclude_categories=["Cs"])) | st.sampled_from(["chat/1", "bot"])
_NUMBERS = st.integers(0, 2**63 - 1)
_TEXTS = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
).map(lambda value: json.dumps(value).encode()) | st.text(
    st.characters(exclude_categories=["Cs"])
).map(str.encode)


async def pages_of(rows: list[StoredRow]) -> Any:
    """Yield rows in pages."""
    for start in range(0, len(rows), 2):
        yield rows[start : start + 2]


@settings(max_examples=60)
@given(st.lists(st.builds(StoredRow, _KEYS, _TEXTS, _NUMBERS, _NUMBERS)))
def test_every_row_comes_back_as_it_was(rows: list[StoredRow]) -> None:
    """Byte for byte, whatever its text is."""

    async def there_and_back() -> list[StoredRow]:
        file: list[bytes] = []
        assert await transfer.lines(pages_of(rows), file.append) == len(rows)
        assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in file)
        return [row async for page in transfer.rows(file, "file") for row in page]

    assert asyncio.run(there_and_back()) == rows


def test_documents_are_moved_through_a_file(place: Make, tmp_path: Path) -> None:
    """With all columns, into a new store, which a bot can open."""
    at = place(ROWS)
    file = tmp_path / "all.jsonl"
    assert documents("export", at.name, file) == [{"documents": 5, "to": str(file)}]
    assert file.stat().st_mode & 0o777 == 0o600
    assert "documents: 5" in said("import", tmp_path / "new.db", file)
    new = File(tmp_path)
    new.path = tmp_path / "new.db"
    assert new.all_columns() == at.all_columns()
    assert new.path.stat().st_mode & 0o777 == 0o600
    fill(new, {"chat/3": "{}"})


def test_a_scope_is_exported(tmp_path: Path) -> None:
    """As `ls` names it, to standard output too."""
    at = file_of(tmp_path, ROWS)
    lines = [json.loads(line) for line in run("export", at.name, "-", "chat").stdout.splitlines()]
    assert [line.get("key") for line in lines] == ["chat/1", "chat/2", None]
    assert lines[-1] == {"documents": 2}
    text = run("export", at.name, "-", "user").stdout
    assert json.loads(text.splitlines()[0])["text"] == ROWS["user/1"]


def test_a_pipe_carries_a_store_over(place: Make, postgres: PostgresServer) -> None:
    """From one engine into the other."""
    at = place(ROWS)
    target = schema_of(postgres, {})
    run("import", target.name, "-", given=run("export", at.name, "-").stdout_bytes)
    assert target.all_columns() == at.all_columns()


def test_rows_that_are_there_are_not_replaced_unasked(place: Make, tmp_path: Path) -> None:
    """And nothing else is written then; a row that is replaced gets its next version."""
    at = place({"chat/1": '{"old":1}'})
    file = tmp_path / "some.jsonl"
    file.write_bytes(
        transfer.line(StoredRow("chat/0", b"{}", 7, 8))
        + transfer.line(StoredRow("chat/1", b'{"new":1}', 7, 8))
        + transfer.last_line(2)
    )
    before = at.all_columns()
    refused = said("import", at.name, file, code=1)
    assert "chat/1" in refused
    assert "--replace" in refused
    assert at.all_columns() == before
    run("import", at.name, file, "--replace")
    assert at.all_columns() == [("chat/0", "{}", 7, 8), ("chat/1", '{"new":1}', 2, 8)]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([], 'was cut off: its last line must say how many documents there are, {"documents":0}'),
        (['{"key":"bot","value":{}}'], "was cut off: its last line must say"),
        (['{"key":"bot","value":{}}', '{"documents":2}'], "has 1 documents, and its last line"),
        (['{"documents":0}', '{"documents":0}'], "line 2: there is more after the last line"),
        (['{"key":"bot","va'], "line 1: "),
        (["[]"], "an object is wanted"),
        (['{"key":"bot","value":{},"text":"{}"}'], "either value or text"),
        (['{"key":"bot"}'], "either value or text"),
        (['{"key":"bot","text":1}'], "either value or text"),
        (['{"key":1,"value":{}}'], "key must be a text"),
        (['{"key":"bot","value":{},"more":1}'], "nobody knows more"),
        (['{"key":"bot","value":{},"version":1.5}'], "must be integers"),
        (['{"key":"bot","value":{},"updated_at":-1}'], "must be integers"),
        (['{"key":"bot","value":123456789012345678901}'], "more than 64 bits"),
        (['{"key":"bot","value":{"a":1,"a":2}}'], "have the name 'a'"),
        (['{"key":"chat/x","value":{}}', '{"documents":1}'], "is not the id of a chat"),
        (
            [*['{"key":"x","text":"{"}'] * 12, '{"documents":12}'],
            "chat/",
        ),
    ],
)
def test_what_is_no_export_is_refused(lines: list[str], reason: str, tmp_path: Path) -> None:
    """With the line; no store is made, and one that is there stays as it is."""
    if len(lines) > 10:
        numbered = [line.replace('"x"', f'"chat/{n}"') for n, line in enumerate(lines)]
        lines, reason = numbered, "and 2 more"
    file = tmp_path / "bad.jsonl"
    file.write_text("\n".join(lines))
    assert reason in said("import", tmp_path / "new.db", file, code=1)
    assert not (tmp_path / "new.db").exists()
    at = file_of(tmp_path, {"user/1": "{}"})
    before = at.all_columns()
    assert reason in said("import", at.name, file, code=1)
    assert at.all_columns() == before


def test_lines_of_other_programs_are_taken(tmp_path: Path) -> None:
    """With spaces, in any order, without version and time."""
    file = tmp_path / "theirs.jsonl"
    file.write_text('{"value": {"name": "Ada"}, "key": "user/1"}\r\n{ "documents": 1 }')
    run("import", tmp_path / "bot.db", file)
    (row,) = File(tmp_path).all_columns()
    assert row[:3] == ("user/1", '{"name":"Ada"}', 1)
    assert row[3] > 1_700_000_000_000


def test_rows_that_a_bot_cannot_read_are_taken_when_asked(tmp_path: Path) -> None:
    """So that a store can be moved as it is."""
    file = tmp_path / "bad.jsonl"
    file.write_bytes(transfer.line(StoredRow("chat/1", b"{", 1, 2)) + transfer.last_line(1))
    assert "or say --as-is" in said("import", tmp_path / "bot.db", file, code=1)
    run("import", tmp_path / "bot.db", file, "--as-is")
    assert File(tmp_path).all_columns() == [("chat/1", "{", 1, 2)]


async def test_nothing_is_imported_under_a_bot(place: Make, tmp_path: Path) -> None:
    """It would not see conversations, nor keyboards."""
    at = await asyncio.to_thread(place, ROWS)
    file = tmp_path / "some.jsonl"
    await asyncio.to_thread(run, "export", at.name, file)
    store = at.new()
    await store.open()
    refused = await asyncio.to_thread(said, "import", at.name, file, "--replace", code=1)
    assert "open; stop it first" in refused
    await store.close()


def test_nothing_is_overwritten_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither a file, nor a store, nor something that appears meanwhile."""
    at = file_of(tmp_path, ROWS)
    file = tmp_path / "all.jsonl"
    file.write_text("mine")
    assert "is not overwritten" in said("export", at.name, file, code=1)
    assert file.read_text() == "mine"
    assert "No such file" in said("export", at.name, tmp_path / "nowhere" / "file", code=1)

    def fail(_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr("kvpersist.stores.new_file.sync", fail)
    assert "the disk is full" in said("export", at.name, tmp_path / "new.jsonl", code=1)
    assert "the disk is full" in said("copy", at.name, tmp_path / "copy.db", code=1)
    calls: Iterator[int] = iter(range(9))
    monkeypatch.setattr(
        "kvpersist.stores.new_file.sync", lambda path: fail(path) if next(calls) else None
    )
    assert "the disk is full" in said("export", at.name, tmp_path / "new.jsonl", code=1)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["all.jsonl", "bot.db", "bot.db-lock"]


def test_what_no_line_can_hold_is_said(tmp_path: Path) -> None:
    """There is no file then."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    with closing(sqlite3.connect(at.path)) as other, other:
        other.execute("UPDATE documents SET value = CAST(x'ff' AS TEXT)")
    assert "chat/1 cannot be exported" in said("export", at.name, tmp_path / "f", code=1)
    with closing(sqlite3.connect(at.path)) as other, other:
        other.execute("UPDATE documents SET key = CAST(x'ff' AS TEXT)")
    assert "\\udcff cannot be exported" in said("export", at.name, "-", code=1)
    assert not (tmp_path / "f").exists()


def test_rows_that_are_set_aside_stay(place: Make) -> None:
    """That is said."""
    at = place(ROWS)
    sql = "INSERT INTO {}set_aside VALUES ('chat/9', '{{}}', 1, 1, 'bad', 1)"
    _execute(at, sql)
    assert "1 rows that are set aside" in run("export", at.name, "-").stderr


def _execute(at: Place, sql: str) -> None:
    if isinstance(at, File):
        with closing(sqlite3.connect(at.path)) as other, other:
            other.execute(sql.format(""))
    else:
        at.server.query(sql.format(f"{at.schema}."))  # type: ignore[attr-defined]


def test_a_reader_that_has_enough_ends_an_export(tmp_path: Path) -> None:
    """As with ``head``: there is nobody to say anything to."""
    at = file_of(tmp_path, {f"chat/{n}": f'"{"x" * 1000}"' for n in range(200)})
    command = "from kvpersist.cli import main; main()"
    export = [sys.executable, "-c", command, "export", at.name, "-"]
    with subprocess.Popen(export, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as ended:
        assert ended.stdout is not None
        assert ended.stderr is not None
        ended.stdout.close()
        assert ended.stderr.read() == b""
    assert ended.returncode == 1


async def test_a_wrong_count_is_noticed_at_the_end() -> None:
    """When the rows have gone on already: nothing of them may be kept."""
    lines = [transfer.line(StoredRow(f"chat/{n}", b"{}", 1, 1)) for n in range(600)]
    found: list[StoredRow] = []

    async def read() -> None:
        async for page in transfer.rows(lines, "file"):
            found.extend(page)

    with pytest.raises(TransferError):
        await read()
    assert len(found) == 500
