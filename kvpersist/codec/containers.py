"""The containers of the standard library that JSON has no word for."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Mapping
from gc import get_referents
from types import MappingProxyType, SimpleNamespace
from typing import Any, Final

from kvpersist.codec.decoder import Decoder, pair
from kvpersist.codec.encoder import Encoder, ordered
from kvpersist.codec.form import Form, qualified
from kvpersist.errors import EncodeError

_FACTORIES: Final[Mapping[str, type]] = {
    kind.__name__: kind
    for kind in (
        *(bool, int, float, complex, str, bytes, bytearray, list, tuple, dict, set, frozenset),
        *(Counter, OrderedDict, defaultdict, deque, SimpleNamespace),
    )
}


def unique(payload: list[Any], decoder: Decoder) -> frozenset[Any]:
    """Return the items of a set.

    Raises:
        ValueError: Two of them are the same.
    """
    items = frozenset(decoder.items(payload))
    if len(items) != len(payload):
        raise ValueError("two items are the same")
    return items


def _deque_parts(value: deque[Any], encoder: Encoder) -> object:
    items = encoder.items(list(value))
    return items if value.maxlen is None else {"items": items, "maxlen": value.maxlen}


def _deque_value(payload: Any, decoder: Decoder) -> deque[Any]:
    if type(payload) is list:
        return deque(decoder.items(payload))
    members = decoder.members(payload)
    items, maxlen = members["items"], members["maxlen"]
    if type(items) is not list or type(maxlen) is not int or len(items) > maxlen:
        raise ValueError("it must have items and a maxlen of at least their number")
    return deque(items, maxlen)


def _range_value(payload: list[Any], decoder: Decoder) -> range:
    start, stop, step = decoder.items(payload)
    return range(start, stop, step)


def _proxied(value: MappingProxyType[Any, Any], encoder: Encoder) -> object:
    # A proxy's own copy() would make a plain dict of a subclass.
    (mapping,) = get_referents(value)
    if not isinstance(mapping, dict):
        raise EncodeError(f"a MappingProxyType of {qualified(type(mapping))}; keep a dict")
    return encoder.value(mapping)


def _proxy_value(payload: Any, decoder: Decoder) -> MappingProxyType[Any, Any]:
    value = decoder.value(payload)
    if not isinstance(value, dict):
        raise TypeError("it must hold a dict")
    return MappingProxyType(value)


def defaultdict_form(names: Mapping[type, str], types: Mapping[str, type]) -> Form:
    """Return how a defaultdict is stored: as the name of its factory and its items.

    Args:
        names: How the classes are called that the user has listed.
        types: The same, the other way round, with their aliases.
    """

    def encode(value: defaultdict[Any, Any], encoder: Encoder) -> object:
        return [_factory_name(value.default_factory, names), encoder.mapping(dict(value))]

    def decode(payload: list[Any], decoder: Decoder) -> defaultdict[Any, Any]:
        name, items = pair(payload)
        if name is None:
            return defaultdict(None, decoder.mapping(items))
        factory = types.get(name[1:]) if name[:1] == ":" else _FACTORIES.get(name)
        if factory is None:
            raise ValueError(f"the factory {name!r} is not known; add it to types=")
        return defaultdict(factory, decoder.mapping(items))

    return Form("$defaultdict", encode, decode, (list,))


def _factory_name(factory: Callable[[], Any] | None, names: Mapping[type, str]) -> str | None:
    if factory is None:
        return None
    if isinstance(factory, type):
        if _FACTORIES.get(factory.__name__) is factory:
            return factory.__name__
        if factory in names:
            return f":{names[factory]}"
        raise EncodeError(
            f"a defaultdict whose default_factory is {qualified(factory)}; "
            f"add {factory.__qualname__} to types="
        )
    raise EncodeError(
        "a defaultdict whose default_factory is no class but a function; "
        "use a builtin type such as int or list, or a class that is listed in types="
    )


def _sorted_items(value: Any, encoder: Encoder) -> list[Any]:
    return ordered(encoder, value)


def _items(value: dict[Any, Any], encoder: Encoder) -> dict[str, Any] | list[list[Any]]:
    if vars(value):
        raise EncodeError(
            f"attributes ({', '.join(vars(value))}) of a {type(value).__qualname__}; "
            "derive a class from it and add that to types="
        )
    return encoder.mapping(dict(value))


FORMS: Final[dict[type, Form]] = {
    dict: Form(
        "$dict",
        lambda value, encoder: encoder.of_dict(value),
        lambda payload, decoder: decoder.mapping(payload),
        (list,),
    ),
    tuple: Form(
        "$tuple",
        lambda value, encoder: encoder.items(list(value)),
        lambda payload, decoder: tuple(decoder.items(payload)),
        (list,),
    ),
    set: Form(
        "$set", _sorted_items, lambda payload, decoder: set(unique(payload, decoder)), (list,)
    ),
    frozenset: Form("$frozenset", _sorted_items, unique, (list,)),
    range: Form(
        "$range",
        lambda value, encoder: encoder.items([value.start, value.stop, value.step]),
        _range_value,
        (list,),
    ),
    deque: Form("$deque", _deque_parts, _deque_value, (list, dict)),
    OrderedDict: Form(
        "$ordereddict",
        _items,
        lambda payload, decoder: OrderedDict(decoder.mapping(payload)),
        (dict, list),
    ),
    Counter: Form(
        "$counter",
        _items,
        lambda payload, decoder: Counter(decoder.mapping(payload)),
        (dict, list),
    ),
    SimpleNamespace: Form(
        "$namespace",
        lambda value, encoder: encoder.attributes(vars(value).copy()),
        lambda payload, decoder: SimpleNamespace(**decoder.members(payload)),
        (dict,),
    ),
    MappingProxyType: Form("$mappingproxy", _proxied, _proxy_value),
}
