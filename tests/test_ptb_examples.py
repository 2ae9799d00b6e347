"""PTB's own example of a persistent bot, in another dress, under SIGKILL."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from bots import text_update

BOT = Path(__file__).with_name("facts_bot.py")

TALK = [
    ("/start", "I know nothing."),
    ("Colour", "Your colour?"),
    ("/show_data", "You told me topic: colour."),
    ("green", "I know colour: green."),
    ("Something else", "What is it about?"),
    ("Dish", "Your dish?"),
    ("soup; of 'beans' 🍲", "I know colour: green; dish: soup; of 'beans' 🍲."),
    ("Colour", "Your colour? It was green."),
    ("Done", "I learnt colour: green; dish: soup; of 'beans' 🍲."),
    ("/show_data", "You told me colour: green; dish: soup; of 'beans' 🍲."),
    ("Colour", None),
    ("/start", "I know colour: green; dish: soup; of 'beans' 🍲."),
]


@contextmanager
def bot(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Run the bot in a process of its own, until it is killed by SIGKILL."""
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(BOT), str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL


def say(process: subprocess.Popen[str], said: str) -> list[str]:
    """Let the bot's user say something; return what the bot said."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(text_update(said, chat_id=2**33 + 5)) + "\n")
    process.stdin.flush()
    answers: list[str] = json.loads(process.stdout.readline())
    return answers


@pytest.mark.timeout(240)
def test_a_bot_goes_on_where_it_was_when_it_is_killed_after_each_answer(tmp_path: Path) -> None:
    """A conversation whose every answer is followed by SIGKILL is the one it is without."""
    for said, answer in TALK:
        with bot(tmp_path / "killed.db") as process:
            assert say(process, said) == ([] if answer is None else [answer])


def test_the_same_talk_without_a_kill(tmp_path: Path) -> None:
    """The bot says the same when nobody kills it, so that the killed one is compared with it."""
    with bot(tmp_path / "unharmed.db") as process:
        for said, answer in TALK:
            assert say(process, said) == ([] if answer is None else [answer])
