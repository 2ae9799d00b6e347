"""Codec: Python value ⇄ JSON text, exactly. It owns no keys and does no I/O."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from types import GenericAlias
from typing import Any, Final, TypeVar

import orjson

from kvpersist.codec import classes, containers, scalars, times, values
from kvpersist.codec.decoder import Decoder
from kvpersist.codec.encoder import DEPTH_LIMIT, Encode, Encoder, asked, changed, tagging
from kvpersist.codec.form import BASE, Extension, Form, Named, qualified
from kvpersist.codec.plain import plain_text
from kvpersist.errors import ConfigurationError, DecodeError, EncodeError

T = TypeVar("T")

_BUILTIN: Final = {**containers.FORMS, **scalars.FORMS, **times.FORMS, **values.FORMS}
_PLAIN: Final[dict[type, Encode]] = {
    dict: Encoder.of_dict,
    list: Encoder.of_list,
    str: scalars.encode_str,
    int: scalars.encode_int,
    float: scalars.encode_float,
}
_PATH_LENGTH: Final = 200
_DOLLAR: Final = ord("$")
_BACKSLASH: Final = ord("\\")
_MAX_INT: Final = 2**64 - 1
_MIN_INT: Final = -(2**63)


class Codec:
    """Encodes and decodes documents. Any number of threads may use one.

    Args:
        types: The user's own classes that documents may contain, each as itself, to be stored under
            its `__qualname__`, or as `Named`.
        extensions: Libraries whose classes need no listing.

    Raises:
        ConfigurationError: Two classes have one name, or one cannot be stored without functions of
            the user's: see `register`.
    """

    def __init__(
        self, types: Iterable[type | Named] = (), *, extensions: Iterable[Extension] = ()
    ) -> None:
        self._extensions = tuple(extensions)
        self._names: dict[type, str] = {}
        self._types: dict[str, type] = {}
        self._encoders = _Encoders(self._find)
        self._encoders.update(_PLAIN)
        self._forms: dict[str, Form] = {
            form.tag: form for form in (scalars.STR, scalars.INT, scalars.FLOAT)
        }
        self._kinds: dict[type, Form] = {}
        for kind, form in _BUILTIN.items():
            self._add(kind, form)
        self._encoders[tuple] = Encoder.of_tuple  # by far the most frequent tag
        self._add(defaultdict, containers.defaultdict_form(self._names, self._types))
        for extension in self._extensions:
            for kind, form in extension.forms():
                self._add(kind, form)
        for entry in types:
            named = entry if isinstance(entry, Named) else Named(entry, "")
            self.register(named.type, named.name, aliases=named.aliases)

    def register(
        self,
        kind: type[T],
        name: str = "",
        *,
        aliases: Iterable[str] = (),
        encode: Callable[[T], object] | None = None,
        decode: Callable[[Any], T] | None = None,
    ) -> None:
        """Let documents contain objects of one more class, but not of those that derive from it.

        Call it before the first document is read.

        Args:
            kind: The class.
            name: What rows call it; its `__qualname__` if empty.
            aliases: Names under which older rows may have it.
            encode: Returns what to store in place of an object: anything that can be stored.
            decode: Makes the object again from what `encode` returned.

        Raises:
            ConfigurationError: Another class has the name, or this one needs `encode` and `decode`.
        """
        if isinstance(aliases, str):
            raise ConfigurationError(f"aliases must be several names: ({aliases!r},)")
        # On Python 3.10 list[int] says that it is a type.
        if not isinstance(kind, type) or isinstance(kind, GenericAlias):
            raise ConfigurationError(f"{kind!r} is not a class")
        if (encode is None) is not (decode is None):
            raise ConfigurationError(
                f"{qualified(kind)} needs both encode= and decode=, or neither"
            )
        if kind in _BUILTIN or kind in _PLAIN or kind is defaultdict:
            if name or encode:
                raise ConfigurationError(f"{qualified(kind)} is stored as it is; leave it out")
            return
        name = name or kind.__qualname__
        tag = _tag(name)
        if encode is not None and decode is not None:
            form = _registered(kind, tag, encode, decode)
        else:
            form = self._adopt(kind, tag)
        for each in (name, *aliases):
            if self._types.setdefault(each, kind) is not kind:
                raise ConfigurationError(
                    f"{each!r} is the name of both {qualified(self._types[each])} and "
                    f'{qualified(kind)}; give one another: Named({kind.__qualname__}, "…")'
                )
            self._forms[_tag(each)] = form
        if self._names.setdefault(kind, name) != name:
            raise ConfigurationError(f"{qualified(kind)} is listed under two names; use an alias")
        self._add(kind, form)

    def encode(self, value: object) -> bytes:
        """Return `value` as JSON, in UTF-8.

        What is stored is what each container held at one moment. An object that occurs twice is
        stored twice, and comes back as two.

        Raises:
            EncodeError: With the path to what cannot be stored exactly. It names no row.
        """
        if (text := plain_text(value, DEPTH_LIMIT)) is not None:
            return text
        return _text(lambda encoder: encoder.value(value), self._encoders)

    def decode(self, text: bytes) -> Any:
        """Return the value that `encode` made `text` from.

        Raises:
            DecodeError: `text` is no JSON, or means nothing that can be restored. It names no row.
        """
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            raise _no_json(error) from error
        # Looking for one byte, as an int, is by far the fastest search. A "$" may be written as an
        # escape.
        if (_DOLLAR in text and b'"$' in text) or (_BACKSLASH in text and b"\\u0024" in text):
            return Decoder(self._forms, _unknown).value(value)
        return value

    def check(self, text: bytes) -> None:
        """Look for what `decode` reads without a word, for the sake of speed, but not exactly.

        Only somebody who edited a row by hand can have written that: an integer of more than 64
        bits, which becomes a float, and two members of one name, of which the last one counts.

        Raises:
            DecodeError: There is such a thing, or `text` is no JSON.
        """
        _loaded(text)
        try:
            json.loads(text, parse_int=_checked_int, object_pairs_hook=_checked_members)
        except RecursionError as error:  # pragma: no cover  newer Pythons have room for 1000 levels
            raise DecodeError("nested too deep; mend or delete the row") from error

    def encode_document(self, value: object, kind: type) -> bytes:
        """Return as JSON a document whose type is known to whoever reads it.

        `kind` is a type of `telegram.ext.ContextTypes`. It needs no listing, and does not show in
        the text if it need not: the row is a plain object of the attributes or items.

        Raises:
            EncodeError: As `encode` does; also when `value` is not of this very type.
        """
        if type(value) is not kind:
            raise EncodeError(
                f"of type {qualified(type(value))}, where ContextTypes says {qualified(kind)}; "
                "give KVPersistence the context_types= that the application has"
            )
        if (form := self._form_of(kind)) is None:
            return self.encode(value)
        return _text(lambda encoder: _row(form, form.encode(value, encoder)), self._encoders)

    def decode_document(self, text: bytes, kind: type) -> Any:
        """Return the document that `encode_document` made `text` from.

        A row that was stored as another kind is read if what it holds can be put into this one, as
        the items of a dict into the attributes of a class.

        Raises:
            DecodeError: As `decode` does; also when the document is of another type.
        """
        if (form := self._form_of(kind)) is None:
            value = self.decode(text)
        else:
            value = Decoder(self._forms, _unknown).payload(form, self._payload(form, _loaded(text)))
        if type(value) is not kind:
            raise DecodeError(
                f"a {qualified(type(value))} where ContextTypes says {qualified(kind)}; "
                "mend or delete the row"
            )
        return value

    def tags(self) -> set[str]:
        """Return all tags that can be read, those of the user's classes included."""
        return set(self._forms)

    def _form_of(self, kind: type) -> Form | None:
        """Return how a class of the user's is stored; None for a type that is known anyway."""
        if kind in _BUILTIN or kind in _PLAIN or kind is defaultdict:
            return None
        if kind in self._names:
            return self._forms[_tag(self._names[kind])]
        if kind not in self._kinds:
            self._kinds[kind] = self._adopt(kind, _tag(kind.__qualname__))
        return self._kinds[kind]

    def _payload(self, form: Form, row: Any) -> Any:
        if type(row) is dict and len(row) == 1:
            (tag,) = row
            if tag == form.tag or self._forms.get(tag) is form:
                return row[tag]
            # An object of attributes is tagged if one of their names could be a tag: see _row.
            if tag.startswith("$") and not form.has_base:
                if tag not in self._forms:
                    raise _unknown(tag)
                reason = f"a {tag} where ContextTypes says {form.tag}; mend or delete the row"
                raise DecodeError(reason)
        return {BASE: row} if form.has_base else row

    def _adopt(self, kind: type, tag: str) -> Form:
        adopted = (extension.adopt(kind, tag) for extension in self._extensions)
        return next((form for form in adopted if form), None) or classes.adopt(kind, tag)

    def _add(self, kind: type, form: Form) -> None:
        self._forms[form.tag] = form
        if kind not in _PLAIN:
            self._encoders[kind] = tagging(form)

    def _find(self, kind: type) -> Encode:
        """Return what to do with a type that nobody has listed."""
        for extension in self._extensions:
            if form := extension.find(kind):
                self._add(kind, form)
                return self._encoders[kind]
        raise EncodeError(f"a value of type {qualified(kind)} cannot be stored; {_advice(kind)}")


class _Encoders(dict[type, Encode]):
    """What to do with each type; a type that is missing is looked for."""

    def __init__(self, find: Callable[[type], Encode]) -> None:
        super().__init__()
        self._find = find

    def __missing__(self, kind: type) -> Encode:
        return self._find(kind)


def _tag(name: str) -> str:
    """Return the tag of a class of the user's; no tag of kvpersist's own has a colon."""
    return f"$:{name}"


def _text(make: Callable[[Encoder], object], encoders: _Encoders) -> bytes:
    try:
        try:
            return orjson.dumps(make(Encoder(encoders, careful=False)))
        except orjson.JSONEncodeError:
            return orjson.dumps(make(Encoder(encoders, careful=True)))
    except EncodeError as error:
        if len(error.path) > _PATH_LENGTH:
            error.path = error.path[:_PATH_LENGTH] + "…"
        raise
    except orjson.JSONEncodeError as error:
        raise EncodeError(
            f"JSON has no words for it: {error}; keep names to what UTF-8 has"
        ) from error
    except RecursionError as error:
        raise EncodeError("nested too deep for the stack of Python; make it flatter") from error
    except RuntimeError as error:
        raise changed() from error
    except Exception as error:  # a class of the user's may raise anything while it is looked at
        raise EncodeError(f"it raised {type(error).__name__}: {error}") from error


def _row(form: Form, payload: object) -> object:
    """Leave out what whoever reads the row knows: its type."""
    if type(payload) is dict:
        if form.has_base and len(payload) == 1:
            return payload[BASE]
        if not any(name.startswith("$") for name in payload):
            return payload
    return {form.tag: payload}


def _registered(
    kind: type, tag: str, encode: Callable[[Any], object], decode: Callable[[Any], Any]
) -> Form:
    def restore(payload: Any, decoder: Decoder) -> Any:
        value = decode(decoder.value(payload))
        if type(value) is not kind:
            raise TypeError(f"its decode= made a {qualified(type(value))}")
        return value

    return Form(tag, lambda value, encoder: encoder.value(asked(encode, value)), restore)


def _loaded(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise _no_json(error) from error


def _no_json(error: orjson.JSONDecodeError) -> DecodeError:
    return DecodeError(f"not valid JSON ({error}); mend or delete the row")


def _checked_int(digits: str) -> int:
    # No int of 64 bits has more characters; only those are cheap to read.
    if len(digits) <= len(str(_MIN_INT)) and _MIN_INT <= (value := int(digits)) <= _MAX_INT:
        return value
    raise DecodeError(
        f'an integer of more than 64 bits must be written as {{"$int": "{digits[:20]}…"}}'
    )


def _checked_members(members: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(unique := dict(members)) == len(members):
        return unique
    seen: set[str] = set()
    twice = next(name for name, _ in members if name in seen or seen.add(name))  # type: ignore[func-returns-value]
    raise DecodeError(f"two members of one object have the name {twice!r}; rename or delete one")


def _unknown(tag: str) -> DecodeError:
    if tag.startswith("$:"):
        return DecodeError(
            f"an object of the class {tag[2:]!r}, which is not listed; add it to types=, or its "
            "old name to the aliases of the class that it has become"
        )
    return DecodeError(
        f"the tag {tag!r} is not known; a newer kvpersist, or a newer library, may know it; else "
        "mend or delete the row"
    )


def _advice(kind: type) -> str:
    if issubclass(kind, type):
        return "keep the name of the class"
    try:
        classes.adopt(kind, "")
    except ConfigurationError:
        return "keep what it can be made from, or use Codec.register with encode= and decode="
    return f"add {kind.__qualname__} to types="
