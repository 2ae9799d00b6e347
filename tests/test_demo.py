"""The demo: the tour, the bot that it shows, and the Bot API server that they meet on."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeAlias

import aiohttp
import pytest
import pytest_asyncio
from bot_api_server import TOKEN, BotApiServer, Person
from bot_process import BotProcess
from stored import SqliteWatch, pickle_rows, sqlite_rows
from tour import READERS

EXAMPLES = Path(__file__).parent.parent / "examples"
BOT = EXAMPLES / "message_logger.py"
ADA, BO = Person(1, "Ada"), Person(2, "Bo")

Json: TypeAlias = dict[str, Any]
Call: TypeAlias = Callable[..., Awaitable[Json]]


def tour(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "tour.py"), *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def assert_nothing_is_left(output: str) -> None:
    """Check that the bots that the tour started have ended, and that its folder is gone."""
    pids = [int(pid) for pid in re.findall(r"runs as process (\d+)", output)]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    folder = re.search(r"^file: (.+)$", output, re.MULTILINE)
    assert folder
    assert not Path(folder[1]).parent.exists()


def bot_script(folder: Path, first: str) -> str:
    """Write a bot that does something before it does what `message_logger.py` does."""
    script = folder / "bot.py"
    script.write_text(
        f"import pathlib, sys\nsys.path.insert(0, {str(EXAMPLES)!r})\n"
        f"import message_logger\n{first}\nmessage_logger.main()\n"
    )
    return str(script)


class TestTour:
    @pytest.mark.parametrize("persistence", ["kvpersist", "pickle"])
    def test_shows_that_a_killed_bot_goes_on(self, persistence: str) -> None:
        """The tour ends with 0, after a kill, with the conversation, the button and all texts."""
        done = tour("--persistence", persistence)
        assert done.returncode == 0, done.stderr
        facts = [
            "conversation/introduce/[1,1]",
            "kill -9",
            "ok: the process was ended by signal 9",
            "ok: all that was said is in the file",
            "bot: Nice to meet you, Ada from London.",
            "bot: The count is 11.",
            "ok: /show_data has every message",
            "Nothing was lost.",
        ]
        places = [done.stdout.rindex(fact) for fact in facts[1:]]
        assert places == sorted(places)
        assert done.stdout.index(facts[0]) < done.stdout.index("Nice to meet you")
        assert_nothing_is_left(done.stdout)

    def test_fails_when_a_restart_loses_data(self, tmp_path: Path) -> None:
        """The tour ends with 1 and names the loss when the bot starts with an empty file."""
        empty = "for f in pathlib.Path(sys.argv[1]).parent.glob('bot.db*'): f.unlink()"
        done = tour("--bot", bot_script(tmp_path, empty))
        assert done.returncode == 1
        assert "FAILED: LOST: not so: the conversation went on" in done.stderr
        assert_nothing_is_left(done.stdout)

    def test_fails_when_nothing_is_stored(self, tmp_path: Path) -> None:
        """The tour ends with 1 and says so when the bot answers but stores nothing."""
        memory = (
            "import kvpersist\nkeep = message_logger.KVPersistence\n"
            "message_logger.KVPersistence = lambda path: keep(kvpersist.MemoryStore())"
        )
        done = tour("--bot", bot_script(tmp_path, memory), "--patience", "10")
        assert done.returncode == 1
        assert "FAILED: LOST: the bot acknowledged what was not stored" in done.stderr
        assert_nothing_is_left(done.stdout)

    def test_fails_at_once_when_the_bot_does_not_start(self, tmp_path: Path) -> None:
        """A bot that ends by itself ends the tour with 1; its log is shown."""
        done = tour("--bot", bot_script(tmp_path, "sys.exit('no, thank you')"))
        assert done.returncode == 1
        assert "ended with exit code 1" in done.stderr
        assert "no, thank you" in done.stderr
        assert_nothing_is_left(done.stdout)

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
    def test_leaves_nothing_when_it_is_ended(self, number: signal.Signals) -> None:
        """A tour that is interrupted ends its bot and removes its folder."""
        command = [sys.executable, str(EXAMPLES / "tour.py")]
        with subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout
            output = ""
            while "hello" not in output:
                output += process.stdout.readline()
            process.send_signal(number)
            output += process.stdout.read()
        assert process.returncode == 130
        assert_nothing_is_left(output)


class Terminal:
    """A tour whose input and output are a terminal; `read_until` waits for what it prints."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.output = ""
        self._seen = 0

    def read_until(self, text: str) -> None:
        while text not in self.output[self._seen :]:
            self.output += os.read(self.descriptor, 65536).decode().replace("\r\n", "\n")
        self._seen = self.output.index(text, self._seen) + len(text)

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())


@contextmanager
def tour_on_a_terminal() -> Iterator[tuple[Terminal, subprocess.Popen[bytes]]]:
    ours, theirs = pty.openpty()
    command = [sys.executable, str(EXAMPLES / "tour.py")]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)  # so that reading fails when the tour has ended
        try:
            yield Terminal(ours), process
        finally:
            process.terminate()
            os.close(ours)


class TestTerminal:
    def test_a_person_can_talk_and_press(self) -> None:
        """On a terminal the bot answers what is typed; a button is pressed by its text."""
        with tour_on_a_terminal() as (terminal, process):
            terminal.read_until("/quit ends.")
            terminal.read_until("/forget - erase this chat")
            terminal.type("it is me\n/count\n")
            terminal.read_until("Noted: message 1.")
            terminal.read_until("[+1]")
            terminal.type("+10\n")
            terminal.read_until("The count is 10.")
            terminal.type("/quit\n")
            terminal.read_until("Nothing was lost.")
            assert process.wait() == 0
        assert_nothing_is_left(terminal.output)

    @pytest.mark.parametrize("key", ["\x04", "\x03"], ids=["ctrl-d", "ctrl-c"])
    def test_a_key_ends_it(self, key: str) -> None:
        """The end of input and Ctrl-C end the talk as /quit does: with 0, all checked."""
        with tour_on_a_terminal() as (terminal, process):
            terminal.read_until("/forget - erase this chat")
            terminal.type("just a moment\n")
            terminal.read_until("Noted: message 1.")
            terminal.type(key)
            terminal.read_until("Nothing was lost.")
            assert process.wait() == 0
        assert_nothing_is_left(terminal.output)


class TestMessageLogger:
    @pytest.mark.parametrize("persistence", ["kvpersist", "pickle"])
    async def test_keeps_what_is_said_right_after_forget(
        self, persistence: str, server: BotApiServer, tmp_path: Path
    ) -> None:
        """/forget erases what was said before its answer, and nothing that is said after it."""
        data = tmp_path / "bot.db"
        command = [sys.executable, str(BOT), str(data), "--persistence", persistence]
        async with BotProcess(command, server, tmp_path / "log") as bot:
            await bot.start()
            for text, answer in [
                ("a secret", "Noted: message 1."),
                ("/forget", "Forgotten."),
                ("no secret", "Noted: message 1."),
            ]:
                server.say(ADA, text)
                assert (await server.reply(ADA)).text == answer
            assert await bot.stop() == 0, bot.log()
        documents = {row.key: row.value for row in READERS[persistence](data)}
        assert [message["text"] for message in documents["chat/1"]["messages"]] == ["no secret"]
        assert documents["user/1"] == {"messages": 2}

    async def test_what_was_answered_is_stored_when_it_is_killed_at_once(
        self, server: BotApiServer, tmp_path: Path
    ) -> None:
        """An answer is a promise: text and step are in the file in the moment in which it comes."""
        data = tmp_path / "bot.db"
        command = [sys.executable, str(BOT), str(data)]
        async with BotProcess(command, server, tmp_path / "log") as bot:
            for round_, person in enumerate([ADA, BO, Person(3, "Cy"), Person(4, "Di")]):
                await bot.start()
                server.say(person, "/introduce")
                await server.reply(person)
                server.say(person, "my name")
                await server.reply(person)
                await bot.kill()
                rows = {row.key: row.value for row in sqlite_rows(data)}
                number = person.id
                assert rows[f"conversation/introduce/[{number},{number}]"] == "CITY", round_
                assert rows[f"user/{number}"] == {"messages": 1, "name": "my name"}
                assert [said["text"] for said in rows[f"chat/{number}"]["messages"]] == ["my name"]

    async def test_a_long_chat_is_shown_in_parts(
        self, server: BotApiServer, tmp_path: Path
    ) -> None:
        """/show_data sends more than one message when Telegram would refuse one that long."""
        command = [sys.executable, str(BOT), str(tmp_path / "bot.db")]
        async with BotProcess(command, server, tmp_path / "log") as bot:
            await bot.start()
            server.say(ADA, "x" * 3000)
            await server.reply(ADA)
            server.say(ADA, "/show_data")
            shown = [(await server.reply(ADA)).text for _ in range(2)]
        assert "".join(shown).count("x") == 3000

    def test_says_what_is_missing_without_a_token(self) -> None:
        """Without BOT_TOKEN the bot ends with 2 and says how to get on."""
        environment = {k: v for k, v in os.environ.items() if k != "BOT_TOKEN"}
        done = subprocess.run(
            [sys.executable, str(BOT)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert "set BOT_TOKEN" in done.stderr
        assert "make demo" in done.stderr


@pytest_asyncio.fixture
async def server() -> AsyncIterator[BotApiServer]:
    async with BotApiServer() as server:
        yield server


@pytest_asyncio.fixture
async def call(server: BotApiServer) -> AsyncIterator[Call]:
    """Call a method of the Bot API over HTTP, as a bot does."""
    async with aiohttp.ClientSession() as session:

        async def call(method: str, token: str = TOKEN, **parameters: Any) -> Json:
            url = f"{server.base_url}{token}/{method}"
            async with session.post(url, data=parameters) as response:
                body: Json = await response.json()
                assert response.status == body.get("error_code", 200)
                return body

        yield call


async def texts(call: Call, **parameters: Any) -> list[str]:
    updates = (await call("getUpdates", **parameters))["result"]
    return [update["message"]["text"] for update in updates]


class TestBotApiServer:
    async def test_unconfirmed_updates_come_again(self, server: BotApiServer, call: Call) -> None:
        """`getUpdates` without a higher offset delivers the same updates again."""
        server.say(ADA, "one")
        server.say(ADA, "two")
        first = await call("getUpdates")
        assert [update["message"]["text"] for update in first["result"]] == ["one", "two"]
        assert await call("getUpdates") == first
        assert await call("getUpdates", offset=first["result"][0]["update_id"]) == first

    async def test_an_offset_confirms_what_is_before_it(
        self, server: BotApiServer, call: Call
    ) -> None:
        """Updates before the offset never come again, whatever is asked for later."""
        for text in ("one", "two", "three"):
            server.say(ADA, text)
        first, second, _ = (await call("getUpdates"))["result"]
        assert await texts(call, offset=first["update_id"] + 1) == ["two", "three"]
        assert await texts(call) == ["two", "three"]
        assert await texts(call, offset=first["update_id"]) == ["two", "three"]
        assert await texts(call, offset=second["update_id"] + 1) == ["three"]

    async def test_a_negative_offset_keeps_the_last_ones(
        self, server: BotApiServer, call: Call
    ) -> None:
        """`offset=-1` delivers the last update and forgets the others."""
        for text in ("one", "two", "three"):
            server.say(ADA, text)
        assert await texts(call, offset=-1) == ["three"]
        assert await texts(call) == ["three"]

    async def test_limit_holds_back_the_rest(self, server: BotApiServer, call: Call) -> None:
        """No more than `limit` updates come at once, the oldest first."""
        for text in ("one", "two", "three"):
            server.say(ADA, text)
        assert await texts(call, limit=2) == ["one", "two"]

    async def test_a_long_poll_ends_with_the_first_update(
        self, server: BotApiServer, call: Call
    ) -> None:
        """A poll that waits is answered when somebody says something, long before its time-out."""
        up = asyncio.ensure_future(server.next_poll())
        poll = asyncio.ensure_future(texts(call, timeout=3600))
        await up
        server.say(ADA, "at last")
        assert await poll == ["at last"]

    async def test_a_long_poll_ends_with_its_time_out(self, call: Call) -> None:
        """A poll that waits in vain gets an empty list."""
        assert await texts(call, timeout=0.01) == []

    async def test_a_second_poll_ends_the_first(self, server: BotApiServer, call: Call) -> None:
        """Two bots with one token: the first is told that there is another, as Telegram does."""
        up = asyncio.ensure_future(server.next_poll())
        first = asyncio.ensure_future(call("getUpdates", timeout=3600))
        await up
        await call("getUpdates", timeout=0)
        assert (await first)["error_code"] == 409

    async def test_confirmed_waits_for_the_bot(self, server: BotApiServer, call: Call) -> None:
        """`confirmed` returns when no update would come again."""
        server.say(ADA, "one")
        (update,) = (await call("getUpdates"))["result"]
        confirmed = asyncio.ensure_future(server.confirmed())
        await call("getMe")
        assert not confirmed.done()
        await call("getUpdates", offset=update["update_id"] + 1)
        await confirmed

    async def test_a_message_reaches_one_person(self, server: BotApiServer, call: Call) -> None:
        """What the bot sends, edits and takes the buttons from is seen in that chat alone."""
        server.say(ADA, "/start now")
        (update,) = (await call("getUpdates"))["result"]
        (entity,) = update["message"]["entities"]
        assert entity == {"type": "bot_command", "offset": 0, "length": 6}
        markup = '{"inline_keyboard": [[{"text": "A", "callback_data": "a"}]]}'
        sent = await call("sendMessage", chat_id=1, text="press", reply_markup=markup)
        place = {"chat_id": 1, "message_id": sent["result"]["message_id"]}
        reply = await server.reply(ADA)
        assert (reply.text, reply.buttons) == ("press", ("A",))
        await call("editMessageText", **place, text="pressed", reply_markup=markup)
        assert (await server.reply(ADA)).text == "pressed"
        await call("editMessageReplyMarkup", **place)
        reply = await server.reply(ADA)
        assert (reply.text, reply.buttons) == ("pressed", ())

    async def test_a_button_sends_its_data(self, server: BotApiServer, call: Call) -> None:
        """A press delivers the button's data; its query can be answered once."""
        server.say(BO, "hello")
        markup = '{"inline_keyboard": [[{"text": "A", "callback_data": "a"}]]}'
        sent = (await call("sendMessage", chat_id=2, text="press", reply_markup=markup))["result"]
        assert (await server.reply(BO)).message_id == sent["message_id"]
        server.press(BO, sent["message_id"], "A")
        query = (await call("getUpdates", offset=-1))["result"][0]["callback_query"]
        assert (query["data"], query["from"]["id"]) == ("a", 2)
        await call("answerCallbackQuery", callback_query_id=query["id"], text="thanks")
        assert (await server.reply(BO)).text == "thanks"
        again = await call("answerCallbackQuery", callback_query_id=query["id"])
        assert again["error_code"] == 400

    @pytest.mark.parametrize(
        ("code", "method", "parameters"),
        [
            (400, "sendMessage", {"chat_id": 99, "text": "hello"}),
            (400, "sendMessage", {"chat_id": 1, "text": ""}),
            (400, "sendMessage", {"chat_id": 1, "text": "x" * 4097}),
            (400, "editMessageText", {"chat_id": 1, "message_id": 99, "text": "x"}),
            (401, "getMe", {"token": "1:wrong"}),
            (404, "sendPoll", {"chat_id": 1}),
        ],
    )
    async def test_refuses(
        self, server: BotApiServer, call: Call, code: int, method: str, parameters: Json
    ) -> None:
        """What cannot be done is an error in the Bot API's own form."""
        server.say(ADA, "hello")
        answer = await call(method, **parameters)
        assert (answer["ok"], answer["error_code"]) == (False, code)
        assert answer["description"]

    @pytest.mark.parametrize("method", ["setMyCommands", "deleteWebhook"])
    async def test_takes_note_of_nothing(self, call: Call, method: str) -> None:
        """What has no effect on a local bot is accepted."""
        assert await call(method) == {"ok": True, "result": True}

    async def test_takes_json_and_addresses(self, server: BotApiServer) -> None:
        """Parameters may come as JSON or in the address, as the Bot API allows."""
        server.say(ADA, "one")
        server.say(ADA, "two")
        url = f"{server.base_url}{TOKEN}/getUpdates"
        async with aiohttp.ClientSession() as session:
            async with session.post(url, json={"offset": -1}) as response:
                assert len((await response.json())["result"]) == 1
            async with session.get(url, params={"limit": 1}) as response:
                assert len((await response.json())["result"]) == 1


class TestStored:
    def test_a_file_that_is_not_there_is_not_empty(self, tmp_path: Path) -> None:
        """A missing file is an error, for both readers; neither creates it."""
        with pytest.raises(Exception, match="unable to open"):
            sqlite_rows(tmp_path / "bot.db")
        with pytest.raises(FileNotFoundError):
            pickle_rows(tmp_path / "bot.pickle")
        assert not list(tmp_path.iterdir())

    def test_half_a_pickle_is_not_empty(self, tmp_path: Path) -> None:
        """A pickle that is cut off is an error, not less data."""
        (tmp_path / "bot.pickle").write_bytes(b"\x80\x05\x95\x10")
        with pytest.raises(EOFError, match="cut off"):
            pickle_rows(tmp_path / "bot.pickle")

    def test_a_watch_sees_each_commit_once(self, bot_db: Path) -> None:
        """A look without a commit since the last one reads no rows, and no look holds anything."""
        with closing(sqlite3.connect(bot_db, isolation_level=None)) as bot:
            bot.execute("PRAGMA journal_mode=WAL")
            bot.execute("CREATE TABLE documents (key, value, version, updated_at)")
            watch = SqliteWatch(bot_db)
            assert watch.changed_rows() == []
            assert watch.changed_rows() is None
            bot.execute("INSERT INTO documents VALUES ('bot', '{}', 1, 0)")
            assert watch.changed_rows() == [("bot", {}, 1, 0)]
            assert watch.changed_rows() is None
            assert bot.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0] == 0
            watch.close()
