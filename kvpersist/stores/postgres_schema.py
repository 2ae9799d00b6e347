"""The tables of kvpersist's in a PostgreSQL schema, and that a schema has no others of the name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias

import asyncpg

from kvpersist.errors import NewerSchemaError, NotAStoreError, OpenError
from kvpersist.stores.postgres_owner import lock_key
from kvpersist.stores.postgres_statements import LOCK_NAME, STATE

if TYPE_CHECKING:
    Connection: TypeAlias = (
        asyncpg.Connection[asyncpg.Record] | asyncpg.pool.PoolConnectionProxy[asyncpg.Record]
    )

SCHEMA_VERSION: Final = 1
"""The ``version`` in the table ``kvpersist_schema`` that this code writes."""

LONGEST_NAME: Final = 63
"""Bytes of an identifier; PostgreSQL cuts off what is more."""

_SCHEMA: Final = (
    # COLLATE "C": keys are ordered by code point. json, not jsonb: a text stays as it is.
    """
    CREATE TABLE {schema}.documents (
        key text COLLATE "C" NOT NULL PRIMARY KEY,
        value json NOT NULL,
        version bigint NOT NULL,
        updated_at bigint NOT NULL
    )
    """,
    """
    CREATE TABLE {schema}.set_aside (
        key text COLLATE "C" NOT NULL,
        value json NOT NULL,
        version bigint NOT NULL,
        updated_at bigint NOT NULL,
        reason text NOT NULL,
        set_aside_at bigint NOT NULL
    )
    """,
    """
    CREATE TABLE {schema}.kvpersist_schema (
        version bigint NOT NULL,
        owner text NOT NULL,
        epoch bigint NOT NULL
    )
    """,
    f"INSERT INTO {{schema}}.kvpersist_schema VALUES ({SCHEMA_VERSION}, '', 0)",  # noqa: S608
)
_DOCUMENTS: Final = {
    "key": ("text", "C"),
    "value": ("json", None),
    "version": ("bigint", None),
    "updated_at": ("bigint", None),
}
_TABLES: Final = {
    "documents": _DOCUMENTS,
    "set_aside": {**_DOCUMENTS, "reason": ("text", "default"), "set_aside_at": ("bigint", None)},
    "kvpersist_schema": {
        "version": ("bigint", None),
        "owner": ("text", "default"),
        "epoch": ("bigint", None),
    },
}
_COLUMNS: Final = """
    SELECT relation.relname, attribute.attname, collation_.collname,
           format_type(attribute.atttypid, attribute.atttypmod) AS type
    FROM pg_class AS relation
    JOIN pg_namespace AS namespace ON namespace.oid = relation.relnamespace
    JOIN pg_attribute AS attribute ON attribute.attrelid = relation.oid
    LEFT JOIN pg_collation AS collation_ ON collation_.oid = attribute.attcollation
    WHERE namespace.nspname = $1 AND relation.relname = ANY($2::text[])
      AND attribute.attnum > 0 AND NOT attribute.attisdropped
"""
# Where json is jsonb, as in CockroachDB, a document would come back as another text.
_SERVER: Final = """
    SELECT current_setting('server_encoding') = 'UTF8'
       AND '{"b": 1.0, "a":1, "a":2}'::json::text = '{"b": 1.0, "a":1, "a":2}'
"""
# plpgsql, because each statement of such a function sees what was committed until then: what reads
# the rows sees all that those have written who held the locks before. A statement of its own would
# cost a round trip more, and one for both would see the rows as they were before it waited.
# https://www.postgresql.org/docs/current/xfunc-volatility.html
_LOCK: Final = """
DECLARE
    one bigint;
BEGIN
    PERFORM pg_catalog.set_config('lock_timeout', wait, true);
    PERFORM pg_catalog.set_config('idle_in_transaction_session_timeout', hold, true);
    PERFORM pg_catalog.pg_advisory_xact_lock_shared(owner);
    FOREACH one IN ARRAY locks LOOP
        PERFORM pg_catalog.pg_advisory_xact_lock(one);
    END LOOP;
    RETURN QUERY
        SELECT stored.key, CASE WHEN stored.version <> wanted.version THEN stored.value END,
               stored.version
        FROM unnest(keys, known) AS wanted (key, version)
        JOIN (
            SELECT documents.key, documents.value, {state} AS version FROM {schema}.documents
        ) AS stored ON stored.key = wanted.key;
END
"""
_CREATE_LOCK: Final = """
    CREATE OR REPLACE FUNCTION {schema}.{name}(
        owner bigint, locks bigint[], keys text[], known bigint[], wait text, hold text
    ) RETURNS TABLE (key text, value json, version bigint)
    LANGUAGE plpgsql AS $kvpersist${body}$kvpersist$
"""
_HAS_LOCK: Final = """
    SELECT count(*) FROM pg_proc JOIN pg_namespace ON pg_namespace.oid = pronamespace
    WHERE nspname = $1 AND proname = $2 AND prosrc = $3
"""
_VERSION: Final = "SELECT version FROM {schema}.kvpersist_schema"
_HAS_SCHEMA: Final = "SELECT count(*) FROM pg_namespace WHERE nspname = $1"


def is_name(name: object) -> bool:
    """Whether this can be the name of a schema."""
    return (
        isinstance(name, str)
        and 0 < len(name.encode(errors="replace")) <= LONGEST_NAME
        and "\0" not in name
    )


def quoted(name: str) -> str:
    """Return an identifier as SQL takes it."""
    return '"' + name.replace('"', '""') + '"'


async def prepare(connection: Connection, schema: str, *, is_shared: bool) -> None:
    """Create what is missing, under a lock, so that many may do this at the same time.

    If the schema is shared, that is also the function that locks documents and reads them.

    Raises:
        NotAStoreError: The schema has a table of this name that is not kvpersist's.
        NewerSchemaError: A newer kvpersist has made the tables.
        OpenError: They were changed, or the server does not keep texts as they are.
        Exception: Those of asyncpg.
    """
    # READ COMMITTED, so that those who waited see what the first has made.
    async with connection.transaction(isolation="read_committed"):
        await connection.fetch("SELECT pg_advisory_xact_lock($1)", lock_key("schema", schema))
        if not await connection.fetchval(_SERVER):
            raise OpenError(
                "this server does not keep the text of a document as it is; kvpersist needs the "
                "encoding UTF8 and PostgreSQL's type json"
            )
        if not await has_tables(connection, schema):
            await _create(connection, schema)
        if is_shared:
            await _create_lock(connection, schema)


async def _create(connection: Connection, schema: str) -> None:
    if not await connection.fetchval(_HAS_SCHEMA, schema):  # who may not create one may use one
        await connection.execute(f"CREATE SCHEMA {quoted(schema)}")
    for statement in _SCHEMA:
        await connection.execute(statement.format(schema=quoted(schema)))


async def _create_lock(connection: Connection, schema: str) -> None:
    body = _LOCK.format(schema=quoted(schema), state=STATE.format(row="documents"))
    if not await connection.fetchval(_HAS_LOCK, schema, LOCK_NAME, body):
        create = _CREATE_LOCK.format(schema=quoted(schema), name=LOCK_NAME, body=body)
        await connection.execute(create)


async def has_tables(connection: Connection, schema: str) -> bool:
    """Whether the schema has kvpersist's tables, as this code makes them. Raises as `prepare`."""
    found: dict[str, dict[str, tuple[str, str | None]]] = {}
    for table, column, collation, kind in await connection.fetch(_COLUMNS, schema, [*_TABLES]):
        found.setdefault(table, {})[column] = kind, collation
    if not found:
        return False
    if "kvpersist_schema" not in found:
        raise NotAStoreError(
            f"the schema {schema!r} has a table {min(found)} of another program's; name another "
            "schema: PostgresStore(url, schema=...)"
        )
    version = None
    if "version" in found["kvpersist_schema"]:
        rows = await connection.fetch(_VERSION.format(schema=quoted(schema)))
        version = rows[0]["version"] if len(rows) == 1 else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"the tables of the schema {schema!r} have version {version}, this kvpersist knows "
            f"{SCHEMA_VERSION}; update kvpersist"
        )
    # Columns that somebody has added do no harm: no statement names them.
    changed = [
        name for name, columns in _TABLES.items() if columns.items() - found.get(name, {}).items()
    ]
    if version != SCHEMA_VERSION or changed:
        raise OpenError(
            f"the schema {schema!r} has a table {(*changed, 'kvpersist_schema')[0]} that kvpersist "
            "has not made so; restore it from a backup"
        )
    return True
