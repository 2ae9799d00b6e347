"""Stored values as they are, tags included: read by a person, and by the steps of a path.

Nothing is constructed: what a tag means is shown, not made. ``docs/format.md`` has all of them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final, TypeAlias

Place: TypeAlias = tuple[Any, Any, Any, Any]
"""A key or index as the user knows it, what is there, the stored object or array that holds it, and
its place in that."""

_MAPPINGS: Final = {"$dict", "$ordereddict", "$counter", "$defaultdict"}
_SEQUENCES: Final = {"$tuple", "$set", "$frozenset", "$deque"}
_WIDTH: Final = 88
_INDENT: Final = 2
_PAIR: Final = 2


def tagged(value: Any) -> tuple[str, Any] | None:
    """Return the tag and the payload of a value; None if it is a plain one."""
    if type(value) is dict and len(value) == 1:
        ((name, payload),) = value.items()
        if name.startswith("$") and not name.startswith("$$"):
            return name, payload
    return None


def inside(value: Any) -> Iterator[Place]:
    """Yield what is directly inside a value, past its tag."""
    found = tagged(value)
    if found is not None:
        yield from _inside_tagged(*found)
    elif type(value) is dict:
        is_escaped = len(value) == 1 and next(iter(value)).startswith("$$")
        for name, item in value.items():
            yield (name[1:] if is_escaped else name), item, value, name
    elif type(value) is list:
        for index, item in enumerate(value):
            yield index, item, value, index


def _inside_tagged(tag: str, payload: Any) -> Iterator[Place]:
    if tag == "$defaultdict" and type(payload) is list and len(payload) == _PAIR:
        payload = payload[1]
    if tag in _MAPPINGS and type(payload) is list:
        for entry in payload:
            if type(entry) is list and len(entry) == _PAIR:
                yield entry[0], entry[1], entry, 1
    elif type(payload) is dict:
        for base in ("$base", "items") if tag == "$deque" else ("$base",):
            yield from inside(payload.get(base))
        yield from ((name, item, payload, name) for name, item in payload.items())
    elif tag != "$timedelta":
        yield from inside(payload)


def container(value: Any) -> dict[str, Any] | list[Any] | None:
    """Return the stored object or array that a new member or item of a value would go into."""
    found = tagged(value)
    if found is None:
        is_escaped = type(value) is dict and len(value) == 1 and next(iter(value)).startswith("$$")
        return value if type(value) in {dict, list} and not is_escaped else None
    tag, payload = found
    if type(payload) is dict and tag != "$deque" and not {"$base", "$state"} & payload.keys():
        return payload
    return payload if tag in _SEQUENCES and type(payload) is list else None


def readable(value: Any, indent: int = 0) -> str:
    """Return a value for a person: tags as words, what is long on several lines."""
    flat = _flat(value)
    if indent + len(flat) <= _WIDTH or not (parts := _parts(value)):
        return flat
    begin, items, end = parts
    if not items:
        return flat
    pad = " " * (indent + _INDENT)
    lines = [f"{pad}{label}{readable(item, indent + _INDENT)}," for label, item in items]
    return "\n".join([begin, *lines, f"{' ' * indent}{end}"])


def _flat(value: Any) -> str:
    parts = _parts(value)
    if parts is None:
        found = tagged(value)
        return json.dumps(value, ensure_ascii=False) if found is None else _scalar(*found)
    begin, items, end = parts
    return f"{begin}{', '.join(f'{label}{_flat(item)}' for label, item in items)}{end}"


def _scalar(tag: str, payload: Any) -> str:
    shown = payload if type(payload) is str else json.dumps(payload, ensure_ascii=False)
    return f"{tag.removeprefix('$').removeprefix(':')} {shown}"


def _parts(value: Any) -> tuple[str, list[tuple[str, Any]], str] | None:
    """Return how a container begins, its items with their labels, and how it ends."""
    found = tagged(value)
    if found is not None:
        return _parts_tagged(*found) if type(found[1]) in {dict, list} else None
    if type(value) is dict:
        return "{", [(f"{_flat(key)}: ", item) for key, item, *_ in inside(value)], "}"
    return ("[", [("", item) for item in value], "]") if type(value) is list else None


def _parts_tagged(tag: str, payload: Any) -> tuple[str, list[tuple[str, Any]], str]:
    if tag == "$tuple":
        return "(", [("", item) for item in payload], ",)" if len(payload) == 1 else ")"
    name = "" if tag == "$dict" else f"{tag.removeprefix('$').removeprefix(':')} "
    if tag in _MAPPINGS:
        items = [(f"{_flat(key)}: ", item) for key, item, *_ in _inside_tagged(tag, payload)]
        return f"{name}{{", items, "}"
    if type(payload) is list:
        return f"{name}[", [("", item) for item in payload], "]"
    return f"{name}{{", [(f"{member}: ", item) for member, item in payload.items()], "}"
