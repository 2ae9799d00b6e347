"""The walk that turns what orjson has read into the document that was stored.

What orjson returned belongs to nobody else, so it is changed in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, TypeAlias

from kvpersist.codec.encoder import DEPTH_LIMIT, show_attribute, show_key
from kvpersist.codec.form import Form
from kvpersist.codec.plain import has_tags
from kvpersist.errors import DecodeError

_LEVELS_READ: Final = DEPTH_LIMIT + 10
"""An encoder does not count the brackets of a container that holds plain values only."""
_CONTAINERS: Final = frozenset({dict, list})
_SHOWN_LENGTH: Final = 80
_REASON_LENGTH: Final = 300
_MANY: Final = 16
_LOOK_AHEAD: Final = 1
"""Down to this level arrays of many items are looked through as a whole before they are walked."""
_TYPE_NAMES: Final[dict[type, str]] = {
    dict: "an object",
    list: "an array",
    str: "a string",
    int: "an integer",
    type(None): "null",
}

Unknown: TypeAlias = Callable[[str], DecodeError]


class Decoder:
    """One walk over one document.

    Args:
        forms: What each tag means.
        unknown: Makes the error for a tag that is not among them.
    """

    __slots__ = ("_depth", "_forms", "_unknown", "patterns_cost")

    def __init__(self, forms: Mapping[str, Form], unknown: Unknown) -> None:
        self._forms = forms
        self._unknown = unknown
        self._depth = 0
        self.patterns_cost = 0

    def value(self, value: Any) -> Any:
        """Return the value that any JSON value stands for."""
        kind = type(value)
        if kind is dict:
            return self.of_dict(value)
        return self.items(value) if kind is list else value

    def items(self, items: list[Any]) -> list[Any]:
        """Put in place of each item of an array the value it stands for."""
        if _CONTAINERS.isdisjoint(map(type, items)) or (
            len(items) >= _MANY and self._depth <= _LOOK_AHEAD and not has_tags(items)
        ):
            return items
        self._enter()
        at = 0
        try:
            for at, item in enumerate(items):
                kind = type(item)
                if kind is dict:
                    items[at] = self.of_dict(item)
                elif kind is list:
                    self.items(item)
        except DecodeError as error:
            raise _under(f"[{at}]", error)  # noqa: B904  it is the same error
        self._depth -= 1
        return items

    def members(
        self, members: dict[str, Any], show: Callable[[Any], str] = show_attribute
    ) -> dict[str, Any]:
        """Put in place of each member of an object, which is not taken for a tag, its value."""
        self._enter()
        name = ""
        try:
            for name, item in members.items():
                kind = type(item)
                if kind is dict:
                    members[name] = self.of_dict(item)
                elif kind is list:
                    self.items(item)
        except DecodeError as error:
            raise _under(show(name), error)  # noqa: B904  it is the same error
        self._depth -= 1
        return members

    def mapping(self, payload: dict[str, Any] | list[Any]) -> dict[Any, Any]:
        """Return the dict that an object or a list of pairs stands for.

        Raises:
            ValueError: Two pairs have the same key, or something in the list is not a pair.
        """
        if type(payload) is dict:
            return self.members(payload, show_key)
        if type(payload) is not list:
            raise TypeError(f"{_shown(payload)} is neither an object nor an array")
        self._enter()
        pairs: dict[Any, Any] = {}
        key: Any = None
        try:
            for entry in payload:
                key, item = pair(entry)
                if type(key) in _CONTAINERS:
                    key = self.value(key)
                pairs[key] = self.value(item) if type(item) in _CONTAINERS else item
        except DecodeError as error:
            raise _under(show_key(key), error)  # noqa: B904  it is the same error
        self._depth -= 1
        if len(pairs) != len(payload):
            raise ValueError("two keys are the same")
        return pairs

    def payload(self, form: Form, payload: Any) -> Any:
        """Return the value that is stored in this form."""
        if type(payload) not in form.payload:
            wanted = " or ".join(_TYPE_NAMES[kind] for kind in form.payload)
            raise DecodeError(
                f"{form.tag} takes {wanted}, not {_shown(payload)}; mend or delete the row"
            )
        self._enter()
        try:
            value = form.decode(payload, self)
        except (DecodeError, RecursionError, MemoryError):  # nothing is wrong with the row
            raise
        except Exception as error:  # whatever a class of the user's raises when it is restored
            raise _unreadable(form, payload, error) from error
        self._depth -= 1
        return value

    def of_dict(self, members: dict[str, Any]) -> Any:
        """Return the value that an object stands for, tagged or not."""
        if len(members) != 1:
            return self.members(members, show_key)
        ((name, payload),) = members.items()
        if (form := self._forms.get(name)) is None:
            if name[:1] == "$":
                return self._escaped(name, payload)
            return self.members(members, show_key)
        if type(payload) is not str or form.from_text is None:
            return self.payload(form, payload)
        try:
            return form.from_text(payload)
        except Exception as error:
            raise _unreadable(form, payload, error) from error

    def _escaped(self, name: str, payload: Any) -> dict[str, Any]:
        if name[:2] != "$$":
            raise self._unknown(name)
        return self.members({name[1:]: payload}, show_key)

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _LEVELS_READ:
            raise DecodeError(f"nested more than {DEPTH_LIMIT} levels deep; mend or delete the row")


def pair(payload: object) -> list[Any]:
    """Return an array of two.

    Raises:
        ValueError: It is anything else.
    """
    if type(payload) is not list or len(payload) != 2:  # noqa: PLR2004  a pair is two
        raise ValueError(f"{_shown(payload)} is not a pair")
    return payload


def _under(step: str, error: DecodeError) -> DecodeError:
    error.path = step + error.path
    return error


def _unreadable(form: Form, payload: object, error: Exception) -> DecodeError:
    remedy = "mend or delete the row"
    if form.tag.startswith("$:"):
        remedy += ", or give the class back what it had (an enum: a member of the old name)"
    raised = f"{type(error).__name__}: {_reason(error)}"
    return DecodeError(f"cannot read {form.tag} of {_shown(payload)}: {raised}; {remedy}")


def _shown(payload: object) -> str:
    if type(payload) in {dict, list}:  # what it holds may be of the user's classes by now
        return _TYPE_NAMES[type(payload)]
    return shortened(repr(payload))


def _reason(error: Exception) -> str:
    try:
        return shortened(str(error), _REASON_LENGTH)
    except Exception:  # noqa: BLE001  a class of the user's may raise anything
        return "(it has no text)"


def shortened(shown: str, length: int = _SHOWN_LENGTH) -> str:
    """Return what an error quotes of a text."""
    return shown if len(shown) <= length else shown[:length] + "…"
