"""What memory and the store have in common: loading documents, and seeing what others wrote."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias, TypeVar

import orjson

from kvpersist.codec import Codec, become
from kvpersist.errors import (
    BadRowsError,
    DecodeError,
    DocumentError,
    EncodeError,
    StoreError,
    WriteError,
)
from kvpersist.group_commit import Changes, GroupCommit
from kvpersist.stats import Meter
from kvpersist.stores.store import Row, SeesOthers, SetsAside, Store

D = TypeVar("D")
Progress: TypeAlias = Callable[[str, int], None]
"""Called with a prefix of keys and how many of its rows have been loaded."""

Bad: TypeAlias = tuple[DecodeError, bytes]
"""Why a row cannot be read, and what was read."""

_LOGGER = logging.getLogger("kvpersist")
_SAY_EVERY: Final = 5.0
"""Seconds between two lines in the log about a load that takes long."""
MOST_BYTES: Final = 1_000_000_000 - 100
"""What SQLite takes of a key and its value: a row of it has at most 10⁹ bytes, some of them its own
(https://sqlite.org/limits.html#1); PostgreSQL takes some more."""


@dataclass
class HandedOver:
    """Rows to write, where some have moved to, and why others cannot be written."""

    changes: Changes = field(default_factory=dict)
    moved: dict[str, str] = field(default_factory=dict)
    refused: list[EncodeError] = field(default_factory=list)


class Rows:
    """The rows of a store as the values that they hold in memory.

    Args:
        store: Where they are.
        codec: How they are written.
        progress: Told about each page of rows that was loaded.
        aside: Takes the rows that cannot be read. Without it they are errors.
    """

    def __init__(
        self,
        store: Store,
        codec: Codec,
        progress: Progress | None = None,
        aside: SetsAside | None = None,
    ) -> None:
        self.store = store
        self._aside = aside
        self.meter = Meter()
        self.commits = GroupCommit(store, self.meter)
        self.codec = codec
        self._progress = progress
        self._seer = store if isinstance(store, SeesOthers) else None
        self._others: int | None = None
        self._agreed: set[str] = set()
        self._loaded: dict[str, int | None] = {}
        self._unread: set[str] = set()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Close the store if the start fails, for PTB will not."""
        try:
            yield
        except GeneratorExit:  # that of a loop that has ended, on which nothing can be awaited
            raise
        except BaseException:
            with self._doubting():  # a handler may have been added to a bot that runs
                with suppress(WriteError):
                    await self.commits.close_if_unused()
                raise

    async def close(self) -> None:
        """Write everything that is waiting, and close the store. As `GroupCommit.close`.

        Raises:
            WriteError: See there. PTB will not load again what is in memory.
        """
        with self._doubting():
            await self.commits.close()

    @contextmanager
    def _doubting(self) -> Iterator[None]:
        """After an error look at each row again: others may write while the store is closed."""
        try:
            with self.commits.recalling():
                yield
        except BaseException:
            self._agreed.clear()
            self._loaded.clear()
            raise

    def to_look_at(self) -> Rows:
        """Return the same rows, to be loaded for nobody: nothing is noted here, or closed."""
        rows = Rows(self.store, self.codec)
        rows.commits.keep_open()
        return rows

    async def open(self) -> None:
        """Open the store, and write what an earlier run could not.

        Raises:
            OpenError, WriteError: The store's.
        """
        async with self.reading():
            await self.store.open()
            await self.commits.flush()

    async def load(self, prefix: str, name: Callable[[str], int], kind: type[D]) -> dict[int, D]:
        """Return all documents whose keys begin with `prefix`, by what `name` makes of their keys.

        Raises:
            DecodeError: A row cannot be read.
        """
        documents: dict[int, D] = {}

        def take(key: str, text: bytes) -> None:
            documents[name(key)] = self._take(key, text, kind)

        async with self.reading():
            others = await self._look()
            with _collector_paused():
                await self._load(prefix, take)
            self._loaded[prefix] = others
            self._unread.clear()  # a start has read all, or nothing is in memory
        return documents

    async def load_values(self, prefix: str, take: Callable[[str, Any], None]) -> None:
        """Call `take` with each key that begins with `prefix`, and its value.

        Raises:
            DecodeError: A row cannot be read. Or what `take` raises.
        """

        def take_value(key: str, text: bytes) -> None:
            value = self.codec.decode(text)
            if self.codec.encode(value) != text:
                self.codec.check(text)
            take(key, value)
            self.commits.remember(key, text)

        async with self.reading():
            await self._load(prefix, take_value)

    async def _load(self, prefix: str, take: Callable[[str, bytes], None]) -> None:
        """Call `take` with each row; tell about what takes long; give others their turns."""
        rows = 0
        bad: list[Bad] = []
        start = said = time.monotonic()
        async for page in self.commits.scan(prefix):
            bad += _take_rows(page, take)
            rows += len(page)
            if self._progress is not None:
                self._progress(prefix, rows)
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                _LOGGER.info("loading %s: %d rows in %.0f s", prefix, rows, said - start)
            await asyncio.sleep(0)
        for key in await self._settle(bad):
            await self._load_row(key, take)
        _LOGGER.info("loaded %s: %d rows in %.2f s", prefix, rows, time.monotonic() - start)

    async def _load_row(self, key: str, take: Callable[[str, bytes], None]) -> None:
        """Call `take` with one row, if there is one."""
        rows = [row async for page in self.commits.scan(key) for row in page if row[0] == key]
        for again in await self._settle(_take_rows(rows, take)):
            await self._load_row(again, take)

    async def _settle(self, bad: Sequence[Bad]) -> Sequence[str]:
        """Set aside rows that cannot be read, or raise for all of them.

        Return the keys of those that are to be read again, since somebody has written them.
        """
        if not bad:
            return ()
        if self._aside is None:
            raise bad[0][0] if len(bad) == 1 else BadRowsError([error for error, _ in bad])
        known = {error.key: self.commits.known(error.key) for error, _ in bad}
        try:
            moved = {
                *await self._aside.set_aside([(error.key, text, str(error)) for error, text in bad])
            }
        except WriteError as failure:
            reason = f"cannot be read, nor set aside: {failure.reason}"
            raise WriteError(reason, keys=known) from failure
        for error, _ in bad:
            if error.key in moved:
                _LOGGER.error("set aside: %s", error)
                if not self._is_overtaken(error.key, known[error.key]):
                    self.forget(error.key)
        return [key for key in known if key not in moved]

    async def load_one(self, key: str, kind: type[D]) -> D | None:
        """Return the document of one row, or None if there is none. Raises as `load`."""
        found: list[D] = []

        def take(row: str, text: bytes) -> None:
            found.append(self._take(row, text, kind))

        async with self.reading():
            others = await self._look()
            await self._load_row(key, take)
            self._agree(key, others)
        return found[0] if found else None

    async def load_some(
        self, kinds: Mapping[str, type], is_wanted: Callable[[str], bool]
    ) -> dict[str, Any]:
        """Return the documents of some keys, a new one where there is no row; each with its class.

        Left out is what memory has got from elsewhere while the store was read: keys that are not
        wanted any more then, and rows that were written meanwhile, which are to be asked for again.

        Raises:
            OpenError, ReadError: The store could not be read.
            DecodeError: A row cannot be read.
            WriteError: One is waiting to be written, and still cannot be.
        """
        if any(map(self.commits.is_pending, kinds)):
            await self.commits.flush()
        known = {key: self.commits.known(key) for key in kinds}
        others = await self._look()
        texts = await self.commits.read(kinds)
        documents: dict[str, Any] = {}
        bad: list[Bad] = []

        def take(key: str, text: bytes) -> None:
            documents[key] = self._take(key, text, kinds[key])

        # From here on nothing awaits, until the caller has them.
        for key, kind in kinds.items():
            if not is_wanted(key) or self._is_overtaken(key, known[key]):
                continue
            if (text := texts.get(key)) is None:
                self.commits.forget(key)
                documents[key] = kind()
            else:
                bad += _take_rows([(key, text)], take)
            if key in documents:
                self._agree(key, others)
        if bad:
            await self._settle(bad)
            return {}  # what was read may have become old
        return documents

    def _is_overtaken(self, key: str, known: object) -> bool:
        """Whether a write of ours may be newer than what was read when this was `known`."""
        return self.commits.is_pending(key) or self.commits.known(key) is not known

    async def stream(
        self, prefix: str, name: Callable[[str], int], kind: type[D]
    ) -> AsyncIterator[tuple[int, D]]:
        """Yield all documents as they are stored, as `load` names them; memory does not keep them.

        Raises:
            OpenError, ReadError, DecodeError: As `load_some`.
        """
        await self.store.open()
        async for page in self.store.scan(prefix):
            documents: list[tuple[int, D]] = []

            def take(key: str, text: bytes, into: list[tuple[int, D]] = documents) -> None:
                into.append((name(key), self.codec.decode_document(text, kind)))

            rows: Iterable[Row] = page
            while again := await self._settle(_take_rows(rows, take)):
                rows = (await self.store.read(again)).items()
            for document in documents:
                yield document

    def _take(self, key: str, text: bytes, kind: type[D]) -> D:
        """Return the document in a row, and note that memory and the store agree about it."""
        document, own_text = self._decode_document(text, kind)
        self.commits.remember(key, text, *(() if own_text == text else (own_text,)))
        return document

    def _decode_document(self, text: bytes, kind: type[D]) -> tuple[D, bytes]:
        """Return the document in a row, and how kvpersist itself would write it."""
        document: D = self.codec.decode_document(text, kind)
        # What JSON alone has made needs no check.
        own_text = _dumps(document) if kind is dict and b"$" not in text else None
        if own_text != text:
            own_text = self.codec.encode_document(document, kind)
        if own_text != text:  # another program has written it, with spaces for example
            self.codec.check(text)
        return document, own_text

    def decode_document(self, key: str, text: bytes, kind: type[D]) -> tuple[D, bytes]:
        """Return the document in a row, and how kvpersist itself would write it.

        Raises:
            DecodeError: It cannot be read.
        """
        found: list[tuple[D, bytes]] = []

        def take(_: str, text: bytes) -> None:
            found.append(self._decode_document(text, kind))

        for error, _ in _take_rows([(key, text)], take):
            raise error
        return found[0]

    def is_current(self, key: str, prefix: str) -> bool:
        """Whether nobody else can have written a row since it was read, or written by the bot.

        It costs no I/O. If it is False, `refresh` finds out.
        """
        others = None if self._seer is None else self._seer.others_seen()
        if others is None or others != self._others:
            return False
        return key in self._agreed or self._loaded.get(prefix) == others

    async def refresh(self, key: str, prefix: str, document: D, kind: type[D]) -> None:
        """Take over into a document what another program has written into its row.

        Memory wins if it holds what the store does not.
        """
        await self.refresh_some({key: document}, prefix, kind)

    async def refresh_some(self, documents: Mapping[str, D], prefix: str, kind: type[D]) -> None:
        """Refresh documents whose keys begin with `prefix`, reading once. As `refresh`."""
        known = {key: self.commits.known(key) for key in documents}
        try:
            others = await self._look()
            old = [key for key in documents if not self.is_current(key, prefix)]
            texts = await self.commits.read(old) if old else {}
        except StoreError:
            for key in documents:
                self.doubt(key)
            raise
        bad: list[Bad] = []
        # From here on nothing awaits, so that no handler can change a document in between.
        for key in old:
            if not self._is_overtaken(key, known[key]):
                bad += self._compare(key, texts.get(key), documents[key], kind, others)
        self._unread.difference_update(documents)
        for error, _ in bad:
            self.doubt(error.key)
        if again := await self._settle(bad):
            await self.refresh_some({key: documents[key] for key in again}, prefix, kind)

    def _compare(
        self, key: str, text: bytes | None, document: D, kind: type[D], others: int | None
    ) -> list[Bad]:
        """Take over what another program has written, unless memory has changed too."""

        def take(row: str, found: bytes) -> None:
            become(document, self._take(row, found, kind))

        known = self.commits.known(key)
        is_first = known is None and key in self._unread  # whatever memory holds came before it
        bad: list[Bad] = []
        if known is None if text is None else self.commits.holds(key, text):
            self._agree(key, others)
        elif not is_first and self.is_changed(key, document, kind):
            # It is looked at again, since what memory holds may not be for ever.
            if known != ():
                _LOGGER.warning("%s: changed by another program and by the bot; the bot wins", key)
        elif text is None:
            become(document, kind())
            self.commits.forget(key)
            self._agree(key, others)
        elif not (bad := _take_rows([(key, text)], take)):
            self._agree(key, others)
        return bad

    def doubt(self, key: str) -> None:
        """Note that a row could not be read, until it can."""
        self._unread.add(key)

    def is_unread(self, key: str) -> bool:
        """Whether a row could not be read, so that it may hold more than memory does."""
        return key in self._unread

    def may_be_stored(self, key: str) -> bool:
        """Whether a row exists, as far as is known, or is about to."""
        if self.commits.is_pending(key):
            return not self.commits.is_removed(key)
        return self.commits.known(key) is not None

    def is_changed(self, key: str, document: object, kind: type) -> bool:
        """Whether memory holds something that the store, as far as is known, does not."""
        if self.commits.known(key) is None:
            return not self.is_empty(key, document, kind)
        try:
            return not self.commits.holds(key, self.encode_document(key, document, kind))
        except EncodeError:
            return True

    def is_empty(self, key: str, document: object, kind: type) -> bool:
        """Whether a document is like a new one."""
        try:
            text = self.encode_document(key, document, kind)
            return text == self.encode_document(key, kind(), kind)
        except EncodeError:
            return False

    def differ(self, key: str) -> None:
        """Note that memory does not hold what the store may, until a write of ours is through."""
        if self.commits.known(key) is None:
            self.commits.remember(key)

    def forget(self, key: str) -> None:
        """Note that memory does not hold this row any more."""
        self.commits.forget(key)
        self._agreed.discard(key)
        self._unread.discard(key)

    async def _look(self) -> int | None:
        """Return what differs after other programs have written; None if that cannot be seen."""
        await self.store.open()
        if self._seer is None:
            return None
        others = await self._seer.see_others()
        if others != self._others:
            self._others = others
            self._agreed.clear()
        return self._others

    def _agree(self, key: str, others: int | None) -> None:
        if others is not None and others == self._others:
            self._agreed.add(key)

    def encode_document(self, key: str, document: object, kind: type) -> bytes:
        """Return a document as it is stored.

        Raises:
            EncodeError: It cannot be stored exactly, or is too large for any store.
        """
        try:
            return _checked(key, self.codec.encode_document(document, kind))
        except EncodeError as error:
            error.key = key
            raise

    def encode(self, key: str, value: object) -> bytes:
        """Return any value as it is stored. Raises as `encode_document`."""
        with naming(key):
            return _checked(key, self.codec.encode(value))

    def decode(self, key: str, text: bytes) -> Any:
        """Return the value in a row.

        Raises:
            DecodeError: It cannot be read.
        """
        with naming(key):
            return self.codec.decode(text)


def _checked(key: str, text: bytes) -> bytes:
    """Return what can be stored; what cannot would be refused, and tried again, for ever."""
    if len(text) + 4 * len(key) > MOST_BYTES:  # a character has four bytes at most
        raise EncodeError(
            f"it has {len(text):,} bytes, and with its key at most {MOST_BYTES:,} can be stored; "
            "divide it, or keep what is large in files"
        )
    return text


def _dumps(document: object) -> bytes | None:
    try:
        return orjson.dumps(document)
    except orjson.JSONEncodeError:  # nested deeper than it can write, though not than it can read
        return None


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Give the codec's errors, which know the path inside a document, the row that it is."""
    try:
        yield
    except DocumentError as error:
        error.key = key
        raise


def _take_rows(rows: Iterable[Row], take: Callable[[str, bytes], None]) -> list[Bad]:
    """Call `take` with each row; return those that cannot be read, each with the error of it."""
    bad: list[Bad] = []
    for key, text in rows:
        try:
            take(key, text)
        except EncodeError as error:  # noqa: PERF203  nested too deep to be stored again, say
            bad.append((DecodeError(error.reason, key=key, path=error.path), text))
        except DecodeError as error:
            error.key = key
            bad.append((error, text))
    return bad


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Let nobody look for garbage among documents that were just loaded, and all live."""
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
