"""The command that finds, exports or erases what is stored of one person."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import click
import orjson

from kvpersist import conversation_keys, keys
from kvpersist.cli import paths
from kvpersist.cli.editing import apply
from kvpersist.cli.opening import (
    FoundError,
    asynchronous,
    codec_of,
    confirm,
    json_option,
    store_argument,
    visiting,
    yes_option,
)
from kvpersist.cli.output import columns, counted, key_text, note, say, say_json, size
from kvpersist.codec import Codec
from kvpersist.errors import DecodeError
from kvpersist.stores.new_file import new_file
from kvpersist.stores.visitor import Change, StoredRow, Visitor

_SHOWN: Final = 20


@dataclass
class _Person:
    """What a store has of a person.

    Attributes:
        person: The id.
        rows: Rows that are theirs as a whole, by their key.
        aside: Such rows among those that were set aside.
        elsewhere: Places in the rows of others where the id occurs: the key, and the path.
    """

    person: int
    codec: Codec
    rows: dict[str, StoredRow] = field(default_factory=dict)
    aside: list[StoredRow] = field(default_factory=list)
    elsewhere: list[tuple[str, str]] = field(default_factory=list)

    def is_theirs(self, key: str) -> bool:
        """Whether a row is this person's by its key."""
        if key.startswith(keys.CONVERSATION):
            try:
                return self.person in conversation_keys.parse(self.codec, key)[1]
            except DecodeError:
                return False
        return key in {f"chat/{self.person}", f"user/{self.person}"}

    def look(self, row: StoredRow) -> None:
        """Note what a row has of the person."""
        if self.is_theirs(row.key):
            self.rows[row.key] = row
        else:
            self._look_elsewhere(key_text(row), row.value)

    def look_aside(self, row: StoredRow) -> None:
        """Note what a row that was set aside has of the person."""
        if self.is_theirs(row.key):
            self.aside.append(row)
        else:
            self._look_elsewhere(f"{key_text(row)} (set aside)", row.value)

    def _look_elsewhere(self, key: str, text: bytes) -> None:
        if str(self.person).encode() not in text:
            return
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            self.elsewhere.append((key, "it cannot be read"))
        else:
            self.elsewhere += [(key, path) for path in self._places(document, ())]

    def _places(self, value: Any, path: tuple[Any, ...]) -> Iterator[str]:
        """Yield where the id is, as a number or in a text, also in a key; tags count as steps."""
        if self._is_named(value):
            yield paths.shown(path)
        elif type(value) is dict:
            for key, item in value.items():
                if self._is_named(key):
                    yield paths.shown((*path, key))
                yield from self._places(item, (*path, key))
        elif type(value) is list:
            for index, item in enumerate(value):
                yield from self._places(item, (*path, index))

    def _is_named(self, value: Any) -> bool:
        if type(value) is str:
            return re.search(rf"(?<!\d){self.person}(?!\d)", value) is not None
        return type(value) is int and value == self.person

    def document(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        return {
            "person": self.person,
            "rows": [columns(row) for row in self.rows.values()],
            "set_aside": [columns(row) for row in self.aside],
            "elsewhere": [{"key": key, "path": path} for key, path in self.elsewhere],
        }


@click.command(context_settings={"ignore_unknown_options": True})
@store_argument
@click.argument("person", type=int)
@click.option("--export", "file", metavar="FILE", help="Write all of it to a new file, as JSON.")
@click.option("--erase", is_flag=True, help="Remove all of it, after asking.")
@yes_option
@json_option
@asynchronous
async def person(
    *, store: str, person: int, file: str | None, erase: bool, yes: bool, as_json: bool
) -> None:
    """Find, export or erase what is stored of a person.

    PERSON is an id. What is theirs: the rows of the private chat and of the user, conversations in
    whose key the id is, and such rows that were set aside. Where else the id occurs, in the rows of
    others, is told, and left: exit code 1. While a bot runs, conversations cannot be erased.
    """
    found = _Person(person, codec_of(()))
    async with visiting(store) as visitor:
        async with visitor.snapshot():
            async for page in counted(visitor.scan(""), "looking"):
                for row in page:
                    found.look(row)
            for row in await visitor.aside():
                found.look_aside(row)
        if file is not None:
            with new_file(Path(file)) as temporary:
                temporary.write_bytes(
                    orjson.dumps(found.document(), option=orjson.OPT_INDENT_2) + b"\n"
                )
            note(f"exported to {file}")
        if erase:
            await _erase(visitor, found, yes=yes)
    if as_json:
        say_json(found.document())
    else:
        _say(found, "erased" if erase else "found")
    if found.elsewhere:
        raise FoundError


async def _erase(visitor: Visitor, found: _Person, *, yes: bool) -> None:
    number = len(found.rows) + len(found.aside)
    if number:
        await confirm(f"Erase {number:,} rows of {found.person} in {visitor.shown}?", yes=yes)
        changes = {key: Change(row, None) for key, row in found.rows.items()}
        await apply(visitor, changes, aside=found.aside)


def _say(found: _Person, done: str) -> None:
    for row in found.rows.values():
        say(f"{done}: {row.key}, {size(len(row.value))}")
    for row in found.aside:
        say(f"{done}: {row.key}, {size(len(row.value))}, which was set aside")
    for key, path in found.elsewhere[:_SHOWN]:
        say(f"left: {key}  {path}")
    if (more := len(found.elsewhere) - _SHOWN) > 0:
        say(f"left: {more:,} more places; --json has all")
    number = len(found.rows) + len(found.aside)
    say(f"{number:,} rows {done}, the id is in {len(found.elsewhere):,} other places")
