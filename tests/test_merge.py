"""Two workers that change different keys of one document both keep what they have changed."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from kvpersist.codec import Codec
from kvpersist.merge import merge

CODEC = Codec()
VALUES = st.one_of(st.integers(0, 3), st.lists(st.integers(0, 1), max_size=2), st.none())
DOCUMENTS = st.dictionaries(st.one_of(st.integers(0, 4), st.sampled_from("abc")), VALUES)


def merged(base: Any, mine: Any, theirs: Any) -> tuple[Any, list[Any]]:
    """Merge copies, and return what has become of mine."""
    mine = deepcopy(mine)
    conflicts = merge(deepcopy(base), mine, deepcopy(theirs), CODEC.encode)
    return mine, conflicts


def texts(document: dict[Any, Any]) -> dict[Any, bytes]:
    """Tell values apart as the store does: 1 is not True."""
    return {key: CODEC.encode(value) for key, value in document.items()}


@given(DOCUMENTS, DOCUMENTS, DOCUMENTS)
def test_each_key_is_what_the_one_has_made_of_it_who_has_changed_it(
    base: Any, mine: Any, theirs: Any
) -> None:
    """Where nobody has, it is as it was; where both have, it is mine, and that is told."""
    result, conflicts = merged(base, mine, theirs)
    was, is_mine, is_theirs = texts(base), texts(mine), texts(theirs)
    for key in {*base, *mine, *theirs}:
        changed_by_me = is_mine.get(key) != was.get(key)
        changed_by_them = is_theirs.get(key) != was.get(key)
        wanted = is_mine.get(key) if changed_by_me else is_theirs.get(key)
        assert texts(result).get(key) == wanted
        is_same = is_mine.get(key) == is_theirs.get(key)
        assert (key in conflicts) == (changed_by_me and changed_by_them and not is_same)


@given(DOCUMENTS, DOCUMENTS)
def test_what_only_one_has_changed_is_all_there_is(base: Any, other: Any) -> None:
    """Whichever of the two it is."""
    assert merged(base, base, other) == (other, [])
    assert merged(base, other, base) == (other, [])
    assert merged(base, other, other) == (other, [])


def test_true_is_not_one() -> None:
    """Values are told apart by how they are stored, as in a row."""
    assert merged({"a": 1}, {"a": 1}, {"a": True}) == ({"a": True}, [])
    result, _ = merged({"a": 1}, {"a": 1}, {"a": True})
    assert result["a"] is True
