"""The persistence that python-telegram-bot plugs in: which document each of its calls means."""

from __future__ import annotations

import os
import weakref
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    MutableMapping,
)
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar
from functools import partial
from os import PathLike
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast, overload

from telegram import Bot
from telegram.ext import BasePersistence, ContextTypes, PersistenceInput

from kvpersist import keys
from kvpersist.callback_data import CallbackData
from kvpersist.codec import Codec, Named
from kvpersist.errors import (
    BackupError,
    BadRowsError,
    ConfigurationError,
    DecodeError,
    EncodeError,
)
from kvpersist.keyboards import Keyboards
from kvpersist.lazy import Lazy
from kvpersist.rows import HandedOver, Progress, Rows
from kvpersist.shared import Shared
from kvpersist.stats import Stats
from kvpersist.stores import SqliteStore, Store
from kvpersist.stores.daemon import begin_in_daemon
from kvpersist.stores.sqlite_backup import check_progress
from kvpersist.stores.store import SetsAside, Shareable
from kvpersist.telegram_objects import TelegramObjects
from kvpersist.unit import Unit

UD = TypeVar("UD")
CD = TypeVar("CD")
BD = TypeVar("BD")
T = TypeVar("T")
OnBadRow: TypeAlias = Literal["raise", "set-aside"]
ConversationKey: TypeAlias = tuple[int | str, ...]
ConversationDict: TypeAlias = MutableMapping[ConversationKey, object]


_HANDED_OVER: Final[ContextVar[HandedOver | None]] = ContextVar("kvpersist", default=None)
"""In a run of PTB's for the sake of conversations alone: where their rows go."""
_NOTHING: Final = PersistenceInput(bot_data=False, callback_data=False)
"""The other two are asked for so that PTB empties its sets of ids that were dropped."""


class KVPersistence(BasePersistence[UD, CD, BD]):
    """Keeps a bot's data as one JSON row a document, written through.

    ::

        app = Application.builder().token(TOKEN).persistence(KVPersistence("bot.db")).build()

    PTB calls the methods; a bot has no need to. None of them may be called from two event loops at
    the same time. The store is opened by the first call and closed by `flush`.

    Args:
        store: The path of a SQLite file; or the URL of a PostgreSQL database, which needs the extra
            ``postgres``; or a `Store`.
        store_data: Which kinds of data are kept, all by default. What is off is neither read nor
            written; rows that are there already stay as they are. Conversations are kept for every
            handler that says ``persistent=True``.
        update_interval: Seconds between two runs in which PTB hands over what changed. More than 0,
            because at 0 PTB keeps a processor core busy with nothing else.
        context_types: What is given to ``ApplicationBuilder.context_types``, if anything: custom
            ``user_data``, ``chat_data`` and ``bot_data`` come back as instances of their classes.
        types: The bot's own classes that documents, states and callback data may contain, each as
            itself or as `Named`. Classes in `context_types` need not be listed.
        lazy: Read the data of a chat or user when an update or job first uses it, not at the start.
            Only for `application_builder`. See `load` for the data of others.
        max_documents: How many chats, and how many users, `lazy` keeps in memory: those that were
            used last. Those that are in use, or have unsaved changes, stay beyond that.
        progress: Called, while a start takes its time, with a prefix of keys (``chat/``) and the
            number of rows that have been loaded.
        shared: Be one of many workers that handle the updates of one bot, on any number of
            machines, with one PostgreSQL database. Only for `application_builder`, and for
            `edit`. See ``docs/workers.md``.
        deduplicate: With `shared`, keep the ids of the updates that were handled, each in the
            transaction of its update, and handle none twice.
        on_bad_row: What becomes of rows that cannot be read: ``"raise"`` an error for all of them,
            so that the bot does not start; or ``"set-aside"``: go on without them, and keep them as
            they are in a table of their own, ``set_aside``. Each is an error in the log.

    Attributes:
        store: Where the rows are.
        codec: How values become rows; `Codec.register` takes classes that need functions for it.

    Raises:
        ConfigurationError: An argument cannot work. No file was touched.
    """

    @overload
    def __init__(
        self: KVPersistence[dict[Any, Any], dict[Any, Any], dict[Any, Any]],
        store: str | PathLike[str] | Store,
        *,
        store_data: PersistenceInput | None = None,
        update_interval: float = 1.0,
        context_types: None = None,
        types: Collection[type | Named] = (),
        lazy: bool = False,
        max_documents: int = 10_000,
        shared: bool = False,
        deduplicate: bool = False,
        progress: Progress | None = None,
        on_bad_row: OnBadRow = "raise",
    ) -> None: ...

    @overload
    def __init__(
        self,
        store: str | PathLike[str] | Store,
        *,
        store_data: PersistenceInput | None = None,
        update_interval: float = 1.0,
        context_types: ContextTypes[Any, UD, CD, BD],
        types: Collection[type | Named] = (),
        lazy: bool = False,
        max_documents: int = 10_000,
        shared: bool = False,
        deduplicate: bool = False,
        progress: Progress | None = None,
        on_bad_row: OnBadRow = "raise",
    ) -> None: ...

    def __init__(
        self,
        store: str | PathLike[str] | Store,
        *,
        store_data: PersistenceInput | None = None,
        update_interval: float = 1.0,
        context_types: ContextTypes[Any, UD, CD, BD] | None = None,
        types: Collection[type | Named] = (),
        lazy: bool = False,
        max_documents: int = 10_000,
        shared: bool = False,
        deduplicate: bool = False,
        progress: Progress | None = None,
        on_bad_row: OnBadRow = "raise",
    ) -> None:
        if not isinstance(update_interval, int | float) or not update_interval > 0:
            raise ConfigurationError(
                f"update_interval must be more than 0 seconds, as a number, not "
                f"{update_interval!r}: at 0 python-telegram-bot keeps a processor core busy; 0.1 "
                "is short enough"
            )
        if not isinstance(max_documents, int) or max_documents < 1:
            raise ConfigurationError(
                f"max_documents must be an int, 1 or more, not {max_documents!r}"
            )
        if isinstance(types, type) or not isinstance(types, Collection):
            raise ConfigurationError(f"types must be a list of classes, not {types!r}")
        check_progress(progress)
        _check("lazy", lazy, bool)
        _check("shared", shared, bool)
        _check("deduplicate", deduplicate, bool)
        _check_shared(shared=shared, deduplicate=deduplicate, lazy=lazy, on_bad_row=on_bad_row)
        _check("store_data", store_data, PersistenceInput)
        _check("context_types", context_types, ContextTypes)
        super().__init__(store_data=store_data, update_interval=update_interval)
        is_store = isinstance(store, Store) and not isinstance(store, type)
        self.store = cast("Store", store) if is_store else _engine(cast("str", store))
        self.context_types = cast("ContextTypes[Any, UD, CD, BD]", context_types or ContextTypes())
        self.codec = Codec(types, extensions=[TelegramObjects(self._running_bot)])
        if on_bad_row not in ("raise", "set-aside"):
            raise ConfigurationError(f'on_bad_row is "raise" or "set-aside", not {on_bad_row!r}')
        aside = self.store if on_bad_row == "set-aside" else None
        if aside is not None and not isinstance(aside, SetsAside):
            raise ConfigurationError(f'on_bad_row="set-aside": {aside!r} cannot set rows aside')
        self.rows = Rows(self.store, self.codec, progress, aside)
        self.shared = self._share() if shared else None
        self.deduplicates = deduplicate
        self.is_lazy = lazy
        self.max_documents = max_documents
        self.lazy: Lazy | None = None
        self.user: weakref.ref[object] | None = None
        self.has_conversations = False
        self.on_refresh: Callable[[keys.Name | None, Any], Awaitable[None]] = self.refresh
        self.keyboards = Keyboards(self.rows)

    def _share(self) -> Shared:
        if not isinstance(self.store, Shareable):
            raise ConfigurationError(
                f"shared=True needs PostgreSQL, not {self.store!r}. Several processes that write "
                "one SQLite file would wait for each other's updates, whichever chats they are of: "
                "one process on one file is faster"
            )
        self.store.share()
        return Shared(self.store, self.rows, self.kind)

    def kind(self, name: keys.Name | None) -> type | None:
        """Return the class of a document; None, as a name, is ``bot_data``. None: not stored."""
        kind = f"{'bot' if name is None else name[0]}_data"
        return getattr(self.context_types, kind) if getattr(self.store_data, kind) else None

    def be_used_by(self, application: object) -> None:
        """Note which application this is of.

        Raises:
            ConfigurationError: Another one is using it.
        """
        user = self.user() if self.user else None
        if user not in {None, application}:
            raise ConfigurationError(
                "another application is using this KVPersistence; give each one of its own, with a "
                "file or schema of its own, unless they are workers"
            )
        self.user = weakref.ref(application)

    @property
    def store_data(self) -> PersistenceInput:
        """Which kinds of data are kept."""
        return self._store_data if _HANDED_OVER.get() is None else _NOTHING

    @store_data.setter
    def store_data(self, value: PersistenceInput) -> None:
        self._store_data = value

    async def get_user_data(self) -> dict[int, UD]:
        """Return the stored ``user_data`` of all users.

        `Application.initialize` calls it, before any update is handled.

        Raises:
            OpenError: The store cannot be opened, or another bot has it open.
            ReadError: The store could not be read.
            DecodeError: A row cannot be read. None is skipped, so the bot does not start, unless
                `on_bad_row` says so. A `BadRowsError` if there are several, of whatever kind.
            WriteError: What an earlier run of this object could not write still cannot be written.
        """
        if not self.store_data.user_data:
            return {}
        if self.is_lazy or self.shared is not None:
            await self._open_lazily()
            return {}
        return await self._start(self._load_users)

    async def get_chat_data(self) -> dict[int, CD]:
        """Return the stored ``chat_data`` of all chats. Called, and raises, as `get_user_data`."""
        if not self.store_data.chat_data:
            return {}
        if self.is_lazy or self.shared is not None:
            await self._open_lazily()
            return {}
        return await self._start(self._load_chats)

    async def _open_lazily(self) -> None:
        self._check_builder()
        await self.rows.open()

    def _check_builder(self) -> None:
        if self.user is None and (self.is_lazy or self.shared is not None):
            name = "lazy" if self.is_lazy else "shared"
            raise ConfigurationError(f"{name}=True works with kvpersist.application_builder only")

    async def load(self, scope: keys.Scope, ids: int | Collection[int]) -> None:
        """Have the data of other chats or users in memory, as it is stored now.

        With ``lazy=True`` what is not in memory cannot be used: ``application.user_data[7]`` raises
        `NotInMemoryError` as soon as anything is done with it. Otherwise this does nothing. ::

            await context.application.persistence.load("user", 7)
            context.application.user_data[7]["invited"] = True
            context.application.mark_data_for_update_persistence(user_ids=7)

        What a handler, a job, or a task of `Application.create_task` loads stays in memory until it
        is done. Elsewhere, as in a task of `asyncio.create_task`, await nothing between these
        lines: others that are used meanwhile may take its place.

        All of `ids` are in memory when this returns, also if they are more than `max_documents`;
        what is too many leaves as others are used. To look through all, use `documents`.

        Args:
            scope: ``chat`` or ``user``.
            ids: Of which one, or which ones.

        With ``shared=True`` it also locks them until the update ends, as `lock` says, and raises
        what that raises.

        Raises:
            ConfigurationError: There is no such scope, or an id is none.
            OpenError, ReadError: The store could not be read.
            DecodeError: A row cannot be read.
            WriteError: One that PTB has nothing to do with is waiting, and cannot be written.
        """
        _check_scope(scope)
        if self.lazy is not None:
            await self.lazy.load_many(scope, several(ids))
        elif self.shared is not None:
            await self._unit().load([(scope, each) for each in several(ids)])

    async def lock(
        self, scope: keys.Scope | Literal["bot"], ids: int | Collection[int] = ()
    ) -> None:
        """Have documents for this update alone, as they are stored now, until it ends.

        With ``shared=True`` an update has the data of its own chat and user so. ``bot_data`` it has
        not: it is merged with what other workers have made of it. After ``await lock("bot")`` they
        wait, before they change it, until this update has ended::

            await context.application.persistence.lock("bot")
            context.bot_data["orders"] += 1

        Call it late, and for little: everybody waits. For chats and users it does what `load` does.

        Args:
            scope: ``bot``, ``chat`` or ``user``.
            ids: Of which chats or users.

        Raises:
            ConfigurationError: Without ``shared=True``, or not in an update; or as `load`.
            LockError: Another worker has had one of them for too long, or waits for what this
                update has. Then nothing of the update is written.
            ConflictError, UnavailableError: Likewise.
            DecodeError: A row cannot be read. The rest of the update is written.
        """
        if scope != "bot":
            _check_scope(scope, "bot")
        names = [None] if scope == "bot" else [(scope, each) for each in several(ids)]
        await self._unit().load(names)

    @asynccontextmanager
    async def edit(
        self, scope: keys.Scope | Literal["bot"], document_id: int | None = None
    ) -> AsyncIterator[Any]:
        """Have one document for a change, with ``shared=True``, wherever the code runs.

        ::

            async with persistence.edit("user", 7) as data:
                data["coins"] += 1

        It is locked, read, and, when the body ends, written: then it is durable. If the body
        raises, nothing is written. Within an update, or another `edit`, it is a part of that: it is
        written when that ends, and given back then.

        It works without an application too, as in a script or a web page; then `flush` closes the
        store at the end.

        Args:
            scope: ``chat``, ``user`` or ``bot``.
            document_id: Of which chat or user.

        Raises:
            ConfigurationError: Without ``shared=True``; there is no such scope; it is not stored.
            OpenError: The store cannot be opened.
            LockError, ConflictError, UnavailableError, WriteError: Nothing was written.
            DecodeError: The row cannot be read.
            EncodeError: What the body has made cannot be stored. Nothing was written. Within an
                update the error handlers hear of it instead.
        """
        if self.shared is None:
            raise ConfigurationError("edit() needs KVPersistence(..., shared=True)")
        if scope == "bot":
            name = None
        else:
            _check_scope(scope, "bot")
            (document_id,) = several(cast("int", document_id))
            name = scope, document_id
        async with self.shared.edit(name) as document:
            yield document

    def _unit(self) -> Unit:
        if self.shared is None:
            raise ConfigurationError("lock() needs KVPersistence(..., shared=True)")
        if (unit := self.shared.unit()) is None:
            raise ConfigurationError(
                "this is not a part of an update that is being handled; use `async with "
                "persistence.edit(scope, id) as data`"
            )
        return unit

    async def documents(self, scope: keys.Scope) -> AsyncIterator[tuple[int, Any]]:
        """Yield the id and the data of all chats, or users, as they are stored, in any order.

        Memory is not filled with them. Each is a copy: use `load` to change one. It works without
        an application too; then `flush` closes the store at the end. ::

            persistence = KVPersistence("bot.db")
            async for chat_id, data in persistence.documents("chat"):
                print(chat_id, data)
            await persistence.flush()

        Args:
            scope: ``chat`` or ``user``.

        Raises:
            ConfigurationError, OpenError, ReadError, DecodeError: As `load`.
        """
        _check_scope(scope)
        types = self.context_types
        kind = types.chat_data if scope == "chat" else types.user_data
        name = partial(keys.document_id, scope)
        async for document_id, document in self.rows.stream(f"{scope}/", name, kind):
            yield document_id, document

    async def get_bot_data(self) -> BD:
        """Return the stored ``bot_data``, or a new instance of its class where there is none.

        Called, and raises, as `get_user_data`.
        """
        self._check_builder()
        if not self.store_data.bot_data:
            return self.context_types.bot_data()
        found = await self._start(self._load_bot)
        return self.context_types.bot_data() if found is None else found

    async def get_callback_data(self) -> CallbackData | None:
        """Return the stored callback-data cache, in the order in which it was handed over.

        Called, and raises, as `get_user_data`, if the bot has ``arbitrary_callback_data``. None
        where nothing is stored.
        """
        if not self.store_data.callback_data or self.shared is not None:
            return None
        return await self._start(lambda _: self.keyboards.load())

    async def get_conversations(self, name: str) -> ConversationDict:
        """Return the stored state of each conversation of the handler `name`.

        `Application.initialize` calls it for each persistent `ConversationHandler`, nested ones
        too; `Application.add_handler` does for one that is added later. Raises as `get_user_data`.
        """
        if self.shared is not None:
            return {}  # each update reads its own
        self.has_conversations = True
        return await self._start(partial(self._load_conversations, keys.conversation_prefix(name)))

    async def _load_users(self, rows: Rows) -> dict[int, UD]:
        name = partial(keys.document_id, "user")
        return await rows.load("user/", name, self.context_types.user_data)

    async def _load_chats(self, rows: Rows) -> dict[int, CD]:
        name = partial(keys.document_id, "chat")
        return await rows.load("chat/", name, self.context_types.chat_data)

    async def _load_bot(self, rows: Rows) -> BD | None:
        return await rows.load_one(keys.BOT, self.context_types.bot_data)

    async def _load_conversations(self, prefix: str, rows: Rows) -> ConversationDict:
        conversations: ConversationDict = {}

        def take(key: str, state: Any) -> None:
            conversations[self._conversation(key)] = state

        await rows.load_values(prefix, take)
        return conversations

    async def _start(self, load: Callable[[Rows], Awaitable[T]]) -> T:
        """Return what `load` does, or raise for all rows of the store that cannot be read."""
        try:
            return await load(self.rows)
        except DecodeError as error:
            first = error
        async with self.rows.reading():
            raise await self._all_bad(first)

    async def _all_bad(self, first: DecodeError) -> DecodeError:
        bad = {first.key: first}
        rows = self.rows.to_look_at()  # a handler may have been added to a bot that runs
        for load in self._loads():
            try:
                await load(rows)
            except DecodeError as error:  # noqa: PERF203  a handful of calls
                bad |= {each.key: each for each in error.errors}
        told = first if len(bad) == 1 else BadRowsError(bad.values())
        told.store = str(getattr(self.store, "path", type(self.store).__name__))
        return told

    def _loads(self) -> Iterator[Callable[[Rows], Awaitable[object]]]:
        """Yield what a start calls, one after the other."""
        if self.store_data.user_data and not self.is_lazy:
            yield self._load_users
        if self.store_data.chat_data and not self.is_lazy:
            yield self._load_chats
        if self.store_data.bot_data:
            yield self._load_bot
        if self.store_data.callback_data:
            yield lambda rows: Keyboards(rows).load()
        yield partial(self._load_conversations, keys.CONVERSATION)

    async def update_user_data(self, user_id: int, data: UD) -> None:
        """Write ``user_data`` of one user, if it changed. When this returns it is durable.

        PTB calls it with a deep copy, every `update_interval` and at shutdown, for each user of
        whom a handler or job finished since, also if it raised or changed nothing.

        Raises:
            EncodeError: A value cannot be stored exactly. The stored row stays as it was.
            WriteError: The store refused. The value is kept and tried again.
        """
        if self.store_data.user_data:
            key = keys.document_key("user", user_id)
            text = self.rows.encode_document(key, data, self.context_types.user_data)
            await self.rows.commits.write_row(key, text)

    async def update_chat_data(self, chat_id: int, data: CD) -> None:
        """Write ``chat_data`` of one chat. Called, and raises, as `update_user_data`."""
        if self.store_data.chat_data:
            key = keys.document_key("chat", chat_id)
            text = self.rows.encode_document(key, data, self.context_types.chat_data)
            await self.rows.commits.write_row(key, text)

    async def update_bot_data(self, data: BD) -> None:
        """Write ``bot_data``, if it changed. When this returns it is durable.

        PTB calls it in every run, changed or not. Raises as `update_user_data`.
        """
        if self.store_data.bot_data:
            text = self.rows.encode_document(keys.BOT, data, self.context_types.bot_data)
            await self.rows.commits.write_row(keys.BOT, text)

    async def update_callback_data(self, data: CallbackData) -> None:
        """Write the keyboards that changed, remove those that are gone.

        PTB calls it in every run, changed or not. When this returns all of it is durable. A
        keyboard with data that cannot be stored keeps its old row; all the others are written.

        Raises:
            EncodeError: For the first keyboard that cannot be stored.
            WriteError: The store refused. The rows are kept and tried again.
        """
        if not self.store_data.callback_data:
            return
        await self.keyboards.write(data)

    async def update_conversation(
        self, name: str, key: ConversationKey, new_state: object | None
    ) -> None:
        """Write the state of one conversation; None, for one that has ended, removes its row.

        PTB calls it by keyword, every `update_interval` and at shutdown, for each conversation that
        took a step since. While a handler with ``block=False`` works it hands over the old state.
        When this returns the state is durable. Raises as `update_user_data`.
        """
        if self.shared is not None:
            return  # the update has written it
        handed = _HANDED_OVER.get()
        try:
            row = self.conversation_row(name, key)
            if handed is not None and new_state is None and not self.rows.may_be_stored(row):
                return  # it has not begun, which PTB tells in each run until it has
            text = None if new_state is None else self.rows.encode(row, new_state)
        except EncodeError as error:
            if handed is None:
                raise
            handed.refused.append(error)
            return
        if handed is None:
            await self.rows.commits.write({row: text})
        else:
            handed.changes[row] = text

    async def handed_over(self, hand_over: Callable[[], Awaitable[None]]) -> HandedOver:
        """Return the rows of the conversations that took a step, in place of writing them.

        Args:
            hand_over: `Application.update_persistence` of PTB, the only call that tells which did.
                While it runs PTB hands over nothing else, and runs no code of the bot's.
        """
        token = _HANDED_OVER.set(handed := HandedOver())
        try:
            await hand_over()
        finally:
            with suppress(ValueError):  # a loop that has ended ends this in another context
                _HANDED_OVER.reset(token)
        return handed

    async def drop_user_data(self, user_id: int) -> None:
        """Remove the row of one user. When this returns it is gone, durably.

        PTB calls it in its next run after `Application.drop_user_data`.

        Raises:
            WriteError: The store refused. The removal is kept and tried again.
        """
        if self.store_data.user_data and _HANDED_OVER.get() is None:
            await self.rows.commits.write({keys.document_key("user", user_id): None})

    async def drop_chat_data(self, chat_id: int) -> None:
        """Remove the row of one chat. As `drop_user_data`; `migrate_chat_data` leads here too."""
        if self.store_data.chat_data and _HANDED_OVER.get() is None:
            await self.rows.commits.write({keys.document_key("chat", chat_id): None})

    async def refresh_user_data(self, user_id: int, user_data: UD) -> None:
        """Take over into `user_data` what another program wrote into its row meanwhile.

        PTB calls it before the handlers of every update and job. Nothing happens while memory holds
        anything that the store does not: then memory wins, and is written in PTB's next run.

        Raises:
            OpenError, ReadError: The store could not be read. PTB does not run the handlers of the
                first group that has one for this update; those of later groups see what memory has.
                The application of `application_builder` runs none.
            DecodeError: The other program wrote what cannot be read. Likewise.
            WriteError: With ``on_bad_row="set-aside"``: what cannot be read could not be set aside.
                Likewise.

        Notes:
            What another handler of the same user, still at work, holds of the inner values of
            `user_data` is no part of it any more after another program's write was taken over. And
            if PTB is handing over this document in the same moment, what it had before is written
            over the other program's write.
        """
        if self.store_data.user_data:
            await self.on_refresh(("user", user_id), user_data)

    async def refresh_chat_data(self, chat_id: int, chat_data: CD) -> None:
        """Take over what another program wrote of one chat. As `refresh_user_data`."""
        if self.store_data.chat_data:
            await self.on_refresh(("chat", chat_id), chat_data)

    async def refresh_bot_data(self, bot_data: BD) -> None:
        """Take over what another program wrote of ``bot_data``. As `refresh_user_data`."""
        if self.store_data.bot_data:
            await self.on_refresh(None, bot_data)

    async def refresh(self, name: keys.Name | None, document: Any) -> None:
        """Do what `refresh_user_data` says; None is ``bot_data``."""
        if not self.is_current(name):
            kind = getattr(self.context_types, f"{'bot' if name is None else name[0]}_data")
            await self.rows.refresh(*_row_of(name), document, kind)

    def is_current(self, name: keys.Name | None) -> bool:
        """Whether there is nothing to refresh; it costs no I/O."""
        return self.rows.is_current(*_row_of(name))

    def doubt(self, names: Collection[keys.Name | None]) -> None:
        """Note that documents were not refreshed: their rows may hold more than memory does."""
        for name in names:
            self.rows.doubt(_row_of(name)[0])

    def stats(self) -> Stats:
        """Return what was written since this was made, and what is waiting. It costs no I/O.

        Call it in the thread of the bot's event loop. ``examples/prometheus.py`` exports it.
        """
        return self.rows.commits.stats()

    async def backup(
        self, path: str | PathLike[str], progress: Callable[[int, int], object] | None = None
    ) -> None:
        """Copy the SQLite file into a new one, while the bot goes on. See `SqliteStore.backup`.

        It works without an application too; then `flush` closes the store at the end.

        Raises:
            ConfigurationError: `path` is no path of a file, or `progress` no function.
            OpenError: The store cannot be opened.
            BackupError: There is no copy: the file exists, the disk is full, the bot's file is
                damaged, or there is none, ….
        """
        check_progress(progress)
        if not isinstance(self.store, SqliteStore):
            raise BackupError(
                f"{self.store!r} is not in a SQLite file; back it up by its own means"
            )
        if not await begin_in_daemon(partial(os.path.exists, self.store.path), lambda _: None):
            raise BackupError(
                f"there is no file {self.store.path} to be copied. Is the path right? A bot makes "
                "its file when it starts for the first time"
            )
        await self.store.open()
        await self.store.backup(path, progress)

    async def flush(self) -> None:
        """Write everything that is waiting, then close the store.

        `Application.shutdown` calls it last. The next call of any method opens the store again, on
        the event loop that is running then.

        Raises:
            WriteError: With all rows that could not be written. It says whether they were left
                in a file for the next start, or are kept in memory alone; a second `flush`
                tries again. The store is closed, unless what was written before would be lost with
                it.
        """
        await self.rows.close()

    def conversation_row(self, name: str, key: ConversationKey) -> str:
        """Return the key of the row of a conversation.

        Raises:
            EncodeError: `key` is none.
        """
        prefix = keys.conversation_prefix(name)
        return prefix + self.rows.encode(f"{prefix}{key!r}", list(key)).decode()

    def _conversation(self, row: str) -> ConversationKey:
        text = row.split("/", 2)[-1].encode(errors="surrogateescape")
        parts = self.rows.decode(row, text)
        if type(parts) is list and self.rows.encode(row, parts) == text:
            with suppress(TypeError):
                hash(key := tuple(parts))
                return key
        raise DecodeError("not the key of a conversation; rename or delete the row", key=row)

    def _running_bot(self) -> Bot | None:
        return self.bot


def _engine(name: str | PathLike[str]) -> Store:
    if not isinstance(name, str) or not name.startswith(("postgresql:", "postgres:")):
        return SqliteStore(name)
    try:
        from kvpersist.stores.postgres import PostgresStore  # noqa: PLC0415  an extra
    except ImportError as error:
        raise ConfigurationError(
            "PostgreSQL needs the extra postgres: in a clone of kvpersist, "
            'pip install ".[postgres]"'
        ) from error
    return PostgresStore(name)


def _row_of(name: keys.Name | None) -> tuple[str, str]:
    """Return the key of a document, and what the keys of its scope begin with."""
    if name is None:
        return keys.BOT, ""
    scope, document_id = name
    return keys.document_key(scope, document_id), f"{scope}/"


def checked(persistence: object, *, is_shared: bool) -> KVPersistence[Any, Any, Any]:
    """Return the persistence of an application.

    Raises:
        ConfigurationError: It is not one for this class of applications.
    """
    if not isinstance(persistence, KVPersistence):
        raise ConfigurationError(
            "application_builder needs its KVPersistence; do not set another persistence"
        )
    if (persistence.shared is not None) != is_shared:
        raise ConfigurationError(
            "with shared=True an application is a WorkerApplication, without it none; let "
            "kvpersist.application_builder choose the class, or derive from the right one"
        )
    return persistence


def several(ids: int | Collection[int]) -> tuple[int, ...]:
    """Return ids, of which there may be one or several.

    Raises:
        ConfigurationError: One is none.
    """
    found = (ids,) if isinstance(ids, int | str) or not isinstance(ids, Iterable) else tuple(ids)
    for document_id in found:
        if not isinstance(document_id, int):
            raise ConfigurationError(f"an id is an int, not {document_id!r}")
    return found


def _check(name: str, value: object, kind: type) -> None:
    if value is not None and not isinstance(value, kind):
        raise ConfigurationError(f"{name} must be a {kind.__name__}, not {value!r}")


def _check_shared(*, shared: bool, deduplicate: bool, lazy: bool, on_bad_row: str) -> None:
    if deduplicate and not shared:
        raise ConfigurationError(
            "deduplicate=True goes with shared=True: there the id of an update is written with it"
        )
    if shared and lazy:
        raise ConfigurationError("shared=True reads each update's documents anyway: no lazy=True")
    if shared and on_bad_row != "raise":
        raise ConfigurationError(
            "with shared=True rows that cannot be read are errors of the updates that need them: "
            "no on_bad_row"
        )


def _check_scope(scope: object, *more: str) -> None:
    if scope not in ("chat", "user"):
        scopes = " or ".join(f'"{each}"' for each in ("chat", "user", *more))
        raise ConfigurationError(f"the scope must be {scopes}, not {scope!r}")
