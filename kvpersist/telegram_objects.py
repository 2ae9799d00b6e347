"""The classes of python-telegram-bot: messages, users, keyboards and all other Telegram objects.

An object is stored as pickle sees it: by its attributes. Those that have the value which
python-telegram-bot gives them by itself are left out, so that rows are short and an object of an
older python-telegram-bot gets the new attributes of a newer one. Attributes that the class no
longer has go to `api_kwargs`, as with pickle. No constructor of an object that was stored is
called, and no setter: some of those look at the file system.

The bot itself is stored as a placeholder, and comes back as the bot that is running.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from datetime import timedelta
from enum import Enum
from functools import cached_property
from operator import is_not
from types import MappingProxyType, ModuleType
from typing import Any, Final

import telegram
from telegram import Bot, TelegramObject, constants

from kvpersist.codec.classes import adopt
from kvpersist.codec.decoder import Decoder
from kvpersist.codec.encoder import Encoder
from kvpersist.codec.form import Form
from kvpersist.codec.protocol import HOOKS, check_protocol, origin
from kvpersist.codec.state import State, incomplete, slots
from kvpersist.errors import EncodeError

GetBot = Callable[[], Bot | None]

_BOT: Final = "$telegram.Bot"
_IDENTITY: Final = "_id_attrs"
_FROZEN: Final = "_frozen"
_OWNER: Final = "_bot"
_MORE: Final = "api_kwargs"
_CACHES: Final = ("_effective_", "_decrypted_", "_cached_")
"""Private attributes that begin so hold what can be worked out, or decrypted, again."""
_CONSTANTS: Final = frozenset({bool, int, str, tuple, dict})
# What an argument is that nobody gave, so that `telegram.ext.Defaults` decides. Its class has no
# public name.
_DEFAULT: Final[Any] = type(inspect.signature(Bot.send_message).parameters["parse_mode"].default)


class TelegramObjects:
    """The extension of a `Codec` for the classes of python-telegram-bot.

    Args:
        get_bot: Returns the bot that restored objects are to use; None while none is running.
    """

    def __init__(self, get_bot: GetBot) -> None:
        self._get_bot = get_bot

    def forms(self) -> Iterator[tuple[type, Form]]:
        """Return every public class of `telegram`, and every enum of `telegram.constants`."""
        yield telegram.InputFile, adopt(telegram.InputFile, "$telegram.InputFile")
        yield _DEFAULT, adopt(_DEFAULT, "$telegram.DefaultValue")
        for kind in _classes(telegram, TelegramObject) - {Bot}:
            yield kind, self._object_form(kind, f"$telegram.{kind.__qualname__}")
        for kind in filter(len, _classes(constants, Enum)):
            yield kind, adopt(kind, f"$telegram.constants.{kind.__qualname__}")
        yield Bot, self._bot_form()

    def adopt(self, kind: type, tag: str) -> Form | None:
        """Return how a class is stored that the user derived from a Telegram object's."""
        if not issubclass(kind, TelegramObject):
            return None
        check_protocol(kind, TelegramObject, HOOKS)
        return self._object_form(kind, tag)

    def find(self, kind: type) -> Form | None:
        """Return the placeholder for every kind of bot, such as `telegram.ext.ExtBot`."""
        return self._bot_form() if issubclass(kind, Bot) else None

    def _bot_form(self) -> Form:
        def encode(bot: Bot, _: Encoder) -> None:
            if bot is not self._get_bot():
                raise EncodeError(
                    "a bot, but not the one that is running; only that one comes back"
                )

        def decode(_: None, __: Decoder) -> Bot:
            if (bot := self._get_bot()) is None:
                raise ValueError("no bot is running")
            return bot

        return Form(_BOT, encode, decode, (type(None),))

    def _object_form(self, kind: type[TelegramObject], tag: str) -> Form:
        model = _Model(kind)

        def encode(value: TelegramObject, encoder: Encoder) -> object:
            return encoder.attributes(model.attributes(value))

        def decode(payload: dict[str, Any], decoder: Decoder) -> TelegramObject:
            return model.restore(decoder.members(payload), self._get_bot())

        return Form(tag, encode, decode, (dict,))


class _Model:
    """What is known about one class, found out when the first of its objects is met.

    PTB does not say which attributes make two objects equal, nor what they are when nothing is
    known: objects are made once of values that are recognised again.
    """

    def __init__(self, kind: type[TelegramObject]) -> None:
        self._kind = kind

    def attributes(self, value: TelegramObject) -> dict[str, Any]:
        """Return the attributes of an object that differ from what PTB's class gives it."""
        state = self._state.attributes(value)
        identity, more, _ = (state.pop(name, None) for name in (_IDENTITY, _MORE, _OWNER))
        if type(identity) is not tuple or more is None:
            raise incomplete(value, (_MORE, f"tuple of {_IDENTITY}"))
        attributes = {name: item for name, item in state.items() if not self._is_known(name, item)}
        if more:
            attributes[_MORE] = dict(more)
        known = self._identity(state)
        if len(known) != len(identity) or any(map(is_not, known, identity)):
            attributes[_IDENTITY] = identity
        return attributes

    def restore(self, attributes: dict[str, Any], bot: Bot | None) -> TelegramObject:
        """Return the object, for `bot`."""
        more = dict(attributes.pop(_MORE, {}))
        state = self._defaults.copy()
        for name, item in attributes.items():
            place = self._place(name)
            (more if place is None else state)[place or name] = item
        # What was not known to the python-telegram-bot that stored it may be an attribute by now.
        for name in [*more]:
            place = self._place(name)
            if place in self._defaults and state[place] is None:
                state[place] = more.pop(name)
        state.setdefault(_IDENTITY, self._identity(state))
        if type(state[_IDENTITY]) is not tuple:
            raise TypeError(f"{_IDENTITY} must be a tuple")
        value: TelegramObject = object.__new__(self._kind)
        self._state.put(value, {**state, _MORE: MappingProxyType(more)})
        value.set_bot(bot)
        return value

    def _is_known(self, name: str, item: object) -> bool:
        """Whether an attribute comes back without being stored."""
        if name not in self._defaults:
            return False
        return name.startswith(_CACHES) or _same(item, self._defaults[name])

    def _place(self, name: str) -> str | None:
        """Return the attribute for what was stored under a name; None if there is none."""
        if name in self._slots:
            return name
        private = f"_{name}"
        if private in self._slots and isinstance(getattr(self._kind, name, None), property):
            return private  # it has become a property, and keeps its value there
        return name if self._kind.__dictoffset__ != 0 else None

    def _identity(self, state: dict[str, Any]) -> tuple[Any, ...]:
        """Return what makes two objects equal, as far as the class tells."""
        return tuple(state.get(name) for name in self._identifying)

    @cached_property
    def _state(self) -> State:
        return State(self._kind)

    @cached_property
    def _slots(self) -> frozenset[str]:
        return frozenset(name for name, _ in slots(self._kind))

    @cached_property
    def _origin(self) -> Any:
        """The class of PTB's that the class is, or derives from."""
        return origin(self._kind, "telegram")

    @cached_property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        """What `__init__` of PTB's class takes; that of the user's is not called."""
        parameters = dict(inspect.signature(self._origin).parameters)
        parameters.pop(_MORE, None)
        return parameters

    @cached_property
    def _required(self) -> set[str]:
        return {name for name, each in self._parameters.items() if each.default is each.empty}

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        """The attributes of PTB's for an object about which nothing is said but what must be."""
        made = self._probe(self._required)
        given = self._required | {f"_{name}" for name in self._required}
        return {
            name: None if name in given else made.get(name, name == _FROZEN or None)
            for name, _ in slots(self._origin)
            if name not in {_IDENTITY, _MORE, _OWNER}
        }

    @cached_property
    def _identifying(self) -> tuple[str, ...]:
        """The attributes that make two objects equal; none if that cannot be found out."""
        kept = {name for name in self._parameters if {name, f"_{name}"} & self._slots}
        made = self._probe(self._required | kept)
        identity = made.pop(_IDENTITY, ())
        names = [[name for name, own in made.items() if own is item] for item in identity]
        return tuple(name for (name,) in names) if all(len(each) == 1 for each in names) else ()

    def _probe(self, given: set[str]) -> dict[str, Any]:
        """Return the attributes of an object that is made of `given`; none if it cannot be made."""
        arguments: dict[str, Any] = {
            name: _example(str(self._parameters[name].annotation)) for name in given
        }
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return self._origin(**arguments).__getstate__()  # type: ignore[no-any-return]
        except Exception:  # noqa: BLE001  whatever a constructor makes of what it was never meant for
            return {}


def _example(annotation: str) -> object:
    """Return an object that is no other, and that constructors take for this annotation.

    PTB makes a timedelta of every duration, and a tuple of every sequence, be it one of sequences.
    """
    if "TimePeriod" in annotation or "timedelta" in annotation:
        return timedelta(days=1)
    numbers = {"int": int, "float": float}
    number = numbers.get(annotation.removeprefix("<class '").partition(" ")[0].rstrip("'>"))
    return number("1000") if number else ((), object())[:1]


def _classes(module: ModuleType, base: type) -> set[Any]:
    return {
        kind
        for name, kind in vars(module).items()
        if not name.startswith("_") and isinstance(kind, type) and issubclass(kind, base)
    }


def _same(item: object, default: object) -> bool:
    """Whether a default value can stand in for an attribute."""
    if item is default:
        return True
    if type(item) is _DEFAULT and type(default) is _DEFAULT:  # deep copies make new ones
        return item.value is default.value  # type: ignore[attr-defined]
    return type(item) is type(default) and type(item) in _CONSTANTS and item == default
