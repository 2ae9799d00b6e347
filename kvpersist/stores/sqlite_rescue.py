"""Writing into a SQLite file what an earlier run had to leave beside it."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Mapping
from pathlib import Path

from kvpersist.errors import OpenError, some_of
from kvpersist.stores import rescue
from kvpersist.stores.sqlite_damage import advice, is_damage
from kvpersist.stores.sqlite_file import FileConnection
from kvpersist.stores.sqlite_statements import transaction

_LOGGER = logging.getLogger("kvpersist")


def write_rescued(connection: FileConnection, path: str) -> None:
    """Write the rows that an earlier run had to leave beside the file.

    Raises:
        OpenError: Some, or all, still cannot be written. Those stay where they are.
    """
    place = rescue.place_of(path)
    try:
        if (rescued := rescue.read(place)) is None:
            return
        if rescued.of is not None and (not rescued.of or rescued.of != connection.state()):
            raise ValueError(
                "they are of another file, which was here then; put that one back; if it cannot "
                f'be, and they are to be written into this one, replace its "of": "{rescued.of}" '
                'by "of": null'
            )
        refused = _write(connection, place, rescued)
        if refused:
            rescue.write(place, {key: rescued.changes[key] for key in refused}, of=None)
            first = next(iter(refused.values()))
            raise ValueError(f"{first}, for {some_of([*refused])}") from first
        rescue.remove(place)
    except (sqlite3.Error, OSError, ValueError) as error:
        raise OpenError(
            f"{place} holds rows that an earlier run could not write, and they still cannot be: "
            f"{error}; {_what_to_do(path, error)}, or move it away to go on without them"
        ) from error
    number = len(rescued.changes)
    _LOGGER.warning("%s: wrote %d rows that an earlier run had to leave there", place, number)


def _what_to_do(path: str, error: Exception) -> str:
    if is_damage(error) or is_damage(error.__cause__ or error):
        return f"{path}: {advice(path)}; leave the rescue file beside what takes its place"
    return "see to that"


def _write(
    connection: FileConnection, place: Path, rescued: rescue.Rescued
) -> Mapping[str, Exception]:
    """Write what can be, in one transaction; return why some rows are refused by themselves."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        refused = _write_each(connection, rescued.changes)
        if rescued.of is not None:  # after the commit the file is not in that state any more
            rescue.write(place, rescued.changes, of=None)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        if rescued.of is not None:
            rescue.write(place, rescued.changes, rescued.of)
        raise
    return refused


def _write_each(
    connection: FileConnection, changes: Mapping[str, bytes | None]
) -> Mapping[str, Exception]:
    refused: dict[str, Exception] = {}
    for key, text in changes.items():
        connection.execute("SAVEPOINT one_row")
        try:
            sql, parameters = transaction({key: text})
            for statement, rows in zip(sql.split(";"), parameters, strict=True):
                for row in rows:
                    connection.execute(statement, row)
        except (sqlite3.Error, ValueError, OverflowError) as error:
            connection.execute("ROLLBACK TO one_row")
            refused[key] = error
        connection.execute("RELEASE one_row")
    return refused
