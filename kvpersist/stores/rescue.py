"""The rescue file: rows that could not be written before the end, where the next start finds them.

It is one JSON document, so that a person can read it: each key with the text of its row, or null
if the row is to be removed. It appears whole or not at all: written under another name, synced, and
renamed.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Final

from kvpersist.stores.files import open_regular, sync

_LOGGER = logging.getLogger("kvpersist")

_FORMAT: Final = "kvpersist rescue 1"


def place_of(database: str) -> Path:
    """Return where the rescue file of a SQLite file is, if there is one."""
    return Path(f"{database}-rescue")


def check_name(database: str) -> None:
    """Raise OSError if the name is too long for what is left beside it, so that none would be."""
    with suppress(FileNotFoundError):
        Path(f"{place_of(database)}-old99").lstat()  # none has a longer one


def leave(place: Path, changes: Mapping[str, bytes | None], of: str | None) -> Path:
    """Leave rows of a database that is open for the next start, as `write` does, or nothing at all.

    A start writes, and removes, the rescue file that it finds. So one that is there while the
    database is open was put there since, and nobody has asked for its rows to be written. It gets a
    name that no start reads, which the log tells.
    """
    if os.path.lexists(place):
        _put_away(place)
    try:
        return write(place, changes, of)
    except BaseException:  # who hears that nothing was left may write the rows once more, later
        place.unlink(missing_ok=True)
        raise


def _put_away(place: Path) -> None:
    names = (Path(f"{place}-old{number if number > 1 else ''}") for number in count(1))
    name = next(name for name in names if not os.path.lexists(name))
    place.replace(name)
    _LOGGER.warning(
        "%s: this is what somebody put into %s while the bot had its file open; no start writes "
        "these rows",
        name,
        place,
    )


def add(place: Path, changes: Mapping[str, bytes | None], of: str | None) -> Path:
    """Leave rows of a database that nobody has open, as `write` does, or none of them.

    Those that were left there before, and that no start has written yet, stay; they are older.
    """
    before = read(place) or Rescued({}, of)
    if before.of != of:
        raise ValueError("it holds rows of another file, or of a bot that has had it since")
    try:
        return write(place, {**before.changes, **changes}, of)
    except BaseException:  # as above
        with suppress(OSError):
            _put_back(place, before)
        raise


def _put_back(place: Path, before: Rescued) -> None:
    if before.changes:
        write(place, before.changes, before.of)
    else:
        place.unlink(missing_ok=True)


def write(place: Path, changes: Mapping[str, bytes | None], of: str | None) -> Path:
    """Make a rescue file, durably, or replace the one that there is.

    Args:
        place: The rescue file.
        changes: The rows.
        of: The state that they are of: that of the SQLite file, if it is not where it was; or the
            owner of the PostgreSQL schema.

    Raises:
        OSError, ValueError: That is not possible.
    """
    texts = {key: None if text is None else text.decode() for key, text in changes.items()}
    # Not by orjson: a key that no SQLite takes either may be no Unicode, and its row counts too.
    document = json.dumps({"format": _FORMAT, "of": of, "rows": texts}).encode()
    new = Path(f"{place}-new")
    new.unlink(missing_ok=True)
    try:
        _write(new, document)
        new.replace(place)
        sync(place.parent)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    return place


def _write(new: Path, document: bytes) -> None:
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(descriptor, 0o600)  # whatever the umask took away
        file.write(document)
        file.flush()
        os.fsync(descriptor)


@dataclass
class Rescued:
    """Rows that were left for a database, and for which state of it, if not for whichever."""

    changes: dict[str, bytes | None]
    of: str | None


def read(place: Path) -> Rescued | None:
    """Return the rows that were left; None if there are none.

    Raises:
        OSError, ValueError: They cannot be read.
    """
    try:
        with open_regular(place) as file:
            found = json.loads(file.read())
    except FileNotFoundError:
        return None
    except RecursionError as error:
        raise ValueError(str(error)) from error
    if not _is_rescue(found):
        raise ValueError("it is not a rescue file of this kvpersist")
    rows = {key: None if text is None else text.encode() for key, text in found["rows"].items()}
    return Rescued(rows, found["of"])


def remove(place: Path) -> None:
    """Remove the rescue file, whose rows are in the database now.

    Raises:
        OSError: It stays; its rows would be written once more, over newer ones.
    """
    place.unlink(missing_ok=True)
    sync(place.parent)


def _is_rescue(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and found.get("format") == _FORMAT
        and isinstance(found.get("of", 0), str | None)
        and isinstance(rows := found.get("rows"), dict)
        and all(isinstance(text, str | None) for text in rows.values())
    )
