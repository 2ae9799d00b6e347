"""Documents as JSON Lines: one document a line, to be read by any program, and taken back exactly.

A line has all columns of a row::

    {"key":"chat/1","value":{"name":"Ada"},"version":3,"updated_at":1767312000500}

``value`` is the document as it is stored, tags included. A row whose text is not laid out as
kvpersist writes it, or is no JSON, has ``text`` instead: the text itself. The last line says how
many documents there are, so that a file that was cut off is noticed: ``{"documents":1}``.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any, Final

import orjson

from kvpersist.codec import Codec
from kvpersist.errors import DecodeError, TransferError
from kvpersist.stores.visitor import PAGE_ROWS, StoredRow

_END: Final = "documents"


def line(row: StoredRow) -> bytes:
    """Return the line of a row.

    Raises:
        TransferError: Its key or its text is no UTF-8, so that no line can hold it.
    """
    try:
        document = {"key": row.key, **value_of(row.value), "version": row.version}
        return orjson.dumps({**document, "updated_at": row.updated_at}) + b"\n"
    except (orjson.JSONEncodeError, UnicodeDecodeError) as error:
        shown = row.key.encode(errors="backslashreplace").decode()
        raise TransferError(
            f"{shown} cannot be exported: {error}; mend or delete the row"
        ) from error


def value_of(text: bytes) -> dict[str, Any]:
    """Return the member of a line that says all of a row's text: its value, or itself.

    Raises:
        UnicodeDecodeError: It is no UTF-8.
    """
    try:
        is_all = orjson.dumps(orjson.loads(text)) == text
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        is_all = False
    return {"value": orjson.Fragment(text)} if is_all else {"text": text.decode()}


def last_line(number: int) -> bytes:
    """Return the line that ends a file of so many documents."""
    return orjson.dumps({_END: number}) + b"\n"


async def lines(pages: AsyncIterator[Sequence[StoredRow]], take: Callable[[bytes], object]) -> int:
    """Give the lines of all rows to `take`, the last one included; return how many rows there were.

    Raises:
        TransferError: As `line`.
    """
    number = 0
    async for page in pages:
        for row in page:
            take(line(row))
        number += len(page)
    take(last_line(number))
    return number


async def rows(file: Iterable[bytes], name: str) -> AsyncIterator[Sequence[StoredRow]]:
    """Yield the rows of the lines of a file, in pages.

    Args:
        file: The lines.
        name: What errors call it.

    Raises:
        TransferError: A line is not one of these, or the last one is missing or not true. All that
            was yielded before must not be kept.
    """
    page: list[StoredRow] = []
    for row in _rows(file, name):
        page.append(row)
        if len(page) == PAGE_ROWS:
            yield page
            page = []
    if page:
        yield page


def _rows(file: Iterable[bytes], name: str) -> Iterator[StoredRow]:
    number = 0
    end: int | None = None
    for at, text in enumerate(file, 1):
        where = f"{name}, line {at}"
        if end is not None:
            raise TransferError(f"{where}: there is more after the last line; is it two files?")
        found = _parsed(text, where)
        if found.keys() == {_END}:
            end = found[_END]
        else:
            yield _row(found, where)
            number += 1
    if end is None:
        raise TransferError(
            f"{name} was cut off: its last line must say how many documents there are, "
            f'{{"documents":{number}}}; export it again, or add that line if these are all'
        )
    if end != number:
        raise TransferError(
            f"{name} has {number} documents, and its last line says {end}; export it again, or "
            "correct that line if these are all"
        )


def _parsed(text: bytes, where: str) -> dict[str, Any]:
    try:
        found = orjson.loads(text)
        if orjson.dumps(found) != text.rstrip(b"\r\n"):
            # It was written by another program, which may have integers that orjson has not.
            Codec().check(text)
    except (orjson.JSONDecodeError, DecodeError) as error:
        raise TransferError(f"{where}: {error}; see that line") from error
    if not isinstance(found, dict):
        raise TransferError(f"{where}: an object is wanted, with key and value; see that line")
    return found


def _row(found: dict[str, Any], where: str) -> StoredRow:
    if more := found.keys() - {"key", "value", "text", "version", "updated_at"}:
        raise TransferError(f"{where}: nobody knows {', '.join(sorted(more))}; see that line")
    key, text = found.get("key"), found.get("text")
    if type(key) is not str:
        raise TransferError(f"{where}: key must be a text; see that line")
    if ("value" in found) is ("text" in found) or type(text) not in {str, type(None)}:
        raise TransferError(f"{where}: it must have either value or text; see that line")
    numbers = [found.get("version", 1), found.get("updated_at", time.time_ns() // 1_000_000)]
    if any(type(number) is not int or not 0 <= number < 2**63 for number in numbers):
        raise TransferError(f"{where}: version and updated_at must be integers; see that line")
    value = orjson.dumps(found["value"]) if text is None else text.encode()
    return StoredRow(key, value, *numbers)
