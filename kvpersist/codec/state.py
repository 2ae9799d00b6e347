"""What an object holds besides the value of a builtin base: its attributes, as pickle takes them.

An object is made without `__init__` and without `__new__` of its class, and its attributes are put
where they belong without `__setattr__`. A class that defines `__getstate__` or `__setstate__` has
those called instead.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from types import MemberDescriptorType
from typing import Any, Final, TypeAlias

from kvpersist.codec.bases import base_of
from kvpersist.codec.decoder import Decoder
from kvpersist.codec.encoder import Encoder, asked
from kvpersist.codec.form import BASE
from kvpersist.errors import EncodeError

Default: TypeAlias = Callable[[Any], Any]
"""Makes the value of a field for an object."""

_STATE: Final = "$state"
_CACHED_HASH: Final = "_attrs_cached_hash"
"""Where attrs keeps the hash of an object, which is another one in the next process."""
_GENERATED: Final = {
    ("dataclasses", "_dataclass_getstate"),
    ("dataclasses", "_dataclass_setstate"),
    ("attr._make", "slots_getstate"),
    ("attr._make", "slots_setstate"),
}
"""Hooks that a class has only because pickle once did not know slots; they add nothing."""


class State:
    """The attributes of the objects of one class."""

    def __init__(self, kind: type) -> None:
        members = dict(slots(kind))
        # Python keeps slots in alphabetical order; a person expects that of the class.
        named = [name for name in _field_names(kind) if name in members]
        self._slots = {name: members[name] for name in (*named, *members)}
        self._has_dict = kind.__dictoffset__ != 0
        self._is_attrs = hasattr(kind, "__attrs_attrs__")
        self._defaults = dict(_defaults(kind))
        self._fields = self._defaults.keys() | set(_required(kind))
        self._get: Callable[[Any], object] | None = _own(kind, "__getstate__")
        self._set: Callable[[Any, object], None] | None = _own(kind, "__setstate__")

    def encode(self, value: Any, encoder: Encoder) -> dict[str, Any]:
        """Return a JSON object, one member for each attribute."""
        if self._get is not None:
            return {_STATE: encoder.value(asked(self._get, value))}
        attributes = self.attributes(value)
        if not attributes.keys() >= self._fields:
            raise incomplete(value, self._fields - attributes.keys())
        if _STATE in attributes or BASE in attributes:
            raise EncodeError(f"an attribute that is called {_STATE} or {BASE}; rename it")
        return encoder.attributes(attributes)

    def decode(self, value: Any, payload: dict[str, Any], decoder: Decoder) -> None:
        """Give `value`, which has none, its attributes.

        Raises:
            ValueError: One is missing that has no default, or there is no place for one.
        """
        if _STATE in payload:
            self._set_any(value, decoder.value(payload.pop(_STATE)))
        elif BASE in payload:
            raise ValueError(f"{type(value).__qualname__} derives from no builtin type any more")
        elif self._set is not None:
            if payload:  # pickle calls it for nothing less
                self._set(value, self._as_pickle_has_it(decoder.members(payload)))
        else:
            self._fill(value, decoder.members(payload))

    def attributes(self, value: Any) -> dict[str, Any]:
        """Return the attributes that an object has."""
        attributes = vars(value).copy() if self._has_dict else {}
        for name, slot in self._slots.items():
            try:
                attributes[name] = slot.__get__(value)
            except AttributeError:  # noqa: PERF203  a slot may be empty
                continue
        if self._is_attrs and _CACHED_HASH in attributes:
            attributes[_CACHED_HASH] = None
        return attributes

    def put(self, value: Any, attributes: dict[str, Any]) -> None:
        """Give `value` some attributes, past its `__setattr__`.

        Raises:
            ValueError: There is no place for one.
        """
        if self._has_dict and not self._slots:
            vars(value).update(attributes)
            return
        rest = {}
        for name, item in attributes.items():
            if name in self._slots:
                self._slots[name].__set__(value, item)
            else:
                rest[name] = item
        if self._has_dict:
            vars(value).update(rest)
        elif rest:
            raise ValueError(f"{type(value).__qualname__} has no {', '.join(rest)} any more")

    def _fill(self, value: Any, attributes: dict[str, Any]) -> None:
        self.put(value, attributes)
        if attributes.keys() >= self._fields:
            return
        missing = self._fields - attributes.keys()
        if lost := missing - self._defaults.keys():
            raise ValueError(
                f"it has no {', '.join(sorted(lost))}; a field that is added later needs a default"
            )
        # In the order of the class: a default of attrs may look at what comes before it.
        for name in filter(missing.__contains__, self._defaults):
            self.put(value, {name: self._defaults[name](value)})

    def _set_any(self, value: Any, state: Any) -> None:
        if self._set is not None:
            if state is not None:  # likewise
                self._set(value, state)
            return
        # Without the hook pickle takes the attributes, or two dicts: those without slots first.
        attributes: dict[str, Any] = {}
        for part in state if type(state) is tuple else (state,):
            attributes = attributes if part is None else {**attributes, **part}
        if _STATE in attributes or BASE in attributes:
            raise ValueError(f"{_STATE} and {BASE} are no attributes")
        # What a hook has left out stays away; a class that has none any more wants all its fields.
        (self._fill if self._get is None else self.put)(value, attributes)

    def _as_pickle_has_it(self, attributes: dict[str, Any]) -> object:
        slots = {name: attributes.pop(name) for name in self._slots if name in attributes}
        if not slots:
            return attributes
        return attributes or None, slots


def incomplete(value: object, missing: Iterable[str]) -> EncodeError:
    """Return the error for an object that lacks attributes which all of its class have."""
    return EncodeError(
        f"a {type(value).__qualname__} without its {', '.join(sorted(missing))}; "
        "an object must be complete to be stored"
    )


def become(value: Any, other: Any) -> None:
    """Give `value` the items and attributes of `other`, an object of the same class."""
    if (base := base_of(type(value))) and base.fill:
        part = base.take(other)
        base.kind.clear(value)  # type: ignore[attr-defined]
        base.fill(value, part)
    if type(value).__dictoffset__ != 0:
        attributes = vars(other).copy()
        vars(value).clear()
        vars(value).update(attributes)
    for _, slot in slots(type(value)):
        try:
            slot.__set__(value, slot.__get__(other))
        except AttributeError:  # noqa: PERF203  a slot may be empty
            with suppress(AttributeError):
                slot.__delete__(value)


def slots(kind: type) -> Iterator[tuple[str, MemberDescriptorType]]:
    """Yield the slots under the names that Python has made of private ones."""
    for base in reversed(kind.__mro__):
        if "__slots__" in vars(base):
            for name, member in vars(base).items():
                if type(member) is MemberDescriptorType:
                    yield name, member


def _own(kind: type, name: str) -> Any:
    """Return a hook of pickle's that was written for this class, or None."""
    hook = getattr(kind, name, None)
    if hook is None or hook is getattr(object, name, None):
        return None
    names = (getattr(hook, "__module__", None), getattr(hook, "__name__", None))
    return None if names in _GENERATED else hook


def _defaults(kind: type) -> Iterator[tuple[str, Default]]:
    """Yield what stands in for fields that an object lacks which was stored before they were added.

    A field that lives in the class as long as an object has no value for it needs nothing.
    """
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if field.default_factory is not dataclasses.MISSING:
                yield field.name, _calling(field.default_factory)
            elif field.default is not dataclasses.MISSING and isinstance(
                getattr(kind, field.name), MemberDescriptorType
            ):
                yield field.name, _always(field.default)
    for attribute in getattr(kind, "__attrs_attrs__", ()):
        default = attribute.default
        if isinstance(default, sys.modules["attr"].Factory):
            yield (
                attribute.name,
                default.factory if default.takes_self else _calling(default.factory),
            )
        elif default is not sys.modules["attr"].NOTHING:
            yield attribute.name, _always(default)


def _calling(factory: Callable[[], Any]) -> Default:
    return lambda _: factory()


def _always(default: Any) -> Default:
    return lambda _: default


def _field_names(kind: type) -> Iterator[str]:
    if dataclasses.is_dataclass(kind):
        yield from (field.name for field in dataclasses.fields(kind))
    yield from (attribute.name for attribute in getattr(kind, "__attrs_attrs__", ()))


def _required(kind: type) -> Iterator[str]:
    """Yield the fields that every object has, because there is no default."""
    if dataclasses.is_dataclass(kind):
        for field in dataclasses.fields(kind):
            if field.init and field.default is field.default_factory is dataclasses.MISSING:
                yield field.name
    for attribute in getattr(kind, "__attrs_attrs__", ()):
        if attribute.init and attribute.default is sys.modules["attr"].NOTHING:
            yield attribute.name
