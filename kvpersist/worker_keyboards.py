"""The buttons of a bot that many workers share: each update reads the keyboards that it shows.

A keyboard's row is written once, by whoever sends it, and never changed: thousands may press the
same button without waiting for each other.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, MutableMapping
from functools import partial
from typing import Any

from telegram import Update
from telegram.ext import CallbackDataCache, ExtBot

from kvpersist import keys
from kvpersist.callback_cache import divide
from kvpersist.callback_data import is_keyboard
from kvpersist.callback_queries import keyboards_of, restore
from kvpersist.errors import DecodeError
from kvpersist.rows import Rows
from kvpersist.shared import Shared
from kvpersist.unit import Unit


class WorkerKeyboards:
    """Puts keyboards into PTB's cache of callback data for one update, and takes them out again.

    Args:
        bot: Whose.
        cache: PTB's.
        shared: Where they are.
        rows: How they are written.
        note_sent: Called after a keyboard was sent by no update, but a job, for example: see
            `write_sent`.
    """

    def __init__(
        self,
        bot: ExtBot[Any],
        cache: CallbackDataCache,
        shared: Shared,
        rows: Rows,
        note_sent: Callable[[], None],
    ) -> None:
        self._bot = bot
        self._cache = cache
        self._shared = shared
        self._rows = rows
        self._note_sent = note_sent
        self._sent: dict[str, Any] = {}
        divide(cache, self._of_update, self._queries)

    def _of_update(self) -> MutableMapping[str, Any]:
        unit = self._shared.unit()
        return unit.keyboards if unit is not None and unit.is_update else _Sent(self._take)

    def _queries(self) -> MutableMapping[str, Any]:
        unit = self._shared.unit()
        return {} if unit is None else unit.queries

    def _take(self, name: str, keyboard: Any) -> None:
        self._sent[name] = keyboard
        self._note_sent()

    def rows_of(self, update: Update) -> list[str]:
        """Return the keys of the rows that an update needs."""
        return [keys.keyboard_key(name) for name in keyboards_of(update)]

    def show(self, update: Update, unit: Unit) -> Callable[[], None]:
        """Have PTB find the data of the buttons in an update.

        It has looked in vain when the update came in, before anything could be read.

        Returns:
            What takes the data out of the update again, so that it can be handled once more.

        Raises:
            DecodeError: A row is no keyboard.
        """
        shown = []
        for key in self.rows_of(update):
            if (text := unit.text(key)) is not None:
                document = self._rows.decode(key, text)
                if not is_keyboard(document):
                    raise DecodeError("not a keyboard of kvpersist; mend or delete it", key=key)
                if "buttons" in document:
                    name = keys.keyboard_id(key)
                    shown.append((name, document["access_time"], document["buttons"]))
        self._cache.load_persistence_data((shown, {}))
        unit.shown |= {name for name, *_ in shown}
        take_out = restore(update)
        self._bot.insert_callback_data(update)
        return take_out

    def write(self, unit: Unit) -> None:
        """Have written what an update has sent, and removed what it has dropped."""
        for name in unit.shown - unit.keyboards.keys():
            unit.write(keys.keyboard_key(name), None)
        self._write_all(unit, [unit.keyboards[name] for name in unit.keyboards.keys() - unit.shown])

    def _write_all(self, unit: Unit, keyboards: Iterable[Any]) -> None:
        for keyboard in keyboards:
            name, access_time, buttons = keyboard.to_tuple()
            document = {
                "position": time.time_ns(),
                "access_time": access_time,
                "buttons": buttons,
                "queries": {},
            }
            key = keys.keyboard_key(name)
            unit.write(key, partial(self._rows.encode, key, document))

    async def write_sent(self) -> list[Any]:
        """Write what was sent by no update; return why some cannot be stored.

        Raises:
            StoreError: They are kept for the next time. Those that may have been written all the
                same, since only the answer was lost, are left out then.
        """
        sent, self._sent = self._sent, {}
        if not sent:
            return []
        rows = {keys.keyboard_key(name): keyboard for name, keyboard in sent.items()}
        try:
            async with self._shared.begin([], reads=rows) as unit:
                self._write_all(unit, [rows[key] for key in rows.keys() - unit.rows.keys()])
        except BaseException:
            self._sent = sent | self._sent
            raise
        return unit.refused


class _Sent(dict[str, Any]):
    """Keyboards that are sent outside of any update: noted, and not to be found."""

    def __init__(self, note: Callable[[str, Any], None]) -> None:
        super().__init__()
        self._note = note

    def __setitem__(self, name: str, keyboard: Any) -> None:
        self._note(name, keyboard)
