"""Commands that look at a store: ls, show, stats, find. A bot may have it open meanwhile."""

from __future__ import annotations

import heapq
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Final

import click
import orjson
from rich.console import Console
from rich.pretty import Pretty

from kvpersist import keys
from kvpersist.cli import paths
from kvpersist.cli.completing import complete_key, complete_scope
from kvpersist.cli.opening import (
    FoundError,
    age_of,
    asynchronous,
    codec_of,
    json_option,
    size_of,
    store_argument,
    types_option,
    visiting,
)
from kvpersist.cli.output import (
    age,
    colored,
    columns,
    counted,
    key_text,
    moment,
    note,
    say,
    say_json,
    size,
    written,
)
from kvpersist.cli.tags import readable
from kvpersist.codec import Named
from kvpersist.errors import DecodeError
from kvpersist.stores.visitor import StoredRow, Visitor

_MOST: Final = 10
_SCOPES: Final = ("chat", "user", "callback", "conversation")
_BAR: Final = 40


@click.command()
@store_argument
@click.argument("scope", default="", shell_complete=complete_scope)
@click.option(
    "--newer", callback=age_of, metavar="AGE", help="Written within that time, such as 2h."
)
@click.option(
    "--older", callback=age_of, metavar="AGE", help="Not written for that time, such as 30d."
)
@click.option(
    "--larger", callback=size_of, metavar="SIZE", help="Of at least that size, such as 10k."
)
@click.option("--smaller", callback=size_of, metavar="SIZE", help="Of at most that size.")
@json_option
@asynchronous
async def ls(
    *,
    store: str,
    scope: str,
    newer: float | None,
    older: float | None,
    larger: float | None,
    smaller: float | None,
    as_json: bool,
) -> None:
    """List rows: size, age and key.

    SCOPE is chat, user, bot, callback or conversation, or the beginning of keys, such as
    conversation/order.
    """
    now = time.time() * 1000

    def is_wanted(row: StoredRow) -> bool:
        return (
            (newer is None or row.updated_at >= now - newer)
            and (older is None or row.updated_at <= now - older)
            and (larger is None or len(row.value) >= larger)
            and (smaller is None or len(row.value) <= smaller)
        )

    async with visiting(store) as visitor:
        async for row in _rows(visitor, scope):
            if is_wanted(row) and as_json:
                say_json({"key": key_text(row), "size": len(row.value), **written(row)})
            elif is_wanted(row):
                say(f"{size(len(row.value)):>8}  {age(row.updated_at):>8}  {row.key}")


def prefix_of(scope: str) -> str:
    """Return what keys begin with that the name of a scope, or a prefix, means."""
    return f"{scope}/" if scope in _SCOPES else scope


async def _rows(visitor: Visitor, scope: str) -> AsyncIterator[StoredRow]:
    async with aclosing(visitor.scan(prefix_of(scope))) as pages:  # type: ignore[type-var]
        async for page in pages:
            for row in page:
                yield row


@click.command()
@store_argument
@click.argument("key", nargs=-1, required=True, metavar="KEY...", shell_complete=complete_key)
@types_option
@json_option
@asynchronous
async def show(
    store: str, key: tuple[str, ...], types: tuple[type | Named, ...], *, as_json: bool
) -> None:
    """Show documents, with tagged values readable.

    conversation/NAME shows all conversations of that handler. With --types objects are shown as
    Python has them; without, as they are stored.
    """
    missing = []
    async with visiting(store) as visitor:
        for each in key:
            rows = [row async for row in rows_of(visitor, each)]
            if not rows:
                missing.append(each)
            for row in rows:
                if as_json:
                    say_json(columns(row))
                else:
                    _show(row, types)
    if missing:
        raise click.ClickException(
            f"{visitor.shown} has no row {', '.join(missing)}; `kvpersist ls` lists all"
        )


async def rows_of(visitor: Visitor, key: str) -> AsyncIterator[StoredRow]:
    """Yield the row of a key, or all rows of the conversations of a handler."""
    if key.startswith(keys.CONVERSATION) and key.count("/") == 1:
        async for row in _rows(visitor, f"{key}/"):
            yield row
        return
    for row in (await visitor.read([key])).values():
        yield row


def _show(row: StoredRow, types: Sequence[type | Named]) -> None:
    say(
        f"{row.key}  {size(len(row.value))}, version {row.version}, written "
        f"{moment(row.updated_at)} ({age(row.updated_at)})"
    )
    try:
        if types:
            value = codec_of(types).decode(row.value)
            Console(soft_wrap=True).print(Pretty(value), emoji=False)
            return
        stored = orjson.loads(row.value)
    except (DecodeError, orjson.JSONDecodeError) as error:
        note(f"{row.key}: it cannot be read: {error}. It is shown as it is stored.")
        say(row.value.decode(errors="backslashreplace"))
        return
    colored(readable(stored))


@dataclass
class _Statistics:
    """What is known of all rows."""

    rows: Counter[str] = field(default_factory=Counter)
    sizes: Counter[str] = field(default_factory=Counter)
    powers: Counter[int] = field(default_factory=Counter)
    biggest: list[tuple[int, str]] = field(default_factory=list)
    oldest: tuple[int, str] | None = None
    newest: tuple[int, str] | None = None

    def add(self, row: StoredRow) -> None:
        """Count one more row."""
        scope = row.key.partition("/")[0]
        number = len(row.value)
        self.rows[scope] += 1
        self.sizes[scope] += number
        self.powers[len(str(number)) - 1] += 1
        push = heapq.heappush if len(self.biggest) < _MOST else heapq.heappushpop
        push(self.biggest, (number, key_text(row)))
        at = (row.updated_at, key_text(row))
        self.oldest = min(self.oldest or at, at)
        self.newest = max(self.newest or at, at)

    def document(self) -> dict[str, Any]:
        """Return all of it as JSON."""
        return {
            "rows": self.rows.total(),
            "bytes": self.sizes.total(),
            "scopes": {
                scope: {"rows": number, "bytes": self.sizes[scope]}
                for scope, number in sorted(self.rows.items())
            },
            "biggest": [
                {"key": key, "size": number} for number, key in sorted(self.biggest, reverse=True)
            ],
            "oldest": self.oldest and {"key": self.oldest[1], "updated_at": self.oldest[0]},
            "newest": self.newest and {"key": self.newest[1], "updated_at": self.newest[0]},
            "sizes": [
                {"below": 10 ** (power + 1), "rows": number}
                for power, number in sorted(self.powers.items())
            ],
        }


@click.command()
@store_argument
@json_option
@asynchronous
async def stats(store: str, *, as_json: bool) -> None:
    """Count rows and bytes, by scope and size.

    The biggest rows, the oldest and the newest are named.
    """
    found = _Statistics()
    async with visiting(store) as visitor, visitor.snapshot():
        async for page in counted(visitor.scan(""), "counting"):
            for row in page:
                found.add(row)
        schema, aside = await visitor.schema_version(), len(await visitor.aside())
    document = {"schema": schema, **found.document(), "set_aside": aside}
    if as_json:
        say_json(document)
    else:
        _say_statistics(document)


def _say_statistics(document: dict[str, Any]) -> None:
    say(f"schema {document['schema']}, {document['rows']:,} rows, {size(document['bytes'])}")
    for scope, each in document["scopes"].items():
        say(f"  {scope:<14}{each['rows']:>12,} rows  {size(each['bytes']):>8}")
    if document["set_aside"]:
        say(f"  set aside     {document['set_aside']:>12,} rows")
    for name in ("oldest", "newest"):
        if at := document[name]:
            say(f"{name}: {at['key']}, {moment(at['updated_at'])}")
    if document["biggest"]:
        say("biggest:")
        for each in document["biggest"]:
            say(f"  {size(each['size']):>8}  {each['key']}")
        say("sizes:")
        most = max(each["rows"] for each in document["sizes"])
        for each in document["sizes"]:
            bar = "█" * max(1, round(each["rows"] / most * _BAR))
            say(f"  below {size(each['below']):>7}  {each['rows']:>12,}  {bar}")


@click.command()
@store_argument
@click.argument("path")
@click.argument("value", required=False)
@click.option(
    "--in", "scope", default="", metavar="SCOPE", help="Look at these rows only: as `ls`."
)
@click.option("--limit", type=click.IntRange(1), metavar="N", help="End after so many places.")
@json_option
@asynchronous
async def find(
    *, store: str, path: str, value: str | None, scope: str, limit: int | None, as_json: bool
) -> None:
    """Find places in documents by path and value.

    PATH is as in errors, ["cart"][2]["price"], or shorter: cart[2].price. A * stands for any key,
    index or attribute. VALUE is JSON, or a text. Tags are no steps: a tuple has items, an object
    attributes. Exit code 1: nothing was found.
    """
    steps = paths.parse(path)
    wanted = None if value is None else _comparable(value)
    found = 0
    async with visiting(store) as visitor:
        async for row in _rows(visitor, scope):
            for at, item in _places(row, steps):
                if wanted is not None and orjson.dumps(item, option=orjson.OPT_SORT_KEYS) != wanted:
                    continue
                found += 1
                if as_json:
                    place = paths.shown(at)
                    say_json({"key": key_text(row), "path": place, "value": item, **written(row)})
                else:
                    say(f"{row.key}  {paths.shown(at)}  {readable(item)}")
                if found == limit:
                    return
    if not found:
        raise FoundError


def _comparable(value: str) -> bytes:
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError:
        parsed = value
    return orjson.dumps(parsed, option=orjson.OPT_SORT_KEYS)


def _places(row: StoredRow, steps: Sequence[paths.Step]) -> Sequence[tuple[tuple[Any, ...], Any]]:
    try:
        return list(paths.find(orjson.loads(row.value), steps))
    except orjson.JSONDecodeError:
        note(f"{row.key}: it cannot be read; `kvpersist check` says more")
        return []
