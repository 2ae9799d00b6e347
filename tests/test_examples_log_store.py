"""examples/log_store.py keeps every promise that an engine must keep."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from log_store import LogStore

from kvpersist import KVPersistence, OpenError, Store, StoreInUseError, WriteError
from kvpersist.testing import StoreContract


class TestLogStore(StoreContract):
    """The tests of every engine."""

    def make_store(self, folder: Path) -> Store:
        return LogStore(folder / "bot.log")


async def test_a_line_that_was_cut_off_does_not_count(tmp_path: Path) -> None:
    """At whichever byte of the last transaction: all of it is there, or nothing."""
    store = LogStore(tmp_path / "bot.log")
    await store.open()
    await store.apply({"bot": b"1", "chat/1": b"1"})
    whole = len(store.path.read_bytes())
    await store.apply({"bot": b"2", "chat/1": b"2"})
    await store.close()
    log = store.path.read_bytes()
    for cut in range(whole, len(log) + 1):
        store.path.write_bytes(log[:cut])
        await store.open()
        value = b"2" if cut == len(log) else b"1"
        assert await store.read(["bot", "chat/1"]) == {"bot": value, "chat/1": value}
        await store.close()


async def test_a_second_bot_is_refused(tmp_path: Path) -> None:
    """And leaves nothing behind."""
    first, second = LogStore(tmp_path / "bot.log"), LogStore(tmp_path / "bot.log")
    await first.open()
    with pytest.raises(StoreInUseError):
        await second.open()
    await first.close()
    await second.open()
    await second.close()


async def test_a_disk_that_is_full_leaves_no_half_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction was not written; the next one is."""
    store = LogStore(tmp_path / "bot.log")
    await store.open()

    def full(_: int) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(WriteError, match="no space"):
            await store.apply({"bot": b"1"})
    assert await store.read(["bot"]) == {}
    await store.apply({"bot": b"2"})
    await store.close()
    await store.open()
    assert await store.read(["bot"]) == {"bot": b"2"}
    await store.close()


async def test_what_is_no_log_is_refused(tmp_path: Path) -> None:
    """And stays as it is."""
    path = tmp_path / "bot.log"
    path.write_text("hello\n")
    store = LogStore(path)
    with pytest.raises(OpenError):
        await store.open()
    assert path.read_text() == "hello\n"


async def test_the_files_are_their_owners_alone(tmp_path: Path) -> None:
    """They hold what people told the bot."""
    store = LogStore(tmp_path / "bot.log")
    await store.open()
    await store.close()
    assert {stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()} == {0o600}


async def test_a_persistence_works_on_it(tmp_path: Path) -> None:
    """As on any other."""
    for n in range(3):
        persistence = KVPersistence(LogStore(tmp_path / "bot.log"))
        assert await persistence.get_chat_data() == ({1: {"n": n}} if n else {})
        await persistence.update_chat_data(1, {"n": n + 1})
        await persistence.flush()
