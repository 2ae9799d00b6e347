"""The files of PTB's `PicklePersistence`, read without running what they say, and written by PTB.

A pickle is a program: whoever can write one can have it call anything that it names. Here it gets
what it names from a short list: the types of the standard library that the codec knows, PTB's
objects, and the classes that the user names. Functions on that list do no more than make a value.
Anything else becomes an `Unknown`, which the codec refuses, with the path to it. The limits of time
and memory of a hostile pickle are not looked at.
"""

from __future__ import annotations

import collections
import datetime as dt
import decimal
import enum
import fractions
import ipaddress
import os
import pathlib
import pickle
import re
import tempfile
import types
import uuid
import zoneinfo
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from telegram import Bot, TelegramObject
from telegram.ext import ExtBot, PicklePersistence

from kvpersist.codec import Named
from kvpersist.errors import TransferError
from kvpersist.migration import Data
from kvpersist.stores.files import sync
from kvpersist.stores.new_file import check_free
from kvpersist.stores.sqlite_backup import PREFIX
from kvpersist.telegram_objects import TelegramObjects

PARTS: Final = ("user_data", "chat_data", "bot_data", "callback_data", "conversations")
"""What one file has, and what the names of the five files end with."""

_KNOWN_BOT: Final = "a known bot replaced by PTB's PicklePersistence"
_UNKNOWN_BOT: Final = "an unknown bot replaced by PTB's PicklePersistence"
_RECONSTRUCT: Final = ("telegram.ext._picklepersistence", "_reconstruct_to")
_PAIR: Final = 2
_BUILTINS: Final = {"__builtin__": "builtins"}  # as protocols up to 2 write it
_REAL: Final = (
    dict, list, tuple, str, bytes, bool, int, float, complex, set, frozenset, bytearray, range,
    dt.date, dt.datetime, dt.time, dt.timedelta, dt.timezone,
    decimal.Decimal, collections.OrderedDict, collections.Counter, collections.defaultdict,
    collections.deque, types.SimpleNamespace, uuid.UUID, uuid.SafeUUID, zoneinfo.ZoneInfo,
)  # fmt: skip
_CALLED: Final = (
    fractions.Fraction, pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath,
    ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
    ipaddress.IPv4Interface, ipaddress.IPv6Interface,
)  # fmt: skip
"""Classes that pickles only call: they get a function, of which nothing can be changed."""


def stand_in_bot() -> ExtBot[None]:
    """Return what stands for the bot that runs, which is not there. It never connects."""
    return ExtBot("0:stand-in")


class Unknown:
    """An object of a class that was not named; it holds nothing.

    Each class has a subclass of its own, whose name errors say.
    """

    def __new__(cls, *_: object, **__: object) -> Any:
        """Make it of anything."""
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        """Take anything."""

    def __setstate__(self, state: object) -> None:
        """Take anything."""

    def __setitem__(self, key: object, value: object) -> None:
        """Take anything, as a dict would."""

    def append(self, item: object) -> None:
        """Take anything, as a list would."""

    def extend(self, items: Iterable[object]) -> None:
        """Take anything, as a list would."""

    def add(self, item: object) -> None:
        """Take anything, as a set would."""


class _TelegramClass:
    """What a pickle gets for a class of PTB's: it can be neither called nor changed."""

    __slots__ = ("kind",)

    def __init__(self, kind: type[TelegramObject]) -> None:
        self.kind = kind


class Unpickler(pickle.Unpickler):
    """Reads a pickle, and makes nothing but data.

    Args:
        file: Where it is.
        listed: The classes that the user has named.
        bot: What stands for the bot that runs.

    Attributes:
        unknown: The classes and functions that the pickle named and that were not made.
    """

    def __init__(self, file: Any, listed: Collection[type | Named], bot: Bot) -> None:
        super().__init__(file)
        self._bot = bot
        self.unknown: dict[tuple[str, str], type[Unknown]] = {}
        kinds = [each.type if isinstance(each, Named) else each for each in listed]
        self._listed = {_name(kind): kind for kind in kinds}
        # What was a script when it wrote the file is a module when it is imported.
        self._of_script = {kind.__qualname__: kind for kind in kinds}
        self._found: dict[tuple[str, str], Any] = {
            **{_name(kind): kind for kind in _REAL},
            **{_name(kind): _caller(kind) for kind in _CALLED},
            # Where Python 3.13 has them, and where the others look for them.
            **{("pathlib._local", kind.__name__): _caller(kind) for kind in _CALLED},
            **{("pathlib", kind.__name__): _caller(kind) for kind in _CALLED},
            ("builtins", "xrange"): range,
            ("builtins", "getattr"): self._getattr,
            ("_codecs", "encode"): _encode,
            ("re", "_compile"): _compile,
            ("msgspec._utils", "rebuild"): self._rebuild,
            _RECONSTRUCT: _reconstruct,
        }
        for kind, _ in TelegramObjects(lambda: None).forms():
            is_object = issubclass(kind, TelegramObject)
            self._found[_name(kind)] = _TelegramClass(kind) if is_object else kind
        del self._found[_name(Bot)]  # which connects

    def find_class(self, module: str, name: str, /) -> Any:
        """Return what a pickle gets for a name of a class or function."""
        module = _BUILTINS.get(module, module)
        listed = self._listed.get((module, name))
        if listed is None and module == "__main__":
            listed = self._of_script.get(name)
        if listed is not None:
            is_ptbs = issubclass(listed, TelegramObject)
            return _TelegramClass(listed) if is_ptbs else listed
        if (found := self._found.get((module, name))) is not None:
            return found
        unknown = {"__module__": module, "__qualname__": name}
        self.unknown[module, name] = type(name.rpartition(".")[2], (Unknown,), unknown)
        return self.unknown[module, name]

    def persistent_load(self, pid: Any, /) -> Bot | None:
        """Return the bot that PTB has replaced by a mark."""
        if pid == _KNOWN_BOT:
            return self._bot
        if pid == _UNKNOWN_BOT:
            return None
        raise pickle.UnpicklingError(f"an object outside of the file: {pid!r:.80}")

    def _getattr(self, owner: Any, name: Any) -> Any:
        """Do what pickles of time zones and enums need `getattr` for, and nothing else."""
        if owner is zoneinfo.ZoneInfo and name == "_unpickle":
            return lambda key, _: zoneinfo.ZoneInfo(key)
        if isinstance(owner, enum.EnumMeta) and name in owner.__members__:
            return owner[name]
        if isinstance(owner, type) and issubclass(owner, Unknown):
            return owner()
        raise pickle.UnpicklingError(f"it asks for the attribute {name!r:.80} of {owner!r:.80}")

    def _rebuild(self, kind: Any, attributes: Any) -> Any:
        """Make a struct of msgspec's, which pickles name this function for."""
        return kind(**attributes) if kind in self._listed.values() else Unknown()


def _name(kind: type) -> tuple[str, str]:
    return kind.__module__, kind.__qualname__


def _caller(kind: Callable[..., Any]) -> Callable[..., Any]:
    def make(*arguments: Any) -> Any:
        return kind(*arguments)

    return make


def _encode(text: Any, encoding: Any) -> bytes:
    """Make bytes, as protocols up to 2 write them."""
    if type(text) is not str or encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding!r:.80}")
    return text.encode("latin1")


def _compile(pattern: Any, flags: Any) -> re.Pattern[Any]:
    return re.compile(pattern, flags)


def _reconstruct(found: Any, state: Any) -> Any:
    """Do what PTB's function of this name does."""
    if not isinstance(found, _TelegramClass):
        return found()
    value = found.kind.__new__(found.kind)
    value.__setstate__(state)
    return value


def find(path: Path) -> list[Path]:
    """Return the file, or those of the five files, that `PicklePersistence` would read.

    Raises:
        TransferError: There are none.
    """
    if path.is_file():
        return [path]
    files = [each for part in PARTS if (each := Path(f"{path}_{part}")).is_file()]
    if not files:
        raise TransferError(
            f"there is no file {path}, nor {path}_user_data or another of the five. Is the path "
            "right? It is the filepath of the bot's PicklePersistence"
        )
    return files


def read(
    path: Path, listed: Collection[type | Named], bot: Bot
) -> tuple[Data, set[tuple[str, str]]]:
    """Return what the file, or the five files, hold, and the names of classes that were not made.

    Raises:
        TransferError: They cannot be read, or are not of `PicklePersistence`.
    """
    found: dict[str, Any] = {}
    unknown: set[tuple[str, str]] = set()
    for file in find(path):
        with _saying(file), file.open("rb") as opened:
            unpickler = Unpickler(opened, listed, bot)
            content = unpickler.load()
        unknown |= unpickler.unknown.keys()
        if file == path:
            found = content
        else:
            found[file.name.removeprefix(f"{path.name}_")] = content
    if not isinstance(found, dict) or not found.keys() & set(PARTS) or found.keys() - set(PARTS):
        raise TransferError(
            f"{path} is a pickle, but not one of PicklePersistence's; name the file that the bot "
            "gives it as its filepath"
        )
    return _data(path, found), unknown


@contextmanager
def _saying(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError:
        raise
    except Exception as error:  # a pickle may end in any way
        raise TransferError(
            f"{file} cannot be read as a pickle: {type(error).__name__}: {error!s:.200}; is it "
            "whole? The source was not changed"
        ) from error


def _data(path: Path, found: dict[str, Any]) -> Data:
    parts = {name: found.get(name) or {} for name in ("user_data", "chat_data", "conversations")}
    callback = found.get("callback_data") or None
    is_right = (
        all(isinstance(part, dict) for part in parts.values())
        and all(isinstance(states, dict) for states in parts["conversations"].values())
        and (callback is None or (isinstance(callback, tuple) and len(callback) == _PAIR))
    )
    if not is_right:
        raise TransferError(f"{path}: its parts are not what PicklePersistence writes")
    return Data(bot_data=found.get("bot_data"), callback_data=callback, **parts)


async def write(
    path: Path,
    data: Data,
    bot: ExtBot[Any],
    check: Callable[[Path], Awaitable[None]],
    *,
    single_file: bool,
) -> list[Path]:
    """Have PTB write the file, or those of the five that have anything. They appear whole.

    Args:
        path: As `PicklePersistence` takes it.
        data: What is to be in it.
        bot: What stands for the bot that runs.
        check: Called with the path of what was written, before it has its name. What it raises
            leaves nothing behind.
        single_file: Whether it is one file.

    Returns:
        The new files, readable by their owner alone.

    Raises:
        FileExistsError: One of them is there, and was left as it is. Nothing was written.
        OSError: The disk is full, ….
    """
    for name in [path, *(Path(f"{path}_{part}") for part in PARTS)]:
        check_free(name)
    with tempfile.TemporaryDirectory(prefix=PREFIX, dir=path.parent) as folder:
        temporary = Path(folder, path.name)
        persistence = PicklePersistence[Any, Any, Any](
            temporary, single_file=single_file, on_flush=True
        )
        persistence.set_bot(bot)
        persistence.user_data = data.user_data
        persistence.chat_data = data.chat_data
        persistence.bot_data = {} if data.bot_data is None else data.bot_data
        persistence.callback_data = data.callback_data
        persistence.conversations = data.conversations
        await persistence.flush()
        await check(temporary)
        return _publish(Path(folder), path.parent)


def _publish(written: Path, folder: Path) -> list[Path]:
    published: list[Path] = []
    try:
        for file in sorted(written.iterdir()):
            file.chmod(0o600)
            sync(file)
            os.link(file, folder / file.name)  # which overwrites nothing
            published.append(folder / file.name)
        sync(folder)
    except BaseException:
        for file in published:
            file.unlink()
        raise
    return published
