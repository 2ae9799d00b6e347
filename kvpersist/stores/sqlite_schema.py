"""The schema of a kvpersist file, and that a file has no other."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from kvpersist.errors import NewerSchemaError, NotAStoreError, OpenError

APPLICATION_ID: Final = int.from_bytes(b"kvps", "big")
"""Tells kvpersist's files from all others (https://sqlite.org/fileformat2.html#application_id)."""

SCHEMA_VERSION: Final = 1
"""The ``user_version`` of the files that this code writes."""

_DOCUMENTS: Final = """
    CREATE TABLE documents (
        key TEXT NOT NULL PRIMARY KEY,
        value TEXT NOT NULL,
        version INTEGER NOT NULL,
        updated_at INTEGER NOT NULL
    )
"""
_SET_ASIDE: Final = """
    CREATE TABLE set_aside (
        key TEXT NOT NULL,
        value TEXT NOT NULL,
        version INTEGER NOT NULL,
        updated_at INTEGER NOT NULL,
        reason TEXT NOT NULL,
        set_aside_at INTEGER NOT NULL
    )
"""
"""Rows of ``documents`` that cannot be read, as they were."""
TABLES: Final = {"documents": _DOCUMENTS, "set_aside": _SET_ASIDE}
"""The statement that makes each."""

ADD_MISSING: Final = _SET_ASIDE.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS")
"""The statement that adds to a file what kvpersist has not always made."""

SCHEMA: Final = f"""
    BEGIN EXCLUSIVE;
    {_DOCUMENTS};
    {_SET_ASIDE};
    PRAGMA application_id = {APPLICATION_ID};
    PRAGMA user_version = {SCHEMA_VERSION};
    COMMIT;
"""
"""The script that makes an empty file one of kvpersist's."""

_OWN_INDEX: Final = "sqlite_autoindex_documents_1"
_WRITES: Final = {
    "documents": (
        """
        INSERT INTO documents VALUES ('', '', 0, 0)
        ON CONFLICT (key) DO UPDATE SET key = '', value = '', version = 0, updated_at = 0
        """,
        "DELETE FROM documents WHERE key = ''",
    ),
    "set_aside": ("INSERT INTO set_aside VALUES ('', '', 0, 0, '', 0)",),
}
"""Never run: SQLite is asked what it would do, and a trigger shows as the opcode Program."""
_SHOWN: Final = 200


def check_schema(path: Path, connection: sqlite3.Connection) -> None:
    """Raise unless the database is one of kvpersist's, in which nothing runs at its statements.

    Its tables must be exactly those that kvpersist makes, with no trigger, and no index but their
    own. Other tables, views and their triggers may be there: no statement of kvpersist names them.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (encoding,) = connection.execute("PRAGMA encoding").fetchone()
    objects = connection.execute("SELECT type, name, sql FROM sqlite_master").fetchall()
    if application_id != APPLICATION_ID:
        raise NotAStoreError(f"{path} is another program's SQLite file; name another file")
    if version > SCHEMA_VERSION:
        raise NewerSchemaError(
            f"{path} has schema {version}, this kvpersist knows {SCHEMA_VERSION}; update kvpersist"
        )
    if version < SCHEMA_VERSION or encoding != "UTF-8":
        raise OpenError(
            f"{path} has schema {version} and the encoding {encoding}, which no kvpersist writes; "
            "restore it from a backup"
        )
    _check_tables(path, connection, objects)
    present = {name.lower() for _, name, _ in objects}
    for table, statements in _WRITES.items():
        if table in present and any(_runs_more(connection, each) for each in statements):
            names = [name for _, name, sql in objects if "TRIGGER" in str(sql).upper()]
            raise OpenError(
                f"{path} has a trigger on a table of kvpersist's; see who has made it, then DROP "
                f"TRIGGER it: it would run at each write. It is one of {names!r:.{_SHOWN}}"
            )


def _check_tables(
    path: Path, connection: sqlite3.Connection, objects: Sequence[tuple[str, str, str]]
) -> None:
    # Of whatever kind they are, and however their names are written: SQLite folds their case.
    tables = {name.lower(): sql for _, name, sql in objects if name.lower() in TABLES}
    if "documents" not in tables:
        raise OpenError(f"{path} has no table documents; restore it from a backup")
    for table, sql in tables.items():
        if _plain(str(sql)) != _plain(TABLES[table]):
            raise OpenError(
                f"{path} has a table {table} that kvpersist has not made; restore it from a "
                f"backup. It is {sql!r:.{_SHOWN}}"
            )
        # By SQLite, because the row of sqlite_schema that makes an index, or a trigger, can be
        # forged.
        for _, name, *_ in connection.execute(f"PRAGMA index_list({table})").fetchall():
            if name != _OWN_INDEX:
                raise OpenError(
                    f"{path} has an index {name!r:.{_SHOWN}} on the table {table}; DROP INDEX it: "
                    "each write would pay for it, and it may refuse rows"
                )


def _runs_more(connection: sqlite3.Connection, statement: str) -> bool:
    try:
        return "Program" in [step[1] for step in connection.execute(f"EXPLAIN {statement}")]
    except sqlite3.Error:  # it would run what there is not, or what a file may not ask for
        return True


def _plain(sql: str) -> str:
    """Leave out what another program may have changed with the same meaning."""
    for table in TABLES:
        sql = sql.replace(f'"{table}"', table)
    return " ".join(sql.split())
