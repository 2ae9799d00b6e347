"""What one update, job or task uses, and may therefore have changed."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

from kvpersist.keys import Name

if TYPE_CHECKING:
    from kvpersist.lazy import Lazy

Names: TypeAlias = dict[Name, bool]
"""Documents that may have been changed, and whether they were dropped before that."""

Kind: TypeAlias = Literal["update", "task", "passed on", "error"]
"""An update; a job or a task; a task that only passes an update on; error handlers."""


class Run:
    """One update that is handled, one job, or one task that was made for an update.

    It is found in `RUN`, which the tasks that are made in it inherit. What they use or mark is its
    own, whatever other runs do meanwhile, until it is over.

    Args:
        owner: The application.
        kind: What it is.
        own: What it uses from the start.
        lazy: Where that is kept in memory, until `end`.
        within: The run that it was begun in. If it is an update, what is marked here is part of it.
    """

    def __init__(
        self, owner: object, kind: Kind, own: Iterable[Name], lazy: Lazy | None, within: Run | None
    ) -> None:
        self.owner = owner
        self.kind = kind
        self.own: Names = dict.fromkeys(own, False)
        self.names = self.own.copy()
        self.marked: dict[Name, None] = {}
        """Those that somebody has named, which may be written before the run is over."""
        self.dropped: set[Name] = set()
        self.fresh: set[Name | None] = set()
        """What PTB is about to refresh although that was just done; None is ``bot_data``."""
        self.has_news = False
        self.is_over = False
        self.task: asyncio.Task[Any] | None = None
        # The update alone, or tasks that make tasks would keep each other for ever.
        self.within: Run | None = next(within.updates(), None) if within is not None else None
        self._when_done: Callable[[Any], None] | None = None
        self._lazy = lazy
        self._kept: set[Name] = set()
        self._keeping = ExitStack()
        self.keep(self.own)

    def updates(self) -> Iterator[Run]:
        """Yield the updates that this is a part of and that are not over, the innermost first."""
        run: Run | None = self
        while run is not None:
            if run.kind == "update" and not run.is_over:
                yield run
            run = run.within

    def mark(self, names: Names) -> None:
        """Note documents that were changed, or dropped."""
        add(self.names, names)
        self.marked.update(dict.fromkeys(names))
        self.dropped.update(name for name, is_dropped in names.items() if is_dropped)
        self.keep(names)
        self.has_news = True

    def take_drop(self, name: Name) -> bool:
        """Return whether a document is to be dropped, which whoever asks sees to."""
        is_dropped = self.names.get(name, False)
        if is_dropped:
            self.names[name] = False
        return is_dropped

    def keep(self, names: Iterable[Name]) -> None:
        """Have documents stay in memory until the run is over."""
        if self._lazy is not None and (more := {*names} - self._kept):
            self._kept |= more
            self._keeping.enter_context(self._lazy.hold(more))

    def keep_until_gone(self) -> None:
        """Have documents stay in memory for as long as a task knows this run."""
        weakref.finalize(self, self._keeping.close).atexit = False

    def belong_to(self, task: asyncio.Task[Any], when_done: Callable[[Run], None]) -> None:
        """Be over when a task is done, at the latest; `when_done` is called then."""

        def end(_: object) -> None:
            when_done(self)

        self.task = task
        self._when_done = end
        task.add_done_callback(end)

    def is_here(self) -> bool:
        """Whether the running code is that of the run itself, not of a task that was made in it."""
        # A task that begins while it is made (`asyncio.eager_task_factory`) is not known yet.
        return self.task is None or self.task is asyncio.current_task()

    def end(self) -> None:
        """Let documents leave memory again. The run is over."""
        self.is_over = True
        self._keeping.close()
        if self.task is not None and self._when_done is not None:
            self.task.remove_done_callback(self._when_done)


RUN: Final[ContextVar[Run | None]] = ContextVar("kvpersist_run", default=None)
"""The innermost run that the running code is a part of, or was, if it is over."""


def add(names: Names, more: Names) -> None:
    """Note more documents; what is to be dropped stays so."""
    for name, is_dropped in more.items():
        names[name] = is_dropped or names.get(name, False)


def is_of(task: asyncio.Task[Any], loop: asyncio.AbstractEventLoop) -> bool:
    """Whether a task can go on: not that of another loop, which may have ended."""
    return task.get_loop() is loop
