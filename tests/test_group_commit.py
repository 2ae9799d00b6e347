"""Group commit: what shares a transaction, what is kept, what is tried again, in which order."""

from __future__ import annotations

import asyncio
import gc
import logging
from pathlib import Path

import pytest
from stores import WatchedStore

from kvpersist import MemoryStore, SqliteStore, UnavailableError, WriteError
from kvpersist.group_commit import FIRST_RETRY_DELAY, LAST_RETRY_DELAY, GroupCommit

FULL = WriteError("the disk is full")
LOCKED = UnavailableError("the database is locked")


@pytest.fixture
async def store() -> WatchedStore:
    """A store in memory that can be watched, held up and broken."""
    return WatchedStore(MemoryStore())


@pytest.fixture
async def commits(store: WatchedStore) -> GroupCommit:
    """What is tested."""
    return GroupCommit(store)


def rows(store: WatchedStore) -> dict[str, bytes]:
    """The rows that are stored."""
    assert isinstance(store.store, MemoryStore)
    return store.store.rows


async def settle() -> None:
    """Let every task run as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)


class Clock:
    """Stands in for the loop's timers: a test says when one is due."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.delays: list[float] = []
        self._loop = asyncio.get_running_loop()
        self._due: list[asyncio.TimerHandle] = []
        self._call_at = self._loop.call_at
        monkeypatch.setattr(self._loop, "call_later", self._call_later)

    def _call_later(self, delay: float, callback: object, *args: object) -> asyncio.TimerHandle:
        assert callable(callback)
        self.delays.append(delay)
        self._due.append(self._call_at(self._loop.time() + 1e9, callback, *args))
        return self._due[-1]

    async def ring(self) -> None:
        """Run the timers that were set and not cancelled."""
        due, self._due = self._due, []
        for timer in due:
            if not timer.cancelled():
                timer._run()
                timer.cancel()
        await settle()


@pytest.fixture
async def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Timers that ring when the test says so."""
    return Clock(monkeypatch)


async def test_writes_of_one_moment_share_a_transaction(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """A thousand concurrent writes are one transaction; each returns when its row is stored."""
    await asyncio.gather(*(commits.write({f"chat/{n}": b"%d" % n}) for n in range(1000)))
    assert len(store.commits) == 1
    assert len(rows(store)) == 1000


async def test_writes_that_arrive_during_a_commit_form_the_next_one(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """Nobody waits for more than the commit under way and his own."""
    store.gate.clear()
    first = asyncio.create_task(commits.write({"chat/1": b"1"}))
    await store.entered.wait()
    later = [asyncio.create_task(commits.write({f"chat/{n}": b"2"})) for n in range(2, 50)]
    await settle()
    assert not first.done()
    store.gate.set()
    await asyncio.gather(first, *later)
    assert [len(commit) for commit in store.commits] == [1, 48]


async def test_the_later_of_two_values_lasts(store: WatchedStore, commits: GroupCommit) -> None:
    """Also when the earlier one is on its way, also when both wait, also for a removal."""
    store.gate.clear()
    texts = [b"1", b"2", b"3", None, b"4"]
    writes = []
    for text in texts:
        writes.append(asyncio.create_task(commits.write({"chat/1": text})))
        await settle()
    store.gate.set()
    await asyncio.gather(*writes)
    assert store.commits == [{"chat/1": b"1"}, {"chat/1": b"4"}]
    assert rows(store) == {"chat/1": b"4"}


async def test_what_the_store_holds_is_not_written_again(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """An unchanged row costs nothing, whether it was written or read before."""
    await commits.write({"chat/1": b"1"})
    commits.remember("chat/2", b"2", b" 2 ")
    await commits.write({"chat/1": b"1", "chat/2": b"2"})
    await commits.write({"chat/2": b" 2 "})
    assert len(store.commits) == 1


async def test_a_value_that_came_back_is_written(store: WatchedStore, commits: GroupCommit) -> None:
    """What was removed, or replaced by what is still waiting, is no longer known as stored."""
    await commits.write({"chat/1": b"1"})
    await commits.write({"chat/1": None})
    await commits.write({"chat/1": b"1"})
    assert rows(store) == {"chat/1": b"1"}
    store.gate.clear()
    writes = [asyncio.create_task(commits.write({"chat/1": text})) for text in (b"2", b"1")]
    await settle()
    store.gate.set()
    await asyncio.gather(*writes)
    assert rows(store) == {"chat/1": b"1"}


async def test_a_refused_write_raises_for_each_caller_and_names_his_rows(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """The error says which rows, why, and that they are kept; its cause is the store's error."""
    store.failure = FULL
    results = await asyncio.gather(
        commits.write({"chat/1": b"1"}),
        commits.write({"chat/2": b"2", "chat/3": None}),
        return_exceptions=True,
    )
    assert [set(result.keys) for result in results if isinstance(result, WriteError)] == [
        {"chat/1"},
        {"chat/2", "chat/3"},
    ]
    assert str(results[0]).startswith("chat/1: not written, but kept and tried again: ")
    assert isinstance(results[0], WriteError)
    assert results[0].__cause__ is FULL
    await drain(store, commits)


async def drain(store: WatchedStore, commits: GroupCommit) -> None:
    """Mend the store and write what is left, so that no timer outlives the test."""
    store.failure = None
    await commits.close()


async def test_a_refused_write_is_kept_for_the_next_one(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """The next write of any row takes it along; a newer value of the row takes its place."""
    store.failure = FULL
    with pytest.raises(WriteError):
        await commits.write({"chat/1": b"old", "chat/2": b"2", "chat/3": b"3"})
    assert commits.is_pending("chat/1")
    store.failure = None
    await commits.write({"chat/1": b"new"})
    assert rows(store) == {"chat/1": b"new", "chat/2": b"2", "chat/3": b"3"}
    assert not commits.is_pending("chat/2")


async def test_a_newer_value_that_waits_while_the_older_is_refused_stays(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """An older value never comes after a newer one."""
    store.gate.clear()
    store.failure = FULL
    older = asyncio.create_task(commits.write({"chat/1": b"older"}))
    await store.entered.wait()
    newer = asyncio.create_task(commits.write({"chat/1": b"newer"}))
    await settle()
    store.gate.set()
    with pytest.raises(WriteError):
        await older
    with pytest.raises(WriteError):
        await newer
    await drain(store, commits)
    assert rows(store) == {"chat/1": b"newer"}


async def test_a_value_that_was_refused_is_written_though_it_is_given_again(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """Going back to the stored value while another waits replaces the one that waits."""
    await commits.write({"chat/1": b"1"})
    store.failure = FULL
    with pytest.raises(WriteError):
        await commits.write({"chat/1": b"2"})
    store.failure = None
    await commits.write({"chat/1": b"1"})
    assert rows(store) == {"chat/1": b"1"}
    assert not commits.is_pending("chat/1")


async def test_a_refused_write_is_tried_again_by_itself(
    store: WatchedStore, commits: GroupCommit, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """With growing delays, up to a minute, until it works; both ends are in the log."""
    caplog.set_level(logging.INFO, "kvpersist")
    store.failure = FULL
    with pytest.raises(WriteError):
        await commits.write({"chat/1": b"1"})
    for _ in range(8):
        await clock.ring()
    assert clock.delays == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (FIRST_RETRY_DELAY, LAST_RETRY_DELAY) == (1, 60)
    store.failure = None
    await clock.ring()
    assert rows(store) == {"chat/1": b"1"}
    assert "next try in 1 s, rows that are kept: 1: the disk is full" in caplog.messages[0]
    assert caplog.messages[-1] == "writing works again"
    store.failure = FULL
    with pytest.raises(WriteError):
        await commits.write({"chat/1": b"2"})
    assert clock.delays[-1] == 1
    await drain(store, commits)


async def test_only_one_retry_waits(
    store: WatchedStore, commits: GroupCommit, clock: Clock
) -> None:
    """A hundred refused writes do not make a hundred retries."""
    store.failure = LOCKED
    for number in range(100):
        with pytest.raises(WriteError):
            await commits.write({f"chat/{number}": b"1"})
    tries = store.tries
    await clock.ring()
    assert store.tries == tries + 1
    assert clock.delays == [1, 2]
    await drain(store, commits)


async def test_memory_is_bounded_to_one_value_a_row(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """However long the store is away, a row waits once."""
    store.failure = FULL
    for number in range(100):
        with pytest.raises(WriteError):
            await commits.write({"chat/1": b"%d" % number})
    assert len(commits._pending) == 1
    await drain(store, commits)
    assert rows(store) == {"chat/1": b"99"}


async def test_flush_writes_what_is_left(store: WatchedStore, commits: GroupCommit) -> None:
    """It waits for the commit under way and for what waits behind it."""
    store.gate.clear()
    writes = [asyncio.create_task(commits.write({"chat/1": b"1"}))]
    await store.entered.wait()
    writes.append(asyncio.create_task(commits.write({"chat/2": b"2"})))
    await settle()
    flush = asyncio.create_task(commits.flush())
    await settle()
    assert not flush.done()
    store.gate.set()
    await flush
    assert rows(store) == {"chat/1": b"1", "chat/2": b"2"}
    await asyncio.gather(*writes)


async def test_flush_waits_for_the_last_commit(store: WatchedStore, commits: GroupCommit) -> None:
    """With nothing behind the commit under way no further transaction is made."""
    store.gate.clear()
    write = asyncio.create_task(commits.write({"chat/1": b"1"}))
    await store.entered.wait()
    flush = asyncio.create_task(commits.flush())
    await settle()
    assert not flush.done()
    store.gate.set()
    await asyncio.gather(write, flush)
    assert store.tries == 1


async def test_flush_lists_what_could_not_be_written(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """All rows that are waiting are in the error's keys, the first ten in its text."""
    store.failure = FULL
    keys = [f"chat/{number}" for number in range(12)]
    with pytest.raises(WriteError):
        await commits.write(dict.fromkeys(keys, b"1"))
    with pytest.raises(WriteError) as caught:
        await commits.flush()
    assert set(caught.value.keys) == set(keys)
    assert " and 2 more: not written" in str(caught.value)
    await drain(store, commits)


async def test_flush_of_nothing_does_nothing(store: WatchedStore, commits: GroupCommit) -> None:
    """No transaction is made for it."""
    await commits.flush()
    await commits.write({})
    assert store.tries == 0


async def test_close_closes_the_store_though_rows_are_left(
    store: WatchedStore, commits: GroupCommit, clock: Clock
) -> None:
    """The rows stay in memory, no retry is left behind, and a later flush writes them."""
    store.failure = FULL
    with pytest.raises(WriteError):
        await commits.write({"chat/1": b"1"})
    with pytest.raises(WriteError):
        await commits.close()
    tries = store.tries
    await clock.ring()
    assert store.tries == tries
    store.failure = None
    await commits.flush()
    assert rows(store) == {"chat/1": b"1"}


async def test_a_store_that_cannot_be_opened_refuses_the_write(tmp_path: Path) -> None:
    """The row is kept, and written as soon as the store opens."""
    folder = tmp_path / "later"
    commits = GroupCommit(SqliteStore(folder / "bot.db"))
    with pytest.raises(WriteError, match="chat/1: .*folder .*later does not exist"):
        await commits.write({"chat/1": b"1"})
    folder.mkdir()
    await commits.close()
    store = SqliteStore(folder / "bot.db")
    await store.open()
    assert await store.read(["chat/1"]) == {"chat/1": b"1"}
    await store.close()


async def test_an_engine_that_breaks_its_contract_loses_nothing(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """Whatever it raises counts as a refusal."""
    store.failure = ZeroDivisionError("a bug of the engine")
    with pytest.raises(WriteError, match="a bug of the engine"):
        await commits.write({"chat/1": b"1"})
    await drain(store, commits)
    assert rows(store) == {"chat/1": b"1"}


async def test_a_cancelled_caller_does_not_cancel_the_commit(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """He gives up waiting; the others of the same transaction, and his own row, do not suffer."""
    store.gate.clear()
    writes = [asyncio.create_task(commits.write({f"chat/{n}": b"1"})) for n in range(3)]
    await store.entered.wait()
    writes[1].cancel()
    await settle()
    store.gate.set()
    await asyncio.wait(writes)
    assert [write.cancelled() for write in writes] == [False, True, False]
    assert len(rows(store)) == 3


async def test_a_cancelled_commit_is_written_by_the_next(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """When a program cancels all tasks the rows stay, and nobody waits for ever."""
    store.gate.clear()
    writes = [asyncio.create_task(commits.write({"chat/1": b"1"}))]
    await store.entered.wait()
    writes.append(asyncio.create_task(commits.write({"chat/2": b"2"})))
    await settle()
    (committer,) = (task for task in asyncio.all_tasks() if task.get_name() == "kvpersist:commit")
    committer.cancel()
    await asyncio.wait(writes)
    assert all(isinstance(write.exception(), WriteError) for write in writes)
    store.gate.set()
    await commits.close()
    assert rows(store) == {"chat/1": b"1", "chat/2": b"2"}


async def test_a_row_that_is_refused_does_not_hold_up_the_others(
    store: WatchedStore, commits: GroupCommit, clock: Clock
) -> None:
    """Its neighbours, of the same moment and later, are written; it is tried again by itself."""
    store.poison = {"chat/2"}
    results = await asyncio.gather(
        *(commits.write({f"chat/{number}": b"1"}) for number in range(5)), return_exceptions=True
    )
    assert [type(result) for result in results].index(WriteError) == 2
    await commits.write({"chat/9": b"1"})
    assert rows(store).keys() == {"chat/0", "chat/1", "chat/3", "chat/4", "chat/9"}
    with pytest.raises(WriteError) as caught:
        await commits.flush()
    assert caught.value.keys == ("chat/2",)
    store.poison = set()
    await clock.ring()
    assert not commits.is_pending("chat/2")
    assert rows(store)["chat/2"] == b"1"


async def test_flush_writes_whatever_can_be_written(
    store: WatchedStore, commits: GroupCommit, clock: Clock
) -> None:
    """Also behind more rows that are refused than are tried one after the other."""
    store.failure = LOCKED
    keys = [f"chat/{number}" for number in range(30)]
    with pytest.raises(WriteError):
        await commits.write(dict.fromkeys(keys, b"1"))
    store.failure, store.poison = None, {"chat/3", *keys[7:12]}
    with pytest.raises(WriteError) as caught:
        await commits.flush()
    assert set(caught.value.keys) == store.poison
    assert rows(store).keys() == set(keys) - store.poison
    store.poison = set()
    await drain(store, commits)
    assert clock.delays[0] == 1


async def test_a_store_that_takes_nothing_is_not_asked_row_by_row(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """A lock holds up one try of all rows, not one try of each; a full disk at most a dozen."""
    store.failure = LOCKED
    with pytest.raises(WriteError):
        await commits.write({f"chat/{number}": b"1" for number in range(100)})
    assert store.tries == 1
    store.failure = FULL
    with pytest.raises(WriteError):
        await commits.flush()
    assert store.tries == 12
    await drain(store, commits)
    assert len(rows(store)) == 100


async def test_nobody_is_told_that_a_row_is_durable_which_was_not_tried(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """A row that was refused before waits while others find the store away: its writer hears it."""
    store.failure = LOCKED
    with pytest.raises(WriteError):
        await commits.write({"chat/1": b"1"})
    writes = [commits.write({"chat/1": b"2"}), commits.write({"chat/2": b"1"})]
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(result) for result in results] == [WriteError, WriteError]
    await drain(store, commits)
    assert rows(store) == {"chat/1": b"2", "chat/2": b"1"}


async def test_a_commit_that_is_cancelled_before_it_begins_is_made_again(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """Whoever writes is told, and nobody waits for ever."""
    write = asyncio.create_task(commits.write({"chat/1": b"1"}))
    await asyncio.sleep(0)
    (committer,) = (task for task in asyncio.all_tasks() if task.get_name() == "kvpersist:commit")
    committer.cancel()
    with pytest.raises(WriteError, match="cancelled"):
        await write
    await commits.close()
    assert rows(store) == {"chat/1": b"1"}


async def test_a_write_right_after_a_cancelled_commit_is_made(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """In the moment in which the task has ended, and nobody has cleaned up after it, too."""
    write = asyncio.create_task(commits.write({"chat/1": b"1"}))
    await asyncio.sleep(0)
    (committer,) = (task for task in asyncio.all_tasks() if task.get_name() == "kvpersist:commit")
    again: list[asyncio.Task[None]] = []
    committer.remove_done_callback(commits._end_committer)
    committer.add_done_callback(
        lambda _: again.append(asyncio.ensure_future(commits.write({"chat/2": b"2"})))
    )
    committer.add_done_callback(
        lambda ended: asyncio.get_running_loop().call_soon(commits._end_committer, ended)
    )
    committer.cancel()
    with pytest.raises(WriteError, match="cancelled"):
        await write
    await again[0]
    assert rows(store) == {"chat/1": b"1", "chat/2": b"2"}


def test_a_flush_while_all_tasks_are_cancelled_writes_everything() -> None:
    """At the end of asyncio.run every task is cancelled, group commit's own too."""
    store = WatchedStore(MemoryStore())
    commits = GroupCommit(store)
    began = []

    async def bot() -> None:
        try:
            await commits.write({"chat/1": b"1"})
        finally:
            began.append(True)
            await commits.flush()

    async def main() -> None:
        store.gate = asyncio.Event()
        asyncio.ensure_future(bot()).set_name("bot")
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        asyncio.get_running_loop().call_soon(asyncio.get_running_loop().call_soon, store.gate.set)

    asyncio.run(main())
    assert began
    assert rows(store) == {"chat/1": b"1"}


async def test_what_was_known_is_forgotten_at_close(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """After it another program may do with the rows what it wants, so that they are written."""
    await commits.write({"chat/1": b"1"})
    await commits.close()
    rows(store).clear()
    await commits.write({"chat/1": b"1"})
    assert rows(store) == {"chat/1": b"1"}


async def test_a_scan_on_the_way_forgets_what_it_does_not_find(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """A row that another program has removed is written when the bot has it again."""
    await commits.write({"conversation/a/[1]": b"1"})
    rows(store).clear()
    assert [row async for row in commits.scan("conversation/a/")] == []
    await commits.write({"conversation/a/[1]": b"1"})
    assert rows(store) == {"conversation/a/[1]": b"1"}


def test_a_loop_that_ends_in_the_middle_leaves_its_rows_to_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What an event loop had on its way when it was closed is written by the one that follows."""

    async def begin() -> tuple[WatchedStore, GroupCommit]:
        store = WatchedStore(MemoryStore())
        commits = GroupCommit(store)
        store.gate.clear()
        write = asyncio.ensure_future(commits.write({"chat/1": b"1"}))
        await store.entered.wait()
        write.cancel()
        return store, commits

    async def end(store: WatchedStore, commits: GroupCommit) -> None:
        store.gate, store.entered = asyncio.Event(), asyncio.Event()
        assert commits.is_pending("chat/1")
        writes = [asyncio.create_task(commits.write({"chat/2": b"2"}))]
        await store.entered.wait()
        writes.append(asyncio.create_task(commits.write({"chat/3": b"3"})))
        await settle()
        gc.collect()  # the old loop's task ends here, and must not disturb this one's
        assert store.tries == 2
        store.gate.set()
        await asyncio.gather(*writes)
        assert rows(store) == {"chat/1": b"1", "chat/2": b"2", "chat/3": b"3"}

    loop = asyncio.new_event_loop()
    caplog.set_level(logging.CRITICAL, "asyncio")  # "Task was destroyed", as intended
    store, commits = loop.run_until_complete(begin())
    loop.close()
    asyncio.run(end(store, commits))
