"""The command itself: how it starts, what it completes, and what its page says."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from command import file_of, said

import kvpersist.cli
from kvpersist.cli import command, opening, output
from kvpersist.errors import ConfigurationError

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "cli.md").read_text()
COMMANDS = sorted(command.kvpersist.commands)


def test_the_page_has_the_help_of_every_command() -> None:
    """In a section of its own. test_docs_pages.py compares it with what is printed."""
    assert "```console\n$ kvpersist --help\n" in PAGE
    sections = re.findall(
        r"^## `kvpersist (\w+)`\n\n```console\n\$ kvpersist \1 --help$", PAGE, re.MULTILINE
    )
    assert sorted(sections) == COMMANDS


def test_without_the_extra_the_command_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line."""
    monkeypatch.setattr(kvpersist.cli, "find_spec", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        kvpersist.cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said == (
        "kvpersist: the command needs the extra cli: in a clone of kvpersist, "
        'pip install ".[cli]"\n'
    )


def test_without_asyncpg_a_url_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other commands work without it."""
    monkeypatch.setitem(sys.modules, "kvpersist.stores.postgres_visitor", None)
    assert 'in a clone of kvpersist, pip install ".[cli,postgres]"' in said(
        "ls", "postgresql://h/d", code=2
    )
    with pytest.raises(ConfigurationError):
        opening.visitor_of("postgresql://h/d")


def test_the_installed_command_runs() -> None:
    """As another program would run it."""
    done = subprocess.run(
        [Path(sys.executable).with_name("kvpersist"), "--version"],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    assert done.stdout.startswith("kvpersist, version ")


def offered(*words: str) -> list[str]:
    """Return what a shell would offer for the last of these words."""
    complete = ShellComplete(command.kvpersist, {}, "kvpersist", "_KVPERSIST_COMPLETE")
    return [item.value for item in complete.get_completions([*words[:-1]], words[-1])]


def test_commands_scopes_and_keys_are_completed(tmp_path: Path) -> None:
    """And what cannot be looked at is not told of."""
    at = file_of(tmp_path, {"chat/1": "{}", "chat/2": "{}", "user/1": "{}"})
    assert offered("st") == ["stats"]
    assert offered("ls", at.name, "c") == ["chat", "callback", "conversation"]
    assert offered("show", at.name, "chat/") == ["chat/1", "chat/2"]
    assert offered("show", at.name, "x") == []
    assert offered("show", str(tmp_path / "none.db"), "x") == []


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_for_a_shell_is_printed(shell: str) -> None:
    """To be evaluated there."""
    assert "_KVPERSIST_COMPLETE" in said("completion", shell)


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (12345, "12 kB"), (10**15, "1000 TB")],
)
def test_sizes_are_said_as_people_do(number: int, shown: str) -> None:
    """With the unit that fits."""
    assert output.size(number) == shown


def test_times_are_said_as_people_do() -> None:
    """Also those in the future."""
    assert output.age(2**50) == "now"
    assert output.age(0).endswith(" d")


async def test_a_bar_is_shown_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing of it anywhere else."""

    async def pages() -> object:
        yield []

    monkeypatch.setenv("FORCE_COLOR", "1")
    async for _ in output.counted(pages(), "counting"):  # type: ignore[arg-type]
        pass
    assert click
