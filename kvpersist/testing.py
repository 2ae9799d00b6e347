"""What every storage engine must do, as tests that pytest runs.

The author of an engine inherits them::

    from kvpersist.testing import StoreContract

    class TestMyStore(StoreContract):
        def make_store(self, folder):
            return MyStore(folder / "data")

They check the contract of `kvpersist.stores.store.Store`, and nothing about speed. For readable
failures say ``pytest.register_assert_rewrite("kvpersist.testing")`` in a conftest.py before that.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from kvpersist.errors import ReadError, WriteError
from kvpersist.stores.store import Store

_MANY = 1_777
_KEYS = (
    "bot",
    "chat/-1001234567890",
    "chat/9223372036854775807",
    "conversation/Order/[1,2]",
    "conversation/order/[1,2]",
    'conversation/Привет %2F 🎲/["it\'s; --",0]',
)


class StoreContract(ABC):
    """The tests of one engine; `make_store` is all that a subclass must write."""

    @abstractmethod
    def make_store(self, folder: Path) -> Store:
        """Return a closed store. All stores of one folder must have the same content."""

    def test_a_new_store_is_empty(self, tmp_path: Path) -> None:
        """Nothing is found before anything was written."""

        async def check(store: Store) -> None:
            assert await store.read(["bot"]) == {}
            assert await _all(store) == {}

        self._run(tmp_path, check)

    def test_what_was_applied_is_there_after_reopening(self, tmp_path: Path) -> None:
        """Keys and texts come back byte for byte, in another store of the same content too."""
        rows = {key: f'{{"key":"{at} 🎲"}}'.encode() for at, key in enumerate(_KEYS)}

        async def write(store: Store) -> None:
            await store.apply(rows)

        async def check(store: Store) -> None:
            assert await store.read(_KEYS) == rows
            assert await _all(store) == rows

        self._run(tmp_path, write, check)

    def test_the_later_value_of_a_row_replaces_the_earlier(self, tmp_path: Path) -> None:
        """A row has one value."""

        async def check(store: Store) -> None:
            await store.apply({"bot": b"1"})
            await store.apply({"bot": b"2", "chat/1": b"3"})
            assert await _all(store) == {"bot": b"2", "chat/1": b"3"}

        self._run(tmp_path, check)

    def test_none_removes_a_row(self, tmp_path: Path) -> None:
        """A removal shares a transaction with writes; what does not exist can be removed."""

        async def write(store: Store) -> None:
            await store.apply({"chat/1": b"1", "chat/2": b"2"})
            await store.apply({"chat/1": None, "chat/3": b"3", "chat/4": None})

        async def check(store: Store) -> None:
            assert await _all(store) == {"chat/2": b"2", "chat/3": b"3"}

        self._run(tmp_path, write, check)

    def test_nothing_to_apply_changes_nothing(self, tmp_path: Path) -> None:
        """An empty set of changes is allowed."""

        async def check(store: Store) -> None:
            await store.apply({})
            assert await _all(store) == {}

        self._run(tmp_path, check)

    def test_many_rows_are_read_at_once(self, tmp_path: Path) -> None:
        """`read` takes more keys than one statement of a database may have parameters."""
        rows = {f"chat/{number}": b"%d" % number for number in range(_MANY)}

        async def check(store: Store) -> None:
            await store.apply(rows)
            assert await store.read([*rows, "chat/none"]) == rows

        self._run(tmp_path, check)

    def test_scan_yields_every_row_of_a_prefix_once(self, tmp_path: Path) -> None:
        """Neighbours in the order of keys do not belong to it; case and ``%`` mean themselves."""
        inside = {f"chat/{number}": b"0" for number in range(_MANY)}
        outside = dict.fromkeys(("chat", "chat.", "chat0", "CHAT/1", "cha%/1", "bot"), b"1")

        async def check(store: Store) -> None:
            await store.apply({**inside, **outside})
            assert await _all(store, "chat/") == inside
            assert await _all(store, "cha%") == {"cha%/1": b"1"}
            assert await _all(store, "none/") == {}
            assert await _all(store) == {**inside, **outside}

        self._run(tmp_path, check)

    def test_scan_includes_the_key_that_is_the_prefix(self, tmp_path: Path) -> None:
        """Every string begins with itself, also where the next code point is no character."""
        keys = ("a", "a\ud7ff", "a\ud7ffb", "a\ue000", "a\U0010ffff", "a\U0010ffffb", "b")

        async def check(store: Store) -> None:
            await store.apply(dict.fromkeys(keys, b"0"))
            assert set(await _all(store, "a")) == set(keys) - {"b"}
            assert set(await _all(store, "a\ud7ff")) == {"a\ud7ff", "a\ud7ffb"}
            assert set(await _all(store, "a\U0010ffff")) == {"a\U0010ffff", "a\U0010ffffb"}

        self._run(tmp_path, check)

    def test_scan_is_ordered_by_code_point(self, tmp_path: Path) -> None:
        """The order of keys is the same in every engine, whatever its locale."""
        keys = ["Z/1", "a/-1", "a/1", "a/10", "a/2", "a/é", "a/я", "a/\uffff", "a/🎲", "b"]

        async def check(store: Store) -> None:
            await store.apply(dict.fromkeys(reversed(keys), b"0"))
            assert list(await _all(store)) == keys

        self._run(tmp_path, check)

    def test_rows_may_be_written_while_a_scan_is_under_way(self, tmp_path: Path) -> None:
        """A scan finds every row that was there from its beginning to its end, once."""
        rows = {f"chat/{number:05}": b"0" for number in range(_MANY)}

        async def check(store: Store) -> None:
            await store.apply(rows)
            seen: list[str] = []
            async for page in store.scan("chat/"):
                seen += [key for key, _ in page]
                await store.apply({"chat/": b"1", f"chat/{len(seen)}!": b"1", seen[0]: None})
            assert [key for key in seen if key in rows] == list(rows)

        self._run(tmp_path, check)

    def test_a_large_document_comes_back(self, tmp_path: Path) -> None:
        """A value of some megabytes is nothing special."""
        text = b'"' + b"x" * 5_000_000 + b'"'

        async def write(store: Store) -> None:
            await store.apply({"bot": text})

        async def check(store: Store) -> None:
            assert await store.read(["bot"]) == {"bot": text}

        self._run(tmp_path, write, check)

    def test_open_and_close_may_be_repeated(self, tmp_path: Path) -> None:
        """Opening an open store and closing a closed one do nothing; a closed one opens again."""

        async def check(store: Store) -> None:
            await store.apply({"bot": b"1"})
            await store.open()
            await store.close()
            await store.close()
            await store.open()
            assert await _all(store) == {"bot": b"1"}

        self._run(tmp_path, check)

    def test_a_closed_store_does_not_count_as_empty(self, tmp_path: Path) -> None:
        """Reading and writing raise what they may raise, and change nothing."""

        async def check(store: Store) -> None:
            await store.apply({"bot": b"1"})
            await store.close()
            try:
                assert await store.read(["bot"]) == {"bot": b"1"}
                await store.apply({"bot": b"1"})
            except (ReadError, WriteError):
                pass
            await store.open()
            assert await _all(store) == {"bot": b"1"}

        self._run(tmp_path, check)

    def test_calls_may_come_at_the_same_time(self, tmp_path: Path) -> None:
        """Several tasks may open and read one store while another writes."""

        async def check(store: Store) -> None:
            await store.close()
            await asyncio.gather(*(store.open() for _ in range(5)))
            await store.apply({"bot": b"1"})
            reads = [store.read(["bot"]) for _ in range(50)]
            await asyncio.gather(store.apply({"chat/1": b"2"}), *reads)
            assert await _all(store) == {"bot": b"1", "chat/1": b"2"}

        self._run(tmp_path, check)

    def test_a_cancelled_apply_is_whole_or_nothing(self, tmp_path: Path) -> None:
        """Whenever the caller is cancelled, both rows changed or none; the store goes on."""

        async def check(store: Store) -> None:
            for steps in range(8):
                before = {"chat/1": b"%d" % steps, "chat/2": b"%d" % steps}
                after: dict[str, bytes | None] = {"chat/1": None, "chat/2": b"after"}
                await store.apply(before)
                task = asyncio.ensure_future(store.apply(after))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
                await store.apply({"bot": b"%d" % steps})
                found = await store.read(["chat/1", "chat/2"])
                assert found in (before, {"chat/2": b"after"})

        self._run(tmp_path, check)

    def _run(self, folder: Path, *steps: Callable[[Store], Awaitable[None]]) -> None:
        """Run each step on a store of its own, on an event loop of its own."""
        for step in steps:
            asyncio.run(_opened(self.make_store(folder), step))


async def _opened(store: Store, step: Callable[[Store], Awaitable[None]]) -> None:
    await store.open()
    try:
        await step(store)
    finally:
        await store.close()


async def _all(store: Store, prefix: str = "") -> Mapping[str, bytes]:
    rows = [row async for page in store.scan(prefix) for row in page]
    assert len({key for key, _ in rows}) == len(rows)
    return dict(rows)
