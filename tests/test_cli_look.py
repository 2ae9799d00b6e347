"""ls, show, stats and find: what is in a store, also while a bot has it open."""

from __future__ import annotations

import asyncio
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from command import Make, documents, file_of, fill, run, said, schema_of
from pgbouncer import PgBouncer
from postgres_server import PostgresServer

from kvpersist.cli import tags
from kvpersist.stores.sqlite_visitor import SqliteVisitor

ROWS = {
    "bot": "{}",
    "chat/1": '{"cart":[{"item":"tea","price":3},{"item":"rum","price":30}],"at":[1,2]}',
    "chat/-100": '{"page":{"$tuple":["a",3]}}',
    "user/1": '{"name":"Ada"}',
    "conversation/order/[1,1]": '"PHOTO"',
    "conversation/order/[2,1]": '"CITY"',
    "conversation/orders/[1,1]": "1",
}


def keys(lines: list[Any]) -> list[str]:
    """Return the keys of lines."""
    return [line["key"] for line in lines]


def test_all_rows_are_listed_in_the_order_of_their_keys(place: Make) -> None:
    """With size, version and age."""
    at = place(ROWS)
    assert keys(documents("ls", at.name)) == sorted(ROWS)
    (line,) = documents("ls", at.name, "user")
    assert line["size"] == 14
    assert line["version"] == 1
    (shown,) = said("ls", at.name, "user").splitlines()
    assert shown.split()[:2] == ["14", "B"]
    assert shown.endswith("  user/1")


@pytest.mark.parametrize(
    ("scope", "found"),
    [
        ("chat", ["chat/-100", "chat/1"]),
        ("bot", ["bot"]),
        ("conversation/order/", ["conversation/order/[1,1]", "conversation/order/[2,1]"]),
        ("callback", []),
        ("chat/1", ["chat/1"]),
    ],
)
def test_a_scope_is_listed(scope: str, found: list[str], tmp_path: Path) -> None:
    """By its name, or by the beginning of keys."""
    assert keys(documents("ls", file_of(tmp_path, ROWS).name, scope)) == found


def test_rows_are_filtered_by_time_and_size(tmp_path: Path) -> None:
    """Both bounds count."""
    at = file_of(tmp_path, {"chat/1": '{"a":1}', "chat/2": "{}"})
    with closing(sqlite3.connect(at.path)) as other, other:
        other.execute("UPDATE documents SET updated_at = 0 WHERE key = 'chat/2'")
    assert keys(documents("ls", at.name, "--newer", "1h")) == ["chat/1"]
    assert keys(documents("ls", at.name, "--older", "30d")) == ["chat/2"]
    assert keys(documents("ls", at.name, "--larger", "7")) == ["chat/1"]
    assert keys(documents("ls", at.name, "--smaller", "0.002k")) == ["chat/2"]
    assert keys(documents("ls", at.name, "--smaller", "1", "--older", "1s")) == []


@pytest.mark.parametrize("option", ["--newer=1x", "--newer=h", "--larger=10q"])
def test_what_is_no_time_or_size_is_said(option: str, tmp_path: Path) -> None:
    """With what would be one."""
    assert "; write " in said("ls", tmp_path / "bot.db", option, code=2)


def test_a_document_is_shown_with_its_tags_readable(tmp_path: Path) -> None:
    """As they are stored: no class of the bot's is needed."""
    text = (
        '{"cart":{"$:Cart":{"$base":{"tea":2}}},"n":{"$dict":[[1,"one"],[{"$tuple":[2]},null]]},'
        '"seen":{"$set":[1,2]},"at":{"$datetime":"2026-01-02T03:04:05+00:00"},"no":{"$$x":1},'
        '"c":{"$counter":{"a":1}},"b":{"$telegram.Bot":null},"one":{"$tuple":[1]},'
        '"d":{"$defaultdict":["int",{"a":1}]},"q":{"$deque":{"items":[1],"maxlen":5}}}'
    )
    at = file_of(tmp_path, {"chat/1": text})
    shown = said("show", at.name, "chat/1")
    assert "chat/1  " in shown
    for each in (
        'Cart {$base: {"tea": 2}}',
        '{1: "one", (2,): null}',
        "set [1, 2]",
        "datetime 2026-01-02T03:04:05+00:00",
        '{"$x": 1}',
        'counter {"a": 1}',
        "telegram.Bot null",
        "(1,)",
        'defaultdict {"a": 1}',
        "deque {items: [1], maxlen: 5}",
    ):
        assert each in shown


def test_what_is_long_is_shown_on_several_lines() -> None:
    """And what is short or empty on one."""
    long = {"a": ["x" * 50, "y" * 50], "b": {}, "c": "z" * 100}
    assert tags.readable(long).splitlines() == [
        "{",
        '  "a": [',
        f'    "{"x" * 50}",',
        f'    "{"y" * 50}",',
        "  ],",
        '  "b": {},',
        f'  "c": "{"z" * 100}",',
        "}",
    ]
    assert tags.readable({}, 100) == "{}"


def test_conversations_of_a_handler_are_shown_as_one(place: Make) -> None:
    """And none of a handler whose name begins alike."""
    at = place(ROWS)
    assert keys(documents("show", at.name, "conversation/order")) == [
        "conversation/order/[1,1]",
        "conversation/order/[2,1]",
    ]
    (line,) = documents("show", at.name, "chat/-100")
    assert line["value"] == {"page": {"$tuple": ["a", 3]}}
    assert line["version"] == 1


def test_with_types_objects_are_shown_as_python_has_them(tmp_path: Path) -> None:
    """The module is imported from the working folder, and only then."""
    Path("mybot.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass\nclass Order:\n    item: str\n\n"
        "TYPES = [Order]\n"
    )
    at = file_of(tmp_path, {"chat/1": '{"o":{"$:Order":{"item":"tea"}}}'})
    assert 'Order {item: "tea"}' in said("show", at.name, "chat/1")
    for name in ("mybot:Order", "mybot:TYPES"):
        assert "Order(item='tea')" in said("show", at.name, "chat/1", "--types", name)
    for name in ("mybot", "mybot:Nobody", "nobody:Order", ":x", "mybot:dataclass"):
        assert "--types" in said("show", at.name, "chat/1", "--types", name, code=2)


def test_a_row_that_is_missing_is_said(place: Make) -> None:
    """After those that are there were shown; the password is not."""
    at = place(ROWS)
    result = run("show", at.name, "chat/1", "chat/7", "conversation/none", code=1)
    assert '"tea"' in result.stdout
    assert "has no row chat/7, conversation/none; `kvpersist ls`" in result.stderr
    assert "pa55word" not in result.output


def test_a_row_that_is_no_json_is_shown_as_it_is(tmp_path: Path) -> None:
    """Nothing that it holds reaches the terminal as a control character."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    at.write("chat/1", "{\x1b[31m\u202e")
    assert "{\\x1b[31m\\u202e" in said("show", at.name, "chat/1")
    assert documents("show", at.name, "chat/1")[0]["text"] == "{\x1b[31m\u202e"
    at.write("chat/1", '{ "a": 1 }')
    assert documents("show", at.name, "chat/1")[0]["text"] == '{ "a": 1 }'
    at.write("chat/1", "{\x1b[31m\u202e")
    assert "cannot be read" in said("find", at.name, "a", code=1)
    with closing(sqlite3.connect(at.path)) as other, other:
        other.execute("UPDATE documents SET value = CAST(x'ff' AS TEXT)")
    assert documents("show", at.name, "chat/1")[0]["text"] == "\\xff"


def test_a_key_that_is_no_text_is_shown(tmp_path: Path) -> None:
    """And can be removed."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    with closing(sqlite3.connect(at.path)) as other, other:
        other.execute("INSERT INTO documents VALUES (CAST(x'ff' AS TEXT), '{}', 1, 1e18)")
    assert keys(documents("ls", at.name)) == ["chat/1", "\\udcff"]
    assert "\\udcff" in said("ls", at.name)
    assert "1000000000000000000" in said("stats", at.name)
    assert "\\udcff" in said("check", at.name, code=1)


def test_statistics_count_rows_and_bytes(place: Make) -> None:
    """By scope, with the biggest, the oldest and the newest."""
    at = place(ROWS)
    (found,) = documents("stats", at.name)
    assert found["rows"] == len(ROWS)
    assert found["bytes"] == sum(map(len, ROWS.values()))
    assert found["scopes"]["conversation"] == {"rows": 3, "bytes": 14}
    assert found["biggest"][0] == {"key": "chat/1", "size": len(ROWS["chat/1"])}
    assert {each["below"]: each["rows"] for each in found["sizes"]} == {10: 4, 100: 3}
    assert found["oldest"]["updated_at"] <= found["newest"]["updated_at"]
    shown = said("stats", at.name)
    assert "7 rows" in shown
    assert "biggest:" in shown
    assert "set aside" not in shown


def test_an_empty_store_has_statistics(tmp_path: Path) -> None:
    """Of no rows; the biggest of many are ten."""
    at = file_of(tmp_path, {})
    assert "0 rows" in said("stats", at.name)
    fill(at, {f"chat/{n}": "{}" for n in range(11)})
    assert len(documents("stats", at.name)[0]["biggest"]) == 10


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["cart[*].item"], ["tea", "rum"]),
        (["cart[*].price", "30"], [30]),
        (["$.cart[0]", '{"price":3,"item":"tea"}'], [{"item": "tea", "price": 3}]),
        (['["cart"][1]["item"]'], ["rum"]),
        (["name", "Ada"], ["Ada"]),
        (["page[1]"], [3]),
        (["page.$tuple[0]"], ["a"]),
        (["*", "--in", "user"], ["Ada"]),
        (["$", "1", "--in", "conversation"], [1]),
        (["at[*]", "--limit", "1"], [1]),
    ],
)
def test_places_are_found_by_path_and_value(
    arguments: list[str], found: list[Any], tmp_path: Path
) -> None:
    """Across rows; tags are no steps, unless one is named."""
    at = file_of(tmp_path, ROWS)
    assert [line["value"] for line in documents("find", at.name, *arguments)] == found
    assert len(said("find", at.name, *arguments).splitlines()) == len(found)


@pytest.mark.parametrize("arguments", [["nowhere"], ["name", "Bob"], ["cart[*].price", '"30"']])
def test_what_is_not_found_has_an_exit_code(arguments: list[str], tmp_path: Path) -> None:
    """As with grep."""
    assert said("find", file_of(tmp_path, ROWS).name, *arguments, code=1) == ""


@pytest.mark.parametrize("path", ["a..b", "[x]", 'a["b', '["\\x"]', "a]"])
def test_what_is_no_path_is_said(path: str, tmp_path: Path) -> None:
    """With what would be one."""
    assert "Error: Invalid value: " in said("find", tmp_path / "bot.db", path, code=2)


@pytest.mark.parametrize(
    ("value", "path", "found"),
    [
        ({"$defaultdict": ["int", {"a": 1}]}, "a", 1),
        ({"$defaultdict": ["int", [[1, 2]]]}, "[1]", 2),
        ({"$dict": [["a", 1], [5, 6], "odd"]}, "[5]", 6),
        ({"$dict": [["a", 1], [5, 6], "odd"]}, "[7]", None),
        ({"$:Cart": {"$base": {"tea": 2}, "n": 1}}, "tea", 2),
        ({"$:Cart": {"$base": {"tea": 2}, "n": 1}}, "n", 1),
        ({"$deque": {"items": [7], "maxlen": 1}}, "[0]", 7),
        ({"$$x": 5}, '["$x"]', 5),
        ({"$mappingproxy": {"a": 1}}, "a", 1),
        ({"$timedelta": [1, 2, 3]}, "[0]", None),
        ({"a": True}, "[0]", None),
    ],
)
def test_a_path_leads_past_tags(value: Any, path: str, found: Any) -> None:
    """To what a person means."""
    from kvpersist.cli import paths  # noqa: PLC0415

    places = [item for _, item in paths.find(value, paths.parse(path))]
    assert places == ([] if found is None else [found])


async def test_a_bot_is_in_nobodys_way(place: Make) -> None:
    """While it has the store open everything can be looked at, and it goes on to write."""
    at = await asyncio.to_thread(place, ROWS)
    store = at.new()
    await store.open()
    await store.apply({"chat/1": b'{"n":2}'})
    for command in ("ls", "stats", "check"):
        await asyncio.to_thread(run, command, at.name)
    shown = await asyncio.to_thread(said, "show", at.name, "chat/1")
    assert '{"n": 2}' in shown
    await store.apply({"chat/1": b'{"n":3}'})
    await store.close()


def test_looking_leaves_nothing_behind(tmp_path: Path) -> None:
    """No log where there was none, no lock, and the file as it was."""
    at = file_of(tmp_path, ROWS)
    (tmp_path / "bot.db-lock").unlink()
    before = at.path.read_bytes()
    run("ls", at.name)
    run("check", at.name)
    assert [path.name for path in tmp_path.iterdir()] == ["bot.db"]
    assert at.path.read_bytes() == before


def test_what_a_killed_bot_left_in_the_log_is_read(tmp_path: Path) -> None:
    """And left there."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    with closing(sqlite3.connect(at.path)) as killed:
        with killed:
            killed.execute("UPDATE documents SET value = '{\"n\":2}'")
        at.wreck()
    log = Path(f"{at.path}-wal").read_bytes()
    assert '{"n": 2}' in said("show", at.name, "chat/1")
    assert Path(f"{at.path}-wal").read_bytes() == log


def test_a_file_that_may_not_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a bot begins to write to it meanwhile, that is said: it may have been a mixture."""
    at = file_of(tmp_path, ROWS)
    monkeypatch.setattr("os.access", lambda *_: False)
    assert keys(documents("ls", at.name, "user")) == ["user/1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bot.db", "bot.db-lock"]
    close = SqliteVisitor.close

    async def close_late(self: SqliteVisitor) -> None:
        Path(f"{at.path}-wal").touch()
        await close(self)

    monkeypatch.setattr(SqliteVisitor, "close", close_late)
    assert "may be a mixture. Do it again" in said("ls", at.name, code=1)


def test_what_is_no_store_is_said(tmp_path: Path) -> None:
    """Each with what to do."""
    place = tmp_path / "other.db"
    missing = said("ls", place, code=1)
    assert f"there is no file {place}. Is the path right? A bot makes its file" in missing
    assert "is a directory" in said("ls", tmp_path, code=1)
    place.touch()
    assert "is empty" in said("ls", place, code=1)
    place.write_bytes(b"\x80\x04pickle" * 100)
    assert "kvpersist migrate" in said("ls", place, code=1)
    place.unlink()
    with closing(sqlite3.connect(place)) as other:
        other.execute("CREATE TABLE documents (key TEXT)")
    assert "another program's" in said("ls", place, code=1)
    Path(f"{place}-journal").touch()
    assert "is in the way" in said("ls", place, code=1)
    assert "PostgreSQL URL cannot be read" in said("ls", "postgresql://a@b@c/d", code=2)
    assert "too long" in said("ls", f"{'x' * 300}/bot.db", code=1)


def test_a_damaged_file_is_said(tmp_path: Path) -> None:
    """With what can be done."""
    at = file_of(tmp_path, {f"chat/{n}": '"' + "x" * 500 + '"' for n in range(100)})
    data = bytearray(at.path.read_bytes())
    data[4096 * 2 :] = b"\xff" * (len(data) - 4096 * 2)
    at.path.write_bytes(data)
    assert "restore it from a backup" in said("ls", at.name, code=1)


def test_what_is_no_schema_of_kvpersist_is_said(postgres: PostgresServer) -> None:
    """A server that is not there, too; and never the password."""
    assert "has no tables" in said("ls", f"{postgres.url()}?schema=nobody", code=1)
    assert "must be a name" in said("ls", f"{postgres.url()}?schema=", code=2)
    gone = said("ls", postgres.url(port=1), code=1)
    assert "127.0.0.1:1" in gone
    assert "pa55word" not in gone
    odd = said("ls", f"{postgres.url()}?sslmode=nonsense", code=1)
    assert "asyncpg cannot read the URL" in odd
    assert os.environ.get("PGPASSWORD") is None


def test_a_pooler_in_transaction_mode_will_do(
    pgbouncer: PgBouncer, postgres: PostgresServer
) -> None:
    """Each statement is of one transaction, and so of one server."""
    at = schema_of(postgres, ROWS)
    name = f"{postgres.url(port=pgbouncer.port)}?schema={at.schema}"
    assert keys(documents("ls", name)) == sorted(ROWS)
    run("set", name, "user/1", "name", "Bob", "--text")
    run("check", name)
    run("copy", name, f"{name}_copy")
    assert keys(documents("find", f"{name}_copy", "name", "Bob")) == ["user/1"]
