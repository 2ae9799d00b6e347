"""The small immutable values of the standard library: ids, paths, patterns, addresses."""

from __future__ import annotations

import re
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
)
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any, Final
from uuid import UUID, SafeUUID

from kvpersist.codec.decoder import Decoder, pair
from kvpersist.codec.encoder import Encoder
from kvpersist.codec.form import Form, text_form
from kvpersist.errors import EncodeError

_PATTERN_LENGTH: Final = 1000
"""Compiling takes up to some milliseconds for each character, if ranges ignore case."""
_PATTERN_FLAGS: Final = int(
    re.ASCII | re.IGNORECASE | re.LOCALE | re.MULTILINE | re.DOTALL | re.UNICODE | re.VERBOSE
)
"""All but `re.DEBUG`, which prints."""


def _uuid_parts(value: UUID, _: Encoder) -> object:
    # uuid1() says whether two processes can have got the same one; equality does not ask.
    safe = value.is_safe
    return str(value) if safe is SafeUUID.unknown else [str(value), safe.name]


def _uuid_value(payload: list[Any], _: Decoder) -> UUID:
    text, safe = pair(payload)
    return UUID(text, is_safe=SafeUUID[safe])


def _path_form(tag: str, kind: type[PurePath]) -> Form:
    def encode(value: PurePath, encoder: Encoder) -> object:
        text = str(value)
        # Some Pythons write "./a:" as "a:", which is a drive.
        if kind(text).parts != value.parts:
            raise EncodeError(f"the path {value!r}, whose text means another path; keep its parts")
        return encoder.value(text)

    def decode(payload: Any, decoder: Decoder) -> PurePath:
        return kind(_text(payload, decoder))

    return Form(tag, encode, decode, (str, dict))


def _text(payload: Any, decoder: Decoder) -> str:
    text = decoder.value(payload)
    if type(text) is not str:
        raise TypeError("it must hold a str")
    return text


def _pattern_parts(value: re.Pattern[Any], encoder: Encoder) -> object:
    if len(value.pattern) > _PATTERN_LENGTH or value.flags & ~_PATTERN_FLAGS:
        raise EncodeError(
            f"a pattern of more than {_PATTERN_LENGTH} characters, or with re.DEBUG; "
            "keep its text, and compile it where it is used"
        )
    return [encoder.value(value.pattern), value.flags]


def _pattern_value(payload: list[Any], decoder: Decoder) -> re.Pattern[Any]:
    source, flags = pair(decoder.items(payload))
    if type(source) not in {str, bytes} or len(source) > _PATTERN_LENGTH:
        raise ValueError(f"it must be a str or bytes, of at most {_PATTERN_LENGTH} characters")
    if type(flags) is not int or flags & ~_PATTERN_FLAGS:
        raise ValueError("these flags are not known")
    return re.compile(source, flags)


_ADDRESSES: Final[dict[type, str]] = {
    IPv4Address: "$ipv4address",
    IPv4Interface: "$ipv4interface",
    IPv4Network: "$ipv4network",
    IPv6Address: "$ipv6address",
    IPv6Interface: "$ipv6interface",
    IPv6Network: "$ipv6network",
}

# On Windows Path is WindowsPath. One of the other system's paths can be read nowhere but there.
_PATH: Final = type(Path())
_PATHS: Final[dict[type[PurePath], str]] = {
    PurePosixPath: "$pureposixpath",
    PureWindowsPath: "$purewindowspath",
    _PATH: f"${_PATH.__name__.lower()}",
}

FORMS: Final[dict[type, Form]] = {
    UUID: Form("$uuid", _uuid_parts, _uuid_value, (str, list), from_text=UUID),
    re.Pattern: Form("$pattern", _pattern_parts, _pattern_value, (list,)),
    **{kind: text_form(tag, str, kind) for kind, tag in _ADDRESSES.items()},
    **{kind: _path_form(tag, kind) for kind, tag in _PATHS.items()},
}
