"""Runs the suites of faults for some time, each time with another seed.

``make torture`` runs it too, or ``python tests/fault_suites.py --seconds 600 --seed 1``. What a
seed decides is up to the suite: where the power is cut, which bits are bent, what hypothesis tries.
In the others it decides nothing, but time does: they are run again all the same. It ends with a
whole suite, and exits with 0 only when all of them passed.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections import defaultdict
from itertools import count
from pathlib import Path
from typing import Final

SUITES: Final = (
    "bad_rows",
    "backup",
    "rescue",
    "cancellation",
    "group_commit_races",
    "faults",
    "damage",
    "file_moved",
    "power_cut",
    "io_errors",
    "interleavings",
    "stateful",
)
SEEDED: Final = ("damage", "power_cut", "io_errors", "interleavings", "stateful")
"""Those in which a seed decides something."""


def run(suite: str, seed: int) -> str:
    """Run one suite; return what it said if anything failed."""
    options = [f"--hypothesis-seed={seed}", "-q", "-p", "no:cacheprovider", "-n", "auto"]
    path = Path(__file__).with_name(f"test_{suite}.py")
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(path)],
        env=os.environ | {"KVPERSIST_SEED": str(seed)},
        capture_output=True,
        text=True,
        check=False,
    )
    return ran.stdout + ran.stderr if ran.returncode else ""


def suites(seconds: float, first_seed: int) -> str:
    """Run suite after suite, at least one; say which, how often; return what failed first."""
    until = time.monotonic() + seconds
    say(f"suites of faults, from seed {first_seed}, for {seconds:g} s")
    passed: defaultdict[str, list[int]] = defaultdict(list)
    failed = ""
    for seed, suite in ((seed, suite) for seed in count(first_seed) for suite in SUITES):
        if failed := run(suite, seed):
            say(failed)
            say(f"KVPERSIST_SEED={seed} pytest --hypothesis-seed={seed} tests/test_{suite}.py")
            break
        passed[suite].append(seed)
        if time.monotonic() >= until:
            break
    for suite in SUITES:
        seeds = passed[suite]
        said = f"passed {len(seeds)} times" if seeds else "not run"
        if seeds and suite in SEEDED:
            said += f", seeds {seeds[0]} to {seeds[-1]}"
        say(f"{suite:>20}: {said}")
    return failed


def say(*words: object) -> None:
    """Tell the person."""
    print(*words, flush=True)  # noqa: T201  it talks to a person


def main() -> int:
    """Do what the arguments say."""
    parser = argparse.ArgumentParser(description="Run the suites of faults, with many seeds.")
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    return 1 if suites(given.seconds, given.seed) else 0


if __name__ == "__main__":
    sys.exit(main())
