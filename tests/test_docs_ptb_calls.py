"""docs/ptb.md says what python-telegram-bot does: each of its claims, with a real `Application`.

The page names, in comments behind each claim, the tests here that show it.
"""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from collections import Counter
from copy import deepcopy
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from bots import NEVER, Json, press_update, text_update
from claims import claims, exists
from handlers import ANY, conversation, nothing, step, text
from recorder import Recorded, Recorder
from telegram import Update
from telegram.ext import (
    Application,
    CallbackContext,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    Job,
    MessageHandler,
    PersistenceInput,
    TypeHandler,
    filters,
)

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "ptb.md"
pytestmark = pytest.mark.timeout(30)  # if PTB is not what it was, nobody waits for long
UPDATES = ["update_callback_data", "update_bot_data"]
"""What is called in each run, if the bot has arbitrary callback data."""


async def count(_: Update, context: Any) -> None:
    """Count in the data of the chat."""
    context.chat_data["n"] = context.chat_data.get("n", 0) + 1


def counting(**options: Any) -> Recorded:
    return Recorded(TypeHandler(Update, count), **options)


def fail(*_: object) -> None:
    raise RuntimeError("of the test")


async def raising(_: Update, context: Any) -> None:
    await count(_, context)
    fail()


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# --- The picture, and the table below it ------------------------------------------------------


def load_life() -> Any:
    spec = importlib.util.spec_from_file_location("life", ROOT / "docs" / "pictures" / "life.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


LIFE = load_life()


def test_the_picture_is_what_its_script_draws() -> None:
    """Who changes the script runs it."""
    assert (PAGE.parent / "pictures" / "life.svg").read_text() == LIFE.draw()


def test_the_table_is_what_its_script_makes() -> None:
    """The page says in words what the picture shows."""
    _, _, rest = PAGE.read_text().partition(f"{LIFE.BEGIN}\n")
    assert rest.partition(f"\n{LIFE.END}")[0] == LIFE.table()


class Life:
    """Notes the moments of a bot's life, each when it ends."""

    def __init__(self) -> None:
        self.recorder = Recorder()
        self.recorder.chats = {1: {"n": 1}, 7: {}}
        self.recorder.users = {7: {}}
        self.seen: list[tuple[tuple[str, ...], int | None, int]] = []
        self.app: Any = None

    def ends(self) -> None:
        """Note what was called since the last moment, and what memory and the store hold."""
        memory = self.app.chat_data[1]["n"] if 1 in self.app.chat_data else None
        self.seen.append((tuple(self.recorder.names()), memory, self.recorder.chats[1]["n"]))


async def test_a_life_is_as_the_picture_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """From `build` to the end of `shutdown`: each call, in its moment; the memory and the store."""
    life = Life()

    class Context(CallbackContext[Any, Any, Any, Any]):
        @classmethod
        def from_update(cls, update: object, application: Any) -> Any:
            life.ends()  # so the filters were asked, and what follows was not yet called
            return super().from_update(update, application)

    async def handle(_: Update, context: Any) -> str:
        life.ends()
        context.chat_data["n"] = 2
        return "ASKED"

    async def job(context: Any) -> None:
        life.ends()
        context.chat_data["n"] = 3
        context.application.drop_chat_data(7)
        context.application.drop_user_data(7)

    handler: Any = ConversationHandler(
        [TypeHandler(Update, handle)], {"ASKED": []}, [], name="talk", persistent=True
    )
    flush = life.recorder.flush

    async def flush_as_a_moment() -> None:
        life.ends()
        await flush()

    monkeypatch.setattr(life.recorder, "flush", flush_as_a_moment)
    recorded = Recorded(
        handler,
        recorder=life.recorder,
        arbitrary_callback_data=True,
        jobs=True,
        context_types=ContextTypes(context=Context),
    )
    life.app = app = recorded.app
    life.ends()  # build
    await app.initialize()
    life.ends()
    await app.start()
    life.ends()
    await recorded.bot.say("hello")
    life.ends()
    await app.update_persistence()
    life.ends()
    assert app.job_queue is not None
    await app.job_queue.run_once(job, NEVER, chat_id=1, user_id=1).run(app)
    life.ends()
    await app.stop()
    life.ends()
    await app.shutdown()
    life.ends()
    shown = [
        (tuple(sorted(calls)) if together else calls, memory, stored)
        for _, _, calls, memory, stored, together in LIFE.MOMENTS
    ]
    seen = [
        (tuple(sorted(calls)) if moment.together else calls, memory, stored)
        for (calls, memory, stored), moment in zip(life.seen, LIFE.MOMENTS, strict=True)
    ]
    assert seen == shown


def test_the_picture_has_all_sixteen_calls() -> None:
    """Each abstract method of PTB's `BasePersistence` is a call, and is in the picture."""
    drawn = {call for moment in LIFE.MOMENTS for call in moment.calls}
    assert drawn == Recorder.__mro__[1].__abstractmethods__  # type: ignore[attr-defined]
    assert len(drawn) == 16


# --- get_*: at the start ----------------------------------------------------------------------


async def test_get_comes_once_and_in_order() -> None:
    """Each is awaited before the next; handlers come by group, nested ones after their parent."""
    inner = conversation("inner")
    outer: Any = ConversationHandler([inner], {0: [inner]}, [], name="outer", persistent=True)
    recorded = Recorded(outer, conversation("other"), arbitrary_callback_data=True)
    async with recorded.app:
        calls = recorded.recorder.take()
        assert [call.name for call in calls] == [
            *LIFE.GET,
            "get_conversations",
            "get_conversations",
        ]
        assert [call.arguments for call in calls[4:]] == [("outer",), ("inner",), ("other",)]


async def test_what_is_not_stored_is_not_asked_for() -> None:
    """`store_data` switches four kinds; conversations are asked for all the same."""
    off = PersistenceInput(bot_data=False, chat_data=False, user_data=False, callback_data=False)
    recorded = Recorded(
        conversation(), recorder=Recorder(store_data=off), arbitrary_callback_data=True
    )
    async with recorded.app:
        await recorded.bot.say("/start")
        await recorded.app.update_persistence()
    assert recorded.recorder.names() == ["get_conversations", "update_conversation", "flush"]


async def test_callback_data_is_asked_for_if_the_bot_has_it() -> None:
    """Without `arbitrary_callback_data` nobody asks for it or hands it over."""
    recorded = counting()
    async with recorded.app:
        pass
    assert not [name for name in recorded.recorder.names() if "callback" in name]


async def test_bot_data_must_be_of_its_class() -> None:
    """`initialize` raises for anything else."""
    recorder = Recorder()
    recorder.bot_document = None
    recorded = counting(recorder=recorder)
    with pytest.raises(ValueError, match="bot_data must be of type dict"):
        await recorded.app.initialize()


@pytest.mark.parametrize("wrong", [{}, ([], {}, 0)])
async def test_callback_data_must_be_a_pair_or_none(wrong: object) -> None:
    """`initialize` raises for anything else, also for an empty dict."""
    recorder = Recorder()
    recorder.callback = wrong
    recorded = counting(recorder=recorder, arbitrary_callback_data=True)
    with pytest.raises(ValueError, match="tuple of length 2"):
        await recorded.app.initialize()


@pytest.mark.parametrize("name", LIFE.GET)
async def test_after_a_failed_start_nothing_more_is_called(name: str) -> None:
    """The bot does not start; neither `async with` nor `shutdown` calls `flush` then."""
    recorded = Recorded(conversation(), arbitrary_callback_data=True)
    recorded.recorder.raising[name] = OSError("no such disk")
    with pytest.raises(OSError, match="no such disk"):
        async with recorded.app:
            pass
    await recorded.app.shutdown()
    assert recorded.recorder.names() == list(LIFE.GET[: LIFE.GET.index(name) + 1])
    assert recorded.errors == []


async def test_what_was_loaded_joins_what_is_there() -> None:
    """Chats and users that memory has and the store has not stay; `bot_data` is replaced."""
    recorded = counting()
    recorded.app.chat_data[5]["n"] = 5
    recorded.app.bot_data["n"] = 5
    recorded.recorder.chats = {1: {"n": 1}}
    async with recorded.app:
        assert dict(recorded.app.chat_data) == {5: {"n": 5}, 1: {"n": 1}}
        assert recorded.app.bot_data == {}


async def test_a_stored_end_is_an_ended_conversation() -> None:
    """It is not in memory, and the first run hands over that it has ended."""
    recorder = Recorder()
    recorder.conversations = {"order": {(1, 1): ConversationHandler.END, (2, 2): 0}}
    recorded = Recorded(conversation(), recorder=recorder)
    async with recorded.app:
        recorder.take()
        await recorded.app.update_persistence()
        assert recorded.handed(recorder.take(), "update_conversation") == [("order", (1, 1), None)]


async def test_a_late_conversation_is_loaded_by_a_task() -> None:
    """`add_handler` warns; until the task is done the handler knows no stored state."""
    recorder = Recorder()
    recorder.conversations = {"order": {(1, 1): 0}}
    recorded = Recorded(recorder=recorder)
    async with recorded.app:
        await recorded.app.start()
        with pytest.warns(UserWarning, match="discouraged"):
            recorded.app.add_handler(conversation())
        assert "get_conversations" not in recorder.names()
        await recorded.bot.say("too early")
        assert recorded.bot.answers() == []
        await settle()
        assert "get_conversations" in recorder.names()
        await recorded.bot.say("now")
        assert recorded.bot.answers() == ["was at 0"]
        await recorded.app.stop()


async def test_a_step_before_a_late_load_is_overwritten() -> None:
    """What is stored takes its place."""
    recorder = Recorder()
    recorder.conversations = {"order": {(1, 1): "b"}}
    recorded = Recorded(recorder=recorder)
    async with recorded.app:
        await recorded.app.start()
        with pytest.warns(UserWarning, match="discouraged"):
            recorded.app.add_handler(conversation("order", "a", "b"))
        await recorded.bot.say("/start")
        await settle()
        await recorded.bot.say("on")
        assert recorded.bot.answers() == ["started", "was at 'b'"]
        await recorded.app.stop()


async def test_an_error_of_a_late_conversation_goes_to_error_handlers() -> None:
    """The bot goes on without its states."""
    recorded = Recorded()
    recorded.recorder.raising["get_conversations"] = OSError("no such disk")
    async with recorded.app:
        await recorded.app.start()
        with pytest.warns(UserWarning, match="discouraged"):
            recorded.app.add_handler(conversation())
        await settle()
        assert [str(error) for error in recorded.errors] == ["no such disk"]
        await recorded.app.stop()


# --- refresh_*: before handlers and jobs ------------------------------------------------------


async def test_refresh_comes_once_an_update() -> None:
    """Before the first handler, however many groups take the update: bot, chat, user."""
    recorded = Recorded(ANY, ANY, ANY)
    async with recorded.app:
        recorded.recorder.take()
        await recorded.bot.say("hello", chat_id=-5, user_id=3)
        calls = recorded.recorder.take()
        assert [call.name for call in calls] == list(LIFE.REFRESH)
        assert [call.arguments[0] for call in calls[1:]] == [-5, 3]


async def test_nothing_is_refreshed_for_nobody() -> None:
    """An update that no handler takes leads to no call, and marks nothing."""
    recorded = Recorded(CommandHandler("start", nothing))
    async with recorded.app:
        recorded.recorder.take()
        await recorded.bot.say("hello")
        assert recorded.recorder.take() == []
        assert await recorded.run() == Counter({("update_bot_data", None): 1})


async def test_an_update_of_nobody_refreshes_bot_data_alone() -> None:
    """Chat and user are refreshed where the update has one."""
    recorded = Recorded(ANY)
    async with recorded.app:
        recorded.recorder.take()
        await recorded.app.process_update(Update(1))
        assert recorded.recorder.names() == ["refresh_bot_data"]


async def test_filters_see_what_was_not_refreshed() -> None:
    """They, and `from_update`, come before."""
    seen: list[str] = []
    recorder = Recorder()

    class Filter(filters.MessageFilter):
        def filter(self, _: object) -> bool:
            seen.append("filter")
            seen.extend(recorder.names())
            return True

    class Context(CallbackContext[Any, Any, Any, Any]):
        @classmethod
        def from_update(cls, update: object, application: Any) -> Any:
            seen.append("from_update")
            seen.extend(recorder.names())
            return super().from_update(update, application)

    recorded = Recorded(
        MessageHandler(Filter(), nothing),
        recorder=recorder,
        context_types=ContextTypes(context=Context),
    )
    async with recorded.app:
        recorder.take()
        await recorded.bot.say("hello")
        assert [*seen, *recorder.names()] == ["filter", "from_update", *LIFE.REFRESH]


async def test_refresh_is_given_the_document_itself() -> None:
    """What it puts there is what the handler finds."""
    recorder, found = Recorder(), []

    async def look(_: Update, context: Any) -> None:
        found.append(dict(context.chat_data))

    recorded = Recorded(TypeHandler(Update, look), recorder=recorder)
    async with recorded.app:
        await recorded.bot.say("hello")
        given = recorded.handed(recorder.take(), "refresh_chat_data")[0][1]
        assert given is recorded.app.chat_data[1]
        given["edited"] = True
        await recorded.bot.say("hello")
        assert found == [{}, {"edited": True}]


async def test_later_groups_run_though_refreshing_failed() -> None:
    """The handlers of the first group that takes the update do not; nothing is tried again."""
    ran: list[str] = []

    def noting(name: str) -> TypeHandler[Any, Any, Any]:
        async def note(_: Update, __: Any) -> None:
            ran.append(name)

        return TypeHandler(Update, note)

    recorded = Recorded(noting("first"), noting("second"))
    recorded.recorder.raising["refresh_bot_data"] = OSError("no such disk")
    async with recorded.app:
        recorded.recorder.take()
        await recorded.bot.say("hello")
        assert ran == ["second"]
        assert recorded.recorder.names() == ["refresh_bot_data"]
        assert [str(error) for error in recorded.errors] == ["no such disk"]


async def test_a_job_refreshes_what_it_was_given() -> None:
    """Before its callback: `bot_data`, and the chat and user that it was made for."""
    recorded = Recorded(jobs=True)
    async with recorded.app:
        recorded.recorder.take()
        queue = recorded.app.job_queue
        assert queue is not None

        async def work(_: object) -> None:
            """Change nothing."""

        await queue.run_once(work, NEVER).run(recorded.app)
        assert recorded.recorder.names() == ["refresh_bot_data"]
        await queue.run_once(work, NEVER, chat_id=5).run(recorded.app)
        assert recorded.recorder.names() == ["refresh_bot_data", "refresh_chat_data"]
        assert ("update_chat_data", 5) in await recorded.run()


async def test_a_job_that_is_done_has_saved_nothing() -> None:
    """It is marked for the next run."""
    assert "update_persistence" in (Job.run.__doc__ or "")

    async def work(context: Any) -> None:
        context.chat_data["n"] = 1

    recorded = Recorded(jobs=True)
    async with recorded.app:
        recorded.recorder.take()
        assert recorded.app.job_queue is not None
        await recorded.app.job_queue.run_once(work, NEVER, chat_id=1).run(recorded.app)
        assert recorded.recorder.names() == ["refresh_bot_data", "refresh_chat_data"]
        assert recorded.recorder.chats == {}
        assert ("update_chat_data", 1) in await recorded.run()


async def test_a_job_does_not_run_when_refreshing_fails() -> None:
    """Error handlers hear of it; its chat is marked all the same."""
    ran: list[object] = []
    recorded = Recorded(jobs=True)

    async def work(context: object) -> None:
        ran.append(context)

    async with recorded.app:
        await recorded.app.start()
        assert recorded.app.job_queue is not None
        recorded.recorder.raising["refresh_chat_data"] = OSError("no such disk")
        await recorded.app.job_queue.run_once(work, NEVER, chat_id=5).run(recorded.app)
        assert ran == []
        assert [str(error) for error in recorded.errors] == ["no such disk"]
        assert ("update_chat_data", 5) in await recorded.run()
        await recorded.app.stop()


async def test_error_handlers_are_not_refreshed_for() -> None:
    """An error of a run comes to them without a call of the persistence."""
    recorded = counting()
    async with recorded.app:
        recorded.recorder.take()
        await recorded.app.process_error(Update(1), ValueError())
        assert recorded.recorder.take() == []


async def test_refresh_runs_in_the_middle_of_another_handler() -> None:
    """With `concurrent_updates`: of the same chat, on the same object."""
    go_on, began = asyncio.Event(), asyncio.Event()

    async def slow(update: Update, context: Any) -> None:
        assert update.message is not None
        if update.message.text == "slow":
            context.chat_data["half"] = "done"
            began.set()
            await go_on.wait()

    recorded = Recorded(TypeHandler(Update, slow), concurrent_updates=True)
    async with recorded.app:
        first = asyncio.ensure_future(recorded.bot.say("slow"))
        await began.wait()
        recorded.recorder.take()
        await recorded.bot.say("quick")
        assert recorded.handed(recorded.recorder.take(), "refresh_chat_data") == [
            (1, {"half": "done"})
        ]
        go_on.set()
        await first


# --- Runs: update_* and drop_* ----------------------------------------------------------------


async def test_a_handler_that_is_done_has_saved_nothing() -> None:
    """Nothing is called between its end and the next run."""
    recorded = counting()
    async with recorded.app:
        await recorded.app.start()
        recorded.recorder.take()
        await recorded.bot.say("hello")
        await settle()
        assert recorded.recorder.names() == list(LIFE.REFRESH)
        assert recorded.recorder.chats == {}
        await recorded.app.stop()


async def test_the_first_run_comes_after_the_interval() -> None:
    """`start` begins to wait; a run follows each wait."""
    recorded = counting(recorder=Recorder(update_interval=0.01))
    async with recorded.app:
        recorded.recorder.take()
        await recorded.app.start()
        await settle()
        assert recorded.recorder.take() == []
        while recorded.recorder.names() != ["update_bot_data"]:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0.001)
        await recorded.app.stop()


def test_the_interval_is_a_minute_by_default() -> None:
    """PTB's own persistences have it too."""
    from telegram.ext import DictPersistence, PicklePersistence  # noqa: PLC0415

    assert PicklePersistence("never.pickle").update_interval == 60
    assert DictPersistence().update_interval == 60


async def test_bot_and_callback_data_are_handed_over_in_each_run() -> None:
    """Changed or not."""
    recorded = counting(arbitrary_callback_data=True)
    async with recorded.app:
        assert (
            await recorded.run()
            == await recorded.run()
            == Counter((name, None) for name in UPDATES)
        )


async def test_who_was_used_is_handed_over_once() -> None:
    """In the next run, changed or not; not again in the one after it."""
    recorded = Recorded(ANY)
    async with recorded.app:
        await recorded.bot.say("hello", chat_id=-5, user_id=3)
        assert set(await recorded.run()) >= {("update_chat_data", -5), ("update_user_data", 3)}
        assert recorded.recorder.chats == {-5: {}}
        assert set(await recorded.run()) == {("update_bot_data", None)}


async def test_a_handler_that_raises_is_saved_as_it_was_left() -> None:
    """What it has changed until then is handed over."""
    recorded = Recorded(TypeHandler(Update, raising))
    async with recorded.app:
        await recorded.bot.say("hello")
        await recorded.app.update_persistence()
        assert recorded.recorder.chats == {1: {"n": 1}}


async def test_a_handler_that_does_not_block_is_marked_when_it_is_done() -> None:
    """Not before, though a run may copy what it has changed so far."""
    go_on = asyncio.Event()

    async def slow(_: Update, context: Any) -> None:
        context.chat_data["n"] = 1
        await go_on.wait()

    recorded = Recorded(TypeHandler(Update, slow, block=False))
    async with recorded.app:
        await recorded.app.start()
        await recorded.bot.say("hello")
        await settle()
        assert ("update_chat_data", 1) not in await recorded.run()
        go_on.set()
        await settle()
        assert ("update_chat_data", 1) in await recorded.run()
        await recorded.app.stop()


async def test_a_task_marks_the_update_that_it_was_given() -> None:
    """`create_task(…, update)` marks when the task is done; without an update it marks nobody."""

    async def work() -> None:
        """Change nothing."""

    recorded = Recorded()
    async with recorded.app:
        await recorded.app.start()
        update = Update.de_json(text_update("hello"), recorded.app.bot)
        await recorded.app.create_task(work())
        assert ("update_chat_data", 1) not in await recorded.run()
        await recorded.app.create_task(work(), update)
        assert ("update_chat_data", 1) in await recorded.run()
        await recorded.app.stop()


async def test_data_of_others_must_be_marked() -> None:
    """What is written into `application.chat_data[other]` is not handed over by itself."""

    async def invite(_: Update, context: Any) -> None:
        context.application.chat_data[7]["invited"] = True

    recorded = Recorded(TypeHandler(Update, invite))
    async with recorded.app:
        await recorded.bot.say("hello")
        assert ("update_chat_data", 7) not in await recorded.run()
        recorded.app.mark_data_for_update_persistence(chat_ids=7)
        assert ("update_chat_data", 7) in await recorded.run()


async def test_looking_makes_an_empty_document() -> None:
    """Of a chat that nobody knows; marking it stores it."""
    recorded = counting()
    async with recorded.app:
        assert 99 not in recorded.app.chat_data
        recorded.app.chat_data[99].get("n")
        assert 99 in recorded.app.chat_data
        recorded.app.mark_data_for_update_persistence(chat_ids=98)
        await recorded.app.update_persistence()
        assert recorded.recorder.chats == {98: {}}


async def test_documents_are_whole_and_copied() -> None:
    """A call is given all of the document, as it was when the run began."""
    recorded = counting()
    recorded.recorder.chats = {1: {"old": ["x"]}}
    async with recorded.app:
        await recorded.bot.say("hello")
        async with recorded.held():
            run = asyncio.ensure_future(recorded.app.update_persistence())
            await settle()
            recorded.app.chat_data[1]["old"].append("y")
        await run
        assert recorded.recorder.chats == {1: {"old": ["x"], "n": 1}}


async def test_the_calls_of_a_run_begin_together() -> None:
    """All have begun before any has ended, so that none may rely on another."""
    recorded = Recorded(ANY, conversation(), arbitrary_callback_data=True)
    async with recorded.app:
        await recorded.bot.say("/start")
        await recorded.bot.say("/start", chat_id=2)
        recorded.recorder.take()
        ended = recorded.recorder.ended
        async with recorded.held():
            run = asyncio.ensure_future(recorded.app.update_persistence())
            await settle()
            assert sorted(recorded.recorder.names()) == sorted(
                [*UPDATES, *["update_chat_data", "update_user_data", "update_conversation"] * 2]
            )
            assert recorded.recorder.ended == ended
        await run


async def test_runs_wait_for_each_other() -> None:
    """One that is asked for meanwhile begins when the other is done."""
    recorded = counting()
    async with recorded.app:
        recorded.recorder.take()
        async with recorded.held():
            runs = [asyncio.ensure_future(recorded.app.update_persistence()) for _ in range(2)]
            await settle()
            assert recorded.recorder.names() == ["update_bot_data"]
        await asyncio.gather(*runs)
        assert recorded.recorder.names() == ["update_bot_data"]


async def test_an_interval_of_zero_never_rests() -> None:
    """A run at each turn of the event loop, or nearly so."""
    recorded = counting(recorder=Recorder(update_interval=0))
    async with recorded.app:
        recorded.recorder.take()
        await recorded.app.start()
        for _ in range(1000):
            await asyncio.sleep(0)
        assert len(recorded.recorder.take()) > 50
        await recorded.app.stop()


async def test_an_error_is_told_and_the_others_go_on() -> None:
    """Error handlers get it, without an update."""
    told: list[object] = []

    async def hear(update: object, _: object) -> None:
        told.append(update)

    recorded = counting()
    recorded.app.add_error_handler(hear)
    async with recorded.app:
        await recorded.bot.say("hello")
        recorded.recorder.raising["update_chat_data"] = OSError("the disk is full")
        run = await recorded.run()
        assert {("update_chat_data", 1), ("update_user_data", 1)} <= set(run)
        assert [str(error) for error in recorded.errors] == ["the disk is full"]
        assert told == [None]
        assert recorded.recorder.users == {1: {}}
        recorded.recorder.raising.clear()


def failing(name: str) -> Recorded:
    recorded = Recorded(ANY, conversation(), arbitrary_callback_data=True)
    recorded.recorder.raising[name] = OSError(name)
    return recorded


@pytest.mark.parametrize(
    "name", [*LIFE.UPDATE, "update_conversation", "drop_chat_data", "drop_user_data"]
)
async def test_an_error_is_told_whichever_call_it_is(name: str) -> None:
    """Once; `bot_data` and the callback data alone are handed over again in the next run."""
    recorded = failing(name)
    async with recorded.app:
        await recorded.bot.say("/start")
        recorded.app.drop_chat_data(7)
        recorded.app.drop_user_data(7)
        assert name in {called for called, _ in await recorded.run()}
        assert [str(error) for error in recorded.errors] == [name]
        is_always = name in UPDATES
        assert (name in {called for called, _ in await recorded.run()}) == is_always
        recorded.recorder.raising.clear()


async def test_what_failed_is_not_handed_over_again() -> None:
    """Neither the next run nor the last one does; only when the chat is used again."""
    recorded = counting()
    async with recorded.app:
        await recorded.bot.say("hello")
        recorded.recorder.raising["update_chat_data"] = OSError("the disk is full")
        await recorded.run()
        recorded.recorder.raising.clear()
        assert ("update_chat_data", 1) not in await recorded.run()
        await recorded.bot.say("hello again")
        assert ("update_chat_data", 1) in await recorded.run()
        recorded.recorder.raising["update_chat_data"] = OSError("the disk is full")
        await recorded.bot.say("and again")
        await recorded.run()
        recorded.recorder.raising.clear()
    assert recorded.recorder.chats == {1: {"n": 2}}
    assert recorded.app.chat_data == {1: {"n": 3}}


async def test_a_cancelled_update_is_heard_by_nobody() -> None:
    """A `CancelledError` that an update raises goes to no error handler."""
    recorded = counting()
    async with recorded.app:
        await recorded.bot.say("hello")
        recorded.recorder.raising["update_chat_data"] = asyncio.CancelledError()
        await recorded.app.update_persistence()
        recorded.recorder.raising.clear()
    assert recorded.errors == []
    assert recorded.recorder.chats == {}


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_one_value_that_cannot_be_copied_ends_all_saving() -> None:
    """No chat of that run is saved, no error handler hears of it, and no run follows by itself."""
    recorded = counting(recorder=Recorder(update_interval=0.001))
    app = recorded.app
    await app.initialize()
    await app.start()
    await recorded.bot.say("hello", chat_id=2)
    await recorded.bot.say("hello", chat_id=1)
    app.chat_data[1]["lock"] = threading.Lock()
    recorded.recorder.take()
    await asyncio.sleep(0.1)  # many intervals
    assert not [call for call in recorded.recorder.take() if call.name.startswith("update")]
    assert recorded.errors == []
    with pytest.raises(TypeError, match="cannot pickle"):
        await app.stop()  # which `run_polling` calls before `shutdown`
    await app.shutdown()
    assert recorded.recorder.chats == {}


async def test_a_drop_is_in_memory_at_once_and_in_the_next_run() -> None:
    """The document of a dropped chat is not handed over in that run."""
    recorded = counting()
    async with recorded.app:
        await recorded.bot.say("hello")
        recorded.recorder.take()
        recorded.app.drop_chat_data(1)
        assert 1 not in recorded.app.chat_data
        assert recorded.recorder.take() == []
        run = await recorded.run()
        assert ("drop_chat_data", 1) in run
        assert ("update_chat_data", 1) not in run
        assert ("update_user_data", 1) in run


async def test_what_is_written_after_a_drop_is_not_kept() -> None:
    """It is in memory, and not handed over before the chat is used after that run."""
    recorded = counting()
    async with recorded.app:
        await recorded.bot.say("hello")
        await recorded.run()
        recorded.app.drop_chat_data(1)
        await recorded.bot.say("anew")
        await recorded.run()
        assert recorded.recorder.chats == {}
        assert ("update_chat_data", 1) not in await recorded.run()
        assert recorded.app.chat_data == {1: {"n": 1}}


async def test_a_chat_that_moves_is_dropped_and_updated_in_one_run() -> None:
    """Two calls that begin together; the object is the same."""
    recorded = counting()
    async with recorded.app:
        await recorded.bot.say("hello")
        await recorded.run()
        document = recorded.app.chat_data[1]
        recorded.app.migrate_chat_data(old_chat_id=1, new_chat_id=-100)
        assert recorded.app.chat_data[-100] is document
        assert {("drop_chat_data", 1), ("update_chat_data", -100)} <= set(await recorded.run())


async def test_a_chat_that_moves_is_lost_if_one_of_the_calls_fails() -> None:
    """The old row may be gone, and the new one not there."""
    recorded = counting()
    recorded.recorder.chats = {1: {"n": 1}}
    async with recorded.app:
        recorded.app.migrate_chat_data(old_chat_id=1, new_chat_id=-100)
        recorded.recorder.raising["update_chat_data"] = OSError("the disk is full")
        await recorded.run()
        recorded.recorder.raising.clear()
    assert recorded.recorder.chats == {}


# --- Conversations ----------------------------------------------------------------------------


async def test_a_state_is_handed_over_in_the_next_run() -> None:
    """By keyword, for each key that took a step; None when it has ended."""
    recorded = Recorded(conversation())
    async with recorded.app:
        await recorded.bot.say("/start")
        assert recorded.recorder.conversations == {}
        assert ("update_conversation", "order") in await recorded.run()
        assert recorded.recorder.conversations == {"order": {(1, 1): 0}}
        assert ("update_conversation", "order") not in await recorded.run()
        await recorded.bot.say("on")
        await recorded.bot.say("and on")
        await recorded.run()
        assert recorded.recorder.conversations == {"order": {(1, 1): None}}


async def test_a_state_that_stays_is_handed_over_if_it_was_returned() -> None:
    """A callback that returns None takes no step; one that returns the old state does."""

    def staying(state: object) -> Any:
        return ConversationHandler(
            [CommandHandler("start", step(0, "started"))],
            {0: [text(step(state, "stays"))]},
            [],
            name="order",
            persistent=True,
        )

    for state, steps in ((None, 0), (0, 1)):
        recorded = Recorded(staying(state))
        async with recorded.app:
            await recorded.bot.say("/start")
            await recorded.run()
            await recorded.bot.say("on")
            assert (await recorded.run())["update_conversation", "order"] == steps


@pytest.mark.parametrize("end", [0, ConversationHandler.END])
async def test_a_step_that_does_not_block_is_handed_over_when_it_is_done(end: object) -> None:
    """Until then each run hands over the old state; an end first as -1, later as None."""
    go_on = asyncio.Event()

    async def slow(_: Update, __: object) -> object:
        await go_on.wait()
        return end

    handler: Any = ConversationHandler(
        [CommandHandler("start", step("begun", "started"))],
        {"begun": [text(slow, block=False)], 0: []},
        [],
        name="order",
        persistent=True,
    )
    recorded = Recorded(handler)
    states = recorded.recorder.conversations.setdefault("order", {})
    async with recorded.app:
        await recorded.app.start()
        await recorded.bot.say("/start")
        await recorded.bot.say("on")
        for _ in range(2):
            assert (await recorded.run())["update_conversation", "order"] == 1
            assert states == {(1, 1): "begun"}
        go_on.set()
        await settle()
        await recorded.run()
        assert states == {(1, 1): end}
        await recorded.bot.say("which PTB looks at")
        await recorded.run()
        assert states == {(1, 1): None if end == ConversationHandler.END else 0}
        await recorded.app.stop()


async def test_an_entry_that_does_not_block_is_handed_over_as_ended() -> None:
    """There is no old state yet, so each run says None until it is done."""
    go_on = asyncio.Event()

    async def slow(_: Update, __: object) -> int:
        await go_on.wait()
        return 0

    handler: Any = ConversationHandler(
        [CommandHandler("start", slow, block=False)], {0: []}, [], name="order", persistent=True
    )
    recorded = Recorded(handler)
    async with recorded.app:
        await recorded.app.start()
        await recorded.bot.say("/start")
        await recorded.run()
        assert recorded.recorder.conversations == {"order": {(1, 1): None}}
        go_on.set()
        await settle()
        await recorded.run()
        assert recorded.recorder.conversations == {"order": {(1, 1): 0}}
        await recorded.app.stop()


class Stage(Enum):
    """Where a conversation is."""

    NAME = "name"


async def test_a_state_that_comes_back_as_another_type_silences_the_handler() -> None:
    """An enum that was stored as its value matches no state, and no error is told."""
    for stored, answers in ((Stage.NAME, ["was there"]), (Stage.NAME.value, [])):
        recorder = Recorder()
        recorder.conversations = {"order": {(1, 1): stored}}
        handler: Any = ConversationHandler(
            [CommandHandler("start", step(Stage.NAME, "started"))],
            {Stage.NAME: [text(step(None, "was there"))]},
            [],
            name="order",
            persistent=True,
        )
        recorded = Recorded(handler, recorder=recorder)
        async with recorded.app:
            await recorded.bot.say("Ada")
            assert recorded.bot.answers() == answers
            await recorded.bot.say("/start")
            assert recorded.bot.answers() == []  # nor can it begin anew
        assert recorded.errors == []


async def test_a_tuple_that_comes_back_as_a_list_raises_at_each_update() -> None:
    """A list is no key of `states`."""
    recorder = Recorder()
    recorder.conversations = {"order": {(1, 1): ["page", 3]}}
    recorded = Recorded(conversation("order", ("page", 3)), recorder=recorder)
    async with recorded.app:
        for said in range(1, 3):
            await recorded.bot.say("hello")
            assert len(recorded.errors) == said
            assert isinstance(recorded.errors[-1], TypeError)


# --- Keyboards --------------------------------------------------------------------------------


async def test_a_keyboard_is_handed_over_after_it_was_sent() -> None:
    """A bot that is killed before the next run does not know its buttons."""
    pressed: list[object] = []

    async def note(update: Update, _: object) -> None:
        assert update.callback_query is not None
        pressed.append(type(update.callback_query.data).__name__)

    recorded = Recorded(TypeHandler(Update, note), arbitrary_callback_data=True)
    await recorded.app.initialize()
    message: Json = await recorded.bot.ask(("add", 1))
    killed = Recorder()
    killed.callback = deepcopy(recorded.recorder.callback)
    await recorded.run()
    saved = Recorder()
    saved.callback = deepcopy(recorded.recorder.callback)
    await recorded.app.shutdown()
    for recorder in (killed, saved):
        again = Recorded(TypeHandler(Update, note), recorder=recorder, arbitrary_callback_data=True)
        async with again.app:
            await again.bot.receive(press_update(message))
    assert pressed == ["InvalidCallbackData", "tuple"]


async def test_all_keyboards_are_handed_over_for_one() -> None:
    """Each run has the whole cache: up to 1,024 keyboards by default."""
    recorded = counting(arbitrary_callback_data=True)
    async with recorded.app:
        for number in range(3):
            await recorded.bot.ask(number + 1)
        await recorded.run()
        assert len(recorded.recorder.callback[0]) == 3
        assert recorded.bot.cache.maxsize == 1024


# --- The end ----------------------------------------------------------------------------------


async def test_stop_saves_nothing() -> None:
    """The last run and `flush` are `shutdown`'s, whatever the reference says of `stop`."""
    assert "flush" in (Application.stop.__doc__ or "")
    recorded = counting()
    async with recorded.app:
        await recorded.app.start()
        await recorded.bot.say("hello")
        recorded.recorder.take()
        await recorded.app.stop()
        assert recorded.recorder.take() == []
    assert recorded.recorder.names()[-1] == "flush"
    assert recorded.recorder.chats == {1: {"n": 1}}


async def test_stop_waits_for_what_is_at_work() -> None:
    """For updates that wait, tasks, and a run that is under way."""
    recorded = counting()
    async with recorded.app:
        await recorded.app.start()
        for _ in range(3):
            await recorded.app.update_queue.put(
                Update.de_json(text_update("hello"), recorded.app.bot)
            )
        await recorded.app.stop()
    assert recorded.recorder.chats == {1: {"n": 3}}


async def test_the_last_run_comes_when_the_bot_is_shut_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error handler that hears of it cannot send a message any more."""
    recorded = counting()
    shut_down: list[bool] = []

    async def note() -> None:
        shut_down.append("update_bot_data" not in [call.name for call in recorder.calls])

    recorder = recorded.recorder
    monkeypatch.setattr(recorded.bot.telegram, "shutdown", note)
    async with recorded.app:
        recorder.take()
    assert shut_down[0]
    assert recorder.names() == ["update_bot_data", "flush"]


async def test_flush_comes_though_the_last_run_failed() -> None:
    """Error handlers hear of the run; `shutdown` ends as always."""
    recorded = counting()
    async with recorded.app:
        recorded.recorder.raising["update_bot_data"] = OSError("the disk is full")
    assert [str(error) for error in recorded.errors] == ["the disk is full"]
    assert recorded.recorder.names()[-2:] == ["update_bot_data", "flush"]


async def test_a_flush_that_fails_can_be_called_again() -> None:
    """`shutdown` raises; the next one runs and flushes once more, the one after that does not."""
    recorded = counting()
    await recorded.app.initialize()
    recorded.recorder.raising["flush"] = OSError("the disk is full")
    recorded.recorder.take()
    with pytest.raises(OSError, match="the disk is full"):
        await recorded.app.shutdown()
    assert recorded.errors == []
    recorded.recorder.raising.clear()
    await recorded.app.shutdown()
    await recorded.app.shutdown()
    assert recorded.recorder.names() == ["update_bot_data", "flush"] * 2


async def test_an_application_can_begin_again() -> None:
    """After `shutdown` `initialize` loads everything anew."""
    recorded = counting()
    for _ in range(2):
        async with recorded.app:
            pass
    names = recorded.recorder.names()
    assert names == [*LIFE.GET[:3], "update_bot_data", "flush"] * 2


def run_polling(recorded: Recorded, moments: list[str]) -> None:
    """Run a bot as bots are run, in a thread with an event loop of its own."""
    asyncio.set_event_loop(loop := asyncio.new_event_loop())
    loop.call_later(20, loop.stop)  # if PTB is not what it was, nobody waits for ever

    def noting(name: str) -> Any:
        async def note(app: Any) -> None:
            moments.extend([*recorded.recorder.names(), name])
            app.bot_data[name] = True

        return note

    async def stop(update: Update, context: Any) -> None:
        await count(update, context)
        # Not while `start` is at work, of which `run_polling` would not hear.
        asyncio.get_running_loop().call_later(0.1, context.application.stop_running)

    app: Any = recorded.app
    app.post_init, app.post_stop = noting("post_init"), noting("post_stop")
    app.post_shutdown = noting("post_shutdown")
    app.add_handler(TypeHandler(Update, stop))
    recorded.bot.telegram.updates.put_nowait(text_update("stop"))
    app.run_polling(stop_signals=None)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
async def test_run_polling_does_not_shut_down_after_that() -> None:
    """A value that cannot be copied: `stop` raises, and what follows is not called."""
    recorded = Recorded(recorder=Recorder(update_interval=0.001))
    recorded.app.bot_data["lock"] = lock = threading.Lock()
    recorded.recorder.bot_document = {"lock": lock}
    moments: list[str] = []
    with pytest.raises(TypeError, match="cannot pickle"):
        await asyncio.to_thread(lambda: run_polling(recorded, moments))
    assert moments == [*LIFE.GET[:3], "post_init"]
    assert recorded.recorder.names() == [*LIFE.REFRESH]


async def test_run_polling_calls_these_in_order() -> None:
    """Its hooks: `post_init` has what was loaded, what `post_shutdown` changes is not saved."""
    moments: list[str] = []
    recorded = Recorded()
    await asyncio.to_thread(lambda: run_polling(recorded, moments))
    assert recorded.recorder.bot_document == {"post_init": True, "post_stop": True}
    run = slice(8, 11)  # in any order
    moments[run] = sorted(moments[run])
    assert moments == [
        *LIFE.GET[:3],
        "post_init",
        *LIFE.REFRESH,
        "post_stop",
        "update_bot_data",
        "update_chat_data",
        "update_user_data",
        "flush",
        "post_shutdown",
    ]


async def test_an_update_is_confirmed_before_it_is_handled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The next `getUpdates` tells Telegram that it may forget an update that is at work."""
    began, go_on = asyncio.Event(), asyncio.Event()
    offsets: list[object] = []

    async def slow(_: Update, __: object) -> None:
        began.set()
        await go_on.wait()

    recorded = Recorded(TypeHandler(Update, slow))
    telegram = recorded.bot.telegram
    answer = telegram._updates

    async def note(parameters: Json) -> Any:
        offsets.append(parameters.get("offset"))
        return await answer(parameters)

    monkeypatch.setattr(telegram, "_updates", note)
    update = text_update("hello")
    telegram.updates.put_nowait(update)
    async with recorded.app:
        await recorded.app.start()
        assert recorded.app.updater is not None
        await recorded.app.updater.start_polling()
        await began.wait()
        while update["update_id"] + 1 not in offsets:  # noqa: ASYNC110  it tells nobody
            await asyncio.sleep(0)
        assert not go_on.is_set()
        go_on.set()
        telegram.updates.put_nowait(text_update("the end"))  # so that nothing waits any more
        await recorded.app.updater.stop()
        await recorded.app.stop()


# --- The page itself --------------------------------------------------------------------------


def test_every_claim_is_shown_by_a_test() -> None:
    """Each paragraph, item and row names tests that exist; each test here is named."""
    made = LIFE.table().splitlines()
    named: set[str] = set()
    for claim, tests in claims(PAGE):
        assert tests or f"| {claim} |" in made or claim.startswith("!["), claim
        named.update(tests)
    assert not [test for test in named if not exists(test, Path(__file__))]
    assert {name for name in globals() if name.startswith("test_")} <= named
