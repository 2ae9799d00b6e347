"""What one update, or one `KVPersistence.edit`, has for itself until it has committed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from kvpersist.errors import EncodeError, NotInMemoryError
from kvpersist.keys import BOT, CONVERSATION, Name, Scope, document_key
from kvpersist.lazy import NotInMemory
from kvpersist.stores.store import Changed, LockMore, Transaction, Versioned

if TYPE_CHECKING:
    from kvpersist.shared import Shared


@dataclass
class Document:
    """A document in memory, and the text of its row; None where there is none."""

    value: Any
    text: bytes | None
    is_dropped: bool = False


class Unit:
    """Documents of one transaction: locked, read, and compared at the end with what they were.

    It is found in `UNIT`, which tasks that are made meanwhile inherit.

    Attributes:
        shared: What it is of.
        documents: Those of chats and users, which nobody else has in memory.
        bot: ``bot_data``. What others have written is merged into it at the end; or it is locked,
            after None was loaded.
        rows: What else was read, by key.
        changes: What else is to be written, by key.
        moved: Chats that have got another id: the old one of each new one.
        refused: After `commit`, why some documents were left as they were.
        keyboards: What PTB's cache of callback data has, while this goes on.
        queries: Likewise, of which keyboards buttons were pressed.
        shown: The keyboards among them that are stored.
        own: Documents that get a row though there is nothing in them, if `is_handled`.
        task: What began it.
        parts: Handlers with ``block=False``, and edits, that this does not end before.
        is_update: Whether it is an update; otherwise, an edit outside of any.
        is_edited: Whether all must be written or nothing, also if something cannot be stored.
        is_undone: Whether nothing must be written of its documents and conversations.
        is_handled: Whether there was a handler for the update.
        is_over: Whether it has no documents any more.
    """

    def __init__(self, shared: Shared, transaction: Transaction) -> None:
        self.shared = shared
        self.documents: dict[Name, Document] = {}
        self.bot: Document | None = None
        self.rows: dict[str, Versioned] = {}
        self.changes: dict[str, bytes | None] = {}
        self.moved: dict[Name, Name] = {}
        self.refused: list[EncodeError] = []
        self.keyboards: dict[str, Any] = {}
        self.queries: dict[str, str] = {}
        self.shown: set[str] = set()
        self.own: set[Name] = set()
        self.task = asyncio.current_task()
        self.parts: set[asyncio.Future[Any]] = set()
        self.is_update = False
        self.is_edited = False
        self.is_undone = False
        self.is_handled = False
        self.is_over = False
        self._transaction = transaction
        self._bot_version = -1  # not known
        self._is_begun = False
        self._has_bot = False
        self._written_bot: bytes | None = None
        self._written: dict[str, bytes | None] = {}
        self._refused_rows: list[EncodeError] = []

    async def load(
        self,
        names: Collection[Name | None],
        *,
        locks: Iterable[str] = (),
        reads: Iterable[str] = (),
    ) -> None:
        """Have documents, as they are stored now, until this is over; None is ``bot_data``.

        Args:
            names: Which; those that are here already stay as they are.
            locks: Keys of rows that are locked and read into `rows`.
            reads: Keys of rows that are read into `rows`.

        Raises:
            LockError, ConflictError, UnavailableError: As `Transaction.lock`; then nothing of all
                this will be committed.
            DecodeError: A row cannot be read.
        """
        keys = {
            document_key(*name) if name is not None else BOT: name
            for name in names
            if self.shared.kind(name) is not None and not self._has(name)
        }
        if self._is_begun and not keys:
            return
        self._is_begun = True
        known_bot = self.shared.known_bot  # others may note another one meanwhile
        known = {BOT: self._bot_version if self.bot is not None else known_bot[1]}
        found = await self._transaction.lock([*keys, *locks], [*reads, BOT], known=known)
        self.rows |= found
        if BOT in keys or self.bot is None:
            self._take_bot(found, known_bot)
        self._has_bot = self._has_bot or BOT in keys
        for key, name in keys.items():
            if name is not None and name not in self.documents:  # a task may have been faster
                text, _ = found.get(key, (None, 0))
                self.documents[name] = self.shared.document(name, text)

    def _has(self, name: Name | None) -> bool:
        return self._has_bot if name is None else name in self.documents

    def _take_bot(self, found: Mapping[str, Versioned], known: Versioned) -> None:
        """Have ``bot_data`` as it was found, with what was changed here meanwhile."""
        text, version = found.get(BOT, (None, 0))
        if version == self._bot_version or self.shared.kind(None) is None:
            return
        if text is not None:
            self.shared.note_bot(text, version)
        elif version:  # it is what was known, and so was not sent
            text, _ = known
        theirs = self.shared.document(None, text)
        if self.bot is None:
            self.bot = theirs
        else:
            self.shared.merge_bot(self.bot.text, self.bot.value, theirs)
            self.bot.text = theirs.text
        self._bot_version = version

    async def wait_for_parts(self) -> None:
        """Return when handlers with ``block=False`` are done, and edits in other tasks."""
        while self.parts:
            await asyncio.wait(self.parts)

    @contextmanager
    def part(self) -> Iterator[None]:
        """Have this wait until the body is done."""
        part: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.parts.add(part)
        try:
            yield
        finally:
            self.parts.discard(part)
            part.set_result(None)

    def text(self, key: str) -> bytes | None:
        """Return the text of a row that was read; None where there is none."""
        return self.rows[key][0] if key in self.rows else None

    def write(self, key: str, encode: Callable[[], bytes] | None) -> None:
        """Have a row written, if it is not as it was read; None removes it.

        One that `encode` refuses stays as it was, and is in `refused`.
        """
        try:
            text = None if encode is None else encode()
        except EncodeError as error:
            self._refused_rows.append(error)
        else:
            if text != self.text(key):
                self.changes[key] = text

    async def commit(self) -> None:
        """Write what has changed, and give everything back.

        What cannot be stored is left as it was, and is in `refused`.

        Raises:
            LockError, ConflictError, UnavailableError, WriteError: As `Transaction.commit`.
            EncodeError: For the first document that cannot be stored, if `is_edited`.
        """
        with self.shared.meter.transaction(self._written):
            version = await self._transaction.commit(self._changed)
        if self._written_bot is not None:
            self.shared.note_bot(self._written_bot, version)

    async def _changed(self, lock: LockMore) -> Changed:
        if self.is_undone:
            self._undo()
        changes = dict(self.changes)
        refused: dict[Name | None, EncodeError] = {}
        for name, document in self.documents.items():
            try:
                text = self._text(name, document)
            except EncodeError as error:  # noqa: PERF203  a handful of documents
                refused[name] = error
            else:
                if text != document.text:
                    changes[document_key(*name)] = text
        for new, old in self.moved.items():
            if new in refused:  # what it holds is stored there alone
                changes.pop(document_key(*old), None)
        try:
            await self._change_bot(changes, lock)
        except EncodeError as error:
            refused[None] = error
        self.refused = [*self._refused_rows, *refused.values()]
        if self.is_edited and self.refused:
            raise self.refused[0]
        self._written.clear()
        self._written |= changes
        return changes

    def _undo(self) -> None:
        """Leave to be written what was sent to people: buttons; and that the update was handled."""
        for key in [key for key in self.changes if key.startswith(CONVERSATION)]:
            del self.changes[key]
        self.documents.clear()
        self.bot = None

    def _text(self, name: Name, document: Document) -> bytes | None:
        """Return what a row is to hold: None for one that was dropped, or of nobody's."""
        text = self.shared.encode(name, document.value)
        is_nobodys = document.text is None and not (self.is_handled and name in self.own)
        if (document.is_dropped or is_nobodys) and text == self.shared.encode_new(name):
            return None
        return text

    async def _change_bot(self, changes: dict[str, bytes | None], lock: LockMore) -> None:
        if self.bot is None or (text := self.shared.encode(None, self.bot.value)) == self.bot.text:
            return
        is_nobodys = self.bot.text is None and not self.is_handled
        if is_nobodys and text == self.shared.encode_new(None):
            return
        if not self._has_bot:
            known = self.bot.text, self._bot_version
            self._take_bot(await lock([BOT], (), {BOT: self._bot_version}), known)
            text = self.shared.encode(None, self.bot.value)
        changes[BOT] = text
        self._written_bot = text


UNIT: Final[ContextVar[Unit | None]] = ContextVar("kvpersist_unit", default=None)
"""The unit that the running code is a part of, or was, if it is over."""


class UnitDocuments(MutableMapping[int, Any]):
    """The documents of one scope that the running code may use: those of its unit.

    What is done with any other raises `NotInMemoryError`. Deleting one removes its row, and leaves
    a new one.

    Args:
        scope: Which.
        unit: Returns the unit of the running code.
    """

    def __init__(self, scope: Scope, unit: Callable[[], Unit | None]) -> None:
        self._scope = scope
        self._unit = unit

    def _find(self, document_id: int) -> Document | None:
        unit = self._unit()
        return None if unit is None else unit.documents.get((self._scope, document_id))

    def __getitem__(self, document_id: int) -> Any:
        found = self._find(document_id)
        return NotInMemory(self._scope, document_id) if found is None else found.value

    def get(self, document_id: int, _: object = None) -> Any:
        """Return the document. One that is not here has no default: it may be stored."""
        return self[document_id]

    def __setitem__(self, document_id: int, value: object) -> None:
        if (found := self._find(document_id)) is None or type(value) is NotInMemory:
            raise NotInMemoryError(self._scope, document_id)
        found.value = value

    def __delitem__(self, document_id: int) -> None:
        if (found := self._find(document_id)) is None:
            raise NotInMemoryError(self._scope, document_id)
        found.value = type(found.value)()
        found.is_dropped = True

    def __contains__(self, document_id: object) -> bool:
        return isinstance(document_id, int) and self._find(document_id) is not None

    def __iter__(self) -> Iterator[int]:
        unit = self._unit()
        names = () if unit is None else tuple(unit.documents)
        return (document_id for scope, document_id in names if scope == self._scope)

    def __len__(self) -> int:
        return sum(1 for _ in self)
