"""Group commit where two things happen at the same time: each once went wrong in a simulation."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import suppress

import pytest
from simulation import Loop
from stores import WatchedStore
from through import rows, settle

from kvpersist import MemoryStore, UnavailableError, WriteError
from kvpersist.group_commit import GroupCommit
from kvpersist.stores import Row

FULL = WriteError("the disk is full")


class SlowStore(WatchedStore):
    """Takes a turn of the event loop for each transaction, and shows what it has read when asked.

    Attributes:
        delivery: `read`, and each page of `scan`, are held back until it is set.
        is_applying: Whether a transaction is being made.
        closed: For each `close`, whether a transaction was being made.
        may_close: `close` waits until it is set.
    """

    def __init__(self) -> None:
        super().__init__(MemoryStore())
        self.delivery = asyncio.Event()
        self.delivery.set()
        self.is_applying = False
        self.closed: list[bool] = []
        self.may_close = asyncio.Event()
        self.may_close.set()

    async def close(self) -> None:
        self.closed.append(self.is_applying)
        await self.may_close.wait()
        await super().close()

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        found = await super().read(keys)
        await self.delivery.wait()
        return found

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        async for page in super().scan(prefix):
            await self.delivery.wait()
            yield page

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        self.is_applying = True
        await asyncio.sleep(0)
        try:
            await super().apply(changes)
        finally:
            self.is_applying = False


class RescuingStore(SlowStore):
    """One that keeps in `left` what it cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.left: dict[str, bytes | None] = {}

    async def rescue(self, changes: Mapping[str, bytes | None]) -> str:
        assert not self.is_applying
        self.left |= changes
        return "elsewhere"


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
    store.gate.set()
    await asyncio.wait([closing])
    await writing
    assert not commits.holds("chat/1", b"2")
    rows(store)["chat/1"] = b"3"
    await commits.write({"chat/1": b"2"})
    assert rows(store) == {"chat/1": b"2"}


async def test_what_was_known_is_forgotten_though_closing_is_cancelled(
    store: SlowStore, commits: GroupCommit
) -> None:
    """A store closes all the same, which is waited for, so that others can have it then."""
    await commits.write({"chat/1": b"1"})
    store.may_close.clear()
    closing = asyncio.create_task(commits.close())
    await settle()
    closing.cancel()
    await settle()
    assert not closing.done()
    store.may_close.set()
    await asyncio.wait([closing])
    assert closing.cancelled()
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


@pytest.mark.parametrize("is_closing", [False, True])
async def test_a_flush_ends_though_others_never_stop_writing(
    store: SlowStore, commits: GroupCommit, is_closing: bool
) -> None:
    """It waits for what was waiting when it was called; the store is not closed in a commit."""
    number = 0

    async def write(chat: int) -> None:
        nonlocal number
        while number < 1000:
            number += 1
            await commits.write({f"chat/{chat}": b"%d" % number})

    store.gate.clear()
    writers = [asyncio.create_task(write(1))]
    await store.entered.wait()
    writers.append(asyncio.create_task(write(2)))  # one of them waits at any moment
    await settle()
    store.gate.set()
    await settle()
    at_first = number
    await (commits.close() if is_closing else commits.flush())
    assert number < at_first + 50
    await asyncio.wait(writers)
    assert store.closed == [False] * is_closing
    await commits.close()


@pytest.mark.parametrize("kind", [SlowStore, RescuingStore])
async def test_a_store_is_not_closed_in_a_commit(kind: type[SlowStore]) -> None:
    """Though flush is cancelled; a commit that is cancelled too is not made again by itself."""
    for is_cancelled in (False, True):
        store = kind()
        commits = GroupCommit(store)
        store.gate.clear()
        writing = asyncio.create_task(commits.write({"chat/1": b"1"}))
        await store.entered.wait()
        closing = asyncio.create_task(commits.close())
        await settle()
        closing.cancel()
        if is_cancelled:
            committer().cancel()
        await settle()
        assert closing.done() == is_cancelled
        store.gate.set()
        await asyncio.wait([closing, writing])
        assert closing.cancelled()
        assert store.closed == [False]
        assert commits._retry is None  # which would open the store, and nobody would close it
        assert (rows(store) == {"chat/1": b"1"}) != is_cancelled
        assert commits.is_pending("chat/1") == (is_cancelled and kind is SlowStore)
        await commits.close()


async def test_what_was_refused_while_the_store_was_to_be_closed_is_rescued() -> None:
    """Nobody would try it again; what is still to be tried, since somebody waits, is not."""
    store = RescuingStore()
    commits = GroupCommit(store)
    store.gate.clear()
    first = asyncio.create_task(commits.write({"chat/1": b"1"}))
    await store.entered.wait()
    closing = asyncio.create_task(commits.close())
    await settle()
    second = asyncio.create_task(commits.write({"chat/2": b"2"}))
    store.poison = {"chat/2"}
    store.entered.clear()
    store.gate.set()
    await first
    with pytest.raises(WriteError, match="left in elsewhere for the next start: a row is too"):
        await closing
    with pytest.raises(WriteError, match="not written"):
        await second
    assert store.left == {"chat/2": b"2"}


async def test_all_tasks_are_cancelled_again_and_again_and_all_is_rescued() -> None:
    """As by somebody who presses Ctrl-C more than once, at each moment."""
    for times in range(12):
        store = RescuingStore()
        commits = GroupCommit(store)
        store.failure = FULL
        with pytest.raises(WriteError):
            await commits.write({"chat/1": b"1", "chat/2": None})
        store.gate.clear()
        store.may_close.clear()
        closing = asyncio.create_task(commits.close())
        await settle()
        for _ in range(times):
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()
            await asyncio.sleep(0)
        store.gate.set()
        store.may_close.set()
        await asyncio.wait([closing])
        assert store.left == {"chat/1": b"1", "chat/2": None}
        assert not commits.is_pending("chat/1")
        assert closing.cancelled() == (times > 0)


async def test_what_becomes_of_rows_is_in_the_log_if_flush_is_cancelled(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nobody to raise it to; whether they were rescued or the store was not closed."""
    store = RescuingStore()
    commits = GroupCommit(store)
    for _ in range(2):
        store.gate.clear()
        writing = asyncio.create_task(commits.write({"chat/1": b"1"}))
        await settle()
        closing = asyncio.create_task(commits.close())
        await settle()
        closing.cancel()
        store.failure = FULL
        store.gate.set()
        await asyncio.wait([closing, writing])
        assert closing.cancelled()
        store.failure = None
        monkeypatch.setattr(store, "close", _fail_to_close)
    monkeypatch.undo()
    await commits.close()
    errors = [record for record in caplog.records if record.levelname == "ERROR"]
    said = [record.getMessage() for record in errors if record.name == "kvpersist"]
    left = "chat/1: left in elsewhere for the next start: cancelled before it was written"
    assert said == [left, f"{left}; nor closed: the log is not saved"]


async def _fail_to_close() -> None:
    raise WriteError("the log is not saved")


async def test_who_was_refused_does_not_end_with_who_was_not() -> None:
    """Two flushes at the same time: the rows of the one that was cancelled are rescued too."""
    store = RescuingStore()
    commits = GroupCommit(store)
    await commits.write({"chat/1": b"1"})
    store.may_close.clear()
    first = asyncio.create_task(commits.close())
    await settle()
    writing = asyncio.create_task(commits.write({"chat/2": b"2"}))
    await settle()
    second = asyncio.create_task(commits.close())
    await settle()
    second.cancel()
    await settle()
    assert not second.done()
    store.failure = FULL
    store.may_close.set()
    await asyncio.wait([first, second, writing])
    assert first.exception() is None
    assert second.cancelled()
    assert store.left == {"chat/2": b"2"}
    assert not commits.is_pending("chat/2")


async def test_a_close_that_was_refused_ends_though_others_write_the_same_row() -> None:
    """Theirs is newer, and written; what they write after that is not waited for."""

    class RefusingTwice(RescuingStore):
        async def apply(self, changes: Mapping[str, bytes | None]) -> None:
            self.failure = FULL if self.tries < 2 else None
            await super().apply(changes)

        async def close(self) -> None:
            await settle()
            await super().close()

    store = RefusingTwice()
    commits = GroupCommit(store)
    number = 0

    async def write() -> None:
        nonlocal number
        while number < 1000:
            number += 1
            with suppress(WriteError):
                await commits.write({"chat/1": b"%d" % number})
                for _ in range(6):
                    await asyncio.sleep(0)

    store.gate.clear()
    writer = asyncio.create_task(write())
    await store.entered.wait()
    closing = asyncio.create_task(commits.close())
    await settle()
    store.gate.set()
    await closing
    assert number < 100
    await writer
    await commits.close()


@pytest.mark.parametrize("is_left", [True, False])
async def test_a_store_that_cannot_be_closed_does_not_hide_which_rows_wait(is_left: bool) -> None:
    """The error has both, whether the rows were left elsewhere or are kept here."""

    class Stuck(RescuingStore):
        async def rescue(self, changes: Mapping[str, bytes | None]) -> str:
            if is_left:
                return await super().rescue(changes)
            raise UnavailableError("it is being read")

        async def close(self) -> None:
            raise UnavailableError("it is being read")

    store = Stuck()
    commits = GroupCommit(store)
    store.failure = FULL
    with pytest.raises(WriteError):
        await commits.write({"chat/1": b"1"})
    with pytest.raises(WriteError, match="chat/1: ") as error:
        await commits.close()
    said = "left in elsewhere for the next start: the disk is full; nor closed: it is being read"
    if not is_left:
        said = "not written, but kept and tried again: the disk is full; nor rescued: "
        said += "it is being read"
    assert error.value.keys == ("chat/1",)
    assert error.value.reason == said
    assert isinstance(error.value.__cause__, UnavailableError)
    assert commits.is_pending("chat/1") != is_left
    commits._cancel_retry()


async def test_a_read_that_is_overtaken_by_rows_that_are_left_elsewhere_gives_these() -> None:
    """They are what the next who opens the store finds, as if they had been committed."""
    store = RescuingStore()
    commits = GroupCommit(store)
    await commits.write({"chat/1": b"1", "chat/2": b"1"})
    store.failure = FULL
    with pytest.raises(WriteError):
        await commits.write({"chat/1": b"2", "chat/2": None})
    store.delivery.clear()
    reading = asyncio.create_task(commits.read(["chat/1", "chat/2"]))
    await settle()
    with pytest.raises(WriteError, match="left in elsewhere"):
        await commits.close()
    store.delivery.set()
    assert await reading == {"chat/1": b"2"}


async def test_a_store_that_cannot_be_closed_says_so_though_nothing_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its own words; what is written after that is written."""
    store = RescuingStore()
    commits = GroupCommit(store)
    await commits.write({"chat/1": b"1"})
    with monkeypatch.context() as patch:
        patch.setattr(store, "close", _fail_to_close)
        with pytest.raises(WriteError, match="^the log is not saved$"):
            await commits.close()
    await commits.write({"chat/1": b"2"})
    await commits.close()
    assert store.commits == [{"chat/1": b"1"}, {"chat/1": b"2"}]
