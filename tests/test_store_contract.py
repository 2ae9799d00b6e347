"""The public conformance suite, on the engines that come with kvpersist."""

from __future__ import annotations

from pathlib import Path

import pytest
from postgres_server import PostgresServer
from storages import PostgresStorage

from kvpersist import MemoryStore, SqliteStore
from kvpersist.stores.postgres import PostgresStore
from kvpersist.testing import StoreContract


class TestSqliteStore(StoreContract):
    def make_store(self, folder: Path) -> SqliteStore:
        return SqliteStore(folder / "bot.db")


class TestMemoryStore(StoreContract):
    def make_store(self, folder: Path) -> MemoryStore:
        return self._stores.setdefault(folder, MemoryStore())

    _stores: dict[Path, MemoryStore] = {}  # noqa: RUF012  one for each test's folder


class TestPostgresStore(StoreContract):
    @pytest.fixture(autouse=True)
    def _storage(self, postgres: PostgresServer) -> None:
        self.storage = PostgresStorage(postgres)

    def make_store(self, folder: Path) -> PostgresStore:  # noqa: ARG002  each test has a schema
        return self.storage.store()


class TestPostgresStoreOfOneConnectionWithoutPreparedStatements(TestPostgresStore):
    def make_store(self, folder: Path) -> PostgresStore:  # noqa: ARG002  each test has a schema
        return self.storage.store(pool_size=1, statement_cache_size=0)
