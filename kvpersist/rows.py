"""What memory and the store have in common: loading documents, and seeing what others wrote."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, Final, TypeAlias, TypeVar, cast

import orjson

from kvpersist.codec import Codec, become
from kvpersist.documents import Document, HandedOver, is_handing_over
from kvpersist.errors import DecodeError, DocumentError, EncodeError, WriteError
from kvpersist.group_commit import GroupCommit
from kvpersist.plain import plain_text
from kvpersist.stores.store import Row, SeesOthers, Store

D = TypeVar("D")
Progress: TypeAlias = Callable[[str, int], None]
"""Called with a prefix of keys and how many of its rows have been loaded."""

_LOGGER = logging.getLogger("kvpersist")
_SAY_EVERY: Final = 5.0
"""Seconds between two lines in the log about a load that takes long."""
_MANY: Final = 10_000
"""So many documents that the collector of garbage should not walk through them again and again."""


class Rows:
    """The rows of a store as the values that they hold in memory.

    Args:
        store: Where they are.
        codec: How they are written.
        progress: Told about each page of rows that was loaded.
    """

    def __init__(self, store: Store, codec: Codec, progress: Progress | None = None) -> None:
        self.store = store
        self.commits = GroupCommit(store)
        self.codec = codec
        self._progress = progress
        self._seer = store if isinstance(store, SeesOthers) else None
        self._others: int | None = None
        self._agreed: set[str] = set()
        self._loaded: dict[str, int | None] = {}

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[None]:
        """Close the store if the start fails, for PTB will not."""
        try:
            yield
        except BaseException:
            with suppress(WriteError):
                await self.commits.close_if_unused()
            raise

    async def pages(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        """Yield the rows whose keys begin with `prefix`; tell about loads that take long."""
        rows = 0
        start = said = time.monotonic()
        async for page in self.commits.scan(prefix):
            yield page
            rows += len(page)
            if self._progress is not None:
                self._progress(prefix, rows)
            if time.monotonic() - said > _SAY_EVERY:
                said = time.monotonic()
                _LOGGER.info("loading %s: %d rows in %.0f s", prefix, rows, said - start)
            await asyncio.sleep(0)

    async def load(self, prefix: str, name: Callable[[str], int], kind: type[D]) -> dict[int, D]:
        """Return all documents whose keys begin with `prefix`, by what `name` makes of their keys.

        Raises:
            DecodeError: A row cannot be read.
        """
        documents: dict[int, D] = {}
        async with self.reading():
            others = await self._look()
            with _collector_paused():
                async for page in self.pages(prefix):
                    self._take_page(page, name, kind, documents)
            self._loaded[prefix] = others
        return documents

    async def load_values(self, prefix: str, take: Callable[[str, Any], None]) -> None:
        """Call `take` with each key that begins with `prefix`, and its value.

        Raises:
            DecodeError: A row cannot be read. Or what `take` raises.
        """
        async with self.reading():
            async for page in self.pages(prefix):
                for key, text in page:
                    with _restoring(key):
                        value = self.codec.decode(text)
                        if self.codec.encode(value) != text:
                            self.codec.check(text)
                    take(key, value)
                    self.commits.remember(key, text)

    def _take_page(
        self, page: Sequence[Row], name: Callable[[str], int], kind: type[D], into: dict[int, D]
    ) -> None:
        for key, text in page:
            into[name(key)] = self.take(key, text, kind)

    async def load_one(self, key: str, kind: type[D]) -> D | None:
        """Return the document of one row, or None if there is none."""
        async with self.reading():
            others = await self._look()
            rows = {row: text async for page in self.commits.scan(key) for row, text in page}
            self._agree(key, others)
            return self.take(key, rows[key], kind) if key in rows else None

    def take(self, key: str, text: bytes, kind: type[D]) -> D:
        """Return the document in a row, and note that memory and the store agree about it."""
        with _restoring(key):
            if b"$" not in text and (kind is dict or kind is Document):
                document = cast("D", self.codec.decode_document(text, dict))
                # What JSON alone has made needs no check.
                own_text = orjson.dumps(document)
                if kind is Document:
                    document = cast("D", Document(cast("dict[Any, Any]", document)))
            else:
                document = self._decode_document(text, kind)
                own_text = self._encode_document(document, kind)
            if own_text == text:
                self.commits.remember(key, text)
            else:  # another program has written it, with spaces for example
                self.codec.check(text)
                self.commits.remember(key, text, own_text)
        return document

    async def write(self, key: str, text: bytes | None) -> None:
        """Write a row; when this returns it is durable, or the application waits until it is."""
        if is_handing_over():
            self.commits.put({key: text})
        elif text is None:
            await self.commits.write({key: None})
        else:
            await self.commits.write_row(key, text)

    async def refresh(self, key: str, prefix: str, document: D, kind: type[D]) -> None:
        """Take over into a document what another program has written into its row.

        Memory wins if it holds what the store does not.
        """
        known = self.commits.known(key)
        others = await self._look()
        if self._is_agreed(key, prefix):
            return
        text = await self.commits.read(key)
        if self.commits.is_pending(key) or self.commits.known(key) is not known:
            return  # a write of ours has overtaken the read
        # From here on nothing awaits, so that no handler can change the document in between.
        if known is not None if text is None else not self.commits.holds(key, text):
            self._take_over(key, text, document, kind)
        self._agree(key, others)

    def _take_over(self, key: str, text: bytes | None, document: D, kind: type[D]) -> None:
        if self._is_changed(key, document, kind):
            _LOGGER.warning("%s: changed by another program and by the bot; the bot wins", key)
            return
        if text is None:
            become(document, kind())
            self.commits.forget(key)
        else:
            become(document, self.take(key, text, kind))

    def _is_changed(self, key: str, document: D, kind: type[D]) -> bool:
        """Whether memory holds something that the store, as far as is known, does not."""
        try:
            text = self.encode_document(key, document, kind)
        except EncodeError:
            return True
        if self.commits.known(key) is not None:
            return not self.commits.holds(key, text)
        return text != self.encode_document(key, kind(), kind)

    async def _look(self) -> int | None:
        """Return what differs after other programs have written; None if that cannot be seen."""
        await self.store.open()
        if self._seer is None:
            return None
        others = await self._seer.writes_of_others()
        if others != self._others:
            self._others = others
            self._agreed.clear()
        return others

    def _is_agreed(self, key: str, prefix: str) -> bool:
        """Whether nobody has written the row since it was read, or written by the bot."""
        if self._others is None:
            return False
        return self._loaded.get(prefix) == self._others or key in self._agreed

    def _agree(self, key: str, others: int | None) -> None:
        if others is not None and others == self._others:
            self._agreed.add(key)

    def encode_document(self, key: str, document: object, kind: type) -> bytes:
        """Return a document as it is stored."""
        if type(document) is HandedOver:
            document = document.document
        if type(document) is kind and (kind is dict or kind is Document):
            if not document:
                return b"{}"
            plain = dict(cast("dict[Any, Any]", document)) if kind is Document else document
            if (text := plain_text(plain)) is not None:
                return text
        with naming(key):
            return self._encode_document(document, kind)

    def _encode_document(self, document: object, kind: type) -> bytes:
        if type(document) is Document and kind is Document:
            return self.codec.encode_document(dict(document), dict)
        return self.codec.encode_document(document, kind)

    def _decode_document(self, text: bytes, kind: type[D]) -> D:
        if kind is Document:
            return cast("D", Document(self.codec.decode_document(text, dict)))
        return cast("D", self.codec.decode_document(text, kind))

    def encode(self, key: str, value: object) -> bytes:
        """Return any value as it is stored."""
        with naming(key):
            return self.codec.encode(value)

    def decode(self, key: str, text: bytes) -> Any:
        """Return the value in a row."""
        with naming(key):
            return self.codec.decode(text)


@contextmanager
def naming(key: str) -> Iterator[None]:
    """Give the codec's errors, which know the path inside a document, the row that it is."""
    try:
        yield
    except DocumentError as error:
        error.key = key
        raise


@contextmanager
def _restoring(key: str) -> Iterator[None]:
    """Do as `naming`; a row that could not be stored again, nested too deep say, is unreadable."""
    with naming(key):
        try:
            yield
        except EncodeError as error:
            raise DecodeError(error.reason, path=error.path) from error


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Let nobody look for garbage among documents that were just loaded, and all live.

    Many of them are put where the collector does not look again: each time it would stop the bot
    for a second, and find nothing.
    """
    if not gc.isenabled():
        yield
        return
    before = gc.get_count()[0]
    gc.disable()
    try:
        yield
    finally:
        if gc.get_count()[0] - before > _MANY:
            gc.freeze()
        gc.enable()
