"""A tour of kvpersist that a person can follow: what `make demo` runs.

Two people talk to `message_logger.py` over a Bot API server on this machine. In the middle of a
conversation the bot is killed with SIGKILL, then started again, and must know everything.

Exits 0 if nothing was lost, 1 if anything was, or if the bot did not behave. On a terminal you may
talk to the bot yourself at the end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import signal
import sys
import tempfile
import termios
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from bot_api_server import BotApiServer, Person, Reply
from bot_process import BotProcess
from stored import NOT_YET, Row, pickle_rows, sqlite_rows, table

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

T = TypeVar("T")

ADA, BO, YOU = Person(1, "Ada"), Person(2, "Bo"), Person(3, "You")
READERS = {"kvpersist": sqlite_rows, "pickle": pickle_rows}
WHAT_IS_SEEN = {
    "kvpersist": "Every document is one row (read with sqlite3, while the bot runs)",
    "pickle": "What the pickle has (it has no rows; its parts are named as kvpersist would)",
}
CTRL_C = "\x03"
POLL = 0.05  # seconds between two looks into the file


class TourError(Exception):
    """The tour cannot go on: the bot lost something, died, or kept silent for too long."""


class Tour:
    """What the people do, and what must be stored after it."""

    def __init__(
        self,
        server: BotApiServer,
        bot: BotProcess,
        rows: Callable[[], list[Row]],
        args: argparse.Namespace,
    ) -> None:
        self.server = server
        self.bot = bot
        self.rows = rows
        self.what_is_seen = WHAT_IS_SEEN[args.persistence]
        self.is_late = args.persistence == "pickle"
        self.patience: float = args.patience
        # What was acknowledged: key -> document (messages without their times), None: no such row.
        self.expected: dict[str, Any] = {}
        self.keyboards = 0

    # --- People and the bot -------------------------------------------------------------------

    async def start_bot(self) -> None:
        up = asyncio.ensure_future(self.server.next_poll())
        print(f"  The bot runs as process {await self.bot.start()}.")
        await self.within(up, "the bot did not ask for updates")

    async def say(self, person: Person, text: str) -> Reply:
        self.send(person, text)
        return await self.hear(person)

    def send(self, person: Person, text: str) -> None:
        print(f"  {person.name + ':':<6}{text}")
        self.server.say(person, text)
        if not text.startswith("/"):
            chat = self.expected.setdefault(f"chat/{person.id}", {})
            user = self.expected.setdefault(f"user/{person.id}", {})
            chat["messages"] = [*chat.get("messages", []), text]
            user["messages"] = user.get("messages", 0) + 1

    async def press(self, person: Person, keyboard: Reply, button: str) -> Reply:
        print(f"  {person.name + ':':<6}(presses the button {button})")
        assert keyboard.message_id is not None
        self.server.press(person, keyboard.message_id, button)
        return await self.hear(person)

    async def hear(self, person: Person) -> Reply:
        reply = await self.within(
            self.server.reply(person), f"the bot did not answer {person.name}"
        )
        show(reply)
        return reply

    async def within(self, awaitable: Awaitable[T], otherwise: str) -> T:
        """Return the result, or raise when the bot ends first or patience does."""
        task = asyncio.ensure_future(awaitable)
        ended = asyncio.ensure_future(self.bot.ended())
        try:
            await asyncio.wait(
                {task, ended}, timeout=self.patience, return_when=asyncio.FIRST_COMPLETED
            )
            if task.done():
                return task.result()
            if ended.done():
                raise TourError(f"{otherwise}: it ended with exit code {ended.result()}")
            raise TourError(f"{otherwise} within {self.patience:g} seconds")
        finally:
            task.cancel()
            ended.cancel()

    # --- What is stored -----------------------------------------------------------------------

    def lost(self) -> list[str]:
        """Compare the file with what was acknowledged, and return every difference."""
        try:
            stored = {row.key: _without_times(row.value) for row in self.rows()}
        except NOT_YET as error:
            return [f"the file cannot be read: {error}"]
        if self.is_late:  # PTB brings a chat that was dropped back, as an empty one
            stored = {key: document for key, document in stored.items() if document != {}}
        keyboards = sum(key.startswith("callback/") for key in stored)
        if keyboards < self.keyboards:
            return [f"{keyboards} keyboards stored, expected {self.keyboards}"]
        return [
            f"{key}: stored {stored.get(key)!r}, expected {document!r}"
            for key, document in self.expected.items()
            if stored.get(key) != document
        ]

    def nothing_lost(self) -> tuple[bool, str]:
        lost = self.lost()
        return not lost, "\n".join(lost)

    async def look(self) -> None:
        """Look into the file: what the bot has answered to must be there.

        kvpersist has it there at once. The pickle is written a second later: then this waits.
        """
        await self.confirmed()
        while self.is_late and self.lost():  # noqa: ASYNC110  another process writes
            await asyncio.sleep(POLL)
        if lost := self.lost():
            raise TourError("\n  ".join(["LOST: the bot acknowledged what was not stored:", *lost]))

    async def confirmed(self) -> None:
        """Wait until the server knows that the updates have arrived.

        Else it would rightly deliver them to the next bot again.
        """
        await self.within(self.server.confirmed(), "the bot did not confirm its updates")

    def show_rows(self) -> None:
        print("\n" + table(self.rows()) + "\n")


def show(reply: Reply) -> None:
    how = " (pop-up)" if reply.method == "answerCallbackQuery" else ""
    text = reply.text.replace("\n", "\n             ")
    buttons = "".join(f"  [{button}]" for button in reply.buttons)
    print(f"        bot: {text}{buttons}{how}")


def title(text: str) -> None:
    print(f"\n=== {text}")


def check(fact: str, holds: bool, otherwise: str = "") -> None:
    if not holds:
        raise TourError(f"LOST: not so: {fact}\n{otherwise}")
    print(f"  ok: {fact}")


def _without_times(document: Any) -> Any:
    if isinstance(document, dict) and isinstance(document.get("messages"), list):
        return {**document, "messages": [message["text"] for message in document["messages"]]}
    return document


# --- The tour itself ----------------------------------------------------------------------------


async def before_the_kill(tour: Tour) -> Reply:
    title("1. A bot starts, and people talk to it")
    await tour.start_bot()
    await tour.say(ADA, "hello, bot")
    await tour.say(ADA, "the milk is in the car")
    await tour.say(BO, "good morning")
    keyboard = await tour.say(BO, "/count")
    tour.keyboards = 1
    await tour.press(BO, keyboard, "+1")
    tour.expected["chat/2"]["count"] = 1
    await tour.look()

    title(f"2. {tour.what_is_seen}")
    tour.show_rows()

    title("3. In the middle of a conversation ...")
    await tour.say(ADA, "/introduce")
    await tour.say(ADA, "Ada")
    tour.expected["user/1"]["name"] = "Ada"
    tour.expected["conversation/introduce/[1,1]"] = "CITY"
    await (tour.look() if tour.is_late else tour.confirmed())
    return keyboard


async def kill(tour: Tour) -> None:
    code = await tour.bot.kill()
    print("\n  " + "#" * 60)
    print("  ####  kill -9, right after its answer: it could not save anything more")
    print("  " + "#" * 60)
    check("the process was ended by signal 9", code == -signal.SIGKILL, f"exit code {code}")
    print("\n  No bot is running. The file has:")
    tour.show_rows()
    check("all that was said is in the file", *tour.nothing_lost())
    tour.send(ADA, "London")
    print("        (nobody answers; Telegram keeps her message)")


async def after_the_kill(tour: Tour, keyboard: Reply) -> None:
    title("4. The bot starts again, and goes on where it was")
    await tour.start_bot()
    reply = await tour.hear(ADA)
    check("the conversation went on", reply.text == "Nice to meet you, Ada from London.")
    tour.expected["user/1"]["city"] = "London"
    tour.expected["conversation/introduce/[1,1]"] = None
    reply = await tour.press(BO, keyboard, "+10")
    check("the button from before works, and it counted on", reply.text == "The count is 11.")
    tour.expected["chat/2"]["count"] = 11
    await tour.say(ADA, "do you remember all of it?")
    reply = await tour.say(ADA, "/show_data")
    said = tour.expected["chat/1"]["messages"]
    shown = [line.partition("  ")[2] for line in reply.text.splitlines()]
    check("/show_data has every message", shown[1 : len(said) + 1] == said)
    await tour.look()
    tour.expected["chat/2"] = None
    await tour.say(BO, "/forget")
    await tour.look()
    print("  ok: what Bo wanted forgotten is gone from the file")


async def at_the_end(tour: Tour) -> None:
    title("5. The bot is asked to stop")
    check("it ended in peace", await tour.bot.stop() == 0, tour.bot.log())
    tour.show_rows()
    check("the file has all that was said, but not what was to be forgotten", *tour.nothing_lost())


async def talk(tour: Tour) -> None:
    """Let the person at the terminal talk to the bot, until /quit, the end of input or Ctrl-C."""
    title("Now you. Type something; a button is pressed by typing its text; /quit ends.")
    await tour.say(YOU, "/start")
    ended = asyncio.ensure_future(tour.bot.ended())
    try:
        await converse(tour.server, show, ended)
    finally:
        ended.cancel()


async def converse(
    server: BotApiServer, show: Callable[[Reply], None], *ended: asyncio.Future[int]
) -> None:
    """Send what is typed to the bot, and show what it answers, until /quit or a bot has ended."""
    lines: asyncio.Queue[str | None] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGINT, lines.put_nowait, None)
    keyboards: dict[str, Reply] = {}
    listener = asyncio.ensure_future(_listen(server, show, keyboards))
    for end in ended:
        end.add_done_callback(lambda _: lines.put_nowait(None))
    with _ctrl_c_as_text(sys.stdin.fileno()):
        loop.add_reader(sys.stdin.fileno(), _read_lines, sys.stdin.fileno(), lines)
        try:
            while (line := await lines.get()) not in (None, "/quit"):
                if line in keyboards:
                    server.press(YOU, keyboards[line].message_id or 0, line)
                elif line:
                    server.say(YOU, line)
        finally:
            loop.remove_reader(sys.stdin.fileno())
            listener.cancel()


def _read_lines(terminal: int, lines: asyncio.Queue[str | None]) -> None:
    # A terminal hands over whole lines, also several at once; nothing at all is its end.
    text = os.read(terminal, 65536).decode(errors="replace")
    before, ctrl_c, _ = text.partition(CTRL_C)
    for line in before.splitlines():
        lines.put_nowait(line.strip())
    if ctrl_c or not text:
        lines.put_nowait(None)


@contextlib.contextmanager
def _ctrl_c_as_text(terminal: int) -> Iterator[None]:
    """Read Ctrl-C as a line of its own, not as a signal.

    A signal would go to the bot and to `make` as well: to the one twice, and the other would fail.
    """
    before = termios.tcgetattr(terminal)
    changed = termios.tcgetattr(terminal)
    changed[6][termios.VINTR] = os.fpathconf(terminal, "PC_VDISABLE").to_bytes(1, "big")
    changed[6][termios.VEOL] = CTRL_C.encode()
    termios.tcsetattr(terminal, termios.TCSADRAIN, changed)
    try:
        yield
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


async def _listen(
    server: BotApiServer, show: Callable[[Reply], None], keyboards: dict[str, Reply]
) -> None:
    while True:
        reply = await server.reply(YOU)
        keyboards.update(dict.fromkeys(reply.buttons, reply))
        show(reply)


async def play(args: argparse.Namespace, folder: Path) -> None:
    data = folder / ("bot.db" if args.persistence == "kvpersist" else "bot.pickle")
    print(f"A bot keeps all it knows in one file, and survives kill -9\n\nfile: {data}")
    print("(look into it with any tool while this runs; it is removed at the end)")
    command = [sys.executable, str(args.bot), str(data), "--persistence", args.persistence]
    async with BotApiServer() as server, BotProcess(command, server, folder / "bot.log") as bot:
        tour = Tour(server, bot, lambda: READERS[args.persistence](data), args)
        try:
            keyboard = await before_the_kill(tour)
            await kill(tour)
            await after_the_kill(tour, keyboard)
            if sys.stdin.isatty():
                await talk(tour)
            await at_the_end(tour)
        except TourError as error:
            log = bot.log()
            raise TourError(f"{error}\n\nThe bot's log:\n{log}" if log else str(error)) from None


async def run(play: Callable[[Path], Awaitable[None]]) -> None:
    # However the tour is ended, it ends the bot and removes its folder.
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)
    with tempfile.TemporaryDirectory(prefix="kvpersist-demo-") as folder:
        await play(Path(folder))


def conduct(play: Callable[[Path], Awaitable[None]]) -> int:
    """Play a tour in a folder that is removed at the end, and return the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):  # as it happens, also into a pipe, in any locale
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    try:
        asyncio.run(run(play))
    except TourError as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    except asyncio.CancelledError:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    print("\nNothing was lost.")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description="A bot is killed, and forgets nothing.")
    parser.add_argument("--persistence", choices=list(READERS), default="kvpersist")
    parser.add_argument(
        "--bot",
        type=Path,
        default=Path(__file__).with_name("message_logger.py"),
        help="another script to play with, that takes the same arguments",
    )
    parser.add_argument(
        "--patience", type=float, default=120, help="seconds to wait for anything (default: 120)"
    )
    args = parser.parse_args()
    return conduct(partial(play, args))


if __name__ == "__main__":
    sys.exit(main())
