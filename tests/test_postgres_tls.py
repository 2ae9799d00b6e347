"""TLS on the way to PostgreSQL: who is at the other end is checked as the URL says.

The PostgreSQL that the tests run was built without TLS; PgBouncer, in front of it, speaks it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme
from pgbouncer import PgBouncer
from postgres_server import PASSWORD, PostgresServer

from kvpersist import KVPersistence, OpenError, WriteError
from kvpersist.stores.postgres import PostgresStore

AUTHORITY = trustme.CA()


@contextmanager
def speaking_tls(postgres: PostgresServer, name: str) -> Iterator[str]:
    """Give the URL of a server that says that it is `name`."""
    issued = AUTHORITY.issue_cert(name)
    chain = b"".join(pem.bytes() for pem in issued.cert_chain_pems)
    server = PgBouncer(postgres, (chain, issued.private_key_pem.bytes()))
    try:
        yield postgres.url(port=server.port)
    finally:
        server.remove()


@pytest.fixture(scope="module")
def url(postgres: PostgresServer) -> Iterator[str]:
    """Give the URL of a server that is who it says."""
    with speaking_tls(postgres, "127.0.0.1") as url:
        yield url


def root(folder: Path, authority: trustme.CA = AUTHORITY) -> str:
    """Return the option that names whom to believe."""
    path = folder / "root.pem"
    path.write_bytes(authority.cert_pem.bytes())
    return f"sslrootcert={path}"


async def connect(url: str) -> str:
    """Have a bot use a database; return which TLS its connection spoke."""
    store = PostgresStore(url, schema="tls", statement_cache_size=0)
    await store.open()
    await store.apply({"bot": b"1"})
    assert await store.read(["bot"]) == {"bot": b"1"}
    assert store._opened is not None
    connection = store._opened.lock._connection
    assert connection is not None
    spoken = connection._transport.get_extra_info("ssl_object")  # type: ignore[attr-defined]
    await store.close()
    return str(spoken.version())


async def test_the_server_is_who_the_url_says(url: str, tmp_path: Path) -> None:
    """With ``verify-full`` and the root of its certificate a bot writes and reads."""
    assert (await connect(f"{url}?sslmode=verify-full&{root(tmp_path)}")).startswith("TLS")


async def test_tls_is_spoken_where_it_is_offered(url: str) -> None:
    """Without any option; nobody is checked then."""
    assert (await connect(url)).startswith("TLS")


async def test_a_server_may_insist(url: str) -> None:
    """Its words are in the error."""
    with pytest.raises(OpenError, match="SSL required"):
        await connect(f"{url}?sslmode=disable")


async def test_a_stranger_is_refused(
    url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """One whose certificate another has signed. It hears no password, nor does anybody else."""
    caplog.set_level(logging.DEBUG)
    stranger = f"{url}?sslmode=verify-full&{root(tmp_path, trustme.CA())}"
    persistence = KVPersistence(stranger)
    with pytest.raises(OpenError, match="certificate verify failed") as caught:
        await persistence.get_bot_data()
    with pytest.raises(WriteError, match="certificate verify failed") as refused:
        await persistence.update_bot_data({"n": 1})
    with pytest.raises(WriteError, match="bot"):
        await persistence.flush()
    shown = [repr(persistence), caplog.text, repr(refused.value)]
    error: BaseException | None = caught.value
    while error is not None:
        shown += [repr(error), str(error)]
        error = error.__cause__ or error.__context__
    assert PASSWORD not in "".join(shown)


async def test_another_server_of_the_same_authority_is_refused(
    postgres: PostgresServer, tmp_path: Path
) -> None:
    """By ``verify-full``; ``verify-ca`` does not look at the name."""
    with speaking_tls(postgres, "elsewhere.example") as url:
        with pytest.raises(OpenError, match="127.0.0.1"):
            await connect(f"{url}?sslmode=verify-full&{root(tmp_path)}")
        assert (await connect(f"{url}?sslmode=verify-ca&{root(tmp_path)}")).startswith("TLS")


async def test_a_root_that_is_none_is_said_to_be_none(url: str, tmp_path: Path) -> None:
    """Not that the URL cannot be read."""
    (tmp_path / "root.pem").write_text("no certificate")
    with pytest.raises(OpenError, match="certificate"):
        await connect(f"{url}?sslmode=verify-full&sslrootcert={tmp_path}/root.pem")
