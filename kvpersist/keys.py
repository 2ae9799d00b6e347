"""The names of rows: which key a document of a scope has, and back.

==================================  ====================================================
``chat/<id>``, ``user/<id>``        ``chat_data`` of one chat, ``user_data`` of one user
``bot``                             ``bot_data``
``callback/<keyboard>``             one inline keyboard of the callback-data cache
``conversation/<name>/<key>``       the state of one conversation of one handler
``update/<id>``                     that an update was handled, if workers are to handle none twice
==================================  ====================================================

Names keep their letters, so that a person can read them; only what would make a key ambiguous or
unreadable (``/``, ``%``, control characters, lone surrogates) is percent-encoded (RFC 3986, 2.1).
"""

from __future__ import annotations

import re
from typing import Final, Literal, TypeAlias
from urllib.parse import quote, unquote

from kvpersist.errors import DecodeError, EncodeError

Scope: TypeAlias = Literal["chat", "user"]
Name: TypeAlias = tuple[Scope, int]
"""The data of one chat, or of one user."""

BOT: Final = "bot"
CALLBACK: Final = "callback/"
CONVERSATION: Final = "conversation/"
UPDATE: Final = "update/"

# Bounded, because int() takes quadratic time. Telegram's ids have at most 52 bits.
_MOST_DIGITS: Final = 100
_ID = re.compile(rf"0|-?[1-9][0-9]{{0,{_MOST_DIGITS - 1}}}", re.ASCII)
_SHOWN_ID: Final = 40
_RESERVED = re.compile("[%/\x00-\x1f\x7f-\x9f\ud800-\udfff]")


def document_key(scope: Scope, document_id: int) -> str:
    """Return the key of a chat's or user's document.

    Raises:
        EncodeError: `document_id` is not an int, or has more than 100 digits.
    """
    if not isinstance(document_id, int) or isinstance(document_id, bool):
        raise EncodeError(
            f"the id of a {scope} must be an int, not {document_id!r:.{_SHOWN_ID}}; use bot_data "
            "for other keys",
            key=f"{scope}/{document_id!s:.{_SHOWN_ID}}",
        )
    if abs(document_id) >= 10**_MOST_DIGITS:
        raise EncodeError(
            f"the id of a {scope} has at most {_MOST_DIGITS} digits; use bot_data for other keys",
            key=f"{scope}/…",
        )
    return f"{scope}/{int(document_id)}"


def document_id(scope: Scope, key: str) -> int:
    """Return the id in a key that `document_key` made.

    Raises:
        DecodeError: What follows the scope is not an int as kvpersist writes it.
    """
    text = key[len(scope) + 1 :]
    if not _ID.fullmatch(text):
        shown = text if len(text) <= _SHOWN_ID else text[:_SHOWN_ID] + "…"
        raise DecodeError(
            f"{shown!r} is not the id of a {scope}; rename or delete the row", key=key
        )
    return int(text)


def keyboard_key(keyboard: str) -> str:
    """Return the key of an inline keyboard's row."""
    return CALLBACK + _escape(keyboard)


def keyboard_id(key: str) -> str:
    """Return the keyboard in a key that `keyboard_key` made.

    Raises:
        DecodeError: It is not written as kvpersist writes it, and so would be another row.
    """
    try:
        keyboard = unquote(key[len(CALLBACK) :], errors="surrogatepass")
    except UnicodeDecodeError:
        keyboard = ""
    if keyboard_key(keyboard) != key:
        raise DecodeError("not the key of a keyboard; rename or delete the row", key=key)
    return keyboard


def conversation_prefix(name: str) -> str:
    """Return what the keys of all conversations of the handler `name` begin with."""
    return f"{CONVERSATION}{_escape(name)}/"


def _escape(name: str) -> str:
    return _RESERVED.sub(
        lambda found: quote(found[0].encode("utf-8", "surrogatepass"), safe=""), name
    )
