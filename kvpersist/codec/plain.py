"""What JSON has words for: found at the speed of C, a whole level of a document at a time.

The garbage collector is asked for what all containers of one level hold, so that no step of Python
is needed for each container. It does not show the keys of a dict that has only str keys, and need
not: orjson itself refuses all others.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from gc import get_referents
from math import isfinite
from typing import Any, Final

import orjson

_DOLLAR: Final = ord("$")
_CONTAINERS: Final = frozenset({dict, list})
_ALL: Final = frozenset({str, int, float, bool, type(None)}) | _CONTAINERS
_HIDES: Final = sys.version_info >= (3, 13)
"""Whether nothing is shown of a dict that is the ``__dict__`` of an object."""
_STRICT: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def plain_text(value: object, levels: int) -> bytes | None:
    """Return a dict or list as JSON if orjson alone writes it exactly, and None otherwise.

    Args:
        value: What is neither a dict nor a list takes the long way.
        levels: How many levels of containers there may be.
    """
    # Most that is not plain shows at the top, before anything was written in vain.
    if type(value) is dict:
        items: Iterable[Any] = value.values()
    elif type(value) is list:
        items = value
    else:
        return None
    if not items:
        return b"{}" if type(value) is dict else b"[]"
    if not _ALL.issuperset(map(type, items)):
        return None
    try:
        # First, because it refuses what would make _is_plain walk for ever: cycles.
        text = orjson.dumps(value, option=_STRICT)
    except orjson.JSONEncodeError:
        return None
    # What begins with "$" may have to be escaped. Looking for one byte is by far the fastest.
    if (_DOLLAR in text and b'"$' in text) or not _is_plain(value, levels, b"null" in text):
        return None
    # Another thread may have put a list in the place of a tuple, which is in the text as a list.
    return text if orjson.dumps(value, option=_STRICT) == text else None


def _is_plain(value: dict[Any, Any] | list[Any], levels: int, has_null: bool) -> bool:
    """Whether what orjson has taken is made of JSON's own types.

    orjson writes a tuple as a list, an enum as its value, nan as null, without a word.
    """
    values: list[Any] = [value]
    for _ in range(levels):
        holders, values = values, get_referents(*values)
        if _HIDES and len(values) < _held(holders):  # pragma: no cover  depends on Python
            return False
        kinds = {*map(type, values)}
        if not kinds <= _ALL:
            return False
        # A sum is finite only if all that was added up is.
        if has_null and float in kinds and not isfinite(sum(_floats(values))):
            return False
        if _CONTAINERS.isdisjoint(kinds):
            return True
    return False


def _held(values: list[Any]) -> int:  # pragma: no cover  as above
    return sum([len(value) for value in values if type(value) in _CONTAINERS])


def _floats(values: list[Any]) -> list[float]:
    return [value for value in values if type(value) is float]


def has_tags(items: list[Any]) -> bool:
    """Whether anywhere in an array that orjson has read there is an object that looks like a tag.

    orjson reads at most some 1000 levels.
    """
    values = items
    while True:
        kinds = {*map(type, values)}
        if dict in kinds:
            dicts = values if len(kinds) == 1 else [each for each in values if type(each) is dict]
            if 1 in map(len, dicts) and any(map(_looks_like_tag, dicts)):
                return True
        elif list not in kinds:
            return False
        values = get_referents(*values)


def _looks_like_tag(members: dict[str, Any]) -> bool:
    return len(members) == 1 and any(name[:1] == "$" for name in members)
