"""person: what is stored of somebody is found in all scopes, exported, or gone."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from command import File, Make, Place, documents, file_of, run, said

THEIRS = {
    "chat/512": '{"name":"Ada"}',
    "user/512": '{"age":36}',
    "conversation/order/[512,512]": '"PHOTO"',
    "conversation/order/[-100,512]": "1",
}
OTHERS = {
    "bot": '{"admins":[512],"names":{"512":"Ada"},"n":1512}',
    "chat/-100": '{"members":{"$dict":[[512,"Ada"],[513,"Bob"]]},"link":"tg://user?id=512"}',
    "chat/5": '{"n":5120}',
    "conversation/order/[5,5]": '"PHOTO"',
    "conversation/odd/512": '"x"',
    "user/5120": "{}",
}
PLACES = {
    ("bot", '["admins"][0]'),
    ("bot", '["names"]["512"]'),
    ("chat/-100", '["members"]["$dict"][0][0]'),
    ("chat/-100", '["link"]'),
}


def keys_of(at: Place) -> set[str]:
    """Return all keys."""
    return {key for key, *_ in at.all_columns()}


def set_aside(at: Place) -> None:
    """Set rows aside as a bot would: one of theirs, one of another's."""
    rows = "VALUES ('chat/512', '{\"bad\":1}', 1, 1, 'bad', 1), ('chat/5', '[512]', 1, 1, 'bad', 1)"
    if isinstance(at, File):
        with closing(sqlite3.connect(at.path)) as other, other:
            other.execute(f"INSERT INTO set_aside {rows}")
    else:
        at.server.query(f"INSERT INTO {at.schema}.set_aside {rows}")  # type: ignore[attr-defined]


def test_all_of_a_person_is_found(place: Make) -> None:
    """And where else the id occurs, which is no reason to pretend."""
    at = place({**THEIRS, **OTHERS})
    set_aside(at)
    (found,) = documents("person", at.name, 512, code=1)
    assert {row["key"] for row in found["rows"]} == {*THEIRS}
    assert [row["key"] for row in found["set_aside"]] == ["chat/512"]
    places = {(each["key"], each["path"]) for each in found["elsewhere"]}
    assert places == {*PLACES, ("chat/5 (set aside)", "[0]")}
    shown = said("person", at.name, 512, code=1)
    assert "5 rows found, the id is in 5 other places" in shown
    assert keys_of(at) == {*THEIRS, *OTHERS}


def test_all_of_a_person_is_exported(place: Make, tmp_path: Path) -> None:
    """Into a new file, which its owner alone may read."""
    at = place({**THEIRS, **OTHERS})
    file = tmp_path / "ada.json"
    assert "exported" in said("person", at.name, 512, "--export", file, code=1)
    found = json.loads(file.read_bytes())
    assert {row["key"]: row["value"] for row in found["rows"]}["chat/512"] == {"name": "Ada"}
    assert len(found["elsewhere"]) == 4
    assert file.stat().st_mode & 0o777 == 0o600
    assert "is not overwritten" in said("person", at.name, 512, "--export", file, code=1)


def test_all_of_a_person_is_erased(place: Make) -> None:
    """The rows of others stay; what was set aside of the person goes too."""
    at = place({**THEIRS, **OTHERS})
    set_aside(at)
    assert "nobody to ask" in said("person", at.name, 512, "--erase", code=2)
    shown = said("person", at.name, 512, "--erase", "--yes", code=1)
    assert "erased: conversation/order/[-100,512]" in shown
    assert "erased: chat/512, 9 B, which was set aside" in shown
    assert "5 rows erased, the id is in 5 other places" in shown
    assert keys_of(at) == {*OTHERS}
    (found,) = documents("person", at.name, 512, code=1)
    assert (found["rows"], found["set_aside"]) == ([], [])
    assert documents("stats", at.name)[0]["set_aside"] == 1


def test_nothing_of_what_was_erased_is_in_the_file(tmp_path: Path) -> None:
    """Its pages are overwritten, not only freed."""
    at = file_of(tmp_path, {"chat/512": '{"name":"Rumpelstiltskin"}', "chat/5": "{}"})
    assert b"Rumpelstiltskin" in at.path.read_bytes()
    run("person", at.name, 512, "--erase", "--yes")
    files = tmp_path.glob("bot.db*")
    assert not any(b"Rumpelstiltskin" in path.read_bytes() for path in files)


def test_a_person_of_whom_nothing_is_stored(tmp_path: Path) -> None:
    """Is nothing to ask about; and ids may be negative."""
    at = file_of(tmp_path, OTHERS)
    assert "0 rows erased, the id is in 0" in said("person", at.name, 7, "--erase")
    assert "1 rows found" in said("person", at.name, "--", -100)


async def test_a_conversation_is_not_erased_under_a_bot(place: Make) -> None:
    """It would be written again. All else of a person can be erased meanwhile."""
    at = await asyncio.to_thread(place, {**THEIRS, "chat/7": "{}", "user/7": "{}"})
    store = at.new()
    await store.open()
    refused = await asyncio.to_thread(said, "person", at.name, 512, "--erase", "--yes", code=1)
    assert "Nothing was changed" in refused
    assert "erased" not in refused
    await asyncio.to_thread(run, "person", at.name, 7, "--erase", "--yes")
    await store.close()
    assert keys_of(at) == {*THEIRS}


def test_many_places_are_cut_short(tmp_path: Path) -> None:
    """A row that cannot be read is one."""
    at = file_of(tmp_path, {"bot": json.dumps({"n": [512] * 30}), "chat/1": "{512"})
    shown = said("person", at.name, 512, code=1)
    assert shown.count("left: bot") == 20
    assert "left: 11 more places; --json has all" in shown
    assert len(documents("person", at.name, 512, code=1)[0]["elsewhere"]) == 31


@pytest.mark.parametrize("person", ["x", "1.5"])
def test_what_is_no_id_is_refused(person: str, tmp_path: Path) -> None:
    """As an argument that was not understood."""
    assert "is not a valid integer" in said("person", tmp_path / "bot.db", person, code=2)
