"""Every error that kvpersist raises, in one tree.

::

    KVPersistError
    ├── ConfigurationError        an argument that cannot work (also a ValueError)
    ├── NotInMemoryError          a document that was reached for before it was loaded
    ├── TransferError             data on its way in or out that is not what it should be
    ├── DocumentError             one row, and the path inside it
    │   ├── EncodeError           a value that cannot be stored exactly
    │   └── DecodeError           a stored row that cannot be read
    │       └── BadRowsError      several of them
    └── StoreError                the store as a whole
        ├── OpenError             it cannot be opened
        │   ├── StoreInUseError   another bot has it open
        │   ├── NotAStoreError    the file is not one of kvpersist's
        │   └── NewerSchemaError  a newer kvpersist has written it
        ├── ReadError             rows could not be read
        ├── BackupError           no copy was made
        └── RowsError             certain rows
            ├── LockError         another worker has them
            ├── ConflictError     somebody else has written them meanwhile
            └── WriteError        they could not be written; they are kept and tried again
                └── UnavailableError  the store takes no rows at all now, whichever they are
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

_MOST_SHOWN = 10
_WITHOUT = 'Or start without: KVPersistence(..., on_bad_row="set-aside")'


class KVPersistError(Exception):
    """The base of every exception that kvpersist raises."""


class ConfigurationError(KVPersistError, ValueError):
    """An argument that cannot work; raised before any file is touched."""


class NotInMemoryError(KVPersistError):
    """A document of ``lazy=True`` or ``shared=True`` was reached for while it was not in memory.

    Raised by whatever is done with ``application.chat_data[id]`` then. The row was not touched.

    Attributes:
        scope: ``chat`` or ``user``.
        document_id: Of which one.
    """

    def __init__(self, scope: str, document_id: int) -> None:
        super().__init__(scope, document_id)
        self.scope = scope
        self.document_id = document_id

    def __str__(self) -> str:
        return (
            f"{self.scope}/{self.document_id} is not in memory; first "
            f"`await application.persistence.load({self.scope!r}, {self.document_id})`, or look "
            f"through all with `async for ... in application.persistence.documents({self.scope!r})`"
            f"; with shared=True, outside of an update, `async with persistence.edit("
            f"{self.scope!r}, {self.document_id})`"
        )


class TransferError(KVPersistError):
    """What is moved in or out is not what it should be. Nothing was written.

    Raised by what is behind ``kvpersist import`` and ``kvpersist migrate``.
    """


class DocumentError(KVPersistError):
    """One document is at fault.

    Attributes:
        reason: What was found and what to do about it.
        key: The row, for example ``chat/5``; empty while the codec, which knows no keys, raises it.
        path: The place inside the document, for example ``["cart"][2]``; empty for the whole of it.
    """

    def __init__(self, reason: str, *, key: str = "", path: str = "") -> None:
        super().__init__(reason, key, path)
        self.reason = reason
        self.key = key
        self.path = path

    @property
    def scope(self) -> str:
        """Which one it is of ``chat``, ``user``, ``bot``, ``callback`` and ``conversation``."""
        return self.key.partition("/")[0]

    def __str__(self) -> str:
        place = " → ".join(part for part in (self.key, self.path) if part)
        return _printable(f"{place}: {self.reason}" if place else self.reason)


class EncodeError(DocumentError):
    """A value that cannot be stored so that it comes back the same.

    Raised by the ``update_*`` calls for the one document concerned. Its row stays as it was.
    """


class DecodeError(DocumentError):
    """A row that cannot be read. Raised by the ``get_*`` and ``refresh_*`` calls.

    Attributes:
        store: Where the row is, such as the path of the file, in an error that ends a start.
    """

    store = ""

    def __str__(self) -> str:
        said = super().__str__()
        return f"{self.store}: {said}. {_WITHOUT}" if self.store else said

    @property
    def errors(self) -> tuple[DecodeError, ...]:
        """One for each row, which is this one alone but for `BadRowsError`."""
        return (self,)


class BadRowsError(DecodeError):
    """Several rows cannot be read. Raised at the start, for all of them, of whatever kind.

    Its `key`, `path` and `reason` are those of the first; `errors` has all of them.
    """

    def __init__(self, errors: Iterable[DecodeError]) -> None:
        self._errors = tuple(errors)
        first = self._errors[0]
        super().__init__(first.reason, key=first.key, path=first.path)

    @property
    def errors(self) -> tuple[DecodeError, ...]:
        """One for each row."""
        return self._errors

    def __str__(self) -> str:
        lines = [f"- {error}" for error in self.errors[:_MOST_SHOWN]]
        if (more := len(self.errors) - _MOST_SHOWN) > 0:
            lines.append(f"- and {more} more: see the attribute errors")
        place = f"{self.store}: " if self.store else ""
        return "\n".join([f"{place}{len(self.errors)} rows cannot be read", *lines, _WITHOUT])


class StoreError(KVPersistError):
    """A store could not do what it was asked. Engines raise its subclasses."""


class OpenError(StoreError):
    """A store cannot be opened: no such folder, no permission, a directory, a broken file."""


class StoreInUseError(OpenError):
    """Another bot has this store open; two would overwrite each other."""


class NotAStoreError(OpenError):
    """The file belongs to another program. It was left as it is."""


class NewerSchemaError(OpenError):
    """A newer kvpersist has written this store. It was left as it is."""


class ReadError(StoreError):
    """Rows could not be read; this says nothing about whether they exist."""


class BackupError(StoreError):
    """No copy was made, and nothing was left behind. Raised by ``backup``.

    The copy's name is taken, its folder is missing, the disk is full, the file that is to be copied
    is damaged, ….
    """


class RowsError(StoreError):
    """Certain rows are at fault. Raised as one of its subclasses.

    Attributes:
        keys: Which, in no particular order.
        reason: What was found, and what to do about it.
    """

    def __init__(self, reason: str, *, keys: Iterable[str] = ()) -> None:
        self.keys = tuple(keys)
        super().__init__(reason, self.keys)
        self.reason = reason

    def __str__(self) -> str:
        return f"{some_of(self.keys)}: {self.reason}" if self.keys else self.reason


class LockError(RowsError):
    """With ``shared=True``: another worker has had documents for too long, or waits for these.

    Raised by ``load``, ``lock`` and ``edit``, and for an update by ``handle_update``. Nothing of
    the update or `edit` was written.
    """


class ConflictError(RowsError):
    """With ``shared=True``: documents were written by somebody else since they were read.

    By a program that locks nothing, or after this worker had lost its locks, as when the server
    was restarted, or its handlers took too long. Raised as `LockError` is. Nothing was written, and
    nothing overwritten.
    """


class WriteError(RowsError):
    """Rows could not be written.

    Raised by the ``update_*`` and ``drop_*`` calls and by ``flush``, which names all rows that are
    waiting. When one of those raises it the values are kept: they are tried again after a while,
    with the next write and by ``flush``, unless a newer value of the same row takes their place.
    ``flush`` leaves them beside the file, if it can, and says so; the next start writes them.
    Engines raise it too, when nothing of a transaction was written.

    Attributes:
        keys: The rows, in no particular order.
        reason: What was found.
    """


class UnavailableError(WriteError):
    """The store takes no rows at all now: it is locked, or gone. Raised by engines.

    It makes no sense then to try the rows one by one, as after any other WriteError.
    """


def some_of(keys: Sequence[str]) -> str:
    """Name the first ten rows, also those that are no Unicode, and say how many more there are."""
    more = len(keys) - _MOST_SHOWN
    shown = _printable(", ".join(keys[:_MOST_SHOWN]))
    return f"{shown}{f' and {more} more' if more > 0 else ''}"


def _printable(text: str) -> str:
    return text.encode(errors="backslashreplace").decode()
