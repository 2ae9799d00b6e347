"""Look from outside at what a bot has stored, while it runs or after it was killed.

Nothing here imports kvpersist or PTB: `sqlite3` of the standard library is enough for the one,
`pickle` for the other.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import shutil
import sqlite3
import textwrap
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

# What a reader may meet while the bot is just creating or rewriting its file.
NOT_YET = (FileNotFoundError, EOFError, sqlite3.OperationalError)

KEY_WIDTH = 28


class Row(NamedTuple):
    """One document; a pickle knows no versions and no times."""

    key: str
    value: Any
    version: int | None = None
    updated_at: int | None = None


def sqlite_rows(path: Path) -> list[Row]:
    """Return the rows of a kvpersist file, with the JSON of each decoded.

    Read-only: it changes nothing in the file, and needs nothing from the bot.
    """
    with contextlib.closing(_read_only(path)) as database:
        return _rows(database)


class SqliteWatch:
    """Looks at a kvpersist file again and again, as cheaply as SQLite can; `close` it at the end.

    A look asks whether anybody has committed since the last one, which SQLite knows without
    reading a page (https://sqlite.org/pragma.html#pragma_data_version), and reads only if so.
    Between two looks nothing is held: the bot can write, and empty its log, as if nobody watched.
    """

    def __init__(self, path: Path) -> None:
        self._database = _read_only(path)
        self._data_version: int | None = None

    def changed_rows(self) -> list[Row] | None:
        """Return all rows, if there was a commit since the last call, or else None."""
        (data_version,) = self._database.execute("PRAGMA data_version").fetchone()
        if data_version == self._data_version:
            return None
        rows = _rows(self._database)
        # As it was before they were read: a commit in between is seen once more, and not missed.
        self._data_version = data_version
        return rows

    def close(self) -> None:
        self._database.close()


def _read_only(path: Path) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)


def _rows(database: sqlite3.Connection) -> list[Row]:
    query = "SELECT key, value, version, updated_at FROM documents ORDER BY key"
    return [Row(key, json.loads(value), *rest) for key, value, *rest in database.execute(query)]


def pickle_rows(path: Path) -> list[Row]:
    """Return what a file of PicklePersistence holds, under the keys that kvpersist would use.

    Loading a pickle runs code from it: do so only with a file of your own.
    """
    for _ in range(100):
        # PicklePersistence rewrites its file in place: for a moment there is a half of it.
        with contextlib.suppress(EOFError, pickle.UnpicklingError), path.open("rb") as file:
            return sorted(_documents_in_pickle(pickle.load(file)))  # noqa: S301
        time.sleep(0.01)
    raise EOFError(f"{path} is cut off")


def _documents_in_pickle(data: dict[str, Any]) -> Iterator[Row]:
    for scope in ("chat", "user"):
        for number, document in data[f"{scope}_data"].items():
            yield Row(f"{scope}/{number}", document)
    yield Row("bot", data["bot_data"])
    for name, conversations in data["conversations"].items():
        for key, state in conversations.items():
            if state is not None:
                yield Row(f"conversation/{name}/{json.dumps(key, separators=(',', ':'))}", state)
    for keyboard, _, buttons in (data["callback_data"] or ([], {}))[0]:
        yield Row(f"callback/{keyboard}", buttons)


def table(rows: Iterable[Row]) -> str:
    """Return the rows as a table that fits the terminal; only very long values are cut."""
    width = max(shutil.get_terminal_size((100, 24)).columns - 49, 40)
    lines = [f"  {'key':<28} {'version':>7}  {'updated':<8}  value"]
    for row in rows:
        version = "-" if row.version is None else row.version
        at = "-" if row.updated_at is None else _clock(row.updated_at)
        value = json.dumps(row.value, ensure_ascii=False)
        first, *more = textwrap.wrap(value, width, max_lines=12, placeholder=" ...")
        key = row.key if len(row.key) <= KEY_WIDTH else row.key[: KEY_WIDTH - 3] + "..."
        lines.append(f"  {key:<28} {version:>7}  {at:<8}  {first}")
        lines += [" " * 49 + line for line in more]
    return "\n".join(lines)


def _clock(milliseconds: int) -> str:
    return time.strftime("%H:%M:%S", time.localtime(milliseconds / 1000))
