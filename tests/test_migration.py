"""A chat that gets a new id: at every moment its data is stored under one of the two."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

import pytest
from bots import text_update
from handlers import remember, text
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stores import WatchedStore
from telegram import Update
from telegram.ext import Application, CommandHandler, ContextTypes, PersistenceInput
from through import build, rows, running

from kvpersist import EncodeError, MemoryStore, WriteError
from kvpersist import application as application_module
from kvpersist.group_commit import Changes, GroupCommit

FULL = WriteError("the disk is full")


class Moving(WatchedStore):
    """Notes when a transaction leaves chat 1 under neither of its ids; refuses some.

    Attributes:
        refuses: Tells why it does not take some rows, if it does not.
        is_moving: Whether to look.
        losses: The transactions that have lost the chat.
    """

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.refuses: Callable[[Mapping[str, bytes | None]], Exception | None] = lambda _: None
        self.is_moving = False
        self.losses: list[Mapping[str, bytes | None]] = []

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        if (error := self.refuses(changes)) is not None:
            raise error
        await super().apply(changes)
        if self.is_moving and not any(b'"x"' in text for text in chats(self).values()):
            self.losses.append(changes)


def chats(store: WatchedStore) -> dict[str, bytes]:
    """The rows of chats."""
    return {key: text for key, text in rows(store).items() if key.startswith("chat/")}


@pytest.fixture
def moving() -> Iterator[Moving]:
    """A store in memory that looks at each transaction."""
    store = Moving()
    yield store
    assert store.losses == []


class Uncopied(dict[str, Any]):
    """A class of a bot's that cannot be copied."""

    def __deepcopy__(self, _: object) -> None:
        raise TypeError("no copies")


def test_the_private_names_of_ptb_are_there(store: WatchedStore) -> None:
    """PTB's own note of a chat that moved is where kvpersist takes it away."""
    app: Any = build(store).app
    Application.migrate_chat_data(app, old_chat_id=1, new_chat_id=-1)
    assert app._chat_ids_to_be_updated_in_persistence == {-1}
    app.migrate_chat_data(old_chat_id=2, new_chat_id=-2)
    assert app._chat_ids_to_be_updated_in_persistence == {-1}


async def wait(turns: int) -> None:
    """Let others have some turns."""
    for _ in range(turns):
        await asyncio.sleep(0)


async def test_what_cannot_be_copied_moves(store: WatchedStore) -> None:
    """PTB would copy the document of a chat that moves, and stop at what cannot be copied."""

    async def move(_: Update, context: Any) -> None:
        context.chat_data["x"] = 1
        context.application.migrate_chat_data(old_chat_id=1, new_chat_id=-1)

    types = ContextTypes(chat_data=Uncopied)
    async with running(store, CommandHandler("move", move), context_types=types) as bot:
        await bot.say("/move")
        assert chats(store) == {"chat/-1": b'{"x":1}'}


@pytest.mark.parametrize("turns", range(4))
async def test_no_old_copy_is_written_after_what_came_later(
    store: WatchedStore, turns: int
) -> None:
    """PTB's copy of a chat that moved was handed over after what another update had changed."""
    moved = asyncio.Event()

    async def move(_: Update, context: Any) -> None:
        context.chat_data["n"] = 0
        context.application.migrate_chat_data(old_chat_id=1, new_chat_id=-1)
        moved.set()

    async def count(_: Update, context: Any) -> None:
        await moved.wait()
        await wait(turns)
        context.chat_data["n"] = 1

    handlers = CommandHandler("move", move), CommandHandler("count", count)
    async with running(store, *handlers, concurrent_updates=True) as bot:
        await asyncio.gather(bot.say("/move"), bot.say("/count", -1, 7))
        commits = [text for each in store.commits if (text := each.get("chat/-1"))]
        assert commits == sorted(commits)
        assert commits[-1] == b'{"n":1}'


async def test_error_handlers_may_write_when_a_chat_cannot_move(store: WatchedStore) -> None:
    """PTB called them while nobody else could ask it for conversations, which they waited for."""

    async def move(_: Update, context: Any) -> None:
        context.application.migrate_chat_data(old_chat_id=1, new_chat_id=-1)

    async def save(_: object, context: Any) -> None:
        await context.application.update_persistence()

    async with running(store, text(remember), CommandHandler("move", move)) as bot:
        await bot.say("x")
        bot.app.add_error_handler(save)
        store.poison = {"chat/-1"}
        await asyncio.wait_for(bot.say("/move"), 10)
        assert [type(error) for error in bot.errors] == [WriteError]
        bot.errors.clear()
        store.poison.clear()


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
@pytest.mark.parametrize("in_chat", [1, -1])
async def test_both_rows_change_together(
    moving: Moving, monkeypatch: pytest.MonkeyPatch, *, lazy: bool, in_chat: int
) -> None:
    """Also if there is more to write than is encoded at once, and another writes meanwhile."""
    monkeypatch.setattr(application_module, "_SLICE", 0)

    async def move(_: Update, context: Any) -> None:
        await context.application.persistence.load("chat", 1)
        context.application.migrate_chat_data(old_chat_id=1, new_chat_id=-1)
        context.application.create_task(asyncio.sleep(0))

    async with running(moving, text(remember), CommandHandler("move", move), lazy=lazy) as bot:
        await bot.say("x")
        moving.is_moving = True
        await bot.app.process_update(_said("/move", in_chat, bot))
        assert chats(moving) == {"chat/-1": b'{"said":["x"]}'}
        moving.is_moving = False


def _said(what: str, chat_id: int, bot: Any) -> Update:
    return Update.de_json(text_update(what, chat_id=chat_id, user_id=7), bot.app.bot)


@pytest.mark.parametrize("lazy", [False, True], ids=["loaded", "lazy"])
async def test_the_old_row_stays_until_the_new_one_can_be_stored(
    moving: Moving, *, lazy: bool
) -> None:
    """A value that cannot be stored must not cost what was stored before."""

    async def move(_: Update, context: Any) -> None:
        context.chat_data["thing"] = object()
        context.application.migrate_chat_data(old_chat_id=1, new_chat_id=-1)
        context.application.chat_data[1]["late"] = 1

    async def mend(_: Update, context: Any) -> None:
        del context.application.chat_data[-1]["thing"]
        context.application.mark_data_for_update_persistence(chat_ids=-1)

    async with running(
        moving,
        text(remember),
        CommandHandler("move", move),
        CommandHandler("mend", mend),
        lazy=lazy,
    ) as bot:
        await bot.say("x")
        await bot.say("/move")
        assert [type(error) for error in bot.errors] == [EncodeError]
        bot.errors.clear()
        assert chats(moving) == {"chat/1": b'{"said":["x"]}'}
        await bot.say("y", 1)
        await bot.save()
        assert chats(moving) == {"chat/1": b'{"said":["x"]}'}
        await bot.say("/mend", 5)
        assert chats(moving)["chat/-1"] == b'{"said":["x"]}'
        assert chats(moving)["chat/1"] == b'{"late":1,"said":["y"]}'


async def test_the_old_row_stays_while_the_new_one_is_refused(moving: Moving) -> None:
    """The disk is full: the removal would fit, the row does not; then the row fits alone."""

    async def move(_: Update, context: Any) -> None:
        context.application.migrate_chat_data(old_chat_id=1, new_chat_id=-1)

    async with running(moving, text(remember), CommandHandler("move", move)) as bot:
        await bot.say("x")
        moving.is_moving = True
        moving.refuses = lambda changes: FULL if changes.get("chat/-1") else None
        await bot.say("/move")
        await bot.say("/x", 1)
        await bot.save()
        assert {type(error) for error in bot.errors} == {WriteError}
        bot.errors.clear()
        assert chats(moving) == {"chat/1": b'{"said":["x"]}'}
        moving.refuses = lambda changes: FULL if len(changes) > 1 else None
        await bot.app.persistence.rows.commits.flush()  # type: ignore[union-attr]
        assert chats(moving) == {"chat/-1": b'{"said":["x"]}'}
        moving.refuses = lambda _: None
        moving.is_moving = False


async def test_a_chat_can_move_twice_and_be_dropped(moving: Moving) -> None:
    """Before any of it is stored; each row goes in its time."""

    async def move(_: Update, context: Any) -> None:
        context.chat_data["thing"] = object()
        context.application.migrate_chat_data(old_chat_id=1, new_chat_id=-1)

    async with running(moving, text(remember), CommandHandler("move", move)) as bot:
        await bot.say("x")
        moving.is_moving = True
        await bot.say("/move")
        bot.errors.clear()
        bot.app.migrate_chat_data(old_chat_id=-1, new_chat_id=-2)
        await bot.save()
        assert chats(moving) == {"chat/1": b'{"said":["x"]}'}
        bot.errors.clear()
        del bot.app.chat_data[-2]["thing"]
        bot.app.mark_data_for_update_persistence(chat_ids=-2)
        await bot.save()
        assert chats(moving) == {"chat/-2": b'{"said":["x"]}'}
        bot.app.chat_data[-2]["thing"] = object()
        bot.app.migrate_chat_data(old_chat_id=-2, new_chat_id=-3)
        await bot.save()
        assert chats(moving) == {"chat/-2": b'{"said":["x"]}'}
        bot.errors.clear()
        moving.is_moving = False
        bot.app.drop_chat_data(-3)
        await bot.save()
        assert chats(moving) == {}


NAMES = "abc"

writes = st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES), st.integers(0, 4))
refusals = st.sampled_from(["", "", "", "a", "b", "c", "ab", "abc", "two"])


class Tokens:
    """Documents that are lists of tokens, and a store that may lose none which it has had."""

    def __init__(self, refused: list[str]) -> None:
        self.refused = refused
        self.documents: dict[str, list[int]] = {name: [] for name in NAMES}
        self.had: set[int] = set()
        self.store = Moving()
        self.store.refuses = self.refuse
        self.commits = GroupCommit(self.store)

    def refuse(self, changes: Mapping[str, bytes | None]) -> Exception | None:
        """Refuse some rows, or what is more than one; see to it that no token gets lost."""
        refused = self.refused.pop() if self.refused else ""
        if (refused == "two" and len(changes) > 1) or not changes.keys().isdisjoint(refused):
            return FULL
        after = {**rows(self.store), **{key: text or b"[]" for key, text in changes.items()}}
        stored = {token for text in after.values() for token in json.loads(text)}
        living = {token for tokens in self.documents.values() for token in tokens}
        if not self.had & living <= stored:
            self.store.losses.append(changes)
        self.had |= stored
        return None

    async def write(self, old: str, new: str, token: int) -> None:
        """Move a document; or, if both names are the same, add a token to it."""
        if old == new:
            self.documents[new] = [*self.documents[new], token]
        else:
            self.documents[new], self.documents[old] = self.documents[old], []
        changes: Changes = {new: json.dumps(self.documents[new]).encode()}
        changes |= {} if old == new else {old: None}
        with suppress(WriteError):
            await self.commits.write_all(changes, moved={} if old == new else {old: new})

    async def live(self, moves: list[tuple[str, str, int]]) -> None:
        """Write and move, some of it at the same time; in the end all is stored."""
        tasks = []
        for token, (old, new, turns) in enumerate(moves):
            tasks.append(asyncio.create_task(self.write(old, new, token)))
            await wait(turns)
        await asyncio.gather(*tasks)
        self.refused = []
        await self.commits.close()
        stored = {name: json.loads(rows(self.store).get(name, b"[]")) for name in NAMES}
        assert stored == self.documents
        assert self.store.losses == []


@settings(max_examples=300)
@example(  # the row of c still waits for that of a when c, which is empty, moves again
    moves=[("a", "a", 0), ("a", "a", 0), ("a", "c", 0), ("c", "a", 0), ("c", "b", 0)],
    refused=["a", "", "a", "a", "", "", ""],
)
@given(moves=st.lists(writes, max_size=12), refused=st.lists(refusals, max_size=12))
def test_no_transaction_loses_what_moves(
    moves: list[tuple[str, str, int]], refused: list[str]
) -> None:
    """Whatever moves where, and whatever the store refuses meanwhile."""
    asyncio.run(Tokens(refused).live(moves))


async def test_data_that_is_not_stored_moves_in_memory_alone(store: WatchedStore) -> None:
    """Nothing is remembered of rows that are nobody's."""
    async with running(store, store_data=PersistenceInput(chat_data=False)) as bot:
        bot.app.chat_data[1]["x"] = 1
        bot.app.migrate_chat_data(old_chat_id=1, new_chat_id=-1)
        await bot.save()
        assert bot.app.chat_data[-1] == {"x": 1}
        assert chats(store) == {}
