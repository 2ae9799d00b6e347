"""Large parts of plain values are written as a whole: exactly as if each value was looked at."""

from __future__ import annotations

from gc import get_referents
from typing import Any
from uuid import UUID

import orjson
import pytest
from codec_samples import PLAIN, VALUES, Color, Level, Mode, Name, Plain, make_codec, same
from hypothesis import given, settings
from hypothesis import strategies as st

from kvpersist.codec import plain

CODEC = make_codec()


def large(value: object, levels: int, *, in_lists: bool) -> Any:
    """Put a value so many levels deep among many that are plain."""
    for _ in range(levels):
        others: list[Any] = [{"number": number, "names": ["a", None]} for number in range(20)]
        value = [*others, value] if in_lists else dict(enumerate_names([*others, value]))
    return value


def enumerate_names(values: list[Any]) -> list[tuple[str, Any]]:
    return [(f"name {at}", value) for at, value in enumerate(values)]


@settings(max_examples=500, deadline=None)
@given(VALUES, st.integers(1, 4), st.booleans())
def test_whatever_is_among_many_plain_values_comes_back(
    value: Any, levels: int, in_lists: bool
) -> None:
    """One value that JSON has no word for is found, wherever it is."""
    document = large(value, levels, in_lists=in_lists)
    text = CODEC.encode(document)
    assert same(document, CODEC.decode(text)), text
    assert CODEC.encode(CODEC.decode(text)) == text


@pytest.mark.parametrize("levels", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "value",
    [
        (),
        (1,),
        Color.RED,
        Level.LOW,
        Mode.FAST,
        Name("a"),
        UUID(int=1),
        float("nan"),
        float("inf"),
        2**70,
        {1: 2},
    ],
)
def test_what_orjson_would_change_is_tagged(value: Any, levels: int) -> None:
    """By itself orjson writes a tuple as a list, an enum as its value, and nan as null."""
    for in_lists in (True, False):
        document = large(value, levels, in_lists=in_lists)
        text = CODEC.encode(document)
        assert b'{"$' in text
        assert same(document, CODEC.decode(text))


@settings(max_examples=300, deadline=None)
@given(PLAIN, st.booleans())
def test_the_long_way_writes_the_same(value: Any, in_lists: bool) -> None:
    """What stands beside a value does not change how it is written."""
    for document in (value, large(value, 2, in_lists=in_lists)):
        assert CODEC.encode(document) == orjson.dumps(document)
        beside = CODEC.encode([document, ()])
        assert beside == b"[" + orjson.dumps(document) + b',{"$tuple":[]}]'


def test_the_attributes_of_an_object_are_looked_at() -> None:
    """The garbage collector of newer Pythons does not show them."""
    shown = Plain(pair=(1, 2), rest=[float("nan")])
    attributes = vars(shown)
    for document in ({"x": attributes}, attributes, {"t": (), "l": [attributes] * 16}):
        assert same(document, CODEC.decode(CODEC.encode(document)))


def test_a_tuple_that_another_thread_takes_away_is_not_written_as_a_list(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Between writing a document and looking at it, another thread may change it."""
    inner: dict[str, Any] = {"pair": (1, 2)}

    def look(*values: Any) -> list[Any]:
        inner["pair"] = 5  # here the other thread gets its turn
        return get_referents(*values)

    monkeypatch.setattr(plain, "get_referents", look)
    assert CODEC.decode(CODEC.encode({"inner": inner})) == {"inner": {"pair": 5}}
