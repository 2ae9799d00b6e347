"""The classes of pydantic and msgspec, neither of which needs to be installed."""

from __future__ import annotations

from typing import Any, Final

from kvpersist.codec.decoder import Decoder
from kvpersist.codec.encoder import Encoder
from kvpersist.codec.form import Form
from kvpersist.errors import EncodeError

_UNSET: Final = "$unset"
_EXTRA: Final = "$extra"
_PRIVATE: Final = "$private"


def pydantic_form(kind: Any, tag: str) -> Form:
    """Return how a `pydantic.BaseModel` is stored.

    It is made as pickle and `model_copy` make it, without validation and without `__init__`.
    """

    def encode(value: Any, encoder: Encoder) -> object:
        payload = encoder.attributes(vars(value).copy())
        extra = value.__pydantic_extra__ or {}
        names = payload.keys() | extra.keys()
        if not value.model_fields_set <= names:
            raise EncodeError("its model_fields_set has names that it has no attributes for")
        if unset := names - value.model_fields_set:
            payload[_UNSET] = sorted(unset)
        if extra:
            payload[_EXTRA] = encoder.attributes(extra.copy())
        if value.__pydantic_private__:
            payload[_PRIVATE] = encoder.attributes(value.__pydantic_private__.copy())
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
        value.__setstate__(
            {
                "__dict__": {**members, **added},
                "__pydantic_fields_set__": (members.keys() | extra.keys()) - set(unset or ()),
                "__pydantic_extra__": extra if _takes_extra(kind) else None,
                "__pydantic_private__": private if kind.__private_attributes__ else None,
            }
        )
        return value

    return Form(tag, encode, decode, (dict,))


def _takes_extra(kind: Any) -> bool:
    return kind.model_config.get("extra") == "allow"  # type: ignore[no-any-return]


def _default(name: str, field: Any, members: dict[str, Any]) -> Any:
    if field.is_required():
        raise ValueError(f"it has no {name}; a field that is added later needs a default")
    return field.get_default(call_default_factory=True, validated_data=members)


def struct_form(kind: Any, tag: str) -> Form:
    """Return how a `msgspec.Struct` is stored.

    It is made by calling the class, as msgspec makes it when it unpickles one: there is no other
    way. `__post_init__` runs.
    """
    fields: tuple[str, ...] = kind.__struct_fields__

    def encode(value: Any, encoder: Encoder) -> object:
        if getattr(value, "__dict__", None):
            raise EncodeError("attributes besides the fields of a msgspec struct; make them fields")
        return encoder.attributes({name: getattr(value, name) for name in fields})

    def decode(payload: dict[str, Any], decoder: Decoder) -> Any:
        return kind(**decoder.members(payload))

    return Form(tag, encode, decode, (dict,))
