"""Documents that are read when they are first used, and leave memory when others are."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn

from kvpersist.errors import EncodeError, NotInMemoryError
from kvpersist.keys import Name, Scope, document_key
from kvpersist.rows import Rows

if TYPE_CHECKING:
    from kvpersist.runs import Run

_BATCH: Final = 100
"""Documents that are read at once; then others have their turn."""
_MOST_AT_ONCE: Final = 2 * _BATCH
"""Documents that one load looks at, of those that might leave memory: more than a batch brings."""


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
    __lt__ = __le__ = __gt__ = __ge__ = __call__ = __str__ = __format__ = _refuse


class LazyDocuments(OrderedDict[int, Any]):
    """The documents of one scope that are in memory, the least recently used first.

    So ``in``, ``len`` and iteration tell of memory, not of what is stored.
    """

    def __init__(self, scope: Scope) -> None:
        super().__init__()
        self._scope = scope

    def __missing__(self, document_id: int) -> NotInMemory:
        return NotInMemory(self._scope, document_id)

    def get(self, document_id: int, _: object = None) -> Any:
        """Return the document. One that is not in memory has no default: it may be stored."""
        return self[document_id]

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
        run: Returns what the running code is a part of.
    """

    def __init__(
        self,
        rows: Rows,
        kinds: dict[Scope, type],
        most: int,
        note_changed: Callable[[list[Name]], None],
        run: Callable[[], Run | None],
    ) -> None:
        self.tables = {scope: LazyDocuments(scope) for scope in kinds}
        self._rows = rows
        self._kinds = kinds
        self._most = most
        self._note_changed = note_changed
        self._run = run
        self._held: Counter[Name] = Counter()
        self._released: deque[Name] = deque()
        """What is not held any more, and still counted in `_held`."""

    async def load(self, names: Collection[Name]) -> None:
        """Have a few documents in memory: as they are stored, or empty where nothing is.

        The caller must `hold` them. Those of scopes that are not stored are left out. What is in
        memory is not refreshed.

        Raises:
            OpenError, ReadError, DecodeError, WriteError: As `Rows.load_some`. Nothing was loaded.
        """
        while missing := self._missing(names):
            await self._read(missing)
        self._evict()

    async def load_many(self, scope: Scope, ids: Sequence[int]) -> None:
        """Have any number of documents in memory, as the store has them now.

        They stay until the run that this is a part of is over, if there is one. All of them are
        there when this returns, also if they are too many; others leave for them meanwhile.

        Raises:
            OpenError, ReadError, DecodeError, WriteError: As `Rows.load_some`. What was loaded
                before that may leave memory again.
        """
        if scope not in self.tables:
            return
        with ExitStack() as held:
            for start in range(0, len(ids), _BATCH):
                if start:
                    await asyncio.sleep(0)  # which a store need not
                batch: list[Name] = [
                    (scope, document_id) for document_id in ids[start : start + _BATCH]
                ]
                held.enter_context(self.hold(batch))
                if (run := self._run()) is not None:
                    run.keep(batch)
                await self._refresh(scope, batch)
                await self.load(batch)

    async def _refresh(self, scope: Scope, names: Collection[Name]) -> None:
        """Take over what other programs have written of those that are in memory."""
        table = self.tables[scope]
        documents = {
            document_key(scope, document_id): table[document_id]
            for _, document_id in names
            if document_id in table
        }
        await self._rows.refresh_some(documents, f"{scope}/", self._kinds[scope])

    def _missing(self, names: Iterable[Name]) -> dict[str, Name]:
        """Return those that are not in memory, by key. The others have been used just now."""
        missing: dict[str, Name] = {}
        for scope, document_id in names:
            if (table := self.tables.get(scope)) is None:
                continue
            if document_id in table:
                table.move_to_end(document_id)
            else:
                missing[document_key(scope, document_id)] = scope, document_id
        return missing

    async def _read(self, missing: Mapping[str, Name]) -> None:
        """Put documents into memory, unless a write overtakes the read."""

        def is_missing(key: str) -> bool:
            # Another update may have loaded it meanwhile, and changed or dropped it.
            scope, document_id = missing[key]
            return document_id not in self.tables[scope]

        kinds = {key: self._kinds[scope] for key, (scope, _) in missing.items()}
        for key, document in (await self._rows.load_some(kinds, is_missing)).items():
            scope, document_id = missing[key]
            self.tables[scope][document_id] = document

    async def refreshable(self, scope: Scope, document_id: int) -> Any:
        """Return a document that PTB is about to hand to handlers, or to a job."""
        await self.load([(scope, document_id)])
        return self.tables[scope][document_id]

    @contextmanager
    def hold(self, names: Iterable[Name]) -> Iterator[None]:
        """Keep documents in memory, once they are there."""
        names = list(names)
        self._let_go(2 * len(names))
        self._held.update(names)
        try:
            yield
        finally:
            self._released.extend(names)

    def _let_go(self, number: int) -> None:
        """Note that some of what was held is not any more: all of it could take long."""
        for _ in range(min(max(_MOST_AT_ONCE, number), len(self._released))):
            name = self._released.popleft()
            self._held[name] -= 1
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
        """Have an empty document in memory in place of one that was dropped.

        It stays until its row is removed, for that would be read in its place.
        """
        if scope in self.tables:
            with suppress(EncodeError):  # there is no such row; it is told when it is to be removed
                self._rows.differ(document_key(scope, document_id))
                self.tables[scope][document_id] = self._kinds[scope]()

    def clear(self) -> None:
        """Drop all documents: from now on others may write to the store."""
        for table in self.tables.values():
            table.clear()

    def _evict(self) -> None:
        """Drop the least recently used documents that are too many; of very many, the first.

        What is held stays, and what holds something that is not in the store.
        """
        changed: list[Name] = []
        for scope, table in self.tables.items():
            for _ in range(min(_MOST_AT_ONCE, len(table))):
                if len(table) <= self._most:
                    break
                document_id = next(iter(table))
                key = document_key(scope, document_id)
                table.move_to_end(document_id)
                # What is waiting to be written needs no look, nor anybody who writes it.
                if (scope, document_id) in self._held or self._rows.commits.is_pending(key):
                    continue
                if self._rows.is_changed(key, table[document_id], self._kinds[scope]):
                    changed.append((scope, document_id))
                else:
                    del table[document_id]
                    self._rows.forget(key)
        if changed:
            self._note_changed(changed)
