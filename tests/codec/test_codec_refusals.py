"""What cannot be stored exactly is refused, with the place, the type, and what to do."""

from __future__ import annotations

import inspect
import re
import sys
import threading
from collections import Counter, OrderedDict, UserDict, defaultdict
from contextlib import suppress
from datetime import datetime
from fractions import Fraction
from pathlib import PurePath, PureWindowsPath
from types import MappingProxyType, SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from codec_samples import (
    Access,
    Box,
    Cart,
    Color,
    Mode,
    Name,
    Order,
    Plain,
    Point,
    Profile,
    Slotted,
    Zone,
    make_codec,
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


def _cycle() -> list[Any]:
    cycle: list[Any] = []
    cycle.append([cycle])
    return cycle


def _incomplete() -> Order:
    order = Order("a")
    del order.item
    return order


def _odd_attribute() -> Plain:
    odd = Plain()
    vars(odd)[1] = 2  # type: ignore[index]
    return odd


def _bad_name() -> Any:
    return SimpleNamespace(**{"\ud800": 1})


def _half_constructed() -> Profile:
    return Profile.model_construct(_fields_set={"nothing"}, name="a")


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


class _Endless(dict[Any, Any]):
    pass


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
        (_deep(300), None, "more than 200 levels"),
        (_incomplete(), "", "without its item"),
        (_odd_attribute(), "", "an attribute whose name is no str"),
        (_bad_name(), "", "an attribute whose name is no str"),
        (Plain(**{"$state": 1}), "", "rename it"),
        (_half_constructed(), "", "model_fields_set"),
        (defaultdict(lambda: 1), "", "no class but a function"),
        ([defaultdict(Unlisted)], "[0]", "add Unlisted to types="),
        (Fraction(1, 2**70000), "", "more than 65536 bits"),
        (re.compile("a" * 5000), "", "more than 1000 characters"),
        (re.compile("a", re.DEBUG), "", "re.DEBUG"),
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
    with pytest.raises(EncodeError) as caught:
        codec.encode(value)
    assert reason in caught.value.reason
    assert path is None or caught.value.path == path
    assert len(caught.value.path) <= 201
    assert caught.value.key == ""


def test_a_zone_without_a_name_is_refused() -> None:
    """A ZoneInfo that was read from a file cannot be found again."""
    with open("/usr/share/zoneinfo/Europe/Berlin", "rb") as file:  # noqa: PTH123
        zone = ZoneInfo.from_file(file)
    with pytest.raises(EncodeError, match="no name in the tz database"):
        CODEC.encode(zone)


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


def test_the_limit_of_nesting_is_the_same_both_ways() -> None:
    """Whatever can be stored can be read."""
    for make in (
        lambda inner: [inner],
        lambda inner: (inner,),
        lambda inner: {1: inner},
        lambda inner: {"a": inner},
        lambda inner: Order("a", inner),
        lambda inner: defaultdict(int, {1: inner}),
        Box,
        lambda inner: Cart({1: inner}),
    ):
        value: Any = 1
        levels = 0
        with suppress(EncodeError):
            while text := CODEC.encode(value):
                assert CODEC.encode(CODEC.decode(text)) == text
                value = make(value)
                levels += 1
        assert 40 <= levels <= 210, make(1)


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
        ([Nameless], "has a __reduce"),
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


def test_whatever_a_class_raises_while_it_is_stored_is_told() -> None:
    """An error of ours names it, and no other comes out of the codec."""
    with pytest.raises(EncodeError, match="ValueError"):
        CODEC.encode({10**5000: object()})


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
