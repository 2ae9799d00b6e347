"""The public conformance suite, on the engines that come with kvpersist."""

from __future__ import annotations

from pathlib import Path

from kvpersist import MemoryStore, SqliteStore
from kvpersist.testing import StoreContract


class TestSqliteStore(StoreContract):
    def make_store(self, folder: Path) -> SqliteStore:
        return SqliteStore(folder / "bot.db")


class TestMemoryStore(StoreContract):
    def make_store(self, folder: Path) -> MemoryStore:
        return self._stores.setdefault(folder, MemoryStore())

    _stores: dict[Path, MemoryStore] = {}  # noqa: RUF012  one for each test's folder
