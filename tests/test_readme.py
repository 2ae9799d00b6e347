"""The README says what is true today."""

from __future__ import annotations

import asyncio
import json
import os
import re
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

import kvpersist

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
WORKERS = (ROOT / "docs" / "workers.md").read_text()
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
RELIABILITY = (ROOT / "docs" / "reliability.md").read_text()


async def test_a_backup_is_restored_as_shown(tmp_path: Path) -> None:
    """What a bot that was killed has left beside the file is not applied to the copy."""
    subprocess.run([sys.executable, "-c", WRITE_AND_DIE], cwd=tmp_path, check=False, timeout=60)
    assert (tmp_path / "bot.db-wal").stat().st_size
    restore(tmp_path)
    restored = kvpersist.KVPersistence(tmp_path / "bot.db")
    assert await restored.get_chat_data() == {1: {"n": 1}}
    await restored.flush()


def restore(folder: Path) -> None:
    """Put back the copy as the README says."""
    (command,) = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    subprocess.run(["sh", "-c", command], cwd=folder, check=True, timeout=60)  # noqa: S607


async def test_a_restored_copy_gets_what_could_not_be_written(tmp_path: Path) -> None:
    """What a damaged file refused was left beside it, and is newer than the copy."""
    persistence = kvpersist.KVPersistence(tmp_path / "bot.db")
    documents = {chat: {"n": 1, "text": "x" * 300} for chat in range(200)}
    await asyncio.gather(*(persistence.update_chat_data(*each) for each in documents.items()))
    await persistence.backup(tmp_path / "copy.db")
    await persistence.flush()
    zero_the_page_of_chats(tmp_path / "bot.db")
    for chat in (*range(12, 24), 1000):
        with suppress(kvpersist.WriteError):
            await persistence.update_chat_data(chat, documents.setdefault(chat, {}) | {"n": 2})
    with pytest.raises(kvpersist.WriteError, match="bot.db-rescue for the next start"):
        await persistence.flush()
    refused = json.loads((tmp_path / "bot.db-rescue").read_bytes())["rows"]
    assert refused
    assert "chat/1000" not in refused  # what is sound is still written
    restore(tmp_path)
    restored = kvpersist.KVPersistence(tmp_path / "bot.db")
    found = await restored.get_chat_data()
    del documents[1000]
    newer = {chat: {**document, "n": 2} for chat, document in documents.items()}
    assert found == {
        chat: newer[chat] if f"chat/{chat}" in refused else document
        for chat, document in documents.items()
    }
    await restored.flush()
    assert not [*tmp_path.glob("bot.db-rescue*")]


def zero_the_page_of_chats(path: Path) -> None:
    """Overwrite a page that has rows."""
    data = bytearray(path.read_bytes())
    data[5 * 4096 : 6 * 4096] = bytes(4096)
    path.write_bytes(data)


async def test_what_can_be_read_of_a_damaged_file_can_be_saved(tmp_path: Path) -> None:
    """As the page on reliability says."""
    persistence = kvpersist.KVPersistence(tmp_path / "bot.db")
    document = {"text": "x" * 300}
    await asyncio.gather(*(persistence.update_chat_data(chat, document) for chat in range(200)))
    await persistence.flush()
    zero_the_page_of_chats(tmp_path / "bot.db")
    (command,) = re.findall(r"```sh\n(.*?)```", RELIABILITY, re.DOTALL)
    # Where `make test` has put the shell of SQLite.
    path = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", command], cwd=tmp_path, check=True, timeout=60, env=path)  # noqa: S607
    saved = kvpersist.KVPersistence(tmp_path / "saved.db")
    found = await saved.get_chat_data()
    await saved.flush()
    assert 150 < len(found) < 200
    assert all(saved == document for saved in found.values())
    assert stat.S_IMODE((tmp_path / "saved.db").stat().st_mode) == 0o600


def test_the_commands_exist() -> None:
    """Every make target that the README names is in the Makefile."""
    targets = set(re.findall(r"`make ([\w-]+)", README + WORKERS))
    assert {"demo", "demo-web", "demo-workers", "test"} <= targets
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
