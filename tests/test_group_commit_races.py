"""Group commit where two things happen at the same time: each once went wrong in a simulation."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence

import pytest
from simulation import Loop
from stores import WatchedStore
from through import rows, settle

from kvpersist import MemoryStore, WriteError
from kvpersist.group_commit import GroupCommit
from kvpersist.stores import Row

FULL = WriteError("the disk is full")


class SlowStore(WatchedStore):
    """Takes a turn of the event loop for each transaction, and shows what it has read when asked.

    Attributes:
        delivery: `read`, and each page of `scan`, are held back until it is set.
    """

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.delivery = asyncio.Event()
        self.delivery.set()

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        found = await super().read(keys)
        await self.delivery.wait()
        return found

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        async for page in super().scan(prefix):
            await self.delivery.wait()
            yield page

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        await asyncio.sleep(0)
        await super().apply(changes)


@pytest.fixture
async def store() -> SlowStore:
    """A store that takes its time."""
    return SlowStore()


@pytest.fixture
async def commits(store: SlowStore) -> GroupCommit:
    """What is tested."""
    return GroupCommit(store)


def committer() -> asyncio.Task[None]:
    """Return group commit's own task."""
    (task,) = (task for task in asyncio.all_tasks() if task.get_name() == "kvpersist:commit")
    return task


async def test_two_flushes_of_what_is_refused_come_to_an_end(
    store: SlowStore, commits: GroupCommit
) -> None:
    """What is on its way for the other counts as not written, or both would try for ever."""
    store.failure = FULL
    with pytest.raises(WriteError):
        await commits.write({"chat/1": b"1", "chat/2": b"1"})
    store.gate.clear()
    flushes = []
    for _ in range(2):
        flushes.append(asyncio.create_task(commits.flush()))
        await settle()
    store.gate.set()
    for _ in range(10):
        await settle()
    assert all(flush.done() for flush in flushes)
    errors = [flush.exception() for flush in flushes]
    assert [set(error.keys) for error in errors if isinstance(error, WriteError)] == [
        {"chat/1", "chat/2"},
        {"chat/1", "chat/2"},
    ]
    store.failure = None
    await commits.close()


async def test_what_is_committed_while_it_is_read_is_not_taken_for_older(
    store: SlowStore, commits: GroupCommit
) -> None:
    """What was read before the commit and arrives after it would hide that the row has changed."""
    await commits.write({"chat/1": b"1", "chat/2": b"1"})
    store.delivery.clear()
    reading = asyncio.create_task(commits.read(["chat/1", "chat/2", "chat/3", "chat/4"]))
    await settle()
    await commits.write({"chat/1": b"2", "chat/2": None, "chat/3": b"2", "chat/5": b"2"})
    store.delivery.set()
    assert await reading == {"chat/1": b"2", "chat/3": b"2"}


async def test_what_is_committed_while_it_is_scanned_is_not_taken_for_older(
    store: SlowStore, commits: GroupCommit
) -> None:
    """As for what is read."""
    await commits.write({"chat/1": b"1", "chat/2": b"1", "chat/3": b"1"})

    async def scan() -> list[Row]:
        return [row async for page in commits.scan("chat/") for row in page]

    store.delivery.clear()
    scanning = asyncio.create_task(scan())
    await settle()
    await commits.write({"chat/1": b"2", "chat/2": None})
    store.delivery.set()
    assert await scanning == [("chat/1", b"2"), ("chat/3", b"1")]


async def test_what_a_commit_wrote_while_the_store_was_closed_is_not_known(
    store: SlowStore, commits: GroupCommit
) -> None:
    """Another program may have changed the row since, so that it is written again."""
    await commits.write({"chat/1": b"1"})
    store.gate.clear()
    writing = asyncio.create_task(commits.write({"chat/1": b"2"}))
    await store.entered.wait()
    closing = asyncio.create_task(commits.close())
    await settle()
    closing.cancel()  # it closes the store all the same
    await asyncio.wait([closing])
    store.gate.set()
    await writing
    assert not commits.holds("chat/1", b"2")
    rows(store)["chat/1"] = b"3"
    await commits.write({"chat/1": b"2"})
    assert rows(store) == {"chat/1": b"2"}


async def test_what_was_known_is_forgotten_though_closing_is_cancelled(
    store: SlowStore, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store closes all the same, as the SQLite engine does."""
    await commits.write({"chat/1": b"1"})
    monkeypatch.setattr(store, "close", asyncio.Event().wait)
    closing = asyncio.create_task(commits.close())
    await settle()
    closing.cancel()
    await asyncio.wait([closing])
    assert not commits.holds("chat/1", b"1")


async def test_whoever_waits_for_others_waits_for_what_a_cancelled_writer_left(
    store: SlowStore, commits: GroupCommit
) -> None:
    """Nobody else may be writing it, until it is tried again after a while."""
    store.gate.clear()
    writing = asyncio.create_task(commits.write_all({"chat/1": b"1"}))
    await store.entered.wait()
    writing.cancel()
    await asyncio.wait([writing])
    store.gate.set()
    await commits.write_all({}, others=True)
    assert rows(store) == {"chat/1": b"1"}
    await commits.close()


async def test_whoever_waits_for_others_waits_for_a_commit_that_is_made_again(
    store: SlowStore, commits: GroupCommit
) -> None:
    """When a program cancels group commit's own task, whoever wrote is told, and others wait."""
    store.gate.clear()
    writing = asyncio.create_task(commits.write({"chat/1": b"1"}))
    await settle()
    waiting = asyncio.create_task(commits.write_all({}, others=True))
    await settle()
    committer().cancel()
    await settle()
    assert not waiting.done()
    store.gate.set()
    await waiting
    assert rows(store) == {"chat/1": b"1"}
    with pytest.raises(WriteError, match="cancelled"):
        await writing
    await commits.close()


async def test_whoever_comes_as_a_commit_ends_that_was_cancelled_waits_for_the_next(
    store: SlowStore, commits: GroupCommit
) -> None:
    """In the moment in which nobody has cleaned up after it."""
    store.gate.clear()
    writing = asyncio.create_task(commits.write({"chat/1": b"1"}))
    await settle()
    late: list[asyncio.Task[None]] = []
    ended = committer()
    ended.remove_done_callback(commits._end_committer)
    store.gate.set()
    ended.add_done_callback(
        lambda _: late.append(asyncio.ensure_future(commits.write_all({}, others=True)))
    )
    ended.cancel()
    await asyncio.wait([writing])
    await late[0]
    assert rows(store) == {"chat/1": b"1"}
    assert isinstance(writing.exception(), WriteError)
    await commits.close()


def test_what_a_loop_left_is_tried_again_by_the_next_by_itself(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Though that one has nothing to write."""
    store = WatchedStore(MemoryStore())
    commits = GroupCommit(store)

    async def begin() -> None:
        await commits.write({"chat/2": b"2"})
        store.failure = FULL
        with pytest.raises(WriteError):
            await commits.write({"chat/1": b"1"})

    async def go_on() -> None:
        store.failure = None
        await commits.write_all({"chat/2": b"2"})
        await asyncio.sleep(100)

    for part in (begin, go_on):
        loop = Loop()
        loop.run_until_complete(part())
        loop.close()
    assert rows(store) == {"chat/1": b"1", "chat/2": b"2"}
    assert "the event loop ended" in caplog.text


def test_a_close_that_a_loop_left_does_not_close_the_store_of_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """When the garbage collector ends it, it must leave alone what is no more its own."""
    caplog.set_level(logging.CRITICAL, "asyncio")  # "Task was destroyed", as intended
    store = WatchedStore(MemoryStore())
    commits = GroupCommit(store)

    async def begin() -> None:
        store.gate.clear()
        asyncio.ensure_future(commits.write({"chat/1": b"1"}))  # noqa: RUF006  it is to be lost
        await store.entered.wait()
        asyncio.ensure_future(commits.close())  # noqa: RUF006  likewise
        await settle()

    async def go_on() -> None:
        store.gate = asyncio.Event()
        store.gate.set()
        await commits.write({"chat/2": b"2"})
        store.failure = FULL
        with pytest.raises(WriteError):
            await commits.write({"chat/1": b"3"})
        gc.collect()
        assert commits.holds("chat/2", b"2")
        store.failure = None
        await asyncio.sleep(100)
        assert rows(store) == {"chat/1": b"3", "chat/2": b"2"}

    for part in (begin, go_on):
        loop = Loop()
        loop.run_until_complete(part())
        loop.close()


async def test_whoever_waits_behind_a_cancelled_writer_does_not_wait_for_a_retry(
    store: SlowStore, commits: GroupCommit
) -> None:
    """The next commit begins at once, however long the store was away before."""
    store.gate.clear()
    first = asyncio.create_task(commits.write_all({"chat/1": b"1"}))
    await store.entered.wait()
    second = asyncio.create_task(commits.write_all({"chat/2": b"2"}))
    await settle()
    first.cancel()
    store.gate.set()
    await settle()
    assert second.done()
    assert rows(store) == {"chat/1": b"1", "chat/2": b"2"}
    await commits.close()
