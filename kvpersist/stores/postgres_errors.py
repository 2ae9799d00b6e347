"""What asyncpg raises, and what that means."""

from __future__ import annotations

import asyncio
from typing import Final

import asyncpg

FAILURES: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncio.TimeoutError,  # another class than TimeoutError until Python 3.11
    OSError,
    ValueError,
)
LOST: Final = (
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncio.TimeoutError,
    OSError,
)
"""After these another connection may do."""
_FAULTS_OF_ROWS: Final = (
    asyncpg.DataError,
    asyncpg.IntegrityConstraintViolationError,
    asyncpg.PLPGSQLError,
    asyncpg.ProgramLimitExceededError,
    ValueError,
)


def is_fault_of_rows(error: BaseException) -> bool:
    """Whether other rows may be written; else none can be now, whichever it is."""
    return isinstance(error, _FAULTS_OF_ROWS) and not isinstance(error, LOST)


def words(error: BaseException) -> str:
    """Return what an error says."""
    if isinstance(error, asyncio.TimeoutError):  # which says nothing
        return "no answer, or no free connection, within the time limit; see `timeout`"
    return str(error) or type(error).__name__
