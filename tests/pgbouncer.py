"""PgBouncer in front of a PostgreSQL server: the program that `pgbouncer.sh` has found."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from postgres_server import AS_USER, PASSWORD, USER, PostgresServer, free_port

_SETTINGS = """
    [databases]
    * = host=127.0.0.1 port={server} user=postgres password={password}
    [pgbouncer]
    listen_addr = 127.0.0.1
    listen_port = {port}
    unix_socket_dir =
    auth_type = scram-sha-256
    auth_file = {folder}/users
    pool_mode = transaction
"""


class PgBouncer:
    """One, in transaction mode, on 127.0.0.1, for the superuser of a server.

    Args:
        server: Where it connects.
        certificate: PEM of its certificate, and of the key to that: it wants TLS from its clients.

    Attributes:
        port: Where it listens.
    """

    def __init__(
        self, server: PostgresServer, certificate: tuple[bytes, bytes] | None = None
    ) -> None:
        self.port = free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="kvpersist-pgbouncer-"))
        settings = _SETTINGS.format(
            server=server.port, password=PASSWORD, port=self.port, folder=self._folder
        )
        if certificate is not None:
            for name, pem in zip(("cert", "key"), certificate, strict=True):
                (self._folder / name).write_bytes(pem)
                settings += f"client_tls_{name}_file = {self._folder}/{name}\n"
            settings += "client_tls_sslmode = require\n"
        lines = (line.strip() for line in settings.splitlines())
        (self._folder / "ini").write_text("\n".join(lines))
        (self._folder / "users").write_text(f'"postgres" "{PASSWORD}"\n')
        if USER is not None:
            for path in (self._folder, *self._folder.iterdir()):
                shutil.chown(path, USER)
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        program = Path(sys.prefix, "bin", "pgbouncer")
        assert program.exists(), f"no PgBouncer: sh tests/pgbouncer.sh {program}"
        with (self._folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [*AS_USER, program, "-q", self._folder / "ini"],
                stdout=log, stderr=log, cwd=self._folder,
            )  # fmt: skip
        end = time.monotonic() + 60
        while not self._is_ready():
            if process.poll() is not None or time.monotonic() > end:
                raise RuntimeError((self._folder / "log").read_text())
        return process

    def _is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            return False
        return True

    def remove(self) -> None:
        """End it and delete all that it has."""
        self._process.terminate()
        self._process.wait()
        shutil.rmtree(self._folder)
