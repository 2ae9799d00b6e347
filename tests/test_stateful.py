"""Random lives of a bot, against a plain model and side by side with `PicklePersistence`.

The model knows three things about each document: what the bot's memory holds, what the persistence
was told and could not write yet, and what a crash would leave. A run of the machine changes memory,
saves some of it, drops, refreshes, lets another program edit rows, lets the store refuse writes or
lose its answers, lets time pass, restarts and crashes; at each start what comes back is compared.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import Coroutine, Mapping
from contextlib import closing, suppress
from copy import deepcopy
from itertools import count
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, TypeAlias, TypeVar

import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test
from stores import WatchedStore
from telegram.ext import PicklePersistence

from kvpersist import (
    EncodeError,
    KVPersistence,
    MemoryStore,
    SqliteStore,
    Store,
    WriteError,
)

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]
"""What the model calls a document: ``("chat", 5)``, ``("conversation", "order", (5, 6))``, …"""


class Unstorable:
    """What no codec can know."""

    def __deepcopy__(self, memo: object) -> Unstorable:
        return self


SPOILED = {"good": 1, "bad": [Unstorable()]}
IDS = [1, -(2**63), 2**62 + 1]
NAMES = ["order", "Order", "a/b", "a", "%2F", ""]
CONVERSATION_KEYS: list[Row] = [(1,), (1, 2), (1, "2"), ("1", 2), (-(2**63), 2**62, "x/y%")]
DOCUMENTS: list[Row] = [
    ("bot",),
    *[(scope, number) for scope in ("chat", "user") for number in IDS],
]
CONVERSATIONS: list[Row] = [
    ("conversation", name, key) for name in NAMES for key in CONVERSATION_KEYS
]
CALLBACK: Row = ("callback",)
ABSENT: dict[Row, Any] = {CALLBACK: ([], {})}
"""What is as good as nothing at all."""

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5) | st.sampled_from(
    ["$tuple", "$$", "$", "\0", "\ud7ff\ue000"]
)
atoms = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.integers(-2, 2)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(texts, inner, max_size=3)
    ),
    max_leaves=6,
)
documents = st.dictionaries(texts, values, max_size=3)
plain_documents = st.dictionaries(
    st.sampled_from(["a", "b", "ü"]), st.integers(-9, 9) | st.lists(st.booleans()), max_size=2
)
rows = st.sampled_from(DOCUMENTS)
saves = st.integers(0, 2)
keyboards = st.sampled_from(["k1", "k2", "k3", "k/4", "K1"])
callback_data = st.tuples(
    st.lists(
        st.tuples(keyboards, st.floats(0, 2e9), st.dictionaries(texts, values, max_size=2)),
        max_size=4,
        unique_by=lambda keyboard: keyboard[0],
    ),
    st.dictionaries(st.sampled_from(["1", "2", "3", "4"]), keyboards, max_size=4),
)


def assert_same(left: object, right: object) -> None:
    """Assert that two values are equal, with the same types and order of keys all the way down."""
    assert type(left) is type(right), (left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        assert list(left) == list(right)
        for key in left:
            assert_same(left[key], right[key])
    elif isinstance(left, list | tuple) and isinstance(right, list | tuple):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_same(one, other)
    else:
        assert repr(left) == repr(right)  # tells 0.0 from -0.0


def differ(left: object, right: object) -> bool:
    """Whether two values are not the same, in the sense of `assert_same`."""
    try:
        assert_same(left, right)
    except AssertionError:
        return True
    return False


class FrozenLoop(asyncio.SelectorEventLoop):
    """An event loop on which time passes when a test says so."""

    now = 0.0

    def time(self) -> float:
        return self.now


class ForgetfulStore(WatchedStore):
    """With `too_late`, a store that fails to answer after it has written."""

    too_late = False

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        await super().apply(changes)
        if self.too_late:
            raise WriteError("no answer", keys=changes)


class Memory:
    """What lasts of a `MemoryStore`."""

    def __init__(self, _: Path) -> None:
        self.store = MemoryStore()

    def open(self) -> Store:
        return self.store

    def wreck(self) -> None:
        """Go on with what is there now, whatever the old store still does."""
        rows, self.store = self.store.rows, MemoryStore()
        self.store.rows.update(rows)

    def edit(self, key: str, text: str | None) -> None:
        """Do to a row what another program would."""
        self.store.rows.pop(key, None)
        if text is not None:
            self.store.rows[key] = text.encode()


class File:
    """What lasts of a SQLite file."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers = count(1)
        self.path = folder / "0.db"

    def open(self) -> Store:
        return SqliteStore(self.path)

    def wreck(self) -> None:
        """Go on with copies of the files as they are now."""
        wreck, self.path = self.path, self.folder / f"{next(self.numbers)}.db"
        for suffix in ("", "-wal"):
            with suppress(FileNotFoundError):
                shutil.copy(f"{wreck}{suffix}", f"{self.path}{suffix}")

    def edit(self, key: str, text: str | None) -> None:
        """Do to a row what another program would."""
        with closing(sqlite3.connect(self.path)) as connection, connection:
            connection.execute("DELETE FROM documents WHERE key = ?", [key])
            if text is not None:
                connection.execute("INSERT INTO documents VALUES (?, ?, 1, 0)", [key, text])


class Life(RuleBasedStateMachine):
    """One bot, from its first start on."""

    storage_class: type[Memory | File] = Memory

    def __init__(self) -> None:
        super().__init__()
        self.loop = FrozenLoop()
        self.folder = Path(mkdtemp())
        self.storage = self.storage_class(self.folder)
        self.memory: dict[Row, Any] = {}
        self.pending: dict[Row, Any] = {}
        self.known: dict[Row, Any] = {}
        self.stored: dict[Row, Any] = {}
        self.saved: dict[Row, Any] = {}
        self.touched: set[Row] = set()
        self.pickle = self.new_pickle()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    def new_pickle(self) -> PicklePersistence[Any, Any, Any]:
        return PicklePersistence(self.folder / "pickle")

    # --- what the bot does ---

    @initialize()
    def first_start(self) -> None:
        self.start()

    @rule(row=rows, document=documents, saves=saves)
    def change(self, row: Row, document: dict[str, Any], saves: int) -> None:
        """A handler changes a document."""
        self.memory[row] = document
        self.save(row, saves)

    @rule(row=rows, as_stored=st.booleans(), saves=saves)
    def change_back(self, row: Row, as_stored: bool, saves: int) -> None:
        """A handler makes a document what it was when it was last saved, or last written."""
        self.memory[row] = deepcopy((self.stored if as_stored else self.saved).get(row, {}))
        self.save(row, saves)

    @rule(row=rows, saves=saves)
    def spoil(self, row: Row, saves: int) -> None:
        """A handler puts something into a document that cannot be stored."""
        self.memory[row] = SPOILED
        self.save(row, saves)

    @rule(row=st.sampled_from(CONVERSATIONS), state=values | st.none())
    def step(self, row: Row, state: object) -> None:
        """A conversation reaches another state, or ends, and that is saved."""
        self.tell({row: state})

    @rule(data=callback_data, saves=saves)
    def send_keyboards(self, data: tuple[list[Any], dict[str, str]], saves: int) -> None:
        """The callback data changes."""
        self.memory[CALLBACK] = data
        self.save(("bot",), saves)

    @rule(saves=saves)
    def evict(self, saves: int) -> None:
        """The oldest keyboard goes, with the queries that came from it."""
        shown, queries = self.memory.get(CALLBACK, ABSENT[CALLBACK])
        gone = {keyboard for keyboard, *_ in shown[:1]}
        kept = {query: keyboard for query, keyboard in queries.items() if keyboard not in gone}
        self.memory[CALLBACK] = shown[1:], kept
        self.save(("bot",), saves)

    def save(self, row: Row, times: int) -> None:
        """Hand over, as PTB does, what was touched, and in any case bot and callback data."""
        self.touched |= {row, ("bot",)}
        for _ in range(times):
            changes = {row: self.memory.setdefault(row, {}) for row in sorted(self.touched)}
            changes[CALLBACK] = self.memory.get(CALLBACK, ABSENT[CALLBACK])
            self.tell(changes)
            changes = {row: value for row, value in changes.items() if value is not SPOILED}
            self.saved.update(deepcopy(changes))
        if times > 1:
            self.touched = set()

    @rule(row=st.sampled_from(DOCUMENTS[1:]))
    def drop(self, row: Row) -> None:
        """The bot drops the data of a chat or user."""
        self.memory.pop(row, None)
        self.touched.discard(row)
        self.tell({row: None})

    @rule(row=rows)
    def refresh(self, row: Row) -> None:
        """An update arrives, and before its handler runs the document is refreshed."""
        document = self.memory.setdefault(row, {})
        expected = deepcopy(document)
        mine, theirs = self.known.get(row), self.stored.get(row)
        if row not in self.pending and differ(mine, theirs) and not differ(document, mine or {}):
            expected = theirs or {}
            self.note(self.known, row, theirs)
        self.run(self.call("refresh", row, document))
        assert_same(document, expected)

    # --- what happens to it ---

    @rule(row=rows, document=plain_documents | st.none(), indent=st.booleans())
    def edit(self, row: Row, document: dict[str, Any] | None, indent: bool) -> None:
        """Another program writes or deletes a row."""
        text = None if document is None else json.dumps(document, indent=2 if indent else None)
        self.storage.edit("/".join(map(str, row)), text)
        self.keep({row: document})

    @rule(fault=st.sampled_from(["refuses", "loses its answers", None]))
    def fail(self, fault: str | None) -> None:
        """From now on the store refuses to write, or writes and fails to say so, or works."""
        self.store.failure = WriteError("the disk is full") if fault == "refuses" else None
        self.store.too_late = fault == "loses its answers"

    @rule()
    def wait(self) -> None:
        """A minute passes: what was refused is tried again."""
        self.loop.now += 61
        self.run(self.retried())
        if self.pending:
            self.commit()

    @rule()
    def crash(self) -> None:
        """The bot is killed, and starts again."""
        self.storage.wreck()
        self.fail(None)
        self.run(self.persistence.flush())  # of the dead, who would try again on this event loop
        self.pending = {}
        self.start()

    @rule()
    def restart(self) -> None:
        """The bot is shut down, and a new one is started."""
        self.flush()
        self.pending = {}
        self.start()

    @rule(
        edits=st.dictionaries(st.sampled_from(DOCUMENTS), plain_documents | st.none(), max_size=2)
    )
    def start_again(self, edits: dict[Row, dict[str, Any] | None]) -> None:
        """The bot is shut down, rows are edited, and the same one is initialised again."""
        self.flush()
        for row, document in edits.items():
            self.edit(row, document, indent=False)
        if self.pending and self.is_broken():
            with pytest.raises(WriteError):
                self.run(self.persistence.get_bot_data())
            self.commit()
            self.fail(None)
        self.commit()
        self.load()

    # --- how it is checked ---

    def start(self) -> None:
        """Start a new bot."""
        self.store = ForgetfulStore(self.storage.open())
        self.persistence: KVPersistence[Any, Any, Any] = KVPersistence(self.store)
        self.load()

    def load(self) -> None:
        """Do what `Application.initialize` does, and compare."""
        loaded, pickled = self.run(everything(self.persistence)), self.run(everything(self.pickle))
        assert loaded == pickled
        expected = {("bot",): {}, **self.stored}
        assert loaded.keys() == expected.keys()
        for row, value in expected.items():
            assert_same(loaded[row], value)
        self.memory, self.known = loaded, deepcopy(self.stored)
        self.touched = set()
        self.pickle = self.new_pickle()
        assert self.run(everything(self.pickle)) == pickled

    def tell(self, changes: Mapping[Row, Any]) -> None:
        """Hand documents over, all at one moment, and check who is told of an error."""
        refused = {row for row, value in changes.items() if value is SPOILED}
        written = {
            row: value
            for row, value in changes.items()
            if row not in refused
            and (
                value is None
                or row in self.pending
                or differ(value, self.known.get(row, ABSENT.get(row)))
            )
        }
        results = dict(zip(changes, self.run(self.told(changes)), strict=True))
        self.pending.update(deepcopy(written))
        is_broken = self.is_broken()
        if written:
            self.commit()
        for row, error in results.items():
            expected = EncodeError if row in refused else WriteError
            fails = row in refused or (row in written and is_broken)
            assert isinstance(error, expected) if fails else error is None, (row, error)

    async def told(self, changes: Mapping[Row, Any]) -> list[BaseException | None]:
        calls = [self.call(*_call(row, value)) for row, value in deepcopy(dict(changes)).items()]
        return await asyncio.gather(*calls, return_exceptions=True)

    def call(self, verb: str, row: Row, *value: Any) -> Coroutine[Any, Any, None]:
        return call(self.persistence, verb, row, *value)

    def commit(self) -> None:
        """All that is pending is tried, together."""
        if self.store.failure is None:
            self.keep(self.pending)
            if not self.store.too_late:
                for row, value in self.pending.items():
                    self.note(self.known, row, value)
                self.pending = {}

    def keep(self, changes: Mapping[Row, Any]) -> None:
        """Note what the store holds from now on, and let PTB's persistence hold it too."""
        for row, value in deepcopy(dict(changes)).items():
            self.note(self.stored, row, value)
            self.run(call(self.pickle, *_call(row, value, erase=row == ("bot",))))

    def note(self, place: dict[Row, Any], row: Row, value: Any) -> None:
        place.pop(row, None)
        if value is not None and not (row == CALLBACK and value == ABSENT[CALLBACK]):
            place[row] = deepcopy(value)

    def is_broken(self) -> bool:
        return self.store.failure is not None or self.store.too_late

    def flush(self) -> None:
        """Shut down; what cannot be written is named."""
        if self.pending and self.is_broken():
            with pytest.raises(WriteError) as caught:
                self.run(self.persistence.flush())
            assert caught.value.keys
        else:
            self.run(self.persistence.flush())
        self.commit()

    async def retried(self) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await asyncio.gather(
            *(task for task in asyncio.all_tasks() if task.get_name() == "kvpersist:commit")
        )

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.fail(None)
            self.run(self.persistence.flush())
        self.loop.close()
        shutil.rmtree(self.folder)


def _call(row: Row, value: Any, *, erase: bool = False) -> tuple[Any, ...]:
    """Return which of PTB's calls hands `value` over, with its arguments."""
    if value is None and row[0] != "conversation" and not erase:
        return "drop", row
    return "update", row, {} if value is None and erase else value


def call(persistence: Any, verb: str, row: Row, *value: Any) -> Coroutine[Any, Any, None]:
    """Make one of PTB's calls."""
    scope, *rest = row
    if scope == "conversation":
        name, key = rest
        return persistence.update_conversation(name=name, key=key, new_state=value[0])  # type: ignore[no-any-return]
    method = f"{verb}_callback_data" if scope == "callback" else f"{verb}_{scope}_data"
    return getattr(persistence, method)(*rest, *value)  # type: ignore[no-any-return]


async def everything(persistence: Any) -> dict[Row, Any]:
    """Return what PTB loads at a start, without what is as good as absent."""
    found: dict[Row, Any] = {}
    for scope, data in [
        ("user", await persistence.get_user_data()),
        ("chat", await persistence.get_chat_data()),
    ]:
        found.update({(scope, number): document for number, document in data.items()})
    found["bot",] = await persistence.get_bot_data()
    found[CALLBACK] = await persistence.get_callback_data()
    for name in NAMES:
        for key, state in (await persistence.get_conversations(name)).items():
            found["conversation", name, key] = state
    return {row: value for row, value in found.items() if value not in (None, ABSENT.get(row))}


class LifeOnFile(Life):
    """The same, on a SQLite file."""

    storage_class = File


def live(life: type[Life], examples: int) -> None:
    """Run many random lives."""
    run_state_machine_as_test(
        life,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            # To find the shortest life that fails takes longer than a test may: add Phase.shrink.
            phases=[Phase.reuse, Phase.generate],
            report_multiple_bugs=False,
        ),
    )


def test_whatever_happens_in_memory_the_next_run_finds_what_was_written() -> None:
    """Any order of PTB's calls, faults, edits, restarts and crashes loses and adds nothing."""
    live(Life, 100)


def test_whatever_happens_on_a_file_the_next_run_finds_what_was_written() -> None:
    """The same holds on a SQLite file that is copied, log and all, when the bot crashes."""
    live(LifeOnFile, 30)
