"""set, edit and rm: single rows are changed, as they were read, and never what a bot would undo."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
from command import Make, Place, documents, file_of, run, said, schema_of
from handlers import text
from postgres_server import PostgresServer
from through import build

from kvpersist import UnavailableError
from kvpersist.cli import opening

ROWS = {
    "chat/1": '{"cart":[{"item":"tea","price":3}],"page":{"$tuple":["a",3]},'
    '"n":{"$dict":[[1,2]]},"o":{"$:Order":{"items":[]}}}',
    "chat/2": '{"a":1}',
    "conversation/order/[1,1]": '"PHOTO"',
    "conversation/order/[2,1]": '"CITY"',
    "callback/5f": '{"queries":{"9":2}}',
}


def value(at: Place, key: str) -> Any:
    """Return what a row holds."""
    return json.loads({key: text for key, text, *_ in at.all_columns()}[key])


@pytest.mark.parametrize(
    ("path", "new", "document"),
    [
        ("cart[0].price", "4", {"cart": [{"item": "tea", "price": 4}]}),
        ("cart[1]", '{"item":"rum"}', {"cart": [{"item": "tea", "price": 3}, {"item": "rum"}]}),
        ("page[1]", "[]", {"page": {"$tuple": ["a", []]}}),
        ("page[2]", "null", {"page": {"$tuple": ["a", 3, None]}}),
        ("n[1]", '"x"', {"n": {"$dict": [[1, "x"]]}}),
        ("more", "true", {"more": True}),
        ("o.more", "1", {"o": {"$:Order": {"items": [], "more": 1}}}),
        ("page", '{"$date":"2026-01-02"}', {"page": {"$date": "2026-01-02"}}),
    ],
)
def test_a_place_is_set(path: str, new: str, document: dict[str, Any], tmp_path: Path) -> None:
    """Whatever is around it stays; the row gets its next version, and a time."""
    at = file_of(tmp_path, ROWS)
    (before,) = [row for row in at.all_columns() if row[0] == "chat/1"]
    run("set", at.name, "chat/1", path, new)
    (after,) = [row for row in at.all_columns() if row[0] == "chat/1"]
    assert value(at, "chat/1") == {**json.loads(ROWS["chat/1"]), **document}
    assert after[2] == before[2] + 1
    assert after[3] >= before[3]


def test_what_was_set_is_said(place: Make) -> None:
    """With what was there."""
    at = place(ROWS)
    assert said("set", at.name, "chat/2", "a", "2") == 'chat/2 ["a"]: 1 → 2\n'
    assert documents("set", at.name, "chat/2", "a", "x", "--text") == [
        {"key": "chat/2", "path": '["a"]', "before": 2, "value": "x"}
    ]
    run("set", at.name, "chat/2", "$", '{"b":1}')
    assert value(at, "chat/2") == {"b": 1}
    run("set", at.name, "user/7", "name", '"Ada"', "--new")
    assert value(at, "user/7") == {"name": "Ada"}
    assert said("check", at.name)


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["chat/1", "x.y", "1"], 1, 'there is no ["x"]'),
        (["chat/1", "cart[5]", "1"], 1, "nothing can be put at"),
        (["chat/1", "n[5]", "1"], 1, "nothing can be put at"),
        (["chat/1", "cart[0].$x", "1"], 1, "nothing can be put at"),
        (["chat/1", "a", "{"], 2, "is no JSON"),
        (["chat/1", "a", "123456789012345678901234567890"], 2, "more than 64 bits"),
        (["chat/1", "cart[*]", "1"], 2, "name one place"),
        (["chat/1", "page", '{"$date":"soon"}'], 1, "could not be read then"),
        (["chat/2", "$", "[]"], 1, "no document"),
        (["chat/7", "a", "1"], 1, "has no row chat/7"),
        (["chat/07", "a", "1", "--new"], 1, "is not the id of a chat"),
    ],
)
def test_what_cannot_be_set_is_refused(
    arguments: list[str], code: int, reason: str, tmp_path: Path
) -> None:
    """And changes nothing."""
    at = file_of(tmp_path, ROWS)
    before = at.all_columns()
    assert reason in said("set", at.name, *arguments, code=code)
    assert at.all_columns() == before


def test_a_text_that_is_no_unicode_is_refused(tmp_path: Path) -> None:
    """As a shell may give it."""
    at = file_of(tmp_path, ROWS)
    refused = said("set", at.name, "chat/2", "a", "\udcff", "--text", code=1)
    assert "JSON has no words for it" in refused


def test_nothing_is_left_beside_a_file_that_was_changed(tmp_path: Path) -> None:
    """While no bot has it: all is in the file."""
    at = file_of(tmp_path, ROWS)
    run("set", at.name, "chat/2", "a", "2")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bot.db", "bot.db-lock"]


def test_a_row_that_cannot_be_read_is_not_set(tmp_path: Path) -> None:
    """The editor is for that."""
    at = file_of(tmp_path, {"chat/1": '{"a":1,"a":2}'})
    assert "mend it with `kvpersist edit`" in said("set", at.name, "chat/1", "a", "1", code=1)


def test_a_key_that_begins_with_a_dollar_is_set(tmp_path: Path) -> None:
    """Where it is; the dict gets no second one, for the first would change its name."""
    at = file_of(tmp_path, {"chat/1": '{"a":{"$$x":1}}'})
    run("set", at.name, "chat/1", '["a"]["$x"]', "2")
    assert value(at, "chat/1") == {"a": {"$$x": 2}}
    assert "nothing can be put" in said("set", at.name, "chat/1", "a.b", "1", code=1)


Editor = Callable[[Callable[[str], str | None]], None]


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> Editor:
    """Have the editor do what a function does with the text; None leaves it as it is."""

    def use(change: Callable[[str], str | None]) -> None:
        monkeypatch.setattr(click, "edit", lambda text, **_: change(text))

    return use


def test_a_document_is_edited(place: Make, editor: Editor) -> None:
    """Indented, as it is stored; and stored as kvpersist writes it."""
    at = place(ROWS)
    seen: list[str] = []

    def change(shown: str) -> str:
        seen.append(shown)
        return shown.replace("1", "2")

    editor(change)
    assert said("edit", at.name, "chat/2") == "chat/2: written\n"
    assert seen == ['{\n  "a": 1\n}\n']
    assert [row[1:3] for row in at.all_columns() if row[0] == "chat/2"] == [('{"a":2}', 2)]
    editor(lambda _: None)
    assert said("edit", at.name, "chat/2") == "chat/2: nothing was changed\n"
    assert "has no row" in said("edit", at.name, "chat/7", code=1)


def test_what_was_edited_is_said_as_json(tmp_path: Path, editor: Editor) -> None:
    """The document as it is now; what is no JSON as a text."""
    at = file_of(tmp_path, {"chat/2": '{"a":1}', "chat/3": '{"a":'})
    editor(lambda shown: shown.replace("1", "2"))
    written = {"key": "chat/2", "written": True, "value": {"a": 2}}
    assert documents("edit", at.name, "chat/2") == [written]
    editor(lambda _: None)
    assert documents("edit", at.name, "chat/2") == [{**written, "written": False}]
    left = {"key": "chat/3", "written": False, "text": '{"a":'}
    assert documents("edit", at.name, "chat/3") == [left]


def test_a_real_editor_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of $EDITOR."""
    at = file_of(tmp_path, ROWS)
    monkeypatch.setenv("EDITOR", "sed -i s/1/5/")
    monkeypatch.delenv("VISUAL", raising=False)
    run("edit", at.name, "chat/2")
    assert value(at, "chat/2") == {"a": 5}


def test_a_row_that_cannot_be_read_is_mended(tmp_path: Path, editor: Editor) -> None:
    """It is given to the editor as it is."""
    at = file_of(tmp_path, {"chat/1": '{"a":1,"a":2}'})
    editor(lambda shown: shown.replace('"a":1,', ""))
    run("edit", at.name, "chat/1")
    assert value(at, "chat/1") == {"a": 2}


def kept_text(shown: str) -> str:
    """Return the text in the file that is named, which its owner alone may read; remove it."""
    kept = Path(shown.rsplit("your text is in ", 1)[1].splitlines()[0])
    text = kept.read_text()
    assert kept.stat().st_mode & 0o777 == 0o600
    kept.unlink()
    return text


def test_what_cannot_be_read_is_not_written_but_kept(
    tmp_path: Path, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be edited again; else it is in a file. So it is if nobody answers."""
    at = file_of(tmp_path, ROWS)
    monkeypatch.setattr(opening, "is_terminal", lambda: True)
    texts = iter(['{"a":', '{"a":7}'])
    editor(lambda _: next(texts))
    shown = said("edit", at.name, "chat/2", given="y\n")
    assert "not valid JSON" in shown
    assert "your text is in" not in shown
    assert value(at, "chat/2") == {"a": 7}
    editor(lambda _: '{"a":')
    for answer in ("n\n", ""):
        shown = said("edit", at.name, "chat/2", given=answer, code=1)
        assert kept_text(shown) == '{"a":'
        assert shown.endswith("Aborted!\n") == (answer == "")


def test_without_a_terminal_what_was_edited_is_kept(tmp_path: Path, editor: Editor) -> None:
    """There is nobody to ask."""
    at = file_of(tmp_path, ROWS)
    editor(lambda _: '{"a":')
    shown = said("edit", at.name, "chat/2", code=2)
    assert "Edit again? There is nobody to ask" in shown
    assert kept_text(shown) == '{"a":'


def test_an_editor_that_fails_loses_nothing(
    tmp_path: Path, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was edited before is kept; at first there is nothing to keep."""
    at = file_of(tmp_path, ROWS)
    monkeypatch.setattr(opening, "is_terminal", lambda: True)
    texts = iter(['{"a":'])

    def fail(_: str) -> str:
        if edited := next(texts, None):
            return edited
        raise click.ClickException("the editor failed")

    editor(fail)
    shown = said("edit", at.name, "chat/2", given="y\nn\n", code=1)
    assert "the editor failed" in shown
    assert kept_text(shown) == '{"a":'
    shown = said("edit", at.name, "chat/2", code=1)
    assert shown == "Error: the editor failed\n"


def test_what_the_store_refuses_is_kept(tmp_path: Path, editor: Editor) -> None:
    """Whatever the reason is."""
    at = file_of(tmp_path, ROWS)
    Path(f"{at.path}-rescue").touch()
    editor(lambda _: '{"a":9}')
    shown = said("edit", at.name, "chat/2", code=2)
    assert "start the bot first" in shown
    assert kept_text(shown) == '{"a":9}'


def test_a_row_that_changed_meanwhile_is_not_overwritten(
    place: Make, editor: Editor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor one that was removed."""
    at = place(ROWS)
    monkeypatch.setattr(opening, "is_terminal", lambda: True)
    for other in ('{"a":5}', None):

        def change(_: str, other: str | None = other) -> str:
            at.write("chat/2", other)
            return '{"a":9}'

        editor(change)
        shown = said("edit", at.name, "chat/2", given="n\n", code=1)
        assert "chat/2 changed since it was read; nothing was changed" in shown
        assert kept_text(shown) == '{"a":9}'
    assert "chat/2" not in [key for key, *_ in at.all_columns()]


def test_rows_are_removed_all_or_none(place: Make) -> None:
    """Those of a handler's conversations as one."""
    at = place(ROWS)
    assert "has no row chat/7; nothing" in said("rm", at.name, "chat/1", "chat/7", "--yes", code=1)
    assert len(at.all_columns()) == 5
    assert documents("rm", at.name, "chat/1", "--yes") == [{"key": "chat/1", "removed": True}]
    assert said("rm", at.name, "conversation/order", "callback/5f", "--yes").count("removed") == 3
    assert [key for key, *_ in at.all_columns()] == ["chat/2"]


def test_nothing_is_removed_unasked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal, --yes must be said."""
    at = file_of(tmp_path, ROWS)
    assert "nobody to ask: say --yes" in said("rm", at.name, "chat/1", code=2)
    monkeypatch.setattr(opening, "is_terminal", lambda: True)
    assert "Remove 1 rows" in said("rm", at.name, "chat/1", given="n\n", code=1)
    assert len(at.all_columns()) == 5
    assert "removed chat/1" in said("rm", at.name, "chat/1", given="y\n")


@pytest.mark.parametrize("key", ["conversation/order/[1,1]", "callback/5f"])
async def test_what_a_bot_reads_at_its_start_alone_is_not_changed_under_it(
    key: str, place: Make
) -> None:
    """The reason is said; what it sees at the next update is changed."""
    at = await asyncio.to_thread(place, ROWS)
    store = at.new()
    await store.open()
    try:
        refused = await asyncio.to_thread(said, "rm", at.name, key, "--yes", code=1)
        assert (
            "stop it first. Conversations and keyboards are read by a bot at its start" in refused
        )
        await asyncio.to_thread(run, "set", at.name, "chat/2", "a", "2")
        await store.apply({"chat/1": b"{}"})
    finally:
        await store.close()
    assert value(at, "chat/2") == {"a": 2}
    await asyncio.to_thread(run, "rm", at.name, key, "--yes")


async def test_a_running_bot_sees_the_change_at_its_next_update(place: Make) -> None:
    """And writes on top of it."""
    seen: list[dict[Any, Any]] = []

    async def look(_: Any, context: Any) -> None:
        seen.append(dict(context.chat_data))
        context.chat_data["n"] = len(seen)

    at = await asyncio.to_thread(place, {})
    app = build(at.new(), text(look))
    async with app.app:
        await app.say("one", 1)
        await asyncio.to_thread(run, "set", at.name, "chat/1", "set", "true")
        await app.say("two", 1)
        await asyncio.to_thread(run, "rm", at.name, "chat/1", "--yes")
        await app.say("three", 1)
    assert seen == [{}, {"n": 1, "set": True}, {}]
    assert value(at, "chat/1") == {"n": 3}


def test_rows_that_wait_beside_the_file_come_first(tmp_path: Path) -> None:
    """The bot's next start would write them over the change."""
    at = file_of(tmp_path, ROWS)
    Path(f"{at.path}-rescue").touch()
    assert "start the bot first" in said("set", at.name, "chat/2", "a", "2", code=1)
    assert value(at, "chat/2") == {"a": 1}


def test_what_refuses_the_write_is_said(tmp_path: Path) -> None:
    """A lock that cannot be taken, a transaction of another program."""
    at = file_of(tmp_path, ROWS)
    lock = Path(f"{at.path}-lock")
    lock.unlink()
    lock.symlink_to(at.path)
    assert "see whose it is" in said("rm", at.name, "callback/5f", "--yes", code=1)


async def test_a_cut_off_bot_does_not_write_over_it(postgres: PostgresServer) -> None:
    """What was changed while no bot had the schema is newer than what such a one remembers."""
    at = await asyncio.to_thread(schema_of, postgres, ROWS)
    store = at.store()
    await store.open()
    opened = store._opened
    assert opened is not None
    await opened.lock.release(5)  # as when its connection is lost
    await asyncio.to_thread(run, "rm", at.name, "conversation/order", "--yes")
    with pytest.raises(UnavailableError, match="another bot has taken the schema"):
        await store.apply({"conversation/order/[1,1]": b'"PHOTO"'})
    await store.close()
