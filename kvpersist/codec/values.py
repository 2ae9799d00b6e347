"""The small immutable values of the standard library: ids, paths, patterns, addresses."""

from __future__ import annotations

import re
import sys
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
from kvpersist.codec.form import Form, qualified, text_form
from kvpersist.errors import EncodeError

_PATTERN_LENGTH: Final = 1000
_PATTERNS_COST: Final = 20_000
"""For all patterns of a document. Compiling takes up to 50 µs for a character."""
_RANGE_STEP: Final = 500
"""It takes as long for so many characters of a range."""
_RANGE_END: Final = re.compile(r"-(?=(\\?.))", re.DOTALL)
_FAR_ENDS: Final = {r"\U": sys.maxunicode, r"\N": sys.maxunicode, r"\u": 0xFFFF}
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


def _is_too_much(source: str | bytes, walk: Encoder | Decoder) -> bool:
    """Whether compiling a pattern takes too long, together with those before it in the document."""
    text = source if isinstance(source, str) else source.decode("latin-1")
    ends = (_FAR_ENDS.get(end, ord(end[-1])) for end in _RANGE_END.findall(text))
    walk.patterns_cost += len(text) + sum(ends) // _RANGE_STEP
    return len(text) > _PATTERN_LENGTH or walk.patterns_cost > _PATTERNS_COST


def _pattern_parts(value: re.Pattern[Any], encoder: Encoder) -> object:
    if type(value.pattern) not in {str, bytes}:
        raise EncodeError(f"a pattern of a {qualified(type(value.pattern))}; compile a str of it")
    if value.flags & ~_PATTERN_FLAGS or _is_too_much(value.pattern, encoder):
        raise EncodeError(
            f"a pattern of more than {_PATTERN_LENGTH} characters, or with re.DEBUG, or patterns "
            f"of more than {_PATTERNS_COST} characters in one document; "
            "keep its text, and compile it where it is used"
        )
    return [encoder.value(value.pattern), value.flags]


def _pattern_value(payload: list[Any], decoder: Decoder) -> re.Pattern[Any]:
    source, flags = pair(decoder.items(payload))
    if type(source) not in {str, bytes} or _is_too_much(source, decoder):
        raise ValueError(
            f"it must be a str or bytes, of at most {_PATTERN_LENGTH} characters, and "
            f"{_PATTERNS_COST} with the others of the document"
        )
    if type(flags) is not int or flags & ~_PATTERN_FLAGS:
        raise ValueError("these flags are not known")
    return re.compile(source, flags)


def _network_text(value: Any) -> str:
    for each in (value, getattr(value, "network", value)):
        if more := vars(each).keys() - _NETWORK_NAMES:
            raise EncodeError(
                f"attributes ({', '.join(map(str, more))}) of an {type(each).__name__}; "
                "keep them beside it"
            )
    return str(value)


# Unlike addresses, networks have a __dict__: for themselves and for what they have worked out.
_NETWORKS: Final[dict[type[Any], str]] = {
    IPv4Interface: "$ipv4interface",
    IPv4Network: "$ipv4network",
    IPv6Interface: "$ipv6interface",
    IPv6Network: "$ipv6network",
}
_NETWORK_NAMES: Final = {name for kind in _NETWORKS for name in (*vars(kind(0)), *dir(kind))}

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
    IPv4Address: text_form("$ipv4address", str, IPv4Address),
    IPv6Address: text_form("$ipv6address", str, IPv6Address),
    **{kind: text_form(tag, _network_text, kind) for kind, tag in _NETWORKS.items()},
    **{kind: _path_form(tag, kind) for kind, tag in _PATHS.items()},
}
