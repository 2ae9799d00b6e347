"""`GroupCommit.write_all`: a commit that can begin at once is made by whoever asks for it."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Mapping
from typing import Any

import pytest
from stores import WatchedStore
from through import rows, settle

from kvpersist import MemoryStore, WriteError
from kvpersist.group_commit import FIRST_RETRY_DELAY, GroupCommit

FULL = WriteError("the disk is full")


@pytest.fixture
async def commits(store: WatchedStore) -> GroupCommit:
    """What is tested."""
    return GroupCommit(store)


def begin(
    commits: GroupCommit, key: str, text: bytes | None = b"1", *, others: bool = False
) -> asyncio.Task[None]:
    """Write a row in a task."""
    return asyncio.create_task(commits.write_all({key: text}, others=others))


async def test_a_single_writer_needs_no_other_task(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """It has its commit when it returns, and nobody else had a turn."""
    turns: list[int] = []
    asyncio.get_running_loop().call_soon(turns.append, 1)
    await commits.write_all({"chat/1": b"1", "chat/2": b"2"})
    assert store.commits == [{"chat/1": b"1", "chat/2": b"2"}]
    assert turns == []
    await commits.write_all({"chat/1": b"1"})
    assert len(store.commits) == 1


async def test_those_that_come_meanwhile_share_the_next_commit(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """Also with those who use `write`."""
    store.gate.clear()
    writes = [begin(commits, f"chat/{number}") for number in range(20)]
    writes.append(asyncio.create_task(commits.write({"chat/20": b"1"})))
    await settle()
    store.gate.set()
    await asyncio.gather(*writes)
    assert [len(commit) for commit in store.commits] == [1, 20]


async def test_what_is_on_its_way_is_waited_for_and_not_written_again(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """Whoever hands in the same value returns when it is durable."""
    store.gate.clear()
    writes = [begin(commits, "chat/1"), begin(commits, "chat/1")]
    await settle()
    writes.append(begin(commits, "chat/1", b"2"))
    writes.append(begin(commits, "chat/1"))
    writes.append(begin(commits, "chat/1"))
    await settle()
    assert not any(write.done() for write in writes)
    store.gate.set()
    await asyncio.gather(*writes)
    assert store.commits == [{"chat/1": b"1"}, {"chat/1": b"1"}]


async def test_nobody_waits_for_rows_of_others_unless_he_asks_to(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """Who has nothing new returns at once, or when all that was handed in before is durable."""
    await commits.write_all({"chat/5": b"5"})
    store.gate.clear()
    first = begin(commits, "chat/1")
    await settle()
    await begin(commits, "chat/5", b"5")
    waits = [begin(commits, "chat/5", b"5", others=True)]
    second = begin(commits, "chat/2")
    await settle()
    await begin(commits, "chat/5", b"5")
    waits.append(begin(commits, "chat/5", b"5", others=True))
    await settle()
    assert not any(wait.done() for wait in waits)
    store.gate.set()
    await waits[0]
    assert first.done()
    await waits[1]
    assert second.done()
    assert [*store.commits[-1]] == ["chat/2"]


async def test_what_was_refused_is_left_to_the_next_try(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """Given again as it was it is refused without a try; something else is tried, and takes it."""
    store.failure = FULL
    for _ in range(3):
        with pytest.raises(WriteError, match="the disk is full"):
            await commits.write_all({"chat/1": b"1", "chat/2": None})
    assert store.tries == 3  # both, and then each alone
    refusal = commits.refusal("chat/1")
    assert refusal is FULL
    store.failure = WriteError("the disk is full again")
    with pytest.raises(WriteError):
        await commits.write_all({"chat/1": b"2"})
    assert commits.refusal("chat/1") is refusal
    store.failure = None
    await commits.write_all({"chat/1": b"2", "chat/3": b"3"})
    assert rows(store) == {"chat/1": b"2", "chat/3": b"3"}
    assert commits.refusal("chat/1") is None
    await commits.close()


async def test_what_was_refused_is_waited_for_while_it_is_tried_again(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """Also by those who come before that commit has begun."""
    store.failure = FULL
    with pytest.raises(WriteError):
        await commits.write_all({"chat/1": b"1"})
    store.failure = None
    store.gate.clear()
    writes = [begin(commits, "chat/3")]
    await settle()
    writes += [begin(commits, "chat/2"), begin(commits, "chat/1")]
    await settle()
    assert not any(write.done() for write in writes)
    store.gate.set()
    await asyncio.gather(*writes)
    assert {*rows(store)} == {"chat/1", "chat/2", "chat/3"}


async def test_everybody_is_told_of_his_own_rows_alone(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """A refused row is kept, and is no fault of those who share its commit."""
    store.gate.clear()
    store.poison = {"chat/2"}
    writes = [begin(commits, f"chat/{number}") for number in (1, 2, 3)]
    await settle()
    store.gate.set()
    results = await asyncio.gather(*writes, return_exceptions=True)
    assert [type(result) for result in results] == [type(None), WriteError, type(None)]
    with pytest.raises(WriteError):
        await commits.write_all({"chat/2": b"1"})
    store.poison = set()
    await commits.write_all({"chat/4": b"1"})
    assert len(rows(store)) == 4
    await commits.close()


async def test_a_writer_that_is_cancelled_does_not_cancel_the_others(
    store: WatchedStore, commits: GroupCommit
) -> None:
    """What it was writing is written again, since nobody knows what became of it."""
    store.gate.clear()
    first = begin(commits, "chat/1")
    await store.entered.wait()
    others = [begin(commits, "chat/2"), begin(commits, "chat/1")]
    await settle()
    first.cancel()
    await settle()
    assert first.cancelled()
    store.gate.set()
    await settle()
    assert all(other.done() for other in others)  # at once, not when it is time to try again
    assert store.commits == [{"chat/1": b"1", "chat/2": b"1"}]
    await commits.close()


async def test_what_a_cancelled_writer_wrote_is_written_later(
    store: WatchedStore, commits: GroupCommit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits, so that it is tried again after a while, or by `flush`."""
    timers: list[float] = []
    loop = asyncio.get_running_loop()
    call_later = loop.call_later

    def note(delay: float, callback: Any, *args: object) -> asyncio.TimerHandle:
        timers.append(delay)
        return call_later(delay, callback, *args)

    monkeypatch.setattr(loop, "call_later", note)
    store.gate.clear()
    first = begin(commits, "chat/1")
    await store.entered.wait()
    first.cancel()
    await settle()
    assert commits.is_pending("chat/1")
    assert timers == [FIRST_RETRY_DELAY]
    store.gate.set()
    await commits.close()
    assert rows(store) == {"chat/1": b"1"}


def test_a_program_that_ends_leaves_no_task(caplog: pytest.LogCaptureFixture) -> None:
    """When all tasks are cancelled at once, none is begun for others who do not wait any more."""
    store = WatchedStore(MemoryStore())
    commits = GroupCommit(store)

    async def main() -> None:
        store.gate.clear()
        begin(commits, "chat/1")
        begin(commits, "chat/2")
        await settle()

    asyncio.run(main())
    assert "destroyed" not in caplog.text
    store.gate = asyncio.Event()
    store.gate.set()
    asyncio.run(commits.close())
    assert rows(store) == {"chat/1": b"1", "chat/2": b"1"}


class Broken(WatchedStore):
    """A store that fails in a way in which no store may."""

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        if self.failure is not None:
            raise self.failure
        await super().apply(changes)


async def test_a_commit_that_fails_in_an_unheard_of_way_holds_up_nobody() -> None:
    """The row is kept, and the next commit is made as ever."""
    store = Broken(MemoryStore())
    commits = GroupCommit(store)
    store.failure = asyncio.CancelledError()  # type: ignore[assignment]
    with pytest.raises(asyncio.CancelledError):
        await commits.write_all({"chat/1": b"1"})
    store.failure = None
    await commits.write_all({"chat/2": b"2"})
    assert rows(store) == {"chat/1": b"1", "chat/2": b"2"}
    await commits.close()


def test_a_loop_that_ends_in_the_middle_leaves_its_rows_to_the_next(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a writer had on its way when its loop was closed is written by the one that follows."""
    store = WatchedStore(MemoryStore())
    commits = GroupCommit(store)

    async def start() -> None:
        store.gate.clear()
        begin(commits, "chat/1")
        await store.entered.wait()

    async def end() -> None:
        store.gate, store.entered = asyncio.Event(), asyncio.Event()
        write = begin(commits, "chat/2")
        await store.entered.wait()
        gc.collect()  # the old loop's task ends here, and must not disturb this one's
        assert not write.done()
        store.gate.set()
        await write
        await commits.close()

    loop = asyncio.new_event_loop()
    caplog.set_level(logging.CRITICAL, "asyncio")  # "Task was destroyed", as intended
    loop.run_until_complete(start())
    loop.close()
    asyncio.run(end())
    assert rows(store) == {"chat/1": b"1", "chat/2": b"1"}
