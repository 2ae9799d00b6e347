"""Which store a name means, and what every command has in common: arguments, errors, exit codes."""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, ParamSpec, TypeVar

import click

from kvpersist.cli.output import note
from kvpersist.codec import Codec, Named
from kvpersist.errors import ConfigurationError, KVPersistError
from kvpersist.stores.sqlite_visitor import SqliteVisitor
from kvpersist.stores.visitor import Visitor
from kvpersist.telegram_objects import TelegramObjects

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Any])

_UNITS: Final = {"": 1, "b": 1, "k": 1000, "kb": 1000, "m": 10**6, "mb": 10**6, "g": 10**9}
_SECONDS: Final = {"s": 1, "min": 60, "h": 3_600, "d": 86_400, "w": 604_800}


class FoundError(click.exceptions.Exit):
    """The command has said what it found, and it is not what was hoped for."""

    def __init__(self) -> None:
        super().__init__(1)


def is_url(name: str) -> bool:
    """Whether a store is a PostgreSQL database."""
    return name.startswith(("postgresql:", "postgres:"))


def visitor_of(name: str) -> Visitor:
    """Return who looks at a store; nothing is opened yet.

    Raises:
        ConfigurationError: It is the name of none.
    """
    if not is_url(name):
        return SqliteVisitor(name)
    try:
        from kvpersist.stores.postgres_visitor import PostgresVisitor  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigurationError(
            "PostgreSQL needs the extra postgres: in a clone of kvpersist, "
            'pip install ".[cli,postgres]"'
        ) from error
    return PostgresVisitor(name)


@asynccontextmanager
async def visiting(name: str) -> AsyncIterator[Visitor]:
    """Open a store to look at it, and close it at the end."""
    visitor = visitor_of(name)
    await visitor.open()
    try:
        yield visitor
    finally:
        await visitor.close()


def asynchronous(function: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Make a command of a coroutine function. What goes wrong is said in a line; the code is 1."""

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            asyncio.run(function(*args, **kwargs))
        except ConfigurationError as error:
            raise click.UsageError(str(error)) from error
        except BrokenPipeError:  # whoever reads has enough
            raise
        except (KVPersistError, OSError) as error:
            raise click.ClickException(str(error)) from error

    return call


def store_argument(function: F) -> F:
    """Give a command its first argument."""
    return click.argument("store", metavar="STORE")(function)


def json_option(function: F) -> F:
    """Give a command ``--json``."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        help="Print JSON, one document a line, for other programs.",
    )(function)


def yes_option(function: F) -> F:
    """Give a command ``--yes``."""
    return click.option("--yes", is_flag=True, help="Do not ask.")(function)


def types_option(function: F) -> F:
    """Give a command ``--types``."""
    return click.option(
        "--types",
        "types",
        multiple=True,
        metavar="MODULE:NAME",
        callback=_load_types,
        help="Import the bot's own class, or list of classes, NAME. Nothing is imported otherwise.",
    )(function)


async def confirm(question: str, *, yes: bool) -> None:
    """Ask before something is destroyed; without a terminal, and without --yes, refuse."""
    if not yes and not await ask(question, default=False, otherwise="say --yes"):
        raise click.Abort


async def ask(question: str, *, default: bool, otherwise: str) -> bool:
    """Ask for yes or no: the one place that does. Ctrl-C and Ctrl-D end the command at once.

    ``asyncio.run`` would only have the first Ctrl-C cancel the task, which waits for the answer,
    and goes on with it.

    Raises:
        click.UsageError: There is no terminal; ``otherwise`` is what to do then.
        click.Abort: There was no answer.
    """
    if not is_terminal():
        raise click.UsageError(f"{question} There is nobody to ask: {otherwise}")
    await asyncio.sleep(0)  # a Ctrl-C that came before has its effect here
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return click.confirm(question, default=default, err=True)
    except click.Abort:
        note("")  # what is said next has a line of its own
        raise
    finally:
        signal.signal(signal.SIGINT, before)


def is_terminal() -> bool:
    """Whether there is somebody to ask."""
    return sys.stdin.isatty()


def codec_of(types: Collection[type | Named]) -> Codec:
    """Return the codec that a bot with these classes has, without a bot."""
    return Codec(types, extensions=[TelegramObjects(lambda: None)])


def _load_types(
    _: click.Context, __: click.Parameter, names: tuple[str, ...]
) -> tuple[type | Named, ...]:
    return tuple(kind for name in names for kind in load_types(name))


def load_types(name: str) -> tuple[type | Named, ...]:
    """Import what ``module:NAME`` means: a class, a `Named`, or several of them.

    Raises:
        click.BadParameter: It cannot be imported, or is neither.
    """
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise click.BadParameter(f"{name!r} is not of the form module:NAME, such as bot:TYPES")
    if (folder := os.getcwd()) not in sys.path:  # noqa: PTH109  what sys.path has are texts
        sys.path.insert(0, folder)
    try:
        found: Any = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise click.BadParameter(
            f"{name} cannot be imported: {type(error).__name__}: {error}"
        ) from error
    several = [found] if isinstance(found, type | Named) else found
    if not isinstance(several, Collection) or not all(
        isinstance(kind, type | Named) for kind in several
    ):
        raise click.BadParameter(f"{name} is neither a class nor a list of classes: {found!r}")
    return tuple(several)


def size_of(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Return how many bytes ``500``, ``10k`` or ``2.5MB`` are."""
    return _measured(value, _UNITS, "is no size; write 500, 10k or 2.5MB")


def age_of(_: click.Context, __: click.Parameter, value: str | None) -> float | None:
    """Return how many milliseconds ``30s``, ``10min``, ``12h``, ``30d`` or ``2w`` are."""
    seconds = _measured(value, _SECONDS, "is no time; write 30s, 10min, 12h, 30d or 2w")
    return None if seconds is None else seconds * 1000


def _measured(value: str | None, units: Mapping[str, int], advice: str) -> float | None:
    if value is None:
        return None
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", value.lower())
    if not found or found[2] not in units:
        raise click.BadParameter(f"{value!r} {advice}")
    return float(found[1]) * units[found[2]]
