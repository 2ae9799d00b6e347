"""Commands that move whole stores: export, import, copy, backup, restore."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import IO, Final

import click

from kvpersist import transfer
from kvpersist.cli.judging import Judge
from kvpersist.cli.look import prefix_of
from kvpersist.cli.opening import (
    asynchronous,
    codec_of,
    confirm,
    is_url,
    json_option,
    store_argument,
    types_option,
    visiting,
    visitor_of,
    yes_option,
)
from kvpersist.cli.output import counted, note, progress, say_json
from kvpersist.codec import Named
from kvpersist.errors import TransferError
from kvpersist.stores.new_file import new_file
from kvpersist.stores.sqlite_file import real_path
from kvpersist.stores.sqlite_restore import restore as restore_file
from kvpersist.stores.sqlite_visitor import SqliteVisitor, create
from kvpersist.stores.visitor import Digest, Existing, StoredRow, Visitor

_MOST: Final = 10


@click.command("export")
@store_argument
@click.argument("file")
@click.argument("scope", default="")
@json_option
@asynchronous
async def export(store: str, file: str, scope: str, *, as_json: bool) -> None:
    """Write documents as JSON Lines, one a line.

    To FILE, which must be new, or - for standard output. They are of one moment, also while a bot
    runs. SCOPE is as for `ls`. The last line says how many documents there are.
    """
    async with visiting(store) as visitor, visitor.snapshot():
        with _output(file) as output:
            pages = counted(visitor.scan(prefix_of(scope)), "exporting")
            number = await transfer.lines(pages, output.write)
        await _say_aside(visitor)
    say_done({"documents": number, "to": file}, as_json=as_json and file != "-")


@contextmanager
def _output(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    with new_file(Path(file)) as temporary, temporary.open("wb") as output:
        yield output
        output.flush()


@contextmanager
def _input(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    with Path(file).open("rb") as opened:
        yield opened


async def _say_aside(visitor: Visitor) -> None:
    if aside := len(await visitor.aside()):
        note(f"{aside:,} rows that are set aside in {visitor.shown} stay there")


def say_done(document: dict[str, object], *, as_json: bool) -> None:
    """Say at the end what was done, beside what a pipe may carry."""
    if as_json:
        say_json(document)
    else:
        note(", ".join(f"{name}: {value}" for name, value in document.items()))


@click.command("import")
@store_argument
@click.argument("file")
@click.option("--replace", is_flag=True, help="Replace rows that are there already.")
@click.option("--as-is", is_flag=True, help="Take rows that a bot cannot read, too.")
@types_option
@json_option
@asynchronous
async def import_(
    *,
    store: str,
    file: str,
    replace: bool,
    as_is: bool,
    types: tuple[type | Named, ...],
    as_json: bool,
) -> None:
    """Take documents that `export` has written.

    From FILE, or - for standard input. All or none: in one transaction, while no bot runs. A STORE
    that does not exist is made. Each row is looked at as by `check`.
    """
    existing: Existing = "replace" if replace else "other"
    with _input(file) as lines:
        pages = counted(transfer.rows(lines, file), "importing")
        number = await fill(store, pages if as_is else _checked(pages, types), existing)
    say_done({"documents": number.rows, "to": shown(store)}, as_json=as_json)


async def _checked(
    pages: AsyncIterator[Sequence[StoredRow]], types: Sequence[type | Named]
) -> AsyncIterator[Sequence[StoredRow]]:
    """Yield pages of rows; raise at the end if a bot cannot read some of them."""
    judge = Judge(codec_of(types))
    faults: list[str] = []
    async for page in pages:
        verdicts = ((row.key, judge.row(row.key, row.value).fault) for row in page)
        faults += [f"{key}: {fault}" for key, fault in verdicts if fault]
        yield page
    if faults:
        more = f"\n… and {len(faults) - _MOST:,} more" if len(faults) > _MOST else ""
        raise TransferError(
            f"{len(faults):,} rows cannot be read by a bot; mend them, or say --as-is:\n"
            + "\n".join(faults[:_MOST])
            + more
        )


async def fill(store: str, pages: AsyncIterator[Sequence[StoredRow]], existing: Existing) -> Digest:
    """Write rows into a store, which is made if there is none; all or none."""
    digest = Digest()
    counted_pages = digest.over(pages)
    if not is_url(store):
        visitor: Visitor = SqliteVisitor(store)
        if not Path(store).exists():
            return await create(Path(store), pages)
        await visitor.open()
    else:
        from kvpersist.stores.postgres_visitor import PostgresVisitor  # noqa: PLC0415  an extra

        visitor = visitor_of(store)
        assert isinstance(visitor, PostgresVisitor)  # noqa: S101  what its URL means
        await visitor.open_or_create()
    try:
        async with aclosing(counted_pages):  # type: ignore[type-var]
            await visitor.fill(counted_pages, existing)
    finally:
        await visitor.close()
    return digest


def shown(store: str) -> str:
    """Return what may be shown of the name of a store."""
    return visitor_of(store).shown


@click.command("copy")
@store_argument
@click.argument("to")
@json_option
@asynchronous
async def copy(store: str, to: str, *, as_json: bool) -> None:
    """Copy all rows into a new store.

    From SQLite to PostgreSQL, back, or to the same. They are of one moment, also while a bot runs;
    with their versions and times. TO must be new, or have no rows. What was written is read again:
    numbers and hashes must be the same.
    """
    say_done(await copied(store, to, "none"), as_json=as_json)


async def copied(store: str, to: str, existing: Existing) -> dict[str, object]:
    """Copy all rows of a store into another; return what to say of it."""
    async with visiting(store) as visitor, visitor.snapshot():
        await _say_aside(visitor)
        pages = counted(visitor.scan(""), "copying")
        if not is_url(to) and Path(to).exists():
            raise click.ClickException(f"{to} exists, and is not overwritten; name a new file")
        wrote = await fill(to, pages, existing)
    async with visiting(to) as target, target.snapshot():
        found = Digest()
        async for page in counted(target.scan(""), "comparing"):
            found.add(page)
    if found != wrote:
        raise click.ClickException(
            f"{shown(to)} has {found.rows:,} rows with the hash {found.hex}, and {wrote.rows:,} "
            f"with {wrote.hex} were written: it differs; is a bot running there already?"
        )
    return {"documents": found.rows, "hash": found.hex, "to": shown(to)}


@click.command()
@store_argument
@click.argument("file")
@json_option
@asynchronous
async def backup(store: str, file: str, *, as_json: bool) -> None:
    """Make a whole copy, while a bot runs.

    FILE, which must be new, is of one moment, and a SQLite file that a bot can open. Of a
    PostgreSQL database it has the documents, not what is set aside there.
    """
    if is_url(store):
        say_done(await copied(store, file, "none"), as_json=as_json)
        return
    async with visiting(store) as visitor:
        assert isinstance(visitor, SqliteVisitor)  # noqa: S101  what a file means
        with progress() as bar:
            task = bar.add_task("copying pages", total=None)

            def tell(done: int, total: int) -> None:
                bar.update(task, completed=done, total=total)

            await visitor.back_up(file, tell)
    say_done({"to": file}, as_json=as_json)


@click.command()
@store_argument
@click.argument("file")
@yes_option
@json_option
@asynchronous
async def restore(store: str, file: str, *, yes: bool, as_json: bool) -> None:
    """Put a backup in the place of a store.

    FILE is what `backup` has made. No bot may run. What a SQLite file held before is kept beside
    it, under a name that is told. Of a PostgreSQL database all documents are replaced, in one
    transaction: make a backup of it first.
    """
    async with visiting(file) as source:
        if faults := await source.faults():
            raise click.ClickException(
                f"{source.shown} is no good backup: {faults[0]}; name another"
            )
        if is_url(store):
            await confirm(f"Replace all documents of {shown(store)}?", yes=yes)
            wrote = await fill(store, counted(source.scan(""), "restoring"), "clear")
            say_done({"documents": wrote.rows, "to": shown(store)}, as_json=as_json)
            return
        if not isinstance(source, SqliteVisitor):
            raise click.UsageError("a SQLite file is restored from a file; else see `copy`")
        await confirm(f"Replace {store} by {file}?", yes=yes)
        kept = await restore_file(store, source)
    if kept and (rescue := kept / f"{Path(real_path(store)).name}-rescue").exists():
        note(
            f"{rescue} has rows that a bot could not write, newer than the backup: to have them "
            "too, move it back before the bot starts"
        )
    say_done({"to": store, "kept": str(kept) if kept else None}, as_json=as_json)
