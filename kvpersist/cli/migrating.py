"""The command that moves a bot from another persistence to kvpersist, and back to Pickle."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from kvpersist import keys, pickles
from kvpersist.cli.moving import fill, say_done, shown
from kvpersist.cli.opening import (
    asynchronous,
    is_url,
    json_option,
    types_option,
    visiting,
)
from kvpersist.cli.output import counted, note
from kvpersist.codec import Codec, Named
from kvpersist.errors import DocumentError, TransferError
from kvpersist.migration import Data, Rows, data_of
from kvpersist.other_persistences import read_django, read_json, read_ptbcontrib
from kvpersist.stores.visitor import Digest, StoredRow
from kvpersist.telegram_objects import TelegramObjects

_KINDS: Final = ("store", "pickle", "json", "ptbcontrib", "django")
_PICKLES: Final = (".pickle", ".pkl")
_SQLITE: Final = b"SQLite format 3\0"
_NO_BOT_DATA: Final = StoredRow(keys.BOT, b"{}", 1, 0)
_MOST: Final = 20
_ADVICE: Final = re.compile(r"add \S+ to types=$")
_NOT_NAMED: Final = "it is of a class that was not named"
"""For those who have no `types=` to add anything to."""


@dataclass
class _Way:
    """From where, to where, and what a bot knows of its data."""

    store: str
    to: str
    types: Sequence[type | Named]
    leave: bool

    def __post_init__(self) -> None:
        self.bot = pickles.stand_in_bot()
        self.codec = Codec(self.types, extensions=[TelegramObjects(lambda: self.bot)])
        self._kinds = {each.type if isinstance(each, Named) else each for each in self.types}

    def is_listed(self, kind: type) -> bool:
        """Whether documents may be of a class: a dict, or one that was named."""
        return kind is dict or kind in self._kinds

    def rows(self, data: Data) -> Rows:
        """Return the rows of what a persistence keeps."""
        return Rows(data, self.codec, self.is_listed)

    def refuse(self, faults: Sequence[DocumentError], unknown: set[tuple[str, str]]) -> None:
        """Say what cannot be moved; unless it may be left, nothing is."""
        if not faults:
            return
        for fault in faults[:_MOST]:
            note(f"cannot be moved: {_ADVICE.sub(_NOT_NAMED, str(fault))}")
        more = f" (and {len(faults) - _MOST:,} more)" if len(faults) > _MOST else ""
        names = " ".join(f"--types {_module(module)}:{name}" for module, name in sorted(unknown))
        advice = f"name the bot's own classes: {names}" if names else "mend it there"
        if not self.leave:
            raise TransferError(
                f"{len(faults):,} rows cannot be moved{more}, so nothing was written; {advice}; or "
                "say --leave to go on without them"
            )
        note(f"{len(faults):,} rows were left{more}")


def _module(name: str) -> str:
    return "YOUR_SCRIPT" if name == "__main__" else name


@click.command()
@click.argument("store", metavar="FROM")
@click.argument("to")
@click.option("--from", "kind", type=click.Choice(_KINDS), help="What FROM is, if it is not seen.")
@click.option("--five-files", is_flag=True, help="Write the five files of single_file=False.")
@click.option("--namespace", default="", help="Of the tables of Django's persistence.")
@click.option("--leave", is_flag=True, help="Go on without what cannot be moved, and say what.")
@types_option
@json_option
@asynchronous
async def migrate(
    *,
    store: str,
    to: str,
    kind: str | None,
    five_files: bool,
    namespace: str,
    leave: bool,
    types: tuple[type | Named, ...],
    as_json: bool,
) -> None:
    """Move from another persistence, or to Pickle.

    All of a bot's data are moved into a new store TO.

    FROM is a file of PicklePersistence, or the beginning of its five; a JSON file of
    DictPersistence's strings; a database with ptbcontrib's table (--from ptbcontrib) or Django's
    tables (--from django); or a store, if TO ends with .pickle. It is not changed. All or none is
    moved, and read again to be compared. Stop the bot first.
    """
    way = _Way(store, to, types, leave)
    if (kind or _kind(store)) == "store":
        done = await _to_pickle(way, single_file=not five_files)
    else:
        done = await _to_store(way, kind or _kind(store), namespace)
    say_done(done, as_json=as_json)


def _kind(store: str) -> str:
    if is_url(store):
        return "store"
    path = Path(store)
    with (path if path.is_file() else pickles.find(path)[0]).open("rb") as file:
        begin = file.read(len(_SQLITE))
    if begin == _SQLITE:
        return "store"
    return "json" if begin.lstrip().startswith(b"{") else "pickle"


async def _to_store(way: _Way, kind: str, namespace: str) -> dict[str, object]:
    unknown: set[tuple[str, str]] = set()
    if kind == "pickle":
        data, unknown = pickles.read(Path(way.store), way.types, way.bot)
    elif kind == "json":
        data = await read_json(Path(way.store))
    elif kind == "ptbcontrib":
        data = await read_ptbcontrib(way.store)
    else:
        data = await read_django(way.store, namespace)
    rows = way.rows(data)

    async def pages() -> AsyncIterator[Sequence[StoredRow]]:
        async for page in counted(rows.pages(), "moving"):
            yield page
        way.refuse(rows.faults, unknown)

    wrote = await fill(way.to, pages(), "none")
    async with visiting(way.to) as target, target.snapshot():
        found = Digest()
        async for page in counted(target.scan(""), "comparing"):
            found.add(page)
    if found != wrote:
        raise click.ClickException(
            f"{shown(way.to)} has other rows than were written; is a bot running there already?"
        )
    return {"documents": found.rows, "left": len(rows.faults), "to": shown(way.to)}


async def _to_pickle(way: _Way, *, single_file: bool) -> dict[str, object]:
    if is_url(way.to) or not (way.to.endswith(_PICKLES) or not single_file):
        raise click.UsageError(
            f"FROM is a store, so TO must end with {' or '.join(_PICKLES)}; to move a store to "
            "another, use `copy`; for Django's tables, say --from django"
        )
    faults: list[DocumentError] = []
    async with visiting(way.store) as visitor, visitor.snapshot():
        all_rows = Digest()
        pages = all_rows.over(_documents(counted(visitor.scan(""), "reading")))
        data = await data_of(pages, way.codec, faults)
    way.refuse(faults, set())
    wanted = await _digest(way, data)
    if not wanted.rows:
        raise click.ClickException(f"{shown(way.store)} has no rows; there is nothing to move")

    async def check(path: Path) -> None:
        again, _ = pickles.read(path, way.types, way.bot)
        if await _digest(way, again) != wanted:
            raise TransferError(f"{path} was not written: what was read again differs")

    files = await pickles.write(Path(way.to), data, way.bot, check, single_file=single_file)
    names = ", ".join(map(str, files))
    return {"documents": all_rows.rows - len(faults), "left": len(faults), "to": names}


async def _documents(
    pages: AsyncIterator[Sequence[StoredRow]],
) -> AsyncIterator[Sequence[StoredRow]]:
    """Yield the rows that are no memory of workers, for which Pickle has no place."""
    async for page in pages:
        yield [row for row in page if not row.key.startswith(keys.UPDATE)]


async def _digest(way: _Way, data: Data) -> Digest:
    rows = way.rows(data)
    found = Digest()
    async for page in rows.pages():
        # PTB writes {} where there is no bot_data, or nothing.
        some = [StoredRow(row.key, row.value, 1, 0) for row in page]
        found.add([row for row in some if row != _NO_BOT_DATA])
    way.refuse(rows.faults, set())
    return found
