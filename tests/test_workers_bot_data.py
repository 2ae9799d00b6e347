"""``bot_data`` is everybody's: it is merged by key, and can be locked."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, cast

import pytest
from handlers import ANY, text
from postgres_server import PostgresServer
from storages import PostgresStorage
from telegram import Update
from telegram.ext import ContextTypes, TypeHandler
from through import until
from workers import persistence_of, workers

from kvpersist import ConfigurationError, EncodeError
from kvpersist.stores.postgres import PostgresStore
from kvpersist.stores.postgres_transaction import PostgresTransaction


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


class Meeting:
    """Two updates that change ``bot_data`` in the same moment, before either has ended."""

    def __init__(self) -> None:
        self.inside = 0
        self.all_inside = asyncio.Event()

    async def __call__(self, _: Update, context: Any) -> None:
        self.change(context.bot_data)
        self.inside += 1
        if self.inside == 2:
            self.all_inside.set()
        await self.all_inside.wait()

    def change(self, data: dict[Any, Any]) -> None:
        """Do what the test is about."""
        data[f"key {self.inside}"] = self.inside
        data[self.inside] = [self.inside]


@pytest.mark.parametrize("number", [1, 2])
async def test_two_that_change_different_keys_both_win(bot: PostgresStorage, number: int) -> None:
    """In one worker, and in two; keys of any type."""
    meeting = Meeting()
    async with workers(bot, lambda: [TypeHandler(Update, meeting)], number) as those:
        await asyncio.gather(those[0].say("a", chat_id=1), those[-1].say("b", chat_id=2))
        seen: list[Any] = []

        async def look(_: Update, context: Any) -> None:
            seen.append(dict(context.bot_data))

        for worker in those:
            worker.app.add_handler(TypeHandler(Update, look), -1)
            await worker.say("c", chat_id=3)
    for data in seen:
        assert {key: data[key] for key in ("key 0", 0, "key 1", 1)} == {
            "key 0": 0, 0: [0], "key 1": 1, 1: [1],
        }  # fmt: skip


async def test_the_last_one_wins_a_key_and_the_log_says_so(
    bot: PostgresStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """Which key it was is told."""

    class Same(Meeting):
        def change(self, data: dict[Any, Any]) -> None:
            data["key"] = self.inside

    meeting = Same()
    with caplog.at_level(logging.WARNING, "kvpersist"):
        async with workers(bot, lambda: [TypeHandler(Update, meeting)]) as (first, second):
            await asyncio.gather(first.say("a", chat_id=1), second.say("b", chat_id=2))
    assert bot.rows["bot"] in {b'{"key":0}', b'{"key":1}'}
    (message,) = caplog.messages
    assert message.startswith("bot: 'key' was changed here and by another worker")
    assert "lock" in message


async def count(_: Update, context: Any) -> None:
    """Count, with everybody else waiting."""
    await context.application.persistence.lock("bot")
    before = context.bot_data.get("count", 0)
    await asyncio.sleep(0)
    context.bot_data["count"] = before + 1


async def test_a_counter_behind_a_lock_loses_nothing(bot: PostgresStorage) -> None:
    """Though all workers count at once, in different chats, some of them twice in an update."""

    async def count_twice(update: Update, context: Any) -> None:
        await count(update, context)
        await count(update, context)

    def handlers() -> list[Any]:
        return [TypeHandler(Update, count), text(count_twice, "twice")]

    async with workers(bot, handlers, 3, store={"pool_size": 8}) as those:
        await asyncio.gather(
            *(
                worker.say("twice", chat_id=10 * number + turn)
                for turn in range(6)
                for number, worker in enumerate(those, 1)
            )
        )
    assert bot.rows["bot"] == b'{"count":54}'


async def test_what_was_changed_before_the_lock_stays(bot: PostgresStorage) -> None:
    """It is merged with what others have written until then."""
    script = persistence_of(bot)

    async def change(_: Update, context: Any) -> None:
        context.bot_data["mine"] = 1
        await _write(script)
        assert "theirs" not in context.bot_data
        await context.application.persistence.lock("bot")
        assert context.bot_data == {"mine": 1, "theirs": 2}

    async with workers(bot, lambda: [TypeHandler(Update, change)], 1) as (worker,):
        await worker.say("x")
    await script.flush()
    assert bot.rows["bot"] == b'{"mine":1,"theirs":2}'


async def test_what_is_put_back_after_the_lock_is_written(bot: PostgresStorage) -> None:
    """As it was when the update began, and as somebody else has made it different since."""
    script = persistence_of(bot)

    async def change(_: Update, context: Any) -> None:
        await _put(script, "key", 2)
        await context.application.persistence.lock("bot")
        assert context.bot_data == {"key": 2}
        context.bot_data["key"] = 1

    await _put(script, "key", 1)
    async with workers(bot, lambda: [TypeHandler(Update, change)], 1) as (worker,):
        await worker.say("x")
    await script.flush()
    assert bot.rows["bot"] == b'{"key":1}'


async def _write(persistence: Any) -> None:
    async with persistence.edit("bot") as data:
        data["theirs"] = 2


async def test_an_edit_of_bot_data_in_an_update_locks_it(bot: PostgresStorage) -> None:
    """It is the same document as ``context.bot_data``; a key that is deleted stays deleted."""

    async def change(_: Update, context: Any) -> None:
        context.bot_data["old"] = 1
        async with context.application.persistence.edit("bot") as data:
            assert data is context.bot_data
            data["count"] = data.get("count", 0) + 1
        if data["count"] == 2:
            del data["old"]

    async with workers(bot, lambda: [TypeHandler(Update, change)]) as (first, second):
        await first.say("x")
        await second.say("x")
    assert bot.rows["bot"] == b'{"count":2}'


async def test_jobs_read_and_write_it_too(bot: PostgresStorage) -> None:
    """What they change is merged and written by the next run of the persistence."""
    seen: list[Any] = []

    async def work(context: Any) -> None:
        seen.append(dict(context.bot_data))
        context.bot_data["job"] = len(seen)

    async def note(_: Update, context: Any) -> None:
        context.bot_data["update"] = context.bot_data.get("update", 0) + 1

    handlers = [TypeHandler(Update, note)]
    async with workers(bot, lambda: handlers, jobs=True) as (first, second):
        for turn in (1, 2):
            await second.say("x")
            cast("Any", first.app.job_queue).run_once(work, 0)
            await until(lambda turn=turn: len(seen) == turn)  # type: ignore[misc]
            await second.say("x")
            await first.save()
        await first.save()
        assert bot.rows["bot"] == b'{"update":4,"job":2}'
    assert seen == [{"update": 1}, {"update": 3, "job": 1}]


async def test_what_a_job_has_made_that_cannot_be_stored_is_told(bot: PostgresStorage) -> None:
    """By the next run of the persistence; the row stays."""
    async with workers(bot, lambda: [ANY], 1) as (worker,):
        worker.app.bot_data["bad"] = object()
        await worker.save()
        (error,) = worker.errors
        assert isinstance(error, EncodeError)
        worker.errors.clear()
        del worker.app.bot_data["bad"]
        await worker.say("x")
    assert bot.rows["bot"] == b"{}"


async def test_what_an_update_has_made_that_cannot_be_stored_is_told(bot: PostgresStorage) -> None:
    """The rest of the update is written, and the next one begins with what is stored."""

    async def spoil(update: Update, context: Any) -> None:
        assert update.message is not None
        context.chat_data[update.message.text] = 1
        if update.message.text == "bad":
            context.bot_data["bad"] = object()
        else:
            assert "bad" not in context.bot_data

    async with workers(bot, lambda: [TypeHandler(Update, spoil)], 1) as (worker,):
        await worker.say("bad")
        (error,) = worker.errors
        assert str(error).startswith('bot → ["bad"]')
        worker.errors.clear()
        await worker.say("good")
    assert bot.rows["chat/1"] == b'{"bad":1,"good":1}'
    assert bot.rows["bot"] == b"{}"


class Settings:
    """A ``bot_data`` that is no dict."""

    def __init__(self) -> None:
        self.theme = "light"
        self.count = 0


async def test_one_that_is_no_dict_is_like_one_key(
    bot: PostgresStorage, caplog: pytest.LogCaptureFixture
) -> None:
    """The last one wins all of it, and that is told; one after the other loses nothing."""
    types = ContextTypes(bot_data=Settings)

    async def add(_: Update, context: Any) -> None:
        context.bot_data.count += 1

    def change(data: Any) -> None:
        data.theme = f"theme {data.count}"
        data.count += 1

    meeting = Meeting()
    meeting.change = change  # type: ignore[method-assign]
    options: dict[str, Any] = {"context_types": types, "jobs": True}
    async with workers(bot, lambda: [TypeHandler(Update, add)], **options) as (first, second):
        await first.say("x")
        await second.say("x")
    assert bot.rows["bot"] == b'{"theme":"light","count":2}'
    async with workers(bot, lambda: [TypeHandler(Update, meeting)], **options) as (first, second):
        await asyncio.gather(first.say("a", chat_id=1), second.say("b", chat_id=2))
        first.app.bot_data.theme = "of a job"
        await first.save()
        seen: list[int] = []

        async def look(context: Any) -> None:
            seen.append(context.bot_data.count)

        script = persistence_of(bot, context_types=types)
        async with script.edit("bot") as data:
            data.count = 5
        for turn in (1, 2):
            cast("Any", second.app.job_queue).run_once(look, 0)
            await until(lambda turn=turn: len(seen) == turn)  # type: ignore[misc]
        assert seen == [5, 5]
        await script.flush()
    assert bot.rows["bot"] == b'{"theme":"of a job","count":5}'
    assert len(caplog.messages) >= 1


async def test_an_edit_by_hand_is_seen_by_every_worker(bot: PostgresStorage) -> None:
    """Though each remembers the row; also if whoever edits it does not count its versions."""
    seen: list[Any] = []

    async def look(_: Update, context: Any) -> None:
        seen.append(dict(context.bot_data))

    async with workers(bot, lambda: [TypeHandler(Update, look)]) as both:
        for worker in both:
            await worker.say("x")
        table = f"{bot.schema}.documents"
        bot.server.query(f"UPDATE {table} SET value = '{{\"by\": \"hand\"}}' WHERE key = 'bot'")
        for worker in both:
            await worker.say("x")
    assert seen == [{}, {}, {"by": "hand"}, {"by": "hand"}]


async def test_lock_and_edit_say_where_they_work(bot: PostgresStorage) -> None:
    """Not without shared=True, and `lock` not outside of an update."""
    script = persistence_of(bot)
    with pytest.raises(ConfigurationError, match="edit"):
        await script.lock("bot")
    with pytest.raises(ConfigurationError, match="scope"):
        await script.lock("callback", 1)  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="scope"):
        async with script.edit("callback", 1):  # type: ignore[arg-type]
            pass
    with pytest.raises(ConfigurationError, match="an id is an int"):
        async with script.edit("user"):
            pass


async def test_an_answer_that_comes_late_takes_nothing_back(
    bot: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What one update was told of an older one is not what another has known."""
    late = {f"chat/{chat_id}": (asyncio.Event(), asyncio.Event()) for chat_id in (2, 4)}
    ask = PostgresTransaction.lock

    async def lock(self: PostgresTransaction, keys: Any, *reads: Any, **known: Any) -> Any:
        found = await ask(self, keys, *reads, **known)
        for is_there, go_on in (late[key] for key in keys if key in late):
            is_there.set()
            await go_on.wait()
        return found

    async def note(update: Update, context: Any) -> None:
        assert update.message is not None
        if update.message.text != "nothing":
            context.bot_data[update.message.text] = True

    monkeypatch.setattr(PostgresTransaction, "lock", lock)
    async with workers(bot, lambda: [TypeHandler(Update, note)]) as (first, second):
        await second.say("one", chat_id=1)
        older = asyncio.create_task(first.say("nothing", chat_id=2))
        await late["chat/2"][0].wait()
        await first.say("three", chat_id=3)
        newer = asyncio.create_task(first.say("four", chat_id=4))
        await late["chat/4"][0].wait()
        late["chat/2"][1].set()
        await older
        late["chat/4"][1].set()
        await newer
    assert bot.rows["bot"] == b'{"one":true,"three":true,"four":true}'


async def test_what_jobs_have_written_is_not_taken_back_by_an_older_answer(
    bot: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One job begins, and reads; before it hears the answer another one has written."""
    has_read, go_on = asyncio.Event(), asyncio.Event()
    ask = PostgresStore.read

    async def read(self: PostgresStore, keys: Any) -> Any:
        found = await ask(self, keys)
        has_read.set()
        await go_on.wait()
        return found

    async with workers(bot, list, 1) as (worker,):
        worker.app.bot_data["n"] = 1
        await worker.app.update_persistence()
        monkeypatch.setattr(PostgresStore, "read", read)
        late = asyncio.create_task(_refresh(worker.app))
        await has_read.wait()
        worker.app.bot_data["n"] = 2
        await worker.app.update_persistence()
        go_on.set()
        await late
        assert worker.app.bot_data == {"n": 2}


async def test_what_others_write_right_after_a_job_is_not_overwritten(
    bot: PostgresStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was read by one job before another one heard that its own commit was made."""
    has_committed, go_on = asyncio.Event(), asyncio.Event()
    say = PostgresTransaction.commit

    async def commit(self: PostgresTransaction, prepare: Any) -> int:
        version = await say(self, prepare)
        if not has_committed.is_set():
            has_committed.set()
            await go_on.wait()
        return version

    script = persistence_of(bot)
    async with workers(bot, list, 1) as (worker,):
        await _put(script, "theirs", 0)
        await _refresh(worker.app)
        worker.app.bot_data["mine"] = 1
        monkeypatch.setattr(PostgresTransaction, "commit", commit)
        writing = asyncio.create_task(worker.app.update_persistence())
        await has_committed.wait()
        await _put(script, "theirs", 1)
        await _refresh(worker.app)
        await _put(script, "theirs", 2)
        go_on.set()
        await writing
        worker.app.bot_data["mine"] = 2
        await worker.app.update_persistence()
        await script.flush()
    assert bot.rows["bot"] == b'{"theirs":2,"mine":2}'


async def _put(script: Any, key: str, value: int) -> None:
    async with script.edit("bot") as data:
        data[key] = value


async def _refresh(app: Any) -> None:
    """Do what PTB does when a job begins."""
    await app.persistence.refresh_bot_data(app.bot_data)
