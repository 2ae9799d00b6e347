"""The builtin types that classes of the user's derive from: their part of an object, on its own.

None of these functions calls a method that a subclass may have changed.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, Final, NamedTuple


class Base(NamedTuple):
    """How the builtin part of an object of a subclass is taken out, and put back.

    Attributes:
        kind: The builtin type.
        take: Returns that part of an object, as a value of `kind` itself.
        new: Makes an object of a subclass: from the class alone if there is `fill`, and from the
            class and the part otherwise.
        fill: Puts the part into an object that holds nothing. None for a type that cannot change.
    """

    kind: type
    take: Callable[[Any], Any]
    new: Callable[..., Any]
    fill: Callable[[Any, Any], None] | None = None

    def make(self, kind: type, part: Any) -> Any:
        """Return an object of the subclass `kind` that holds `part`."""
        if self.fill is None:
            return self.new(kind, part)
        value = self.new(kind)
        self.fill(value, part)
        return value


def base_of(kind: type) -> Base | None:
    """Return the builtin base of a class; None for a class that has only attributes."""
    return next((base for base in _BASES if issubclass(kind, base.kind)), None)


def _set_items(setter: Callable[[Any, Any, Any], None]) -> Callable[[Any, Any], None]:
    def fill(value: Any, items: dict[Any, Any]) -> None:
        for key, item in items.items():
            setter(value, key, item)

    return fill


def _take_dict(value: Any) -> dict[Any, Any]:
    return dict(dict.items(value))  # its copy() asks a subclass that has an __iter__ of its own


def _take_ordered(value: Any) -> Any:
    return OrderedDict(zip(OrderedDict.keys(value), OrderedDict.values(value), strict=True))


def _take_defaultdict(value: Any) -> Any:
    factory = vars(defaultdict)["default_factory"].__get__(value)
    return defaultdict(factory, _take_dict(value))


def _fill_defaultdict(value: Any, items: defaultdict[Any, Any]) -> None:
    defaultdict.__init__(value, items.default_factory, items)


def _take_deque(value: Any) -> Any:
    return deque(deque.__iter__(value), deque.maxlen.__get__(value))


def _fill_deque(value: Any, items: deque[Any]) -> None:
    deque.__init__(value, items, items.maxlen)


_BASES: Final = (
    Base(OrderedDict, _take_ordered, OrderedDict.__new__, _set_items(OrderedDict.__setitem__)),
    Base(defaultdict, _take_defaultdict, defaultdict.__new__, _fill_defaultdict),
    Base(
        Counter,
        lambda value: Counter(_take_dict(value)),
        dict.__new__,
        _set_items(dict.__setitem__),
    ),
    Base(dict, _take_dict, dict.__new__, dict.update),
    Base(list, list.copy, list.__new__, list.extend),
    Base(deque, _take_deque, deque.__new__, _fill_deque),
    Base(set, lambda value: set().union(value), set.__new__, set.update),
    Base(frozenset, lambda value: frozenset().union(value), frozenset.__new__),
    Base(tuple, lambda value: tuple.__getitem__(value, slice(None)), tuple.__new__),
    Base(str, str.__str__, str.__new__),
    Base(bytes, lambda value: bytes.__getitem__(value, slice(None)), bytes.__new__),
    Base(int, int.__int__, int.__new__),
    Base(float, float.__float__, float.__new__),
)
