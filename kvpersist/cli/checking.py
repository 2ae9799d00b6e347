"""The command that says whether a bot could read all of a store."""

from __future__ import annotations

from collections import Counter

import click

from kvpersist.cli.judging import Judge
from kvpersist.cli.opening import (
    FoundError,
    asynchronous,
    codec_of,
    json_option,
    store_argument,
    types_option,
    visiting,
)
from kvpersist.cli.output import counted, key_text, note, say, say_json
from kvpersist.codec import Named


@click.command()
@store_argument
@types_option
@json_option
@asynchronous
async def check(store: str, types: tuple[type | Named, ...], *, as_json: bool) -> None:
    """Check that a bot can read all of a store.

    That is the file or schema, its version, and every row. Objects of classes that --types does not
    name are taken as they are stored, and counted. Exit code 1: something is wrong; each finding is
    a line.
    """
    judge = Judge(codec_of(types))
    classes: Counter[str] = Counter()
    rows = faults = 0

    def tell(key: str, fault: str) -> None:
        if as_json:
            say_json({"key": key, "fault": fault})
        else:
            say(f"{key}: {fault}" if key else fault)

    async with visiting(store) as visitor, visitor.snapshot():
        for fault in await visitor.faults():
            faults += 1
            tell("", fault)
        async for page in counted(visitor.scan(""), "checking"):
            rows += len(page)
            for row in page:
                verdict = judge.row(row.key, row.value)
                classes.update(verdict.classes)
                if verdict.fault:
                    faults += 1
                    tell(key_text(row), verdict.fault)
        schema, aside = await visitor.schema_version(), len(await visitor.aside())
    say_more = note if as_json else say
    for name, number in sorted(classes.items()):
        say_more(f"{number:,} rows have objects of {name}, not looked into; name it with --types")
    if aside:
        say_more(f"{aside:,} rows are set aside; the page of on_bad_row says how to put them back")
    say_more(f"{visitor.shown}: schema {schema}, {rows:,} rows, {faults:,} faults")
    if faults:
        raise FoundError
