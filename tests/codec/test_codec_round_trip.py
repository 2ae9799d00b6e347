"""What was encoded comes back: equal, and of the same types all the way down."""

from __future__ import annotations

import re
import sqlite3
from collections import defaultdict
from ipaddress import ip_interface, ip_network
from typing import Any
from uuid import UUID, SafeUUID

import orjson
import pytest
from codec_samples import HASHABLES, PLAIN, VALUES, Cart, Profile, make_codec, same
from hypothesis import example, given, settings

CODEC = make_codec()


@settings(max_examples=1000, deadline=None)
@given(VALUES)
def test_every_value_comes_back_the_same(value: Any) -> None:
    """Every supported type round-trips inside every container, and its text is stable."""
    text = CODEC.encode(value)
    back = CODEC.decode(text)
    assert same(value, back), text
    assert CODEC.encode(back) == text
    CODEC.check(text)


@settings(max_examples=400, deadline=None)
@given(HASHABLES)
def test_every_hashable_value_can_be_a_key(key: Any) -> None:
    """Keys of any type stand side by side, in their order."""
    value = {key: 1, "1": 2, 1: 3, None: 4, (1,): 5}
    assert same(value, CODEC.decode(CODEC.encode(value)))


@settings(max_examples=500, deadline=None)
@given(PLAIN)
@example({"a": -0.0, "b": [5e-324, 1.7976931348623157e308]})
def test_plain_json_is_stored_byte_for_byte(value: Any) -> None:
    """What JSON has words for is neither tagged nor changed."""
    text = CODEC.encode(value)
    assert text == orjson.dumps(value)
    assert same(value, CODEC.decode(text))


@settings(max_examples=100, deadline=None)
@given(VALUES)
def test_sqlite_reads_every_text_as_json(value: Any) -> None:
    """A row is valid JSON for SQLite, and comes back from it as it was."""
    text = CODEC.encode(value)
    with sqlite3.connect(":memory:") as database:
        row = database.execute("select json_valid(?), ?", [text.decode()] * 2).fetchone()
    database.close()
    assert row == (1, text.decode())


@pytest.mark.parametrize(
    "value", [{"$tuple": [1]}, {"$$tuple": [1]}, {"$": 1}, {"$:Order": {}}, {"$x": (1,)}]
)
def test_a_dict_that_looks_like_a_tag_is_escaped(value: Any) -> None:
    """Nobody's own data is taken for a tag."""
    text = CODEC.encode(value)
    assert text.startswith(b'{"$$')
    assert same(value, CODEC.decode(text))


def test_a_dict_of_two_members_is_not_escaped() -> None:
    """A tagged value has one member; more members cannot be taken for one."""
    assert CODEC.encode({"$tuple": [1], "b": 2}) == b'{"$tuple":[1],"b":2}'
    assert CODEC.decode(b'{"$tuple":[1],"b":2}') == {"$tuple": [1], "b": 2}


def test_networks_that_have_worked_something_out_come_back() -> None:
    """What `ipaddress` keeps in a network for itself is no attribute of the user's."""
    network, interface = ip_network("10.0.0.0/8"), ip_interface("fe80::1/64")
    for each in (network, interface.network):
        assert each.broadcast_address != each.hostmask
    for value in (network, interface, interface.network):
        assert CODEC.decode(CODEC.encode(value)) == value


def test_patterns_of_one_document_do_not_count_for_another() -> None:
    """Each document may have as many patterns as any other."""
    patterns = [re.compile("[a-я]" * 99 + str(at)) for at in range(15)]
    for _ in range(5):
        assert CODEC.decode(CODEC.encode(patterns)) == patterns


def test_each_occurrence_of_an_object_is_a_copy() -> None:
    """Shared references are stored once for each place, as documented."""
    shared = [1]
    first, second = CODEC.decode(CODEC.encode([shared, shared]))
    assert first == second == [1]
    assert first is not second


def test_the_value_is_left_as_it_is() -> None:
    """Encoding changes nothing in what it is given."""
    value = {"a": [(1, {2: {3}})], "b": {"c": {"d": (4,)}}}
    CODEC.encode(value)
    assert same(value, {"a": [(1, {2: {3}})], "b": {"c": {"d": (4,)}}})


def test_the_text_of_a_set_does_not_depend_on_the_order_of_hashing() -> None:
    """The same set is the same text after a restart, so that it is not written again."""
    assert CODEC.encode({"b", "a", "c"}) == b'{"$set":["a","b","c"]}'
    assert CODEC.encode({10, 9, -1}) == b'{"$set":[-1,9,10]}'
    assert CODEC.encode({"a", 1, (2,)}) == b'{"$set":["a",1,{"$tuple":[2]}]}'


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (UUID(int=1, is_safe=SafeUUID.safe), None),
        (defaultdict(None, {1: 2}), b'{"$defaultdict":[null,[[1,2]]]}'),
        (defaultdict(None, a=1), b'{"$defaultdict":[null,{"a":1}]}'),
        (defaultdict(Cart), b'{"$defaultdict":[":Cart",{}]}'),
        (Profile(name="a", age=1), None),
        ([[0]] * 20 + [{"$a": 1, "b": {"c": 2}}], None),
        ([[0]] * 20 + [{"b": {"c": (1,)}}], None),
        ([[0]] * 20 + [{"b": [{"$a": 1}]}], None),
        ([{"b": [{"a": 1}]}] * 20 + [(1,)], None),
        ([[{"a": 1}]] * 20, None),
    ],
    ids=repr,
)
def test_what_chance_may_leave_out_comes_back(value: Any, text: bytes | None) -> None:
    """Rare values and shapes, which the tests above seldom make, are stored exactly as well."""
    document = {"first": (1,), "value": value}
    stored = CODEC.encode(document)
    assert same(CODEC.decode(stored), document)
    assert text is None or stored == b'{"first":{"$tuple":[1]},"value":' + text + b"}"
