"""Classes that bots might have, one strategy for every supported value, and an own checker."""

from __future__ import annotations

import enum
import math
import re
import struct
from collections import Counter, OrderedDict, defaultdict, deque
from dataclasses import dataclass, field
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path, PurePosixPath, PureWindowsPath
from types import MappingProxyType, SimpleNamespace
from typing import Any, Generic, NamedTuple, TypeVar
from uuid import UUID, SafeUUID
from zoneinfo import ZoneInfo

import attrs
import msgspec
import pydantic
from hypothesis import strategies as st

from kvpersist.codec import Codec, Named

T = TypeVar("T")


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"
    CRIMSON = 1


class Level(enum.IntEnum):
    LOW = 0
    HIGH = 1


class Mode(str, enum.Enum):
    FAST = "fast"


class Access(enum.Flag):
    READ = 1
    WRITE = 2


class Bits(enum.IntFlag):
    ONE = 1
    TWO = 2


@dataclass
class Order:
    item: str
    price: Any = 0
    notes: list[Any] = field(default_factory=list)
    total: Any = field(init=False, default=None)


@dataclass(frozen=True)
class Point:
    x: Any
    y: Any


@dataclass(frozen=True)
class Point3(Point):
    z: Any = 0


@dataclass
class Slotted:
    __slots__ = ("left", "right")
    left: Any
    right: Any


@dataclass(kw_only=True)
class KeywordOnly:
    name: Any


class Pair(NamedTuple):
    first: Any
    second: Any = None


class NamedPair(Pair):
    """A tuple with fields and attributes."""


@attrs.define
class Address:
    street: Any
    city: Any = "Berlin"


@attrs.frozen
class FrozenAddress:
    street: Any


class Profile(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    name: Any
    age: Any = 0
    _secret: Any = pydantic.PrivateAttr(default=None)


class Ticket(msgspec.Struct):
    number: Any
    note: Any = None


class FrozenTicket(msgspec.Struct, frozen=True, kw_only=True):
    number: Any


class Cart(dict[Any, Any]):
    pass


class Queue(list[Any]):
    pass


class Tags(set[Any]):
    pass


class Rights(frozenset[Any]):
    pass


class Name(str):
    pass


class Amount(int):
    pass


class Ratio(float):
    pass


class Raw(bytes):
    pass


class Triple(tuple[Any, ...]):
    pass


class Tally(Counter[Any]):
    pass


class Ordered(OrderedDict[Any, Any]):
    pass


class Grouped(defaultdict[Any, Any]):
    pass


class Window(deque[Any]):
    pass


class Plain:
    a: Any

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


class Secretive:
    __slots__ = ("__hidden", "shown")

    def __init__(self, hidden: Any) -> None:
        self.__hidden = hidden


class Mixed(Secretive):
    """Slots from its base, and a `__dict__`."""


class Connection:
    """As pickle's users write them: what cannot be stored is left out and made again."""

    host: Any = None  # pickle calls no __setstate__ for a state of None

    def __init__(self, host: Any) -> None:
        self.host = host
        self.handle = object()

    def __getstate__(self) -> Any:
        return self.host

    def __setstate__(self, host: Any) -> None:
        self.host = host
        self.handle = object()


class Money:
    def __init__(self, amount: Any, currency: str) -> None:
        self.amount, self.currency = amount, currency

    def __reduce__(self) -> Any:
        return Money, (self.amount, self.currency)


class Box(Generic[T]):
    def __init__(self, content: T) -> None:
        self.content = content


TYPES: list[type | Named] = [
    *(
        Color,
        Level,
        Mode,
        Access,
        Bits,
        Order,
        Point,
        Point3,
        Slotted,
        KeywordOnly,
        Pair,
        NamedPair,
    ),
    *(
        Address,
        FrozenAddress,
        Profile,
        Ticket,
        FrozenTicket,
        Cart,
        Queue,
        Tags,
        Rights,
        Name,
        Amount,
    ),
    *(Ratio, Raw, Triple, Tally, Ordered, Grouped, Window, Plain, Secretive, Mixed, Connection),
    Named(Box, "box", aliases=("shop.Box",)),
]


class Direct:
    """What its function stores in place of it may be another of its kind."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner


ZONE_FILE = b"TZif" + bytes(16) + bytes(19) + b"\x01\0\0\0\x04" + bytes(6) + b"UTC\0"
"""The least that is a time zone."""


def register_money(codec: Codec) -> None:
    """Name the one class of the samples that needs functions."""
    codec.register(
        Money,
        "money",
        encode=lambda money: (money.amount, money.currency),
        decode=lambda pair: Money(*pair),
    )


def make_codec(**arguments: Any) -> Codec:
    codec = Codec(TYPES, **arguments)
    codec.register(Direct, encode=lambda direct: direct.inner, decode=Direct)
    register_money(codec)
    return codec


def hidden(value: Any) -> Secretive:
    return Secretive(value)


def with_attributes(value: Any, attributes: dict[str, Any]) -> Any:
    value.__dict__.update(attributes)
    return value


class Zone(tzinfo):
    """A time zone of the user's."""

    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, _: datetime | None) -> None:
        return None

    def tzname(self, _: datetime | None) -> str:
        return "user's"


# ------------------------------------------------------------------------------------- the strategy

ZONES = st.one_of(
    st.just(timezone.utc),
    st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23))),
    st.builds(
        timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)), st.text(max_size=5)
    ),
    st.sampled_from(["Europe/Berlin", "UTC", "America/New_York", "Etc/GMT+5"]).map(ZoneInfo),
)
TEXTS = st.one_of(
    st.text(max_size=8),
    st.text(st.characters(exclude_categories=()), max_size=4),
    st.sampled_from(
        ["", "\0", "$", "$tuple", "$$", "$:Order", "\ud800", "\ud83d\ude00", "\\u0041"]
    ),
)
INTS = st.one_of(
    st.integers(-(10**6), 10**6),
    st.integers(),
    st.sampled_from([2**63, -(2**63), -(2**63) - 1, 2**64 - 1, 2**64, 10**700, -(2**2000)]),
)
FLOATS = st.floats()
WALL_TIMES = st.datetimes(allow_imaginary=True, timezones=st.none() | ZONES)
HASHABLE_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    INTS,
    FLOATS,
    TEXTS,
    st.binary(max_size=6),
    st.complex_numbers(),
    st.builds(range, st.integers(-9, 9), st.integers(-9, 9), st.sampled_from([1, -2, 2**70])),
    st.builds(lambda moment, fold: moment.replace(fold=fold), WALL_TIMES, st.integers(0, 1)),
    st.dates(),
    st.times(timezones=st.none() | ZONES),
    st.timedeltas(),
    ZONES,
    st.decimals(allow_nan=False),
    st.sampled_from([Decimal("-0"), Decimal("NaN12"), Decimal("1E+999999"), Decimal("Infinity")]),
    st.fractions(),
    st.uuids(),
    st.builds(UUID, int=st.integers(0, 9), is_safe=st.sampled_from(SafeUUID)),
    st.sampled_from(["a/b", "/", ".", "/ü", "a\udcff"]).map(Path),
    st.sampled_from(["a/b", "//a", "a\\b"]).map(PurePosixPath),
    st.sampled_from(["c:\\a", "\\\\host\\share\\x", "a/b"]).map(PureWindowsPath),
    st.sampled_from([re.compile("a+", re.IGNORECASE), re.compile(rb"\xff"), re.compile("(?x) a")]),
    st.ip_addresses(),
    st.sampled_from([IPv4Network("10.0.0.0/8"), IPv6Network("fe80::/10")]),
    st.sampled_from([IPv4Interface("10.0.0.1/8"), IPv6Interface("fe80::1%eth0/64")]),
    st.sampled_from([*Color, *Level, *Mode, *Access, *Bits]),
    st.sampled_from([Access(0), Access.READ | Access.WRITE, Bits(3), Bits(64)]),
    st.builds(Name, TEXTS),
    st.builds(Amount, INTS),
    st.builds(Ratio, FLOATS),
    st.builds(Raw, st.binary(max_size=3)),
)
LEAVES = st.one_of(
    HASHABLE_LEAVES,
    st.binary(max_size=6).map(bytearray),
    st.just(Decimal("sNaN")),
)


def _hashable_containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(
        st.lists(inner, max_size=3).map(tuple),
        st.frozensets(inner, max_size=3),
        st.frozensets(inner, max_size=2).map(Rights),
        st.builds(Point, inner, inner),
        st.builds(Point3, inner, inner, inner),
        st.builds(Pair, inner, inner),
        st.builds(FrozenAddress, inner),
        st.builds(FrozenTicket, number=inner),
        st.lists(inner, max_size=2).map(Triple),
    )


_HASHABLES = st.recursive(HASHABLE_LEAVES, _hashable_containers, max_leaves=5)
# Hypothesis writes a strategy out once for each place, unless it is deferred.
HASHABLES: st.SearchStrategy[Any] = st.deferred(lambda: _HASHABLES)
NAMES = st.sampled_from(["a", "b", "price", "_x", "ü", "$a", "$base", "$state", "with space"])


def _containers(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    items = st.lists(inner, max_size=3)
    texts = st.dictionaries(TEXTS, inner, max_size=3)
    mappings = st.dictionaries(HASHABLES, inner, max_size=3)
    attributes = st.dictionaries(st.sampled_from(["a", "b", "price", "_x"]), inner, max_size=2)
    factories = st.sampled_from([None, int, list, dict, set, Order, Color, OrderedDict])
    return st.one_of(
        items,
        texts,
        mappings,
        st.dictionaries(NAMES, inner, min_size=1, max_size=1),
        items.map(tuple),
        st.sets(HASHABLES, max_size=3),
        st.frozensets(HASHABLES, max_size=3),
        st.builds(deque, items, st.none() | st.integers(3, 9)),
        mappings.map(OrderedDict),
        mappings.map(Counter),
        st.builds(defaultdict, factories, mappings),
        attributes.map(lambda names: SimpleNamespace(**names)),
        st.one_of(mappings, mappings.map(OrderedDict), mappings.map(Cart)).map(MappingProxyType),
        st.builds(Order, TEXTS, inner, items),
        st.builds(Point, inner, inner),
        st.builds(Slotted, inner, inner),
        st.builds(KeywordOnly, name=inner),
        st.builds(Pair, inner, inner),
        st.builds(with_attributes, st.builds(NamedPair, inner, inner), attributes),
        st.builds(Address, inner, inner),
        st.builds(Address, inner),
        st.builds(Profile, name=inner),
        st.builds(Profile, name=inner, age=inner, more=inner),
        st.builds(Ticket, inner, inner),
        st.builds(with_attributes, items.map(Queue), attributes),
        st.builds(with_attributes, mappings.map(Cart), attributes),
        st.builds(with_attributes, st.sets(HASHABLES, max_size=2).map(Tags), attributes),
        st.builds(with_attributes, st.builds(Name, TEXTS), attributes),
        st.builds(with_attributes, items.map(Triple), attributes),
        mappings.map(Tally),
        st.builds(with_attributes, mappings.map(Ordered), attributes),
        st.builds(with_attributes, st.builds(Grouped, factories, mappings), attributes),
        st.builds(
            with_attributes, st.builds(Window, items, st.none() | st.integers(3, 9)), attributes
        ),
        attributes.map(lambda names: Plain(**names)),
        st.builds(hidden, inner),
        st.builds(with_attributes, st.builds(Mixed, inner), attributes),
        st.builds(Connection, inner),
        st.builds(Money, inner, st.text(max_size=3)),
        st.builds(Box, inner),
    )


VALUES = st.recursive(LEAVES | HASHABLES, _containers, max_leaves=8)
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(st.characters(codec="utf-8", exclude_characters="$"), max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


# -------------------------------------------------------------------------------------- the checker


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal and of the same types all the way down."""
    kind = type(left)
    if kind is not type(right):
        return False
    if kind is float:
        return struct.pack("d", left) == struct.pack("d", right) or (
            math.isnan(left) and math.isnan(right)
        )
    for kinds, parts in _PARTS.items():
        if kind in kinds:
            return _all_same(parts(left), parts(right))
    if isinstance(left, enum.Enum | type) or kind in _ATOMS:
        return bool(left == right)
    return _all_same(_as_pickle_does(left), _as_pickle_does(right))


def _as_pickle_does(value: Any) -> list[Any]:
    made, arguments, state, items, members = (*value.__reduce_ex__(4), None, None, None, None)[:5]
    return [
        made.__qualname__,
        *arguments,
        state,
        list(items or ()),
        [list(m) for m in members or ()],
    ]


def _all_same(left: Any, right: Any) -> bool:
    return len(left) == len(right) and all(map(same, left, right))


def _in_order(value: Any) -> list[Any]:
    return sorted(value, key=lambda item: repr((type(item).__name__, _shown(item))))


def _shown(item: Any) -> Any:
    return _in_order(item) if isinstance(item, frozenset) else item


_ATOMS = {
    str,
    int,
    bool,
    bytes,
    bytearray,
    type(None),
    range,
    date,
    timedelta,
    Fraction,
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
}
_PARTS: dict[tuple[type, ...], Any] = {
    (list, tuple): list,
    (dict, OrderedDict, Counter): lambda value: [part for item in value.items() for part in item],
    (defaultdict,): lambda value: [value.default_factory, *map(list, value.items())],
    (MappingProxyType,): lambda value: [value | {}, *map(list, value.items())],
    (deque,): lambda value: [value.maxlen, *value],
    (set, frozenset): _in_order,
    (Plain,): lambda value: [vars(value)],
    (Connection,): lambda value: [value.host],
    (Tags, Rights): lambda value: [*_in_order(value), vars(value)],
    (SimpleNamespace,): lambda value: [vars(value)],
    (complex,): lambda value: [value.real, value.imag],
    (Decimal,): lambda value: list(map(str, value.as_tuple())),
    (datetime, time): lambda value: [
        value.replace(tzinfo=None).isoformat(),
        value.fold,
        value.tzinfo,
    ],
    (timezone,): lambda value: [value.utcoffset(None), value.tzname(None)],
    (ZoneInfo,): lambda value: [value.key],
    (UUID,): lambda value: [value.int, value.is_safe],
    (re.Pattern,): lambda value: [value.pattern, value.flags],
    (PurePosixPath, PureWindowsPath, type(Path())): lambda value: [str(value), value.parts],
}
