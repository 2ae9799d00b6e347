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
    # What begins with "$" may have to be escaped.
    if b'"$' in text or not _is_plain(value):
        return None
    return text


def _is_plain(value: object) -> bool:
    """Whether `value` is made of the types that orjson writes as what they are.

    orjson writes a tuple as a list, an enum as its value, nan as null. Asking the collector for all
    that a level refers to costs one call a level, not one a container. It does not show the keys
    of a dict that has only str keys, and needs not: orjson refuses all others.
    """
    level = [value]
    for _ in range(_LEVELS):
        found = get_referents(*level)
        kinds = {*map(type, found)} - _ATOMS
        if not kinds:
            return True
        if float in kinds:
            if not all(isfinite(item) for item in found if type(item) is float):
                return False
            kinds.remove(float)
        if not kinds <= _CONTAINERS:
            return False
        level = [item for item in found if type(item) in _CONTAINERS]
        if not level:
            return True
    return False
