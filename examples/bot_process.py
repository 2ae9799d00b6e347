"""A bot in a process of its own, which can be killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from bot_api_server import BotApiServer
    from typing_extensions import Self


class BotProcess:
    """The bot in a process of its own; leaving the `async with` block ends it in any case.

    It is told to talk to `server`, and writes what it has to say into the file `log`. What else its
    environment has is in `more`.
    """

    def __init__(self, command: list[str], server: BotApiServer, log: Path, **more: str) -> None:
        self._command = command
        # NO_PROXY: the server is on this machine, whatever way the Internet is reached.
        local = {"BOT_API": server.base_url, "BOT_TOKEN": server.token, "NO_PROXY": "*"}
        self._environment = {**os.environ, **local, "no_proxy": "*", **more}
        self._log = log
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process is not None:
            await self.kill()

    async def start(self) -> int:
        """Start the bot and return the number of its process."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                env=self._environment,
                start_new_session=True,  # a Ctrl-C in the terminal is not for the bot
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        return self._process.pid

    async def kill(self) -> int:
        """Kill it as `kill -9` does: no handler of it runs any more. Return its exit code."""
        return await self._end(signal.SIGKILL)

    async def stop(self) -> int:
        """Ask it to end, as a service manager does, wait, and return its exit code."""
        return await self._end(signal.SIGTERM)

    async def _end(self, number: signal.Signals) -> int:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            self._process.send_signal(number)
        return await self._process.wait()

    async def ended(self) -> int:
        """Wait until it ends by itself, and return its exit code."""
        assert self._process is not None
        return await self._process.wait()

    def log(self) -> str:
        """Return the end of what the bot has written on its standard output and error."""
        lines = self._log.read_text(errors="replace").splitlines() if self._log.exists() else []
        return "\n".join(lines[-20:])
