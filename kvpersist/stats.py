"""What a persistence does, counted: to be looked at, and logged when it is slow."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

_LOGGER = logging.getLogger("kvpersist")

SLOW: Final = 1.0
"""Seconds that a commit takes when the log says so."""


@dataclass(frozen=True)
class Stats:
    """What `KVPersistence.stats` returns: since the persistence was made, and at this moment.

    Attributes:
        rows: How many rows the store is known to hold: those that were loaded, or written. With
            ``shared=True`` 0, for a worker remembers none.
        pending: How many rows are waiting to be written, or on their way.
        commits: How many transactions have written something.
        written: How many rows they have written or removed.
        size: How many bytes of JSON they have written.
        refused: How many transactions the store has refused, or lost.
        retries: How often what was refused was tried again by itself.
        last_error: What the store said when it refused last; None if it never has.
        lag: For how many seconds rows have been waiting that the store refuses; 0 if none are.
    """

    rows: int
    pending: int
    commits: int
    written: int
    size: int
    refused: int
    retries: int
    last_error: str | None
    lag: float

    @property
    def rows_per_commit(self) -> float:
        """How many rows a transaction has written on average."""
        return self.written / self.commits if self.commits else 0.0


class Meter:
    """Counts transactions.

    Attributes:
        retries: How often rows were tried again.
    """

    def __init__(self) -> None:
        self.retries = 0
        self._commits = 0
        self._written = 0
        self._size = 0
        self._refused = 0
        self._last_error: str | None = None
        self._refused_at = 0.0

    @contextmanager
    def transaction(self, changes: Mapping[str, bytes | None]) -> Iterator[None]:
        """Count what the body writes, unless it raises; `changes` are looked at when it is done."""
        start = time.monotonic()
        try:
            yield
        except Exception as error:
            self._refused += 1
            self._last_error = str(error) or type(error).__name__
            raise
        if not changes:
            return
        self._commits += 1
        self._written += len(changes)
        self._size += sum(len(text) for text in changes.values() if text is not None)
        if (seconds := time.monotonic() - start) >= SLOW:
            _LOGGER.warning("a commit of %d rows took %.1f s", len(changes), seconds)

    def begin_to_wait(self) -> None:
        """Note that from now on there are rows which the store refuses."""
        self._refused_at = time.monotonic()

    def stats(self, *, rows: int, pending: int, is_waiting: bool) -> Stats:
        """Return what was counted, beside what others know of this moment."""
        return Stats(
            rows=rows,
            pending=pending,
            commits=self._commits,
            written=self._written,
            size=self._size,
            refused=self._refused,
            retries=self.retries,
            last_error=self._last_error,
            lag=time.monotonic() - self._refused_at if is_waiting else 0.0,
        )
