"""The URL of a PostgreSQL database: refused if it is none, and shown without its password."""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

from kvpersist.errors import ConfigurationError

SCHEMES: Final = ("postgresql://", "postgres://")

_HOST: Final = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(:\d+)?")
_UNREADABLE: Final = (
    "the PostgreSQL URL cannot be read; it is postgresql://user:password@host:port/database, in "
    "which a password with any of / ? # @ : % is percent-encoded (urllib.parse.quote)"
)


def shown(url: object) -> str:
    """Return what of a URL may be shown to anybody: hosts, ports and the database.

    Raises:
        ConfigurationError: It is no URL of a PostgreSQL database. What it is, is not told: where
            something is not encoded, any part may be one of the password.
    """
    if not isinstance(url, str) or not url.startswith(SCHEMES):
        raise ConfigurationError(
            f"a PostgreSQL URL is a str that begins with {SCHEMES[0]}; this is a "
            f"{type(url).__name__}"
        )
    try:
        parts = urlsplit(url)
        hosts = _hosts(parts)
        parse_qsl(parts.query, strict_parsing=bool(parts.query))
    except ValueError:
        # Without the error: it may quote a part of the password.
        raise ConfigurationError(_UNREADABLE) from None
    return f"postgresql://{hosts}{parts.path}"


def names(url: str, option: str) -> bool:
    """Whether the URL says anything about an option."""
    return option in dict(parse_qsl(urlsplit(url).query, keep_blank_values=True))


def _hosts(parts: SplitResult) -> str:
    user, _, hosts = parts.netloc.rpartition("@")
    if (
        "@" in user + parts.path
        or parts.fragment
        or not all(_HOST.fullmatch(host) for host in hosts.split(","))
    ):
        raise ValueError
    return hosts
