"""A bot that is interrupted again while it stops loses nothing: real processes, real signals."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from bots import Bot, text_update
from faults import locked_by_another_program
from handlers import remember, text
from stores import WatchedStore, stored
from through import build, rows, until

from kvpersist import KVPersistence, WriteError

BOT: Final = """
import asyncio, logging, signal, sys
from functools import partial
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job of a script ignores it
sys.path.insert(0, sys.argv[2])
from bots import Telegram, text_update
from handlers import text
from telegram.ext import CommandHandler
from kvpersist import KVPersistence, SqliteStore, application_builder

logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
busy_timeout, stops_slowly = float(sys.argv[3]), sys.argv[4] == "slowly"

class Person(Telegram):
    async def _updates(self, parameters):
        if not parameters.get("timeout"):
            if stops_slowly:
                print("confirming", flush=True)
                await asyncio.Event().wait()
            return []
        if not (line := (await asyncio.to_thread(sys.stdin.readline)).strip()):
            await asyncio.Event().wait()
        print("received", line, flush=True)
        return [text_update(line)]

async def remember(update, context):
    context.chat_data.setdefault("said", []).append(update.message.text)
    print("handled", update.message.text, flush=True)
    idle = partial(print, "idle after", update.message.text, flush=True)
    asyncio.get_running_loop().call_later(0.1, idle)

async def stay(update, context):
    context.chat_data["stays"] = True
    print("handled /stay", flush=True)
    await asyncio.Event().wait()

async def tell(update, context):
    print("refused", flush=True)

async def up(app):
    print("up", flush=True)

app = (
    application_builder(KVPersistence(SqliteStore(sys.argv[1], busy_timeout=busy_timeout)))
    .token("1000:TEST").request(Person()).get_updates_request(Person()).post_init(up).build()
)
app.add_handler(text(remember))
app.add_handler(CommandHandler("stay", stay))
app.add_error_handler(tell)
"""
RUN_POLLING: Final = BOT + "app.run_polling()"
RUN_WITHOUT_HANDLERS_OF_SIGNALS: Final = BOT + "app.run_polling(0.0, stop_signals=None)"
ASYNCIO_RUN: Final = (
    BOT
    + """
async def main():
    async with app:
        await up(app)
        await app.updater.start_polling()
        await app.start()
        try:
            await asyncio.Event().wait()
        finally:
            await app.updater.stop()
            await app.stop()

asyncio.run(main())
"""
)


class Process:
    """A bot to which one person writes, and what it prints."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.output = ""

    def say(self, said: str) -> None:
        assert self._process.stdin
        print(said, file=self._process.stdin, flush=True)

    def read_until(self, words: str) -> None:
        assert self._process.stdout
        for line in self._process.stdout:
            self.output += line
            if words in line:
                return
        pytest.fail(f"it ended without {words!r}: {self.output}")

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> None:
        self._process.send_signal(number)

    def ends(self) -> int:
        """Return its exit code; an error is part of `output`."""
        output, _ = self._process.communicate(timeout=60)
        self.output += output
        return self._process.returncode


@contextmanager
def run(
    program: str, bot_db: Path, *, busy_timeout: float = 1, stops: str = "at once"
) -> Iterator[Process]:
    """Start a bot, let it store what it is told, and yield it."""
    folder = str(Path(__file__).parent)
    command = [sys.executable, "-c", program, str(bot_db), folder, str(busy_timeout), stops]
    with subprocess.Popen(
        command, stdin=-1, stdout=-1, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            bot = Process(process)
            bot.read_until("up")
            bot.say("one")
            bot.read_until("handled one")
            yield bot
        finally:
            process.kill()


async def restart(bot_db: Path) -> dict[int, dict[str, Any]]:
    """Return what the next start finds in the chats."""
    persistence = KVPersistence[Any, Any, Any](bot_db)
    found = await persistence.get_chat_data()
    await persistence.flush()
    return found


def left(bot_db: Path) -> Path:
    return bot_db.with_name(f"{bot_db.name}-rescue")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_second_interruption_leaves_what_waits_for_a_lock(
    bot_db: Path, number: signal.Signals
) -> None:
    """PTB does not shut the application down then; the rows are left all the same, and named."""
    with run(RUN_POLLING, bot_db) as bot:
        with locked_by_another_program(bot_db):
            bot.say("two")
            bot.say("three")
            bot.read_until("received three")
            bot.interrupt(number)
            bot.read_until("Application is stopping")
            bot.interrupt(number)
            bot.read_until("the application was not shut down")
            assert bot.ends() == 1
        assert "handled three" not in bot.output  # nobody would write what that changes
        assert "WriteError: " in bot.output
        assert f"left in {left(bot_db)} for the next start" in bot.output
        assert left(bot_db).exists()
    assert await restart(bot_db) == {1: {"said": ["one", "two"]}}


@pytest.mark.parametrize(
    "program",
    [
        pytest.param(RUN_WITHOUT_HANDLERS_OF_SIGNALS, id="run_polling"),
        pytest.param(
            ASYNCIO_RUN,
            id="asyncio.run",
            marks=pytest.mark.skipif(
                sys.version_info < (3, 11), reason="Python 3.11 made it cancel first"
            ),
        ),
    ],
)
async def test_so_does_one_that_ends_by_keyboard_interrupt(bot_db: Path, program: str) -> None:
    """As it does without PTB's handlers of signals; `asyncio.run` shuts down by itself."""
    with run(program, bot_db) as bot:
        with locked_by_another_program(bot_db):
            bot.say("two")
            bot.read_until("idle after two")  # or it might end one of PTB's tasks
            bot.interrupt()
            bot.read_until("Application is stopping")
            bot.interrupt()
            assert bot.ends() != 0
        assert left(bot_db).exists()
    assert await restart(bot_db) == {1: {"said": ["one", "two"]}}


async def test_what_was_refused_before_is_left_too(bot_db: Path) -> None:
    """Though the second comes before PTB has begun to stop anything but the polling."""
    with run(RUN_POLLING, bot_db, stops="slowly") as bot:
        with locked_by_another_program(bot_db):
            bot.say("two")
            bot.read_until("refused")
            bot.interrupt()
            bot.read_until("confirming")
            bot.interrupt()
            assert bot.ends() == 1
        assert left(bot_db).exists()
    assert await restart(bot_db) == {1: {"said": ["one", "two"]}}


async def test_a_handler_that_never_ends_keeps_nothing_from_being_written(bot_db: Path) -> None:
    """What it has changed so far is written, the file closed, and there is no error."""
    with run(RUN_POLLING, bot_db) as bot:
        bot.say("/stay")
        bot.read_until("handled /stay")
        bot.interrupt()
        bot.read_until("Application is stopping")
        bot.interrupt()
        assert bot.ends() == 0
        assert {path.name for path in bot_db.parent.iterdir()} == {"bot.db", "bot.db-lock"}
    assert stored(bot_db)["chat/1"] == {"said": ["one"], "stays": True}


async def test_a_third_interruption_is_told_what_is_lost(bot_db: Path) -> None:
    """It ends the bot although the store has not answered."""
    with run(RUN_POLLING, bot_db, busy_timeout=600) as bot:
        with locked_by_another_program(bot_db):
            bot.say("two")
            bot.read_until("handled two")
            bot.interrupt()
            bot.read_until("Application is stopping")
            bot.interrupt()
            bot.read_until("one more interruption loses it")
            bot.interrupt()
            bot.ends()
        (told,) = [line for line in bot.output.splitlines() if line.startswith("lost, ")]
        assert "chat/1" in told
    assert await restart(bot_db) == {1: {"said": ["one"]}}


@pytest.fixture
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    """The event loop that PTB finds."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    yield loop
    asyncio.set_event_loop(None)
    loop.close()


def ending(store: WatchedStore, **options: Any) -> Bot:
    """Return a bot that is told something, and whose `post_stop` raises an error, or another."""

    async def end(update: Any, context: Any) -> None:
        await remember(update, context)
        signal.raise_signal(signal.SIGTERM)

    async def fail(app: Any) -> None:
        app.chat_data[2]["last"] = 1
        app.mark_data_for_update_persistence(chat_ids=2)
        raise RuntimeError("of the bot's")

    bot = build(store, text(end), **{"post_stop": fail, **options})
    bot.telegram.updates.put_nowait(text_update("x"))
    return bot


@pytest.mark.parametrize("closes", [True, False])
def test_an_error_of_the_bots_own_between_stop_and_shutdown_loses_nothing(
    store: WatchedStore, loop: asyncio.AbstractEventLoop, *, closes: bool
) -> None:
    """PTB does not shut down then either. The loop is closed, or not, as it was asked for."""
    bot = ending(store)
    with pytest.raises(RuntimeError, match="of the bot's"):
        bot.app.run_polling(0.0, close_loop=closes)
    assert rows(store)["chat/1"] == b'{"said":["x"]}'
    assert rows(store)["chat/2"] == b'{"last":1}'
    assert loop.is_closed() is closes


def test_a_value_that_cannot_be_stored_is_told_by_the_log(
    store: WatchedStore, loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """That of a handler that is not done. Error handlers would not be waited for."""
    caplog.set_level(logging.ERROR, "kvpersist")

    async def stay(update: Any, context: Any) -> None:
        await remember(update, context)
        context.user_data["last"] = lambda: 1
        signal.raise_signal(signal.SIGTERM)
        await until(lambda: not context.application.running)
        signal.raise_signal(signal.SIGTERM)
        await may_end.wait()

    may_end = asyncio.Event()
    bot = build(store, text(stay))
    bot.telegram.updates.put_nowait(text_update("x"))
    with pytest.raises(SystemExit):
        bot.app.run_polling(close_loop=False)
    assert rows(store) == {"bot": b'{"said":["x"]}', "chat/1": b'{"said":["x"]}'}
    assert [message.split(":")[0] for message in caplog.messages] == ['user/1 → ["last"]']
    may_end.set()
    loop.run_until_complete(asyncio.wait(asyncio.all_tasks(loop)))  # PTB's, and its stop


def test_what_the_store_refuses_then_is_raised(
    store: WatchedStore, loop: asyncio.AbstractEventLoop
) -> None:
    """It names the rows."""
    bot = ending(store)
    store.failure = OSError("no")
    with pytest.raises(WriteError) as caught:
        bot.app.run_polling()
    assert {*caught.value.keys} == {"bot", "chat/1", "user/1", "chat/2"}
    assert loop.is_closed()


def test_what_was_shut_down_has_had_its_end(
    store: WatchedStore, loop: asyncio.AbstractEventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    """One interruption, and no word."""
    caplog.set_level(logging.WARNING, "kvpersist")
    ending(store, post_stop=None).app.run_polling()
    assert rows(store)["chat/1"] == b'{"said":["x"]}'
    assert caplog.messages == []
    assert loop.is_closed()


def test_what_does_not_begin_to_run_needs_no_end(
    store: WatchedStore, loop: asyncio.AbstractEventLoop
) -> None:
    """A loop that was not used stays open."""
    bot = build(store, updater=None)
    for run in (bot.app.run_polling, bot.app.run_webhook):
        with pytest.raises(RuntimeError, match="Updater"):
            run()
    assert not loop.is_closed()
    assert store.commits == []
