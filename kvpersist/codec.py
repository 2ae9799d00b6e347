"""Python values as JSON texts, exactly: `decode` returns what `encode` got, types included.

Plain JSON values are stored as plain JSON. What JSON cannot tell apart is stored as an object of
one member whose name is a tag: ``("page", 3)`` becomes ``{"$tuple": ["page", 3]}``. A dict of the
user's that looks like a tagged value gets one more ``$`` in front of its only key. Everything else
is refused: nothing is ever changed without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite
from typing import Any, Final, TypeVar, cast

import orjson

from kvpersist.errors import DecodeError, EncodeError
from kvpersist.plain import plain_text

T = TypeVar("T")

_TUPLE: Final = "$tuple"
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_MAX_DEPTH: Final = 200


class Codec:
    """Encodes and decodes documents.

    Args:
        types: The user's own classes that documents may contain.
    """

    def __init__(self, types: tuple[type, ...] = ()) -> None:
        self.types = types

    def encode(self, value: object) -> bytes:
        """Return `value` as JSON, in UTF-8.

        Raises:
            EncodeError: With the path to what cannot be stored exactly. It names no row.
        """
        if (text := plain_text(value)) is not None:
            return text
        try:
            return orjson.dumps(_to_json(value, 0))
        except _RefusedError as error:
            raise EncodeError(
                f"{error.found} cannot be stored exactly; use dict (with str keys), list, tuple, "
                "str, int of 64 bits, finite float, bool and None",
                path=error.path,
            ) from None

    def decode(self, text: bytes) -> Any:
        """Return the value that `encode` made `text` from.

        Raises:
            DecodeError: `text` is no JSON, or has a tag that is not known. It names no row.
        """
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise DecodeError(f"not valid JSON ({error}); mend or delete the row") from error
        return _from_json(value) if b'"$' in text else value

    def encode_document(self, document: object, kind: type) -> bytes:
        """Return a whole document, an instance of its context type `kind`, as JSON.

        Raises:
            EncodeError: As `encode` does; also when `document` is not exactly of type `kind`, or
                is of a class that `decode_document` could not build.
        """
        if type(document) is not kind or not isinstance(document, dict):
            found = f"{type(document).__module__}.{type(document).__qualname__}"
            raise EncodeError(
                f"cannot store a {found} as a document; use dict, or a subclass of it"
            )
        if getattr(document, "__dict__", None):
            raise EncodeError(
                f"attributes of a dict subclass cannot be stored ({', '.join(vars(document))}); "
                "keep them as items"
            )
        return self.encode(dict(document))

    def decode_document(self, text: bytes, kind: Callable[[], T]) -> T:
        """Return the document that `encode_document` made `text` from, as a `kind`.

        Raises:
            DecodeError: As `decode` does; also when `text` is not an object.
        """
        value = self.decode(text)
        if type(value) is not dict:
            raise DecodeError(
                f"a document is an object, not {str(value)[:40]!r}; mend or delete the row"
            )
        if kind is dict:
            return value  # type: ignore[return-value]
        document = kind()
        # What the class puts into a new instance may have been taken out of this one.
        cast("dict[str, Any]", document).clear()
        cast("dict[str, Any]", document).update(value)
        return document


class _RefusedError(Exception):
    """What cannot be stored; the way to it is added, innermost step first, while this rises."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found
        self.steps: list[object] = []

    @property
    def path(self) -> str:
        steps = self.steps[::-1]
        return "".join(f"[{orjson.dumps(step, default=repr).decode()}]" for step in steps)


def _to_json(value: Any, depth: int) -> object:
    """Return `value` in types that orjson writes as they are."""
    encode = _ENCODERS.get(type(value))
    if encode is None:
        kind = type(value)
        raise _RefusedError(f"a value of type {kind.__module__}.{kind.__qualname__}")
    if depth > _MAX_DEPTH:
        raise _RefusedError(f"containers nested deeper than {_MAX_DEPTH}, or a cycle,")
    return encode(value, depth)


def _same(value: object, _: int) -> object:
    return value


def _str_to_json(value: str, _: int) -> str:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _RefusedError(f"a str with a lone surrogate, {value!r:.80},") from None
    return value


def _int_to_json(value: int, _: int) -> int:
    if _MIN_INT <= value <= _MAX_INT:
        return value
    raise _RefusedError("an int of more than 64 bits")


def _float_to_json(value: float, _: int) -> float:
    if isfinite(value):
        return value
    raise _RefusedError(f"the float {value!r}, for which JSON has no word,")


def _list_to_json(value: Sequence[object], depth: int) -> list[object]:
    items: list[object] = []
    try:
        for item in value:
            items.append(_to_json(item, depth + 1))  # noqa: PERF401  the length says where it failed
    except _RefusedError as error:
        error.steps.append(len(items))
        raise
    return items


def _tuple_to_json(value: tuple[object, ...], depth: int) -> object:
    return {_TUPLE: _list_to_json(value, depth)}


def _dict_to_json(value: dict[object, object], depth: int) -> object:
    members: dict[str, object] = {}
    for key, item in value.items():
        if type(key) is not str:
            raise _RefusedError(f"the key {key!r:.80} of type {type(key).__qualname__}")
        try:
            members[_str_to_json(key, depth)] = _to_json(item, depth + 1)
        except _RefusedError as error:
            error.steps.append(key)
            raise
    if len(members) == 1 and (name := next(iter(members))).startswith("$"):
        return {"$" + name: members[name]}
    return members


_ENCODERS: Final[dict[type, Callable[[Any, int], object]]] = {
    type(None): _same,
    bool: _same,
    str: _str_to_json,
    int: _int_to_json,
    float: _float_to_json,
    list: _list_to_json,
    tuple: _tuple_to_json,
    dict: _dict_to_json,
}


def _from_json(value: Any) -> Any:
    if type(value) is list:
        return [_from_json(item) for item in value]
    if type(value) is not dict:
        return value
    if len(value) == 1 and (tag := next(iter(value))).startswith("$"):
        return _from_tagged(tag, value[tag])
    return {key: _from_json(item) for key, item in value.items()}


def _from_tagged(tag: str, payload: Any) -> Any:
    if tag.startswith("$$"):
        return {tag[1:]: _from_json(payload)}
    if tag == _TUPLE and type(payload) is list:
        return tuple(_from_json(item) for item in payload)
    raise DecodeError(f"cannot read the tag {tag!r}; a newer kvpersist may")
