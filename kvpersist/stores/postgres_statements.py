"""The statements of the PostgreSQL engine; ``{schema}`` stands for the quoted name of the schema.

All that write begin with the same fence. Whoever opens the schema writes its name there. A
statement of one that was the owner once, or one that its sender had given up on and that the server
runs late, finds no row there, and so writes nothing. FOR SHARE makes who takes over wait for it.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from typing import Final

from kvpersist.stores.store import BadRow

TAKE_OVER: Final = (
    "UPDATE {schema}.kvpersist_schema SET owner = $1, epoch = epoch + 1 RETURNING epoch"
)
BEGIN_EPOCH: Final = (
    "UPDATE {schema}.kvpersist_schema SET epoch = epoch + 1 WHERE owner = $1 RETURNING epoch"
)

APPLY: Final = """
    WITH mine AS (
        SELECT 1 FROM {schema}.kvpersist_schema WHERE owner = $1 AND epoch = $2 FOR SHARE
    ),
    removed AS (
        DELETE FROM {schema}.documents
        WHERE key = ANY($3::text[]) AND EXISTS (SELECT 1 FROM mine)
    ),
    put AS (
        INSERT INTO {schema}.documents AS old (key, value, version, updated_at)
        SELECT new.key, new.value, 1, $6
        FROM mine, unnest($4::text[], $5::json[]) AS new (key, value)
        ON CONFLICT (key) DO UPDATE SET
            value = excluded.value, version = old.version + 1, updated_at = excluded.updated_at
    )
    SELECT count(*) FROM mine
"""
SET_ASIDE: Final = """
    WITH mine AS (
        SELECT 1 FROM {schema}.kvpersist_schema WHERE owner = $1 AND epoch = $2 FOR SHARE
    ),
    moved AS (
        DELETE FROM {schema}.documents AS old
        USING mine, unnest($3::text[], $4::text[], $5::text[]) AS bad (key, value, reason)
        WHERE old.key = bad.key AND old.value::text = bad.value
        RETURNING old.key, old.value, old.version, old.updated_at, bad.reason
    ),
    kept AS (
        INSERT INTO {schema}.set_aside (key, value, version, updated_at, reason, set_aside_at)
        SELECT key, value, version, updated_at, reason, $6 FROM moved
    )
    SELECT (SELECT count(*) FROM mine), ARRAY(SELECT key FROM moved)
"""

BEGIN: Final = "BEGIN ISOLATION LEVEL READ COMMITTED"
COMMIT: Final = "COMMIT AND CHAIN"
ROLLBACK: Final = "ROLLBACK AND CHAIN"
LOCK_NAME: Final = "kvpersist_lock_1"
"""The function that locks and reads. One that does anything else has another number.

Else the workers of two versions would replace each other's, while one after the other is updated.
"""
LOCK: Final = "SELECT key, value, version FROM {schema}.{name}($1, $2, $3, $4, $5, $6)".replace(
    "{name}", LOCK_NAME
)
STATE: Final = "({row}.updated_at % 2147483648 * 4294967296 + {row}.xmin::text::bigint)"
"""What tells whether a row was written since: the transaction that has written it, and when.

Not the column ``version``: programs that edit rows by hand need not count there, and one that
deletes a row and inserts it begins to count anew. The time beside the transaction's number, since a
server gives that to another one if it has lost the first in a crash.
"""
WRITE: Final = """
    WITH given AS (
        SELECT * FROM unnest($1::text[], $2::json[], $3::bigint[]) AS given (key, value, version)
    ),
    removed AS (
        DELETE FROM {schema}.documents AS old USING given
        WHERE old.key = given.key AND given.value IS NULL
          AND {state} = given.version
        RETURNING old.key
    ),
    replaced AS (
        UPDATE {schema}.documents AS old
        SET value = given.value, version = old.version + 1, updated_at = $4
        FROM given
        WHERE old.key = given.key AND given.value IS NOT NULL
          AND {state} = given.version
        RETURNING old.key
    ),
    added AS (
        INSERT INTO {schema}.documents (key, value, version, updated_at)
        SELECT key, value, 1, $4 FROM given WHERE value IS NOT NULL AND version = 0
        ON CONFLICT (key) DO NOTHING
        RETURNING key
    )
    SELECT pg_current_xact_id()::text, ARRAY(
        SELECT key FROM removed UNION ALL SELECT key FROM replaced UNION ALL SELECT key FROM added
    )
""".replace("{state}", STATE.format(row="old"))
"""It has no fence, as `APPLY` has, but the state that each row must be in; 0 for a new one."""
SETTLE: Final = """
    SELECT pg_xact_status($1::text::xid8), count(*) FROM {schema}.documents AS old
    WHERE key = ANY($2::text[]) AND {state} = $3
""".replace("{state}", STATE.format(row="old"))
CONFIRM: Final = "SELECT pg_logical_emit_message(true, 'kvpersist', '')"
"""Something written, that changes nothing; whoever commits it waits for synchronous standbys.

And these have then all that was committed before. An earlier commit need not have waited for them:
the server makes it, but without them, if its process is ended while it waits. A number alone, of
``pg_current_xact_id``, is nothing written. Every user may call the function.
https://www.postgresql.org/docs/current/functions-admin.html#FUNCTIONS-REPLICATION
"""
HOLDERS: Final = """
    SELECT (classid::bigint << 32) | objid::bigint AS lock, pid FROM pg_locks
    WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid <> pg_backend_pid()
      AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (classid::bigint << 32) | objid::bigint = ANY($1::bigint[])
      AND mode = 'ExclusiveLock'
"""
TRIM: Final = """
    DELETE FROM {schema}.documents WHERE key >= $1 AND key < $2 AND updated_at < $3
    AND key NOT IN (
        SELECT key FROM {schema}.documents WHERE key >= $1 AND key < $2
        ORDER BY updated_at DESC LIMIT $4
    )
"""

READ: Final = "SELECT key, value FROM {schema}.documents WHERE key = ANY($1::text[])"
SCAN: Final = (
    "SELECT key, value FROM {schema}.documents WHERE key {above} $1 {below} ORDER BY key LIMIT $2"
)


def columns(changes: Mapping[str, bytes | None]) -> tuple[list[str], list[str], list[str]]:
    """Return what `APPLY` takes: keys to remove, keys to put, and their texts.

    Raises:
        ValueError: A text is no UTF-8.
    """
    put = {key: text.decode() for key, text in changes.items() if text is not None}
    removed = [key for key, text in changes.items() if text is None]
    return removed, list(put), list(put.values())


def columns_aside(rows: Collection[BadRow]) -> tuple[list[str], list[str], list[str]]:
    """Return what `SET_ASIDE` takes: keys, their texts, and the reasons.

    Raises:
        ValueError: A text is no UTF-8.
    """
    return (
        [key for key, *_ in rows],
        [text.decode() for _, text, _ in rows],
        [reason for *_, reason in rows],
    )


def now() -> int:
    """Return the time, for rows that are written now: Unix milliseconds."""
    return time.time_ns() // 1_000_000
