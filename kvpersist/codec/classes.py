"""How the objects of a class of the user's are stored: chosen once, when the class is named."""

from __future__ import annotations

import sys
from enum import Enum, Flag
from typing import Any, Final

from kvpersist.codec.bases import Base, base_of
from kvpersist.codec.decoder import Decoder
from kvpersist.codec.encoder import Encoder
from kvpersist.codec.form import BASE, Form, qualified, text_form
from kvpersist.codec.models import pydantic_form, struct_form
from kvpersist.codec.state import State, slots
from kvpersist.errors import ConfigurationError, EncodeError

_POINTER: Final = tuple.__itemsize__
_INHERITED: Final = ("__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__")


def adopt(kind: type, tag: str) -> Form:
    """Return how the objects of `kind` are stored.

    Raises:
        ConfigurationError: Nothing but functions of the user's could do that.
    """
    if issubclass(kind, Enum):
        return _enum_form(kind, tag)
    if (pydantic := sys.modules.get("pydantic")) and issubclass(kind, pydantic.BaseModel):
        return pydantic_form(kind, tag)
    if (msgspec := sys.modules.get("msgspec")) and issubclass(kind, msgspec.Struct):
        return struct_form(kind, tag)
    if issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
        return _named_tuple_form(kind, tag)
    base = base_of(kind)
    _check_protocol(kind, base.kind if base else object)
    return _subclass_form(kind, tag, base) if base else _object_form(kind, tag)


def _check_protocol(kind: type, base: type) -> None:
    """Refuse what is restored by calling something, or keeps what Python code cannot see."""
    for name in _INHERITED:
        if getattr(kind, name, None) not in {
            getattr(base, name, None),
            getattr(object, name, None),
        }:
            raise ConfigurationError(
                f"{qualified(kind)} has a {name} of its own; "
                "use Codec.register with encode= and decode="
            )
    if base is object and _hides_something(kind):
        raise ConfigurationError(
            f"{qualified(kind)} is not written in Python; "
            "use Codec.register with encode= and decode="
        )


def _hides_something(kind: type) -> bool:
    """Whether there is more to an object than its attributes: pickle asks the same way."""
    pointers = len(dict(slots(kind))) + 2  # and one each for __dict__ and __weakref__
    return kind.__basicsize__ > object.__basicsize__ + pointers * _POINTER or kind.__itemsize__ > 0


def _object_form(kind: type, tag: str) -> Form:
    state = State(kind)

    def decode(payload: dict[str, Any], decoder: Decoder) -> Any:
        value: Any = object.__new__(kind)
        state.decode(value, payload, decoder)
        return value

    return Form(tag, state.encode, decode, (dict,))


def _subclass_form(kind: type, tag: str, base: Base) -> Form:
    state = State(kind)

    def encode(value: Any, encoder: Encoder) -> object:
        return {BASE: encoder.value(base.take(value)), **state.encode(value, encoder)}

    def decode(payload: dict[str, Any], decoder: Decoder) -> Any:
        inner = decoder.value(payload.pop(BASE))
        if type(inner) is not base.kind:
            raise TypeError(f"{BASE} must hold a {base.kind.__name__}")
        value = base.make(kind, inner)
        state.decode(value, payload, decoder)
        return value

    return Form(tag, encode, decode, (dict,), has_base=True)


def _named_tuple_form(kind: Any, tag: str) -> Form:
    state = State(kind)
    fields: tuple[str, ...] = kind._fields
    defaults: dict[str, Any] = getattr(kind, "_field_defaults", {})

    def encode(value: Any, encoder: Encoder) -> object:
        items = tuple.__iter__(value)
        return {
            **encoder.attributes(dict(zip(fields, items, strict=True))),
            **state.encode(value, encoder),
        }

    def decode(payload: dict[str, Any], decoder: Decoder) -> Any:
        own = decoder.members({name: payload.pop(name) for name in fields if name in payload})
        value = tuple.__new__(
            kind, [own[name] if name in own else defaults[name] for name in fields]
        )
        state.decode(value, payload, decoder)
        return value

    return Form(tag, encode, decode, (dict,))


def _enum_form(kind: type[Enum], tag: str) -> Form:
    members = kind.__members__

    def to_text(value: Enum) -> str:
        name = value._name_
        if members.get(name) is not value:
            raise EncodeError(f"{value!r}, which is no longer a member of {kind.__qualname__}")
        return name

    if not issubclass(kind, Flag):
        return text_form(tag, to_text, members.__getitem__)

    def encode(value: Flag, encoder: Encoder) -> object:
        if members.get(value._name_ or "") is value:
            return value._name_
        return encoder.value(int(value._value_))  # more than one flag, or none

    def decode(payload: Any, _: Decoder) -> Enum:
        return members[payload] if type(payload) is str else kind(payload)

    return Form(tag, encode, decode, (str, int))
