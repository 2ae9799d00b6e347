"""What the shell offers when Tab is pressed, and the script that has it do so."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import click
from click.shell_completion import CompletionItem, get_completion_class

from kvpersist.cli.opening import visiting
from kvpersist.errors import KVPersistError

_SCOPES: Final = ("chat", "user", "bot", "callback", "conversation")
_MOST: Final = 50
_SHELLS: Final = ("bash", "zsh", "fish")


def complete_scope(_: click.Context, __: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer the scopes."""
    return [CompletionItem(scope) for scope in _SCOPES if scope.startswith(begun)]


def complete_key(context: click.Context, _: click.Parameter, begun: str) -> list[CompletionItem]:
    """Offer the first keys of the store that begin so. It never says what went wrong."""
    with suppress(KVPersistError, OSError, KeyError, TypeError):
        return [CompletionItem(key) for key in asyncio.run(_keys(context.params["store"], begun))]
    return []


async def _keys(store: str, begun: str) -> list[str]:
    async with visiting(store) as visitor:
        async for page in visitor.scan(begun):
            return [row.key for row in page[:_MOST]]
    return []


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
def completion(shell: str) -> None:
    """Print the script for completion in a shell.

    For bash: eval "$(kvpersist completion bash)" in ~/.bashrc.
    """
    kind = get_completion_class(shell)
    assert kind is not None  # noqa: S101  click has all of these
    root = click.get_current_context().find_root()
    click.echo(kind(root.command, {}, "kvpersist", "_KVPERSIST_COMPLETE").source())
