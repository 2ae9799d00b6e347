"""What SQLite does not do: having on the disk, and opening, files of our own beside its file."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO


def open_regular(path: Path) -> BinaryIO:
    """Open what is a file for reading; a pipe would be waited for, and a link may lead anywhere.

    Raises:
        FileNotFoundError: There is none.
        OSError, ValueError: It cannot be opened, or is none.
    """
    file = open(path, "rb", opener=_open_no_link)  # noqa: SIM115  whoever calls this closes it
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("it is no file")
    return file


def _open_no_link(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
