"""Whatever updates do at the same time, what each has changed is durable when it ends."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

from bots import text_update
from hypothesis import example, given, settings
from hypothesis import strategies as st
from stores import WatchedStore
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Update
from telegram.ext import CommandHandler, ConversationHandler
from through import rows, running, until

from kvpersist import MemoryStore, WriteError
from kvpersist import application as application_module

CHATS = 4
DEEDS = (
    *("chat", "bot", "other", "keyboard", "answer", "task", "inner", "read"),
    *("put", "drop", "look", "fail", "move", "carry"),
)
MOVING = 300, 301, 302
"""The ids between which one chat moves."""

Deed = tuple[str, int]
"""What a handler does, and how many turns of the event loop it then waits."""
Said = tuple[int, bool, list[Deed]]
"""In which chat, whether it is a step of the conversation there, and what the handler does."""

turns = st.integers(0, 6)
deeds: st.SearchStrategy[list[Deed]] = st.lists(
    st.tuples(st.sampled_from(DEEDS), turns), min_size=1, max_size=4
)
said: st.SearchStrategy[list[Said]] = st.lists(
    st.tuples(st.integers(1, CHATS), st.booleans(), deeds), min_size=1, max_size=8
)


class SlowStore(WatchedStore):
    """Takes some turns of the event loop for each commit, and refuses some.

    Attributes:
        refuses: Which of the next commits it refuses.
        has_refused: Whether it has refused one.
        most: The highest count that the rows of the chat which moves have had.
        has_lost: Whether a transaction has lost that.
    """

    def __init__(self, waits: list[int], refuses: list[bool]) -> None:
        super().__init__(MemoryStore())
        self.waits = waits
        self.refuses = refuses.copy()
        self.has_refused = False
        self.most = 0
        self.has_lost = False

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        await wait(self.waits[self.tries % len(self.waits)])
        if self.refuses and self.refuses.pop():
            self.has_refused = True
            raise WriteError("not now")
        await super().apply(changes)
        most = max(moving(self).values())
        self.has_lost = self.has_lost or most < self.most
        self.most = most


def moving(store: WatchedStore) -> dict[int, int]:
    """Return the count in each row of the chat that moves."""
    stored = rows(store)
    texts = {chat: stored.get(f"chat/{chat}", b"{}") for chat in MOVING}
    return {chat: json.loads(text).get("count", 0) for chat, text in texts.items()}


async def wait(number: int) -> None:
    """Let others have some turns."""
    for _ in range(number):
        await asyncio.sleep(0)


class World:
    """A bot in which each handler counts upwards, and says what must be stored when it ends."""

    def __init__(self, store: SlowStore) -> None:
        self.store = store
        self.counts: Counter[str] = Counter()
        self.drops: dict[str, int] = {}
        self.home = MOVING[0]
        self.arrivals: dict[int, int] = {}
        self.claims: dict[int, dict[str, int]] = {}

    async def do(self, deeds: list[Deed], chat: int, context: Any, claims: dict[str, int]) -> None:
        """Do what a handler is to do, and note the least that each row must hold then."""
        for deed, number in deeds:
            await self.do_one(deed, chat, context, claims)
            await wait(number)

    async def do_one(self, deed: str, chat: int, context: Any, claims: dict[str, int]) -> None:
        """Do one thing."""
        app = context.application
        if deed == "chat":
            self.raise_count(f"chat/{chat}", app.chat_data[chat], claims)
        elif deed == "bot":
            self.raise_count("bot", app.bot_data, claims)
        elif deed == "other":
            other = 100 + chat % 2
            self.raise_count(f"chat/{other}", app.chat_data[other], claims)
            app.mark_data_for_update_persistence(chat_ids=other)
        elif deed == "keyboard":
            self.counts["keyboard"] += 1
            claims[f"keyboard {self.counts['keyboard']}"] = 0
            button = InlineKeyboardButton("?", callback_data=f"data-{self.counts['keyboard']}-")
            await app.bot.send_message(chat, "?", reply_markup=InlineKeyboardMarkup([[button]]))
        elif deed == "answer":
            await app.update_persistence()
            self.check(claims)
        elif deed == "task":
            await app.create_task(self.do_one("other", chat, context, {}))  # it may end later
        elif deed == "inner":
            await self.say(app, chat, f"/count {json.dumps([['chat', 1]])}")
        else:
            await self.do_another(deed, chat, context, claims)

    async def do_another(self, deed: str, chat: int, context: Any, claims: dict[str, int]) -> None:
        """Do one of the rarer things."""
        app = context.application
        if deed == "put":
            self.raise_count(f"chat/{(dropped := 200 + chat % 2)}", app.chat_data[dropped], claims)
            app.mark_data_for_update_persistence(chat_ids=dropped)
        elif deed == "drop":
            key = f"chat/{(dropped := 200 + chat % 2)}"
            self.counts[key] += 1
            self.drops[key] = claims[f"no {key}"] = self.counts[key]
            app.drop_chat_data(dropped)
        elif deed == "look":
            await asyncio.gather(self.look_and_mark(chat, context, claims))
        elif deed == "carry":
            self.raise_count("moving", app.chat_data[self.home], claims)
            app.mark_data_for_update_persistence(chat_ids=self.home)
        elif deed == "move":
            self.move(app, MOVING[chat % len(MOVING)], claims)
        elif deed == "fail":
            await app.process_error(None, ValueError("told in between"))

    def move(self, app: Any, to: int, claims: dict[str, int]) -> None:
        """Have the chat move to another id, where it takes all that it has with it."""
        if to != self.home:
            app.migrate_chat_data(old_chat_id=self.home, new_chat_id=to)
            self.counts["moves"] += 1
            self.arrivals[to] = claims[f"left {self.home}"] = self.counts["moves"]
            self.home = to
            claims["moving"] = self.counts["moving"]

    async def look_and_mark(self, chat: int, context: Any, claims: dict[str, int]) -> None:
        """Refresh the data in a task of its own, and count in that of others."""
        await context.refresh_data()
        await self.do_one("other", chat, context, claims)

    def raise_count(self, key: str, data: Any, claims: dict[str, int]) -> None:
        """Count in a document, which never counts downwards."""
        self.counts[key] += 1
        data["count"] = claims[key] = self.counts[key]

    async def count(self, update: Update, context: Any) -> int:
        """Handle an update as its text says; take a step of a conversation."""
        assert update.message is not None
        assert update.message.text is not None
        assert update.effective_chat is not None
        chat = update.effective_chat.id
        command, _, text = update.message.text.partition(" ")
        await self.do(json.loads(text), chat, context, self.claims[update.update_id])
        key = f"conversation/order/[{chat},{chat}]"
        if command != "/count":
            self.counts[key] += 1
            self.claims[update.update_id][key] = self.counts[key]
        return self.counts[key]

    async def say(self, app: Any, chat: int, text: str) -> None:
        """Have the bot handle an update, and check that all it did is stored when it ends."""
        update = Update.de_json(text_update(text, chat_id=chat), app.bot)
        claims = self.claims.setdefault(update.update_id, {})
        await app.process_update(update)
        self.check(claims)

    def check(self, claims: Mapping[str, int]) -> None:
        """Look whether the store holds what was claimed, or something newer."""
        stored = rows(self.store)
        if self.store.has_refused:
            return
        keyboards = b"".join(text for key, text in stored.items() if key.startswith("callback/"))
        for key, least in claims.items():
            if key.startswith("keyboard"):
                assert f"data-{key.partition(' ')[2]}-".encode() in keyboards
                continue
            if key.startswith(("left", "mov")):
                self.check_moving(key, least)
                continue
            _, _, dropped = key.rpartition("no ")
            if self.drops.get(key, 0) >= least:
                continue
            if key != dropped and stored.get(dropped, b"{}") == b"{}":
                continue
            value = json.loads(stored.get(dropped, b"{}"))
            count = value if isinstance(value, int) else value.get("count", 0)
            assert count >= least, (key, least, stored)

    def check_moving(self, key: str, least: int) -> None:
        """Look whether what has moved is somewhere, and not where it has left."""
        counts = moving(self.store)
        if key == "moving":
            assert max(counts.values()) >= least, (least, counts)
        elif key != "moves" and self.arrivals.get(left := int(key.split()[1]), 0) < least:
            assert not counts[left], (key, counts)


def handlers(world: World, *, conversations: bool) -> list[Any]:
    """Return the handlers of a bot that counts."""
    found: list[Any] = [CommandHandler("count", world.count)]
    if conversations:
        step: Any = CommandHandler("step", world.count)
        states: Any = {state: [step] for state in range(100)}
        found.append(ConversationHandler([step], states, [], name="order", persistent=True))
    return found


async def live(batches: list[list[Said]], waits: list[int], **options: Any) -> None:
    """Let a bot handle updates, those of a batch at the same time, and shut it down."""
    store = SlowStore(waits, options.pop("refuses"))
    world = World(store)
    conversations, lazy = options.pop("conversations"), options["lazy"]
    async with running(
        store, *handlers(world, conversations=conversations), concurrent_updates=64, **options
    ) as bot:
        if lazy:
            ids = [*range(1, CHATS + 1), 100, 101, 200, 201, *MOVING]
            await bot.app.persistence.load("chat", ids)  # type: ignore[union-attr]
        for batch in batches:
            steps: set[int] = set()  # of two at a time in one conversation PTB keeps either
            says = []
            for chat, is_step, deeds in batch:
                command = "/step" if is_step and conversations and chat not in steps else "/count"
                steps.add(chat)
                says.append(world.say(bot.app, chat, f"{command} {json.dumps(deeds)}"))
            await asyncio.gather(*says)
        store.refuses.clear()
        app: Any = bot.app
        await until(lambda: not app._writing)  # which may tell of what was refused
        assert all(isinstance(error, ValueError | WriteError) for error in bot.errors)
        assert store.has_refused or not [x for x in bot.errors if isinstance(x, WriteError)]
        bot.errors.clear()
    store.has_refused = False
    last = {key: count for key, count in world.counts.items() if key != "keyboard"}
    gone = {key for key, count in world.drops.items() if last[key] == count}
    assert not store.has_lost
    assert {chat: count for chat, count in moving(store).items() if count} == (
        {world.home: last["moving"]} if last.get("moving") else {}
    )
    world.check({f"no {key}" if key in gone else key: count for key, count in last.items()})


@settings(max_examples=150)
@example(  # a task's write takes the drop of an update, which must wait for it
    batches=[[(1, False, [("put", 3), ("task", 0)]), (1, False, [("look", 0), ("drop", 0)])]],
    waits=[1],
    conversations=False,
    keyboards=False,
    lazy=False,
    in_slices=False,
    refuses=[],
)
@given(
    batches=st.lists(said, min_size=1, max_size=3),
    waits=st.lists(turns, min_size=1, max_size=5),
    conversations=st.booleans(),
    keyboards=st.booleans(),
    lazy=st.booleans(),
    in_slices=st.booleans(),
    refuses=st.lists(st.booleans(), max_size=8),
)
def test_whatever_runs_at_the_same_time_an_update_is_durable_when_it_ends(
    *,
    batches: list[list[Said]],
    waits: list[int],
    conversations: bool,
    keyboards: bool,
    lazy: bool,
    in_slices: bool,
    refuses: list[bool],
) -> None:
    """Data, data of others, states and keyboards; also when a handler asks in between."""
    if not keyboards:
        batches = [
            [
                (chat, step, [deed for deed in deeds if deed[0] != "keyboard"])
                for chat, step, deeds in batch
            ]
            for batch in batches
        ]
    with patch.object(application_module, "_SLICE", 0 if in_slices else 1):
        asyncio.run(
            live(
                batches,
                waits,
                conversations=conversations,
                arbitrary_callback_data=keyboards,
                lazy=lazy,
                refuses=refuses,
            )
        )
