"""A bot that may not write where it is to keep its data says so, and by whom it is kept from it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import unprivileged
from stores import stored

from kvpersist import BackupError, KVPersistence, OpenError, SqliteStore


@pytest.fixture
def bot_db() -> Iterator[Path]:
    """A path in a folder that any user reaches, which those of pytest are not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o777)
        data = Path(folder, "data")
        with unprivileged():
            data.mkdir()
        yield data / "bot.db"
        data.chmod(0o700)


async def fill(bot_db: Path) -> None:
    """Have a file of an earlier run of the same user's."""
    with unprivileged():
        persistence = KVPersistence(bot_db)
        await persistence.update_chat_data(1, {"n": 1})
        await persistence.flush()


@pytest.mark.parametrize(
    ("place", "mode", "words"),
    [
        (".", 0o555, "no permission to read and write {}; see whose it is, who runs the bot"),
        ("bot.db", 0o444, "no permission to read and write {}; see whose it is, who runs the bot"),
        ("bot.db-wal", 0o444, "no permission to read and write {}; see whose it is"),
        ("bot.db-shm", 0o444, "no permission to read and write {}; see whose it is"),
        ("bot.db-lock", 0o444, "Permission denied: '{}'; see whose it is, who runs the bot"),
        ("bot.db-rescue", 0, "Permission denied: '{}'; see to that"),
    ],
)
async def test_a_file_that_the_bot_may_not_write_stops_the_start(
    bot_db: Path, place: str, mode: int, words: str
) -> None:
    """The error names the one that is in the way; with permission all is there."""
    await fill(bot_db)
    denied = bot_db.parent / place
    if is_left := not denied.exists():
        denied.touch()
    denied.chmod(mode)
    with unprivileged(), pytest.raises(OpenError, match=words.format(denied)):
        await KVPersistence(bot_db).get_chat_data()
    denied.chmod(0o700)
    if is_left:
        denied.unlink()
    with unprivileged():
        persistence = KVPersistence(bot_db)
        assert await persistence.get_chat_data() == {1: {"n": 1}}
        await persistence.update_chat_data(1, {"n": 2})
        await persistence.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}}


async def test_no_file_is_made_in_a_folder_that_the_bot_may_not_write(bot_db: Path) -> None:
    """Nor is anything else left there."""
    bot_db.parent.chmod(0o555)
    with unprivileged(), pytest.raises(OpenError, match="no permission .*/data; see whose it is"):
        await KVPersistence(bot_db).get_chat_data()
    assert not os.listdir(bot_db.parent)  # noqa: PTH208  it is shorter


async def test_a_copy_where_the_bot_may_not_write_is_refused(bot_db: Path) -> None:
    """With an error of ours; the bot goes on."""
    await fill(bot_db)
    denied = bot_db.parent.with_name("denied")
    denied.mkdir(mode=0o555)
    with unprivileged():
        store = SqliteStore(bot_db)
        await store.open()
        with pytest.raises(BackupError, match="Permission denied"):
            await store.backup(denied / "copy.db")
        await store.apply({"chat/2": b"2"})
        await store.close()
    assert stored(bot_db) == {"chat/1": {"n": 1}, "chat/2": 2}
