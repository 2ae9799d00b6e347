"""PTB's callback-data cache as one document a keyboard, and back.

PTB hands over a list of ``(keyboard, access time, {button: data})`` and a dict that says which
keyboard each answered query came from. The order of both decides what PTB evicts first, so each
keyboard and query has a position; only what is new gets one, so that nothing else is rewritten.
A keyboard that was evicted while PTB still knows queries of it keeps a row with those alone::

    {"position": 7, "access_time": 1767312000.5,
     "buttons": {"5f…": ["vote", 3]}, "queries": {"98": 8}}
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

CallbackData: TypeAlias = tuple[list[tuple[str, float, dict[str, Any]]], dict[str, str]]
"""What PTB calls ``CDCData``: the keyboards, and the keyboard of each query."""

Document: TypeAlias = dict[str, Any]


class KeyboardDocuments:
    """Turns callback data into documents and back, and knows which keyboards have one."""

    def __init__(self) -> None:
        self._rows: set[str] = set()
        self._keyboards: dict[str, int] = {}
        self._queries: dict[str, int] = {}
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
        self._rows |= documents.keys()
        return {**documents, **dict.fromkeys(self._rows - documents.keys())}

    def forget(self, keyboards: Iterable[str]) -> None:
        """Note that these have no row any more; until then `split` says that they must go."""
        self._rows -= set(keyboards)

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
