"""What every test has: nothing may block the event loop, and nothing may be left behind."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import pytest_asyncio
from blockbuster import BlockBuster, blockbuster_ctx
from command import Make, make
from hypothesis import HealthCheck, settings
from pgbouncer import PgBouncer
from postgres_server import PostgresServer
from storages import (
    KV,
    MemoryStorage,
    PickleStorage,
    PostgresStorage,
    SqliteStorage,
    Storage,
)
from stores import WatchedStore

from kvpersist import MemoryStore
from kvpersist import application as application_module

settings.register_profile(
    "kvpersist",
    deadline=None,  # time never decides a test
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("kvpersist")


_OF_THE_COMMAND = ("test_cli_", "test_migrate_", "test_transfer_")
_PARSE = "_parse_connect_dsn_and_args"


@pytest.fixture(autouse=True)
def blockbuster(request: pytest.FixtureRequest) -> Iterator[BlockBuster | None]:
    """Fail a test whose event loop is blocked by a call of kvpersist's.

    The command has its event loop to itself, and may block it.
    """
    if request.path.name.startswith(_OF_THE_COMMAND):
        yield None
        return
    with blockbuster_ctx("kvpersist") as blockbuster:
        # PTB's constructor looks where it was called from, also for a subclass of ours.
        for name in ("os.path.abspath", "os.readlink", "os.stat", "os.getcwd", "os.lstat"):
            if name in blockbuster.functions:
                blockbuster.functions[name].can_block_in("telegram/ext/_application.py", "__init__")
                # asyncpg looks for certificates in the user's home when it connects.
                blockbuster.functions[name].can_block_in("asyncpg/connect_utils.py", _PARSE)
        yield blockbuster


@pytest.fixture
def bot_db(tmp_path: Path) -> Path:
    """A path where no file is yet."""
    return tmp_path / "bot.db"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run in a folder from which Python would not import the source: the wheel is tested."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test that leaves a thread or an open file.

    Looking for them takes longer than a test of the codec, of which there are hundreds, and which
    does no I/O.
    """
    if request.path.parent.name == "codec":
        yield
        return
    threads, files = set(threading.enumerate()), _open_files()
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - threads:
        thread.join(10)  # aiosqlite's tells that it has closed the file just before it ends
        assert not thread.is_alive(), thread
    assert not _open_files() - files


@pytest.fixture(autouse=True)
def no_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have a slow machine write what belongs together at once; tests of slices ask for them."""
    monkeypatch.setattr(application_module, "_SLICE", 3600.0)


@pytest_asyncio.fixture(autouse=True)
async def no_tasks_left() -> AsyncIterator[None]:
    """Fail a test that leaves a task, or a retry of group commit."""
    yield
    loop = asyncio.get_running_loop()
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not {task for task in left if not task.done()}
    timers: list[asyncio.TimerHandle] = getattr(loop, "_scheduled", [])
    assert not [timer for timer in timers if not timer.cancelled() and "GroupCommit" in repr(timer)]


def _open_files() -> Counter[str]:
    folder = Path("/proc/self/fd")
    links = (str(descriptor.readlink()) for descriptor in folder.iterdir() if descriptor.exists())
    # A wal-index that another connection of the test kept alive: see stores/sqlite_watch.py.
    return Counter(link for link in links if ".db" in link and not link.endswith("-shm (deleted)"))


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """Give a PostgreSQL server, one for all tests of this process."""
    server = PostgresServer()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def pgbouncer(postgres: PostgresServer) -> Iterator[PgBouncer]:
    """Give a PgBouncer in transaction mode, before the server that all tests share."""
    pooler = PgBouncer(postgres)
    yield pooler
    pooler.remove()


@pytest.fixture(params=["sqlite", "memory", "postgres", "pickle"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """Give what lasts between two runs, in each way in which kvpersist and PTB can keep it."""
    return PickleStorage(tmp_path) if request.param == "pickle" else _kv(request, tmp_path)


@pytest.fixture(params=["sqlite", "memory", "postgres"])
def kv(request: pytest.FixtureRequest, tmp_path: Path) -> KV:
    """Give what lasts between two runs, with rows to look at."""
    return _kv(request, tmp_path)


@pytest.fixture(params=["sqlite", "postgres"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Give what makes a store with rows for the command, in each engine that lasts."""
    return make(request, tmp_path, request.param)


def _kv(request: pytest.FixtureRequest, tmp_path: Path) -> KV:
    if request.param == "postgres":
        return PostgresStorage(request.getfixturevalue("postgres"))
    return SqliteStorage(tmp_path) if request.param == "sqlite" else MemoryStorage()


@pytest.fixture
def store() -> WatchedStore:
    """A store in memory that can be watched, held up and broken."""
    return WatchedStore(MemoryStore())


@pytest.fixture(params=[False, True], ids=["shutdown", "crash"])
def crash(request: pytest.FixtureRequest) -> bool:
    """Tell how the first run ends."""
    return bool(request.param)
