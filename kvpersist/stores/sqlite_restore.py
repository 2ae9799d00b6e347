"""Putting a backup in the place of a SQLite file, in one step, and keeping what was there."""

from __future__ import annotations

import os
import uuid
from contextlib import suppress
from itertools import count
from pathlib import Path

from kvpersist.errors import BackupError, StoreInUseError
from kvpersist.stores.file_lock import FileLock
from kvpersist.stores.files import sync
from kvpersist.stores.sqlite_backup import PREFIX
from kvpersist.stores.sqlite_file import real_path
from kvpersist.stores.sqlite_visitor import SqliteVisitor

_BESIDE = ("-wal", "-shm", "-journal", "-rescue")


async def restore(path: str, visitor: SqliteVisitor) -> Path | None:
    """Have the file `path` be a copy of the one that `visitor` has open.

    The copy is made and checked first, under another name; then it takes the file's name in one
    step. If this is killed, the file is what it was, or what it was to be.

    Returns:
        The new folder where the old file is now, with all that was beside it; None if there was
        none.

    Raises:
        StoreInUseError: A bot has the file open.
        BackupError: The backup is damaged, the disk is full, …. The file is what it was.
    """
    real = Path(real_path(path))
    try:
        lock = FileLock(Path(f"{real}-lock"))
    except BlockingIOError as error:
        raise StoreInUseError(f"a bot has {path} open; stop it first") from error
    except OSError as error:
        raise BackupError(f"{path} cannot be restored: {error}; see its folder") from error
    copy = real.with_name(f"{PREFIX}{uuid.uuid4().hex}")
    try:
        await visitor.back_up(str(copy), lambda _, __: None)
        return _replace(real, copy)
    except OSError as error:
        raise BackupError(f"{path} cannot be restored: {error}; see its folder") from error
    finally:
        copy.unlink(missing_ok=True)
        lock.release()


def _replace(path: Path, copy: Path) -> Path | None:
    left = [Path(f"{path}{end}") for end in _BESIDE]
    if not any(map(os.path.lexists, (path, *left))):
        copy.rename(path)
        sync(path.parent)
        return None
    kept = _new_folder(path)
    try:
        if path.exists():
            # As a second name: until the copy takes the first, the file is where it was. If this is
            # killed before, no bot takes a file of two names, which might lack the log that is
            # moved.
            os.link(path, kept / path.name)
        for beside in filter(os.path.lexists, left):
            beside.rename(kept / beside.name)
        sync(kept)
        copy.rename(path)
    except BaseException:
        _put_back(path, kept)
        raise
    sync(path.parent)
    return kept


def _put_back(path: Path, kept: Path) -> None:
    for moved in kept.iterdir():
        if moved.name == path.name:
            moved.unlink()
        else:
            moved.rename(path.with_name(moved.name))
    kept.rmdir()


def _new_folder(path: Path) -> Path:
    for number in count(1):
        folder = path.with_name(f"{path.name}-before-{number}")
        with suppress(FileExistsError):
            folder.mkdir(mode=0o700)
            return folder
    raise AssertionError  # pragma: no cover  it counts for ever
