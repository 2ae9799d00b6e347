"""Documents of plain JSON types, as most are: checked and encoded at the speed of C."""

from __future__ import annotations

from gc import get_referents
from math import isfinite
from typing import Final

import orjson

_LEVELS: Final = 60
_ATOMS: Final = frozenset({str, int, bool, type(None)})
_CONTAINERS: Final = frozenset({dict, list})


def plain_text(value: object) -> bytes | None:
    """Return `value` as JSON if it can be told at once that this is exact; None if not.

    None says nothing about `value`, but that `Codec` must take the long way. What comes back is
    what the long way would return.
    """
    if type(value) not in _CONTAINERS:
        return None
    try:
        # First, because it refuses what would make `_is_plain` walk for ever: cycles.
        text = orjson.dumps(value)
    except orjson.JSONEncodeError:
        return None
    # What begins with "$" may have to be escaped. Looking for one byte is by far the fastest.
    if (b"$" in text and b'"$' in text) or not _is_plain(value):
        return None
    return text


def _is_plain(value: object) -> bool:
    """Whether `value`, which orjson has taken, is made of JSON's own types.

    orjson writes a tuple as a list, an enum as its value, nan as null, without a word. Asking the
    collector for all that a level refers to costs one call a level, not one a container. It does
    not show the keys of a dict that has only str keys, and needs not.
    """
    level = [value]
    for _ in range(_LEVELS):
        level = [item for item in get_referents(*level) if type(item) not in _ATOMS]
        kinds = {*map(type, level)}
        if float in kinds:
            # A sum is finite only if all that was added up is.
            if not isfinite(sum([item for item in level if type(item) is float])):
                return False
            level = [item for item in level if type(item) is not float]
            kinds.remove(float)
        if not level:
            return True
        if not kinds <= _CONTAINERS:
            return False
    return False
