"""check: whether a bot could read all of a store, told without the bot."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from codec_samples import TYPES, VALUES, register_money
from command import Make, documents, file_of, said
from hypothesis import given, settings

from kvpersist import Codec
from kvpersist.cli.judging import Judge
from kvpersist.cli.opening import codec_of
from kvpersist.telegram_objects import TelegramObjects

CODEC = Codec(TYPES, extensions=[TelegramObjects(lambda: None)])
register_money(CODEC)
JUDGES = [Judge(codec_of(())), Judge(CODEC)]
GOOD = {
    "bot": "{}",
    "chat/1": '{"a":{"$:Order":{"item":{"$:Color":"RED"},"n":{"$set":[{"$:Color":"RED"}]}}}}',
    "chat/2": '{"$:Data":{"$x":1}}',
    "chat/3": '{"d":{"$defaultdict":[":Basket",{"tea":{"$date":"2026-01-02"}}]}}',
    "user/-1": '{"u":{"$telegram.User":{"first_name":"A","id":1,"is_bot":false}}}',
    "user/1": '{"b":{"$telegram.Bot":null}}',
    "callback/5f": '{"position":1,"access_time":1.5,"buttons":{"a":1},"queries":{}}',
    "callback/5e": '{"queries":{"9":2}}',
    'conversation/a%2Fb/[1,"x"]': '{"$:Stage":"ITEM"}',
    "update/77": "{}",
}
BAD = {
    "chat/x": ("{}", "is not the id of a chat"),
    "chat/01": ("{}", "is not the id of a chat"),
    "chat/3": ("{", "not valid JSON"),
    "chat/4": ('{"n":123456789012345678901234567890}', "more than 64 bits"),
    "chat/5": ('{"a":1,"a":2}', "have the name 'a'"),
    "chat/6": ("[]", "no document"),
    "chat/7": ('{"t":{"$date":"soon"}}', '["t"]: cannot read $date'),
    "chat/8": ('{"t":{"$new":1}}', "the tag '$new' is not known"),
    "chat/9": ('{"o":{"$:Odd":{"a":{"$date":"x"}}}}', "in an object of Odd: cannot read $date"),
    "user/2": ("null", "no document"),
    "bot/1": ("{}", "no key of kvpersist's"),
    "update/x": ("{}", "no key of kvpersist's"),
    "callback/1": ("{}", "not a keyboard"),
    "callback/a/b": ('{"queries":{}}', "not the key of a keyboard"),
    "conversation/order": ("1", "not the key of a conversation"),
    "conversation/order/[1, 1]": ("1", "not the key of a conversation"),
    "conversation/order/{}": ("1", "not the key of a conversation"),
}


def test_what_a_bot_can_read_is_good(place: Make) -> None:
    """Also with classes that are not known here; they are counted."""
    at = place(GOOD)
    assert documents("check", at.name) == []
    shown = said("check", at.name)
    assert "2 rows have objects of" not in shown
    assert "1 rows have objects of Order, not looked into; name it with --types" in shown
    assert "schema 1, 10 rows, 0 faults" in shown


@pytest.mark.parametrize("key", BAD)
def test_what_a_bot_cannot_read_is_told(key: str) -> None:
    """With what to do, for each row."""
    text, reason = BAD[key]
    assert reason in Judge(codec_of(())).row(key, text.encode()).fault


def test_each_fault_is_a_line(tmp_path: Path) -> None:
    """And the exit code tells that there are any."""
    at = file_of(tmp_path, {**GOOD, **{key: text for key, (text, _) in BAD.items()}})
    assert {line["key"] for line in documents("check", at.name, code=1)} == {*BAD}
    assert f"{len(BAD)} faults" in said("check", at.name, code=1)


def test_with_types_objects_are_looked_into(tmp_path: Path) -> None:
    """A member that the class does not have is a fault then."""
    Path("judged.py").write_text("from enum import Enum\nclass Color(Enum):\n    RED = 1\n")
    at = file_of(tmp_path, {"chat/1": '{"c":{"$:Color":"BLUE"}}'})
    assert documents("check", at.name) == []
    (line,) = documents("check", at.name, "--types", "judged:Color", code=1)
    assert "cannot read $:Color" in line["fault"]


@settings(max_examples=60)
@given(value=VALUES)
def test_all_that_the_codec_writes_is_good(value: object) -> None:
    """Whatever it is, whether its class is known or not."""
    text = CODEC.encode({"value": value})
    for judge in JUDGES:
        assert not judge.row("chat/1", text).fault


def test_columns_of_other_types_are_told(tmp_path: Path) -> None:
    """And rows that wait beside the file, and those that were set aside."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    with closing(sqlite3.connect(at.path)) as other, other:
        other.execute("UPDATE documents SET version = 'two'")
        other.execute("INSERT INTO set_aside VALUES ('chat/9', '{', 1, 1, 'bad', 1)")
    Path(f"{at.path}-rescue").touch()
    shown = said("check", at.name, code=1)
    assert "chat/1: a column is of a type" in shown
    assert "bot.db-rescue holds rows" in shown
    assert "1 rows are set aside" in shown
    assert "set aside                1 rows" in said("stats", at.name)


def test_a_store_without_the_table_of_rows_that_were_set_aside_is_good(tmp_path: Path) -> None:
    """The first files had none."""
    at = file_of(tmp_path, {"chat/1": "{}"})
    with closing(sqlite3.connect(at.path)) as other, other:
        other.execute("DROP TABLE set_aside")
    assert "0 faults" in said("check", at.name)
