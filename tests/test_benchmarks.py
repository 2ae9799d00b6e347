"""The benchmarks run, in a small size; nothing is timed here."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
COUNTED = {
    "an update that changes nothing: its statements",
    "round trips to PostgreSQL of an update of a known chat",
    "round trips to PostgreSQL of an update that changes nothing",
}


def measured(folder: Path, *names: str) -> list[dict[str, Any]]:
    """Return the rows of some benchmarks."""
    program = str(BENCHMARKS / "run.py")
    command = [sys.executable, program, "--quick", "--results", str(folder), *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows: list[dict[str, Any]] = json.loads((folder / "results.json").read_text())
    return rows


def plots(rows: list[dict[str, Any]]) -> bool:
    """Whether there is something to plot."""
    return any(row["stored"] for row in rows)


# Those that take longest first.
@pytest.mark.parametrize(
    "name",
    [
        "load",
        "over_http",
        "many_workers",
        "write_through",
        "stall",
        "cycle",
        "flat",
        "lazy",
        "messages",
        "keyboards",
        "disk",
    ],
)
def test_a_benchmark_runs(tmp_path: Path, name: str) -> None:
    """It sets up all who take part, and hands over figures, and a plot where that is asked for."""
    rows = measured(tmp_path, name)
    assert rows
    assert all(row["figure"] or row["others"] for row in rows)
    assert (tmp_path / "cycle.svg").exists() == (tmp_path / "cycle.png").exists() == plots(rows)
    drawn = any(row["workers"] for row in rows)
    assert (tmp_path / "workers.svg").exists() == (tmp_path / "workers.png").exists() == drawn
    for row in rows:
        if row["work"] in COUNTED:
            assert row["is_met"]


def test_each_benchmark_is_run() -> None:
    """`make bench` and the tests leave none out."""
    hand_over = {
        path.stem for path in BENCHMARKS.glob("*.py") if "report(asyncio" in path.read_text()
    }
    run = re.findall(r'^    \("(\w+)"', (BENCHMARKS / "run.py").read_text(), re.MULTILINE)
    tested = test_a_benchmark_runs.pytestmark[0].args[1]  # type: ignore[attr-defined]
    assert hand_over == set(run) == set(tested)
