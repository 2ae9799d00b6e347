"""The file: what is in it, who may read it, and that files of others stay as they are."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from kvpersist import (
    ConfigurationError,
    KVPersistence,
    KVPersistError,
    MemoryStore,
    NewerSchemaError,
    NotAStoreError,
    OpenError,
    SqliteStore,
    StoreInUseError,
)
from kvpersist.stores import sqlite_file
from kvpersist.stores.file_lock import FileLock
from kvpersist.stores.sqlite_schema import SCHEMA

APPLICATION_ID = 0x6B767073
DIE = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture(params=[0o000, 0o077, 0o777], ids=oct)
def umask(request: pytest.FixtureRequest) -> Iterator[None]:
    """The process's umask: open to all, usual for servers, and absurd."""
    before = os.umask(request.param)
    yield
    os.umask(before)


def content(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, byte for byte."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(code: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own, with Python's own warnings shown."""
    command = [sys.executable, "-W", "default", "-c", code]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


async def test_a_document_is_one_row_of_json_text(bot_db: Path) -> None:
    """Any SQLite tool reads the rows, also with JSON functions, while the bot runs."""
    persistence = KVPersistence(bot_db)
    await persistence.update_chat_data(-5, {"name": "Ünï", "cart": [1, 2.5, None]})
    await persistence.update_chat_data(-5, {"name": "Anna", "cart": [1, 2.5, None]})
    await persistence.update_conversation(name="a/b", key=(1, "x"), new_state="PHOTO")
    with closing(sqlite3.connect(bot_db)) as reader:
        columns = [column[1:3] for column in reader.execute("PRAGMA table_info(documents)")]
        rows = reader.execute("SELECT key, value, typeof(value), version FROM documents").fetchall()
        (name,) = reader.execute(
            "SELECT json_extract(value, '$.name') FROM documents WHERE key = 'chat/-5'"
        ).fetchone()
        (age,) = reader.execute(
            "SELECT unixepoch('subsec') * 1000 - updated_at FROM documents WHERE key = 'chat/-5'"
            if sqlite3.sqlite_version_info >= (3, 42)
            else "SELECT strftime('%s') * 1000 - updated_at FROM documents WHERE key = 'chat/-5'"
        ).fetchone()
    await persistence.flush()
    assert columns == [
        ("key", "TEXT"),
        ("value", "TEXT"),
        ("version", "INTEGER"),
        ("updated_at", "INTEGER"),
    ]
    assert rows == [
        ("chat/-5", '{"name":"Anna","cart":[1,2.5,null]}', "text", 2),
        ('conversation/a%2Fb/[1,"x"]', '"PHOTO"', "text", 1),
    ]
    assert name == "Anna"
    assert abs(age) < 60_000


async def test_the_file_says_whose_it_is(bot_db: Path) -> None:
    """application_id and the schema number are in the file itself, not in the log alone."""
    store = SqliteStore(bot_db)
    await store.open()
    header = bot_db.read_bytes()[:100]
    await store.close()
    assert int.from_bytes(header[68:72], "big") == APPLICATION_ID
    assert int.from_bytes(header[60:64], "big") == 1


async def test_commits_are_durable(bot_db: Path) -> None:
    """The connection writes ahead and waits for the disk at every commit."""
    store = SqliteStore(bot_db)
    await store.open()
    assert store._opened is not None
    mode = await store._opened.writer.fetch("PRAGMA journal_mode")
    synchronous = await store._opened.writer.fetch("PRAGMA synchronous")
    await store.close()
    assert (mode, synchronous) == ([("wal",)], [(2,)])


@pytest.mark.usefixtures("umask")
async def test_only_the_owner_may_read_the_file(bot_db: Path) -> None:
    """The database, its log, its index and its lock have mode 0600 whatever the umask."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"bot": b"{}"})
    modes = {path.name: path.stat().st_mode & 0o777 for path in bot_db.parent.iterdir()}
    await store.close()
    assert modes == dict.fromkeys(["bot.db", "bot.db-wal", "bot.db-shm", "bot.db-lock"], 0o600)


async def test_a_mode_that_the_owner_chose_is_kept(bot_db: Path) -> None:
    """Whoever opens an existing database to a group meant it."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.close()
    bot_db.chmod(0o640)
    await store.open()
    await store.close()
    assert bot_db.stat().st_mode & 0o777 == 0o640


async def test_a_clean_close_leaves_one_file_and_its_lock(bot_db: Path) -> None:
    """All rows are in the database file; the log is gone."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"bot": b"{}"})
    await store.close()
    assert set(content(bot_db.parent)) == {"bot.db", "bot.db-lock"}


async def test_a_reader_does_not_stop_the_close(bot_db: Path) -> None:
    """With another program reading an old state the log stays, and nothing is lost."""
    store = SqliteStore(bot_db, busy_timeout=0)
    await store.open()
    await store.apply({"bot": b"1"})
    with closing(sqlite3.connect(bot_db, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM documents").fetchall()
        await store.apply({"bot": b"2"})
        await store.close()
        assert (bot_db.parent / "bot.db-wal").stat().st_size > 0
    await store.open()
    assert await store.read(["bot"]) == {"bot": b"2"}
    await store.close()


async def test_an_empty_file_is_a_new_database(bot_db: Path) -> None:
    """A file of 0 bytes, made with touch perhaps, becomes the bot's, and private."""
    bot_db.touch(mode=0o644)
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"bot": b"{}"})
    await store.close()
    assert bot_db.stat().st_mode & 0o777 == 0o600


def test_a_bot_killed_while_it_creates_the_file_starts_again(bot_db: Path) -> None:
    """A creation that was cut off is rolled back by the next start."""
    killed = run(
        "import sqlite3; from kvpersist.stores import sqlite_file as f\n"
        f"path = f.Path({str(bot_db)!r})\n"
        "f._create_private(path); c = sqlite3.connect(path, isolation_level=None)\n"
        "c.execute('PRAGMA cache_size = 1'); c.execute('PRAGMA cache_spill = 1')\n"
        "c.executescript(f.SCHEMA.replace('COMMIT;', ''))\n"
        "c.execute('CREATE TABLE filler (x)')\n"
        "c.executemany('INSERT INTO filler VALUES (?)', [('x' * 4000,)] * 500)\n" + DIE
    )
    assert killed.returncode == -9, killed.stderr
    assert bot_db.stat().st_size > 0
    assert (bot_db.parent / "bot.db-journal").exists()
    started = run(
        "import asyncio; from kvpersist import SqliteStore\n"
        "async def main():\n"
        f"    store = SqliteStore({str(bot_db)!r})\n"
        "    await store.open(); await store.apply({'bot': b'{}'}); await store.close()\n"
        "asyncio.run(main())"
    )
    assert (started.returncode, started.stderr) == (0, "")


KILLED = (
    "import asyncio; from kvpersist import SqliteStore\n"
    "async def main():\n"
    "    store = SqliteStore({path!r})\n"
    "    await store.open(); await store.apply({{'chat/1': b'1'}}); await store.close()\n"
    "    await store.open(); await store.apply({{'chat/1': b'2', 'chat/2': b'2'}})\n"
    "    " + DIE + "\n"
    "asyncio.run(main())"
)
"""A bot whose last acknowledged writes are in the log alone."""


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: path.write_bytes(b"")])
@pytest.mark.parametrize("is_locked", [False, True], ids=["no-lock", "lock"])
async def test_a_log_whose_file_is_gone_is_not_removed_by_a_start(
    bot_db: Path, lose: Callable[[Path], object], *, is_locked: bool
) -> None:
    """What a killed bot has acknowledged may be there alone; with the file back it is all there."""
    killed = await asyncio.to_thread(run, KILLED.format(path=str(bot_db)))
    assert killed.returncode == -9, killed.stderr
    if not is_locked:  # so that the file is looked at before it gets one
        bot_db.with_name("bot.db-lock").unlink()
    elsewhere = bot_db.with_name("elsewhere.db")
    shutil.copyfile(bot_db, elsewhere)
    lose(bot_db)
    before = content(bot_db.parent)
    with pytest.raises(OpenError, match=r"is gone, or empty, and .*bot\.db-wal holds what was"):
        await SqliteStore(bot_db).open()
    assert content(bot_db.parent) == before
    elsewhere.replace(bot_db)
    store = SqliteStore(bot_db)
    await store.open()
    assert await store.read(["chat/1", "chat/2"]) == {"chat/1": b"2", "chat/2": b"2"}
    await store.close()


async def test_a_log_that_was_moved_away_hinders_no_new_file(bot_db: Path) -> None:
    """Whoever does what the error says begins anew; an empty log holds nothing."""
    killed = await asyncio.to_thread(run, KILLED.format(path=str(bot_db)))
    assert killed.returncode == -9, killed.stderr
    bot_db.unlink()
    bot_db.with_name("bot.db-wal").rename(bot_db.with_name("kept"))
    bot_db.with_name("bot.db-wal").touch()
    store = SqliteStore(bot_db)
    await store.open()
    assert await store.read(["chat/1", "chat/2"]) == {}
    await store.close()


def not_sqlite(path: Path) -> None:
    """Make a file that is no database."""
    path.write_bytes(b"chat,text\n1,hello\n" * 500)


def foreign(path: Path) -> None:
    """Make another application's database."""
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE documents (id, body)")


def foreign_with_log(path: Path) -> None:
    """Make another application's database whose last commits are in its write-ahead log alone."""
    killed = run(
        f"import sqlite3; c = sqlite3.connect({str(path)!r})\n"
        "c.execute('PRAGMA journal_mode = WAL'); c.execute('CREATE TABLE t (x)'); c.commit()\n"
        + DIE
    )
    assert killed.returncode == -9


def foreign_with_journal(path: Path) -> None:
    """Make another application's database in which a transaction was cut off."""
    killed = run(
        f"import sqlite3; c = sqlite3.connect({str(path)!r}, isolation_level=None)\n"
        "c.execute('CREATE TABLE t (x)'); c.execute('INSERT INTO t VALUES (1)')\n"
        "c.execute('PRAGMA cache_size = 1'); c.execute('PRAGMA cache_spill = 1')\n"
        "c.execute('BEGIN'); c.execute('UPDATE t SET x = 2')\n"
        "c.executemany('INSERT INTO t VALUES (?)', [('x' * 4000,)] * 500)\n" + DIE
    )
    assert killed.returncode == -9
    assert path.with_name("bot.db-journal").stat().st_size > 0


def newer(path: Path) -> None:
    """Make a database of a kvpersist to come."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=2")
        connection.execute("CREATE TABLE documents (key, anything)")


def without_table(path: Path) -> None:
    """Make a database of kvpersist's from which somebody dropped the table."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(f"PRAGMA application_id={APPLICATION_ID}; PRAGMA user_version=1")


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (not_sqlite, NotAStoreError, "not a SQLite file"),
        (foreign, NotAStoreError, "another program's"),
        (foreign_with_log, NotAStoreError, "another program's"),
        (foreign_with_journal, NotAStoreError, "another program's"),
        (newer, NewerSchemaError, "schema 2"),
        (without_table, OpenError, "no table documents"),
    ],
)
async def test_files_of_others_are_refused_and_left_alone(
    bot_db: Path, make: object, error: type[KVPersistError], words: str
) -> None:
    """The error names the file and what it is; every byte stays, nothing is put beside it."""
    assert callable(make)
    make(bot_db)
    before = content(bot_db.parent)
    with pytest.raises(error, match=words) as caught:
        await KVPersistence(bot_db).get_user_data()
    after = content(bot_db.parent)
    before.pop("bot.db-shm", None)  # the log's index is memory that readers share
    after.pop("bot.db-shm", None)
    assert str(bot_db) in str(caught.value)
    assert after == before


def tampered(*statements: str) -> Callable[[Path], None]:
    """Make one of kvpersist's files, in which somebody has run `statements`."""

    def make(path: Path) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.executescript(SCHEMA)
            connection.execute("PRAGMA writable_schema = ON")
            for statement in statements:
                connection.execute(statement)

    return make


def remade(sql: str) -> Callable[[Path], None]:
    """Make one of kvpersist's files with another table, or view, `documents`."""
    return tampered("DROP TABLE documents", sql)


TRIGGER = "CREATE TRIGGER t {} ON documents BEGIN SELECT load_extension('x'); END"
COLUMNS = "key TEXT NOT NULL PRIMARY KEY, value TEXT NOT NULL, version INTEGER NOT NULL"
TAMPERED = {
    "a column more": (
        tampered("ALTER TABLE documents ADD COLUMN owner TEXT"),
        "not made; restore it from a backup.*owner TEXT",
    ),
    "a column less": (remade(f"CREATE TABLE documents ({COLUMNS})"), "has not made"),
    "a check": (
        remade(f"CREATE TABLE documents ({COLUMNS}, updated_at INTEGER NOT NULL CHECK (abs(1)))"),
        "has not made",
    ),
    "a default": (
        remade(f"CREATE TABLE documents ({COLUMNS}, updated_at INTEGER NOT NULL DEFAULT (abs(1)))"),
        "has not made",
    ),
    "a generated column": (
        remade(
            f"CREATE TABLE documents ({COLUMNS}, updated_at INTEGER NOT NULL AS (abs(version)))"
        ),
        "has not made",
    ),
    "a reference": (
        remade(f"CREATE TABLE documents ({COLUMNS}, updated_at INTEGER NOT NULL REFERENCES o)"),
        "has not made",
    ),
    "a long text": (
        remade(f"CREATE TABLE documents ({COLUMNS}, updated_at INTEGER CHECK ('{'x' * 9999}'))"),
        "has not made",
    ),
    "a view": (remade("CREATE VIEW documents AS SELECT load_extension('x')"), "has not made.*VIEW"),
    "a virtual table": (
        remade("CREATE VIRTUAL TABLE documents USING fts5(key, value, version, updated_at)"),
        "has not made.*VIRTUAL",
    ),
    "a trigger at an insert": (tampered(TRIGGER.format("AFTER INSERT")), r"a trigger .*\['t'\]"),
    "a trigger at an update": (
        tampered(TRIGGER.format("BEFORE UPDATE OF version")),
        "a trigger on a table of kvpersist",
    ),
    "a trigger at a removal": (tampered(TRIGGER.format("AFTER DELETE")), "DROP TRIGGER"),
    "a trigger that says it is a table's": (
        tampered(
            TRIGGER.format("AFTER INSERT"),
            "UPDATE sqlite_master SET type = 'table', tbl_name = 'o' WHERE name = 't'",
        ),
        "a trigger on a table of kvpersist|malformed",  # SQLite sees this one by itself
    ),
    "a trigger at setting aside": (
        tampered("CREATE TRIGGER t AFTER INSERT ON set_aside BEGIN SELECT 1; END"),
        "a trigger on a table of kvpersist",
    ),
    "a view to set aside into": (
        tampered("DROP TABLE set_aside", "CREATE VIEW set_aside AS SELECT 1"),
        "has not made.*VIEW",
    ),
    "another table to set aside into": (
        tampered("DROP TABLE set_aside", "CREATE TABLE Set_Aside (key PRIMARY KEY, value)"),
        "has not made",
    ),
    "a harmless trigger": (
        tampered("CREATE TRIGGER t AFTER INSERT ON documents BEGIN SELECT 1; END"),
        "a trigger on a table of kvpersist",
    ),
    "an index": (tampered("CREATE UNIQUE INDEX i ON documents (value)"), "an index 'i'"),
    "an index of an expression": (
        tampered("CREATE INDEX i ON documents (json_extract(value, '$.n'))"),
        "an index 'i'",
    ),
    "an index that says it is another's": (
        tampered(
            "CREATE INDEX i ON documents (abs(value))",
            "UPDATE sqlite_master SET tbl_name = 'o' WHERE name = 'i'",
        ),
        "an index 'i'|malformed",  # a newer SQLite sees it by itself
    ),
    "a function that nobody knows": (
        tampered(
            "UPDATE sqlite_master SET sql = 'CREATE TABLE documents (a AS (f(1)), b AS (c))'"
            " WHERE name = 'documents'",
        ),
        "has not made|malformed",
    ),
    "no schema number": (tampered("PRAGMA user_version = 0"), "schema 0 .*no kvpersist writes"),
}


@pytest.mark.parametrize(("make", "words"), TAMPERED.values(), ids=TAMPERED)
async def test_a_table_that_kvpersist_has_not_made_is_refused(
    bot_db: Path, make: Callable[[Path], None], words: str
) -> None:
    """Nothing that somebody put into the file runs; the short error says what was found."""
    make(bot_db)
    before = content(bot_db.parent)
    with pytest.raises(OpenError, match=words) as caught:
        await SqliteStore(bot_db).open()
    assert str(bot_db) in str(caught.value)
    assert len(str(caught.value)) < 1000
    before |= {"bot.db-lock": b""}  # it is kvpersist's file
    assert content(bot_db.parent) | {"bot.db-lock": b""} == before


async def test_another_encoding_is_refused(bot_db: Path) -> None:
    """Texts would be read as what they are not."""
    with closing(sqlite3.connect(bot_db)) as connection:
        connection.execute("PRAGMA encoding = 'UTF-16'")
        connection.executescript(SCHEMA)
    with pytest.raises(OpenError, match="the encoding UTF-16"):
        await SqliteStore(bot_db).open()


async def test_tables_of_others_may_be_beside_the_documents(bot_db: Path) -> None:
    """They stay as they are, whatever they say of the documents; so does a table that was moved."""
    make = tampered(
        "CREATE TABLE notes (chat REFERENCES documents ON DELETE CASCADE, note)",
        "CREATE TABLE log (note)",
        "CREATE TRIGGER t INSERT ON notes BEGIN INSERT INTO log VALUES (new.note); END",
        "CREATE INDEX i ON notes (abs(note))",
        "CREATE VIEW v AS SELECT load_extension(key) FROM documents",
        "INSERT INTO notes VALUES ('chat/1', 5)",
        "ALTER TABLE documents RENAME TO hidden",
        "ALTER TABLE hidden RENAME TO documents",
        "ANALYZE",
    )
    make(bot_db)
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"{}"})
    await store.apply({"chat/1": None})
    await store.close()
    with closing(sqlite3.connect(bot_db)) as connection:
        assert connection.execute("SELECT * FROM notes, log").fetchall() == [("chat/1", 5, 5)]


async def test_nothing_in_the_file_is_trusted(bot_db: Path) -> None:
    """Both connections are set so, whatever SQLite was built with."""
    store = SqliteStore(bot_db)
    await store.open()
    assert store._opened is not None
    for connection in (store._opened.writer, store._opened.reader):
        for pragma, value in {"trusted_schema": 0, "cell_size_check": 1, "foreign_keys": 0}.items():
            assert await connection.fetch(f"PRAGMA {pragma}") == [(value,)]
    await store.close()


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    """The error says that it is a directory and what to name instead."""
    with pytest.raises(OpenError, match="is a directory.*bot.db"):
        await SqliteStore(tmp_path).open()


async def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    """No folder is made by guessing; the error names the one that is missing."""
    with pytest.raises(OpenError, match=f"folder {tmp_path / 'data'} does not exist"):
        await SqliteStore(tmp_path / "data" / "bot.db").open()


@pytest.mark.parametrize(
    ("name", "words"),
    [("bot\0.db", "null .*; take the NUL out"), ("x" * 300, "too long: .*; give it.* a shorter")],
    ids=["NUL", "long"],
)
async def test_an_impossible_path_is_refused(name: str, words: str) -> None:
    """What the system cannot open is an error of ours too, and says what is wrong with the name."""
    with pytest.raises(OpenError, match=words):
        await SqliteStore(name).open()


@pytest.mark.parametrize("end", ["wal", "shm", "journal", "lock", "rescue"])
@pytest.mark.parametrize("target", ["mine", "missing"])
async def test_links_beside_the_file_are_not_followed(bot_db: Path, end: str, target: str) -> None:
    """What they lead to is neither changed nor made; the error says that it is a link."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.close()
    lock = bot_db.with_name("bot.db-lock")
    lock.unlink()
    mine = bot_db.with_name("mine")
    mine.write_bytes(b"mine")
    mine.chmod(0o644)
    link = bot_db.with_name(f"bot.db-{end}")
    link.symlink_to(target)
    before = {*bot_db.parent.iterdir()}
    with pytest.raises(OpenError, match=f"{link} is a symbolic link; see who"):
        await store.open()
    assert {*bot_db.parent.iterdir()} == before
    assert (mine.read_bytes(), mine.stat().st_mode & 0o777) == (b"mine", 0o644)


@pytest.mark.parametrize("is_locked", [False, True], ids=["no-lock", "lock"])
async def test_a_pipe_in_the_place_of_a_journal_is_not_waited_for(
    bot_db: Path, *, is_locked: bool
) -> None:
    """It is named, and left."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.close()
    if not is_locked:
        bot_db.with_name("bot.db-lock").unlink()
    os.mkfifo(bot_db.with_name("bot.db-journal"))
    with pytest.raises(OpenError, match=r"bot\.db-journal: it is no file; see who has made it"):
        await asyncio.wait_for(store.open(), 10)


async def test_of_a_journal_no_more_is_read_than_is_needed(bot_db: Path) -> None:
    """However large it is: 8 TiB of nothing, that SQLite takes for no journal."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.close()
    journal = bot_db.with_name("bot.db-journal")
    journal.touch()
    os.truncate(journal, 2**43)
    await store.open()
    await store.close()


def test_a_lock_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    """Also if it becomes one after it was looked at."""
    (tmp_path / "lock").symlink_to("missing")
    with pytest.raises(OSError, match="symbolic links"):
        FileLock(tmp_path / "lock")
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("what", ["file", "folder"])
def test_missing_permission_is_told(request: pytest.FixtureRequest, what: str) -> None:
    """An error of ours names the file or folder that may not be written."""
    # Not tmp_path: what root creates there is closed to the user that root becomes below.
    folder = Path(tempfile.mkdtemp(prefix="kvpersist-"))
    request.addfinalizer(lambda: shutil.rmtree(folder))
    (folder / "bot.db").touch()
    (folder / "bot.db").chmod(0o444 if what == "file" else 0o666)
    folder.chmod(0o777 if what == "file" else 0o555)
    told = run(
        "import asyncio, os; from kvpersist import SqliteStore, OpenError\n"
        "if os.getuid() == 0: os.setuid(65534)\n"
        f"try: asyncio.run(SqliteStore({str(folder / 'bot.db')!r}).open())\n"
        "except OpenError as error: print(error)"
    )
    expected = folder / "bot.db" if what == "file" else folder
    assert f"no permission to read and write {expected};" in told.stdout, told.stderr


async def test_a_file_system_without_write_ahead_logs_is_refused(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the log the promises would not hold."""
    monkeypatch.setattr("kvpersist.stores.sqlite_file._WAL", "PRAGMA journal_mode = DELETE")
    with pytest.raises(OpenError, match="without write-ahead logs"):
        await SqliteStore(bot_db).open()


async def test_a_damaged_header_is_an_error_of_ours(bot_db: Path) -> None:
    """A file that SQLite cannot read is told as such, and nothing stays open."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.close()
    data = bytearray(bot_db.read_bytes())
    data[100:4096] = b"\xff" * 3996
    bot_db.write_bytes(data)
    with pytest.raises(OpenError, match="cannot be opened: .*malformed"):
        await store.open()
    assert bot_db.read_bytes() == data


class TestOneOwner:
    """Two bots on one file would overwrite each other."""

    async def test_a_second_bot_is_refused_at_once(self, bot_db: Path) -> None:
        """The error names the file and says what to do; the first bot is not disturbed."""
        first, second = KVPersistence(bot_db), KVPersistence(bot_db)
        await first.get_user_data()
        with pytest.raises(StoreInUseError, match="another bot has .*bot.db open.*stop it"):
            await second.get_user_data()
        await first.update_user_data(5, {"n": 1})
        await first.flush()
        assert await second.get_user_data() == {5: {"n": 1}}
        await second.flush()

    async def test_another_name_of_the_file_is_the_same_file(self, bot_db: Path) -> None:
        """A symlink or a relative path does not deceive it."""
        link = bot_db.parent / "link.db"
        link.symlink_to(bot_db)
        store = SqliteStore(bot_db)
        await store.open()
        for name in (link, os.path.relpath(bot_db)):
            with pytest.raises(StoreInUseError):
                await SqliteStore(name).open()
        await store.close()

    @pytest.mark.parametrize("is_open", [True, False])
    async def test_a_file_of_two_names_is_refused(self, bot_db: Path, *, is_open: bool) -> None:
        """Each name has a log of its own: of what bots wrote at both, one part would be lost."""
        store = SqliteStore(bot_db)
        await store.open()
        if not is_open:
            await store.close()
        other = bot_db.with_name("other.db")
        other.hardlink_to(bot_db)
        for name in {other, bot_db} if not is_open else {other}:
            with pytest.raises(OpenError, match=f"{name} is one of 2 names .*-samefile {name}`"):
                await SqliteStore(name).open()
        assert {path.name for path in other.parent.glob("other.db*")} == {"other.db"}
        other.unlink()
        await store.open()
        await store.close()

    async def test_another_process_is_refused_until_it_is_killed(self, bot_db: Path) -> None:
        """No stale lock: right after the first was SIGKILLed the second may start."""
        code = (
            "import asyncio; from kvpersist import KVPersistence\n"
            f"persistence = KVPersistence({str(bot_db)!r})\n"
            "async def main():\n"
            "    await persistence.update_bot_data({'n': 1})\n"
            "    print('open', flush=True); input()\n"
            "asyncio.run(main())"
        )
        command = [sys.executable, "-c", code]
        with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as first:
            assert first.stdout is not None
            assert first.stdout.readline() == "open\n"
            persistence = KVPersistence(bot_db)
            with pytest.raises(StoreInUseError):
                await persistence.get_bot_data()
            with closing(sqlite3.connect(bot_db)) as reader:
                assert reader.execute("SELECT value FROM documents").fetchall() == [('{"n":1}',)]
            first.kill()
            first.wait()
        assert await persistence.get_bot_data() == {"n": 1}
        await persistence.flush()

    async def test_the_lock_goes_when_all_is_done_and_not_before(
        self, bot_db: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Or the next owner would open the file while its log is emptied, or SQLite closes it."""
        connection = await asyncio.to_thread(sqlite_file.open_file, str(bot_db), 0)
        index = connection._wal_index
        assert index is not None
        done: list[str] = []

        def note(owner: object, name: str, what: str) -> None:
            function = getattr(owner, name)

            def noted(*arguments: object) -> object:
                with pytest.raises(StoreInUseError):
                    sqlite_file._take_ownership(bot_db)
                result = function(*arguments)
                done.append(what)
                return result

            monkeypatch.setattr(owner, name, noted)

        note(sqlite_file, "empty_log", "log emptied")
        note(index, "close", "closed by SQLite")  # which comes right before it
        await asyncio.to_thread(connection.close)
        assert done == ["log emptied", "closed by SQLite"]
        await asyncio.to_thread(lambda: sqlite_file._take_ownership(bot_db).release())

    async def test_a_lock_that_cannot_be_made_is_no_other_owner(self, bot_db: Path) -> None:
        """What stands in the lock's place is told as what it is."""
        (bot_db.parent / "bot.db-lock").mkdir()
        with pytest.raises(OpenError, match="cannot be opened") as caught:
            await SqliteStore(bot_db).open()
        assert not isinstance(caught.value, StoreInUseError)


def test_a_loop_that_ends_while_the_file_is_opened_leaves_nothing(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread that opens the file, and finds nobody waiting any more, closes it."""
    may_open, has_closed = threading.Event(), threading.Event()

    class Noted(sqlite3.Connection):
        def close(self) -> None:
            super().close()
            has_closed.set()

    def open_late(path: str, *_: object) -> sqlite3.Connection:
        assert may_open.wait(60)
        return sqlite3.connect(path, factory=Noted, check_same_thread=False)

    async def give_up() -> None:
        opening = asyncio.ensure_future(SqliteStore(bot_db).open())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        opening.cancel()

    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite.open_file", open_late)
        asyncio.run(give_up())
        may_open.set()
        assert has_closed.wait(60)


async def test_a_file_that_cannot_be_opened_for_reading_is_given_back(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection for writing, which was open already, is closed, and the lock released."""
    with pytest.raises(OpenError, match="cannot be opened"):
        await asyncio.to_thread(sqlite_file.open_reader, str(bot_db), 0)

    def fail(*_: object) -> sqlite3.Connection:
        raise OpenError("too many open files")

    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite.open_reader", fail)
        with pytest.raises(OpenError, match="too many"):
            await SqliteStore(bot_db).open()
    store = SqliteStore(bot_db)
    await store.open()
    await store.close()


async def test_an_opening_that_fails_after_it_was_cancelled_is_over(
    bot_db: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for the error any more, and nobody is told."""
    may_fail = threading.Event()

    def fail_late(*_: object) -> sqlite3.Connection:
        assert may_fail.wait(60)
        raise OpenError("too late")

    before = asyncio.all_tasks()
    with monkeypatch.context() as patch:
        patch.setattr("kvpersist.stores.sqlite.open_file", fail_late)
        opening = asyncio.ensure_future(SqliteStore(bot_db).open())
        for _ in range(3):
            await asyncio.sleep(0)
        (thread,) = (each for each in threading.enumerate() if each.name == "kvpersist:daemon")
        for task in asyncio.all_tasks() - before:
            task.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        may_fail.set()
        await asyncio.to_thread(thread.join)
    await asyncio.sleep(0)


class TestForgottenClose:
    """A bot that dies before flush."""

    BOT = (
        "import asyncio, threading; from kvpersist import KVPersistence\n"
        "persistence = KVPersistence({path!r})\n"
        "async def main():\n"
        "    await persistence.update_bot_data({{'n': 1}})\n"
        "{end}\n"
        "asyncio.run(main())"
    )

    @pytest.mark.parametrize(
        ("end", "code"), [("", 0), ("    raise SystemExit(3)", 3), ("    1 / 0", 1)]
    )
    def test_the_process_exits(self, bot_db: Path, end: str, code: int) -> None:
        """No thread keeps the process alive, however its main function ends."""
        ended = run(self.BOT.format(path=str(bot_db), end=end))
        assert ended.returncode == code
        with closing(sqlite3.connect(bot_db)) as reader:
            assert json.loads(*reader.execute("SELECT value FROM documents").fetchone()) == {"n": 1}

    def test_nothing_is_said_at_exit_by_default(self, bot_db: Path) -> None:
        """Whoever does not ask for ResourceWarnings sees none."""
        command = [sys.executable, "-c", self.BOT.format(path=str(bot_db), end="")]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
        assert ended.stderr == ""

    async def test_a_store_that_is_collected_open_is_told(self, bot_db: Path) -> None:
        """A ResourceWarning names the file and what should have been called."""
        store = SqliteStore(bot_db)
        await store.open()
        with pytest.warns(ResourceWarning, match=f"{bot_db}.*was not closed: await Application"):
            store.__del__()  # when the collector would come is anybody's guess
        await store.close()
        store.__del__()

    async def test_a_store_that_is_lost_at_exit_is_told(self, bot_db: Path) -> None:
        """The same warning, for whoever asks for such warnings."""
        code = self.BOT.format(path=str(bot_db), end="") + "\ndel persistence"
        assert "was not closed: await Application.shutdown()" in run(code).stderr


def test_a_path_shows_in_the_repr() -> None:
    """A log that shows a store shows which."""
    assert repr(SqliteStore("/data/bot.db")) == "SqliteStore('/data/bot.db')"


@pytest.mark.parametrize(
    ("store", "words"),
    [
        ("", "is empty"),
        ("~/bot.db", "expanduser"),
        (":memory:", "MemoryStore"),
        ("mysql://localhost/bot", "mysql URLs are not known"),
        ("file:bot.db?mode=ro", "file URLs are not known"),
        (b"bot.db", "a str or a Path"),
        (None, "the methods of kvpersist.Store"),
        (5, "the methods of kvpersist.Store"),
        (MemoryStore, "this is <class .*MemoryStore"),
    ],
)
def test_what_is_no_store_is_refused_at_once(store: object, words: str) -> None:
    """A mistake in the constructor's first argument is told before any file is made."""
    with pytest.raises(ConfigurationError, match=words):
        KVPersistence(store)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "wrong",
    [
        {"update_interval": None},
        {"update_interval": "1"},
        {"update_interval": 0},
        {"update_interval": float("nan")},
        {"store_data": {"chat_data": True}},
        {"context_types": dict},
    ],
    ids=repr,
)
def test_other_wrong_arguments_are_refused_at_once(wrong: dict[str, object]) -> None:
    """Each of them is named, with what was given."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        KVPersistence("bot.db", **wrong)  # type: ignore[call-overload]


async def test_a_file_of_before_rows_were_set_aside_is_opened(bot_db: Path) -> None:
    """What it lacks is added; its rows are as they were."""
    store = SqliteStore(bot_db)
    await store.open()
    await store.apply({"chat/1": b"{}"})
    await store.close()
    with closing(sqlite3.connect(bot_db)) as connection:
        connection.execute("DROP TABLE set_aside")
    await store.open()
    await store.set_aside([("chat/1", b"{}", "no reason")])
    assert await store.read(["chat/1"]) == {}
    await store.close()
