"""Classes of the user's: what is called, what may change between two releases of a bot."""

from __future__ import annotations

import enum
import sys
from collections import defaultdict
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

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


def test_members_and_fields_may_be_renamed() -> None:
    """Rows of an older release are read if the class says what the old names mean now."""

    class OldColor(enum.Enum):
        CRIMSON = 1

    class NewColor(enum.Enum):
        RED = 1
        CRIMSON = 1

    @dataclass
    class Old:
        cost: Any

    @dataclass
    class New:
        price: Any
        currency: str = "EUR"

        def __setstate__(self, state: dict[str, Any]) -> None:
            if "cost" in state:
                state["price"] = state.pop("cost")
            self.__dict__ |= {"currency": "EUR", **state}

    class Pair(NamedTuple):
        price: Any

    assert moved(OldColor.CRIMSON, NewColor) is NewColor.RED
    assert moved(Old((5,)), New) == New((5,))
    assert moved(New((5,)), New) == New((5,))
    codec = Codec()
    codec.register(Pair, "it", encode=Pair._asdict, decode=lambda row: Pair(row["cost"]))
    assert codec.decode(Codec([Named(Old, "it")]).encode(Old((5,)))) == Pair((5,))


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
        b: int = field(default=2, init=False)
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
        _p: list[int] = pydantic.PrivateAttr(default=[3])
        _q: int = pydantic.PrivateAttr(default_factory=lambda: 4)
        _later: int

    class Struct(msgspec.Struct):
        a: int
        b: int = 2
        c: list[int] = []

    for kind in (New, Slots, Attrs, Model, Struct):
        new = moved(Old(1), kind)
        assert (new.a, new.b, new.c) == (1, 2, [])
    assert moved(Old(1), Attrs).d == 3
    model = moved(Old(1), Model)
    assert model.model_fields_set == {"a"}
    assert model.__pydantic_private__ == {"_p": [3], "_q": 4}
    assert list(model.__pydantic_private__) == ["_p", "_q"]
    assert model._p is not moved(Old(1), Model)._p


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


def test_what_a_model_has_no_place_for_any_more_is_kept() -> None:
    """As with pickle: the next release that knows it again finds it."""

    class Old(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")
        a: Any
        _p: Any = pydantic.PrivateAttr(default=1)

    class New(pydantic.BaseModel):
        a: Any

    old = Old.model_validate({"a": 1, "b": (2,)})
    new = moved(old, New)
    assert (new.model_extra, new.__pydantic_private__) == ({"b": (2,)}, {"_p": 1})
    assert same(moved(new, Old), old)


@pytest.mark.skipif(
    not hasattr(pydantic.fields.ModelPrivateAttr, "default_factory_takes_validated_data"),
    reason="this pydantic gives factories of private attributes nothing",
)
def test_a_private_default_may_be_made_of_the_fields() -> None:
    """Newer releases of pydantic have that."""

    @dataclass
    class Old:
        a: int

    class Model(pydantic.BaseModel):
        a: int
        _p: int = pydantic.PrivateAttr(default_factory=lambda members: members["a"] + 1)

    assert moved(Old(1), Model)._p == 2


def test_a_hash_that_was_kept_is_worked_out_again() -> None:
    """A hash that attrs keeps in an object is another one after a restart."""

    @attrs.frozen(cache_hash=True)
    class Slots:
        a: str

    @attrs.frozen(cache_hash=True, slots=False)
    class Dict:
        a: str

    for kind in (Slots, Dict):
        codec = Codec([kind])
        value = kind("x")
        text = codec.encode(value)
        assert hash(value) != 0
        assert codec.encode(value) == text
        back = codec.decode(text)
        assert back._attrs_cached_hash is None
        assert (back, hash(back)) == (value, hash(value))


def test_a_default_factory_that_a_class_hides_is_kept() -> None:
    """What the builtin type holds is taken, whatever the class says of it."""

    class Hiding(defaultdict[str, Any]):
        @property
        def default_factory(self) -> Any:  # type: ignore[override]
            raise AssertionError

    codec = Codec([Named(Hiding, "it")])
    text = codec.encode(Hiding(list, a=1))
    assert text == b'{"$:it":{"$base":{"$defaultdict":["list",{"a":1}]}}}'
    assert codec.encode(codec.decode(text)) == text


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


def test_what_a_struct_does_after_it_was_made_is_not_done_again() -> None:
    """There is no way to make a struct without its `__post_init__`, but it changes no field."""
    made = []

    class Struct(msgspec.Struct, frozen=True):
        a: int
        b: int = 0

        def __post_init__(self) -> None:
            made.append(self.a)
            msgspec.structs.force_setattr(self, "a", self.a + 1)
            msgspec.structs.force_setattr(self, "b", self.b + 1)

    codec = Codec([Named(Struct, "it")])
    struct = Struct(1)
    assert (struct.a, struct.b) == (2, 1)
    assert codec.decode(codec.encode(struct)) == struct
    assert made == [1, 2]
    assert codec.decode(b'{"$:it":{"a":5}}').b == 1


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

    class Neither:
        def __getstate__(self) -> Any:
            return None

        def __setstate__(self, state: Any) -> None:
            raise AssertionError

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

    codec = Codec([Getter, Nothing, Neither, Setter, SlotSetter, Odd, Both])
    slots = SlotSetter()
    assert not hasattr(codec.decode(codec.encode(slots)), "seen")
    slots.a = 1
    assert codec.decode(codec.encode(Getter())).a == (1,)
    assert vars(codec.decode(codec.encode(Nothing()))) == {}
    assert vars(codec.decode(codec.encode(Neither()))) == {}
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


def test_classes_of_every_layout_are_python() -> None:
    """A `__dict__`, weak references and slots, also one that a base has too, hide nothing."""

    class Base:
        __slots__ = ("__weakref__", "a")
        a: Any

    class Again(Base):
        __slots__ = ("__dict__", "a")

    class Bare:
        __slots__ = ()

    class Without(Bare):
        __slots__ = ("a",)
        a: Any

    for kind in (Base, Again, Without):
        codec = Codec([kind])
        value = kind()
        value.a = (1,)
        assert codec.decode(codec.encode(value)).a == (1,)


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


def test_flags_beyond_64_bits_come_back() -> None:
    """Their number is stored as every int is."""

    class Wide(enum.Flag):
        LOW = 1
        HIGH = 2**70

    codec = Codec([Wide])
    assert codec.decode(codec.encode(Wide.LOW | Wide.HIGH)) is Wide.LOW | Wide.HIGH
    with pytest.raises(DecodeError, match="flags are a number"):
        codec.decode(codec.encode(Wide.LOW).replace(b'"LOW"', b'{"$tuple":[]}'))


@pytest.mark.skipif(sys.version_info < (3, 11), reason="flags had no boundaries")
def test_flags_that_are_gone_are_an_error() -> None:
    """Some boundaries make an int of them, or another flag."""

    class Both(enum.IntFlag):
        A = 1
        B = 2

    for boundary in (enum.EJECT, enum.CONFORM, enum.STRICT):

        class One(enum.IntFlag, boundary=boundary):
            A = 1

        with pytest.raises(DecodeError):
            moved(Both.A | Both.B, One)


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
