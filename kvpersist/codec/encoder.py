"""The walk that turns a document into what orjson writes without changing it.

A container is copied in one step before it is looked at, so that what was checked is what is
written, whatever other threads do. Nothing else is built for a container of plain values. The path
of an error is put together while it is on its way up, so that it costs nothing on the way down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from itertools import chain, takewhile
from typing import Any, Final, TypeAlias

from orjson import Fragment

from kvpersist.codec.form import Form
from kvpersist.codec.plain import plain_text
from kvpersist.errors import EncodeError

Encode: TypeAlias = Callable[["Encoder", Any], object]

DEPTH_LIMIT: Final = 200
"""Levels of brackets in the text; orjson gives up at 254, and Python's own stack is not endless."""
_STEP_LENGTH: Final = 40

_MANY: Final = 16
_LOOK_AHEAD: Final = 2

_QUICK: Final = frozenset({str, int, bool, type(None)})
_CAREFUL: Final = frozenset({bool, type(None)})


def show_attribute(name: str) -> str:
    """Return a step of a path, as ``.price``."""
    return f".{name}"


def show_key(key: object) -> str:
    """Return a step of a path, as ``["cart"]``."""
    if type(key) is str:
        shown = json.dumps(key, ensure_ascii=False)
    elif type(key) in {int, float, bool, bytes, type(None)}:
        shown = repr(key)
    else:
        shown = f"<{type(key).__qualname__}>"
    return f"[{shown if len(shown) <= _STEP_LENGTH else shown[:_STEP_LENGTH] + '…'}]"


class Encoder:
    """One walk over one document.

    Args:
        encoders: What to do with each type that is not plain.
        careful: Look into every str and int. They are rarely such that JSON has no word for them,
            and orjson refuses those, so that a document is walked carefully only after that.
    """

    # The loops below say in place what a method could say: a call costs more than what it would do.

    __slots__ = ("_careful", "_depth", "_encoders", "_plain")

    def __init__(self, encoders: Mapping[type, Encode], *, careful: bool) -> None:
        self._encoders = encoders
        self._plain = _CAREFUL if careful else _QUICK
        self._depth = 0
        self._careful = careful

    def value(self, value: object) -> object:
        """Return what stands for any value."""
        kind = type(value)
        return value if kind in self._plain else self._encoders[kind](self, value)

    def of_list(self, value: list[Any]) -> list[Any] | Fragment:
        """Return what stands for a list."""
        items = value.copy()
        if self._plain.issuperset(map(type, items)):
            return items
        if len(items) >= _MANY and (text := self._plain_text(value)) is not None:
            return Fragment(text)
        items = self.items(items)
        if len(items) != len(value):
            raise changed()
        return items

    def items(self, items: list[Any]) -> list[Any]:
        """Put in place of each item what stands for it. The list must be the caller's own."""
        plain, encoders = self._plain, self._encoders
        if plain.issuperset(map(type, items)):
            return items
        self._enter()
        at = 0
        try:
            for at, item in enumerate(items):
                kind = type(item)
                # A float minus itself is 0, unless it is infinite or not a number.
                if kind not in plain and not (kind is float and item - item == 0.0):
                    items[at] = encoders[kind](self, item)
        except EncodeError as error:
            raise under(f"[{at}]", error)  # noqa: B904  it is the same error
        self._depth -= 1
        return items

    def of_tuple(self, value: tuple[Any, ...]) -> dict[str, object]:
        """Return what stands for a tuple, which orjson writes as an array."""
        if self._plain.issuperset(map(type, value)):
            return {"$tuple": value}
        self._depth += 1
        items = self.items([*value])
        self._depth -= 1
        return {"$tuple": items}

    def of_dict(self, value: dict[Any, Any]) -> object:
        """Return what stands for a dict."""
        if len(value) >= _MANY and (text := self._plain_text(value)) is not None:
            return Fragment(text)
        members: Any = self.mapping(value.copy())
        if len(members) != len(value):
            raise changed()
        if type(members) is list:
            return {"$dict": members}
        if len(members) == 1:
            for name, item in members.items():
                if name[:1] == "$":
                    return {"$" + name: item}
        return members

    def _plain_text(self, value: object) -> bytes | None:
        """Return a part of the document as JSON if it is plain; not for parts of small parts."""
        if 0 < self._depth <= _LOOK_AHEAD:
            return plain_text(value, DEPTH_LIMIT - self._depth)
        return None

    def mapping(
        self, members: dict[Any, Any], show: Callable[[Any], str] = show_key
    ) -> dict[str, Any] | list[list[Any]]:
        """Put in place of each item what stands for it. The dict must be the caller's own.

        Returns:
            A JSON object if the keys allow it, and a list of pairs otherwise.
        """
        self._enter()
        plain, encoders, careful = self._plain, self._encoders, self._careful
        name: Any = ""
        try:
            for name, item in members.items():
                if type(name) is not str or (careful and has_surrogates(name)):
                    break
                kind = type(item)
                if kind not in plain and not (kind is float and item - item == 0.0):
                    members[name] = encoders[kind](self, item)
            else:
                self._depth -= 1
                return members
        except EncodeError as error:
            raise under(show(name), error)  # noqa: B904  it is the same error
        return self._pairs(members, name)

    def attributes(self, attributes: dict[str, Any]) -> dict[str, Any]:
        """Do as `mapping` does for the attributes of an object.

        Raises:
            EncodeError: Also for a name that can be no name of a JSON object.
        """
        members = self.mapping(attributes, show_attribute)
        if type(members) is list:
            raise EncodeError("an attribute whose name is no str, or has a lone surrogate in it")
        return attributes

    def _pairs(self, members: dict[Any, Any], first: object) -> list[list[Any]]:
        """Return pairs of all; what comes before the key `first` is in its final form already."""
        self._depth += 1
        plain, encoders = self._plain, self._encoders
        rest = iter(members.items())
        pairs = [[name, item] for name, item in takewhile(lambda pair: pair[0] is not first, rest)]
        todo = chain([(first, members[first])], rest)
        key: Any = None
        try:
            for key, item in todo:
                kind, item_kind = type(key), type(item)
                pairs.append(
                    [
                        key if kind in plain else encoders[kind](self, key),
                        item if item_kind in plain else encoders[item_kind](self, item),
                    ]
                )
        except EncodeError as error:
            raise under(show_key(key), error)  # noqa: B904  it is the same error
        self._depth -= 2
        return pairs

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > DEPTH_LIMIT:
            raise EncodeError(
                f"nested more than {DEPTH_LIMIT} levels deep, or it contains itself; "
                "keep ids in place of the objects they stand for"
            )


def tagging(form: Form) -> Encode:
    """Return what puts ``{tag: payload}`` in place of a value."""
    tag, encode, to_text = form.tag, form.encode, form.to_text
    if to_text is not None:
        return lambda _, value: {tag: to_text(value)}

    def tagged(encoder: Encoder, value: Any) -> dict[str, object]:
        encoder._depth += 1  # noqa: SLF001  a method would cost one call more for each value
        payload = encode(value, encoder)
        encoder._depth -= 1  # noqa: SLF001
        return {tag: payload}

    return tagged


def has_surrogates(text: str) -> bool:
    """Whether JSON, which is UTF-8, has no word for this str."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def ordered(encoder: Encoder, values: Iterable[Any]) -> list[Any]:
    """Return what stands for the items of a set, in an order that depends on nothing but them.

    Otherwise the same set would be another text after every restart, and written again.
    """
    items = list(values)
    kinds = {*map(type, items)}
    if kinds <= {str} or kinds <= {int}:
        return encoder.items(sorted(items))
    return sorted(encoder.items(items), key=lambda item: json.dumps(item, sort_keys=True))


def asked(function: Callable[[Any], object], value: Any) -> object:
    """Return what a function of the user's says to store in place of a value."""
    try:
        return function(value)
    except Exception as error:
        raise EncodeError(
            f"{function.__qualname__} of {type(value).__qualname__} raised "
            f"{type(error).__name__}: {error}"
        ) from error


def under(step: str, error: EncodeError) -> EncodeError:
    """Note that the place of an error is one step further down."""
    error.path = step + error.path
    return error


def changed() -> EncodeError:
    """Return the error for a container that another thread works on."""
    return EncodeError(
        "it changed while it was being stored; change documents on the bot's event loop only"
    )
