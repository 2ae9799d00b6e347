"""Numbers, text and bytes: what JSON has no word for, or only one word for two."""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from decimal import (
    MAX_EMAX,
    MAX_PREC,
    MIN_EMIN,
    Context,
    Decimal,
    Inexact,
    InvalidOperation,
    Overflow,
)
from fractions import Fraction
from math import copysign, isfinite, isnan
from typing import Any, Final

from kvpersist.codec.decoder import Decoder
from kvpersist.codec.encoder import Encoder, has_surrogates, tagging
from kvpersist.codec.form import Form, text_form
from kvpersist.errors import EncodeError

_MIN_INT: Final = -(2**63)
_MAX_INT: Final = 2**64 - 1
_DECIMAL_BITS: Final = 2000
_DECIMAL_DIGITS: Final = 640
"""What `int` reads whatever limit the user has set. Longer ones take time that grows with the
square of their length, so they are written in hexadecimal, which does not."""
_FRACTION_BITS: Final = 2**16
"""Reducing a fraction takes time that grows with the square of its length."""
_FLOATS: Final = {"nan", "-nan", "inf", "-inf"}
_UNSAFE: Final = re.compile("[\\\\\ud800-\udfff]")
_ESCAPE: Final = re.compile(r"\\(?:u([0-9a-f]{4}))?")
# Decimal() itself obeys the traps of the context that is current, which are the user's.
_EXACT: Final = Context(
    prec=MAX_PREC,
    Emin=MIN_EMIN,
    Emax=MAX_EMAX,
    capitals=1,
    clamp=0,
    traps=[InvalidOperation, Inexact, Overflow],
)


def encode_str(encoder: Encoder, value: str) -> object:
    """Return a str as it is, unless there are lone surrogates in it."""
    return _of_str(encoder, value) if has_surrogates(value) else value


def encode_int(encoder: Encoder, value: int) -> object:
    """Return an int as it is, unless it takes more than 64 bits."""
    return value if _MIN_INT <= value <= _MAX_INT else _of_int(encoder, value)


def encode_float(encoder: Encoder, value: float) -> object:
    """Return a float as it is, unless it is infinite or not a number."""
    return value if isfinite(value) else _of_float(encoder, value)


def _escape(value: str) -> str:
    return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", value)


def _unescape(payload: str) -> str:
    def character(found: re.Match[str]) -> str:
        if found[1] is None:
            raise ValueError("a backslash must be written as \\u005c")
        return chr(int(found[1], 16))

    return _ESCAPE.sub(character, payload)


def _int_text(value: int) -> str:
    return str(value) if value.bit_length() <= _DECIMAL_BITS else hex(value)


def _int_value(payload: str) -> int:
    if payload.removeprefix("-").startswith("0x"):
        return int(payload, 16)
    if len(payload) > _DECIMAL_DIGITS:
        raise ValueError(f"more than {_DECIMAL_DIGITS} digits must be hexadecimal, as 0x1f")
    return int(payload)


def _float_text(value: float) -> str:
    return f"{'-' if copysign(1, value) < 0 else ''}{'nan' if isnan(value) else 'inf'}"


def _float_value(payload: str) -> float:
    if payload not in _FLOATS:
        raise ValueError(f"it must be one of {', '.join(sorted(_FLOATS))}")
    return float(payload)


def _complex_parts(value: complex, encoder: Encoder) -> object:
    return encoder.items([value.real, value.imag])


def _complex_value(payload: list[Any], decoder: Decoder) -> complex:
    real, imaginary = decoder.items(payload)
    return complex(_number(real), _number(imaginary))


def _number(value: object) -> float:
    if type(value) is not float:
        raise TypeError("both parts must be floats")
    return value


def _fraction_parts(value: Fraction, encoder: Encoder) -> object:
    parts = [value.numerator, value.denominator]
    if max(part.bit_length() for part in parts) > _FRACTION_BITS:
        raise EncodeError(
            f"a Fraction of more than {_FRACTION_BITS} bits; round it, or register it"
        )
    return encoder.items(parts)


def _fraction_value(payload: list[Any], decoder: Decoder) -> Fraction:
    numerator, denominator = decoder.items(payload)
    if type(numerator) is not int or type(denominator) is not int:
        raise TypeError("both parts must be ints")
    if max(numerator.bit_length(), denominator.bit_length()) > _FRACTION_BITS:
        raise ValueError(f"a part has more than {_FRACTION_BITS} bits")
    return Fraction(numerator, denominator)


def _bytes_text(value: bytes | bytearray) -> str:
    return b64encode(value).decode()


def _bytes_value(payload: str) -> bytes:
    return b64decode(payload, validate=True)


STR: Final = text_form("$str", _escape, _unescape)
INT: Final = text_form("$int", _int_text, _int_value)
FLOAT: Final = text_form("$float", _float_text, _float_value)
_of_str, _of_int, _of_float = map(tagging, (STR, INT, FLOAT))

FORMS: Final[dict[type, Form]] = {
    complex: Form("$complex", _complex_parts, _complex_value, (list,)),
    Decimal: text_form("$decimal", _EXACT.to_sci_string, _EXACT.create_decimal),
    Fraction: Form("$fraction", _fraction_parts, _fraction_value, (list,)),
    bytes: text_form("$bytes", _bytes_text, _bytes_value),
    bytearray: text_form(
        "$bytearray", _bytes_text, lambda payload: bytearray(_bytes_value(payload))
    ),
}
