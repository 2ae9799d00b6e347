"""The README says what is true today."""

from __future__ import annotations

import re
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

import kvpersist

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
WRITE_AND_DIE = """
import asyncio, os, signal
from kvpersist import KVPersistence

async def main():
    persistence = KVPersistence("bot.db")
    await persistence.update_chat_data(1, {"n": 1})
    await persistence.backup("copy.db")
    for n in range(2, 100):
        await persistence.update_chat_data(n, {"n": n})
    os.kill(os.getpid(), signal.SIGKILL)

asyncio.run(main())
"""
POSTGRES = (ROOT / "docs" / "postgres.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README + POSTGRES, re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_the_code_runs(block: str, tmp_path: Path) -> None:
    """Each block of Python runs as it stands, given what it says that the reader has."""
    code = f"TOKEN = '123:abc'\nfrom kvpersist import MemoryStore\n{block}"
    command = [sys.executable, "-c", code]
    subprocess.run(command, cwd=tmp_path, check=True, timeout=60)


async def test_the_example_keeps_rows_as_shown(tmp_path: Path) -> None:
    """The rows that the README shows are what the calls of its bot store."""
    persistence = kvpersist.KVPersistence(tmp_path / "bot.db")
    message = {"at": "2026-11-23T14:49:13+00:00", "text": "hello, bot"}
    await persistence.update_bot_data({})
    await persistence.update_chat_data(1, {"messages": [message]})
    await persistence.update_conversation(name="introduce", key=(1, 1), new_state="CITY")
    await persistence.update_user_data(1, {"messages": 1, "name": "Ada"})
    await persistence.flush()
    with closing(sqlite3.connect(tmp_path / "bot.db")) as reader:
        rows = reader.execute("SELECT key, value FROM documents ORDER BY key").fetchall()
    (shown,) = re.findall(r"```console\n\$ sqlite3.*?\n(.*?)```", README, re.DOTALL)
    assert [f"{key}|{value}" for key, value in rows] == shown.splitlines()


async def test_a_backup_is_restored_as_shown(tmp_path: Path) -> None:
    """What a bot that was killed has left beside the file is not applied to the copy."""
    subprocess.run([sys.executable, "-c", WRITE_AND_DIE], cwd=tmp_path, check=False, timeout=60)
    assert (tmp_path / "bot.db-wal").stat().st_size
    (command,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=60)  # noqa: S607
    restored = kvpersist.KVPersistence(tmp_path / "bot.db")
    assert await restored.get_chat_data() == {1: {"n": 1}}
    await restored.flush()


def test_the_commands_exist() -> None:
    """Every make target that the README names is in the Makefile."""
    targets = set(re.findall(r"`make ([\w-]+)`", README))
    assert {"demo", "demo-web", "test"} <= targets
    assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize(
    "page",
    [
        "README.md",
        "SECURITY.md",
        "CHANGELOG.md",
        *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md"))),
    ],
)
def test_links_lead_somewhere(page: str) -> None:
    """Every link to a file of the repository has one at its end."""
    path = ROOT / page
    text = re.sub(r"`[^`]*`", "", path.read_text())
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (path.parent / target).exists(), target


def test_every_public_error_in_the_readme_exists() -> None:
    """An exception that the README names can be imported."""
    named = set(re.findall(r"`(\w+Error)`", README))
    assert named
    assert named <= set(kvpersist.__all__)
