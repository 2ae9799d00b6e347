"""Files of which it is not known what somebody has put in their place."""

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
