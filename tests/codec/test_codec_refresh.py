"""What another program wrote is taken over into the very object that the bot holds."""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from typing import Any

import msgspec
import orjson
import pytest
from codec_samples import (
    Address,
    Cart,
    Color,
    Connection,
    FrozenAddress,
    FrozenTicket,
    Grouped,
    KeywordOnly,
    Mixed,
    Order,
    Ordered,
    Plain,
    Point,
    Profile,
    Queue,
    Slotted,
    Tags,
    Tally,
    Ticket,
    Window,
    hidden,
    same,
    with_attributes,
)
from telegram.ext import ContextTypes

from kvpersist import KVPersistence, MemoryStore
from kvpersist.codec import Codec
from kvpersist.errors import EncodeError


class LoudDict(dict[Any, Any]):
    """A dict of a user's that does something else when it is asked to change, or to show."""

    def clear(self) -> None:
        raise AssertionError

    def __iter__(self) -> Any:
        raise AssertionError

    update = keys = copy = __setitem__ = clear  # type: ignore[assignment]


def showing(value: Any, shown: Any) -> Any:
    value.shown = shown
    return value


def profile(**fields: Any) -> Profile:
    return Profile(**fields)


def windows(*items: Any, maxlen: int) -> Window:
    return Window(items, maxlen)


CASES = [
    ({"a": 1, "b": (2,)}, {"b": {3}}),
    (OrderedDict(a=1, b=2), OrderedDict(c=3, a=1)),
    (defaultdict(int, a=1), defaultdict(list, b=[2])),
    (Counter("aab"), Counter("b")),
    (deque([1, 2], 3), deque([1, 2, 3, 4], 5)),
    ([1, 2], [(2,)]),
    ({1, 2}, {3}),
    (LoudDict(a=1), LoudDict(b=(2,))),
    (with_attributes(Cart(a=1), {"owner": 1}), with_attributes(Cart({2: 3}), {"guest": (1,)})),
    (with_attributes(Cart(a=1), {"owner": 1}), Cart()),
    (with_attributes(Ordered(a=1, b=2), {"x": 1}), Ordered(b=1, a=2)),
    (Grouped(int, a=1), with_attributes(Grouped(OrderedDict, {1: 2}), {"x": 1})),
    (Tally("aab"), Tally("b")),
    (Queue([1, 2]), with_attributes(Queue([(2,)]), {"name": Color.RED})),
    (with_attributes(Tags({1, 2}), {"x": 1}), Tags({3})),
    (windows(1, 2, maxlen=2), windows(1, 2, 3, maxlen=4)),
    (Plain(a=1, b=2), Plain(b=(3,), c=4)),
    (showing(hidden(1), 2), hidden((3,))),
    (hidden(1), showing(hidden((3,)), {4})),
    (with_attributes(Mixed(1), {"a": 1}), with_attributes(showing(Mixed((2,)), 3), {"b": 1})),
    (Order("a", 1, [1]), Order("b", (1,), [Order("c")])),
    (Slotted(1, 2), Slotted((1,), {2})),
    (KeywordOnly(name=1), KeywordOnly(name=(2,))),
    (Point(1, 2), Point((1,), Point(2, 3))),
    (Address("a"), Address("b", (1,))),
    (FrozenAddress("a"), FrozenAddress(("b",))),
    (Profile(name="a"), profile(name="b", age=(2,), more={3})),
    (profile(name="a", age=1, more=2), Profile(name=("b",))),
    (Ticket(1, "a"), Ticket((2,), None)),
    (FrozenTicket(number=1), FrozenTicket(number=(2,))),
    (Connection("a"), Connection(("b",))),
]


@pytest.mark.parametrize(("held", "edited"), CASES, ids=lambda value: type(value).__name__)
async def test_an_edited_row_is_taken_over_into_the_object_that_is_held(
    held: Any, edited: Any
) -> None:
    """Whatever class a bot's data has, its object stays the same, and becomes what the row says."""
    kind = type(held)
    store = MemoryStore()
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(
        store, context_types=ContextTypes(chat_data=kind), types=[Order, Point, Color]
    )
    await persistence.update_chat_data(1, held)
    text = persistence.codec.encode_document(edited, kind)
    store.rows["chat/1"] = orjson.dumps(orjson.loads(text), option=orjson.OPT_INDENT_2)
    await persistence.refresh_chat_data(1, held)
    await persistence.flush()
    if kind is LoudDict:
        held, edited = dict(dict.items(held)), dict(dict.items(edited))
    assert same(held, edited)


async def test_an_ordered_dict_that_was_refreshed_works_on() -> None:
    """The order that the type keeps beside its items is the new one."""
    store = MemoryStore()
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(
        store, context_types=ContextTypes(chat_data=OrderedDict)
    )
    held: OrderedDict[str, int] = OrderedDict(a=1, b=2)
    await persistence.update_chat_data(1, held)
    store.rows["chat/1"] = b'{"$ordereddict": {"c": 3, "a": 4}}'
    await persistence.refresh_chat_data(1, held)
    held.move_to_end("c")
    assert list(held.items()) == [("a", 4), ("c", 3)]
    await persistence.flush()


async def test_what_belongs_to_the_row_is_not_in_two_documents() -> None:
    """A row that is gone makes of the held object a new one of its class."""
    store = MemoryStore()
    persistence: KVPersistence[Any, Any, Any] = KVPersistence(
        store, context_types=ContextTypes(chat_data=Plain)
    )
    held = Plain(a=1)
    await persistence.update_chat_data(1, held)
    del store.rows["chat/1"]
    await persistence.refresh_chat_data(1, held)
    assert vars(held) == {}
    await persistence.flush()


def test_a_struct_with_attributes_besides_its_fields_is_refused() -> None:
    """A msgspec struct could not be made again with them."""

    class Loose(msgspec.Struct, dict=True):
        number: int

    loose = Loose(1)
    codec = Codec([Loose])
    assert codec.decode(codec.encode(loose)) == loose
    vars(loose)["note"] = "x"
    with pytest.raises(EncodeError, match="besides the fields of a msgspec struct"):
        codec.encode({"a": loose})
