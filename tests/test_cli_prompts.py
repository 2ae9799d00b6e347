"""Questions of the command, on a terminal: Ctrl-C and Ctrl-D end it at once, and change nothing."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from command import file_of, run, said

from kvpersist.cli import opening

ROWS = {"chat/6": "{}", "user/6": '{"a":1}', "conversation/order/[6,6]": "-1"}
CTRL_C, CTRL_D = b"\x03", b"\x04"
START = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Has the terminal send signals to the command, as that of a shell does."""


def typed(keys: bytes, *arguments: object, **environment: str) -> tuple[int, str]:
    """Type keys when the command asks, on its terminal; return its exit code and what it said."""
    ours, theirs = pty.openpty()
    command = [str(Path(sys.executable).with_name("kvpersist")), *map(str, arguments)]
    with subprocess.Popen(
        [sys.executable, "-c", START, *command],
        stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        env={**os.environ, **environment},
    ) as process:  # fmt: skip
        os.close(theirs)  # so that reading ends when the command has
        shown, is_typed = b"", False
        with suppress(OSError):
            while got := os.read(ours, 4096):
                shown += got
                if not is_typed and b"]:" in shown:
                    os.write(ours, keys)
                    is_typed = True
        os.close(ours)
    return process.returncode, shown.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["rm", "bot.db", "user/6"],
        ["purge", "bot.db", "--ended", "--empty"],
        ["person", "bot.db", "6", "--erase"],
        ["restore", "bot.db", "backup.db"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_ctrl_c_at_a_question_ends_the_command(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once: what is typed after it is no answer any more."""
    monkeypatch.chdir(tmp_path)
    at = file_of(tmp_path, ROWS)
    run("backup", at.name, "backup.db")
    before = at.all_columns()
    code, shown = typed(CTRL_C + b"y\n", *arguments)
    assert code == 1
    assert "[y/N]:" in shown
    assert "\nAborted!\n" in shown
    assert "removed" not in shown
    assert at.all_columns() == before
    assert not list(tmp_path.glob("bot.db-before-*"))
    code, shown = typed(b"y\n", *arguments)
    assert code == 0, shown
    assert at.all_columns() != before or arguments[0] == "restore"


@pytest.mark.parametrize("key", [CTRL_C, CTRL_D], ids=["ctrl-c", "ctrl-d"])
def test_a_key_that_ends_editing_loses_no_text(key: bytes, tmp_path: Path) -> None:
    """It is in a file that is named."""
    at = file_of(tmp_path, ROWS)
    before = at.all_columns()
    environment = {"VISUAL": "sed -i s/1/x/", "TMPDIR": str(tmp_path)}
    code, shown = typed(key, "edit", at.name, "user/6", **environment)
    assert code == 1
    assert shown.endswith("\nAborted!\n")
    (kept,) = tmp_path.glob("kvpersist-edit-*.json")
    assert f"\nyour text is in {kept}\n" in shown
    assert kept.read_text() == '{\n  "a": x\n}\n'
    assert at.all_columns() == before


def test_without_an_answer_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Ctrl-D."""
    at = file_of(tmp_path, ROWS)
    monkeypatch.setattr(opening, "is_terminal", lambda: True)
    assert said("rm", at.name, "user/6", given="", code=1).endswith("\nAborted!\n")
    assert len(at.all_columns()) == 3


def test_a_question_is_not_among_the_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is for the person, the rest for a program."""
    at = file_of(tmp_path, ROWS)
    monkeypatch.setattr(opening, "is_terminal", lambda: True)
    done = run("rm", at.name, "user/6", "--json", given="y\n")
    assert "Remove 1 rows" in done.stderr
    assert "Remove" not in done.stdout
