"""An `Application` of which many can handle the updates of one bot, on one PostgreSQL database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterable
from functools import partial
from types import MappingProxyType
from typing import Any, Final, TypeAlias, cast

from telegram import Message, Update
from telegram.ext import Application, BaseHandler, ExtBot, Job

from kvpersist import conversations, keys
from kvpersist.codec import become
from kvpersist.errors import (
    ConfigurationError,
    EncodeError,
    KVPersistError,
    NotInMemoryError,
)
from kvpersist.keys import Name, Scope
from kvpersist.persistence import checked, several
from kvpersist.runs import is_of
from kvpersist.shared import Shared
from kvpersist.stores.store import Shareable
from kvpersist.unit import UNIT, Document, Unit, UnitDocuments
from kvpersist.updates import end_of_move, moved_by, unmark, used_by
from kvpersist.worker_keyboards import WorkerKeyboards

_NON_BLOCKING: Final = ":process_update_non_blocking:"
"""What PTB's names of tasks have in them that run a handler with ``block=False``."""
_STEP: Final = ":handle_update:non_blocking_cb"
"""How PTB's names of tasks end that make a step of a conversation."""
_TRIM_EVERY: Final = 600.0
"""Seconds between two looks for keyboards and ids of updates that are too many, or too old."""
_REMEMBERED: Final = 3 * 86_400_000
"""Milliseconds for which the id of an update is kept. Telegram keeps updates for a day."""


_Steps: TypeAlias = dict[str, tuple[conversations.Conversation, conversations.Key]]


class WorkerApplication(Application[Any, Any, Any, Any, Any, Any]):
    """One of many workers of a bot; `application_builder` builds it for ``shared=True``.

    Each update is one transaction, which has its documents for itself: see `handle_update`.

    Outside of an update, as in a job, no chat's or user's data is in memory: use
    `KVPersistence.edit`. What is changed in ``bot_data`` there is merged with what others have made
    of it, and written, by `update_persistence`.

    Raises:
        ConfigurationError: The persistence is not a `KVPersistence` with ``shared=True``.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._kv = checked(self.persistence, is_shared=True)
        self._kv.context_types = self.context_types
        self._shared = cast("Shared", self._kv.shared)
        self._handlers: list[conversations.Conversation] = []
        self._bot_text: bytes | None = None  # the `bot_data` that jobs see, as it was stored
        self._bot_news = 0  # how often that was another text
        self._keyboards: WorkerKeyboards | None = None
        self._told: set[str] = set()
        self._writing: set[asyncio.Task[None]] = set()
        self._is_live = False
        self._trim_at = time.monotonic() + _TRIM_EVERY
        self._divide()

    def _divide(self) -> None:
        """Let each update see its own documents alone.

        It replaces two private mappings of PTB's.
        """
        if self._kv.store_data.chat_data:
            self._chats = UnitDocuments("chat", self._shared.unit)
            self._chat_data = self._chats  # type: ignore[assignment]
            self.chat_data = MappingProxyType(self._chat_data)
        if self._kv.store_data.user_data:
            self._users = UnitDocuments("user", self._shared.unit)
            self._user_data = self._users  # type: ignore[assignment]
            self.user_data = MappingProxyType(self._user_data)
        if (cache := self._cache()) is not None:
            bot = cast("ExtBot[Any]", self.bot)
            self._keyboards = WorkerKeyboards(
                bot, cache, self._shared, self._kv.rows, self._begin_to_write
            )

    @property
    def bot_data(self) -> Any:
        """The ``bot_data`` of the update that is handled; or a job's, which is every job's."""
        document = self._bot_of_update()
        return self._bot_data if document is None else document.value

    @bot_data.setter
    def bot_data(self, value: Any) -> None:
        if (document := self._bot_of_update()) is None:
            self._bot_data = value
        else:
            document.value = value

    def _bot_of_update(self) -> Document | None:
        shared: Shared | None = getattr(self, "_shared", None)  # PTB sets it before there is one
        unit = shared.unit() if shared is not None else None
        return None if unit is None else unit.bot

    async def initialize(self) -> None:
        """Open the store; see `Application.initialize`.

        Raises:
            ConfigurationError: Another application is using the same `KVPersistence`. Or a
                `ConversationHandler` cannot be shared.
        """
        self._handlers = self._find_conversations()
        self._kv.be_used_by(self)
        self._kv.on_refresh = self._on_refresh
        try:
            await super().initialize()
        except BaseException:
            self._kv.user = None
            raise
        if self._kv.kind(None) is not None and not self._is_live:
            self._bot_text = self._shared.encode(None, self._bot_data)
        self._is_live = True

    async def shutdown(self) -> None:
        """Close the store; see `Application.shutdown`."""
        loop = asyncio.get_running_loop()  # of another that has ended, nothing goes on
        while writing := [task for task in self._writing if is_of(task, loop)]:
            await asyncio.wait(writing)
        self._is_live = self.running
        try:
            await super().shutdown()
        finally:
            self._kv.user = self._kv.user if self._is_live else None

    def add_handler(self, handler: BaseHandler[Any, Any, Any], group: int = 0) -> None:
        """Add a handler; see `Application.add_handler`.

        Raises:
            ConfigurationError: It is a `ConversationHandler` that cannot be shared.
        """
        found = self._find_conversations(handler)
        super().add_handler(handler, group)
        self._handlers = found

    def remove_handler(self, handler: BaseHandler[Any, Any, Any], group: int = 0) -> None:
        """Remove a handler; see `Application.remove_handler`."""
        super().remove_handler(handler, group)
        self._handlers = self._find_conversations()

    def _find_conversations(
        self, *more: BaseHandler[Any, Any, Any]
    ) -> list[conversations.Conversation]:
        handlers = [handler for group in self.handlers.values() for handler in group]
        return conversations.find([*handlers, *more])

    async def process_update(self, update: object) -> None:
        """Handle an update as `handle_update` does, and let error handlers hear what went wrong."""
        try:
            await self.handle_update(update)
        except KVPersistError as error:
            await self.process_error(update, error)

    async def handle_update(self, update: object) -> bool:
        """Handle an update in one transaction, and return when that is durable.

        The data of its chat and user, and its conversations, are locked, whether they exist or not,
        then read. The handlers run, those with ``block=False`` too. What they have changed is
        written, and committed, and others go on. A server that answers a webhook calls this, and
        confirms the update when it has returned: then Telegram sends it again if anything is
        raised, or the worker dies.

        Returns:
            False for an update that was handled before; see ``deduplicate``. No handler ran.

        Raises:
            LockError: Another worker has had one of these documents for too long. No handler ran;
                or one has called `KVPersistence.edit`, `lock` or `load`, in vain.
            ConflictError: Somebody else has written them, who did not lock them, or while the
                connection was lost. Nothing was written.
            UnavailableError: The server cannot be reached. Likewise, unless it says that the answer
                to the commit was lost.
            DecodeError: A row cannot be read. No handler ran.
            EncodeError: Something cannot be stored, and a handler has used `KVPersistence.edit`.
                Nothing was written.
            ConfigurationError: A handler has called this.

        Notes:
            What a handler has told a person is told, also if nothing can be written afterwards.
        """
        if not self._is_live:
            await super().process_update(update)  # which refuses
        if self._shared.unit() is not None:
            raise ConfigurationError(
                "a handler cannot handle another update; put it into application.update_queue"
            )
        own = {*used_by(update)}
        names = own.union(moved_by(update))
        steps = self._steps(update)
        record = self._record(update)
        keyboards = self._keyboards if isinstance(update, Update) else None
        reads = keyboards.rows_of(cast("Update", update)) if keyboards is not None else ()
        take_out: Callable[[], None] | None = None
        try:
            async with self._shared.begin(names, locks=[*steps, *record], reads=reads) as unit:
                # Also if it is there: a standby may not have it, and a commit without writes waits
                # for none.
                unit.changes |= record
                if unit.rows.keys() & record:
                    return False
                unit.is_update = True
                unit.own = own
                if keyboards is not None:
                    take_out = keyboards.show(cast("Update", update), unit)
                await self._handle(update, unit, steps)
        except BaseException:
            if take_out is not None:
                take_out()  # it may be handled again
            raise
        await self._tell(unit.refused)
        return True

    def _record(self, update: object) -> dict[str, bytes]:
        """Return the row that tells that an update was handled, if there is to be one."""
        if not self._kv.deduplicates or not isinstance(update, Update):
            return {}
        return {f"{keys.UPDATE}{update.update_id}": b"{}"}

    async def _handle(self, update: object, unit: Unit, steps: _Steps) -> None:
        """Have PTB handle an update, and note what it has made of conversations and keyboards."""
        try:
            for row, step in steps.items():
                if (text := unit.text(row)) is not None:
                    conversations.put(*step, self._kv.rows.decode(row, text))
            await super().process_update(update)
            await unit.wait_for_parts()
        finally:
            states = {row: conversations.take(*step) for row, step in steps.items()}
        for row, state in states.items():
            unit.write(row, None if state is None else partial(self._kv.rows.encode, row, state))
        if self._keyboards is not None:
            self._keyboards.write(unit)

    def _steps(self, update: object) -> _Steps:
        """Return the conversations that an update may be a step of, by the keys of their rows."""
        if not isinstance(update, Update):
            return {}
        keys_of = [(handler, conversations.key_of(handler, update)) for handler in self._handlers]
        return {
            self._kv.conversation_row(cast("str", handler.name), key): (handler, key)
            for handler, key in keys_of
            if key is not None
        }

    def _cache(self) -> Any:
        """Return PTB's cache of callback data, if it is to be kept."""
        if not self._kv.store_data.callback_data:
            return None  # PTB takes any `Bot` then
        return cast("ExtBot[Any]", self.bot).callback_data_cache

    def create_task(
        self, coroutine: Any, update: object | None = None, *, name: str | None = None
    ) -> asyncio.Task[Any]:
        """Run a coroutine as a task; see `Application.create_task`.

        An update waits for its handlers with ``block=False``. Tasks of the bot's own are no part of
        it, and have no documents: they use `KVPersistence.edit`.
        """
        is_step = name is not None and name.endswith(_STEP)
        if is_step:
            coroutine = conversations.stay_if_cancelled(coroutine)
        unit = self._shared.unit()
        if unit is not None and (is_step or (name is not None and _NON_BLOCKING in name)):
            task = super().create_task(coroutine, update, name=name)
            unit.parts.add(task)
            task.add_done_callback(unit.parts.discard)
            return task
        token = UNIT.set(None)
        try:
            return super().create_task(coroutine, update, name=name)
        finally:
            UNIT.reset(token)

    async def process_error(
        self,
        update: object | None,
        error: Exception,
        job: Job[Any] | None = None,
        coroutine: Any = None,
    ) -> bool:
        """Call the error handlers; see `Application.process_error`.

        An exception that leaves a handler undoes the update, if that has used
        `KVPersistence.edit`: half a transfer would be written otherwise.
        """
        unit = self._shared.unit()
        if unit is not None and unit.is_edited:
            unit.is_undone = True
        return await super().process_error(update, error, job, coroutine)

    def add_error_handler(self, callback: Any, block: Any = True) -> None:  # noqa: ARG002
        """Add an error handler; see `Application.add_error_handler`.

        An update waits for it, also with ``block=False``: it has the documents of the update.
        """
        super().add_error_handler(callback)

    def drop_chat_data(self, chat_id: int) -> None:
        """Delete the data of a chat of this update, when that ends.

        Raises:
            NotInMemoryError: It is another's; `KVPersistence.load` it first.
        """
        if self._kv.store_data.chat_data:
            del self._chats[chat_id]
        else:
            super().drop_chat_data(chat_id)

    def drop_user_data(self, user_id: int) -> None:
        """Delete the data of a user of this update, when that ends. Raises as `drop_chat_data`."""
        if self._kv.store_data.user_data:
            del self._users[user_id]
        else:
            super().drop_user_data(user_id)

    def migrate_chat_data(
        self,
        message: Message | None = None,
        old_chat_id: int | None = None,
        new_chat_id: int | None = None,
    ) -> None:
        """Move the data of a chat to a new id, when this update ends; see `Application`.

        Raises:
            NotInMemoryError: The update is of another chat; `KVPersistence.load` both first.
        """
        super().migrate_chat_data(message, old_chat_id, new_chat_id)
        old, new = end_of_move(message, old_chat_id, new_chat_id)
        unmark(self, new)
        if (unit := self._shared.unit()) is not None:
            unit.moved["chat", new] = "chat", old

    def mark_data_for_update_persistence(
        self,
        chat_ids: int | Collection[int] | None = None,
        user_ids: int | Collection[int] | None = None,
    ) -> None:
        """Do nothing: what an update has in memory is looked at when it ends.

        Raises:
            NotInMemoryError: The update has it not.
        """
        wanted: list[tuple[Scope, int]] = []
        wanted += [("chat", each) for each in several(() if chat_ids is None else chat_ids)]
        wanted += [("user", each) for each in several(() if user_ids is None else user_ids)]
        tables = {"chat": self.chat_data, "user": self.user_data}
        for scope, document_id in wanted:
            if document_id not in tables[scope]:
                raise NotInMemoryError(scope, document_id)

    def _mark_for_persistence_update(
        self, *, update: object | None = None, job: Job[Any] | None = None
    ) -> None:
        """Note that an update was handled. As in `WriteThroughApplication`, a private name."""
        unit = self._shared.unit()
        if unit is not None and update is not None and job is None:
            unit.is_handled = True

    async def update_persistence(self) -> None:
        """Write what jobs have changed in ``bot_data``; PTB calls it every ``update_interval``.

        Raises:
            ConfigurationError: A handler has called it: what an update has changed is written when
                that ends, and not before.
        """
        if self._shared.unit() is not None:
            raise ConfigurationError(
                "with shared=True an update is written as a whole, when its handlers are done: "
                "nothing can be written before"
            )
        await self._kv.handed_over(super().update_persistence)  # which empties PTB's own notes
        for write in (self._write_sent, self._write_bot, self._trim):
            await self._try(write)

    async def _try(self, write: Callable[[], Awaitable[None]]) -> None:
        """Do something in the background; the error handlers hear of what cannot be stored once."""
        try:
            await write()
        except EncodeError as error:
            if str(error) not in self._told:
                self._told = {str(error)}
                await self.process_error(None, error)
        except KVPersistError as error:
            await self.process_error(None, error)

    def _begin_to_write(self) -> None:
        loop = asyncio.get_running_loop()
        task = loop.create_task(self._try(self._write_sent), name="kvpersist:keyboard")
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def _write_sent(self) -> None:
        if self._keyboards is not None:
            await self._tell(await self._keyboards.write_sent())

    async def _on_refresh(self, name: Name | None, _: Any) -> None:
        """Have a job see what others have made of ``bot_data``. What updates see they have read."""
        unit = self._shared.unit()
        if unit is not None and unit.task is not asyncio.current_task():
            # A job that a handler has planned, whose context its timer has taken along.
            UNIT.set(None)
            unit = None
        if name is not None or unit is not None:
            return
        while True:
            news = self._bot_news
            found = await self._kv.store.read([keys.BOT])
            if news == self._bot_news:  # otherwise it may be older than what is here by now
                break
        self._merge_bot(self._shared.document(None, found.get(keys.BOT)))

    async def _write_bot(self) -> None:
        """Write what was changed in ``bot_data`` by jobs."""
        if self._kv.kind(None) is None:
            return
        text = self._shared.encode(None, self._bot_data)
        if text == self._bot_text:
            return
        async with self._shared.begin([None]) as unit:
            stored = cast("Document", unit.bot)
            self._merge_bot(stored)
            text = self._shared.encode(None, self._bot_data)
            become(stored.value, self._shared.document(None, text).value)
            news = self._bot_news
        if news == self._bot_news:  # otherwise a job has read what others have made of it since
            self._note_bot(text)

    def _merge_bot(self, stored: Document) -> None:
        if stored.text == self._bot_text:
            return
        self._shared.merge_bot(self._bot_text, self._bot_data, stored)
        self._note_bot(stored.text)

    def _note_bot(self, text: bytes | None) -> None:
        self._bot_text = text
        self._bot_news += 1

    async def _trim(self) -> None:
        if time.monotonic() < self._trim_at:
            return
        self._trim_at = time.monotonic() + _TRIM_EVERY
        store = cast("Shareable", self._kv.store)
        at = time.time_ns() // 1_000_000
        if (cache := self._cache()) is not None:
            await store.trim(keys.CALLBACK, older_than=at, newest=cache.maxsize)
        if self._kv.deduplicates:
            await store.trim(keys.UPDATE, older_than=at - _REMEMBERED, newest=0)

    async def _tell(self, errors: Iterable[EncodeError]) -> None:
        for error in errors:
            await self.process_error(None, error)
