"""PostgreSQL: rows that cannot be written before the end, in a file or named and lost."""

from __future__ import annotations

import json
import logging
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from postgres_server import PostgresServer
from storages import PostgresStorage
from tcp_proxy import TcpProxy, proxied

from kvpersist import KVPersistence, OpenError, UnavailableError, WriteError


@pytest.fixture
def bot(postgres: PostgresServer) -> PostgresStorage:
    """A schema of its own."""
    return PostgresStorage(postgres)


@pytest.fixture
async def proxy(postgres: PostgresServer) -> AsyncIterator[TcpProxy]:
    """A network to the server."""
    async with proxied(postgres.port) as network:
        yield network


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where rows are left."""
    return tmp_path / "unwritten.json"


def through(
    proxy: TcpProxy, bot: PostgresStorage, place: Path | None
) -> KVPersistence[Any, Any, Any]:
    """Return a persistence behind a network."""
    there = PostgresStorage(bot.server, port=proxy.port)
    there.schema = bot.schema
    return KVPersistence(there.store(rescue_file=place))


async def end_without_a_server(
    proxy: TcpProxy, bot: PostgresStorage, place: Path | None
) -> tuple[KVPersistence[Any, Any, Any], WriteError]:
    """Let a run end that could not write what it was given last."""
    persistence = through(proxy, bot, place)
    await persistence.update_chat_data(1, {"n": 1})
    await persistence.update_chat_data(2, {"n": 1})
    proxy.is_down = True
    proxy.cut()
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 2})
    with pytest.raises(WriteError):
        await persistence.drop_chat_data(2)
    with pytest.raises(WriteError) as caught:
        await persistence.flush()
    assert {*caught.value.keys} == {"chat/1", "chat/2"}
    return persistence, caught.value


async def test_what_no_file_was_named_for_is_told_and_kept_in_memory(
    bot: PostgresStorage, proxy: TcpProxy
) -> None:
    """The error names the rows, and what would have kept them; a second flush may write them."""
    persistence, error = await end_without_a_server(proxy, bot, None)
    assert "nor rescued: no rescue_file was named" in str(error)
    assert "chat/1" in str(error)
    assert bot.rows == {"chat/1": b'{"n":1}', "chat/2": b'{"n":1}'}
    proxy.is_down = False
    await persistence.flush()
    assert bot.rows == {"chat/1": b'{"n":2}'}


async def test_the_next_start_writes_what_the_last_could_not(
    bot: PostgresStorage, proxy: TcpProxy, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It says so; the file, which its owner alone could read, is gone then."""
    caplog.set_level(logging.WARNING, "kvpersist")
    _, error = await end_without_a_server(proxy, bot, place)
    assert f"left in {place} for the next start" in str(error)
    assert json.loads(place.read_bytes())["rows"] == {"chat/1": '{"n":2}', "chat/2": None}
    assert stat.S_IMODE(place.stat().st_mode) == 0o600
    caplog.clear()
    persistence = KVPersistence[Any, Any, Any](bot.store(rescue_file=str(place)))
    assert await persistence.get_chat_data() == {1: {"n": 2}}
    assert caplog.messages == [f"{place}: wrote 2 rows that an earlier run had to leave there"]
    await persistence.flush()
    assert bot.rows == {"chat/1": b'{"n":2}'}
    assert [*place.parent.iterdir()] == []


async def test_a_second_flush_writes_them(
    bot: PostgresStorage, proxy: TcpProxy, place: Path
) -> None:
    """As soon as that is possible; until then it says that it is not."""
    persistence, _ = await end_without_a_server(proxy, bot, place)
    with pytest.raises(WriteError, match="chat/1"):
        await persistence.flush()
    proxy.is_down = False
    await persistence.flush()
    assert bot.rows == {"chat/1": b'{"n":2}'}
    assert not place.exists()


async def test_who_comes_back_writes_nothing_over_newer_rows(
    bot: PostgresStorage, proxy: TcpProxy, place: Path
) -> None:
    """If a bot without the file has had the schema meanwhile; the file stays, for a person."""
    await end_without_a_server(proxy, bot, place)
    other = bot.persistence()
    await other.update_chat_data(1, {"n": 3})
    await other.flush()
    store = bot.store(rescue_file=place)
    for _ in range(2):
        with pytest.raises(OpenError, match="another bot has had the schema since.*move it away"):
            await store.open()
    place.rename(place.with_name("seen"))
    await store.open()
    await store.close()
    assert bot.rows == {"chat/1": b'{"n":3}', "chat/2": b'{"n":1}'}


async def test_a_row_that_is_refused_by_itself_stays_there_alone(
    bot: PostgresStorage, place: Path
) -> None:
    """It is newer than what is stored, so that the bot does not start until it is mended."""
    store = bot.store(rescue_file=place)
    await store.open()
    assert await store.rescue({"chat/1": b"{", "chat/2": b"2"}) == str(place)
    for _ in range(2):
        with pytest.raises(OpenError, match=r"(?s)json.*for chat/1; see to that"):
            await bot.store(rescue_file=place).open()
        assert bot.rows == {"chat/2": b"2"}
    left = json.loads(place.read_bytes())
    assert left["rows"] == {"chat/1": "{"}
    left["rows"]["chat/1"] = "{}"
    place.write_text(json.dumps(left))
    mended = bot.store(rescue_file=place)
    await mended.open()
    await mended.close()
    assert bot.rows == {"chat/1": b"{}", "chat/2": b"2"}


async def test_a_start_that_still_cannot_write_them_does_not_take_place(
    bot: PostgresStorage, place: Path
) -> None:
    """Nobody is kept out by it, and nothing is lost."""
    store = bot.store(rescue_file=place)
    await store.open()
    await store.rescue({"chat/1": b"1"})
    locker = await asyncpg.connect(bot.server.url())
    async with locker.transaction():
        await locker.execute(f"LOCK TABLE {bot.schema}.documents")
        with pytest.raises(OpenError, match="unwritten.json holds rows .*no answer"):
            await bot.store(rescue_file=place, timeout=0.5).open()
    await locker.close()
    later = bot.store(rescue_file=place)
    await later.open()
    await later.close()
    assert bot.rows == {"chat/1": b"1"}


async def test_what_cannot_be_left_either_is_said(
    bot: PostgresStorage, proxy: TcpProxy, tmp_path: Path
) -> None:
    """And is kept in memory; the store is closed all the same."""
    (folder := tmp_path / "folder").mkdir()
    place = folder / "unwritten.json"
    persistence = through(proxy, bot, place)
    await persistence.update_chat_data(1, {"n": 1})
    proxy.is_down = True
    proxy.cut()
    with pytest.raises(WriteError):
        await persistence.update_chat_data(1, {"n": 2})
    folder.rmdir()
    with pytest.raises(WriteError, match="nor rescued: .*unwritten.json: .*No such file"):
        await persistence.flush()
    proxy.is_down = False
    with pytest.raises(WriteError, match="folder .* does not exist"):
        await persistence.flush()
    folder.mkdir()
    await persistence.flush()
    assert bot.rows == {"chat/1": b'{"n":2}'}


async def test_rows_of_another_schema_are_left_where_they_are(
    bot: PostgresStorage, place: Path
) -> None:
    """Or another bot's rows would be among this one's, where two were given the same file."""
    store = bot.store(rescue_file=place)
    await store.open()
    await store.rescue({"chat/1": b"1"})
    other = PostgresStorage(bot.server)
    with pytest.raises(OpenError, match="of another schema; see to that"):
        await other.store(rescue_file=place).open()
    assert other.rows == {}
    await store.open()
    await store.close()
    assert bot.rows == {"chat/1": b"1"}


async def test_who_never_had_the_schema_leaves_nothing(bot: PostgresStorage, place: Path) -> None:
    """Nobody could tell whether others have written since."""
    with pytest.raises(UnavailableError, match="not open"):
        await bot.store(rescue_file=place).rescue({"bot": b"1"})
    assert not place.exists()
