"""A chat with a bot, and beside it the rows that the bot keeps: what `make demo-web` runs.

The bot is `message_logger.py`, in a process of its own, and the page in `web/` can kill it. The
page shows what it is told by `Demo`; it says what to do by `say`, `press`, `kill` and `start`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import secrets
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot_api_server import BOT, MAX_TEXT, BotApiServer, Json, Person
from bot_process import BotProcess
from local_page import LocalPage
from stored import NOT_YET, Row, SqliteWatch

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from typing_extensions import Self

HERE = Path(__file__).parent
YOU = Person(1, "You")
POLL = 0.05  # seconds between two looks into the file
FROM_YOU = ("said", "pressed")


class Demo:
    """The chat, the bot and the rows, and every page that is told of them.

    A page gets all there is when it comes, and then what changes: an *entry* of the chat (a second
    one of the same id takes the place of the first), *rows* that one look has found changed, or
    how the *bot* is.
    """

    def __init__(self, server: BotApiServer, bot: BotProcess, data: Path) -> None:
        self._server = server
        self._process = bot
        self._data = data
        self._watch: SqliteWatch | None = None
        self._run = secrets.token_hex(8)  # so that a page knows whether it is still the same demo
        self._bot: Json = {"state": "dead"}
        self._entries: list[Json] = []
        self._rows: dict[str, Row] = {}
        self._pages: set[asyncio.Queue[Json | None]] = set()
        self._said = asyncio.Event()
        self._life: asyncio.Task[None] | None = None
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(work) for work in (self._listen(), self._deliver(), self._look_on())
        ]
        return self

    async def __aexit__(self, *_: object) -> None:
        tasks = [*self._tasks, *([self._life] if self._life else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._watch is not None:
            self._watch.close()

    async def until(self, stop: asyncio.Event) -> None:
        """Return when `stop` is set, or raise what has made an end of the demo before."""
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait({stopped, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for page in self._pages:
            page.put_nowait(None)
        for task in self._tasks:
            if task.done():
                task.result()

    # --- What a page is told ------------------------------------------------------------------

    async def events(self) -> AsyncGenerator[Json, None]:
        """Yield all there is, and then each change, until the demo ends."""
        changes: asyncio.Queue[Json | None] = asyncio.Queue()
        self._pages.add(changes)
        try:
            rows = [row._asdict() for row in self._rows.values()]
            now = {"entries": list(self._entries), "rows": rows, "bot": self._bot}
            yield {"what": "all", "run": self._run, **now}
            while (change := await changes.get()) is not None:
                yield change
        finally:
            self._pages.discard(changes)

    def _tell(self, what: str, **change: Any) -> None:
        for page in self._pages:
            page.put_nowait({"what": what, **change})

    def _add(self, kind: str, text: str, **more: Any) -> None:
        entry = {"id": len(self._entries), "kind": kind, "text": text, **more}
        self._entries.append(entry)
        self._tell("entry", entry=entry)

    # --- What a page can ask for ------------------------------------------------------------------

    async def say(self, asked: Json) -> None:
        text = asked.get("text")
        text = text.strip() if isinstance(text, str) else ""
        if not text or len(text) > MAX_TEXT:
            raise ValueError(f"a text of 1 to {MAX_TEXT} characters is wanted")
        text.encode()  # half of a pair of surrogates is no text: a ValueError
        self._server.say(YOU, text)
        self._add("said", text, taken=False)
        self._said.set()

    async def press(self, asked: Json) -> None:
        message_id, button = asked.get("message_id"), asked.get("button")
        if not isinstance(message_id, int) or not isinstance(button, str):
            raise ValueError("a message_id and the text of a button are wanted")  # noqa: TRY004
        self._server.press(YOU, message_id, button)
        self._add("pressed", button, taken=False)
        self._said.set()

    async def start(self, _: Json) -> None:
        if self._bot["state"] != "dead":
            raise RuntimeError("The bot runs.")
        self._set_bot("starting")
        self._life = asyncio.create_task(self._live())

    async def kill(self, _: Json) -> None:
        """Return when it is dead, and the page has been told what it has left."""
        if self._life is None or self._life.done() or "pid" not in self._bot:
            raise RuntimeError("The bot does not run.")
        await self._process.kill()
        await asyncio.wait({self._life})  # which goes on if the page that asked is closed

    # --- The life of the bot ------------------------------------------------------------------

    async def _live(self) -> None:
        """Start the bot, and tell the page when it is up, and when it has ended, by whatever."""
        began = time.monotonic()
        up = asyncio.ensure_future(self._server.next_poll())
        try:
            pid = await self._process.start()
            self._set_bot("starting", pid=pid)
            ended = asyncio.ensure_future(self._process.ended())
            await asyncio.wait({up, ended}, return_when=asyncio.FIRST_COMPLETED)
            if up.done():
                self._is_up(pid, time.monotonic() - began)
            code = await ended
        finally:
            up.cancel()
        self._look()
        self._set_bot("dead")
        self._tell_of_death(code)

    def _is_up(self, pid: int, seconds: float) -> None:
        if self._watch is None:
            self._watch = SqliteWatch(self._data)
            again = ""
        else:
            again = " again, with the same file"
        self._look()
        self._set_bot("running", pid=pid)
        text = f"The bot runs{again}: process {pid}, up in {seconds:.1f} seconds."
        self._add("note", text, mood="started")

    def _tell_of_death(self, code: int) -> None:
        if code != -signal.SIGKILL:
            text = f"The bot has ended by itself, with exit code {code}.\n{self._process.log()}"
            self._add("note", text.strip(), mood="ended")
            return
        text = "Killed with SIGKILL. No line of the bot has run since"
        if self._watch is not None:
            count = len(self._rows)
            text += f"; its file has {count} row{'' if count == 1 else 's'}"
        text += "."
        last = next((e for e in reversed(self._entries) if e["kind"] != "note"), None)
        if last and last["kind"] in FROM_YOU and last["taken"]:
            text += (
                " It had taken your last message, and not answered yet: PTB tells Telegram that it"
                " has an update before it handles it. What it answers to is in the file."
            )
        self._add("note", text, mood="killed")

    def _set_bot(self, state: str, **more: Any) -> None:
        self._bot = {"state": state, **more}
        self._tell("bot", bot=self._bot)

    # --- What goes on meanwhile ---------------------------------------------------------------

    async def _listen(self) -> None:
        while True:
            reply = await self._server.reply(YOU)
            # What was committed before the bot answered is seen before the answer is.
            self._look()
            if reply.method == "answerCallbackQuery":
                self._add("pop-up", reply.text)
            else:
                more = {"message_id": reply.message_id, "buttons": reply.buttons}
                self._add("answer", reply.text, **more)

    async def _deliver(self) -> None:
        """Mark what the bot has taken from the server: no other bot will get it."""
        while True:
            await self._said.wait()
            self._said.clear()
            await self._server.confirmed()
            for entry in self._entries:
                if entry["kind"] in FROM_YOU and not entry["taken"]:
                    entry["taken"] = True
                    self._tell("entry", entry=entry)

    async def _look_on(self) -> None:
        while True:
            self._look()
            await asyncio.sleep(POLL)

    def _look(self) -> None:
        """Look into the file: some microseconds if nothing has changed, so not in a thread."""
        if self._watch is None:  # no bot has been up yet
            return
        with contextlib.suppress(*NOT_YET):
            if (found := self._watch.changed_rows()) is None:
                return
            before, self._rows = self._rows, {row.key: row for row in found}
            changed: list[Json] = [row._asdict() for row in found if before.get(row.key) != row]
            changed += [{"key": key, "gone": True} for key in before if key not in self._rows]
            if changed:
                self._tell("rows", changed=changed)


def _stop_event() -> asyncio.Event:
    """Return what the first signal sets; those after it are held back, up to the very end.

    The loop's own handlers would be taken away with the loop, while Python is still ending.
    """
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(*_: object) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
        if not loop.is_closed():
            loop.call_soon_threadsafe(stop.set)

    for number in numbers:
        signal.signal(number, end)
    return stop


async def run(args: argparse.Namespace) -> None:
    stop = _stop_event()
    with tempfile.TemporaryDirectory(prefix="kvpersist-demo-") as name:
        folder = Path(name)
        data = folder / "bot.db"
        command = [sys.executable, str(args.bot), str(data)]
        token = f"{BOT['id']}:{secrets.token_urlsafe(24)}"  # what nobody else knows
        async with (
            BotApiServer(token) as server,
            BotProcess(command, server, folder / "bot.log") as bot,
            Demo(server, bot, data) as demo,
        ):
            commands = {demo.say, demo.press, demo.start, demo.kill}
            named = {command.__name__: command for command in commands}
            async with LocalPage(HERE / "web", args.port, demo.events, named) as page:
                print("A bot that forgets nothing, also when it is killed. Open this page:\n")
                print(f"    {page.url}\n")
                print(f"file: {data}\n(look into it with any tool; it is removed at the end)\n")
                print("Ctrl-C ends it.", flush=True)
                await demo.start({})
                await demo.until(stop)


def main() -> int:
    parser = argparse.ArgumentParser(description="A bot to talk to and to kill, and its rows.")
    parser.add_argument("--port", type=int, default=0, help="of the page (default: a free one)")
    parser.add_argument(
        "--bot",
        type=Path,
        default=HERE / "message_logger.py",
        help="another script to play with, that takes the same arguments",
    )
    args = parser.parse_args()
    try:
        asyncio.run(run(args))
    except OSError as error:
        print(f"The page cannot be served: {error}", file=sys.stderr)
        return 1
    print("\nEnded. No process, port or file is left.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
