"""What a persistence does can be watched: counted, logged, exported."""

from __future__ import annotations

import dataclasses
import logging
from typing import Any

import pytest
from handlers import remember, text
from postgres_server import PostgresServer
from prometheus import PersistenceCollector
from prometheus_client import CollectorRegistry, generate_latest
from storages import PostgresStorage
from stores import WatchedStore
from through import until
from workers import persistence_of, workers

from kvpersist import ConflictError, KVPersistence, MemoryStore, Stats, WriteError, group_commit
from kvpersist import stats as stats_module

NOTHING = Stats(
    rows=0, pending=0, commits=0, written=0, size=0, refused=0, retries=0, last_error=None, lag=0.0
)


async def test_what_was_written_is_counted() -> None:
    """Transactions, rows, and bytes; what does not change is no write; nobody can change it."""
    persistence = KVPersistence(MemoryStore())
    assert persistence.stats() == NOTHING
    assert NOTHING.rows_per_commit == 0.0
    await persistence.update_chat_data(1, {"a": 1})
    await persistence.update_chat_data(1, {"a": 1})
    await persistence.update_user_data(5, {})
    await persistence.drop_user_data(5)
    stats = persistence.stats()
    assert (stats.rows, stats.commits, stats.written, stats.size) == (1, 3, 3, 9)
    assert stats.rows_per_commit == 1.0
    with pytest.raises(dataclasses.FrozenInstanceError):
        stats.rows = 2  # type: ignore[misc]
    await persistence.flush()


async def test_what_is_refused_is_counted_until_it_is_written(
    store: WatchedStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the error that came last, and for how long rows have been waiting."""
    monkeypatch.setattr(group_commit, "FIRST_RETRY_DELAY", 0.0)
    persistence = KVPersistence(store)
    store.failure = WriteError("the disk is full")
    for number in (1, 2):
        with pytest.raises(WriteError):
            await persistence.update_chat_data(1, {"a": number})
    stats = persistence.stats()
    assert (stats.pending, stats.commits) == (1, 0)
    assert stats.refused >= 2
    assert stats.last_error == "the disk is full"
    assert stats.lag > 0
    before = stats.lag
    assert persistence.stats().lag >= before
    await until(lambda: persistence.stats().retries > 0)
    store.failure = None
    await persistence.update_chat_data(1, {"a": 3})
    stats = persistence.stats()
    assert (stats.pending, stats.commits, stats.lag) == (0, 1, 0.0)
    assert stats.last_error is not None
    await persistence.flush()


async def test_workers_count_their_own(postgres: PostgresServer) -> None:
    """Transactions that write; one that was refused, with what was said."""
    bot = PostgresStorage(postgres)

    def handlers() -> list[Any]:
        return [text(remember)]

    async with workers(bot, handlers) as (first, second):
        await first.say("hi")
        await first.say("hi")
        await second.say("ho")
        stats: Stats = first.app.persistence.stats()  # type: ignore[union-attr]
        assert (stats.commits, stats.written) == (2, 6)
        assert stats.size == 2 * 3 * len('{"said":["hi"]}') + 3 * len(',"hi"')
    script = persistence_of(bot)
    async with script.edit("user", 1):
        pass
    assert script.stats() == NOTHING
    async with script.edit("user", 2) as data:
        data["x"] = 1
    assert script.stats().commits == 1

    async def spoil() -> None:
        async with script.edit("user", 1) as data:
            bot.write("user/1", "{}")
            data["x"] = 1

    with pytest.raises(ConflictError):
        await spoil()
    stats = script.stats()
    assert (stats.commits, stats.refused) == (1, 1)
    assert str(stats.last_error).startswith("user/1")
    await script.flush()


async def test_a_slow_commit_is_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Others are not; and a start says what it has loaded."""
    store = MemoryStore()
    persistence = KVPersistence(store)
    with caplog.at_level(logging.INFO, "kvpersist"):
        await persistence.update_chat_data(1, {"a": 1})
        assert caplog.messages == []
        monkeypatch.setattr(stats_module, "SLOW", 0.0)
        await persistence.update_chat_data(1, {"a": 2})
        (message,) = caplog.messages
        assert message.startswith("a commit of 1 rows took 0.0 s")
        await persistence.flush()
        caplog.clear()
        await persistence.get_chat_data()
        (message,) = caplog.messages
        assert message.startswith("loaded chat/: 1 rows in 0.0")
    await persistence.flush()


async def test_prometheus_can_have_them() -> None:
    """The example's collector shows each as a metric, as it is when it is asked for."""
    persistence = KVPersistence(MemoryStore())
    registry = CollectorRegistry()
    registry.register(PersistenceCollector(persistence))
    await persistence.update_chat_data(1, {"a": 1})
    shown = generate_latest(registry).decode()
    assert "kvpersist_rows 1.0" in shown
    assert "kvpersist_pending 0.0" in shown
    assert "kvpersist_commits_total 1.0" in shown
    assert "kvpersist_written_bytes_total 7.0" in shown
    assert "kvpersist_lag_seconds 0.0" in shown
    await persistence.flush()
