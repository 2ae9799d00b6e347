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
