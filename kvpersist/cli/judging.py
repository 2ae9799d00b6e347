"""Whether a row can be read by a bot, told without a bot and without its classes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import orjson

from kvpersist import conversation_keys, keys
from kvpersist.callback_data import is_keyboard
from kvpersist.cli.tags import tagged
from kvpersist.codec import Codec
from kvpersist.errors import DecodeError

_OWN: Final = "$:"
_BOT: Final = "$telegram.Bot"


@dataclass(frozen=True)
class Verdict:
    """What is known of a row.

    Attributes:
        fault: Why it cannot be read; empty if it can, as far as is known.
        classes: Classes of the bot's that it has and that were not named: so far they are taken as
            they are stored.
    """

    fault: str
    classes: frozenset[str]


class Judge:
    """Tells of rows whether a bot can read them.

    Args:
        codec: What the bot has, or less: objects of classes that it does not know are looked at as
            they are stored.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._tags = codec.tags()

    def row(self, key: str, text: bytes) -> Verdict:
        """Say what is wrong with a row, if anything is."""
        classes: set[str] = set()
        try:
            value = self._decoded(text, classes)
            self._check(key, value, is_known=not classes)
        except DecodeError as error:
            reason = f"{error.path}: {error.reason}" if error.path else error.reason
            if classes:
                reason += f" (it has {', '.join(sorted(classes))}: say --types to be sure)"
            return Verdict(reason, frozenset(classes))
        return Verdict("", frozenset(classes))

    def _decoded(self, text: bytes, classes: set[str]) -> Any:
        self._codec.check(text)
        try:
            stored = orjson.loads(text)
        except orjson.JSONDecodeError:
            return self._codec.decode(text)  # which says so
        return self._codec.decode(orjson.dumps(self._without(stored, classes)))

    def _without(self, value: Any, classes: set[str]) -> Any:
        """Put what can be read in place of what only the bot knows: its classes, and itself."""
        found = tagged(value)
        if found is not None:
            tag, payload = found
            if tag == _BOT:
                return None
            if tag.startswith(_OWN) and tag not in self._tags:
                classes.add(tag[len(_OWN) :])
                # A tuple, since it may be a key, or in a set.
                items = payload.values() if type(payload) is dict else [payload]
                inner = [self._without(item, classes) for item in items]
                return {"$tuple": [tag[len(_OWN) :], *inner]}
        if type(value) is dict:
            return {name: self._without(item, classes) for name, item in value.items()}
        return [self._without(item, classes) for item in value] if type(value) is list else value

    def _check(self, key: str, value: Any, *, is_known: bool) -> None:
        scope = key.partition("/")[0]
        if key.startswith(("chat/", "user/")):
            keys.document_id("chat" if scope == "chat" else "user", key)
        elif key.startswith(keys.CALLBACK):
            keys.keyboard_id(key)
            if not is_keyboard(value) and is_known:
                raise DecodeError("not a keyboard of kvpersist; mend or delete the row")
        elif key.startswith(keys.CONVERSATION):
            conversation_keys.parse(self._codec, key)
        elif key != keys.BOT:
            raise DecodeError("no key of kvpersist's; rename or delete the row")
        if scope in {"chat", "user", "bot"} and type(value) in {
            list,
            str,
            int,
            float,
            bool,
            type(None),
        }:
            raise DecodeError(
                "no document: an object is what a bot expects; mend or delete the row"
            )
