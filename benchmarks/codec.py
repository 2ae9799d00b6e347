"""What encoding and decoding cost, beside orjson, pickle, jsonpickle and msgspec, in one run.

Run ``python benchmarks/codec.py``. Every round measures each candidate once, so that they share the
machine's moods; the tables have the medians of all rounds, and the ratios that are promised.
"""

from __future__ import annotations

import copy
import pickle
import statistics
import timeit
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from decimal import Decimal
from enum import Enum
from typing import Any

import jsonpickle
import msgspec
import orjson

from kvpersist.codec import Codec

ROUNDS = 31
SECONDS_A_ROUND = 0.01


class Color(Enum):
    RED = 1


@dataclass
class Item:
    sku: str
    title: str
    price: Decimal
    count: int
    tags: tuple[str, ...]


def plain(items: int) -> dict[str, Any]:
    """Return the data of a chat with some items in a cart.

    Each text is an object of its own, as those are that a bot receives. pickle writes an object
    that occurs many times only once.
    """
    data = {
        "name": "Ada Lovelace",
        "language": "en",
        "visits": 17,
        "score": 3.25,
        "active": True,
        "last": None,
        "cart": [
            {
                "sku": f"SKU-{number:05d}",
                "title": "Blue mountain coffee, 250 g",
                "price": 12.5 + number,
                "count": number % 4 + 1,
                "tags": ["coffee", "fair"],
            }
            for number in range(items)
        ],
        "seen": [1_700_000_000 + 37 * number for number in range(2 * items)],
        "settings": {"notify": True, "timezone": "Europe/Berlin", "theme": "dark"},
    }
    copied: dict[str, Any] = orjson.loads(orjson.dumps(data))
    return copied


def some_tags(items: int) -> dict[str, Any]:
    """Return the same with what a bot that used pickle has among it."""
    data = plain(items)
    return data | {
        "since": datetime(2026, 1, 2, 3, 4, tzinfo=timezone.utc),
        "color": Color.RED,
        "position": (3, 4),
        "friends": {1, 2, 3},
        "names": {1: "one", 2: "two"},
        "best": Item("SKU-1", "Coffee", Decimal("12.50"), 1, ("fair",)),
    }


def many_tags(items: int) -> dict[str, Any]:
    """Return the same with hardly a value that is plain."""
    data = some_tags(items)
    cart = [
        Item(**each | {"price": Decimal(each["price"]), "tags": tuple(each["tags"])})
        for each in data["cart"]
    ]
    seen = {number: datetime.fromtimestamp(number, timezone.utc) for number in data["seen"]}
    return data | {"cart": cart, "seen": seen}


def medians(candidates: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return microseconds a call."""
    timers = {name: timeit.Timer(candidate) for name, candidate in candidates.items()}
    calls = {}
    for name, timer in timers.items():
        number, seconds = timer.autorange()
        calls[name] = max(1, int(number * SECONDS_A_ROUND / seconds))
    rounds = [
        {name: timer.timeit(calls[name]) / calls[name] for name, timer in timers.items()}
        for _ in range(ROUNDS)
    ]
    return {name: 1e6 * statistics.median(each[name] for each in rounds) for name in timers}


def show(
    title: str, candidates: dict[str, Callable[[], object]], against: str, most: float
) -> None:
    """Print what was measured, and the ratio with what is promised about it."""
    measured = medians(candidates)
    print(f"\n{title}")
    for name, microseconds in measured.items():
        print(f"  {name:22} {microseconds:9.2f} µs")
    ratio = measured["kvpersist"] / measured[against]
    print(f"  {ratio:.2f} times {against} (at most {most})")


def measure_plain(codec: Codec, data: dict[str, Any]) -> None:
    """Measure a document that is stored as plain JSON."""
    text, pickled, packed = (
        orjson.dumps(data),
        pickle.dumps(data),
        jsonpickle.encode(data, keys=True),
    )
    assert codec.encode(data) == text
    encoders: dict[str, Callable[[], object]] = {
        "kvpersist": lambda: codec.encode(data),
        "orjson.dumps": lambda: orjson.dumps(data),
        "copy.deepcopy": lambda: copy.deepcopy(data),
        "pickle.dumps": lambda: pickle.dumps(data),
        "jsonpickle.encode": lambda: jsonpickle.encode(data, keys=True),
        "msgspec.json.encode": lambda: msgspec.json.encode(data),
    }
    decoders: dict[str, Callable[[], object]] = {
        "kvpersist": lambda: codec.decode(text),
        "orjson.loads": lambda: orjson.loads(text),
        "pickle.loads": lambda: pickle.loads(pickled),
        "jsonpickle.decode": lambda: jsonpickle.decode(packed, keys=True),
        "msgspec.json.decode": lambda: msgspec.json.decode(text),
    }
    show(f"encode, plain, {len(text)} bytes", encoders, "copy.deepcopy", 0.5)
    show(f"decode, plain, {len(text)} bytes", decoders, "orjson.loads", 1.1)


def measure_tagged(codec: Codec, title: str, data: dict[str, Any]) -> None:
    """Measure a document with values that JSON has no word for."""
    text, pickled = codec.encode(data), pickle.dumps(data)
    packed = jsonpickle.encode(data, keys=True)
    assert codec.decode(text) == data
    encoders: dict[str, Callable[[], object]] = {
        "kvpersist": lambda: codec.encode(data),
        "pickle.dumps": lambda: pickle.dumps(data),
        "copy.deepcopy": lambda: copy.deepcopy(data),
        "jsonpickle.encode": lambda: jsonpickle.encode(data, keys=True),
    }
    decoders: dict[str, Callable[[], object]] = {
        "kvpersist": lambda: codec.decode(text),
        "pickle.loads": lambda: pickle.loads(pickled),
        "jsonpickle.decode": lambda: jsonpickle.decode(packed, keys=True),
    }
    show(f"encode, {title}, {len(text)} bytes", encoders, "pickle.dumps", 2)
    show(f"decode, {title}, {len(text)} bytes", decoders, "pickle.loads", 2)


def main() -> None:
    """Measure small and large documents, without tags, with some and with many."""
    codec = Codec([Color, Item])
    for items in (5, 80):
        measure_plain(codec, plain(items))
        measure_tagged(codec, "some tags", some_tags(items))
        measure_tagged(codec, "many tags", many_tags(items))


if __name__ == "__main__":
    main()
