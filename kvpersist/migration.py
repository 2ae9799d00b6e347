"""What a persistence of python-telegram-bot keeps, as rows, and back.

Each way every document is looked at again: what a row gives back is written anew, and must be the
same text.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from kvpersist import conversation_keys, keys
from kvpersist.callback_data import CallbackData, KeyboardDocuments, is_keyboard
from kvpersist.codec import Codec
from kvpersist.codec.form import qualified
from kvpersist.errors import DecodeError, DocumentError, EncodeError
from kvpersist.stores.visitor import PAGE_ROWS, StoredRow


@dataclass
class Data:
    """All that a persistence keeps, as PTB hands it over.

    Attributes:
        bot_data: None if there is none.
        conversations: By the name of the handler, and the key of the conversation.
    """

    user_data: dict[int, Any] = field(default_factory=dict)
    chat_data: dict[int, Any] = field(default_factory=dict)
    bot_data: Any = None
    callback_data: CallbackData | None = None
    conversations: dict[str, dict[tuple[int | str, ...], Any]] = field(default_factory=dict)


class Rows:
    """The rows of `Data`. What cannot be stored is left out, and told.

    Args:
        data: What is to be stored.
        codec: How.
        is_listed: Whether a class is one of the bot's that were named, or plain.

    Attributes:
        faults: Why documents, keyboards or conversations have no row.
    """

    def __init__(self, data: Data, codec: Codec, is_listed: Callable[[type], bool]) -> None:
        self._data = data
        self._codec = codec
        self._is_listed = is_listed
        self.faults: list[DocumentError] = []

    async def pages(self) -> AsyncIterator[Sequence[StoredRow]]:
        """Yield the rows."""
        page: list[StoredRow] = []
        now = time.time_ns() // 1_000_000
        for make, again in self._all():
            try:
                key, value = make()
                text = again(self._codec, key, value)
            except DocumentError as error:
                self.faults.append(error)
                continue
            page.append(StoredRow(key, text, 1, now))
            if len(page) == PAGE_ROWS:
                yield page
                page = []
        if page:
            yield page

    def _all(self) -> Iterator[tuple[Callable[[], tuple[str, Any]], Any]]:
        """Yield what makes each key and value, and what makes the text of that."""
        data = self._data
        scopes: tuple[tuple[keys.Scope, dict[int, Any]], ...] = (
            ("user", data.user_data),
            ("chat", data.chat_data),
        )
        for scope, documents in scopes:
            for each, document in documents.items():
                yield _named(keys.document_key, scope, each, document), self._document
        if data.bot_data is not None:
            yield lambda: (keys.BOT, data.bot_data), self._document
        for name, conversations in data.conversations.items():
            for key, state in conversations.items():
                if state is not None:  # one that has ended
                    yield _named(conversation_keys.row_key, self._codec, name, key, state), _value
        if data.callback_data is not None:
            documents_of = KeyboardDocuments().split(data.callback_data)
            for keyboard, shown in documents_of.items():
                yield _named(keys.keyboard_key, keyboard, shown), _value

    def _document(self, codec: Codec, key: str, value: Any) -> bytes:
        kind = type(value)
        if not self._is_listed(kind):
            raise EncodeError(f"a document of the class {qualified(kind)}; name it", key=key)
        try:
            text = codec.encode_document(value, kind)
            again = codec.encode_document(codec.decode_document(text, kind), kind)
        except DocumentError as error:
            error.key = key
            raise
        return _same(key, text, again)


def _named(make: Callable[..., str], *arguments: Any) -> Callable[[], tuple[str, Any]]:
    *names, value = arguments
    return lambda: (make(*names), value)


def _value(codec: Codec, key: str, value: Any) -> bytes:
    try:
        text = codec.encode(value)
        again = codec.encode(codec.decode(text))
    except DocumentError as error:
        error.key = key
        raise
    return _same(key, text, again)


def _same(key: str, text: bytes, again: bytes) -> bytes:
    if text != again:
        raise EncodeError("it would not come back as it is", key=key)
    return text


async def data_of(
    pages: AsyncIterator[Sequence[StoredRow]], codec: Codec, faults: list[DocumentError]
) -> Data:
    """Return what rows hold; what cannot be read is left out, and added to `faults`."""
    data = Data()
    keyboards: dict[str, Any] = {}
    async for page in pages:
        found = (_take(data, keyboards, row, codec) for row in page)
        faults += [fault for fault in found if fault is not None]
    if keyboards:
        data.callback_data = KeyboardDocuments().join(keyboards)
    return data


def _take(
    data: Data, keyboards: dict[str, Any], row: StoredRow, codec: Codec
) -> DecodeError | None:
    """Put what a row holds where it belongs, or return why it cannot be read."""
    try:
        codec.check(row.value)
        _put(data, keyboards, row.key, codec.decode(row.value), codec)
    except DecodeError as error:
        error.key = row.key
        return error
    return None


def _put(data: Data, keyboards: dict[str, Any], key: str, value: Any, codec: Codec) -> None:
    if key.startswith("user/"):
        data.user_data[keys.document_id("user", key)] = value
    elif key.startswith("chat/"):
        data.chat_data[keys.document_id("chat", key)] = value
    elif key == keys.BOT:
        data.bot_data = value
    elif key.startswith(keys.CONVERSATION):
        name, parts = conversation_keys.parse(codec, key)
        data.conversations.setdefault(name, {})[parts] = value
    elif key.startswith(keys.CALLBACK) and is_keyboard(value):
        keyboards[keys.keyboard_id(key)] = value
    else:
        raise DecodeError("no document of kvpersist's")
