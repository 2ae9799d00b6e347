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
    query = "SELECT key, value, version, updated_at FROM documents ORDER BY key"
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
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
