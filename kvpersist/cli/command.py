"""The command itself: a group of all commands."""

from __future__ import annotations

from importlib.metadata import version
from typing import Final

import click

from kvpersist.cli import (
    checking,
    completing,
    editing,
    look,
    migrating,
    moving,
    people,
    purging,
    watching,
)

_WIDTH: Final = 88


@click.group(context_settings={"max_content_width": _WIDTH, "help_option_names": ["-h", "--help"]})
@click.version_option(version("kvpersist"), prog_name="kvpersist")
def kvpersist() -> None:
    """Look into, change, check and move what a bot keeps with kvpersist.

    STORE is a SQLite file, or the URL of a PostgreSQL database
    (postgresql://user@host/database?schema=public; leave the password to PGPASSWORD or ~/.pgpass).

    Exit codes: 0, done; 1, something was found or refused, and said; 2, the command was not
    understood.
    """


for _command in (
    look.ls,
    look.show,
    look.stats,
    look.find,
    checking.check,
    editing.set_,
    editing.edit,
    editing.rm,
    moving.export,
    moving.import_,
    moving.copy,
    moving.backup,
    moving.restore,
    migrating.migrate,
    people.person,
    purging.purge,
    watching.watch,
    completing.completion,
):
    kvpersist.add_command(_command)
