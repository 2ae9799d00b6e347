"""Documents: dicts that PTB can hand over without a deep copy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any, Final, TypeVar

K = TypeVar("K")
V = TypeVar("V")

_HANDING_OVER: Final[ContextVar[bool]] = ContextVar("kvpersist_handing_over", default=False)


class Document(dict[K, V]):
    """A dict that costs no deep copy when the application hands it over to `KVPersistence`.

    `application_builder` uses it for ``chat_data``, ``user_data`` and ``bot_data``; a bot's own
    class may derive from it::

        class BotData(Document[str, Any]):
            ...

        builder = application_builder(KVPersistence("bot.db"))
        builder.context_types(ContextTypes(bot_data=BotData))

    In everything else it is a dict, and what it holds are ordinary objects. A `copy.deepcopy` that
    a bot makes is an ordinary deep copy.

    Notes:
        It is encoded after it was handed over, in one step of the event loop. Unlike a deep copy
        this cannot raise: a value that cannot be stored concerns its own row alone.
    """

    __slots__ = ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        # At the top of what is copied, memo is empty; below, somebody copies what holds this.
        if _HANDING_OVER.get() and not memo:
            return HandedOver(self)
        reduced: Any = self.__reduce_ex__(4)
        make, arguments, *rest = reduced
        copied = make(*deepcopy(arguments, memo))
        memo[id(self)] = copied
        if rest and rest[0] is not None:
            _set_state(copied, deepcopy(rest[0], memo))
        for key, value in self.items():
            copied[deepcopy(key, memo)] = deepcopy(value, memo)
        return copied


class HandedOver:
    """What PTB gets in place of a deep copy, and gives to the persistence: the document itself."""

    __slots__ = ("document",)

    def __init__(self, document: object) -> None:
        self.document = document


@contextmanager
def handing_over() -> Iterator[None]:
    """Let documents that are deep-copied in this context be handed over instead."""
    token = _HANDING_OVER.set(True)
    try:
        yield
    finally:
        _HANDING_OVER.reset(token)


def is_handing_over() -> bool:
    """Whether this is a run of PTB's in which `kvpersist.application` waits for the commit."""
    return _HANDING_OVER.get()


def stop_handing_over() -> None:
    """Make deep copies in this context ordinary ones: what runs next is code of the bot."""
    _HANDING_OVER.set(False)


def _set_state(copied: Any, state: Any) -> None:
    """Give a copy its attributes, as `copy.deepcopy` does."""
    if hasattr(copied, "__setstate__"):
        copied.__setstate__(state)
        return
    for attributes in state if isinstance(state, tuple) else (state,):
        for name, value in (attributes or {}).items():
            setattr(copied, name, value)
