"""What the command says: sizes, ages and texts for people, JSON lines for programs, progress."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import Any, Final

import click
import orjson
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from kvpersist import transfer
from kvpersist.stores.visitor import StoredRow

_UNITS: Final = ("B", "kB", "MB", "GB", "TB")
_THOUSAND: Final = 1000
_TEN: Final = 10
_AGES: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))
_CONTROL: Final = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u202a-\u202e\u2066-\u2069]")


def size(number: int) -> str:
    """Return a number of bytes as people say it."""
    power = min((len(str(number)) - 1) // 3, len(_UNITS) - 1)
    amount = number / _THOUSAND**power
    return f"{amount:.{1 if power and amount < _TEN else 0}f} {_UNITS[power]}"


def age(milliseconds: int) -> str:
    """Return how long ago a moment was, given in Unix milliseconds."""
    seconds = max(0, int(time.time() - milliseconds / 1000))
    for length, unit in _AGES:
        if seconds >= length:
            return f"{seconds // length} {unit}"
    return "now"


def moment(milliseconds: int) -> str:
    """Return a moment, given in Unix milliseconds, in ISO 8601 and UTC."""
    try:
        at = datetime.fromtimestamp(milliseconds / 1000, timezone.utc)
    except (OverflowError, ValueError, OSError):  # another program may have written anything
        return str(milliseconds)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def printable(text: str) -> str:
    """Return a text in which nothing is left that would control the terminal."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode-escape").decode(), text)


def say(text: str) -> None:
    """Print a line for a person."""
    click.echo(printable(text))


def note(text: str) -> None:
    """Print a line beside what the command was asked for, as to standard error."""
    click.echo(printable(text), err=True)


def say_json(document: object) -> None:
    """Print a JSON document on a line of its own."""
    click.echo(orjson.dumps(document))


def colored(text: str) -> None:
    """Print what a document holds, in colours on a terminal."""
    Console(soft_wrap=True).print(printable(text), markup=False, emoji=False)


def columns(row: StoredRow) -> dict[str, Any]:
    """Return a row as JSON lines have it: exactly, whatever its text is."""
    return {"key": key_text(row), **value_of(row.value), **written(row)}


def written(row: StoredRow) -> dict[str, Any]:
    """Return when and how often a row was written."""
    return {"version": row.version, "updated_at": row.updated_at}


def key_text(row: StoredRow) -> str:
    """Return a key as JSON can have it."""
    return row.key.encode(errors="backslashreplace").decode()


def value_of(text: bytes) -> dict[str, Any]:
    """Return a row's text as a member of a line: its value if that says all, or the text."""
    try:
        return transfer.value_of(text)
    except UnicodeDecodeError:
        return {"text": text.decode(errors="backslashreplace")}


async def counted(
    pages: AsyncIterator[Sequence[StoredRow]], doing: str
) -> AsyncIterator[Sequence[StoredRow]]:
    """Yield pages of rows, and show how many there were, if somebody looks at a terminal."""
    with progress() as bar:
        task = bar.add_task(doing, total=None)
        async for page in pages:
            yield page
            bar.advance(task, len(page))


@contextmanager
def progress() -> Iterator[Progress]:
    """Show a bar while something takes its time, if somebody looks at a terminal."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
    )
    if not console.is_terminal:  # to which Rich would print an empty line, at least
        yield bar
        return
    with bar:
        yield bar
