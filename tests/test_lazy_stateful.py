"""Random lives of a bot that keeps hardly anything in memory, against a dict that keeps all."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias, TypeVar

import pytest
from bots import Bot
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)
from storages import SqliteStorage
from stores import WatchedStore
from telegram import Update
from telegram.ext import TypeHandler
from through import build

from kvpersist import NotInMemoryError, SqliteStore, WriteError

T = TypeVar("T")
Act: TypeAlias = Callable[[Any], Awaitable[None]]

CHATS = st.integers(1, 5)
KEYS = st.sampled_from(["a", "b", "ü"])
VALUES = st.integers(-9, 9) | st.lists(st.booleans(), max_size=2) | st.tuples(st.booleans())


class Life(RuleBasedStateMachine):
    """One bot, from its first start on. The model is what a bot without limits would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.folder = TemporaryDirectory()
        self.storage = SqliteStorage(Path(self.folder.name))
        self.model: dict[int, dict[str, Any]] = {}
        self.users: dict[int, int] = {}
        self.act: Act = self.nothing

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(coroutine)

    async def nothing(self, _: Any) -> None: ...

    @initialize()
    def start(self) -> None:
        """The bot starts; what is stored is what the model holds, empty documents aside."""
        self.store = WatchedStore(SqliteStore(self.storage.path))

        async def handle(_: Update, context: Any) -> None:
            context.user_data["heard"] = context.user_data.get("heard", 0) + 1
            await self.act(context)

        self.bot: Bot = build(
            self.store, TypeHandler(Update, handle), lazy=True, max_documents=2, jobs=True
        )
        self.run(self.bot.app.initialize())
        self.run(self.bot.app.start())
        self.compare()

    @property
    def persistence(self) -> Any:
        """Whoever reads the rows of the bot that runs."""
        return self.bot.app.persistence

    def say(self, chat_id: int, act: Act) -> None:
        """An update of a chat, in which a handler sees what the model holds, and does something."""

        async def look_and_act(context: Any) -> None:
            assert context.chat_data == self.model.get(chat_id, {})
            assert context.user_data["heard"] == self.users[chat_id]
            await act(context)

        self.users[chat_id] = self.users.get(chat_id, 0) + 1
        self.act = look_and_act
        self.run(self.bot.say("x", chat_id))
        self.heard()

    def heard(self) -> None:
        """No error but that the store refuses."""
        assert all(isinstance(error, WriteError) for error in self.bot.errors), self.bot.errors
        self.bot.errors.clear()

    @rule(chat_id=CHATS, key=KEYS, value=VALUES)
    def change(self, chat_id: int, key: str, value: Any) -> None:
        """A handler changes its chat."""

        async def act(context: Any) -> None:
            context.chat_data[key] = value

        self.say(chat_id, act)
        self.model.setdefault(chat_id, {})[key] = value

    @rule(chat_id=CHATS, other=CHATS, key=KEYS, value=VALUES)
    def change_another(self, chat_id: int, other: int, key: str, value: Any) -> None:
        """A handler loads another chat, sees what the model holds, and changes it."""
        self.load_and_change(chat_id, other, key, value)

    def load_and_change(self, chat_id: int, other: int, key: str, value: Any) -> None:
        async def act(context: Any) -> None:
            await context.application.persistence.load("chat", other)
            data = context.application.chat_data[other]
            assert data == self.model.get(other, {})
            data[key] = value
            context.application.mark_data_for_update_persistence(chat_ids=other)

        self.say(chat_id, act)
        self.model.setdefault(other, {})[key] = value

    @rule(other=CHATS, key=KEYS)
    def reach_for_another(self, other: int, key: str) -> None:
        """Whoever does not load first is refused, or finds the document."""
        try:
            found = self.bot.app.chat_data[other].get(key)
        except NotInMemoryError:
            with pytest.raises(NotInMemoryError):
                self.bot.app.chat_data[other][key] = "overwritten"
        else:
            assert found == self.model.get(other, {}).get(key)

    @rule(chat_id=CHATS, other=CHATS, again=st.booleans())
    def drop(self, chat_id: int, other: int, again: bool) -> None:
        """A handler drops a chat, and may put something into it again."""

        async def act(context: Any) -> None:
            context.application.drop_chat_data(other)
            if again:
                context.application.chat_data[other]["new"] = True
                context.application.mark_data_for_update_persistence(chat_ids=other)

        self.say(chat_id, act)
        self.model[other] = {"new": True} if again else {}

    @rule(old=CHATS, new=CHATS)
    def move(self, old: int, new: int) -> None:
        """A chat gets another id."""

        async def act(context: Any) -> None:
            await context.application.persistence.load("chat", old)
            context.application.migrate_chat_data(old_chat_id=old, new_chat_id=new)

        if old != new:
            self.say(new, act)
            self.model[new] = self.model.pop(old, {})

    @rule(chats=st.lists(CHATS, min_size=2, max_size=8))
    def many_at_a_time(self, chats: list[int]) -> None:
        """Updates overlap; each counts once."""

        async def count(context: Any) -> None:
            await asyncio.sleep(0)
            context.chat_data["n"] = context.chat_data.get("n", 0) + 1
            await asyncio.sleep(0)

        async def all_of_them() -> None:
            await asyncio.gather(*(self.bot.say("x", chat_id) for chat_id in chats))

        self.act = count
        self.run(all_of_them())
        self.heard()
        for chat_id in chats:
            self.users[chat_id] = self.users.get(chat_id, 0) + 1
            document = self.model.setdefault(chat_id, {})
            document["n"] = document.get("n", 0) + 1

    @rule(chat_id=CHATS, key=KEYS)
    def job(self, chat_id: int, key: str) -> None:
        """A job changes the data of its chat."""

        async def tick(context: Any) -> None:
            assert context.chat_data == self.model.get(chat_id, {})
            context.chat_data[key] = "job"

        queue = self.bot.app.job_queue
        assert queue is not None
        self.run(queue.run_once(tick, when=3600, chat_id=chat_id).run(self.bot.app))
        self.model.setdefault(chat_id, {})[key] = "job"

    @precondition(lambda self: self.store.failure is None)
    @rule(chat_id=CHATS, by=CHATS, key=KEYS)
    def edit(self, chat_id: int, by: int, key: str) -> None:
        """Another program writes a row; the next handler that loads it, or is of it, sees that."""
        self.run(self.bot.app.update_persistence())
        self.storage.write(f"chat/{chat_id}", json.dumps({key: "edited"}))
        self.model[chat_id] = {key: "edited"}
        if by == chat_id:
            self.say(chat_id, self.nothing)
        else:
            self.load_and_change(by, chat_id, "seen", 1)

    @rule()
    def refuse(self) -> None:
        """From now on the store refuses."""
        self.store.failure = WriteError("the disk is full")

    @rule()
    def relent(self) -> None:
        """From now on the store works again."""
        self.store.failure = None
        self.run(self.bot.app.update_persistence())
        self.run(self.persistence.rows.commits.flush())  # or it would be tried again in a while
        self.heard()

    @rule(crash=st.booleans())
    def restart(self, crash: bool) -> None:
        """The bot is shut down, or killed after all updates ended, and started again."""
        self.relent()
        if crash:
            self.storage.wreck()
        self.stop()
        self.start()

    def stop(self) -> None:
        self.run(self.bot.app.stop())
        self.run(self.bot.app.shutdown())
        self.heard()

    def compare(self) -> None:
        """Compare what is stored with the model."""

        async def stored() -> dict[int, Any]:
            return {key: data async for key, data in self.persistence.documents("chat") if data}

        assert self.run(stored()) == {key: data for key, data in self.model.items() if data}

    def teardown(self) -> None:
        try:
            if hasattr(self, "bot"):
                self.relent()
                self.compare()
                self.stop()
        finally:
            self.loop.close()
            self.folder.cleanup()


def test_whatever_happens_nothing_is_lost_by_leaving_memory() -> None:
    """Loads, evictions, drops, moves, jobs, edits, refusals, restarts and kills, in any order."""
    run_state_machine_as_test(
        Life,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            # To find the shortest life that fails takes longer than a test may: add Phase.shrink.
            phases=[Phase.reuse, Phase.generate],
            report_multiple_bugs=False,
        ),
    )
