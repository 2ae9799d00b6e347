"""The runner of the suites of faults: see fault_suites.py."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import fault_suites
import pytest


def test_every_suite_is_there() -> None:
    """A suite that gets another name is not left out without a word."""
    folder = Path(fault_suites.__file__).parent
    assert all((folder / f"test_{suite}.py").exists() for suite in fault_suites.SUITES)


def test_a_seed_is_told_of_those_alone_that_use_it() -> None:
    """Or more would be said to have been tried than was."""
    folder = Path(fault_suites.__file__).parent
    for suite in fault_suites.SUITES:
        text = (folder / f"test_{suite}.py").read_text()
        is_seeded = "KVPERSIST_SEED" in text or "import hypothesis" in text
        is_seeded |= "from hypothesis" in text
        assert is_seeded == (suite in fault_suites.SEEDED), suite


def test_a_suite_that_fails_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Seeds rise round after round; which one failed is told, with what was said, how often."""
    seeds: list[str] = []

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> Any:
        seeds.append(env["KVPERSIST_SEED"])
        assert f"--hypothesis-seed={seeds[-1]}" in command
        has_failed = seeds[-1] == "8" and command[-1].endswith("test_backup.py")
        return subprocess.CompletedProcess(command, int(has_failed), "said", "")

    monkeypatch.setattr(subprocess, "run", run)
    assert fault_suites.suites(60, 7) == "said"
    assert seeds == ["7"] * len(fault_suites.SUITES) + ["8", "8"]
    told = capsys.readouterr().out
    assert "KVPERSIST_SEED=8 pytest --hypothesis-seed=8 tests/test_backup.py" in told
    assert "bad_rows: passed 2 times\n" in told
    assert "backup: passed 1 times\n" in told
    assert "damage: passed 1 times, seeds 7 to 7\n" in told
    assert fault_suites.suites(0, 7) == ""
    assert "stateful: not run" in capsys.readouterr().out
    assert os.environ.get("KVPERSIST_SEED") != "7"
