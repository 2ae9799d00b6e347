"""The pages of the documentation as programs: what becomes of each kind of block.

======== =========================================================================================
python   runs, in one namespace a page; `await` may stand at the top; a bot that calls
         `run_polling` is kept for the next talk
text     a talk with that bot: its answers are compared
console  each command runs in a shell; what follows it is compared, with "…" for what is another
         each time; one that shows an ``Error:`` ends with exit code 1
sh       runs
sql      runs on ``bot.db``; on the pages of PostgreSQL in ``psql``
ini …    is for another program, and does not run
======== =========================================================================================

What a page needs and a reader does not is in a comment: ``<!-- invisible-code-block: python``. What
does not run says why: ``<!-- skip: next "the reason" -->``. A command that names the server of the
pages, ``bot@db.example``, gets the server of the tests.
"""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, Final
from unittest import SkipTest

import pytest
from bots import Telegram, text_update
from local_postgres import binaries
from postgres_server import PASSWORD, PostgresServer
from sybil import Document, Example, Sybil
from sybil.parsers.myst import CodeBlockParser, SkipParser
from telegram import Update
from telegram.ext import Application
from telegram.request import HTTPXRequest

ROOT: Final = Path(__file__).parent.parent
PAGES: Final = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LANGUAGES: Final = ("python", "text", "console", "sh", "sql", "ini", "nginx", "yaml")
USER: Final = "you: "
ERROR: Final = "Error: "
SERVER: Final = "db.example"
TOKEN: Final = "123:abc"  # noqa: S105  of no bot


class Page:
    """One page, run from top to bottom.

    Attributes:
        skipped: The reason of each block that says that it does not run.
    """

    def __init__(self, path: Path, folder: Path, postgres: PostgresServer | None = None) -> None:
        self.skipped: list[str] = []
        self.path = path
        self.folder = folder
        self.postgres = postgres
        self.telegram = Telegram()
        self._script = ""
        self._bot: Any = None
        self.document: Document = Sybil(
            [
                SkipParser(),
                *(
                    CodeBlockParser(language, getattr(self, f"_{language}"))
                    for language in LANGUAGES
                ),
            ],
        ).parse(path)
        self.document.namespace.update(TOKEN=TOKEN, EXAMPLES=str(ROOT / "examples"))
        if postgres is not None:
            self.document.namespace["URL"] = postgres.url("bot")

    def examples(self) -> list[Example]:
        """Return its blocks, without what skips them."""
        return [example for example in self.document if isinstance(example.parsed, str)]

    def run(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run all blocks; raise for one that fails, or whose output is another."""
        monkeypatch.setattr(HTTPXRequest, "do_request", self._do_request)
        monkeypatch.setattr(Application, "run_polling", self._keep())
        monkeypatch.syspath_prepend(self.folder)
        for name, value in self._environment().items():
            monkeypatch.setenv(name, value)
        before = set(sys.modules)
        for example in self.document:
            try:
                example.evaluate()
            except SkipTest as reason:  # noqa: PERF203  a handful of blocks
                self.skipped.append(str(reason))
        for name in set(sys.modules) - before:
            if self.folder in Path(getattr(sys.modules[name], "__file__", None) or "/").parents:
                del sys.modules[name]  # another page's may have that name

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{binaries()}:{os.environ['PATH']}"
        always = {"PATH": path, "COLUMNS": "80"}
        if self.postgres is None:
            return always
        return {
            **always,
            "PGHOST": "127.0.0.1",
            "PGPORT": str(self.postgres.port),
            "PGUSER": "postgres",
            "PGPASSWORD": PASSWORD,
        }

    async def _do_request(self, *given: Any, **named: Any) -> tuple[int, bytes]:
        return await self.telegram.do_request(*given, **named)

    def _keep(self) -> Callable[..., None]:
        def run_polling(bot: Any) -> None:
            self._bot = bot

        return run_polling

    def _python(self, example: Example) -> None:
        self._bot = None
        # Behind as many lines as there are before, so that a traceback names the line of the page.
        source = "\n" * (example.line + example.parsed.line_offset) + str(example.parsed)
        code = compile(
            source, example.path, "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True
        )
        if inspect.iscoroutine(found := eval(code, example.namespace)):  # noqa: S307
            asyncio.run(found)
        if self._bot is not None:
            self._script = str(example.parsed)

    def _text(self, example: Example) -> None:
        """Talk with the bot, which was started anew."""
        assert self._script, "there is no bot to talk with"
        exec(self._script, example.namespace)  # noqa: S102
        heard = asyncio.run(self._talk(self._bot, example.parsed.splitlines()))
        assert heard == example.parsed.splitlines(), "\n".join(heard)

    async def _talk(self, app: Any, lines: list[str]) -> list[str]:
        heard: list[str] = []
        async with app:
            await app.start()
            for line in lines:
                if not line.startswith(USER):
                    continue
                heard.append(line)
                before = len(self.telegram.sent)
                update = Update.de_json(text_update(line.removeprefix(USER)), app.bot)
                await app.process_update(update)
                heard += [f"bot: {sent['text']}" for sent in self.telegram.sent[before:]]
            await app.stop()
        return heard

    def _console(self, example: Example) -> None:
        for command, shown in commands(example.parsed):
            fails = any(line.startswith(ERROR) for line in shown)
            done = self._shell(command, 1 if fails else 0)
            assert alike(done.splitlines(), shown), f"{command}\n{done}"

    def _sh(self, example: Example) -> None:
        self._shell(example.parsed)

    def _sql(self, example: Example) -> None:
        if self.postgres is not None:
            self._shell(f"psql -v ON_ERROR_STOP=1 bot <<'END'\n{example.parsed}\nEND")
        else:
            with closing(sqlite3.connect(self.folder / "bot.db")) as connection, connection:
                connection.executescript(example.parsed)

    def _ini(self, _: Example) -> None:
        raise AssertionError("it does not run: say why, with a comment that skips it")

    _nginx = _yaml = _ini

    def _shell(self, command: str, code: int = 0) -> str:
        server = SERVER if self.postgres is None else f"127.0.0.1:{self.postgres.port}"
        command = command.replace(f"bot@{SERVER}", f"postgres@{server}")
        done = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", command],  # noqa: S607
            cwd=self.folder,
            check=False,
            timeout=60,
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}"
        return done.stdout.replace(server, SERVER)


def alike(lines: list[str], shown: list[str]) -> bool:
    """Tell whether a command has printed what the page shows."""
    patterns = [".*".join(map(re.escape, line.split("…"))) for line in shown]
    return len(lines) == len(patterns) and all(
        re.fullmatch(pattern, line.rstrip()) for pattern, line in zip(patterns, lines, strict=True)
    )


def commands(block: str) -> Iterator[tuple[str, list[str]]]:
    """Yield each command of a block with the lines that follow it."""
    command = ""
    shown: list[str] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            if command:
                yield command, shown
            command, shown = line.removeprefix("$ "), []
        elif line.startswith("> "):
            command = f"{command}\n{line.removeprefix(chr(62))}"
        else:
            assert command, "the block does not begin with a command"
            shown.append(line.rstrip())
    yield command, shown
