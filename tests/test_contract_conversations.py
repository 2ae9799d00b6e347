"""Conversations across a restart, through a real `Application`.

What PTB's own `PicklePersistence` promises too is asked of it as well, so that these tests are
checked against PTB's own idea of persistence. A run ends in two ways: shut down, and crashed after
the last run of `update_persistence`.
"""

from __future__ import annotations

import asyncio
from contextlib import nullcontext
from functools import partial
from typing import Any

import pytest
from bots import query_update
from handlers import END, Callback, conversation, step, text
from storages import IDS, KV, Storage, rows_of, running
from telegram import Update
from telegram.ext import (
    CallbackQueryHandler,
    CommandHandler,
    ConversationHandler,
)


def listening(name: str = "order", **options: Any) -> ConversationHandler[Any]:
    """Return a conversation that, once it was started, answers each text, for ever."""
    return ConversationHandler(
        entry_points=[CommandHandler(options.pop("command", "start"), step(0, "started"))],
        states={0: [text(step(None, f"here is {name}"))]},
        fallbacks=[],
        name=name,
        persistent=True,
        **options,
    )


@pytest.mark.parametrize(
    "states",
    [(0, ""), (1, 2), ("PHOTO", "\x1f"), (("a", 1), ("a", (2,))), (False, True), (0.5, -1.5)],
    ids=repr,
)
async def test_a_conversation_goes_on_where_it_was(
    storage: Storage, crash: bool, states: tuple[object, ...]
) -> None:
    """After each step a restart finds the conversation in the state that was reached."""
    async with running(storage, conversation("order", *states), crash=crash) as bot:
        await bot.say("/start")
        await bot.save()
    for state in states:
        async with running(storage, conversation("order", *states), crash=crash) as bot:
            await bot.say("/start")  # no entry point of a conversation that is going on
            assert bot.answers() == []
            await bot.say("x")
            assert bot.answers() == [f"was at {state!r}"]
            await bot.save()
    async with running(storage, conversation("order", *states)) as bot:
        await bot.say("x")
        assert bot.answers() == []
        await bot.say("/start")
        assert bot.answers() == ["started"]


@pytest.mark.parametrize(
    ("keys", "known"),
    [
        ({}, [(-5, 6)]),
        ({"per_user": False}, [(-5, 6), (-5, 7)]),
        ({"per_chat": False}, [(-5, 6), (8, 6)]),
    ],
    ids=["per_chat and per_user", "per_chat", "per_user"],
)
async def test_a_conversation_belongs_to_whom_its_key_says(
    storage: Storage, crash: bool, keys: dict[str, Any], known: list[tuple[int, int]]
) -> None:
    """`per_chat` and `per_user` mean the same after a restart as before it."""
    async with running(storage, listening(**keys), crash=crash) as bot:
        await bot.say("/start", -5, 6)
        await bot.save()
    async with running(storage, listening(**keys)) as bot:
        answered = []
        for chat_id, user_id in [(-5, 6), (-5, 7), (8, 6), (8, 7)]:
            await bot.say("x", chat_id, user_id)
            if bot.answers():
                answered.append((chat_id, user_id))
        assert answered == known


@pytest.mark.parametrize("chat_id", IDS)
async def test_conversations_of_negative_and_64_bit_ids_go_on(
    storage: Storage, crash: bool, chat_id: int
) -> None:
    """A conversation is found again whatever the id of its chat and its user."""
    async with running(storage, conversation(), crash=crash) as bot:
        await bot.say("/start", chat_id, 2**62)
        await bot.save()
    async with running(storage, conversation()) as bot:
        await bot.say("x", chat_id, 2**62)
        assert bot.answers() == ["was at 0"]


def buttons(**options: Any) -> ConversationHandler[Any]:
    """Return a conversation for each message, that goes on when its button is pressed."""
    warning = "per_chat=True" if "per_chat" in options else None
    with pytest.warns(UserWarning, match=warning) if warning else nullcontext():
        return _buttons(**options)


def _buttons(**options: Any) -> ConversationHandler[Any]:
    return ConversationHandler(
        entry_points=[CallbackQueryHandler(step(0, "started"), pattern="start")],
        states={0: [CallbackQueryHandler(step(END, "was at 0"), pattern="go")]},
        fallbacks=[],
        name="buttons",
        persistent=True,
        per_message=True,
        **options,
    )


async def test_a_conversation_per_message_goes_on(storage: Storage, crash: bool) -> None:
    """With `per_message` each message of the bot has a conversation of its own."""
    async with running(storage, buttons(), crash=crash) as bot:
        one, two = await bot.ask("start", "go"), await bot.ask("start", "go")
        await bot.press(one)
        await bot.save()
    async with running(storage, buttons()) as bot:
        await bot.press(two, 1)
        assert bot.answers() == []
        await bot.press(one, 1)
        assert bot.answers() == ["was at 0"]


async def test_a_conversation_per_inline_message_goes_on(storage: Storage, crash: bool) -> None:
    """A key with the id of an inline message, a str that may look like a number, is found again."""
    async with running(storage, buttons(per_chat=False), crash=crash) as bot:
        await bot.receive(query_update("start", inline_message_id="12"))
        await bot.save()
    async with running(storage, buttons(per_chat=False)) as bot:
        one = await bot.ask("go")
        await bot.receive(query_update("go", message={**one, "message_id": 12}))
        await bot.receive(query_update("go", inline_message_id="13"))
        assert bot.answers() == ["?"]
        await bot.receive(query_update("go", inline_message_id="12"))
        assert bot.answers() == ["was at 0"]


NAMES = ["order", "Order", "a/b", "a", "a%2Fb", "%", "/", "ä ö", "x\ny", "'; DROP TABLE documents"]


async def test_handlers_are_told_apart_by_their_names(storage: Storage, crash: bool) -> None:
    """Names that differ by case, or contain what separates or escapes keys, do not mix."""
    handlers = [listening(name, command=f"start{at}") for at, name in enumerate(NAMES)]
    for at, name in enumerate(NAMES):
        async with running(storage, *handlers, crash=crash) as bot:
            await bot.say(f"/start{at}", chat_id=at + 1)
            await bot.save()
        handlers = [listening(name, command=f"start{at}") for at, name in enumerate(NAMES)]
    async with running(storage, *handlers) as bot:
        for at, name in enumerate(NAMES):
            await bot.say("x", chat_id=at + 1)
            assert bot.answers() == [f"here is {name}"]


def nested() -> ConversationHandler[Any]:
    """Return a conversation whose state 0 is another one, which brings its parent to state 1."""
    child: ConversationHandler[Any] = ConversationHandler(
        entry_points=[CommandHandler("child", step("in", "child started"))],
        states={"in": [text(step("out", "child done"))]},
        fallbacks=[],
        map_to_parent={"out": 1},
        name="child",
        persistent=True,
    )
    return ConversationHandler(
        entry_points=[CommandHandler("start", step(0, "started"))],
        states={0: [child], 1: [text(step(END, "parent done"))]},
        fallbacks=[],
        name="parent",
        persistent=True,
    )


async def test_nested_conversations_go_on_where_they_were(storage: Storage, crash: bool) -> None:
    """A restart after each step of a conversation inside another loses none of their states."""
    for said, answer in [
        ("/start", "started"),
        ("/child", "child started"),
        ("x", "child done"),
        ("x", "parent done"),
        ("/start", "started"),
        ("/child", "child started"),
    ]:
        async with running(storage, nested(), crash=crash) as bot:
            await bot.say(said)
            assert bot.answers() == [answer]
            await bot.save()


async def test_a_conversation_that_has_ended_leaves_no_row(kv: KV, crash: bool) -> None:
    """The row of a conversation, named for handler and key, is there until it ends."""
    async with running(kv, nested(), crash=crash) as bot:
        await bot.say("/start", -5, 6)
        await bot.say("/child", -5, 6)
        await bot.save()
        assert rows_of(kv, "conversation/") == {
            "conversation/parent/[-5,6]": b"0",
            "conversation/child/[-5,6]": b'"in"',
        }
        await bot.say("x", -5, 6)
        await bot.save()
        assert rows_of(kv, "conversation/") == {"conversation/parent/[-5,6]": b"1"}
    async with running(kv, nested(), crash=crash) as bot:
        await bot.say("x", -5, 6)
        await bot.save()
    assert rows_of(kv, "conversation/") == {}


async def test_two_parts_of_one_key_that_look_alike_are_two_conversations(kv: KV) -> None:
    """A conversation of a number and one of a text of the same digits have rows of their own."""
    async with running(kv, buttons(per_chat=False)) as bot:
        message = await bot.ask("start")
        await bot.receive(query_update("start", message={**message, "message_id": 12}))
        await bot.receive(query_update("start", inline_message_id="12"))
    assert rows_of(kv, "conversation/") == {
        "conversation/buttons/[1,12]": b"0",
        'conversation/buttons/[1,"12"]': b"0",
    }


async def test_a_handler_that_is_added_later_finds_its_conversations(
    storage: Storage, crash: bool
) -> None:
    """`add_handler` on an application that is initialised already restores the conversations."""
    async with running(storage, conversation(), crash=crash) as bot:
        await bot.say("/start")
        await bot.save()
    async with running(storage, started=True) as bot:
        with pytest.warns(UserWarning, match="persistent"):
            bot.app.add_handler(conversation())
        await settled()
        await bot.say("x")
        assert bot.answers() == ["was at 0"]


class Slow:
    """A callback with ``block=False`` that finishes when it is told to."""

    def __init__(self, state: object) -> None:
        self.state = state
        self.go_on = asyncio.Event()

    async def __call__(self, _: Update, __: Any) -> object:
        await self.go_on.wait()
        return self.state

    async def finish(self) -> None:
        """Let it finish, and return when PTB knows."""
        self.go_on.set()
        await settled()


async def settled() -> None:
    """Wait until every task of PTB's that has nothing left to wait for is done."""
    others = [
        task
        for task in asyncio.all_tasks()
        if task is not asyncio.current_task()
        and ("non_blocking" in task.get_name() or "add_handler" in task.get_name())
    ]
    await asyncio.gather(*others)


def slow_conversation(entry: Callback, then: Callback) -> ConversationHandler[Any]:
    """Return a conversation whose two steps run beside other updates."""
    return ConversationHandler(
        entry_points=[CommandHandler("start", entry, block=False)],
        states={0: [text(then, block=False)], 1: [text(step(END, "was at 1"))]},
        fallbacks=[],
        name="slow",
        persistent=True,
    )


async def test_a_pending_state_is_saved_as_the_old_one_until_it_is_known(
    storage: Storage, crash: bool
) -> None:
    """While a handler with ``block=False`` works, a crash leaves the state that was before it."""
    at_zero, at_one = Slow(0), Slow(1)
    async with running(
        storage, slow_conversation(at_zero, at_one), crash=crash, started=True
    ) as bot:
        await bot.say("/start")
        await bot.save()
        if isinstance(storage, KV):
            assert rows_of(storage, "conversation/") == {}
        await at_zero.finish()
        await bot.save()
        await bot.say("x")
        await bot.save()
        if isinstance(storage, KV):
            assert rows_of(storage, "conversation/") == {"conversation/slow/[1,1]": b"0"}
        await at_one.finish()
        await bot.save()
    async with running(storage, slow_conversation(at_zero, at_one)) as bot:
        await bot.say("x")
        assert bot.answers() == ["was at 1"]


async def test_a_pending_end_ends_the_conversation(storage: Storage, crash: bool) -> None:
    """A handler with ``block=False`` that ends a conversation ends it for the next run as well."""
    end = Slow(END)
    end.go_on.set()
    handler = partial(slow_conversation, step(0, "started"), end)
    async with running(storage, handler(), crash=crash, started=True) as bot:
        await bot.say("/start")
        await settled()
        await bot.say("x")
        await settled()
        await bot.save()
    async with running(storage, handler(), started=True) as bot:
        await bot.say("/start")
        await settled()
        assert bot.answers() == ["started"]


async def test_a_conversation_that_ran_into_its_timeout_stays_ended(
    storage: Storage, crash: bool
) -> None:
    """A conversation that its timeout has ended is not there after a restart."""
    options: dict[str, Any] = {"jobs": True, "started": True}
    async with running(storage, conversation(conversation_timeout=3600), **options) as bot:
        await bot.say("/start")
    async with running(
        storage, conversation(conversation_timeout=3600), crash=crash, **options
    ) as bot:
        await bot.say("x")
        assert bot.answers() == ["was at 0"]
        assert bot.app.job_queue is not None
        (timeout,) = bot.app.job_queue.jobs()
        await timeout.run(bot.app)
        await bot.save()
    async with running(storage, conversation()) as bot:
        await bot.say("x")
        assert bot.answers() == []
        await bot.say("/start")
        assert bot.answers() == ["started"]
    if isinstance(storage, KV):
        assert set(rows_of(storage, "conversation/")) == {"conversation/order/[1,1]"}
