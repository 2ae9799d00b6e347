"""Documents that many workers share: each has some for itself until it has committed."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

from kvpersist.codec import become
from kvpersist.errors import ConfigurationError, UnavailableError
from kvpersist.keys import BOT, Name, document_key
from kvpersist.merge import merge
from kvpersist.rows import Rows
from kvpersist.stores.store import Shareable, Versioned
from kvpersist.turns import Turns
from kvpersist.unit import UNIT, Document, Unit

_LOGGER = logging.getLogger("kvpersist")


class Shared:
    """What the workers of one bot share.

    Args:
        store: Where it is.
        rows: How documents are written.
        kind: Returns the class of the data of a chat or user, or of ``bot_data`` for None; None if
            that is not stored.
    """

    def __init__(
        self, store: Shareable, rows: Rows, kind: Callable[[Name | None], type | None]
    ) -> None:
        self._store = store
        self._rows = rows
        self.meter = rows.meter
        self.kind = kind
        self.known_bot: Versioned = (None, 0)
        self._turns = Turns(store.patience)

    def document(self, name: Name | None, text: bytes | None) -> Document:
        """Return a document as it is stored.

        Raises:
            DecodeError: It cannot be read.
        """
        kind = self._kind(name)
        if text is None:
            return Document(kind(), None)
        return Document(*self._rows.decode_document(_key(name), text, kind))

    def encode(self, name: Name | None, value: object) -> bytes:
        """Return a document as it is to be stored. Raises EncodeError."""
        return self._rows.encode_document(_key(name), value, self._kind(name))

    def encode_new(self, name: Name | None) -> bytes:
        """Return a document that nobody has changed."""
        return self.encode(name, self._kind(name)())

    def merge_bot(self, base: bytes | None, mine: Any, theirs: Document) -> None:
        """Take over into ``bot_data`` what another worker has made of it since it was `base`.

        One that is no dict is like one key.
        """
        was = self.document(None, base)
        if isinstance(mine, dict):
            conflicts = [*map(repr, merge(was.value, mine, theirs.value, self._rows.codec.encode))]
        else:
            text, old, new = (self.encode(None, value) for value in (mine, was.value, theirs.value))
            conflicts = [] if text == new or old in {text, new} else ["all of it"]
            if text == old:
                become(mine, theirs.value)
        if conflicts:
            _LOGGER.warning(
                "bot: %s was changed here and by another worker, which lost; see "
                'KVPersistence.lock("bot")',
                ", ".join(conflicts),
            )

    def note_bot(self, text: bytes, version: int) -> None:
        """Know ``bot_data``, so that it is not sent again with each update."""
        self.known_bot = text, version

    def unit(self) -> Unit | None:
        """Return the unit that the running code is a part of."""
        unit = UNIT.get()
        return unit if unit is not None and unit.shared is self and not unit.is_over else None

    @asynccontextmanager
    async def begin(
        self,
        names: Collection[Name | None],
        *,
        locks: Collection[str] = (),
        reads: Iterable[str] = (),
    ) -> AsyncIterator[Unit]:
        """Have documents while the body runs, then commit; or nothing of it, if it raises.

        Args:
            names: Which documents; None is ``bot_data``, which is merged if it is not named.
            locks: Keys of other rows, that are locked and read.
            reads: Keys of other rows, that are read.

        Raises:
            OpenError: The store cannot be opened.
            LockError, ConflictError, UnavailableError, WriteError, DecodeError: See `Unit`.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._turns.take([*map(_key, names), *locks]))
            transaction = await stack.enter_async_context(self._store.transaction())
            unit = Unit(self, transaction)
            await unit.load(names, locks=locks, reads=reads)
            token = UNIT.set(unit)
            try:
                yield unit
                await unit.wait_for_parts()
            finally:
                unit.is_over = True
                with suppress(ValueError):  # a loop that has ended ends this in another context
                    UNIT.reset(token)
            await unit.commit()

    @asynccontextmanager
    async def edit(self, name: Name | None) -> AsyncIterator[Any]:
        """Have one document while the body runs: see `KVPersistence.edit`."""
        self._kind(name)
        if (unit := self.unit()) is not None:
            async with self._edit_within(unit, name) as value:
                yield value
            return
        async with self.begin([name]) as unit:
            unit.is_edited = True
            yield _in(unit, name).value

    @asynccontextmanager
    async def _edit_within(self, unit: Unit, name: Name | None) -> AsyncIterator[Any]:
        unit.is_edited = True
        with unit.part():
            await unit.load([name])
            document = _in(unit, name)
            before = self.encode(name, document.value)
            try:
                yield document.value
            except BaseException:
                become(document.value, self.document(name, before).value)
                raise
            if unit.is_over:
                raise UnavailableError(
                    f"{_key(name)}: the update, or the edit, that this is a part of has failed "
                    "before: nothing of it was written"
                )

    def _kind(self, name: Name | None) -> type:
        if (kind := self.kind(name)) is None:
            raise ConfigurationError(
                f"the data of {'bot' if name is None else name[0]} is not stored; see store_data"
            )
        return kind


def _key(name: Name | None) -> str:
    return BOT if name is None else document_key(*name)


def _in(unit: Unit, name: Name | None) -> Document:
    if name is not None:
        return unit.documents[name]
    assert unit.bot is not None  # noqa: S101  it was just loaded
    return unit.bot
