"""How one type is stored, and how the user names a class."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol

if TYPE_CHECKING:
    from kvpersist.codec.decoder import Decoder
    from kvpersist.codec.encoder import Encoder

BASE: Final = "$base"
JSON_TYPES: Final[tuple[type, ...]] = (dict, list, str, int, float, bool, type(None))


@dataclass(frozen=True, slots=True)
class Form:
    """How the values of one type are stored: as ``{tag: payload}``.

    Attributes:
        tag: Begins with ``$``.
        encode: Turns a value into a payload that orjson writes as it is.
        decode: Turns a payload back. Whatever it raises becomes a `DecodeError`.
        payload: The JSON types that `decode` accepts; anything else is refused before it is called.
        to_text: What does the same as `encode`, if all payloads are str that need no walk.
        from_text: What does the same as `decode` for payloads that are str and need no walk.
        has_base: The payload is an object whose member `BASE` is the value of a builtin type, which
            is all there is to it unless there are attributes.
    """

    tag: str
    encode: Callable[[Any, Encoder], object]
    decode: Callable[[Any, Decoder], Any]
    payload: tuple[type, ...] = JSON_TYPES
    to_text: Callable[[Any], str] | None = None
    from_text: Callable[[str], Any] | None = None
    has_base: bool = False


def text_form(tag: str, to_text: Callable[[Any], str], from_text: Callable[[str], Any]) -> Form:
    """Return the form of a type whose values are stored as a str."""
    return Form(
        tag,
        lambda value, _: to_text(value),
        lambda payload, _: from_text(payload),
        (str,),
        to_text,
        from_text,
    )


class Named(NamedTuple):
    """A class of the user's, with the name under which it is stored.

    Args:
        type: The class.
        name: What rows call it. It must stay the same for as long as there are rows.
        aliases: Names under which older rows may have it; they are read, never written.
    """

    type: type
    name: str
    aliases: tuple[str, ...] = ()


class Extension(Protocol):
    """A library whose classes need no listing, such as `kvpersist.telegram_objects`."""

    def forms(self) -> Iterable[tuple[type, Form]]:
        """Return the classes that are known from the start."""

    def adopt(self, kind: type, tag: str) -> Form | None:
        """Return how a class derived from one of the library's is stored; None if it is not."""

    def find(self, kind: type) -> Form | None:
        """Return how a class is stored that nobody has listed; None to have it refused."""


def qualified(kind: type) -> str:
    """Return how errors call a class."""
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )
