"""The command that shows rows as they change."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import click
import orjson

from kvpersist.cli.completing import complete_scope
from kvpersist.cli.look import prefix_of
from kvpersist.cli.opening import asynchronous, json_option, store_argument, visiting
from kvpersist.cli.output import colored, columns, say, say_json
from kvpersist.cli.tags import readable
from kvpersist.stores.visitor import Visitor

_Versions = Mapping[str, tuple[int, int]]
_UNREAD: Final = "(it cannot be read)"


@click.command()
@store_argument
@click.argument("scope", default="", shell_complete=complete_scope)
@click.option("--interval", type=click.FloatRange(0.01), default=0.5, help="Seconds between looks.")
@click.option("--count", type=click.IntRange(1), metavar="N", help="End after so many changes.")
@json_option
@asynchronous
async def watch(
    store: str, scope: str, interval: float, count: int | None, *, as_json: bool
) -> None:
    """Show rows as they change, until Ctrl-C.

    SCOPE is as for `ls`. A row that changes twice between two looks shows once. Changes of other
    programs count if they set version or updated_at.
    """
    async with visiting(store) as visitor:
        seen = await visitor.changes()
        before = await visitor.versions(prefix_of(scope))
        left = count
        while left is None or left > 0:
            await asyncio.sleep(interval)
            if (now := await visitor.changes()) == seen:
                continue
            seen = now
            after = await visitor.versions(prefix_of(scope))
            changed = _changed(before, after)[:left]
            await _say(visitor, changed, as_json=as_json)
            before = after
            left = None if left is None else left - len(changed)


def _changed(before: _Versions, after: _Versions) -> list[str]:
    return sorted(key for key in {*before, *after} if before.get(key) != after.get(key))


async def _say(visitor: Visitor, changed: list[str], *, as_json: bool) -> None:
    rows = await visitor.read(changed)
    for key in changed:
        row = rows.get(key)
        if as_json:
            shown = key.encode(errors="backslashreplace").decode()
            say_json({"key": shown, "removed": True} if row is None else columns(row))
        elif row is None:
            say(f"{key}  removed")
        else:
            say(f"{key}  version {row.version}")
            try:
                colored(readable(orjson.loads(row.value)))
            except orjson.JSONDecodeError:
                say(_UNREAD)
