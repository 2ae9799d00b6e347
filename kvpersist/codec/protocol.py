"""Which classes can be restored as pickle restores them, without functions of the user's."""

from __future__ import annotations

from typing import Final

from kvpersist.codec.form import qualified
from kvpersist.codec.state import slots
from kvpersist.errors import ConfigurationError

CALLS: Final = ("__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__")
"""What pickle asks how to make an object by a call."""
HOOKS: Final = (*CALLS, "__getstate__", "__setstate__")
_POINTER: Final = tuple.__itemsize__


def check_protocol(kind: type, base: type, names: tuple[str, ...]) -> None:
    """Refuse a class that has its own way to be pickled, unlike the class `base` that is known.

    Raises:
        ConfigurationError: Something stands under one of `names` that is not that of `base`.
    """
    for name in names:
        known = (getattr(base, name, None), getattr(object, name, None))
        if getattr(kind, name, None) not in known:
            raise ConfigurationError(
                f"{qualified(kind)} has a {name} of its own; "
                "use Codec.register with encode= and decode="
            )


def check_layout(kind: type) -> None:
    """Refuse a class whose objects hold more than their attributes: pickle asks the same way.

    Raises:
        ConfigurationError: Some of it is written in C.
    """
    # Since Python 3.11 what stands in front of an object has a negative offset.
    pointers = sum(1 for _ in slots(kind)) + sum(
        offset > 0 for offset in (kind.__dictoffset__, kind.__weakrefoffset__)
    )
    room = object.__basicsize__ + pointers * _POINTER
    if kind.__basicsize__ > room or kind.__itemsize__ > 0:
        raise ConfigurationError(
            f"{qualified(kind)} is not written in Python; "
            "use Codec.register with encode= and decode="
        )


def origin(kind: type, library: str) -> type:
    """Return the class of a library that a class is, or derives from."""
    return next(base for base in kind.__mro__ if base.__module__.partition(".")[0] == library)
