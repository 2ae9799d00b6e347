"""An `Application` that writes through by update: what one changed is durable when it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection
from contextvars import ContextVar
from typing import Any, Final, Literal, TypeAlias, cast

from telegram import Message, Update
from telegram.ext import Application, ApplicationBuilder, ContextTypes, ExtBot, Job

from kvpersist.callback_cache import watch
from kvpersist.documents import Document, handing_over, stop_handing_over
from kvpersist.errors import ConfigurationError, EncodeError, WriteError
from kvpersist.keys import document_key
from kvpersist.persistence import KVPersistence

Name: TypeAlias = tuple[Literal["chat", "user", "bot"], int]

BOT: Final[Name] = ("bot", 0)
_SLICE: Final = 0.004
"""Seconds after which encoding many documents lets the event loop do something else."""

_ENDED: Final[ContextVar[object]] = ContextVar("kvpersist_ended", default=None)
"""The update of which everything was written in this task."""
_HANDLING: Final[ContextVar[object]] = ContextVar("kvpersist_handling", default=None)
"""The task that handles an update, and writes through when it is done."""


def application_builder(persistence: KVPersistence[Any, Any, Any]) -> Any:
    """Return PTB's `ApplicationBuilder` for a bot whose updates are durable when they end.

    ::

        app = application_builder(KVPersistence("bot.db")).token(TOKEN).build()

    When the handlers of an update are done, what they changed in ``chat_data``, ``user_data``,
    ``bot_data``, conversations and callback data is committed before the update counts as
    processed. What jobs, tasks and handlers with ``block=False`` changed is committed as soon as
    they are done. Updates that end at the same moment share one transaction. An update that
    changes nothing writes nothing.

    Every option of the builder can be used; a class that is given to ``application_class`` must
    derive from `WriteThroughApplication`. Data is kept in `Document`, unless ``context_types``
    says otherwise.
    """
    context_types: ContextTypes[Any, Any, Any, Any] = ContextTypes(
        context=persistence.context_types.context,
        bot_data=_document_type(persistence.context_types.bot_data),
        chat_data=_document_type(persistence.context_types.chat_data),
        user_data=_document_type(persistence.context_types.user_data),
    )
    return (
        ApplicationBuilder()
        .application_class(WriteThroughApplication)
        .context_types(context_types)
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
        self._background: asyncio.Task[None] | None = None
        self._told: dict[str, str] = {}

    async def initialize(self) -> None:
        """Load what is stored; see `Application.initialize`."""
        await super().initialize()
        cache = cast("ExtBot[Any]", self.bot).callback_data_cache
        if self._kv.store_data.callback_data and cache is not None:
            self._kv.watched = watch(cache)
        self._is_live = True

    async def shutdown(self) -> None:
        """Write what is left, close the store; see `Application.shutdown`."""
        await super().shutdown()
        self._is_live = False

    async def process_update(self, update: object) -> None:
        """Handle an update, and commit what its handlers changed; see `Application`.

        What cannot be written is told to the error handlers, and kept: see `KVPersistence`.
        """
        _ENDED.set(None)
        _HANDLING.set(asyncio.current_task())
        try:
            await super().process_update(update)
        finally:
            _ENDED.set(update)
            _HANDLING.set(None)
            if self._has_news or (self._kv.watched and self._kv.watched.is_touched()):
                await self._write_through()
            await self._settle()

    def drop_chat_data(self, chat_id: int) -> None:
        """Delete the data of a chat, here and, when the update ends, in the store."""
        super().drop_chat_data(chat_id)
        self._dropped.add(("chat", chat_id))
        self._note_news()

    def drop_user_data(self, user_id: int) -> None:
        """Delete the data of a user, here and, when the update ends, in the store."""
        super().drop_user_data(user_id)
        self._dropped.add(("user", user_id))
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
        """Have data of other chats and users written too: when the update ends, or else at once."""
        self._used.update(("chat", chat_id) for chat_id in _ids(chat_ids))
        self._used.update(("user", user_id) for user_id in _ids(user_ids))
        self._note_news()

    async def update_persistence(self) -> None:
        """Write everything that was not written yet; PTB calls it every ``update_interval``."""
        if self._background is not None:
            await asyncio.wait([self._background])
        await self._write_through()
        if not self._needs_ptb():
            await self._run_of_ptb()
        await self._settle()

    async def process_error(
        self,
        update: object | None,
        error: Exception,
        job: Job[Any] | None = None,
        coroutine: Any = None,
    ) -> bool:
        """Tell the error handlers of an error; see `Application.process_error`."""
        stop_handing_over()
        return await super().process_error(update, error, job, coroutine)

    def _mark_for_persistence_update(
        self, *, update: object | None = None, job: Job[Any] | None = None
    ) -> None:
        """Note whose data was used. PTB calls it when handlers, jobs and tasks are done.

        The only private name of PTB's here: nothing public tells when a job, or a handler with
        ``block=False``, is done. If PTB stops calling it, its own run writes what was changed.
        """
        if update is not None and update is _ENDED.get():
            return  # with concurrent updates, PTB calls it once more
        if isinstance(update, Update):
            if update.effective_chat:
                self._used.add(("chat", update.effective_chat.id))
            if update.effective_user:
                self._used.add(("user", update.effective_user.id))
        if job is not None:
            self._used.update(("chat", chat_id) for chat_id in _ids(job.chat_id))
            self._used.update(("user", user_id) for user_id in _ids(job.user_id))
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
        if task is None or task is not _HANDLING.get():
            self._background = asyncio.get_running_loop().create_task(
                self._write_in_background(), name="kvpersist:write-through"
            )

    async def _write_in_background(self) -> None:
        try:
            while self._has_news:
                await self._write_through()
            await self._settle()
        finally:
            self._background = None

    async def _write_through(self) -> None:
        """Hand all that was changed over to group commit."""
        self._has_news = False
        await self._write_documents()
        if self._needs_ptb():
            await self._run_of_ptb()

    def _needs_ptb(self) -> bool:
        """Whether only PTB can tell what has changed: conversations, and what is not watched."""
        if self._kv.has_conversations:
            return True
        cache = cast("ExtBot[Any]", self.bot).callback_data_cache
        return self._kv.watched is None and self._kv.store_data.callback_data and cache is not None

    async def _write_documents(self) -> None:
        rows = self._kv.rows
        changes: dict[str, bytes | None] = {}
        errors: list[EncodeError] = []
        used, self._used = self._used, set()
        dropped, self._dropped = self._dropped, set()
        start = time.monotonic()
        for name in (*(dropped - used), *used, BOT):
            if (source := self._source(name, is_dropped=name in dropped)) is None:
                continue
            key, document, kind = source
            try:
                changes[key] = None if kind is None else rows.encode_document(key, document, kind)
                self._told.pop(key, None)
            except EncodeError as error:
                errors.append(error)
            if time.monotonic() - start > _SLICE:
                rows.commits.put(changes)
                changes = {}
                await asyncio.sleep(0)
                start = time.monotonic()
        rows.commits.put(changes)
        if self._kv.watched is not None:
            errors += self._kv.put_touched_keyboards(self._kv.watched)
        for refused in errors:
            await self._tell(refused.key, refused)

    def _source(self, name: Name, *, is_dropped: bool) -> tuple[str, object, type | None] | None:
        """Return the key, the document and its class; no class if the row has to go."""
        scope, document_id = name
        stored, types = self._kv.store_data, self.context_types
        if scope == "bot":
            return ("bot", self.bot_data, types.bot_data) if stored.bot_data else None
        if not (stored.chat_data if scope == "chat" else stored.user_data):
            return None
        kind = types.chat_data if scope == "chat" else types.user_data
        documents = self.chat_data if scope == "chat" else self.user_data
        key = document_key(scope, document_id)
        if is_dropped and document_id not in documents:
            return key, None, None
        return key, documents[document_id], kind

    async def _run_of_ptb(self) -> None:
        """Let PTB hand over the conversations; chats and users it knows nothing of.

        Nothing in it waits for the store: see `is_handing_over`.
        """
        try:
            with handing_over():
                await super().update_persistence()
        except Exception as error:  # noqa: BLE001  a deepcopy of the bot's own class may raise any
            await self._tell("", error)

    async def _settle(self) -> None:
        try:
            await self._kv.rows.commits.settled()
        except WriteError as error:
            await self.process_error(None, error)

    async def _tell(self, key: str, error: Exception) -> None:
        """Tell the error handlers, but not after each update that the document is used in."""
        if self._told.get(key) != str(error):
            self._told[key] = str(error)
            await self.process_error(None, error)


def _document_type(kind: type) -> type:
    return Document if kind is dict else kind


def _ids(ids: int | Collection[int] | None) -> Collection[int]:
    if ids is None:
        return ()
    return (ids,) if isinstance(ids, int) else ids
