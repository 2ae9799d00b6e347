"""The walk that turns a document into what orjson writes without changing it.

A container is copied in one step before it is looked at, so that what was checked is what is
written. Large parts that are plain are not: see `plain`. Nothing else is built for a container of
plain values. The path of an error is put together while it is on its way up, so that it costs
nothing on the way down.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import chain, islice, takewhile
from operator import eq
from typing import Any, Final, TypeAlias

from orjson import Fragment

from kvpersist.codec.form import Form
from kvpersist.codec.plain import plain_text
from kvpersist.errors import EncodeError

Encode: TypeAlias = Callable[["Encoder", Any], object]

DEPTH_LIMIT: Final = 254
"""Levels of brackets in the text. orjson has the last word, which is the same; an encoder counts
some of them only, so that it ends for what contains itself."""
SAME_HASHES: Final = 32
"""How many keys of one hash there may be: what they take grows with the square of their number."""
_COMPARED_BITS: Final = 2**16
"""Of ints among keys of one hash: comparing one with a Decimal takes time that grows with the
square of its length."""
_STEP_LENGTH: Final = 40

_MANY: Final = 16
_LOOK_AHEAD: Final = 2
"""Down to this level large parts are written at once. `ordered` must meet none of them: the items
of a set are below it."""

_QUICK: Final = frozenset({str, int, bool, type(None)})
_CAREFUL: Final = frozenset({bool, type(None)})


def show_attribute(name: str) -> str:
    """Return a step of a path, as ``.price``."""
    return f".{name}"


def show_key(key: object) -> str:
    """Return a step of a path, as ``["cart"]``."""
    if type(key) is str:
        shown = json.dumps(key, ensure_ascii=False)
    elif type(key) is int:  # Python refuses to write very long ones in decimal
        shown = str(key) if abs(key) < 10**_STEP_LENGTH else hex(key)
    elif type(key) in {float, bool, bytes, type(None)}:
        shown = repr(key)
    else:
        shown = f"<{type(key).__qualname__}>"
    shown = shown.encode(errors="backslashreplace").decode()
    return f"[{shown if len(shown) <= _STEP_LENGTH else shown[:_STEP_LENGTH] + '…'}]"


class Encoder:
    """One walk over one document.

    Args:
        encoders: What to do with each type that is not plain.
        careful: Look into every str and int. They are rarely such that JSON has no word for them,
            and orjson refuses those, so that a document is walked carefully only after that.
    """

    # The loops below say in place what a method could say: a call costs more than what it would do.

    __slots__ = ("_careful", "_depth", "_encoders", "_plain", "patterns_cost")

    def __init__(self, encoders: Mapping[type, Encode], *, careful: bool) -> None:
        self._encoders = encoders
        self._plain = _CAREFUL if careful else _QUICK
        self._depth = 0
        self._careful = careful
        self.patterns_cost = 0

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
            # Nothing writes more than two brackets for each level that it counts, and orjson does
            # not look into the text.
            return plain_text(value, DEPTH_LIMIT - 2 * self._depth)
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
        if not isinstance(members, dict):
            raise EncodeError("an attribute whose name is no str, or has a lone surrogate in it")
        return members

    def _pairs(self, members: dict[Any, Any], first: object) -> list[list[Any]]:
        """Return pairs of all; what comes before the key `first` is in its final form already."""
        refuse_keys(members)
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
            raise too_deep()


def tagging(form: Form) -> Encode:
    """Return what puts ``{tag: payload}`` in place of a value."""
    tag, encode, to_text = form.tag, form.encode, form.to_text
    if to_text is not None:
        return lambda _, value: {tag: to_text(value)}

    def tagged(encoder: Encoder, value: Any) -> dict[str, object]:
        encoder._depth += 1  # noqa: SLF001  its own class; a method would cost one call more
        try:
            payload = encode(value, encoder)
        except EncodeError:
            raise
        except Exception as error:
            raise raised(error) from error
        encoder._depth -= 1  # noqa: SLF001  its own class
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
    refuse_keys(items)
    kinds = {*map(type, items)}
    if kinds <= {str} or kinds <= {int}:
        return encoder.items(sorted(items))
    return sorted(encoder.items(items), key=lambda item: json.dumps(item, sort_keys=True))


def asked(function: Callable[[Any], object], value: Any) -> object:
    """Return what a function of the user's says to store in place of a value."""
    try:
        return function(value)
    except Exception as error:
        name = getattr(function, "__qualname__", type(function).__qualname__)
        raise EncodeError(
            f"{name} of {type(value).__qualname__} raised {type(error).__name__}: {error}"
        ) from error


def crowded(keys: Collection[Any]) -> bool:
    """Whether putting the keys into a dict or set takes long, because of those that have one hash.

    Sorting takes no longer for hashes that were chosen to be in each other's way.
    """
    hashes = sorted(map(hash, keys))
    if not any(map(eq, hashes, islice(hashes, 1, None))):
        return False
    return any(map(eq, hashes, islice(hashes, SAME_HASHES, None))) or any(map(_is_long, keys))


def _is_long(key: Any) -> bool:
    if isinstance(key, tuple | frozenset):
        return any(map(_is_long, key))
    return isinstance(key, int) and int.bit_length(key) > _COMPARED_BITS


def refuse_keys(keys: Collection[Any]) -> None:
    """Raise an error for keys that could be stored but not read."""
    if crowded(keys):
        raise EncodeError(
            f"more than {SAME_HASHES} keys or items with the same hash, or two among very long "
            "ints; give their class a better __hash__, or keep a list"
        )
    if len(set([*keys])) != len(keys):  # noqa: C405  of a dict, it would take the old hashes
        raise EncodeError("two keys or items have become the same; do not change what is a key")


def raised(error: Exception) -> EncodeError:
    """Return the error for what Python, or a class of the user's, raised at a look at a value."""
    if isinstance(error, RecursionError):
        return EncodeError("nested too deep for the stack of Python; make it flatter")
    if isinstance(error, RuntimeError) and "during iteration" in str(error):
        return changed()
    return EncodeError(f"it raised {type(error).__name__}: {error}")


def under(step: str, error: EncodeError) -> EncodeError:
    """Note that the place of an error is one step further down."""
    error.path = step + error.path
    return error


def too_deep() -> EncodeError:
    """Return the error for a container that has more levels than can be written."""
    return EncodeError(
        f"nested more than {DEPTH_LIMIT} levels deep, or it contains itself; "
        "keep ids in place of the objects they stand for"
    )


def changed() -> EncodeError:
    """Return the error for a container that another thread works on."""
    return EncodeError(
        "it changed while it was being stored; change documents on the bot's event loop only"
    )
