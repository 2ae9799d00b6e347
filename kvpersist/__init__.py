"""Write-through persistence for python-telegram-bot: every document is one JSON row."""

from kvpersist.application import WriteThroughApplication, application_builder
from kvpersist.codec import Codec, Named
from kvpersist.errors import (
    BackupError,
    BadRowsError,
    ConfigurationError,
    ConflictError,
    DecodeError,
    DocumentError,
    EncodeError,
    KVPersistError,
    LockError,
    NewerSchemaError,
    NotAStoreError,
    NotInMemoryError,
    OpenError,
    ReadError,
    RowsError,
    StoreError,
    StoreInUseError,
    TransferError,
    UnavailableError,
    WriteError,
)
from kvpersist.persistence import KVPersistence
from kvpersist.stats import Stats
from kvpersist.stores import MemoryStore, SqliteStore, Store
from kvpersist.workers import WorkerApplication

__all__ = [
    "BackupError",
    "BadRowsError",
    "Codec",
    "ConfigurationError",
    "ConflictError",
    "DecodeError",
    "DocumentError",
    "EncodeError",
    "KVPersistError",
    "KVPersistence",
    "LockError",
    "MemoryStore",
    "Named",
    "NewerSchemaError",
    "NotAStoreError",
    "NotInMemoryError",
    "OpenError",
    "ReadError",
    "RowsError",
    "SqliteStore",
    "Stats",
    "Store",
    "StoreError",
    "StoreInUseError",
    "TransferError",
    "UnavailableError",
    "WorkerApplication",
    "WriteError",
    "WriteThroughApplication",
    "application_builder",
]
