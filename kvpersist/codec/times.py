"""Dates and times, in the notation of ISO 8601.

A fixed offset is part of the text, as ``2026-01-02T03:04:05+02:00``. Any other time zone stands
beside the local time: what its offset was may change with the next release of the tz database, the
time on the clock does not.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from typing import Any, Final
from zoneinfo import ZoneInfo

from kvpersist.codec.decoder import Decoder, pair
from kvpersist.codec.encoder import Encoder
from kvpersist.codec.form import Form, text_form
from kvpersist.errors import EncodeError

# ZoneInfo looks for a file, and then for a package below `tzdata`, of this name.
_ZONE: Final = re.compile(r"[A-Za-z0-9_+-]+(?:/[A-Za-z0-9_+-]+)*")


def _is_offset(zone: tzinfo) -> bool:
    """Whether the text of a time with this zone tells all about it."""
    return type(zone) is timezone and _is_plain(zone)


def _is_plain(zone: timezone) -> bool:
    """Whether there is no name to it, and no part of a second, which Python may read as UTC."""
    offset = zone.utcoffset(None)
    return offset.microseconds == 0 and zone.tzname(None) == timezone(offset).tzname(None)


def _stored(value: Any, encoder: Encoder) -> object:
    """Return the payload of a datetime or time: ``text`` or ``[text, zone]`` or with a fold."""
    zone = value.tzinfo
    if value.fold == 0 and (zone is None or zone is timezone.utc or _is_offset(zone)):
        return value.isoformat()
    stored = [value.replace(tzinfo=None).isoformat(), encoder.value(zone)]
    return [*stored, 1] if value.fold else stored


def _restore(parse: Callable[[str], Any]) -> Callable[[list[Any], Decoder], Any]:
    def restore(payload: list[Any], decoder: Decoder) -> Any:
        text, zone, *fold = decoder.items(payload)
        if fold not in ([], [1]):
            raise ValueError("a fold is 1, or left out")
        return parse(text).replace(tzinfo=zone, fold=len(fold))

    return restore


def _form(tag: str, kind: type[datetime | time]) -> Form:
    parse = kind.fromisoformat
    return Form(tag, _stored, _restore(parse), (str, list), from_text=parse)


def _timedelta_value(payload: list[Any], _: Decoder) -> timedelta:
    if not all(type(part) is int for part in payload):
        raise TypeError("days, seconds and microseconds must be integers")
    days, seconds, microseconds = payload
    return timedelta(days, seconds, microseconds)


def _offset_parts(zone: timezone, encoder: Encoder) -> object:
    if _is_plain(zone):
        return time(tzinfo=zone).isoformat().removeprefix("00:00:00")
    return encoder.items([zone.utcoffset(None), zone.tzname(None)])


def _offset_value(payload: list[Any], decoder: Decoder) -> timezone:
    return timezone(*pair(decoder.items(payload)))


def _offset_of(text: str) -> timezone:
    zone = time.fromisoformat("00:00:00" + text).tzinfo
    if type(zone) is not timezone:
        raise ValueError("it must be an offset such as +02:00")
    return zone


def _zone_key(zone: ZoneInfo) -> str:
    if zone.key is None or not _ZONE.fullmatch(zone.key):
        raise EncodeError(f"the ZoneInfo {zone!r}, which has no name in the tz database")
    return zone.key


def _zone_value(payload: str) -> ZoneInfo:
    if not _ZONE.fullmatch(payload):
        raise ValueError("it is not the name of a time zone")
    return ZoneInfo(payload)


FORMS: Final[dict[type, Form]] = {
    datetime: _form("$datetime", datetime),
    date: text_form("$date", date.isoformat, date.fromisoformat),
    time: _form("$time", time),
    timedelta: Form(
        "$timedelta",
        lambda value, _: [value.days, value.seconds, value.microseconds],
        _timedelta_value,
        (list,),
    ),
    timezone: Form("$timezone", _offset_parts, _offset_value, (str, list), from_text=_offset_of),
    ZoneInfo: text_form("$zoneinfo", _zone_key, _zone_value),
}
