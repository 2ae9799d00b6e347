"""PTB's cache of callback data, watched, or divided among the updates that several workers handle.

The one module that knows what PTB keeps private about it. If PTB changes that, `watch` returns
None, and the whole cache is handed over and compared instead, which is slower and just as good;
`divide` refuses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, MutableMapping
from typing import Any

from telegram.ext import CallbackDataCache

from kvpersist.callback_data import Shown
from kvpersist.errors import ConfigurationError


class Watched:
    """What was touched in a cache of callback data."""

    def __init__(self, keyboards: Any, queries: Any) -> None:
        self._keyboards = keyboards
        self._queries = queries

    def take(self) -> tuple[dict[str, Shown | None], dict[str, str | None]]:
        """Return what was touched since this was called last: keyboards, and presses of buttons."""
        keyboards = {name: self.keyboard(name) for name in self._keyboards.touched}
        queries = {query: self._queries.peek(query) for query in self._queries.touched}
        self._keyboards.touched.clear()
        self._queries.touched.clear()
        return keyboards, queries

    def touch(self, query: str) -> None:
        """Note that the data of the button that was pressed may have been changed."""
        if (name := self._queries.peek(query)) is not None:
            self._keyboards.touched[name] = None

    def keyboard(self, name: str) -> Shown | None:
        """Return a keyboard, without using it; None if it is gone."""
        found = self._keyboards.peek(name)
        return None if found is None else found.to_tuple()[1:]


def watch(cache: CallbackDataCache) -> Watched | None:
    """Begin to look at what is touched in a cache; all that it holds counts as touched.

    It puts other mappings in the place of two that are private to PTB. None if PTB is not as it
    was.
    """
    keyboards = _watched(getattr(cache, "_keyboard_data", None), cache.maxsize)
    queries = _watched(getattr(cache, "_callback_queries", None), cache.maxsize)
    if keyboards is None or queries is None:
        return None
    cache._keyboard_data, cache._callback_queries = keyboards, queries  # noqa: SLF001  see above
    return Watched(keyboards, queries)


def _watched(mapping: Any, maxsize: int) -> Any:
    kind: Any = next((kind for kind in type(mapping).__mro__ if kind.__name__ == "LRUCache"), None)
    if kind is None:
        return None
    look: Any = kind.__mro__[1].__getitem__  # the cache's below the one that knows the order

    class WatchedMapping(kind):  # type: ignore[misc]
        """A mapping that notes what is touched."""

        def __init__(self) -> None:
            super().__init__(maxsize=maxsize)
            self.touched: dict[str, None] = {}  # an ordered set

        def __getitem__(self, key: str) -> Any:
            self.touched[key] = None
            return super().__getitem__(key)

        def __setitem__(self, key: str, value: Any) -> None:
            self.touched[key] = None
            super().__setitem__(key, value)

        def __delitem__(self, key: str) -> None:
            self.touched[key] = None
            super().__delitem__(key)

        def clear(self) -> None:
            self.touched.update(dict.fromkeys(self))
            super().clear()

        def peek(self, key: str) -> Any:
            """Return a value as if nobody had asked; None if there is none."""
            return look(self, key) if key in self else None

    watched = WatchedMapping()
    for key in list(mapping):
        watched[key] = mapping[key]
    return watched


class Divided(MutableMapping[str, Any]):
    """One mapping in the eyes of PTB, and another for each update.

    Args:
        of: Returns that of the running code.
    """

    def __init__(self, of: Callable[[], MutableMapping[str, Any]]) -> None:
        self._of = of

    def __getitem__(self, key: str) -> Any:
        return self._of()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        self._of()[key] = value

    def __delitem__(self, key: str) -> None:
        del self._of()[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._of())

    def __len__(self) -> int:
        return len(self._of())


def divide(
    cache: CallbackDataCache,
    keyboards: Callable[[], MutableMapping[str, Any]],
    queries: Callable[[], MutableMapping[str, Any]],
) -> None:
    """Give each update a cache of its own, of which nothing is left when it is over.

    It puts other mappings in the place of the two that are private to PTB.

    Raises:
        ConfigurationError: PTB is not as it was.
    """
    if not hasattr(cache, "_keyboard_data") or not hasattr(cache, "_callback_queries"):
        raise ConfigurationError(
            "this python-telegram-bot keeps callback data in another way than kvpersist knows; "
            "without arbitrary_callback_data, or with an older one, shared=True works"
        )
    cache._keyboard_data = Divided(keyboards)  # noqa: SLF001  see above
    cache._callback_queries = Divided(queries)  # noqa: SLF001
