"""Storage engines: one protocol, one module per engine."""

from kvpersist.stores.memory import MemoryStore
from kvpersist.stores.sqlite import SqliteStore
from kvpersist.stores.store import Row, Store

__all__ = ["MemoryStore", "Row", "SqliteStore", "Store"]
