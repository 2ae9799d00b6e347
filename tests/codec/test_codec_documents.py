"""Documents of PTB's custom context types are plain rows, and need no listing."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
from codec_samples import (
    Cart,
    Money,
    Order,
    Plain,
    Point,
    Profile,
    make_codec,
    same,
    with_attributes,
)

from kvpersist.codec import Codec, Named
from kvpersist.errors import DecodeError, EncodeError


class ChatData:
    """As in PTB's contexttypesbot example."""

    def __init__(self) -> None:
        self.clicks_per_message: defaultdict[int, int] = defaultdict(int)


class Document(dict[Any, Any]):
    __slots__ = ()


@dataclass
class Settings:
    language: str = "en"
    pages: tuple[int, ...] = ()
    seen: set[int] = field(default_factory=set)


def chat_data() -> ChatData:
    data = ChatData()
    data.clicks_per_message[7] += 1
    return data


@pytest.mark.parametrize(
    ("value", "row"),
    [
        ({"a": 1}, b'{"a":1}'),
        ({}, b"{}"),
        ({1: 2}, b'{"$dict":[[1,2]]}'),
        (Document(a=1), b'{"a":1}'),
        (Document(), b"{}"),
        (Document({1: (2,)}), b'{"$dict":[[1,{"$tuple":[2]}]]}'),
        (Document({"$tuple": []}), b'{"$$tuple":[]}'),
        (Document({"$:Document": 1}), b'{"$$:Document":1}'),
        (Cart(a=1), b'{"a":1}'),
        (with_attributes(Cart(a=1), {"owner": 5}), b'{"$:Cart":{"$base":{"a":1},"owner":5}}'),
        (Settings(pages=(1,)), b'{"language":"en","pages":{"$tuple":[1]},"seen":{"$set":[]}}'),
        (Order("a"), b'{"item":"a","price":0,"notes":[]}'),
        (
            Profile(name="a", age=2),
            b'{"$:Profile":{"name":"a","age":2,"$private":{"_secret":null}}}',
        ),
        (Counter("aab"), b'{"$counter":{"a":2,"b":1}}'),
        (OrderedDict(a=1), b'{"$ordereddict":{"a":1}}'),
        (defaultdict(int, a=1), b'{"$defaultdict":["int",{"a":1}]}'),
        (Money(1, "EUR"), b'{"$:money":{"$tuple":[1,"EUR"]}}'),
        ([1], b"[1]"),
    ],
)
def test_a_document_is_a_readable_row_and_comes_back_as_its_type(value: Any, row: bytes) -> None:
    """Nobody who looks at a row needs to know the class."""
    codec = make_codec()
    assert codec.encode_document(value, type(value)) == row
    assert same(codec.decode_document(row, type(value)), value)


def test_a_plain_class_needs_no_listing() -> None:
    """`context_types=` alone is enough for PTB's own example."""
    codec = Codec()
    row = codec.encode_document(chat_data(), ChatData)
    assert row == b'{"clicks_per_message":{"$defaultdict":["int",[[7,1]]]}}'
    back = codec.decode_document(row, ChatData)
    assert type(back) is ChatData
    assert same(back.clicks_per_message, chat_data().clicks_per_message)


def test_a_kind_is_not_listed_by_being_a_kind() -> None:
    """What documents may contain does not depend on what was read before."""
    codec = Codec()
    codec.encode_document(chat_data(), ChatData)
    with pytest.raises(EncodeError, match="add ChatData to types="):
        codec.encode({"a": chat_data()})


def test_rows_of_a_dict_can_become_those_of_a_class() -> None:
    """A bot that begins to use ContextTypes keeps its data."""
    row = Codec().encode({"language": "de", "extra": (1,)})
    back = Codec().decode_document(row, Settings)
    assert vars(back) == {"language": "de", "extra": (1,), "seen": set()}
    assert back.pages == ()
    assert same(Codec().decode_document(row, Document), Document(language="de", extra=(1,)))


def test_a_tagged_row_is_read_under_every_name_of_its_class() -> None:
    """An alias of a listed class holds for documents too."""
    codec = Codec([Named(Cart, "cart", aliases=("Basket",))])
    for name in (b"cart", b"Basket"):
        row = b'{"$:' + name + b'":{"$base":{"a":1},"owner":5}}'
        assert vars(codec.decode_document(row, Cart)) == {"owner": 5}


def test_a_registered_class_may_be_stored_as_any_value() -> None:
    """What is no object of its own keeps its tag."""
    codec = Codec()
    codec.register(Plain, "plain", encode=lambda plain: plain.a, decode=lambda a: Plain(a=a))
    assert codec.encode_document(Plain(a="x"), Plain) == b'{"$:plain":"x"}'
    assert same(codec.decode_document(b'{"$:plain":"x"}', Plain), Plain(a="x"))


def test_a_registered_class_of_a_document_is_read_back() -> None:
    """What `encode=` returns may be an object like any other."""
    codec = Codec()
    codec.register(Document, encode=lambda _: {"a": 1}, decode=Document)
    codec.register(Plain, encode=vars, decode=lambda attributes: Plain(**attributes))
    for value in (Document(a=1), Plain(a=1)):
        row = codec.encode_document(value, type(value))
        assert row == b'{"a":1}'
        assert same(codec.decode_document(row, type(value)), value)


@pytest.mark.parametrize(
    ("value", "kind"), [({}, Document), (Document(), dict), ([], dict), (1, Plain)]
)
def test_a_document_of_another_type_is_refused(value: Any, kind: type) -> None:
    """A row never holds what would come back as something else."""
    with pytest.raises(EncodeError, match="where ContextTypes says"):
        Codec().encode_document(value, kind)


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (b"[1]", dict),
        (b'{"$tuple":[]}', dict),
        (b"5", Settings),
        (b"[]", Document),
        (b"{", Settings),
    ],
)
def test_a_row_of_another_type_is_refused(row: bytes, kind: type) -> None:
    """PTB would fail much later, and elsewhere."""
    with pytest.raises(DecodeError):
        Codec().decode_document(row, kind)


def test_the_path_in_a_document_begins_with_its_attribute() -> None:
    """`.seen[0]`, as one would write it in a handler."""
    with pytest.raises(EncodeError) as caught:
        Codec().encode_document(Settings(pages=(1, Point)), Settings)  # type: ignore[arg-type]
    assert caught.value.path == ".pages[1]"
