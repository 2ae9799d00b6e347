"""Merging what two have made of one document: three ways, by top-level key."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def merge(
    base: dict[Any, Any],
    mine: dict[Any, Any],
    theirs: dict[Any, Any],
    encode: Callable[[Any], bytes],
) -> list[Any]:
    """Take over into `mine` what is different in `theirs` than it was in `base`.

    Where both have changed the same key, `mine` stays as it is.

    Args:
        base: What both began with.
        mine: One of them, which is changed.
        theirs: The other. What is taken over from it becomes a part of `mine`.
        encode: Tells values apart.

    Returns:
        The keys of which each has made something else.
    """

    def texts(document: dict[Any, Any]) -> dict[Any, bytes]:
        return {key: encode(value) for key, value in document.items()}

    was, is_mine, is_theirs = texts(base), texts(mine), texts(theirs)
    conflicts = []
    for key in {**was, **is_theirs}:
        if is_theirs.get(key) in {was.get(key), is_mine.get(key)}:
            continue
        if is_mine.get(key) != was.get(key):
            conflicts.append(key)
        elif key in theirs:
            mine[key] = theirs[key]
        else:
            del mine[key]
    return conflicts
