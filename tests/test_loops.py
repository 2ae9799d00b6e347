"""Event loops that end, and tasks that are cancelled, at the worst moment: on a real file."""

from __future__ import annotations

import asyncio
import gc
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from stores import SlowStore, stored

from kvpersist import KVPersistence, MemoryStore, SqliteStore, StoreInUseError
from kvpersist.stores import sqlite_file
from kvpersist.stores.daemon import begin_in_daemon
from kvpersist.stores.sqlite_statements import _PUT
from kvpersist.stores.sqlite_thread import SqliteThread


def wait_for_threads() -> None:
    """Wait until every thread but this one has ended."""
    for thread in set(threading.enumerate()) - {threading.current_thread()}:
        thread.join(30)
        assert not thread.is_alive()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_loop_that_ends_during_a_commit_leaves_the_file_to_the_next(
    bot_db: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The next loop opens the file again, knows what was stored, and writes what was not."""
    caplog.set_level("CRITICAL", "asyncio")  # "Task was destroyed", as intended
    persistence = KVPersistence(SqliteStore(bot_db, busy_timeout=30))

    async def begin() -> None:
        await persistence.update_chat_data(1, {"n": 1})
        await persistence.update_chat_data(2, {"n": 2})

    async def go_on() -> None:
        await persistence.update_chat_data(3, {"n": 3})
        document = {"n": 1}
        await persistence.refresh_chat_data(1, document)
        await persistence.flush()

    loop = asyncio.new_event_loop()
    with closing(sqlite3.connect(bot_db, isolation_level=None)) as locker:
        loop.run_until_complete(persistence.get_bot_data())
        loop.run_until_complete(persistence.update_bot_data({}))
        locker.execute("BEGIN IMMEDIATE")  # holds up the commit that is on its way
        begun = loop.create_task(begin())
        for _ in range(5):
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        del begun
        locker.execute("ROLLBACK")
    asyncio.run(go_on())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # what aiosqlite was not told to close
        gc.collect()
    wait_for_threads()
    assert stored(bot_db) == {"bot": {}, "chat/1": {"n": 1}, "chat/3": {"n": 3}}


def test_a_persistence_goes_on_another_loop_without_flush(bot_db: Path) -> None:
    """A loop that ended in peace, but without flush, leaves nothing that hinders the next."""
    persistence = KVPersistence(bot_db)
    asyncio.run(persistence.update_chat_data(1, {"n": 1}))
    asyncio.run(persistence.update_chat_data(2, {"n": 2}))
    asyncio.run(persistence.flush())
    wait_for_threads()
    assert stored(bot_db) == {"chat/1": {"n": 1}, "chat/2": {"n": 2}}


def test_a_loop_that_ends_during_a_start_says_nothing() -> None:
    """As at Ctrl-C: what was loading is thrown away, and nothing can be awaited any more."""
    persistence = KVPersistence(SlowStore(MemoryStore()))

    async def begin() -> Coroutine[Any, Any, object]:
        loading = persistence.get_chat_data()
        loading.send(None)
        return loading

    loop = asyncio.new_event_loop()
    loading = loop.run_until_complete(begin())
    loop.close()
    loading.close()  # it would be an error to await anything now


def test_a_loop_that_ends_between_two_connections_leaves_nothing(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first is closed by a thread, as nothing can be awaited any more, and nothing is said."""
    caplog.set_level("CRITICAL", "asyncio")  # "Task was destroyed", as intended
    entered, may_go_on = threading.Event(), threading.Event()

    def open_late(*arguments: Any) -> sqlite3.Connection:
        entered.set()
        assert may_go_on.wait(60)
        return sqlite_file.open_reader(*arguments)

    loop = asyncio.new_event_loop()
    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite.open_reader", open_late)
        opening = loop.create_task(SqliteStore(bot_db).open())
        while not entered.is_set():
            loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()
        may_go_on.set()
        for thread in threading.enumerate():
            if thread.name == "kvpersist:daemon":
                thread.join(30)
    del opening, thread
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # what aiosqlite was not told to close
        gc.collect()
    wait_for_threads()
    connection = sqlite_file.open_file(str(bot_db), 0)
    connection.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_ends_at_the_last_step_of_an_opening_leaves_nothing(bot_db: Path) -> None:
    """The file was open already, and a thread was about to take the connection up."""
    opening = SqliteThread.open(partial(sqlite_file.open_file, str(bot_db), 0), [])

    async def begin() -> None:
        waits_for = opening.send(None)
        while not waits_for.done():  # noqa: ASYNC110  a thread is at work
            await asyncio.sleep(0.001)
        opening.send(None)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    opening.close()  # as the garbage collector does it
    wait_for_threads()
    sqlite_file.open_file(str(bot_db), 0).close()


def test_a_persistence_may_be_flushed_on_another_loop(bot_db: Path) -> None:
    """What another loop has opened is closed, and others may have it."""
    persistence = KVPersistence(bot_db)
    asyncio.run(persistence.update_chat_data(1, {"n": 1}))
    asyncio.run(persistence.flush())
    wait_for_threads()
    other = KVPersistence(bot_db)
    assert asyncio.run(other.get_chat_data()) == {1: {"n": 1}}
    asyncio.run(other.flush())


@pytest.mark.parametrize("moment", range(12))
async def test_an_opening_that_is_cancelled_leaves_no_lock(bot_db: Path, moment: int) -> None:
    """Whenever all tasks are cancelled: when the store is closed anybody can open the file."""
    store = SqliteStore(bot_db)
    before = asyncio.all_tasks()
    opening = asyncio.ensure_future(store.open())
    for _ in range(moment):
        await asyncio.sleep(0.002 if moment > 6 else 0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    await asyncio.gather(opening, return_exceptions=True)
    await store.close()
    other = SqliteStore(bot_db)
    await other.open()
    await other.close()


async def test_whoever_opens_after_an_opening_that_was_cancelled_is_not_refused_by_it(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread may still have the file: this waits for it; so does whoever closes."""
    entered, may_go_on = threading.Event(), threading.Event()
    open_file = sqlite_file.open_file

    def open_late(*arguments: Any) -> sqlite_file.FileConnection:
        connection = open_file(*arguments)
        entered.set()
        assert may_go_on.wait(60)
        return connection

    store = SqliteStore(bot_db)
    for go_on in (store.open, store.close):
        before = asyncio.all_tasks()
        entered.clear()
        may_go_on.clear()
        with monkeypatch.context() as patch:
            patch.setattr("kvpersist.stores.sqlite.open_file", open_late)
            opening = asyncio.ensure_future(store.open())
            await asyncio.to_thread(entered.wait, 60)
            for task in asyncio.all_tasks() - before:
                task.cancel()
            await asyncio.gather(opening, return_exceptions=True)
        asyncio.get_running_loop().call_later(0.1, may_go_on.set)
        await go_on()
        await store.close()
        other = SqliteStore(bot_db)
        await other.open()
        await other.close()


async def test_an_opening_that_is_cancelled_at_its_last_step_leaves_no_lock(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file was open already, and a thread was about to take the connection up."""
    entered, may_go_on = threading.Event(), threading.Event()

    def connector(connection: sqlite3.Connection, _: object) -> Callable[[], sqlite3.Connection]:
        def take_up_late() -> sqlite3.Connection:
            entered.set()
            assert may_go_on.wait(60)
            return connection

        return take_up_late

    before = asyncio.all_tasks()
    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite_thread._connector", connector)
        opening = asyncio.ensure_future(SqliteStore(bot_db).open())
        await asyncio.to_thread(entered.wait, 60)
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        may_go_on.set()
    other = SqliteStore(bot_db)
    while not await opens(other):  # noqa: ASYNC110  a thread may still have to close it
        await asyncio.sleep(0.01)
    await other.close()


async def opens(store: SqliteStore) -> bool:
    """Open a store, if nobody else has it open."""
    try:
        await store.open()
    except StoreInUseError:
        return False
    return True


async def test_a_copy_of_the_folder_does_not_take_the_lock_away(
    bot_db: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A bot that backs up its own folder remains the only owner of its file."""
    store = SqliteStore(bot_db)
    await store.open()
    shutil.copytree(bot_db.parent, tmp_path_factory.mktemp("backup") / "copy")
    with pytest.raises(StoreInUseError):
        await SqliteStore(bot_db).open()
    await store.close()


def test_a_forked_child_that_ends_leaves_the_lock_to_its_parent(bot_db: Path) -> None:
    """And the file: what the parent writes afterwards is stored."""
    connection = sqlite_file.open_file(str(bot_db), 0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, on Python 3.12
        child = os.fork()
    if child == 0:  # pragma: no cover  it is another process
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(StoreInUseError):
        sqlite_file.open_file(str(bot_db), 0)
    connection.executemany(_PUT, [[("chat/1", "{}", 0)]])
    connection.close()
    assert stored(bot_db) == {"chat/1": {}}


def test_a_forked_child_does_not_keep_the_lock(bot_db: Path) -> None:
    """A child that outlives the bot, as a worker of multiprocessing may, does not own the file."""
    connection = sqlite_file.open_file(str(bot_db), 0)
    ready, ready_in_child = os.pipe()
    done_in_child, done = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # fork beside threads, on Python 3.12
        child = os.fork()
    if child == 0:  # pragma: no cover  it is another process
        os.write(ready_in_child, b".")
        os.read(done_in_child, 1)
        os._exit(0)
    os.read(ready, 1)
    with pytest.raises(StoreInUseError):
        sqlite_file.open_file(str(bot_db), 0)
    connection.close()
    sqlite_file.open_file(str(bot_db), 0).close()
    os.write(done, b".")
    os.waitpid(child, 0)
    for descriptor in (ready, ready_in_child, done_in_child, done):
        os.close(descriptor)


FORKED = """
import asyncio, os, signal, sqlite3, sys, time
from kvpersist import KVPersistence, KVPersistError, SqliteStore

path, what = sys.argv[1:]
store = SqliteStore(path, busy_timeout=60)
persistence = KVPersistence(store)

async def use():
    if what == "update":
        await persistence.update_chat_data(3, {"n": 3})
    elif what == "flush":
        await persistence.flush()
    elif what == "backup":
        await persistence.backup(path + ".copy")
    else:
        await persistence.get_chat_data()

def child():
    asyncio._set_running_loop(None)
    try:
        asyncio.run(use())
    except KVPersistError as error:
        print(type(error).__name__, error, flush=True)
    else:
        print("no error", flush=True)

async def main():
    await persistence.update_chat_data(1, {"n": 1})
    locker = sqlite3.connect(path, isolation_level=None)
    locker.execute("BEGIN IMMEDIATE")
    writing = asyncio.create_task(persistence.update_chat_data(2, {"n": 2}))
    while not store._opened.file._alone.locked():
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.05)  # it waits for the lock of SQLite
    pid = os.fork()
    if pid == 0:
        try:
            child()
        finally:
            os._exit(0)
    until = time.monotonic() + 20
    while not os.waitpid(pid, os.WNOHANG)[0]:
        await asyncio.sleep(0.01)
        if time.monotonic() > until:
            print("it hangs", flush=True)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            break
    locker.close()
    await writing
    await persistence.update_chat_data(4, {"n": 4})
    await persistence.flush()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("update", "WriteError chat/3: .*another bot has"),
        ("read", "StoreInUseError another bot has"),
        ("flush", "WriteError .*chat/2.*another bot has"),
        ("backup", "StoreInUseError another bot has"),
    ],
)
def test_a_forked_child_that_uses_the_persistence_is_told_whose_it_is(
    bot_db: Path, what: str, said: str
) -> None:
    """Also if it was forked in the middle of a write, whose thread it does not have.

    It touches no connection of its parent's, which SQLite forbids; the parent goes on.
    """
    command = [sys.executable, "-W", "ignore", "-c", FORKED, str(bot_db), what]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert re.match(said, ran.stdout), ran.stdout + ran.stderr
    assert ran.returncode == 0, ran.stderr
    assert stored(bot_db) == {f"chat/{chat}": {"n": chat} for chat in (1, 2, 4)}


@pytest.mark.parametrize("fails", [False, True])
async def test_what_nobody_waits_for_any_more_is_discarded(*, fails: bool) -> None:
    """A result that comes after its future was cancelled; an error is nobody's."""
    may_end, discarded = threading.Event(), threading.Event()

    def work() -> int:
        assert may_end.wait(60)
        if fails:
            raise LookupError
        return 5

    waiting = begin_in_daemon(work, lambda _: discarded.set())
    waiting.cancel()
    (thread,) = (each for each in threading.enumerate() if each.name == "kvpersist:daemon")
    may_end.set()
    await asyncio.to_thread(thread.join)
    await asyncio.sleep(0)
    assert discarded.is_set() != fails


def test_an_opening_that_was_cancelled_on_another_loop_is_not_waited_for(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That loop may have ended, so that nobody would hear of its end."""
    store = SqliteStore(bot_db)
    may_open = threading.Event()
    open_file = sqlite_file.open_file

    def open_late(*arguments: Any) -> sqlite_file.FileConnection:
        assert may_open.wait(60)
        return open_file(*arguments)

    async def begin() -> None:
        asyncio.ensure_future(store.open())  # noqa: RUF006  asyncio.run cancels it
        await asyncio.sleep(0.01)

    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite.open_file", open_late)
        asyncio.run(begin())
        asyncio.run(store.close())
        may_open.set()
        wait_for_threads()
    asyncio.run(store.open())
    asyncio.run(store.close())
