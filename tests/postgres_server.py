"""PostgreSQL servers for tests, with what only tests do to one."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import asyncpg

sys.path.append(
    str(Path(__file__).parent.parent / "examples")
)  # for those that pytest does not run

from local_postgres import AS_USER, PASSWORD, USER, LocalPostgres, free_port

__all__ = ["AS_USER", "PASSWORD", "USER", "PostgresServer", "free_port"]


class PostgresServer(LocalPostgres):
    """One server.

    Args:
        settings: As `LocalPostgres`.
        standby_of: The server whose standby it is, under the name ``standby``.
    """

    def __init__(self, *settings: str, standby_of: PostgresServer | None = None) -> None:
        self._standby_of = standby_of
        super().__init__(*settings)

    def _initialize(self) -> None:
        if self._standby_of is None:
            super()._initialize()
            return
        source = f"{self._standby_of.url()}?application_name=standby"
        self.run("pg_basebackup", "-D", self._data, "-R", "-c", "fast", "-d", source)

    def kill(self) -> None:
        """Kill it and all its children, as the machine's end would."""
        children = self.pause()
        assert self.process is not None
        self.process.kill()
        _signal(children, signal.SIGKILL)
        self.process.wait()
        # One that still writes would do so into the files of the next server.
        while any(_is_alive(child) for child in children):
            pass
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def pause(self) -> list[int]:
        """Have it and all its children do nothing until `go_on`; return the children."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)  # so that it has no more children
        children = self._children()
        _signal(children, signal.SIGSTOP)
        return children

    def go_on(self) -> None:
        """Let them go on."""
        assert self.process is not None
        _signal([self.process.pid, *self._children()], signal.SIGCONT)

    def _children(self) -> list[int]:
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(child) for child in path.read_text().split()]

    def wait(self) -> None:
        """Wait until it takes connections, while it mends itself after the end of a child."""
        end = time.monotonic() + 60
        while not self._is_ready():
            assert time.monotonic() < end, (self.folder / "log").read_text()

    def promote(self) -> None:
        """Make a standby a primary."""
        assert self.query("SELECT pg_promote(true, 60)") == [(True,)]

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement as another program would, also where an event loop is running."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._query(sql, parameters)).result()

    async def _query(self, sql: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self.url())
        try:
            if not parameters:
                return [tuple(row) for row in await connection.fetch(sql)]
            return [tuple(row) for row in await connection.fetch(sql, *parameters)]
        finally:
            await connection.close()


def _signal(processes: list[int], number: signal.Signals) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}
