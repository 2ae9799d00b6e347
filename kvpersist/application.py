"""An `Application` that writes through by update: what one changed is durable when it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any, Final, cast

from telegram import Message
from telegram.ext import Application, ApplicationBuilder, ExtBot, Job

from kvpersist.callback_cache import Watched, watch
from kvpersist.errors import ConfigurationError, EncodeError, KVPersistError, WriteError
from kvpersist.keys import BOT, Name, Scope, document_key
from kvpersist.lazy import Lazy
from kvpersist.persistence import KVPersistence
from kvpersist.rows import HandedOver
from kvpersist.updates import moved_by, used_by

_SLICE: Final = 0.004
"""Seconds after which encoding many documents lets the event loop do something else."""
_WRITTEN: Final[ContextVar[object]] = ContextVar("kvpersist_written", default=None)
"""The update that this task has handled, and written, last."""


def application_builder(persistence: KVPersistence[Any, Any, Any]) -> Any:
    """Return PTB's `ApplicationBuilder` for a bot whose updates are durable when they end.

    ::

        app = application_builder(KVPersistence("bot.db")).token(TOKEN).build()

    When the handlers of an update are done, what they changed in ``chat_data``, ``user_data``,
    ``bot_data``, conversations and callback data is committed before the update counts as
    processed. What jobs, tasks and handlers with ``block=False`` changed is committed as soon as
    they are done. Updates that end at the same moment share one transaction. An update that
    changes nothing writes nothing.

    Documents are never copied, whichever class they are of: one that cannot be copied, or stored,
    concerns its own row alone.

    Every option of the builder can be used; a class that is given to ``application_class`` must
    derive from `WriteThroughApplication`.
    """
    return (
        ApplicationBuilder()
        .application_class(WriteThroughApplication)
        .context_types(persistence.context_types)
        .persistence(persistence)
    )


class WriteThroughApplication(Application[Any, Any, Any, Any, Any, Any]):
    """What `application_builder` builds: see there.

    `drop_chat_data`, `drop_user_data`, `migrate_chat_data` and `mark_data_for_update_persistence`
    take effect when the update ends in which they are called, or else at once. What is written to
    a chat after it was dropped is kept.

    Raises:
        ConfigurationError: The persistence is not a `KVPersistence`.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if not isinstance(self.persistence, KVPersistence):
            raise ConfigurationError(
                "application_builder needs its KVPersistence; do not set another persistence"
            )
        self._kv: KVPersistence[Any, Any, Any] = self.persistence
        self._kv.context_types = self.context_types
        self._used: set[Name] = set()
        self._dropped: set[Name] = set()
        self._has_news = False
        self._is_live = False
        self._watched: Watched | None = None
        self._handling: dict[asyncio.Task[Any] | None, object] = {}
        self._writing: set[asyncio.Task[None]] = set()
        self._background: asyncio.Task[None] | None = None
        self._told: dict[str, str] = {}
        self._kinds: dict[Scope, type] = {}
        if self._kv.store_data.chat_data:
            self._kinds["chat"] = self.context_types.chat_data
        if self._kv.store_data.user_data:
            self._kinds["user"] = self.context_types.user_data
        self._lazy = self._load_lazily() if self._kv.is_lazy else None
        self._tables = {"chat": self.chat_data, "user": self.user_data}

    def _load_lazily(self) -> Lazy:
        """Have ids that are not in memory noticed.

        It replaces two private mappings of PTB's, which would make an empty document of each.
        """
        lazy = self._kv.lazy = Lazy(
            self._kv.rows,
            self._kinds,
            self._kv.max_documents,
            self._note_changed,
            lambda: asyncio.current_task() in self._handling,
        )
        if "chat" in self._kinds:
            self._chat_data = lazy.tables["chat"]  # type: ignore[assignment]
            self.chat_data = MappingProxyType(self._chat_data)
        if "user" in self._kinds:
            self._user_data = lazy.tables["user"]  # type: ignore[assignment]
            self.user_data = MappingProxyType(self._user_data)
        return lazy

    async def initialize(self) -> None:
        """Load what is stored; see `Application.initialize`."""
        await super().initialize()
        if (cache := self._cache()) is not None:
            self._watched = watch(cache)
        self._is_live = True

    async def shutdown(self) -> None:
        """Write what is left, close the store; see `Application.shutdown`."""
        self._is_live = self.running
        if self._writing:  # they would open the store again
            await asyncio.wait(self._writing)
        await super().shutdown()
        if self._lazy is not None:
            self._lazy.clear()

    async def process_update(self, update: object) -> None:
        """Handle an update, and commit what its handlers changed; see `Application`.

        What cannot be written is told to the error handlers, and kept: see `KVPersistence`. An
        update whose documents cannot be read, with ``lazy=True``, is not handled, and they hear it.
        """
        if self._lazy is None:
            await self._process_update(update)
            return
        names = [*used_by(update), *moved_by(update)]
        with self._lazy.hold(names):
            try:
                await self._lazy.load(names)
            except KVPersistError as error:
                await self.process_error(update, error)
            else:
                await self._process_update(update)

    async def _process_update(self, update: object) -> None:
        _WRITTEN.set(None)
        task = asyncio.current_task()
        self._handling[task] = update
        try:
            await super().process_update(update)
        except asyncio.CancelledError:
            # PTB notes nothing then. It is written later, for nobody waits for it any more.
            self._used.update(used_by(update))
            raise
        finally:
            self._handling.pop(task, None)
        _WRITTEN.set(update)
        if self._has_news or (self._watched and self._watched.is_touched()):
            await self._write_through()

    def create_task(
        self, coroutine: Any, update: object | None = None, *, name: str | None = None
    ) -> asyncio.Task[Any]:
        """Run a coroutine as a task; see `Application.create_task`.

        The documents of `update` stay in memory until it has ended.
        """
        task: asyncio.Task[Any] = super().create_task(coroutine, update, name=name)
        if self._lazy is not None:
            self._lazy.hold_for(task, used_by(update))
        return task

    def drop_chat_data(self, chat_id: int) -> None:
        """Delete the data of a chat, here and, when the update ends, in the store."""
        super().drop_chat_data(chat_id)
        self._note_dropped("chat", chat_id)

    def drop_user_data(self, user_id: int) -> None:
        """Delete the data of a user, here and, when the update ends, in the store."""
        super().drop_user_data(user_id)
        self._note_dropped("user", user_id)

    def _note_dropped(self, scope: Scope, document_id: int) -> None:
        self._dropped.add((scope, document_id))
        if self._lazy is not None:
            self._lazy.renew(scope, document_id)
        self._note_news()

    def migrate_chat_data(
        self,
        message: Message | None = None,
        old_chat_id: int | None = None,
        new_chat_id: int | None = None,
    ) -> None:
        """Move the data of a chat to a new id; see `Application.migrate_chat_data`."""
        super().migrate_chat_data(message, old_chat_id, new_chat_id)
        if message is not None:
            new_chat_id = message.migrate_to_chat_id or message.chat.id
        self.mark_data_for_update_persistence(chat_ids=new_chat_id)

    def mark_data_for_update_persistence(
        self,
        chat_ids: int | Collection[int] | None = None,
        user_ids: int | Collection[int] | None = None,
    ) -> None:
        """Have data of other chats and users written too: when the update ends, or else at once.

        Raises:
            NotInMemoryError: With ``lazy=True``: what has left memory cannot have been changed.
        """
        names: list[Name] = [("chat", chat_id) for chat_id in _ids(chat_ids)]
        names += [("user", user_id) for user_id in _ids(user_ids)]
        if self._lazy is not None:
            self._lazy.check(names)
        self._used.update(names)
        self._note_news()

    async def update_persistence(self) -> None:
        """Write everything that was not written yet; PTB calls it every ``update_interval``.

        A handler that awaits it can answer when what it has changed so far is durable.
        """
        self._used.update(used_by(self._handling.get(asyncio.current_task())))
        await self._write_through()

    def _mark_for_persistence_update(
        self, *, update: object | None = None, job: Job[Any] | None = None
    ) -> None:
        """Note whose data was used. PTB calls it when handlers, jobs and tasks are done.

        A private name of PTB's: nothing public tells when a job, or a handler with
        ``block=False``, is done.
        """
        if update is not None and update is _WRITTEN.get():
            return  # with concurrent updates, PTB calls it once more
        self._used.update(used_by(update))
        if job is not None:
            self._used.update(("chat", chat_id) for chat_id in _ids(job.chat_id))
            self._used.update(("user", user_id) for user_id in _ids(job.user_id))
        self._note_news()

    def _note_changed(self, names: list[Name]) -> None:
        self._used.update(names)
        self._note_news()

    def _note_news(self) -> None:
        """Have it written by the update that this is part of, or in the background."""
        self._has_news = True
        if not self._is_live or self._background is not None:
            return
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return  # no event loop runs; `update_persistence` will write it
        if task is None or task not in self._handling:
            self._background = self._begin(self._write_in_background())

    async def _write_in_background(self) -> None:
        try:
            while self._has_news:
                await self._hand_in()
        finally:
            self._background = None

    async def _write_through(self) -> None:
        """Return when all that was changed is durable, or was told to the error handlers."""
        if self._kv.has_conversations:
            # What PTB has handed over is lost if whoever took it is cancelled.
            await asyncio.shield(self._begin(self._hand_in()))
        else:
            await self._hand_in()

    def _begin(self, write: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(
            write, name="kvpersist:write-through"
        )
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    async def _hand_in(self) -> None:
        self._has_news = False
        handed = HandedOver()
        if self._kv.has_conversations:
            handed = await self._kv.handed_over(super().update_persistence)
        await self._hand_in_documents(handed)
        if self._watched is not None:
            self._kv.keyboards.hand_over_touched(handed, self._watched)
        elif (cache := self._cache()) is not None:
            self._kv.keyboards.hand_over(handed, cache.persistence_data)
        await self._commit(handed)

    async def _commit(self, handed: HandedOver) -> None:
        """Write rows, and tell the error handlers of those that cannot be stored, or written."""
        changes, handed.changes = handed.changes, {}
        refused, handed.refused = handed.refused, []
        try:
            await self._kv.rows.commits.write_all(changes)
        except WriteError as error:
            await self.process_error(None, error)
        for refusal in refused:
            # But not after each update that the document is used in.
            if self._told.get(refusal.key) != str(refusal):
                self._told[refusal.key] = str(refusal)
                await self.process_error(None, refusal)

    async def _hand_in_documents(self, handed: HandedOver) -> None:
        """Put the rows of the documents that were used into `handed`; of many, write the first."""
        names = [*(self._dropped - self._used), *self._used]
        dropped, self._dropped, self._used = self._dropped, set(), set()
        start = time.monotonic()
        if self._kv.store_data.bot_data:
            self._encode(BOT, self.bot_data, self.context_types.bot_data, handed)
        try:
            while names:
                name = names.pop()
                self._encode_named(name, handed, is_dropped=name in dropped)
                if time.monotonic() - start > _SLICE:
                    await self._commit(handed)
                    await asyncio.sleep(0)  # which a commit of nothing does not
                    start = time.monotonic()
        except asyncio.CancelledError:
            self._used.update(names)
            self._dropped |= dropped.intersection(names)
            raise

    def _encode_named(self, name: Name, handed: HandedOver, *, is_dropped: bool) -> None:
        scope, document_id = name
        if (kind := self._kinds.get(scope)) is None:
            return
        documents = self._tables[scope]
        try:
            key = document_key(scope, document_id)
        except EncodeError as error:
            handed.refused.append(error)
            return
        if is_dropped:
            handed.changes[key] = None
        if document_id in documents:
            document = documents[document_id]
            if not (is_dropped and self._kv.rows.is_empty(key, document, kind)):
                self._encode(key, document, kind, handed)

    def _encode(self, key: str, document: object, kind: type, handed: HandedOver) -> None:
        try:
            handed.changes[key] = self._kv.rows.encode_document(key, document, kind)
            self._told.pop(key, None)
        except EncodeError as error:
            handed.refused.append(error)

    def _cache(self) -> Any:
        """Return PTB's cache of callback data, if it is to be kept."""
        cache = cast("ExtBot[Any]", self.bot).callback_data_cache
        return cache if self._kv.store_data.callback_data else None


def _ids(ids: int | Collection[int] | None) -> Collection[int]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else ids
