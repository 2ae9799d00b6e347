"""The command ``kvpersist`` in the process of a test, and stores for it to look at."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import pytest
from click.testing import CliRunner, Result
from postgres_server import PostgresServer
from storages import Columns, PostgresStorage, SqliteStorage

from kvpersist.cli.command import kvpersist
from kvpersist.stores import Store

Rows: TypeAlias = Mapping[str, str | bytes]


def run(*arguments: object, code: int = 0, given: str | bytes | None = None) -> Result:
    """Run the command; it must end with this exit code."""
    result = CliRunner().invoke(kvpersist, [str(each) for each in arguments], input=given)
    unexpected = result.exception if not isinstance(result.exception, SystemExit) else None
    if unexpected is not None:
        raise unexpected
    assert result.exit_code == code, result.output
    return result


def said(*arguments: object, code: int = 0, given: str | bytes | None = None) -> str:
    """Run the command, and return what it printed, wherever."""
    return run(*arguments, code=code, given=given).output


def documents(*arguments: object, code: int = 0) -> list[Any]:
    """Run the command with ``--json``, and return its lines."""
    lines = run(*arguments, "--json", code=code).stdout.splitlines()
    return [json.loads(line) for line in lines]


class Place(Protocol):
    """Where a store is."""

    @property
    def name(self) -> str:
        """What the command calls it."""

    def all_columns(self) -> Columns:
        """Return each row with all its columns."""

    def write(self, key: str, text: str | None) -> None:
        """Do to a row what another program would; None deletes it."""

    def new(self) -> Store:
        """Return a bot's store, closed."""


class File(SqliteStorage):
    """A SQLite file."""

    @property
    def name(self) -> str:
        """Return its path."""
        return str(self.path)

    def new(self) -> Store:
        """Return a bot's store, closed."""
        return self.persistence().store


class Schema(PostgresStorage):
    """A PostgreSQL schema."""

    @property
    def name(self) -> str:
        """Return its URL."""
        return f"{self.server.url()}?schema={self.schema}"

    def new(self) -> Store:
        """Return a bot's store, closed."""
        return self.store()


def fill(place: Place, rows: Rows) -> None:
    """Write rows as a bot would."""
    asyncio.run(filled(place, rows))


async def filled(place: Place, rows: Rows) -> None:
    """Write rows as a bot would."""
    texts = {key: text if isinstance(text, bytes) else text.encode() for key, text in rows.items()}
    store = place.new()
    await store.open()
    try:
        await store.apply(texts)
    finally:
        await store.close()


def file_of(folder: Path, rows: Rows) -> File:
    """Return a SQLite file with rows."""
    place = File(folder)
    fill(place, rows)
    return place


def schema_of(server: PostgresServer, rows: Rows) -> Schema:
    """Return a PostgreSQL schema with rows."""
    place = Schema(server)
    fill(place, rows)
    return place


Make: TypeAlias = Callable[[Rows], Place]


def make(request: pytest.FixtureRequest, folder: Path, engine: str) -> Make:
    """Return what makes a place with rows, in an engine."""
    if engine == "sqlite":
        return lambda rows: file_of(folder, rows)
    server: PostgresServer = request.getfixturevalue("postgres")
    return lambda rows: schema_of(server, rows)
