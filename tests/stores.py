"""Stores that tests look into, hold up and break."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from kvpersist import OpenError, ReadError, Store, WriteError
from kvpersist.stores import Row


class WatchedStore:
    """Passes every call to another store and counts them; fails where it is told to.

    Attributes:
        commits: What each successful `apply` wrote.
        tries: How many `apply` there were, successful or not.
        reads: How many `read` there were.
        scans: How many `scan` there were.
        failure: As long as it is set, an OpenError is raised by `open`, a ReadError by `read` and
            `scan`, anything else by `apply`.
        poison: Rows that `apply` refuses, with all their neighbours.
        gate: `apply` waits until it is set.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.commits: list[dict[str, bytes | None]] = []
        self.tries = 0
        self.reads = 0
        self.scans = 0
        self.failure: Exception | None = None
        self.poison: set[str] = set()
        self.gate = asyncio.Event()
        self.gate.set()
        self.entered = asyncio.Event()

    async def open(self) -> None:
        self._fail(OpenError)
        await self.store.open()

    async def close(self) -> None:
        await self.store.close()

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        self.reads += 1
        self._fail(ReadError)
        return await self.store.read(keys)

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        self.scans += 1
        self._fail(ReadError)
        async for page in self.store.scan(prefix):
            yield page

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        self.tries += 1
        self.entered.set()
        await self.gate.wait()
        if self.failure is not None and not isinstance(self.failure, OpenError | ReadError):
            raise self.failure
        if self.poison & changes.keys():
            raise WriteError("a row is too large")
        await self.store.apply(changes)
        self.commits.append(dict(changes))

    def _fail(self, kind: type[OpenError | ReadError]) -> None:
        if isinstance(self.failure, kind):
            raise self.failure


class SlowStore(WatchedStore):
    """Takes some turns of the event loop for each call."""

    async def open(self) -> None:
        await asyncio.sleep(0)
        await super().open()

    async def close(self) -> None:
        await asyncio.sleep(0)
        await super().close()

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        await asyncio.sleep(0)
        return await super().read(keys)

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        async for page in super().scan(prefix):
            await asyncio.sleep(0)
            yield page

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        await asyncio.sleep(0)
        await super().apply(changes)
        await asyncio.sleep(0)


def stored(path: Path) -> dict[str, object]:
    """All rows, as any other program sees them."""
    with closing(sqlite3.connect(path)) as reader:
        rows = reader.execute("SELECT key, value FROM documents")
        return {key: json.loads(text) for key, text in rows}
