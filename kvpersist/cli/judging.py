"""Whether a row can be read by a bot, told without a bot and without its classes."""

from __future__ import annotations

import re
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
_UPDATE: Final = re.compile(rf"{keys.UPDATE}[0-9]+", re.ASCII)


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
            return Verdict(reason, frozenset(classes))
        return Verdict("", frozenset(classes))

    def _decoded(self, text: bytes, classes: set[str]) -> Any:
        stored = self._stored(text)
        parts: list[tuple[str, Any]] = []
        document = self._codec.decode(orjson.dumps(self._without(stored, classes, parts)))
        for name, part in parts:  # which may find more of them
            self._look_into(name, part, classes, parts)
        found = tagged(stored)
        return {} if found is not None and self._is_unknown(found[0]) else document

    def _stored(self, text: bytes) -> Any:
        try:
            stored = orjson.loads(text)
            is_exact = orjson.dumps(stored) == text
        except (orjson.JSONDecodeError, orjson.JSONEncodeError):
            is_exact = False
        if not is_exact:  # it may hold what orjson reads without a word, but not exactly
            self._codec.check(text)
        return stored

    def _look_into(
        self, name: str, part: Any, classes: set[str], parts: list[tuple[str, Any]]
    ) -> None:
        try:
            self._codec.decode(orjson.dumps(self._without(part, classes, parts)))
        except DecodeError as error:
            error.reason = f"in an object of {name}: {error.reason}"
            raise

    def _without(self, value: Any, classes: set[str], parts: list[tuple[str, Any]]) -> Any:
        """Put a text in place of what only the bot knows: itself, and objects of its classes.

        What those hold is added to `parts`, to be looked at by itself.
        """
        found = tagged(value)
        if found is not None:
            tag, payload = found
            if tag == "$mappingproxy" and (inner := tagged(payload)) and self._is_unknown(inner[0]):
                return self._without(payload, classes, parts)
            if tag == _BOT or self._is_unknown(tag):
                if tag != _BOT:
                    classes.add(tag[len(_OWN) :])
                    items = payload.values() if type(payload) is dict else [payload]
                    parts += [(tag[len(_OWN) :], item) for item in items]
                return f"{tag} {len(parts)}"  # another one each time, since it may be in a set
            if tag == "$defaultdict" and type(payload) is list and payload:
                name = self._factory(payload[0], classes)
                return {tag: [name, *self._without(payload[1:], classes, parts)]}
        if type(value) is dict:
            return {name: self._without(item, classes, parts) for name, item in value.items()}
        if type(value) is list:
            return [self._without(item, classes, parts) for item in value]
        return value

    def _is_unknown(self, tag: str) -> bool:
        return tag.startswith(_OWN) and tag not in self._tags

    def _factory(self, name: Any, classes: set[str]) -> Any:
        if type(name) is not str or not name.startswith(":") or f"${name}" in self._tags:
            return name
        classes.add(name[1:])
        return None

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
        elif key != keys.BOT and not _UPDATE.fullmatch(key):
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
