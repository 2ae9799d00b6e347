"""The demo of many workers: the tour, the worker that it shows, and the front before them."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import worker
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from bot_api_server import TOKEN, BotApiServer, Json
from bots import text_update
from telegram import Update
from test_demo import Terminal

from kvpersist import ConflictError

EXAMPLES = Path(__file__).parent.parent / "examples"
WORKER = EXAMPLES / "worker.py"


def tour(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(EXAMPLES / "workers_tour.py"), *arguments]
    return subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    )


def assert_nothing_is_left(output: str) -> None:
    """Check that the workers and the server have ended, and that their folders are gone."""
    pids = [int(pid) for pid in re.findall(r"runs as process (\d+)", output)]
    assert pids
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    folder = re.search(r"folder: (.+)$", output, re.MULTILINE)
    assert folder
    assert not Path(folder[1]).exists()


def script(folder: Path, first: str) -> str:
    """Write a worker that does something before it does what `worker.py` does."""
    path = folder / "worker.py"
    path.write_text(
        f"import sys\nsys.path.insert(0, {str(EXAMPLES)!r})\n"
        "import importlib.util\n"
        f"spec = importlib.util.spec_from_file_location('the_worker', {str(WORKER)!r})\n"
        "worker = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(worker)\n"
        f"{first}\nworker.main()\n"
    )
    return str(path)


def test_shows_that_workers_behave_as_one() -> None:
    """The tour ends with 0, after kills, with the conversation, the button and all counts."""
    done = tour()
    assert done.returncode == 0, done.stderr
    facts = [
        "bot: A pizza. Which size?",
        "was ended by signal 9",
        "bot: Where to?",
        "ok: another worker went on",
        "ok: what the killed one had not committed has never been",
        "ok: it went from worker to worker",
        "ok: a button of one worker works in another",
        "ok: each of 40 chats has counted 10 messages: none was lost, none counts twice",
        "updates were handled, each once",
        "Nothing was lost.",
    ]
    places = [done.stdout.index(fact) for fact in facts]
    assert places == sorted(places)
    assert len(re.findall("was ended by signal 9", done.stdout)) == 3
    assert_nothing_is_left(done.stdout)


def test_leaves_nothing_when_it_is_ended() -> None:
    """A tour that is interrupted ends its workers and its server, and removes their folders."""
    command = [sys.executable, str(EXAMPLES / "workers_tour.py")]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        output = ""
        while "Which size?" not in output:
            output += process.stdout.readline()
        process.terminate()
        output += process.stdout.read()
    assert process.returncode == 130
    assert_nothing_is_left(output)


def test_a_person_can_talk_on_a_terminal() -> None:
    """What is typed is answered by the workers in turn; a button is pressed by its text."""
    ours, theirs = pty.openpty()
    command = [sys.executable, str(EXAMPLES / "workers_tour.py")]
    with subprocess.Popen(
        command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    ) as process:
        os.close(theirs)  # so that reading fails when the tour has ended
        terminal = Terminal(ours)
        try:
            terminal.read_until("/quit ends.")
            for typed, answer in (
                ("/order", "Which size?"),
                ("small", "what on it?"),
                ("olives", "Where to?"),
                ("here", "Order 3: a small pizza with olives, to here."),
                ("The same again", "Order 4: a small pizza"),
            ):
                terminal.type(f"{typed}\n")
                terminal.read_until(answer)
            terminal.type("/quit\n")
            terminal.read_until("Nothing was lost.")
            assert process.wait() == 0
        finally:
            process.terminate()
            os.close(ours)
    assert_nothing_is_left(terminal.output)


def test_fails_when_workers_do_not_lock(tmp_path: Path) -> None:
    """The tour ends with 1 when updates of one chat run at the same time, and are overwritten."""
    unlocked = (
        "from kvpersist.stores import postgres_transaction as it\n"
        "it.LOCK = it.LOCK.replace('$1, $2', \"$1, ($2::bigint[])[1:0]\")\n"
        "from kvpersist.stores.postgres_statements import STATE\n"
        "it.WRITE = it.WRITE.replace(STATE.format(row='old') + ' = given.version', 'true')\n"
        "from kvpersist import turns\n"
        "class Open(turns.asyncio.Lock):\n"
        "    async def acquire(self): return True\n"
        "    def locked(self): return False\n"
        "    def release(self): pass\n"
        "turns.asyncio.Lock = Open\n"
    )
    done = tour("--worker", script(tmp_path, unlocked))
    assert done.returncode == 1
    assert "FAILED: LOST: not so: each of 40 chats has counted 10 messages" in done.stderr
    assert_nothing_is_left(done.stdout)


def test_fails_at_once_when_a_worker_does_not_start(tmp_path: Path) -> None:
    """A worker that ends by itself ends the tour with 1; its log is shown."""
    done = tour("--worker", script(tmp_path, "sys.exit('no, thank you')"))
    assert done.returncode == 1
    assert "did not start: it ended with exit code 1" in done.stderr
    assert "no, thank you" in done.stderr


@pytest.mark.parametrize("missing", ["DATABASE_URL", "BOT_TOKEN", "SECRET_TOKEN"])
def test_a_worker_says_what_it_needs(missing: str) -> None:
    """Without one of its settings it does not start, and names it."""
    names = {"DATABASE_URL", "BOT_TOKEN", "SECRET_TOKEN"}
    environment = {name: value for name, value in os.environ.items() if name not in names}
    environment |= dict.fromkeys(names - {missing}, "x")
    done = subprocess.run(
        [sys.executable, str(WORKER)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert f"set {missing}" in done.stderr
    assert "make demo-workers" in done.stderr


class App:
    """As much of a worker as a webhook needs."""

    def __init__(self) -> None:
        self.bot = None
        self.handled: list[str] = []
        self.is_handling = asyncio.Event()
        self.go_on = asyncio.Event()

    async def handle_update(self, update: Update) -> None:
        assert update.message is not None
        assert update.message.text is not None
        self.handled.append(update.message.text)
        if update.message.text == "bad":
            raise ConflictError("on purpose")
        self.is_handling.set()
        await self.go_on.wait()


async def test_the_webhook_answers_when_an_update_is_committed() -> None:
    """Not before; 503 if it was not, and 403 to strangers, whose updates nobody handles."""
    app: Any = App()
    server = web.Application()
    server.router.add_post("/telegram", worker.Webhook(app, "s3cret").answer)
    async with TestClient(TestServer(server)) as client:

        async def post(text: str, secret: str | None = None) -> int:
            headers = {} if secret is None else {"X-Telegram-Bot-Api-Secret-Token": secret}
            async with client.post("/telegram", json=text_update(text), headers=headers) as answer:
                return answer.status

        assert await post("hi") == 403
        assert await post("hi", "wr\u00f6ng") == 403
        assert app.handled == []
        assert await post("bad", "s3cret") == 503
        waiting = asyncio.create_task(post("good", "s3cret"))
        await app.is_handling.wait()
        assert not waiting.done()
        app.go_on.set()
        assert await waiting == 200


async def test_the_webhook_is_set_once() -> None:
    """By a command of its own, with the secret; no database is needed for that."""
    asked: list[Json] = []

    class Server(BotApiServer):
        async def _true(self, parameters: Json) -> bool:
            asked.append(parameters)
            return True

    async with Server() as server:
        environment = os.environ | {
            "BOT_API": server.base_url, "BOT_TOKEN": TOKEN, "SECRET_TOKEN": "s3cret",
            "DATABASE_URL": "postgresql://nobody@127.0.0.1:1/none", "NO_PROXY": "*",
        }  # fmt: skip
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(WORKER), "--set-webhook", "https://bot.example/telegram",
            env=environment,
        )  # fmt: skip
        assert await process.wait() == 0
    (parameters,) = asked
    assert parameters["url"] == "https://bot.example/telegram"
    assert parameters["secret_token"] == "s3cret"  # noqa: S105
