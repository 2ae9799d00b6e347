"""Write-through persistence for python-telegram-bot: every document is one JSON row."""

from kvpersist.application import WriteThroughApplication, application_builder
from kvpersist.codec import Codec, Named
from kvpersist.errors import (
    BackupError,
    BadRowsError,
    ConfigurationError,
    DecodeError,
    DocumentError,
    EncodeError,
    KVPersistError,
    NewerSchemaError,
    NotAStoreError,
    NotInMemoryError,
    OpenError,
    ReadError,
    StoreError,
    StoreInUseError,
    TransferError,
    UnavailableError,
    WriteError,
)
from kvpersist.persistence import KVPersistence
from kvpersist.stores import MemoryStore, SqliteStore, Store

__all__ = [
    "BackupError",
    "BadRowsError",
    "Codec",
    "ConfigurationError",
    "DecodeError",
    "DocumentError",
    "EncodeError",
    "KVPersistError",
    "KVPersistence",
    "MemoryStore",
    "Named",
    "NewerSchemaError",
    "NotAStoreError",
    "NotInMemoryError",
    "OpenError",
    "ReadError",
    "SqliteStore",
    "Store",
    "StoreError",
    "StoreInUseError",
    "TransferError",
    "UnavailableError",
    "WriteError",
    "WriteThroughApplication",
    "application_builder",
]
