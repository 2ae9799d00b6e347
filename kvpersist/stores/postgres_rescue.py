"""Writing into a PostgreSQL schema what an earlier run had to leave in a file."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from kvpersist.errors import OpenError, StoreInUseError, some_of
from kvpersist.stores import rescue
from kvpersist.stores.daemon import begin_in_daemon, until_done
from kvpersist.stores.postgres_connections import Connections
from kvpersist.stores.postgres_errors import FAILURES, is_fault_of_rows, words
from kvpersist.stores.postgres_statements import APPLY, BEGIN_EPOCH, columns, now

_LOGGER = logging.getLogger("kvpersist")


async def leave(
    place: Path, changes: Mapping[str, bytes | None], owner: str, *, is_open: bool
) -> None:
    """Leave rows in a file, durably; being cancelled does not end it.

    If the schema is open they alone are to be there (`rescue.leave`), else not (`rescue.add`).

    Raises:
        OSError, ValueError: They were not left.
    """
    to = rescue.leave if is_open else rescue.add
    await until_done(begin_in_daemon(partial(to, place, changes, owner), lambda _: None))


async def write_rescued(opened: Connections, place: Path) -> None:
    """Write the rows in a file, if whoever left them there was the last owner of the schema.

    Call it with the lock, before there is a new owner: if this ends early, the next start does it
    once more, and nobody has written anything newer.

    Raises:
        OpenError: Some, or all, cannot be written. Those stay where they are. Or no file can be
            left there.
    """
    try:
        rescued = await begin_in_daemon(partial(_read, place), lambda _: None)
        if rescued is None:
            return
        refused = await _write(opened, rescued)
        if refused:
            left = {key: rescued.changes[key] for key in refused}
            await begin_in_daemon(partial(rescue.write, place, left, rescued.of), lambda _: None)
            first = next(iter(refused.values()))
            raise ValueError(f"{first}, for {some_of([*refused])}")
        await begin_in_daemon(partial(rescue.remove, place), lambda _: None)
    except (*FAILURES, StoreInUseError) as error:
        raise OpenError(
            f"{place} holds rows that an earlier run could not write, and they still cannot be: "
            f"{words(error)}; see to that, or move it away to go on without them"
        ) from error
    number = len(rescued.changes)
    _LOGGER.warning("%s: wrote %d rows that an earlier run had to leave there", place, number)


def _read(place: Path) -> rescue.Rescued | None:
    if not place.parent.is_dir():  # or the end would be the first to know
        raise OpenError(f"the folder {place.parent}, for the rescue file, does not exist")
    return rescue.read(place)


async def _write(opened: Connections, rescued: rescue.Rescued) -> Mapping[str, str]:
    """Write what can be; return why some rows are refused by themselves."""
    epoch = await opened.value(BEGIN_EPOCH, rescued.of)

    async def refusal(changes: Mapping[str, bytes | None]) -> str | None:
        try:
            written = await opened.value(APPLY, rescued.of, epoch, *columns(changes), now())
        except FAILURES as error:
            if not is_fault_of_rows(error):
                raise
            return words(error)
        if not written:
            raise StoreInUseError(
                "another bot has had the schema since, so that they are older than what it wrote; "
                "or they are of another schema"
            )
        return None

    if await refusal(rescued.changes) is None:
        return {}
    reasons = {key: await refusal({key: text}) for key, text in rescued.changes.items()}
    return {key: reason for key, reason in reasons.items() if reason is not None}
