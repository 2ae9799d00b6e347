"""The rows of inline keyboards: loaded and written as PTB's cache of callback data needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvpersist import keys
from kvpersist.callback_cache import Watched
from kvpersist.callback_data import CallbackData, Document, KeyboardDocuments, is_keyboard
from kvpersist.errors import DecodeError, EncodeError
from kvpersist.rows import HandedOver, Rows


class Keyboards:
    """The keyboards that are stored."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._documents = KeyboardDocuments()
        self._is_loaded = False

    async def load(self) -> CallbackData | None:
        """Return what PTB's cache held, or None where nothing is stored. Raises as `Rows.load`."""
        documents: dict[str, Document] = {}

        def take(key: str, document: Any) -> None:
            if not is_keyboard(document):
                raise DecodeError("not a keyboard of kvpersist; mend or delete the row", key=key)
            documents[keys.keyboard_id(key)] = document

        await self._rows.load_values(keys.CALLBACK, take)
        self._documents = KeyboardDocuments()
        self._is_loaded = True
        data = self._documents.join(documents)
        return data if documents else None

    async def write(self, data: CallbackData) -> None:
        """Write the keyboards that changed, remove those that are gone.

        Raises:
            EncodeError: For the first keyboard that cannot be stored; all others were written.
            WriteError: The store refused. The rows are kept and tried again.
        """
        if not self._is_loaded:
            await self.load()
        documents = self._documents.split(data)
        self._encode(documents, handed := HandedOver())
        await self._rows.commits.write(handed.changes)
        self._documents.forget_removed(documents)
        if handed.refused:
            raise handed.refused[0]

    def hand_over(self, handed: HandedOver, data: CallbackData) -> None:
        """Put the rows of all keyboards into `handed`, which goes to group commit at once."""
        self._hand_over(handed, self._documents.split(data))

    def hand_over_touched(self, handed: HandedOver, watched: Watched) -> None:
        """Do as `hand_over` for those that were touched since this was called last."""
        self._hand_over(handed, self._documents.change(*watched.take(), watched.keyboard))

    def _hand_over(self, handed: HandedOver, documents: Mapping[str, Document | None]) -> None:
        self._encode(documents, handed)
        self._documents.forget_removed(documents)

    def _encode(self, documents: Mapping[str, Document | None], handed: HandedOver) -> None:
        for keyboard, document in documents.items():
            key = keys.keyboard_key(keyboard)
            try:
                text = None if document is None else self._rows.encode(key, document)
                handed.changes[key] = text
            except EncodeError as error:
                handed.refused.append(error)
