"""Commands that change single rows, also while a bot runs: set, edit, rm.

A row is changed only as it was when it was read; a bot sees the change at the next update of that
chat or user. Conversations and keyboards a bot reads at its start only, so they are changed only
while none runs.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Collection, Mapping
from typing import Any, Final

import click
import orjson

from kvpersist import keys
from kvpersist.cli import paths
from kvpersist.cli.completing import complete_key
from kvpersist.cli.judging import Judge
from kvpersist.cli.look import rows_of
from kvpersist.cli.opening import (
    FoundError,
    ask,
    asynchronous,
    codec_of,
    confirm,
    json_option,
    store_argument,
    types_option,
    visiting,
    yes_option,
)
from kvpersist.cli.output import key_text, note, say, say_json, value_of
from kvpersist.cli.tags import readable
from kvpersist.codec import Named
from kvpersist.errors import DecodeError, KVPersistError, StoreInUseError, some_of
from kvpersist.stores.visitor import Change, StoredRow, Visitor

_READ_AT_START: Final = (keys.CALLBACK, keys.CONVERSATION)
_REFUSALS: Final = (click.ClickException, KVPersistError, OSError)


@click.command("set")
@store_argument
@click.argument("key", shell_complete=complete_key)
@click.argument("path")
@click.argument("value")
@click.option("--text", is_flag=True, help="VALUE is a text, not JSON.")
@click.option("--new", is_flag=True, help="Make the row if there is none.")
@types_option
@json_option
@asynchronous
async def set_(
    *,
    store: str,
    key: str,
    path: str,
    value: str,
    text: bool,
    new: bool,
    types: tuple[type | Named, ...],
    as_json: bool,
) -> None:
    """Put VALUE at PATH in the document KEY.

    VALUE is JSON, as rows have it: {"$datetime":"2026-01-02T03:04:05+00:00"} is a datetime. PATH is
    as for `find`; $ is the whole document.
    """
    steps = paths.parse(path)
    if None in steps:
        raise click.BadParameter("a * is for `find`; name one place")
    put = value if text else _json(value)
    async with visiting(store) as visitor:
        row = (await visitor.read([key])).get(key)
        if row is None and not new:
            raise click.ClickException(
                f"{visitor.shown} has no row {key}; see `kvpersist ls`, or make it with --new"
            )
        before = {} if row is None else _loaded(row)
        was = next((item for _, item in paths.find(before, steps)), None)
        document = _written(paths.put(before, steps, put))
        _check(key, document, types)
        await apply(visitor, {key: Change(row, document)})
    if as_json:
        say_json({"key": key, "path": paths.shown(steps), "before": was, "value": put})
    else:
        say(f"{key} {paths.shown(steps)}: {readable(was)} → {readable(put)}")


def _written(document: Any) -> bytes:
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError as error:
        raise click.ClickException(
            f"JSON has no words for it: {error}; nothing was changed"
        ) from error


def _json(value: str) -> Any:
    try:
        codec_of(()).check(value.encode(errors="surrogateescape"))
        return orjson.loads(value)
    except (DecodeError, orjson.JSONDecodeError) as error:
        raise click.BadParameter(
            f"{value!r} is no JSON: {error}; for a text write '\"…\"', or say --text"
        ) from error


def _loaded(row: StoredRow) -> Any:
    try:
        codec_of(()).check(row.value)
    except DecodeError as error:
        raise click.ClickException(
            f"{key_text(row)}: {error.reason}; mend it with `kvpersist edit`"
        ) from error
    return orjson.loads(row.value)


def _check(key: str, text: bytes, types: Collection[type | Named]) -> None:
    """Refuse what a bot could not read."""
    if fault := Judge(codec_of(types)).row(key, text).fault:
        raise click.ClickException(f"{key} could not be read then: {fault}. Nothing was changed")


async def apply(
    visitor: Visitor, changes: Mapping[str, Change], *, aside: Collection[StoredRow] = ()
) -> None:
    """Make changes, all or none, or say why not."""
    alone = any(key.startswith(_READ_AT_START) for key in changes)
    try:
        other = await visitor.change(changes, alone=alone, aside=aside)
    except StoreInUseError as error:
        raise click.ClickException(
            f"{error}. Conversations and keyboards are read by a bot at its start only: it would "
            "not see this, and write over it. Nothing was changed"
        ) from error
    if other:
        raise click.ClickException(
            f"{some_of([*other])} changed since it was read; nothing was changed. Look again"
        )


@click.command()
@store_argument
@click.argument("key", shell_complete=complete_key)
@types_option
@json_option
@asynchronous
async def edit(store: str, key: str, types: tuple[type | Named, ...], *, as_json: bool) -> None:
    """Edit the document KEY with $EDITOR.

    It is written when the editor ends, if it can be read, and nobody has changed it meanwhile.
    """
    async with visiting(store) as visitor:
        row = (await visitor.read([key])).get(key)
        if row is None:
            raise click.ClickException(f"{visitor.shown} has no row {key}; see `kvpersist ls`")
        document = await _edited(visitor, row, types)
    if as_json:
        now = row.value if document is None else document
        say_json({"key": key_text(row), "written": document is not None, **value_of(now)})
    else:
        say(f"{key}: {'nothing was changed' if document is None else 'written'}")


async def _edited(
    visitor: Visitor, row: StoredRow, types: Collection[type | Named]
) -> bytes | None:
    """Have a row edited until it is written; return what was, or None if nothing was changed.

    However else it ends, what was edited is kept where it can be found.
    """
    edited = text = _to_edit(row)
    try:
        while True:
            try:
                edited = click.edit(edited, extension=".json") or edited
                if edited == text:
                    return None
                document = _to_write(row.key, edited, types)
                await apply(visitor, {row.key: Change(row, document)})
            except _REFUSALS as error:  # noqa: PERF203  a person is slower
                if edited == text:  # there was no editor yet
                    raise
                await _go_on(error)
            else:
                return document
    except BaseException:  # Ctrl-C, too
        if edited != text:
            note(f"your text is in {_kept(edited)}")
        raise


def _to_edit(row: StoredRow) -> str:
    try:
        codec_of(()).check(row.value)
        return orjson.dumps(orjson.loads(row.value), option=orjson.OPT_INDENT_2).decode() + "\n"
    except DecodeError:  # to mend that is what many come for
        return row.value.decode(errors="backslashreplace")


def _to_write(key: str, edited: str, types: Collection[type | Named]) -> bytes:
    text = edited.encode(errors="surrogateescape")
    _check(key, text, types)
    return orjson.dumps(orjson.loads(text))


async def _go_on(error: Exception) -> None:
    """Say why nothing was written, and ask whether to edit again; if not, it has been said."""
    (error if isinstance(error, click.ClickException) else click.ClickException(str(error))).show()
    otherwise = "edit it on a terminal, or write a value with `kvpersist set`"
    if not await ask("Edit again?", default=True, otherwise=otherwise):
        raise FoundError from error


def _kept(edited: str) -> str:
    """Return the name of a new file, for its owner alone, that has a text."""
    descriptor, name = tempfile.mkstemp(prefix="kvpersist-edit-", suffix=".json")  # mode 0600
    with os.fdopen(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
        file.write(edited)
    return name


@click.command()
@store_argument
@click.argument("key", nargs=-1, required=True, metavar="KEY...", shell_complete=complete_key)
@yes_option
@json_option
@asynchronous
async def rm(store: str, key: tuple[str, ...], *, yes: bool, as_json: bool) -> None:
    """Remove rows, all or none.

    conversation/NAME removes all conversations of that handler.
    """
    async with visiting(store) as visitor:
        rows: dict[str, StoredRow] = {}
        for each in key:
            found = {row.key: row async for row in rows_of(visitor, each)}
            if not found:
                raise click.ClickException(
                    f"{visitor.shown} has no row {each}; nothing was removed"
                )
            rows.update(found)
        await confirm(f"Remove {len(rows):,} rows of {visitor.shown}: {some_of([*rows])}?", yes=yes)
        await apply(visitor, {key: Change(row, None) for key, row in rows.items()})
    for row in rows.values():
        if as_json:
            say_json({"key": key_text(row), "removed": True})
        else:
            say(f"removed {row.key}")
