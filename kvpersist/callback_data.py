"""PTB's callback-data cache as one document a keyboard, and back.

PTB hands over a list of ``(keyboard, access time, {button: data})`` and a dict that says which
keyboard each answered query came from. The order of both decides what PTB evicts first, so each
keyboard and query has a position; only what is new gets one, so that nothing else is rewritten.
A keyboard that was evicted while PTB still knows queries of it keeps a row with those alone::

    {"position": 7, "access_time": 1767312000.5,
     "buttons": {"5f…": ["vote", 3]}, "queries": {"98": 8}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias, cast

CallbackData: TypeAlias = tuple[list[tuple[str, float, dict[str, Any]]], dict[str, str]]
"""What PTB calls ``CDCData``: the keyboards, and the keyboard of each query."""

Document: TypeAlias = dict[str, Any]
Shown: TypeAlias = tuple[float, dict[str, Any]]
"""When a keyboard was used last, and the data of its buttons."""


class KeyboardDocuments:
    """Turns callback data into documents and back, and knows which keyboards have one."""

    def __init__(self) -> None:
        self._rows: set[str] = set()
        self._keyboards: dict[str, int] = {}
        self._queries: dict[str, int] = {}
        self._queries_of: dict[str, dict[str, int]] = {}
        self._keyboard_of: dict[str, str] = {}
        self._last = 0

    def split(self, data: CallbackData) -> dict[str, Document | None]:
        """Return the document of each keyboard; None for one that has a document no more."""
        keyboards, queries = data
        self._keyboards = self._place(self._keyboards, [keyboard for keyboard, _, _ in keyboards])
        self._queries = self._place(self._queries, queries)
        documents: dict[str, Document] = {
            keyboard: {
                "position": self._keyboards[keyboard],
                "access_time": access_time,
                "buttons": buttons,
                "queries": {},
            }
            for keyboard, access_time, buttons in keyboards
        }
        for query, keyboard in queries.items():
            document = documents.setdefault(keyboard, {"queries": {}})
            document["queries"][query] = self._queries[query]
        self._index(queries)
        self._rows |= documents.keys()
        return {**documents, **dict.fromkeys(self._rows - documents.keys())}

    def change(
        self,
        keyboards: Mapping[str, Shown | None],
        queries: Mapping[str, str | None],
        shown: Callable[[str], Shown | None],
    ) -> dict[str, Document | None]:
        """Return the documents of those keyboards alone that were touched; None as in `split`.

        Args:
            keyboards: Those that were made, used, evicted or dropped; None for what is gone.
            queries: Likewise the presses, with the keyboards that they came from.
            shown: Returns a keyboard of which only presses were touched.
        """
        touched = dict(keyboards)
        for query, keyboard in queries.items():
            before = self._keyboard_of.pop(query, None)
            for name in {before, keyboard} - {None, *touched}:
                touched[cast("str", name)] = shown(cast("str", name))
            position = self._queries.pop(query, 0) if before == keyboard else 0
            if before is not None:
                self._queries.pop(query, None)
                del self._queries_of[before][query]
            if keyboard is not None:
                self._queries[query] = position or self._next()
                self._keyboard_of[query] = keyboard
                self._queries_of.setdefault(keyboard, {})[query] = self._queries[query]
        return {
            name: document
            for name, data in touched.items()
            if (document := self._document(name, data)) is not None or name in self._rows
        }

    def _document(self, name: str, data: Shown | None) -> Document | None:
        """Return the document of one keyboard, or None if there is nothing to keep of it."""
        queries = self._queries_of.get(name, {})
        document: Document | None = None
        if data is not None:
            position = self._keyboards.setdefault(name, 0) or self._next()
            self._keyboards[name] = position
            access_time, buttons = data
            document = {
                "position": position,
                "access_time": access_time,
                "buttons": buttons,
                "queries": dict(queries),
            }
        else:
            self._keyboards.pop(name, None)
            if queries:
                document = {"queries": dict(queries)}
            else:
                self._queries_of.pop(name, None)
        if document is not None:
            self._rows.add(name)
        return document

    def _index(self, keyboard_of: Mapping[str, str]) -> None:
        self._keyboard_of = dict(keyboard_of)
        self._queries_of = {}
        for query, keyboard in keyboard_of.items():
            self._queries_of.setdefault(keyboard, {})[query] = self._queries[query]

    def _next(self) -> int:
        self._last += 1
        return self._last

    def forget_removed(self, documents: Mapping[str, Document | None]) -> None:
        """Note that those which are None have no row any more; until then `split` says so again."""
        self._rows.difference_update(
            keyboard for keyboard, document in documents.items() if document is None
        )

    def join(self, documents: Mapping[str, Document]) -> CallbackData:
        """Return what `split` made `documents` from, and take up its positions."""
        shown = {key: document for key, document in documents.items() if "buttons" in document}
        placed = {
            query: (position, keyboard)
            for keyboard, document in documents.items()
            for query, position in document["queries"].items()
        }
        self._rows = set(documents)
        self._keyboards = {key: shown[key]["position"] for key in _by_position(shown)}
        self._queries = {
            query: placed[query][0] for query in sorted(placed, key=placed.__getitem__)
        }
        self._last = max([0, *self._keyboards.values(), *self._queries.values()])
        self._index({query: keyboard for query, (_, keyboard) in placed.items()})
        return (
            [(key, shown[key]["access_time"], shown[key]["buttons"]) for key in self._keyboards],
            {query: placed[query][1] for query in self._queries},
        )

    def _place(self, known: Mapping[str, int], names: Iterable[str]) -> dict[str, int]:
        """Return rising positions for `names`, the known ones where they still rise."""
        placed: dict[str, int] = {}
        highest = 0
        for name in names:
            position = known.get(name, 0)
            if position <= highest:
                position = self._last = self._last + 1
            placed[name] = highest = position
        return placed


def is_keyboard(document: Any) -> bool:
    """Whether `document` is of the form that `KeyboardDocuments.split` gives it."""
    if not isinstance(document, dict) or not _is_positions(document.get("queries")):
        return False
    return document.keys() == {"queries"} or (
        document.keys() == {"position", "access_time", "buttons", "queries"}
        and type(document["position"]) is int
        and type(document["access_time"]) is float
        and type(document["buttons"]) is dict
    )


def _is_positions(value: Any) -> bool:
    return type(value) is dict and all(type(position) is int for position in value.values())


def _by_position(documents: Mapping[str, Document]) -> list[str]:
    return sorted(documents, key=lambda key: (documents[key]["position"], key))
