"""The names of conversations' rows: ``conversation/<handler>/<key of PTB's as a JSON array>``."""

from __future__ import annotations

from contextlib import suppress
from urllib.parse import unquote

from kvpersist import keys
from kvpersist.codec import Codec
from kvpersist.errors import DecodeError, EncodeError


def row_key(codec: Codec, name: str, key: tuple[int | str, ...]) -> str:
    """Return the key of the row of a conversation of the handler `name`.

    Raises:
        EncodeError: A part of `key` cannot be stored.
    """
    prefix = keys.conversation_prefix(name)
    try:
        return prefix + codec.encode(list(key)).decode()
    except EncodeError as error:
        error.key = f"{prefix}{key!r}"
        raise


def parse(codec: Codec, row: str) -> tuple[str, tuple[int | str, ...]]:
    """Return the handler's name and the key of PTB's in a key that `row_key` made.

    Raises:
        DecodeError: It is not written as kvpersist writes it, and so would be another row.
    """
    with suppress(ValueError, TypeError, DecodeError, EncodeError):
        _, name, text = row.split("/", 2)
        name = unquote(name, errors="surrogatepass")
        key = tuple(codec.decode(text.encode(errors="surrogateescape")))
        hash(key)
        if row_key(codec, name, key) == row:
            return name, key
    raise DecodeError("not the key of a conversation; rename or delete the row", key=row)
