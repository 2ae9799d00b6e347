"""Python values as JSON texts, exactly: what `decode` returns is what `encode` got, types included.

Plain JSON values are stored as plain JSON. What JSON cannot tell apart is stored as an object of one
member whose name is a tag: ``("page", 3)`` becomes ``{"$tuple": ["page", 3]}``. A dict of the user's
that looks like a tagged value gets one more ``$`` in front of its only key. Everything else is
refused: nothing is ever changed without a word.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

import orjson

from kvpersist.errors import DecodeError, EncodeError

T = TypeVar("T")

_TUPLE: Final = "$tuple"
_MIN_INT, _MAX_INT = -(2**63), 2**64 - 1
_MAX_DEPTH: Final = 200
_ATOMS: Final = frozenset({bool, type(None)})


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
        return orjson.dumps(_to_json(value, ()))

    def decode(self, text: bytes) -> Any:
        """Return the value that `encode` made `text` from.

        Raises:
            DecodeError: `text` is no JSON, or has a tag that is not known. It names no row.
        """
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise DecodeError(f"not valid JSON ({error}); mend or delete the row") from error
        return _from_json(value, ()) if b'"$' in text else value

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
            raise DecodeError(f"a document is an object, this is {value!r:.40}; mend or delete it")
        if kind is dict:
            return value  # type: ignore[return-value]
        document = kind()
        cast("dict[str, Any]", document).update(value)
        return document


_Path = tuple[object, ...]


def _to_json(value: object, path: _Path) -> object:
    """Return `value` in types that orjson writes as they are; the same object where it can be."""
    kind = type(value)
    if kind in _ATOMS:
        return value
    if kind is str:
        return _checked_str(value, path)
    if kind is int:
        if _MIN_INT <= value <= _MAX_INT:  # type: ignore[operator]
            return value
        raise _refused("an int of more than 64 bits", path)
    if kind is float:
        if value - value == 0.0:  # type: ignore[operator]
            return value
        raise _refused(f"the float {value!r}, which JSON has no word for", path)
    if len(path) >= _MAX_DEPTH:
        raise _refused(f"containers nested deeper than {_MAX_DEPTH}, or a cycle,", path[:8])
    if kind is dict:
        return _dict_to_json(value, path)  # type: ignore[arg-type]
    if kind is list:
        return [_to_json(item, (*path, at)) for at, item in enumerate(value)]  # type: ignore[arg-type]
    if kind is tuple:
        return {_TUPLE: [_to_json(item, (*path, at)) for at, item in enumerate(value)]}  # type: ignore[arg-type]
    raise _refused(f"a value of type {kind.__module__}.{kind.__qualname__}", path)


def _dict_to_json(value: dict[object, object], path: _Path) -> object:
    members: dict[str, object] = {}
    for key, item in value.items():
        if type(key) is not str:
            raise _refused(f"a key of type {type(key).__qualname__}, {key!r},", path)
        members[_checked_str(key, path)] = _to_json(item, (*path, key))
    if len(members) == 1 and (key := next(iter(members))).startswith("$"):
        return {"$" + key: members[key]}
    return members


def _checked_str(value: Any, path: _Path) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise _refused(f"a str with a lone surrogate, {value!r},", path) from error
    return value  # type: ignore[no-any-return]


def _from_json(value: Any, path: _Path) -> Any:
    if type(value) is list:
        return [_from_json(item, (*path, at)) for at, item in enumerate(value)]
    if type(value) is not dict:
        return value
    if len(value) == 1 and (tag := next(iter(value))).startswith("$"):
        if tag.startswith("$$"):
            return {tag[1:]: _from_json(value[tag], (*path, tag[1:]))}
        if tag == _TUPLE and type(value[tag]) is list:
            return tuple(_from_json(item, (*path, at)) for at, item in enumerate(value[tag]))
        raise DecodeError(f"cannot read the tag {tag!r}; a newer kvpersist may", path=_shown(path))
    return {key: _from_json(item, (*path, key)) for key, item in value.items()}


def _refused(found: str, path: _Path) -> EncodeError:
    return EncodeError(
        f"{found} cannot be stored exactly; use dict (with str keys), list, tuple, str, int of 64 "
        "bits, finite float, bool and None",
        path=_shown(path),
    )


def _shown(path: _Path) -> str:
    return "".join(f"[{step!r}]" for step in path)
