"""A file that appears whole, under a name that nobody had, or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvpersist.stores.files import sync
from kvpersist.stores.sqlite_backup import PREFIX


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Give a temporary file of the same folder, to be written and closed; then it gets its name.

    It is readable by its owner alone. When this returns, the file and its name are on the disk.

    Raises:
        FileExistsError: Something has that name, and was left as it is.
        OSError: The folder is missing, the disk is full, …. There is no file.
    """
    path = Path(os.path.realpath(path.parent), path.name)
    check_free(path)
    descriptor, name = tempfile.mkstemp(prefix=PREFIX, dir=path.parent)  # its mode is 0600
    os.close(descriptor)
    temporary = Path(name)
    try:
        yield temporary
        sync(temporary)
        os.link(temporary, path)  # which overwrites nothing
    finally:
        temporary.unlink(missing_ok=True)
    try:
        sync(path.parent)
    except BaseException:
        path.unlink()
        raise


def check_free(path: Path) -> None:
    """Raise FileExistsError if something has this name, be it a link that leads nowhere."""
    if os.path.lexists(path):
        raise FileExistsError(f"{path} exists, and is not overwritten; name a new file")
