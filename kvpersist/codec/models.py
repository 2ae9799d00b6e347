"""The classes of pydantic and msgspec, neither of which needs to be installed."""

from __future__ import annotations

import sys
from typing import Any, Final

from kvpersist.codec.decoder import Decoder
from kvpersist.codec.encoder import Encoder
from kvpersist.codec.form import Form, qualified
from kvpersist.codec.protocol import CALLS, HOOKS, check_protocol, origin
from kvpersist.codec.state import incomplete, slots
from kvpersist.errors import ConfigurationError, EncodeError

_UNSET: Final = "$unset"
_EXTRA: Final = "$extra"
_PRIVATE: Final = "$private"


def pydantic_form(kind: Any, tag: str) -> Form:
    """Return how a `pydantic.BaseModel` is stored.

    It is made as pickle and `model_copy` make it, without validation and without `__init__`.

    Raises:
        ConfigurationError: There is more to its objects than pydantic knows.
    """
    _check_model(kind, origin(kind, "pydantic"))
    initial = _with_defaults(kind.__private_attributes__)

    def encode(value: Any, encoder: Encoder) -> object:
        payload = encoder.attributes(vars(value).copy())
        extra, private = value.__pydantic_extra__ or {}, value.__pydantic_private__ or {}
        missing = kind.__pydantic_fields__.keys() - payload.keys()
        if missing := missing | (initial.keys() - private.keys()):
            raise incomplete(value, missing)
        names = payload.keys() | extra.keys()
        if not value.model_fields_set <= names:
            raise EncodeError("its model_fields_set has names that it has no attributes for")
        if unset := names - value.model_fields_set:
            payload[_UNSET] = sorted(unset)
        if extra:
            payload[_EXTRA] = encoder.attributes(extra.copy())
        if private:
            payload[_PRIVATE] = encoder.attributes(private.copy())
        return payload

    def decode(payload: dict[str, Any], decoder: Decoder) -> Any:
        unset, extra, private = (payload.pop(name, None) for name in (_UNSET, _EXTRA, _PRIVATE))
        extra, private = decoder.members(extra or {}), decoder.members(private or {})
        members = decoder.members(payload)
        value = kind.__new__(kind)
        added = {
            name: _default(name, field, members)
            for name, field in kind.__pydantic_fields__.items()
            if name not in members
        }
        given = {*members, *extra} - set(unset or ())
        members |= added
        for name, attribute in initial.items():
            if name not in private:
                private[name] = _private_default(attribute, members)
        value.__setstate__(
            {
                "__dict__": members,
                "__pydantic_fields_set__": given,
                "__pydantic_extra__": extra if extra or _takes_extra(kind) else None,
                "__pydantic_private__": private if private or kind.__private_attributes__ else None,
            }
        )
        return value

    return Form(tag, encode, decode, (dict,))


def _check_model(kind: type, base: type) -> None:
    check_protocol(kind, base, HOOKS)
    if more := dict(slots(kind)).keys() - dict(slots(base)).keys():
        raise ConfigurationError(
            f"{qualified(kind)} has slots ({', '.join(sorted(more))}), which pydantic does not "
            "pickle either; make them PrivateAttr"
        )


def _with_defaults(private: dict[str, Any]) -> dict[str, Any]:
    """Return the private attributes that every object has from the start."""
    undefined = sys.modules["pydantic_core"].PydanticUndefined
    return {
        name: attribute
        for name, attribute in private.items()
        if attribute.default_factory is not None or attribute.default is not undefined
    }


def _takes_extra(kind: Any) -> bool:
    return kind.model_config.get("extra") == "allow"  # type: ignore[no-any-return]


def _default(name: str, field: Any, members: dict[str, Any]) -> Any:
    if field.is_required():
        raise ValueError(f"it has no {name}; a field that is added later needs a default")
    return field.get_default(call_default_factory=True, validated_data=members)


def _private_default(attribute: Any, members: dict[str, Any]) -> Any:
    if (factory := attribute.default_factory) is None:
        return attribute.get_default()
    # Not every pydantic lets a factory ask for the fields.
    takes_members = getattr(attribute, "default_factory_takes_validated_data", False)
    return factory(members) if takes_members else factory()


def struct_form(kind: Any, tag: str) -> Form:
    """Return how a `msgspec.Struct` is stored.

    It is made by calling the class, as msgspec makes it when it unpickles one: there is no other
    way. `__post_init__` runs, and what it assigns to fields that were stored is undone.
    """
    check_protocol(kind, origin(kind, "msgspec"), CALLS)
    fields: tuple[str, ...] = kind.__struct_fields__
    put = sys.modules["msgspec"].structs.force_setattr

    def encode(value: Any, encoder: Encoder) -> object:
        if getattr(value, "__dict__", None):
            raise EncodeError("attributes besides the fields of a msgspec struct; make them fields")
        if missing := [name for name in fields if not hasattr(value, name)]:
            raise incomplete(value, missing)
        return encoder.attributes({name: getattr(value, name) for name in fields})

    def decode(payload: dict[str, Any], decoder: Decoder) -> Any:
        members = decoder.members(payload)
        value = kind(**members)
        for name, item in members.items():
            put(value, name, item)
        return value

    return Form(tag, encode, decode, (dict,))
