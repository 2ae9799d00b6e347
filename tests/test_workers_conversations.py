"""A conversation goes on in whichever worker gets its next update."""

from __future__ import annotations

import asyncio
from enum import Enum
from typing import Any

import pytest
from bots import query_update
from handlers import END, conversation, nothing, step, text
from postgres_server import PostgresServer
from storages import PostgresStorage, rows_of
from telegram.ext import (
    CallbackQueryHandler,
    CommandHandler,
    ConversationHandler,
    JobQueue,
    MessageHandler,
    filters,
)
from through import build
from workers import workers

from kvpersist import ConfigurationError


class Step(Enum):
    """A state that must come back as the same object."""

    PHOTO = "photo"
    BIO = "bio"


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


@pytest.mark.parametrize("states", [(0, ""), ("A", ("B", 1)), (Step.PHOTO, Step.BIO)])
async def test_it_is_entered_continued_and_ended_in_three_workers(
    bot: PostgresStorage, states: tuple[object, ...]
) -> None:
    """States of any type are the same in each; when it has ended there is no row."""

    def handlers() -> list[Any]:
        return [conversation("order", *states)]

    async with workers(bot, handlers, 3, types=[Step]) as (first, second, third):
        await first.say("/start")
        assert first.answers() == ["started"]
        (key,) = rows_of(bot, "conversation/")
        assert key == "conversation/order/[1,1]"
        await second.say("go on")
        assert second.answers() == [f"was at {states[0]!r}"]
        await third.say("go on")
        assert third.answers() == [f"was at {states[1]!r}"]
        assert rows_of(bot, "conversation/") == {}
        await first.say("go on")
        await second.say("/start")
        assert first.answers() == []
        assert second.answers() == ["started"]


async def test_no_worker_keeps_the_state_of_another_day(bot: PostgresStorage) -> None:
    """One that has entered a conversation which others have ended can enter it again."""
    async with workers(bot, lambda: [conversation()]) as (first, second):
        for _ in range(3):
            await first.say("/start")
            await second.say("a")
            await second.say("b")
            assert first.answers() == ["started"]
            assert second.answers() == ["was at 0", "was at ''"]


def _nested() -> list[Any]:
    child = ConversationHandler(
        entry_points=[text(step("NAME", "name?"), "child")],
        states={"NAME": [text(step("DONE", "thanks"))]},
        fallbacks=[],
        map_to_parent={"DONE": "MENU"},
        name="child",
        persistent=True,
    )
    return [
        ConversationHandler(
            entry_points=[CommandHandler("start", step("MENU", "menu"))],
            states={"MENU": [child, text(step(END, "bye"), "bye")]},
            fallbacks=[text(step(None, "what?"))],
            name="parent",
            persistent=True,
        )
    ]


async def test_nested_ones_are_right_in_every_worker(bot: PostgresStorage) -> None:
    """The child's state and the parent's, wherever each step is taken."""
    async with workers(bot, _nested, 4) as (first, second, third, fourth):
        await first.say("/start")
        await second.say("child")
        assert rows_of(bot, "conversation/") == {
            "conversation/child/[1,1]": b'"NAME"',
            "conversation/parent/[1,1]": b'"MENU"',
        }
        await third.say("Ada")
        assert rows_of(bot, "conversation/") == {"conversation/parent/[1,1]": b'"MENU"'}
        await fourth.say("child")
        await first.say("Bob")
        await second.say("bye")
        assert rows_of(bot, "conversation/") == {}
        answers = [worker.answers() for worker in (first, second, third, fourth)]
    assert answers == [["menu", "thanks"], ["name?", "bye"], ["thanks"], ["name?"]]


async def test_a_step_that_does_not_block_is_a_part_of_the_update(bot: PostgresStorage) -> None:
    """The next worker finds the state in which it has ended, not the one before."""

    def handlers() -> list[Any]:
        return [
            ConversationHandler(
                entry_points=[CommandHandler("start", step("A", "started"), block=False)],
                states={"A": [text(step(END, "ended"), block=False)]},
                fallbacks=[],
                name="order",
                persistent=True,
            )
        ]

    async with workers(bot, handlers) as (first, second):
        await first.say("/start")
        assert rows_of(bot, "conversation/") == {"conversation/order/[1,1]": b'"A"'}
        await second.say("x")
        assert second.answers() == ["ended"]
        assert rows_of(bot, "conversation/") == {}


async def test_a_step_that_fails_without_blocking_leaves_the_state(bot: PostgresStorage) -> None:
    """As PTB does: the conversation is where it was, or was never begun."""

    async def fail(_: object, __: object) -> None:
        raise RuntimeError("on purpose")

    def handlers() -> list[Any]:
        return [
            ConversationHandler(
                entry_points=[
                    CommandHandler("start", step("A", "started")),
                    CommandHandler("fail", fail, block=False),
                ],
                states={"A": [text(fail, block=False)]},
                fallbacks=[],
                name="order",
                persistent=True,
            )
        ]

    async with workers(bot, handlers) as (first, second):
        await first.say("/fail")
        assert rows_of(bot, "conversation/") == {}
        await second.say("/start")
        await first.say("x")
        assert rows_of(bot, "conversation/") == {"conversation/order/[1,1]": b'"A"'}
        assert len(first.errors) == 2
        first.errors.clear()


@pytest.mark.filterwarnings("ignore:If 'per_message=")
async def test_conversations_of_other_kinds_of_keys_are_found(bot: PostgresStorage) -> None:
    """By chat, by user, and by message, inline ones too."""
    by_message = {"per_message": True, "per_chat": False}

    def asks(name: str, **options: Any) -> ConversationHandler[Any]:
        press = CallbackQueryHandler(step("A", f"{name} began"), pattern="go")
        end = CallbackQueryHandler(step(END, f"{name} ended"))
        return ConversationHandler(
            entry_points=[press], states={"A": [end]}, fallbacks=[], name=name, persistent=True,
            **options,
        )  # fmt: skip

    def handlers() -> list[Any]:
        return [
            asks("chat", per_user=False),
            asks("user", per_chat=False),
            asks("message", **by_message),
        ]

    message = {"message_id": 77, "date": 0, "chat": {"id": -1, "type": "group", "title": "G"}}
    async with workers(bot, handlers) as (first, second):
        await first.receive(query_update("go", message=message, user_id=5))
        assert set(rows_of(bot, "conversation/")) == {
            "conversation/chat/[-1]",
            "conversation/user/[5]",
            "conversation/message/[5,77]",
        }
        await second.receive(query_update("end", message=message, user_id=5))
        assert sorted(second.answers()) == ["chat ended", "message ended", "user ended"]
        await first.receive(query_update("go", inline_message_id="in/line", user_id=5))
        assert 'conversation/message/[5,"in/line"]' in bot.rows
        await second.receive(query_update("end", inline_message_id="in/line", user_id=5))
        await second.receive({"update_id": 1})
        assert rows_of(bot, "conversation/") == {}


async def test_two_updates_of_one_conversation_take_two_steps(bot: PostgresStorage) -> None:
    """Though they come at the same time, to two workers."""
    async with workers(bot, lambda: [conversation("order", "A", "B", "C")]) as (first, second):
        await first.say("/start")
        await asyncio.gather(first.say("x"), second.say("x"))
        assert sorted(first.answers() + second.answers()) == ["started", "was at 'A'", "was at 'B'"]


async def test_a_state_that_cannot_be_stored_is_told(bot: PostgresStorage) -> None:
    """The conversation stays where it was."""

    def handlers() -> list[Any]:
        odd = object()
        return [
            ConversationHandler(
                entry_points=[CommandHandler("start", step("A", "started"))],
                states={"A": [text(step(odd, "odd"))], odd: []},
                fallbacks=[],
                name="order",
                persistent=True,
            )
        ]

    async with workers(bot, handlers) as (first, second):
        await first.say("/start")
        await second.say("x")
        (error,) = second.errors
        assert str(error).startswith("conversation/order/[1,1]")
        second.errors.clear()
        assert rows_of(bot, "conversation/") == {"conversation/order/[1,1]": b'"A"'}


@pytest.mark.filterwarnings("ignore:A persistent `ConversationHandler` was passed")
async def test_a_handler_that_is_added_later_is_right_too(bot: PostgresStorage) -> None:
    """And one that is removed is not looked for."""
    async with workers(bot, lambda: [MessageHandler(filters.Regex("never"), nothing)]) as both:
        for worker in both:
            worker.app.add_handler(conversation(), 5)
        first, second = both
        await first.say("/start")
        await second.say("x")
        assert second.answers() == ["was at 0"]
        second.app.remove_handler(second.app.handlers[5][0], 5)
        await second.say("x")
        assert second.answers() == []


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"persistent": False, "name": None}, "persistent=True"),
        ({"persistent": True, "name": "order", "conversation_timeout": 5}, "conversation_timeout"),
    ],
)
async def test_what_lives_in_one_worker_is_refused(
    bot: PostgresStorage, options: dict[str, Any], told: str
) -> None:
    """At once, and in a conversation that is nested in another; also when it is added later."""
    inner = ConversationHandler(
        entry_points=[text(nothing)], states={}, fallbacks=[text(nothing)], **options
    )
    outer = ConversationHandler(
        entry_points=[text(nothing)], states={"A": [inner]}, fallbacks=[], name="outer",
        persistent=True,
    )  # fmt: skip
    for handler in (inner, outer):
        with pytest.raises(ConfigurationError, match=told):
            build(bot.store(), handler, shared=True)


async def test_timeouts_of_a_bot_with_jobs_are_refused_too(bot: PostgresStorage) -> None:
    """Whatever the job queue is."""
    worker = build(bot.store(), shared=True, jobs=True)
    assert isinstance(worker.app.job_queue, JobQueue)
    with pytest.raises(ConfigurationError, match="conversation_timeout"):
        worker.app.add_handler(conversation("x", conversation_timeout=1.0))
