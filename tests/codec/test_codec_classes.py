"""Classes of the user's: what is called, what may change between two releases of a bot."""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import attrs
import msgspec
import pydantic
import pytest
from codec_samples import Cart, Mixed, Plain, make_codec, same, with_attributes

from kvpersist.codec import Codec, Named
from kvpersist.errors import DecodeError, EncodeError


def moved(stored: object, now: type) -> Any:
    """Store an object under the name of its class, and read it as another class of that name."""
    text = Codec([Named(type(stored), "it")]).encode(stored)
    return Codec([Named(now, "it")]).decode(text)


def test_a_name_outlives_a_move_and_an_alias_a_new_name() -> None:
    """A class may move to another module, and be renamed."""

    @dataclass
    class Old:
        a: int

    @dataclass
    class New:
        a: int

    text = Codec([Old]).encode(Old(1))
    assert Codec([Named(New, "new", aliases=(Old.__qualname__,))]).decode(text) == New(1)


def test_fields_that_were_added_get_their_defaults() -> None:
    """Rows of an older release are read, if the new fields have defaults."""

    @dataclass
    class Old:
        a: int

    @dataclass
    class New:
        a: int
        b: int = 2
        c: list[int] = field(default_factory=list)

    @dataclass(slots=True)
    class Slots:
        a: int
        b: int = 2
        c: list[int] = field(default_factory=list)

    @attrs.define
    class Attrs:
        a: int
        b: int = 2
        c: list[int] = attrs.field(factory=list)
        d: int = attrs.field()

        @d.default
        def _(self) -> int:
            return self.b + 1

    class Model(pydantic.BaseModel):
        a: int
        b: int = 2
        c: list[int] = []

    class Struct(msgspec.Struct):
        a: int
        b: int = 2
        c: list[int] = []

    for kind in (New, Slots, Attrs, Model, Struct):
        new = moved(Old(1), kind)
        assert (new.a, new.b, new.c) == (1, 2, [])
    assert moved(Old(1), Attrs).d == 3
    assert moved(Old(1), Model).model_fields_set == {"a"}


def test_a_field_that_was_added_without_a_default_is_an_error() -> None:
    """Nothing is made up."""

    @dataclass
    class Old:
        a: int

    @dataclass
    class New:
        a: int
        b: int

    @attrs.define
    class Attrs:
        a: int
        b: int

    class Model(pydantic.BaseModel):
        a: int
        b: int

    class Struct(msgspec.Struct):
        a: int
        b: int

    for kind in (New, Attrs, Model, Struct):
        with pytest.raises(DecodeError, match=r"\bb\b"):
            moved(Old(1), kind)


def test_a_field_that_was_removed_stays_an_attribute_where_there_is_room() -> None:
    """As with pickle: what a row has and the class has not is kept, or refused, never dropped."""

    @dataclass
    class Old:
        a: int
        b: int

    @dataclass
    class New:
        a: int

    @dataclass(slots=True)
    class Slots:
        a: int

    assert vars(moved(Old(1, 2), New)) == {"a": 1, "b": 2}
    with pytest.raises(DecodeError, match="has no b any more"):
        moved(Old(1, 2), Slots)


def test_a_model_without_private_attributes_is_stored_by_its_fields() -> None:
    """Nothing is written of what a pydantic model does not have."""

    class Bare(pydantic.BaseModel):
        a: Any

    codec = Codec([Named(Bare, "Bare")])
    assert codec.encode(Bare(a=(1,))) == b'{"$:Bare":{"a":{"$tuple":[1]}}}'
    assert same(codec.decode(codec.encode(Bare(a=(1,)))), Bare(a=(1,)))


def test_no_constructor_is_called() -> None:
    """Restoring has no side effects of `__init__`, `__new__`, `__post_init__`, `__setattr__`."""

    class Loud:
        def __new__(cls, *_: Any) -> Any:
            raise AssertionError

        def __init__(self) -> None:
            raise AssertionError

        def __setattr__(self, *_: Any) -> None:
            raise AssertionError

    @dataclass(frozen=True)
    class Data:
        a: int

        def __post_init__(self) -> None:
            if self.a > 1:
                raise AssertionError

    class LoudList(list[Any]):
        def __init__(self, *_: Any) -> None:
            raise AssertionError

        def append(self, _: Any) -> None:
            raise AssertionError

        extend = __iter__ = __len__ = append  # type: ignore[assignment]

    loud: Any = object.__new__(Loud)
    vars(loud)["a"] = (1,)
    codec = Codec([Loud, Data, LoudList])
    assert vars(codec.decode(codec.encode(loud))) == {"a": (1,)}
    assert codec.decode(codec.encode(Data(1)).replace(b"1", b"5")).a == 5
    items: Any = list.__new__(LoudList)
    list.append(items, (1,))
    assert list.__getitem__(codec.decode(codec.encode(items)), 0) == (1,)


def test_struct_is_made_by_calling_it() -> None:
    """There is no other way with msgspec; its `__post_init__` runs, as documented."""

    class Struct(msgspec.Struct):
        a: int

        def __post_init__(self) -> None:
            self.a += 1

    codec = Codec([Struct])
    assert codec.decode(codec.encode(Struct(1))).a == 3


def test_hooks_of_pickle_are_called() -> None:
    """`__getstate__` and `__setstate__` have the last word, each also without the other."""

    class Getter:
        def __getstate__(self) -> Any:
            return {"a": (1,)}

    class Nothing:
        def __getstate__(self) -> Any:
            return None

    class Setter:
        def __init__(self) -> None:
            self.a = 1

        def __setstate__(self, state: Any) -> None:
            self.seen = state

    class SlotSetter:
        __slots__ = ("a", "b", "seen")
        a: int

        def __setstate__(self, state: Any) -> None:
            self.seen = state

    class Odd:
        def __getstate__(self) -> Any:
            return 5

    class Both:
        __slots__ = ("__dict__", "a")

        def __getstate__(self) -> Any:
            return {"b": 2}, {"a": 1}

    codec = Codec([Getter, Nothing, Setter, SlotSetter, Odd, Both])
    slots = SlotSetter()
    slots.a = 1
    assert codec.decode(codec.encode(Getter())).a == (1,)
    assert vars(codec.decode(codec.encode(Nothing()))) == {}
    assert codec.decode(codec.encode(Setter())).seen == {"a": 1}
    assert codec.decode(codec.encode(slots)).seen == (None, {"a": 1})
    both = codec.decode(codec.encode(Both()))
    assert (both.a, both.b) == (1, 2)
    with pytest.raises(DecodeError, match=r"\$:.*Odd"):
        codec.decode(codec.encode(Odd()))


def test_private_slots_and_attributes_of_all_bases_are_kept() -> None:
    """Names that Python has mangled are those of the class that made them."""
    codec = make_codec()
    back = codec.decode(codec.encode(with_attributes(Mixed((1,)), {"more": {2}})))
    assert back._Secretive__hidden == (1,)
    assert vars(back) == {"more": {2}}


def test_a_proxy_keeps_the_type_of_its_dict() -> None:
    """`MappingProxyType` does not tell what it shows, and it is kept all the same."""

    class Probe:
        seen: Any = None

        def __eq__(self, other: object) -> bool:
            self.seen = other
            return False

        __hash__ = None  # type: ignore[assignment]

    codec, probe = make_codec(), Probe()
    _ = codec.decode(codec.encode(MappingProxyType(Cart({1: 2})))) == probe
    assert same(probe.seen, Cart({1: 2}))


def test_an_object_that_decode_did_not_make_is_an_error() -> None:
    """A registered `decode` must give back the class that it is for."""
    codec = Codec()
    codec.register(Plain, encode=lambda _: 1, decode=lambda number: number)
    with pytest.raises(DecodeError, match="made a int"):
        codec.decode(codec.encode(Plain()))


def test_neither_pydantic_nor_msgspec_needs_to_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Libraries that the bot does not use are not looked for."""
    for name in ("pydantic", "msgspec", "attr"):
        monkeypatch.delitem(sys.modules, name)
    codec = Codec([Plain])
    assert same(codec.decode(codec.encode(Plain(a=1))), Plain(a=1))


def test_flags_of_all_kinds_come_back() -> None:
    """Combinations, none at all, and bits that have no name."""

    class Keep(enum.IntFlag):
        A = 1
        B = 2

    codec = Codec([Keep])
    for flag in (Keep.A, Keep(0), Keep.A | Keep.B, Keep(8), ~Keep.A):
        assert codec.decode(codec.encode(flag)) is flag


def test_an_unhashable_enum_value_and_an_alias_come_back() -> None:
    """Members are stored by name, whatever their value is."""

    class Odd(enum.Enum):
        LIST = [1]
        SAME = [1]

    codec = Codec([Odd])
    assert codec.encode(Odd.SAME) == codec.encode(Odd.LIST)
    assert codec.decode(codec.encode(Odd.SAME)) is Odd.LIST


def test_an_exception_may_be_registered() -> None:
    """What has its own way to be pickled needs two functions."""
    codec = Codec()
    codec.register(
        KeyError, "KeyError", encode=lambda error: error.args, decode=lambda args: KeyError(*args)
    )
    assert codec.decode(codec.encode(KeyError("a", 1))).args == ("a", 1)
    with pytest.raises(EncodeError):
        codec.encode(IndexError())
