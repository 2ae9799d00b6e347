"""What one update, job or task uses, and may therefore have changed."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import ExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from kvpersist.keys import Name

if TYPE_CHECKING:
    from kvpersist.lazy import Lazy

Names: TypeAlias = dict[Name, bool]
"""Documents that may have been changed, and whether they were dropped before that."""


class Run:
    """One update that is handled, one job, or one task that was made for an update.

    It is found in `RUN`, which the tasks that are made in it inherit. What they use or mark is its
    own, whatever other runs do meanwhile, until it is over.

    Args:
        owner: The application.
        own: What it uses from the start.
        lazy: Where that is kept in memory, until `release`.
    """

    def __init__(self, owner: object, own: Iterable[Name], lazy: Lazy | None) -> None:
        self.owner = owner
        self.own: Names = dict.fromkeys(own, False)
        self.names = self.own.copy()
        self.fresh: set[Name | None] = set()
        """What PTB is about to refresh although that was just done; None is ``bot_data``."""
        self.has_news = False
        self.is_over = False
        self.is_update = False
        self.is_passed_on = False
        self.task: asyncio.Task[Any] | None = None
        self._lazy = lazy
        self._kept: set[Name] = set()
        self._keeping = ExitStack()
        self.keep(self.own)

    def keep(self, names: Iterable[Name]) -> None:
        """Have documents stay in memory until `release`."""
        if self._lazy is not None and (more := {*names} - self._kept):
            self._kept |= more
            self._keeping.enter_context(self._lazy.hold(more))

    def belong_to(self, task: asyncio.Task[Any]) -> None:
        """Be over when a task is done, at the latest."""
        self.task = task
        task.add_done_callback(self.release)

    def is_here(self) -> bool:
        """Whether the running code is that of the run itself, not of a task that was made in it."""
        # A task that begins while it is made (`asyncio.eager_task_factory`) is not known yet.
        return self.task is None or self.task is asyncio.current_task()

    def release(self, _: object = None) -> None:
        """Let documents leave memory again. The run is over."""
        self.is_over = True
        self._keeping.close()
        if self.task is not None:  # pragma: no branch  it is, in a task that began at once
            self.task.remove_done_callback(self.release)


RUN: Final[ContextVar[Run | None]] = ContextVar("kvpersist_run", default=None)
"""The innermost run that the running code is a part of, or was, if it is over."""


def add(names: Names, more: Names) -> None:
    """Note more documents; what is to be dropped stays so."""
    for name, is_dropped in more.items():
        names[name] = is_dropped or names.get(name, False)
