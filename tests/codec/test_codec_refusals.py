"""What cannot be stored exactly is refused, with the place, the type, and what to do."""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections import Counter, OrderedDict, UserDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from functools import partial
from io import BytesIO
from ipaddress import ip_interface, ip_network
from pathlib import PurePath, PureWindowsPath
from types import CellType, MappingProxyType, SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import msgspec
import orjson
import pydantic
import pytest
from codec_samples import (
    ZONE_FILE,
    Access,
    Bits,
    Box,
    Cart,
    Color,
    Connection,
    Direct,
    Mode,
    Money,
    Name,
    NamedPair,
    Order,
    Pair,
    Plain,
    Point,
    Profile,
    Queue,
    Slotted,
    Ticket,
    Zone,
    make_codec,
    with_attributes,
)

from kvpersist.codec import Codec, Named
from kvpersist.errors import ConfigurationError, DecodeError, EncodeError

CODEC = make_codec()


class Unlisted:
    pass


class Failing:
    def __getstate__(self) -> Any:
        raise OSError("no state")


class Nameless(datetime):
    pass


class Colour(str):
    pass


class Forgetful(pydantic.BaseModel):
    __slots__ = ("lost",)


class OwnModel(pydantic.BaseModel):
    def __setstate__(self, state: Any) -> None:
        raise AssertionError


class OwnStruct(msgspec.Struct):
    def __reduce__(self) -> Any:
        raise AssertionError


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append([cycle])
    return cycle


def _incomplete() -> Order:
    order = Order("a")
    del order.item
    return order


def _with_note(value: Any) -> Any:
    value.note = "mine"
    return value


def _odd_attribute() -> Plain:
    odd = Plain()
    vars(odd)[1] = 2  # type: ignore[index]
    return odd


def _bad_name() -> Any:
    return SimpleNamespace(**{"\ud800": 1})


def _half_constructed() -> Profile:
    return Profile.model_construct(_fields_set={"nothing"}, name="a")


@dataclass(unsafe_hash=True)
class Changing:
    number: int


def _become_the_same() -> dict[Any, Any]:
    keys = {Changing(1): 1, Changing(2): 2}
    first, second = keys
    second.number = first.number
    return keys


def _half_private() -> Profile:
    profile = Profile(name="a")
    del profile._secret
    return profile


def _half_struct() -> Ticket:
    ticket = Ticket(1)
    del ticket.note
    return ticket


def _nested(make: Callable[[Any], Any], value: Any, times: int) -> Any:
    for _ in range(times):
        value = make(value)
    return value


def _deep(levels: int) -> Any:
    return _nested(lambda value: [value], 1, levels)


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ({"a": [1, {"b": Unlisted()}]}, '["a"][1]["b"]', "add Unlisted to types="),
        ({"cart": [0, 0, Order("a", object)]}, '["cart"][2].price', "type cannot be stored"),
        (lambda: 1, "", "a value of type function"),
        ({1: threading.Lock()}, "[1]", "Codec.register"),
        ({"x": (1, {2: {3: print}})}, '["x"][1][2][3]', "builtin_function_or_method"),
        ({"f": open(__file__)}, '["f"]', "_io.TextIOWrapper"),  # noqa: SIM115, PTH123
        ({(Unlisted(),): 1}, "[<tuple>][0]", "Unlisted"),
        (Nameless.now(), "", "Nameless"),
        (Colour("red"), "", "add Colour to types="),
        ({"k": {Colour("red"): 1}}, '["k"][<Colour>]', "Colour"),
        ({b"k": {1.5: {None: object()}}}, "[b'k'][1.5][None]", "a value of type object"),
        (_cycle(), None, "contains itself"),
        (_deep(300), None, "more than 254 levels"),
        (_incomplete(), "", "without its item"),
        (_odd_attribute(), "", "an attribute whose name is no str"),
        (_bad_name(), "", "an attribute whose name is no str"),
        (Plain(**{"$state": 1}), "", "rename it"),
        (_half_constructed(), "", "model_fields_set"),
        ([Profile.model_construct()], "[0]", "without its name"),
        (_become_the_same(), "", "have become the same"),
        ({"a": {*_become_the_same()}}, '["a"]', "have become the same"),
        ([_half_private()], "[0]", "without its _secret"),
        ({"a": _half_struct()}, '["a"]', "without its note"),
        ([tuple.__new__(Pair, (1,))], "[0]", "items are not those of its _fields"),
        ([tuple.__new__(Pair, (1, 2, 3))], "[0]", "items are not those of its _fields"),
        ([with_attributes(NamedPair(1), {"first": 2})], "[0]", "called as a field: first"),
        (defaultdict(lambda: 1), "", "no class but a function"),
        ([defaultdict(Unlisted)], "[0]", "a class of your own, and add that to types="),
        (Fraction(1, 2**70000), "", "more than 65536 bits"),
        (re.compile("a" * 5000), "", "more than 1000 characters"),
        (re.compile("a", re.DEBUG), "", "re.DEBUG"),
        ([re.compile(Colour("red"))], "[0]", "Colour; compile a str"),
        ([re.compile("a" * 990 + str(i)) for i in range(21)], "[20]", "more than 20000 characters"),
        ([_with_note(ip_network("10.0.0.0/8"))], "[0]", "attributes (note) of an IPv4Network"),
        ([_with_note(ip_interface("::1/8"))], "[0]", "attributes (note) of an IPv6Interface"),
        (_with_note(ip_interface("::1/8").network), "", "attributes (note) of an IPv6Network"),
        (datetime(2026, 1, 2, tzinfo=Zone()), "", "Zone"),
        (MappingProxyType(UserDict()), "", "MappingProxyType"),
        (Failing(), "", "OSError: no state"),
        ({"long" * 20: object()}, '["' + ("long" * 20)[:39] + "…]", "object"),
    ],
)
def test_a_refusal_names_place_type_and_remedy(value: Any, path: str | None, reason: str) -> None:
    """The error leads to the value, and says what to do about it."""
    codec = make_codec()
    codec.register(Failing)
    codec.register(Changing)
    with pytest.raises(EncodeError) as caught:
        codec.encode(value)
    assert reason in caught.value.reason
    assert path is None or caught.value.path == path
    assert len(caught.value.path) <= 201
    assert caught.value.key == ""


def test_a_zone_without_a_name_is_refused() -> None:
    """A ZoneInfo that was read from a file cannot be found again, whatever it is called."""
    for key in (None, "America/New_York"):
        with BytesIO(ZONE_FILE) as file:
            zone = ZoneInfo.from_file(file, key=key)
        with pytest.raises(EncodeError, match="no name in the tz database"):
            CODEC.encode(datetime(2026, 1, 2, tzinfo=zone))


def test_a_path_whose_text_means_another_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is stored that would come back as another path."""
    with monkeypatch.context() as patch:
        patch.setattr(PurePath, "__str__", lambda _: "other")
        with pytest.raises(EncodeError, match="means another path"):
            CODEC.encode(PureWindowsPath("a"))


def test_an_enum_member_that_is_gone_is_refused() -> None:
    """A member that its class no longer has could not be found again."""
    stray = object.__new__(Color)
    stray._name_, stray._value_ = "GREEN", 3
    with pytest.raises(EncodeError, match="no longer a member of Color"):
        CODEC.encode(stray)


def test_an_empty_slot_of_a_field_is_refused() -> None:
    """A dataclass with a field that has no value cannot be told from an older one."""
    with pytest.raises(EncodeError, match="without its left, right"):
        CODEC.encode(object.__new__(Slotted))


def _brackets(text: bytes) -> int:
    """Count how deep the brackets of a text are nested, those of empty arrays aside."""
    depth = deepest = 0
    for bracket in re.findall(rb"[][{}]", re.sub(rb'"(?:[^"\\]|\\.)*"|\[\]', b"", text)):
        depth += 1 if bracket in b"[{" else -1
        deepest = max(deepest, depth)
    return deepest


@pytest.mark.parametrize("leaf", [1, [], (), [1.5], (1,), {"a": 1}, "\ud800", Color.RED], ids=repr)
@pytest.mark.parametrize(
    "make",
    [
        lambda inner: [inner],
        lambda inner: (inner,),
        lambda inner: {1: inner},
        lambda inner: {"a": inner},
        lambda inner: {"$a": inner},
        lambda inner: {"a": inner, **dict.fromkeys("bcdefghijklmnopqrstu")},
        lambda inner: [inner, *range(20)],
        lambda inner: deque([inner]),
        lambda inner: deque([inner], 1),
        lambda inner: OrderedDict(a=inner),
        lambda inner: Counter({1: inner}),
        lambda inner: defaultdict(int, {1: inner}),
        lambda inner: defaultdict(int, a=inner),
        lambda inner: SimpleNamespace(a=inner),
        lambda inner: MappingProxyType({"a": inner}),
        lambda inner: Order("a", inner),
        lambda inner: Profile(name=inner),
        lambda inner: Profile.model_validate({"name": 1, "more": inner}),
        lambda inner: Cart({1: inner}),
        lambda inner: Queue([inner]),
        lambda inner: Connection([inner, *range(20)]),
        lambda inner: Money(inner, "EUR"),
        Box,
        Connection,
        Pair,
        Ticket,
        Direct,
    ],
)
def test_254_levels_of_brackets_are_stored_and_read_and_no_more(
    make: Callable[[Any], Any], leaf: Any
) -> None:
    """The limit is that of the text, whatever the containers are, and the same both ways."""
    first, second = (_brackets(CODEC.encode(_nested(make, leaf, times))) for times in (1, 2))
    most = (254 - first) // (second - first) + 1
    text = CODEC.encode(_nested(make, leaf, most))
    assert 254 - (second - first) < _brackets(text) <= 254
    assert CODEC.encode(CODEC.decode(text)) == text
    with pytest.raises(EncodeError, match="nested more than 254 levels deep"):
        CODEC.encode(_nested(make, leaf, most + 1))


class Same(int):
    """All objects of the class have one hash."""

    def __hash__(self) -> int:
        return 1


def test_32_keys_of_one_hash_are_stored_and_read_and_no_more() -> None:
    """What would take too long to read is not stored either."""
    codec = Codec([Same])
    others = list(map(str, range(1000)))
    most, too_many = ([Same(number) for number in range(count)] for count in (32, 33))
    for make in (set, frozenset, dict.fromkeys, Counter, OrderedDict.fromkeys):
        value: Any = make([*most, *others])
        assert codec.decode(codec.encode(value)) == value
        with pytest.raises(EncodeError, match="more than 32 keys or items with the same hash"):
            codec.encode(make([*too_many, *others]))
        row = codec.encode(value).replace(b'"999"', codec.encode(Same(32)))
        with pytest.raises(DecodeError, match="more than 32 keys or items have the same hash"):
            codec.decode(row)


def test_a_container_that_changes_while_it_is_stored_is_refused() -> None:
    """A document is never stored half before and half after a change."""
    document: dict[str, Any] = {}
    items: list[Any] = []
    codec = Codec()
    codec.register(Plain, encode=lambda _: document.update(b=1), decode=lambda _: Plain())
    codec.register(Box, encode=lambda _: items.append(1), decode=lambda _: Box(1))
    document["a"] = Plain()
    items.append(Box(1))
    for value in (document, items):
        with pytest.raises(EncodeError, match="changed while it was being stored"):
            codec.encode({"outer": value})


def test_a_container_that_changes_while_it_is_copied_is_refused() -> None:
    """What Python notices itself is an error of the document as well."""
    armed = False

    class Key:
        def __hash__(self) -> int:
            if armed:
                ordered[object()] = 1
            return 1

    ordered: OrderedDict[Any, int] = OrderedDict({Key(): 1, 2: 2})
    armed = True
    with pytest.raises(EncodeError, match="changed while it was being stored"):
        CODEC.encode(ordered)


def test_documents_that_other_threads_change_are_stored_or_refused() -> None:
    """Threads that work on a document raise nothing else, and nothing false is stored."""
    document: dict[Any, Any] = {"n": {}, "l": []}
    done = threading.Event()

    def work() -> None:
        count = 0
        while not done.is_set():
            document["n"][count % 50] = (count, Color.RED)
            document["l"].append((count,))
            if count % 50 == 0:
                document["n"].clear()
                document["l"].clear()
            count += 1

    thread = threading.Thread(target=work)
    thread.start()
    try:
        for _ in range(300):
            back = _stored_or_refused(document)
            assert all(type(item) is tuple for item in back["l"])
    finally:
        done.set()
        thread.join()


def _stored_or_refused(document: dict[Any, Any]) -> Any:
    try:
        return CODEC.decode(CODEC.encode(document))
    except EncodeError as error:
        if "changed" not in error.reason:
            raise
        return {"l": []}


def test_subclasses_are_never_flattened() -> None:
    """A subclass of a supported type is its own type, listed or refused."""
    for value in (Name("x"), Cart(), Mode.FAST, Access.READ, Point(1, 2)):
        with pytest.raises(EncodeError, match="to types="):
            Codec().encode([value])


@pytest.mark.parametrize(
    ("types", "reason"),
    [
        ([Named(Order, "a"), Named(Point, "a")], "the name of both"),
        ([Named(Order, "a"), Named(Order, "b")], "two names"),
        (["Order"], "is not a class"),
        ([list[int]], "is not a class"),
        ([Named(int, "number")], "leave it out"),
        ([type(threading.Lock())], "not written in Python"),
        ([CellType], "not written in Python"),
        ([orjson.Fragment], "not written in Python"),
        ([Nameless], "has a __reduce"),
        ([Forgetful], r"slots \(lost\), which pydantic"),
        ([OwnModel], "has a __setstate__"),
        ([OwnStruct], "has a __reduce__"),
        ([type("Failure", (Exception,), {})], "has a __reduce"),
    ],
)
def test_classes_that_cannot_work_are_refused_at_once(types: list[Any], reason: str) -> None:
    """A wrong list of classes is heard of when the bot starts."""
    with pytest.raises(ConfigurationError, match=reason):
        Codec(types)


def test_register_wants_both_functions() -> None:
    """A class that can only be written could never be read."""
    with pytest.raises(ConfigurationError, match="both"):
        Codec().register(Point, encode=str)


def test_listing_what_is_known_anyway_does_no_harm() -> None:
    """`types=` may name builtin types, and a class twice."""
    assert Codec([int, datetime, defaultdict, Order, Order]).encode(1) == b"1"


def test_what_a_registered_function_raises_becomes_an_error_of_the_document() -> None:
    """One value that cannot be encoded fails alone, whatever was raised."""
    codec = Codec()
    codec.register(Point, encode=lambda point: 1 / point.x, decode=lambda _: Point(0, 0))
    with pytest.raises(EncodeError, match="ZeroDivisionError") as caught:
        codec.encode({"a": Point(0, 0)})
    assert caught.value.path == '["a"]'


def test_a_name_that_json_has_no_word_for_is_refused() -> None:
    """The last resort is an error too, not half a text."""
    with pytest.raises(EncodeError, match="no words for it"):
        Codec([Named(Point, "\ud800")]).encode(Point(1, 2))


def test_a_stack_that_is_too_small_is_an_error_of_the_document() -> None:
    """Deep in the stack of a bot, a nested document is refused, not fatal."""
    limit = sys.getrecursionlimit()
    value = {"deep": _deep(190), "walked": ()}
    try:
        sys.setrecursionlimit(_stack_depth() + 60)
        with pytest.raises(EncodeError, match="too deep"):
            CODEC.encode(value)
    finally:
        sys.setrecursionlimit(limit)


def _stack_depth() -> int:
    return len(inspect.stack(0))


@pytest.mark.parametrize("value", [OrderedDict(a=1), Counter("a")])
def test_attributes_of_an_unlisted_dict_are_refused(value: dict[str, int]) -> None:
    """They would be lost: a class of one's own keeps them."""
    vars(value)["note"] = "mine"
    with pytest.raises(EncodeError, match=r"attributes \(note\).*types="):
        CODEC.encode({"held": value})


def test_aliases_that_are_one_str_are_refused() -> None:
    """Each of its letters would become a name."""
    with pytest.raises(ConfigurationError, match="several names"):
        Codec([Named(Color, "colour", aliases="Color")])  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [TypeError, RuntimeError, ValueError])
def test_whatever_a_class_raises_while_it_is_stored_is_told(error: type[Exception]) -> None:
    """An error of ours names it and the place, and no other comes out of the codec."""
    looked_at = []

    class Failing(dict[str, Any]):
        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            looked_at.append(self)
            raise error("mine")

    codec = Codec([Failing])
    with pytest.raises(EncodeError, match=f"raised {error.__name__}: mine") as caught:
        codec.encode({"a": [Failing()]})
    assert caught.value.path == '["a"][0]'
    assert len(looked_at) == 1
    with pytest.raises(EncodeError, match=f"raised {error.__name__}: mine"):
        codec.encode_document(Failing(), Failing)


def test_functions_without_a_name_are_called_as_others() -> None:
    """Whatever can be called will do, also where its error is told."""

    class Hooked:
        __getstate__ = partial(lambda *_: {"a": (1,)})

    def fail(_: int, __: Plain) -> None:
        raise ValueError("mine")

    codec = Codec([Named(Hooked, "it")])
    codec.register(Plain, encode=partial(fail, 1), decode=lambda _: Plain())
    assert codec.encode(Hooked()) == b'{"$:it":{"$state":{"a":{"$tuple":[1]}}}}'
    with pytest.raises(EncodeError, match="partial of Plain raised ValueError: mine"):
        codec.encode(Plain())


def test_every_int_can_be_shown_in_a_path() -> None:
    """Python itself refuses to write very long ones."""
    for key, path in (
        (-(10**12), "[-1000000000000]"),
        (10**5000, f"[{hex(10**5000)[:40]}…]"),
    ):
        with pytest.raises(EncodeError) as caught:
            CODEC.encode({key: object()})
        assert caught.value.path == path


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (b'{"$:Old":{"a":1}}', "'Old', which is not listed"),
        (b'{"$dict":[[7,"x"]]}', r"\$dict where"),
    ],
)
def test_a_document_of_another_class_is_refused(row: bytes, words: str) -> None:
    """A renamed context type does not begin anew without a word."""

    class Renamed:
        pass

    with pytest.raises(DecodeError, match=words):
        CODEC.decode_document(row, Renamed)


def test_very_long_ints_are_no_keys_beside_one_of_their_hash() -> None:
    """Python compares them, which takes time that grows with the square of their length."""
    long = 2**70000
    same_hash = Decimal(hash(long))
    assert CODEC.decode(CODEC.encode({long, 1})) == {long, 1}
    with pytest.raises(EncodeError, match="very long ints"):
        CODEC.encode({(long,), (same_hash,)})
    row = b'{"$set":[%b,%b]}' % (CODEC.encode((long,)), CODEC.encode((same_hash,)))
    with pytest.raises(DecodeError, match="very long ints"):
        CODEC.decode(row)


def test_flags_beyond_what_can_be_read_are_refused() -> None:
    """An IntFlag takes any number."""
    assert CODEC.decode(CODEC.encode(Bits(2**40))) == Bits(2**40)
    with pytest.raises(EncodeError, match="more than 64 bits"):
        CODEC.encode(Bits(2**64))


def test_a_name_that_cannot_be_printed_can_be_printed_in_an_error() -> None:
    """A lone surrogate has no place in UTF-8."""
    with pytest.raises(EncodeError) as caught:
        CODEC.encode({"\ud800": print})
    assert str(caught.value).encode()


def test_a_class_that_cannot_be_registered_is_not_registered() -> None:
    """An error leaves nothing behind."""
    codec = Codec([Plain])
    before = codec.tags()
    for name, aliases in (("two", ("Plain",)), ("", ("Plain",))):
        with pytest.raises(ConfigurationError, match="is the name of both"):
            codec.register(Box, name, aliases=aliases)
    with pytest.raises(ConfigurationError, match="under two names"):
        codec.register(Plain, "other")
    assert codec.tags() == before
