"""Real faults: another program's lock, a full disk, a quota, rows that nobody can read."""

from __future__ import annotations

import asyncio
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from faults import locked_by_another_program, quota
from stores import stored

from kvpersist import (
    DecodeError,
    EncodeError,
    KVPersistence,
    OpenError,
    ReadError,
    SqliteStore,
    UnavailableError,
    WriteError,
)

ON_A_FULL_DISK = """
import asyncio, os, sys
from kvpersist import KVPersistence, WriteError

async def refused(write):
    try:
        await write
    except WriteError as error:
        return str(error)

async def main():
    persistence = KVPersistence(os.path.join(sys.argv[1], "bot.db"))
    await persistence.update_chat_data(0, {"n": 0})
    filler = os.open(os.path.join(sys.argv[1], "filler"), os.O_WRONLY | os.O_CREAT)
    for size in (4096, 1):
        try:
            while os.write(filler, bytes(size)):
                pass
        except OSError:
            pass
    assert "full" in await refused(persistence.update_chat_data(1, {"text": "x" * 50_000}))
    said = await refused(persistence.flush())
    assert "full" in said and "nor rescued" in said and "No space left" in said, said
    os.ftruncate(filler, 0)
    await persistence.flush()
    assert [*await persistence.get_chat_data()] == [0, 1]
    await persistence.flush()

asyncio.run(main())
"""
_MOUNT = 'mount -t tmpfs -o size=500k tmpfs "$0" && exec "$@" "$0"'


async def test_a_short_lock_of_another_program_is_waited_for(bot_db: Path) -> None:
    """The write succeeds when the other transaction ends; the event loop goes on meanwhile."""
    persistence = KVPersistence(bot_db)
    await persistence.get_bot_data()
    with locked_by_another_program(bot_db):
        write = asyncio.create_task(persistence.update_bot_data({"n": 1}))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not write.done()
    await write
    await persistence.flush()
    assert stored(bot_db) == {"bot": {"n": 1}}


async def test_a_long_lock_refuses_the_write_and_nothing_is_lost(bot_db: Path) -> None:
    """Beyond the busy timeout WriteError names the row; flush writes it when the lock is gone."""
    persistence = KVPersistence(SqliteStore(bot_db, busy_timeout=0.05))
    await persistence.update_chat_data(1, {"n": 1})
    with locked_by_another_program(bot_db):
        with pytest.raises(WriteError, match="chat/1: .*kept.*locked") as caught:
            await persistence.update_chat_data(1, {"n": 2})
        assert caught.value.keys == ("chat/1",)
        assert stored(bot_db) == {"chat/1": {"n": 1}}
        with pytest.raises(WriteError, match="chat/1"):
            await persistence.flush()
    await persistence.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}}


async def test_after_a_lock_was_too_long_the_next_writes_wait_shortly(bot_db: Path) -> None:
    """Or each of the updates that are waiting would take the whole busy timeout at the end."""
    store = SqliteStore(bot_db, busy_timeout=0.3)
    await store.open()
    assert store._opened is not None
    file = store._opened.file

    def patience() -> int:
        ((milliseconds,),) = file.execute("PRAGMA busy_timeout").fetchall()
        return int(milliseconds)

    with locked_by_another_program(bot_db):
        assert patience() == 300
        for _ in range(2):
            with pytest.raises(UnavailableError, match="locked"):
                await store.apply({"chat/1": b"1"})
            assert patience() == 100
    with pytest.raises(WriteError, match="surrogates"):
        await store.apply({"chat/\ud800": b"1"})
    assert patience() == 100
    await store.apply({"chat/1": b"1"})
    assert patience() == 300
    await store.close()
    impatient = SqliteStore(bot_db, busy_timeout=0.05)
    await impatient.open()
    assert impatient._opened is not None
    file = impatient._opened.file
    with locked_by_another_program(bot_db), pytest.raises(UnavailableError):
        await impatient.apply({"chat/1": b"1"})
    assert patience() == 50
    await impatient.close()


async def test_a_row_that_sqlite_has_no_number_for_is_refused(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Python does it with more than 2 GB; here an integer stands in for that."""
    store = SqliteStore(bot_db)
    await store.open()
    enormous = "DELETE FROM documents WHERE key = ?", [[(2**64,)]]
    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite.transaction", lambda _: enormous)
        with pytest.raises(WriteError, match="too large"):
            await store.apply({"chat/1": b"1"})
    await store.rescue({"chat/1": b"1"})
    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite_rescue.transaction", lambda _: enormous)
        with pytest.raises(OpenError, match="too large.* for chat/1"):
            await store.open()
    await store.open()
    await store.close()
    assert stored(bot_db) == {"chat/1": 1}


async def test_a_full_disk_refuses_the_write_and_nothing_is_lost(bot_db: Path) -> None:
    """What does not fit is refused, row by row; with room again all rows are there."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(0, {"text": "before"})
    big = {"text": "x" * 20_000}
    with quota(50_000):
        results = await asyncio.gather(
            *(persistence.update_chat_data(chat, big) for chat in range(10)),
            return_exceptions=True,
        )
        refused = {chat for chat, error in enumerate(results) if isinstance(error, WriteError)}
        written = {chat for chat, error in enumerate(results) if error is None}
        assert len(refused) > 5
        assert refused | written == set(range(10))
        documents = stored(bot_db)
        assert all(documents[f"chat/{chat}"] == big for chat in written)
        assert all(documents.get(f"chat/{chat}") != big for chat in refused)
    await persistence.update_user_data(5, {})
    assert stored(bot_db) == {**{f"chat/{chat}": big for chat in range(10)}, "user/5": {}}
    await persistence.flush()
    with closing(sqlite3.connect(bot_db)) as reader:
        assert reader.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


async def test_a_row_that_does_not_fit_does_not_hold_up_the_others(bot_db: Path) -> None:
    """A bot with one enormous chat on a nearly full disk goes on saving all the small ones."""
    persistence = KVPersistence(bot_db)
    await persistence.get_bot_data()
    with quota(100_000):
        for number in range(3):
            results = await asyncio.gather(
                persistence.update_chat_data(0, {"text": "x" * 200_000}),
                *(persistence.update_chat_data(chat, {"n": number}) for chat in range(1, 5)),
                return_exceptions=True,
            )
            assert isinstance(results[0], WriteError)
            assert results[1:] == [None] * 4
        with pytest.raises(WriteError) as caught:
            await persistence.flush()
        assert caught.value.keys == ("chat/0",)
    await persistence.flush()
    assert stored(bot_db)["chat/0"] == {"text": "x" * 200_000}


async def test_reading_does_not_wait_for_a_write_that_waits(bot_db: Path) -> None:
    """While another program's lock holds up a write, the handlers of other chats go on."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    with locked_by_another_program(bot_db):
        write = asyncio.create_task(persistence.update_chat_data(2, {"n": 2}))
        document = {"n": 1}
        await persistence.refresh_chat_data(1, document)
        assert not write.done()
    await write
    await persistence.flush()


async def test_a_full_disk_at_the_end_is_told_by_flush(bot_db: Path) -> None:
    """Flush lists the rows and closes all the same; a second flush, with room, writes them."""
    persistence = KVPersistence(bot_db)
    await persistence.get_bot_data()
    with quota(50_000):
        with pytest.raises(WriteError):
            await persistence.update_chat_data(1, {"text": "x" * 100_000})
        with pytest.raises(WriteError, match="chat/1: not written, but kept"):
            await persistence.flush()
    other = SqliteStore(bot_db)
    await other.open()
    await other.close()
    await persistence.flush()
    assert list(stored(bot_db)) == ["chat/1"]


async def test_a_table_that_is_gone_is_an_error_of_ours(bot_db: Path) -> None:
    """A reader gets ReadError, a writer WriteError, naming the file; neither counts as empty."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"n": 1})
    with closing(sqlite3.connect(bot_db, isolation_level=None)) as editor:
        editor.execute("ALTER TABLE documents RENAME TO hidden")
        with pytest.raises(ReadError, match=f"{bot_db}.*no such table"):
            await persistence.refresh_chat_data(1, {"n": 1})
        with pytest.raises(ReadError):
            await persistence.get_chat_data()
        with pytest.raises(WriteError, match="chat/1"):
            await persistence.update_chat_data(1, {"n": 2})
        editor.execute("ALTER TABLE hidden RENAME TO documents")
    await persistence.flush()
    assert stored(bot_db) == {"chat/1": {"n": 2}}


async def test_a_closed_store_says_so(bot_db: Path) -> None:
    """Whoever uses an engine by itself and forgets to open it is told."""
    store = SqliteStore(bot_db)
    with pytest.raises(ReadError, match="not open"):
        await store.read(["bot"])
    with pytest.raises(WriteError, match="not open"):
        await store.apply({"bot": b"1"})


KEYBOARD = '{"position": 1, "access_time": 1.5, "buttons": {"b": %s}, "queries": {}}'
BAD_ROWS = {
    "broken JSON": ("chat/1", '{"n": ', "not valid JSON"),
    "no object": ("chat/1", "[1]", "a list where ContextTypes says dict"),
    "nested too deep": ("chat/1", '{"a": ' + "[" * 300 + "]" * 300 + "}", "nested more than 254"),
    "a document of another kind": ("chat/1", '{"$tuple": []}', "a tuple where ContextTypes says"),
    "an unknown tag": ("chat/1", '{"a": {"$unheard": 1}}', "unheard"),
    "no id": ("chat/me", "{}", "'me' is not the id of a chat"),
    "an id that is written otherwise": ("chat/007", "{}", "'007' is not the id"),
    "a user that is none": ("user/", "{}", "'' is not the id of a user"),
    "broken bot_data": ("bot", "}", "not valid JSON"),
    "no keyboard": ("callback/k", '{"queries": [1]}', "not a keyboard"),
    "a keyboard that is written otherwise": ("callback/a%2db", '{"queries": {}}', "not the key of"),
    "a keyboard that is no text": ("callback/%ff", '{"queries": {}}', "not the key of a keyboard"),
    "an id without end": ("chat/" + "9" * 5000, "{}", "is not the id of a chat"),
    "half a keyboard": ("callback/k", '{"queries": {}, "buttons": {}}', "not a keyboard"),
    "a key that cannot be one": ("conversation/order/[[1]]", "0", "not the key of a conversation"),
    "no list": ("conversation/order/1", "0", "not the key of a conversation"),
    "a key that is written otherwise": ("conversation/order/[1, 2]", "0", "not the key"),
    "a key that is no JSON": ("conversation/order/[1", "0", "not valid JSON"),
    "a number that JSON readers round": ("user/1", '{"n": 18446744073709551616}', "64 bits"),
    "a rounded number in bot_data": ("bot", '{"n": [-9223372036854775809]}', "64 bits"),
    "a rounded number in a state": ("conversation/order/[1]", "36893488147419103232", "64 bits"),
    "a rounded number of a button": ("callback/k", KEYBOARD % "36893488147419103232", "64 bits"),
    "a name that occurs twice": ("chat/1", '{"a": 1, "b": {"c": 1, "c": 1}}', "have the name 'c'"),
    "one twice in a state": ("conversation/order/[1]", '{"a": 1, "a": 2}', "have the name 'a'"),
    "one twice in a button": ("callback/k", KEYBOARD % '{"a": 1, "a": 1}', "have the name 'a'"),
    "a state that is no JSON": ("conversation/order/[1]", "PHOTO", "not valid JSON"),
}


async def start(persistence: KVPersistence[Any, Any, Any]) -> None:
    """Call what `Application.initialize` calls."""
    await persistence.get_user_data()
    await persistence.get_chat_data()
    await persistence.get_bot_data()
    await persistence.get_callback_data()
    await persistence.get_conversations("order")


@pytest.mark.parametrize(("key", "text", "words"), BAD_ROWS.values(), ids=BAD_ROWS)
async def test_a_row_that_cannot_be_read_stops_the_start(
    bot_db: Path, key: str, text: str, words: str
) -> None:
    """The error names the row; the row stays; the file is given back for the repair."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({key: text.encode(), "chat/2": b"{}"})
    await store.close()
    with pytest.raises(DecodeError, match=words) as caught:
        await start(KVPersistence(bot_db))
    assert caught.value.key == key
    assert caught.value.scope == key.split("/", maxsplit=1)[0]
    assert str(caught.value).startswith(f"{bot_db}: {key}")
    with closing(sqlite3.connect(bot_db, isolation_level=None)) as editor:
        query = "SELECT value FROM documents WHERE key = ?"
        assert editor.execute(query, (key,)).fetchone() == (text,)
        editor.execute("DELETE FROM documents WHERE key = ?", (key,))
    persistence = KVPersistence(bot_db)
    await start(persistence)
    await persistence.flush()


async def test_one_value_that_cannot_be_stored_fails_alone(bot_db: Path) -> None:
    """Its neighbours of the same moment are written, its old row stays."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(1, {"cart": []})
    results = await asyncio.gather(
        persistence.update_chat_data(1, {"cart": [0, {"price": lambda: None}]}),
        persistence.update_chat_data(2, {"n": 2}),
        return_exceptions=True,
    )
    await persistence.flush()
    assert isinstance(results[0], EncodeError)
    assert (results[0].key, results[0].path) == ("chat/1", '["cart"][1]["price"]')
    assert str(results[0]).startswith('chat/1 → ["cart"][1]["price"]: ')
    assert "function" in str(results[0])
    assert stored(bot_db) == {"chat/1": {"cart": []}, "chat/2": {"n": 2}}


async def test_one_keyboard_that_cannot_be_stored_fails_alone(bot_db: Path) -> None:
    """The other keyboards are written, the old row of this one stays."""
    persistence = KVPersistence(bot_db)
    await persistence.update_callback_data(([("a", 1.0, {"b": 1})], {}))
    with pytest.raises(EncodeError, match='callback/a → \\["buttons"\\]\\["b"\\]'):
        await persistence.update_callback_data(
            ([("a", 2.0, {"b": object()}), ("c", 2.0, {"d": 2})], {})
        )
    await persistence.flush()
    assert await persistence.get_callback_data() == (
        [("a", 1.0, {"b": 1}), ("c", 2.0, {"d": 2})],
        {},
    )
    await persistence.flush()


@pytest.mark.parametrize("wrong", [None, "5", 5.0, True, "x" * 9999])
async def test_an_id_that_is_no_int_is_refused(bot_db: Path, wrong: object) -> None:
    """The row of another id is not overwritten by mistake: 5 and "5" are not the same."""
    persistence = KVPersistence(bot_db)
    with pytest.raises(EncodeError, match="id of a chat must be an int") as caught:
        await persistence.update_chat_data(wrong, {})  # type: ignore[arg-type]
    assert len(str(caught.value)) < 200
    assert not bot_db.exists()


def test_a_disk_that_is_full_to_the_last_byte_leaves_room_for_nothing(tmp_path: Path) -> None:
    """No rescue file either, which the error says; what is kept is written when there is room."""
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", _MOUNT, str(tmp_path)]
    try:
        subprocess.run([*command, "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):  # pragma: no cover  not everybody may mount
        pytest.skip("no file system of its own can be had")
    command += [sys.executable, "-c", ON_A_FULL_DISK]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr


async def test_an_id_that_no_start_would_read_is_refused(bot_db: Path) -> None:
    """More than 100 digits, also those of which Python itself makes no text."""
    persistence = KVPersistence(bot_db)
    for wrong in (10**100, -(10**100), 10**5000):
        with pytest.raises(EncodeError, match="chat/…: the id of a chat has at most 100 digits"):
            await persistence.update_chat_data(wrong, {})
        with pytest.raises(EncodeError, match="at most 100 digits"):
            await persistence.drop_chat_data(wrong)
    most = {10**100 - 1: {"n": 1}, 1 - 10**100: {"n": 2}}
    for chat, data in most.items():
        await persistence.update_chat_data(chat, data)
    await persistence.flush()
    assert await persistence.get_chat_data() == most
    await persistence.flush()


async def test_what_an_earlier_run_could_not_write_is_written_first(bot_db: Path) -> None:
    """An Application that starts again reads the newest values, not the older rows."""
    persistence = KVPersistence(SqliteStore(bot_db, busy_timeout=0.05))
    await persistence.update_chat_data(1, {"n": 1})
    with locked_by_another_program(bot_db):
        with pytest.raises(WriteError):
            await persistence.update_chat_data(1, {"n": 2})
        with pytest.raises(WriteError):
            await persistence.flush()
        with pytest.raises(OpenError):
            await persistence.get_chat_data()
    assert await persistence.get_chat_data() == {1: {"n": 2}}
    await persistence.flush()
