"""The command that removes what is of no use any more."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable

import click

from kvpersist import keys
from kvpersist.cli.editing import apply
from kvpersist.cli.opening import (
    age_of,
    asynchronous,
    confirm,
    json_option,
    store_argument,
    visiting,
    yes_option,
)
from kvpersist.cli.output import counted, key_text, note, say, say_json, size
from kvpersist.stores.visitor import Change, StoredRow, Visitor

_ENDED = {b"null", b"-1"}
"""States of conversations that have ended: PTB's `ConversationHandler.END` is -1."""


@click.command()
@store_argument
@click.option("--ended", is_flag=True, help="Conversations that have ended (state END or null).")
@click.option("--empty", is_flag=True, help="Chats and users of whom nothing is stored but {}.")
@click.option(
    "--untouched", callback=age_of, metavar="AGE", help="Chats and users not written for that time."
)
@click.option("--dry-run", is_flag=True, help="Only list what would be removed.")
@yes_option
@json_option
@asynchronous
async def purge(
    *,
    store: str,
    ended: bool,
    empty: bool,
    untouched: float | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Remove rows that are of no use any more.

    Of which kind must be said. Rows that change meanwhile stay. Of chats and users also while a bot
    runs; of conversations while none does.
    """
    kinds = _kinds(ended=ended, empty=empty, untouched=untouched)
    if not kinds:
        raise click.UsageError("say what is to be removed: --ended, --empty or --untouched AGE")
    async with visiting(store) as visitor:
        found: dict[str, StoredRow] = {}
        counts: Counter[str] = Counter()
        async for page in counted(visitor.scan(""), "looking"):
            for row in page:
                kind = next((kind for kind, is_meant in kinds.items() if is_meant(row)), "")
                if kind:
                    found[row.key] = row
                    counts[kind] += 1
        if found and not dry_run:
            kinds_found = ", ".join(f"{number:,} {kind}" for kind, number in counts.items())
            await confirm(f"Remove {kinds_found} rows of {visitor.shown}?", yes=yes)
        removed = {} if dry_run else await _remove(visitor, found)
    if not dry_run:
        found = removed
    for row in found.values():
        if as_json:
            say_json({"key": key_text(row), "removed": not dry_run})
        else:
            say(f"{'would remove' if dry_run else 'removed'} {row.key}")
    note(f"{len(found):,} rows, {size(sum(len(row.value) for row in found.values()))}")


def _kinds(
    *, ended: bool, empty: bool, untouched: float | None
) -> dict[str, Callable[[StoredRow], bool]]:
    kinds: dict[str, Callable[[StoredRow], bool]] = {}
    if ended:
        kinds["ended"] = lambda row: row.key.startswith(keys.CONVERSATION) and row.value in _ENDED
    if empty:
        kinds["empty"] = lambda row: row.key.startswith(("chat/", "user/")) and row.value == b"{}"
    if untouched is not None:
        before = time.time() * 1000 - untouched
        kinds["untouched"] = lambda row: (
            row.key.startswith(("chat/", "user/")) and row.updated_at <= before
        )
    return kinds


async def _remove(visitor: Visitor, found: dict[str, StoredRow]) -> dict[str, StoredRow]:
    """Remove rows in one transaction, but for those that have changed; return which."""
    now = await visitor.read([*found])
    same = {key: row for key, row in found.items() if now.get(key) == row}
    await apply(visitor, {key: Change(row, None) for key, row in same.items()})
    return same
