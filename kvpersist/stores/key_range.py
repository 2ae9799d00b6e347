"""Which keys begin with a prefix, as a range of keys that are ordered by code point."""

from __future__ import annotations


def after(prefix: str) -> str | None:
    """Return the least string above every key that begins with `prefix`; None if there is none.

    Surrogates are left out: no key that can be stored has one.
    """
    kept = prefix.rstrip("\U0010ffff")
    if not kept:
        return None
    last = kept[-1]
    return kept[:-1] + ("\ue000" if last == "\ud7ff" else chr(ord(last) + 1))
