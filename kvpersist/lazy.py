"""Documents that are read when they are first used, and leave memory when others are."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import Any, NoReturn

from kvpersist.errors import NotInMemoryError
from kvpersist.keys import Name, Scope, document_key
from kvpersist.rows import Rows


class NotInMemory:
    """What ``application.chat_data[id]`` is while that document is not in memory.

    Whatever is done with it raises `NotInMemoryError`: nothing can be read out of it that is not
    so, and nothing written that would be lost, or overwrite the row.
    """

    __slots__ = ("_name",)
    _name: Name

    def __init__(self, scope: Scope, document_id: int) -> None:
        object.__setattr__(self, "_name", (scope, document_id))

    def __repr__(self) -> str:
        return f"<{document_key(*self._name)}, which is not in memory>"

    def _refuse(self, *_: object) -> NoReturn:
        raise NotInMemoryError(*self._name)

    __getattr__ = __setattr__ = __delattr__ = _refuse
    __getitem__ = __setitem__ = __delitem__ = __contains__ = _refuse
    __iter__ = __reversed__ = __len__ = __bool__ = __hash__ = _refuse
    __eq__ = __ne__ = __or__ = __ror__ = __ior__ = __reduce_ex__ = _refuse


class LazyDocuments(OrderedDict[int, Any]):
    """The documents of one scope that are in memory, the least recently used first."""

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self._scope = scope

    def __missing__(self, document_id: int) -> NotInMemory:
        return NotInMemory(self._scope, document_id)

    def __setitem__(self, document_id: int, document: object) -> None:
        if type(document) is NotInMemory:  # PTB moves what is not here to the new id of a chat
            bool(document)
        super().__setitem__(document_id, document)


class Lazy:
    """Keeps the documents in memory that are in use, and a limited number of those that were.

    Args:
        rows: Where documents come from.
        kinds: The class of the documents of each scope that is stored.
        most: How many documents of each scope are kept.
        note_changed: Called with documents that hold what the store does not, and that nobody has
            marked. They stay in memory.
        is_updating: Whether the task that runs handles an update, which holds what it uses.
    """

    def __init__(
        self,
        rows: Rows,
        kinds: dict[Scope, type],
        most: int,
        note_changed: Callable[[list[Name]], None],
        is_updating: Callable[[], bool],
    ) -> None:
        self.tables = {scope: LazyDocuments(scope) for scope in kinds}
        self._rows = rows
        self._kinds = kinds
        self._most = most
        self._note_changed = note_changed
        self._is_updating = is_updating
        self._held: Counter[Name] = Counter()

    async def load(self, names: Collection[Name]) -> None:
        """Have documents in memory: as they are stored, or empty where nothing is.

        They are there when this returns; only `hold` keeps them there for longer. Those of scopes
        that are not stored are left out.

        Raises:
            OpenError, ReadError: The store could not be read. Nothing was loaded.
            DecodeError: A row cannot be read. Likewise.
        """
        missing: dict[str, Name] = {}
        for scope, document_id in names:
            if (table := self.tables.get(scope)) is None:
                continue
            if document_id in table:
                table.move_to_end(document_id)
            else:
                missing[document_key(scope, document_id)] = scope, document_id
        if not missing:
            return
        with self.hold(names):
            found = await self._rows.load_some(
                {key: self._kinds[scope] for key, (scope, _) in missing.items()}
            )
            for key, (scope, document_id) in missing.items():
                table = self.tables[scope]
                # Another update may have loaded it meanwhile, and changed or dropped it.
                if document_id not in table:
                    table[document_id] = found[key] if key in found else self._kinds[scope]()
            self._evict()

    async def refreshable(self, scope: Scope, document_id: int) -> Any:
        """Return a document that PTB is about to hand to handlers, or to a job.

        An update holds its own. A job is not known to the application before this: it holds what it
        gets until its task has ended.
        """
        task = asyncio.current_task()
        if task is not None and not self._is_updating():
            self.hold_for(task, [(scope, document_id)])
        await self.load([(scope, document_id)])
        return self.tables[scope][document_id]

    def hold_for(self, task: asyncio.Task[Any], names: Iterable[Name]) -> None:
        """Keep documents in memory, once they are there, until a task has ended."""
        holding = ExitStack()
        holding.enter_context(self.hold(names))
        task.add_done_callback(lambda _: holding.close())

    @contextmanager
    def hold(self, names: Iterable[Name]) -> Iterator[None]:
        """Keep documents in memory, once they are there."""
        names = list(names)
        self._held.update(names)
        try:
            yield
        finally:
            self._held.subtract(names)
            for name in names:
                if not self._held[name]:
                    del self._held[name]

    def check(self, names: Iterable[Name]) -> None:
        """Look whether documents are in memory.

        Raises:
            NotInMemoryError: One of them is not.
        """
        for scope, document_id in names:
            if scope in self.tables and document_id not in self.tables[scope]:
                raise NotInMemoryError(scope, document_id)

    def renew(self, scope: Scope, document_id: int) -> None:
        """Have an empty document in memory in place of one that was dropped."""
        if scope in self.tables:
            self.tables[scope][document_id] = self._kinds[scope]()

    def clear(self) -> None:
        """Drop all documents: from now on others may write to the store."""
        for table in self.tables.values():
            table.clear()

    def _evict(self) -> None:
        """Drop the least recently used documents that are too many.

        What is held stays, and what holds something that is not in the store.
        """
        changed: list[Name] = []
        for scope, table in self.tables.items():
            excess = len(table) - self._most
            oldest = list(islice(table, excess + len(self._held))) if excess > 0 else []
            for document_id in oldest:
                if len(table) <= self._most:
                    break
                if (scope, document_id) in self._held:
                    continue
                key = document_key(scope, document_id)
                if self._rows.is_unsaved(key, table[document_id], self._kinds[scope]):
                    changed.append((scope, document_id))
                    table.move_to_end(document_id)
                else:
                    del table[document_id]
                    self._rows.forget(key)
        if changed:
            self._note_changed(changed)
