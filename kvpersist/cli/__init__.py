"""The command ``kvpersist``: looks into stores, changes, checks and moves what is in them.

It needs the extra ``cli``: click and rich. ``docs/cli.md`` has every command. Like other
programs it is a guest at a bot's store: see `kvpersist.stores.visitor`.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec


def main() -> None:
    """Run the command, or say in a line how to get what it needs."""
    if not all(map(find_spec, ("click", "rich"))):
        sys.stderr.write(
            "kvpersist: the command needs the extra cli: in a clone of kvpersist, "
            'pip install ".[cli]"\n'
        )
        sys.exit(2)
    from kvpersist.cli.command import kvpersist  # noqa: PLC0415  it needs the extra

    kvpersist()
