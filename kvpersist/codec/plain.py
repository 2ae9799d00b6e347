"""What JSON has words for: found at the speed of C, a whole level of a document at a time.

The garbage collector is asked for what all containers of one level hold, so that no step of Python
is needed for each container. It does not show the keys of a dict that has only str keys, and need
not: orjson itself refuses all others.
"""

from __future__ import annotations

from gc import get_referents
from math import isfinite
from typing import Any, Final

import orjson

_DOLLAR: Final = ord("$")
_ATOMS: Final = frozenset({str, int, bool, type(None)})
_CONTAINERS: Final = frozenset({dict, list})
_ALL: Final = _ATOMS | _CONTAINERS | {float}
_STRICT: Final = (
    orjson.OPT_PASSTHROUGH_DATACLASS
    | orjson.OPT_PASSTHROUGH_DATETIME
    | orjson.OPT_PASSTHROUGH_SUBCLASS
)


def plain_text(value: object, levels: int) -> bytes | None:
    """Return a dict or list as JSON if orjson alone writes it exactly, and None otherwise.

    What comes back is what `value` held at one moment, though other threads may change it.

    Args:
        value: What is neither a dict nor a list takes the long way.
        levels: How many levels of containers there may be.
    """
    # Most that is not plain shows at the top, before anything was written in vain.
    if type(value) is dict:
        kinds = map(type, value.values())
    elif type(value) is list:
        kinds = map(type, value)
    else:
        return None
    if not _ALL.issuperset(kinds):
        return None
    try:
        # First, because it refuses what would make _is_plain walk for ever: cycles.
        text = orjson.dumps(value, option=_STRICT)
    except orjson.JSONEncodeError:
        return None
    # What begins with "$" may have to be escaped. Looking for one byte is by far the fastest.
    if (_DOLLAR in text and b'"$' in text) or not _is_plain(value, levels, b"null" in text):
        return None
    return text


def _is_plain(value: object, levels: int, has_null: bool) -> bool:
    """Whether what orjson has taken is made of JSON's own types.

    orjson writes a tuple as a list, an enum as its value, nan as null, without a word.
    """
    values: list[Any] = [value]
    for _ in range(levels):
        values = get_referents(*values)
        kinds = {*map(type, values)}
        if not kinds <= _ALL:
            return False
        # A sum is finite only if all that was added up is.
        if has_null and float in kinds and not isfinite(sum(_floats(values))):
            return False
        if _CONTAINERS.isdisjoint(kinds):
            return True
    return False


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
