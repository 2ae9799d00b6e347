"""docs/moving.md: each step works as it is written."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import File, fill, run
from telegram.ext import ExtBot, PicklePersistence

README = (Path(__file__).parents[1] / "README.md").read_text()
PAGE = (Path(__file__).parents[1] / "docs" / "moving.md").read_text()
STEPS = re.findall(r"```console\n\$ kvpersist (.*?)\n(.*?)```", PAGE, re.DOTALL)
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
BOT = """
from dataclasses import dataclass

@dataclass
class Order:
    item: str

TYPES = [Order]
"""


async def write_pickle(order: Any) -> None:
    """Have PTB write the file of a bot."""
    persistence: PicklePersistence[Any, Any, Any] = PicklePersistence("bot.pickle", on_flush=True)
    persistence.set_bot(ExtBot("1:x"))
    await persistence.update_user_data(5, {"order": order})
    await persistence.update_chat_data(5, {"n": 1})
    await persistence.update_bot_data({})
    await persistence.flush()


def test_each_step_says_what_the_page_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    """From a pickle to a store, and on; then what the README shows."""
    Path("mybot.py").write_text(BOT)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    monkeypatch.delitem(sys.modules, "mybot", raising=False)
    import mybot  # type: ignore[import-not-found]  # noqa: PLC0415  it was written just now

    asyncio.run(write_pickle(mybot.Order("tea")))
    Path("strings.json").write_text('{"user_data": "{\\"5\\": {\\"a\\": 1}}", "bot_data": "{}"}')
    assert len(STEPS) == 5
    for command, shown in STEPS:
        said = run(*shlex.split(command), code=1 if "Error" in shown else 0).output
        assert re.sub("[0-9a-f]{64}", "…", said) == shown
    Path("bot.db").rename("moved.db")
    at = File(Path.cwd())
    message = '{"messages":[{"at":"2026-11-23T14:49:13+00:00","text":"hello, bot"}]}'
    fill(at, {"chat/1": message, "user/1": '{"name":"Ada"}'})
    (block,) = re.findall(r"```console\n(\$ kvpersist .*?)```", README, re.DOTALL)
    for command in block.replace("$ kvpersist ", "").splitlines():
        run(*shlex.split(command))
    assert at.all_columns()[1][1] == '{"name":"Grace"}'
    monkeypatch.delitem(sys.modules, "mybot")


@pytest.mark.parametrize("block", BLOCKS, ids=lambda block: block.split("\n", 1)[0])
def test_the_code_runs(block: str) -> None:
    """As it stands."""
    subprocess.run([sys.executable, "-c", block], check=True, timeout=60)
