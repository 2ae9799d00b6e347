"""How the objects of a class of the user's are stored: chosen once, when the class is named."""

from __future__ import annotations

import sys
from enum import Enum, Flag
from typing import Any, Final

from kvpersist.codec.bases import Base, base_of
from kvpersist.codec.decoder import Decoder
from kvpersist.codec.encoder import Encoder
from kvpersist.codec.form import BASE, Form, text_form
from kvpersist.codec.models import pydantic_form, struct_form
from kvpersist.codec.protocol import CALLS, check_layout, check_protocol
from kvpersist.codec.state import State
from kvpersist.errors import EncodeError

_FLAGS: Final = 64
"""Python 3.10 takes time that grows with the square of the number of flags, if it may be any."""


def adopt(kind: type, tag: str) -> Form:
    """Return how the objects of `kind` are stored.

    Raises:
        ConfigurationError: Nothing but functions of the user's could do that.
    """
    if issubclass(kind, Flag):
        return _flag_form(kind, tag)
    if issubclass(kind, Enum):
        return _enum_form(kind, tag)
    if (pydantic := sys.modules.get("pydantic")) and issubclass(kind, pydantic.BaseModel):
        return pydantic_form(kind, tag)
    if (msgspec := sys.modules.get("msgspec")) and issubclass(kind, msgspec.Struct):
        return struct_form(kind, tag)
    if issubclass(kind, tuple) and isinstance(getattr(kind, "_fields", None), tuple):
        return _named_tuple_form(kind, tag)
    base = base_of(kind)
    check_protocol(kind, base.kind if base else object, CALLS)
    if base is None:
        check_layout(kind)
    return _subclass_form(kind, tag, base) if base else _object_form(kind, tag)


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
        own = dict(zip(fields, tuple.__iter__(value), strict=False))
        if not len(own) == len(fields) == tuple.__len__(value):
            raise EncodeError(f"a {kind.__qualname__} whose items are not those of its _fields")
        payload, attributes = encoder.attributes(own), state.encode(value, encoder)
        if both := payload.keys() & attributes.keys():
            raise EncodeError(
                f"an attribute that is called as a field: {', '.join(both)}; rename it"
            )
        return payload | attributes

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

    return text_form(tag, to_text, members.__getitem__)


def _flag_form(kind: type[Flag], tag: str) -> Form:
    members = kind.__members__
    bits = max([_FLAGS, *(abs(member.value).bit_length() for member in members.values())])

    def encode(value: Flag, encoder: Encoder) -> object:
        if members.get(value._name_ or "") is value:
            return value._name_
        number = int(value._value_)  # of more than one flag, or none
        if number.bit_length() > bits:
            raise EncodeError(f"a {kind.__qualname__} of more than {bits} bits; name the flags")
        return encoder.value(number)

    def decode(payload: Any, decoder: Decoder) -> Enum:
        if type(payload) is str:
            return members[payload]
        number = decoder.value(payload)
        if type(number) is not int or number.bit_length() > bits:
            raise TypeError(f"flags are a number of at most {bits} bits")
        value = kind(number)
        # The boundary of the class may let it drop bits, or return an int. Python 3.10 had negative
        # combinations, which are others now.
        if type(value) is not kind or value._value_ != number >= 0:
            raise ValueError(f"{kind.__qualname__} has not all of these flags any more")
        return value

    return Form(tag, encode, decode, (str, int, dict))
