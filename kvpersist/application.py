"""An `Application` that writes through by update: what one changed is durable when it ends."""

from __future__ import annotations

import asyncio
import logging
import time
import weakref
from collections.abc import Collection, Iterable
from types import MappingProxyType
from typing import Any, Final, cast

from telegram import Message, Update
from telegram.ext import Application, ApplicationBuilder, ExtBot, Job

from kvpersist.callback_cache import Watched, watch
from kvpersist.conversations import stay_if_cancelled
from kvpersist.errors import ConfigurationError, EncodeError, KVPersistError, WriteError
from kvpersist.keys import BOT, Name, Scope, document_key
from kvpersist.lazy import Lazy
from kvpersist.persistence import KVPersistence, checked, several
from kvpersist.rows import HandedOver
from kvpersist.runs import RUN, Kind, Names, Run, add, is_of
from kvpersist.to_the_end import End
from kvpersist.updates import end_of_move, moved_by, unmark, used_by
from kvpersist.workers import WorkerApplication

_LOGGER = logging.getLogger("kvpersist")

_SLICE: Final = 0.004
"""Seconds after which encoding many documents lets the event loop do something else."""
_CONVERSATION: Final = "ConversationHandler:"
"""How PTB's names of tasks begin that make a step of a conversation."""
_CONCURRENT: Final = ":process_concurrent_update"
"""How PTB's names of tasks end that do nothing but call `process_update`."""


def application_builder(persistence: KVPersistence[Any, Any, Any]) -> Any:
    """Return PTB's `ApplicationBuilder` for a bot whose updates are durable when they end.

    ::

        app = application_builder(KVPersistence("bot.db")).token(TOKEN).build()

    When the handlers of an update are done, what they changed in ``chat_data``, ``user_data``,
    ``bot_data``, conversations and callback data is committed before the update counts as
    processed; while the store refuses, it is kept, and the error handlers are told. What jobs,
    tasks and handlers with ``block=False`` changed is committed as soon as they are done. Updates
    that end at the same moment share one transaction. An update that changes nothing writes
    nothing.

    Documents are never copied, whichever class they are of: one that cannot be copied, or stored,
    concerns its own row alone.

    With ``KVPersistence(..., shared=True)`` it is a `WorkerApplication`, one of any number.

    Every option of the builder can be used; a class that is given to ``application_class`` must
    derive from `WriteThroughApplication`, or from `WorkerApplication` if it is one.

    Raises:
        ConfigurationError: `persistence` is none of kvpersist's.
    """
    if not isinstance(persistence, KVPersistence):
        raise ConfigurationError(
            f"application_builder takes a KVPersistence, such as KVPersistence('bot.db'), not "
            f"{persistence!r}"
        )
    return (
        _Builder()
        .application_class(WorkerApplication if persistence.shared else WriteThroughApplication)
        .context_types(persistence.context_types)
        .persistence(persistence)
    )


class _Builder(ApplicationBuilder[Any, Any, Any, Any, Any, Any]):
    """PTB's, which would let another class lose what it was made for."""

    def application_class(
        self,
        application_class: type[Application[Any, Any, Any, Any, Any, Any]],
        *more: Any,
        **kw: Any,
    ) -> Any:
        """Set the class to build; see `ApplicationBuilder`.

        Raises:
            ConfigurationError: It does not derive from `WriteThroughApplication`, nor from
                `WorkerApplication`.
        """
        if not issubclass(application_class, WriteThroughApplication | WorkerApplication):
            raise ConfigurationError(
                f"{application_class.__name__} must derive from kvpersist.WriteThroughApplication, "
                "or, with shared=True, from kvpersist.WorkerApplication"
            )
        return super().application_class(application_class, *more, **kw)


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
        self._kv = checked(self.persistence, is_shared=False)
        self._kv.context_types = self.context_types
        self._live: weakref.WeakSet[Run] = weakref.WeakSet()
        self._due: Names = {}  # of runs that are over, and of none
        self._moved: dict[Name, Name] = {}  # chats whose rows hold what others are to hold
        self._gone: set[Name] = set()  # of what is due, by a run that had dropped them
        self._unread: dict[Name, None] = {}  # to be written as soon as their rows can be read
        self._has_dropped = False
        self._has_news = False
        self._is_live = False
        self._is_shut_down = False
        self._is_leaving = False
        self._end_of_it = End(self._is_left_open, self._leave, self._kv.rows.commits.waiting)
        self._watched: Watched | None = None
        self._writing: set[asyncio.Task[None]] = set()
        self._background: asyncio.Task[None] | None = None
        self._told: dict[str, str] = {}
        self._told_outage: dict[str, object] = {}
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
        lazy = Lazy(
            self._kv.rows,
            self._kinds,
            self._kv.max_documents,
            lambda names: self._note(dict.fromkeys(names, False)),
            self._run,
        )
        if "chat" in self._kinds:
            self._chat_data = lazy.tables["chat"]  # type: ignore[assignment]
            self.chat_data = MappingProxyType(self._chat_data)
        if "user" in self._kinds:
            self._user_data = lazy.tables["user"]  # type: ignore[assignment]
            self.user_data = MappingProxyType(self._user_data)
        return lazy

    async def initialize(self) -> None:
        """Load what is stored; see `Application.initialize`.

        Raises:
            ConfigurationError: Another application is using the same `KVPersistence`.
        """
        self._kv.be_used_by(self)
        self._kv.on_refresh = self._on_refresh
        self._end_of_it.loop = loop = asyncio.get_running_loop()
        # What another has left holds PTB's locks.
        self._writing = {task for task in self._writing if is_of(task, loop)}
        self._kv.lazy = self._lazy
        try:
            await super().initialize()
        except BaseException:
            self._kv.user = None
            raise
        if (cache := self._cache()) is not None:
            self._watched = watch(cache)
        self._is_live = True
        self._is_shut_down = False
        self._is_leaving = False

    async def shutdown(self) -> None:
        """Write what is left, close the store; see `Application.shutdown`."""
        self._is_live = self.running
        loop = asyncio.get_running_loop()  # of another that has ended, nothing goes on
        while writing := [task for task in self._writing if is_of(task, loop)]:
            await asyncio.wait(writing)  # they would open the store again
        known = self._kv.rows.commits.all_known()
        try:
            await super().shutdown()
        finally:
            self._is_shut_down = not self._is_live
            self._kv.user = weakref.ref(self) if self._is_live else None
            is_closed = self._kv.rows.commits.all_known() is not known
            if self._lazy is not None and is_closed:
                self._lazy.clear()

    def run_polling(self, *arguments: Any, **options: Any) -> None:
        """Run the bot until it is stopped; see `Application.run_polling`.

        After a second Ctrl-C no handler is waited for any more, and what is waiting is written, or
        left for the next start, as by `shutdown`. A third one loses it, and the log says what.

        Raises:
            WriteError: Some rows could not be written. It says where they were left.
        """
        self._end_of_it.run(super().run_polling, *arguments, **options)

    def run_webhook(self, *arguments: Any, **options: Any) -> None:
        """Run the bot until it is stopped; see `Application.run_webhook` and `run_polling`."""
        self._end_of_it.run(super().run_webhook, *arguments, **options)

    def _is_left_open(self) -> bool:
        """Whether it was initialised, and not shut down."""
        return self._kv.user is not None and self._kv.user() is self

    async def _leave(self) -> None:
        """Write what waits, and close the store, though a `stop` or `shutdown` has not ended.

        No handler is waited for. What those that are not done have changed so far is written.

        Raises:
            WriteError: Some rows could not be written. It says where they were left.
        """
        self._is_live = False
        self._is_leaving = True
        for run in [*self._live]:
            run.mark(run.names.copy())
        try:
            for error in await self._hand_in(None, due=True):
                _LOGGER.error("%s", error)
        finally:
            await self._kv.flush()
            self._is_shut_down = True
            self._kv.user = None

    async def process_update(self, update: object) -> None:
        """Handle an update, and commit what its handlers changed; see `Application`.

        What cannot be written is told to the error handlers, and kept: see `KVPersistence`. An
        update whose documents cannot be read is not handled, and they hear it.
        """
        if self._is_leaving:
            return  # nobody would write what it changes
        run = self._new_run("update", used_by(update))
        run.task = asyncio.current_task()
        token = RUN.set(run)
        try:
            try:
                if await self._is_readable(update, run):
                    await super().process_update(update)
            finally:
                run.is_over = True
                RUN.reset(token)
            if run.has_news:
                await self._write_through(run)
            elif self._watched is not None:
                await self._write_through(None)  # buttons that were pressed and not handled
        except BaseException:
            # Nobody waits for it any more; it is written later, if it is not on its way already.
            add(self._due, run.names)
            raise
        finally:
            run.end()

    def _new_run(self, kind: Kind, own: Iterable[Name]) -> Run:
        run = Run(self, kind, own, self._lazy, self._run())
        self._live.add(run)
        return run

    async def _is_readable(self, update: object, run: Run) -> bool:
        """Read what an update uses, and other programs have written, before PTB does.

        PTB would run the handlers of later groups even if that fails.
        """
        if not self._is_live:
            return True  # PTB refuses
        try:
            if self._lazy is not None:
                run.keep(moved := [*moved_by(update)])
                await self._lazy.load([*run.own, *moved])
            await self._refresh(run)
        except KVPersistError as error:
            self._kv.doubt({None, *run.own} - run.fresh)
            await self.process_error(update, error)
            return False
        return True

    async def _refresh(self, run: Run) -> None:
        names: list[Name | None] = [name for name in run.own if name[0] in self._kinds]
        if self._kv.store_data.bot_data:
            names.append(None)
        for name in names:
            if not self._kv.is_current(name):
                document = self._tables[name[0]][name[1]] if name is not None else self.bot_data
                await self._kv.refresh(name, document)
            run.fresh.add(name)

    async def _on_refresh(self, name: Name | None, document: Any) -> None:
        """Refresh what PTB is about to hand to handlers or a job, unless that was just done."""
        if self._is_fresh(name):
            return
        if name is not None and self._lazy is not None:
            document = await self._lazy.refreshable(*name)
        await self._kv.refresh(name, document)

    def _is_fresh(self, name: Name | None) -> bool:
        """Note what is about to be used; a job is not known to the application before this."""
        run = self._run()
        if run is None or not run.is_here():
            run = self._new_run("task", ())
            RUN.set(run)
            run.belong_to(cast("asyncio.Task[Any]", asyncio.current_task()), self._end)
        if name in run.fresh:
            run.fresh.discard(name)
            return True
        if name is not None:
            run.own.setdefault(name, False)
            run.names.setdefault(name, False)
            run.keep([name])
        return False

    def _run(self) -> Run | None:
        """Return the run that the running code is a part of."""
        run = RUN.get()
        return run if run is not None and run.owner is self and not run.is_over else None

    def _end(self, run: Run) -> None:
        """Have written what a job or a task has used."""
        run.end()
        if run.names or run.kind != "passed on":
            self._note_due(run.names)
            self._gone |= run.dropped

    def create_task(
        self, coroutine: Any, update: object | None = None, *, name: str | None = None
    ) -> asyncio.Task[Any]:
        """Run a coroutine as a task; see `Application.create_task`.

        The documents of `update` stay in memory until it has ended.
        """
        is_passed_on = name is not None and name.endswith(_CONCURRENT)
        own: Iterable[Name] = () if is_passed_on else used_by(update)
        if update is None and (parent := self._run()) is not None:
            own = parent.own
        if name is not None and name.startswith(_CONVERSATION):
            coroutine = stay_if_cancelled(coroutine)
        run = self._new_run("passed on" if is_passed_on else "task", own)
        token = RUN.set(run)
        try:
            task = super().create_task(coroutine, update, name=name)
        finally:
            RUN.reset(token)
        run.belong_to(task, self._end)
        return task

    async def process_error(
        self,
        update: object | None,
        error: Exception,
        job: Job[Any] | None = None,
        coroutine: Any = None,
    ) -> bool:
        """Call the error handlers; see `Application.process_error`.

        What they change in the data of `update` and in ``bot_data`` is written too.
        """
        run = self._new_run("error", used_by(update))
        run.keep_until_gone()  # that is, until those with ``block=False`` are done
        token = RUN.set(run)
        try:
            return await super().process_error(update, error, job, coroutine)
        finally:
            RUN.reset(token)
            self._note(run.names)
            self._gone |= run.dropped & self._due.keys()

    def drop_chat_data(self, chat_id: int) -> None:
        """Delete the data of a chat, here and, when the update ends, in the store."""
        super().drop_chat_data(chat_id)
        self._note_dropped("chat", chat_id)

    def drop_user_data(self, user_id: int) -> None:
        """Delete the data of a user, here and, when the update ends, in the store."""
        super().drop_user_data(user_id)
        self._note_dropped("user", user_id)

    def _note_dropped(self, scope: Scope, document_id: int) -> None:
        if self._lazy is not None:
            self._lazy.renew(scope, document_id)
        self._has_dropped = True
        self._note({(scope, document_id): True})

    def migrate_chat_data(
        self,
        message: Message | None = None,
        old_chat_id: int | None = None,
        new_chat_id: int | None = None,
    ) -> None:
        """Move the data of a chat to a new id; see `Application.migrate_chat_data`."""
        super().migrate_chat_data(message, old_chat_id, new_chat_id)
        self._has_dropped = True
        old, new = end_of_move(message, old_chat_id, new_chat_id)
        unmark(self, new)
        if "chat" in self._kinds:
            for name in self._moved_to(("chat", old)):
                self._moved[name] = "chat", new
            # If it has moved before its row has nothing of what moves now.
            self._moved.setdefault(("chat", old), ("chat", new))
        self.mark_data_for_update_persistence(chat_ids=new)

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
        self._note(dict.fromkeys(names, False))

    async def update_persistence(self) -> None:
        """Write everything that was not written yet; PTB calls it every ``update_interval``.

        What the handlers of an update that is not done have changed is written when it is; but what
        they have marked, or dropped, now.

        When a handler, a job, or a task that either of them made, awaits it, what it has changed so
        far is durable: it can answer.
        """
        run = RUN.get()
        await self._write_through(run if run is not None and run.owner is self else None, due=True)

    def _mark_for_persistence_update(
        self, *, update: object | None = None, job: Job[Any] | None = None
    ) -> None:
        """Note whose data was used. PTB calls it when handlers, jobs and tasks are done.

        A private name of PTB's: nothing public tells when a job, or a handler with
        ``block=False``, is done.
        """
        names = dict.fromkeys(used_by(update), False)
        if job is not None:
            names |= dict.fromkeys((("chat", chat_id) for chat_id in _ids(job.chat_id)), False)
            names |= dict.fromkeys((("user", user_id) for user_id in _ids(job.user_id)), False)
            # That of a conversation which has timed out is not known to PTB's `Job`.
            names |= dict.fromkeys(used_by(getattr(job.data, "update", None)), False)
        if self._watched is not None and isinstance(update, Update) and update.callback_query:
            self._watched.touch(update.callback_query.id)
        run = self._run()
        if run is None or run.kind == "error" or not run.is_here():
            self._note_due(names)
        elif run.kind == "update":
            add(run.names, names)
            run.has_news = True
        else:
            if run.kind != "passed on":
                add(run.names, names)
            self._end(run)

    def _note(self, names: Names) -> None:
        """Have documents written when the update ends that this is a part of, or else at once."""
        run = self._run()
        if run is None or run.kind != "update":
            self._note_due(names)
        if run is not None:
            run.mark(dict.fromkeys(names, False))
            run.dropped.update(name for name, is_dropped in names.items() if is_dropped)
            for update in run.updates():
                update.mark(names)

    def _note_due(self, names: Names) -> None:
        """Have documents written in the background."""
        add(self._due, names)
        self._has_news = True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return  # `update_persistence` will write it
        background = self._background
        is_begun = background is not None and not background.done() and is_of(background, loop)
        if self._is_live and not is_begun:
            self._background = self._begin(self._write_in_background())

    async def _write_in_background(self) -> None:
        RUN.set(None)
        while self._has_news:
            await asyncio.sleep(0)  # so that PTB is done with what is being written
            if errors := await self._hand_in(None, due=True):
                self._begin(self._tell(errors))  # others must not wait for error handlers

    async def _write_through(self, run: Run | None, *, due: bool = False) -> None:
        """Return when what a run has changed is durable, or was told to the error handlers.

        Args:
            run: The run.
            due: Whether to write what is due besides, and wait for all that is on its way.
        """
        if self._kv.has_conversations:
            # What PTB has handed over is lost if whoever took it is cancelled.
            await asyncio.shield(self._begin(self._write(run, due=due)))
        else:
            await self._write(run, due=due)

    async def _write(self, run: Run | None, *, due: bool) -> None:
        try:
            await self._tell(await self._hand_in(run, due=due))
        finally:
            if self._is_shut_down:
                await self._kv.flush()  # or nobody would close what was just opened

    def _begin(self, write: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(
            write, name="kvpersist:write-through"
        )
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)
        return task

    async def _hand_in(self, run: Run | None, *, due: bool) -> list[KVPersistError]:
        """Write what is to be written; return what the error handlers are to be told."""
        if due:
            self._has_news = False
        handed = HandedOver()
        if self._kv.has_conversations or self._has_dropped:
            # One at a time, PTB sees to that: who finds nothing left finds it on its way.
            self._has_dropped = False
            handed = await self._kv.handed_over(super().update_persistence)
        errors = await self._hand_in_documents(run, handed, due=due)
        if self._watched is not None:
            self._kv.keyboards.hand_over_touched(handed, self._watched)
        elif (cache := self._cache()) is not None:
            self._kv.keyboards.hand_over(handed, cache.persistence_data)
        # Conversations, keyboards and drops of this run may be on their way in another's hands.
        others = due or self._kv.has_conversations or self._cache() is not None
        others = others or (run is not None and bool(run.dropped))
        return errors + await self._commit(handed, others=others)

    async def _commit(self, handed: HandedOver, *, others: bool) -> list[KVPersistError]:
        """Write rows; return why some cannot be stored, or written, if that was not told yet."""
        changes, handed.changes = handed.changes, {}
        moved, handed.moved = handed.moved, {}
        refused, handed.refused = handed.refused, []
        if self._told:
            for key in changes:
                self._told.pop(key, None)
        errors: list[KVPersistError] = []
        try:
            await self._kv.rows.commits.write_all(changes, moved=moved, others=others)
        except WriteError as error:
            if self._is_news_of_outage(error):
                errors.append(error)
        for refusal in refused:
            # But not after each update that the document is used in.
            if self._told.get(refusal.key) != str(refusal):
                self._told[refusal.key] = str(refusal)
                errors.append(refusal)
        return errors

    def _is_news_of_outage(self, error: WriteError) -> bool:
        """Whether rows are refused that were not: error handlers that are told may change them."""
        refusal = self._kv.rows.commits.refusal
        told = {key: why for key, why in self._told_outage.items() if refusal(key) is why}
        self._told_outage = told | {
            key: why for key in error.keys if (why := refusal(key)) is not None
        }
        return not told.keys() >= {*error.keys}

    async def _tell(self, errors: Iterable[KVPersistError]) -> None:
        for error in errors:
            await self.process_error(None, error)

    async def _hand_in_documents(
        self, run: Run | None, handed: HandedOver, *, due: bool
    ) -> list[KVPersistError]:
        """Put the rows of the documents that were used into `handed`; of many, write the first.

        Nothing awaits between taking a drop, or a name out of what is due, and handing its row to
        the group commit: whoever waits for all that is on its way waits for it too.
        """
        errors: list[KVPersistError] = []
        runs = {run} if run is not None else set()
        names = dict.fromkeys(run.names) if run is not None else {}
        if due:
            runs |= {*self._live}
            names |= {name: None for live in runs for name in live.marked} | self._unread
            self._unread = {}
        start = time.monotonic()
        if self._kv.store_data.bot_data and not self._kv.rows.is_unread(BOT):
            self._encode(BOT, self.bot_data, self.context_types.bot_data, handed)
        try:
            while names or (due and self._due):
                if names:
                    name, _ = names.popitem()
                    is_dropped = True in [each.take_drop(name) for each in runs]
                else:
                    name, is_dropped = self._due.popitem()
                was_dropped = name in self._gone or any(name in each.dropped for each in runs)
                self._gone.discard(name)
                self._encode_named(name, handed, is_dropped=is_dropped, was_dropped=was_dropped)
                if time.monotonic() - start > _SLICE:
                    errors += await self._commit(handed, others=due)
                    await asyncio.sleep(0)  # which a commit of nothing does not
                    start = time.monotonic()
        except BaseException:
            add(self._due, dict.fromkeys(names, False))
            raise
        return errors

    def _encode_named(
        self, name: Name, handed: HandedOver, *, is_dropped: bool, was_dropped: bool
    ) -> bool:
        """Put the row of a document into `handed`, and those of chats that have moved there.

        Returns:
            Whether these may change: not while what they hold cannot be stored anywhere else.
        """
        scope, document_id = name
        if (kind := self._kinds.get(scope)) is None:
            return True
        try:
            key = document_key(scope, document_id)
        except EncodeError as error:
            handed.refused.append(error)
            return False
        if (moved_to := self._moved.pop(name, None)) is not None:
            if not self._encode_named(moved_to, handed, is_dropped=False, was_dropped=False):
                self._moved[name] = moved_to
                return False
            handed.moved[key] = document_key(*moved_to)
            is_dropped = True
        if is_dropped:
            handed.changes[key] = None
        elif self._kv.rows.is_unread(key):
            self._unread[name] = None  # its row may hold what memory has never seen
            return False
        if document_id in (documents := self._tables[scope]):
            document = documents[document_id]
            # What was dropped and is still like new gets no row.
            is_gone = is_dropped or (was_dropped and not self._kv.rows.may_be_stored(key))
            is_gone = is_gone and self._kv.rows.is_empty(key, document, kind)
            if not is_gone and not self._encode(key, document, kind, handed):
                return False
        for old in self._moved_to(name):
            self._encode_named(old, handed, is_dropped=True, was_dropped=True)
        return True

    def _moved_to(self, name: Name) -> list[Name]:
        return [old for old, to in self._moved.items() if to == name]

    def _encode(self, key: str, document: object, kind: type, handed: HandedOver) -> bool:
        try:
            handed.changes[key] = self._kv.rows.encode_document(key, document, kind)
        except EncodeError as error:
            handed.refused.append(error)
            return False
        return True

    def _cache(self) -> Any:
        """Return PTB's cache of callback data, if it is to be kept."""
        if not self._kv.store_data.callback_data:
            return None  # PTB takes any `Bot` then
        return cast("ExtBot[Any]", self.bot).callback_data_cache


def _ids(ids: int | Collection[int] | None) -> Collection[int]:
    return () if ids is None else several(ids)
