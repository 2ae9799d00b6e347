"""Runs all benchmarks, one process each; prints the table, writes JSON, plots and READMEs."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path

from measure import say
from row import FAILED, PREFIX, Row, of_json
from table import beside_pickle, comparison, put_into, table

HERE = Path(__file__).parent
RESULTS = HERE / "results"
WORK = (
    ("cycle", "1000"),
    ("cycle", "10000"),
    ("cycle", "100000"),
    ("flat", "plain"),
    ("flat", "documents"),
    ("flat", "lazy"),
    ("lazy",),
    ("stall",),
    ("write_through",),
    ("over_http",),
    ("keyboards",),
    ("load",),
    ("disk",),
    ("messages",),
    ("many_workers",),
)
QUICK = (("cycle", "100"), *WORK[3:])


def main() -> int:
    """Run what was asked for by name, or all; return 1 if a benchmark failed."""
    asked = arguments()
    rows: list[Row] = []
    for name, *options in QUICK if asked.quick else WORK:
        if not asked.names or name in asked.names:
            rows += run(name, options, is_quick=asked.quick)
    if asked.quick:
        print("To see that everything runs. The goals are for other sizes.")
    print(table(rows))
    has_failed = any(row.note == FAILED for row in rows)
    is_whole = not (asked.names or asked.quick or has_failed)
    if asked.merge and not has_failed:
        rows, is_whole = merged(rows), True
    if results := asked.results or (RESULTS if is_whole else None):
        write(rows, results)
    if is_whole and results == RESULTS:
        put_into(HERE.parent / "README.md", table(rows))
        put_into(HERE / "README.md", comparison(rows))
        put_into(HERE.parent / "docs" / "why.md", beside_pickle(rows))
    return int(has_failed)


def merged(rows: list[Row]) -> list[Row]:
    """Return the rows of before, those of the same work replaced by new ones, and the new ones."""
    found = [of_json(row) for row in json.loads((RESULTS / "results.json").read_text())]
    new = {row.work: row for row in rows}
    kept = [new.pop(row.work, row) for row in found]
    return [*kept, *new.values()]


def write(rows: list[Row], folder: Path) -> None:
    """Write the rows as JSON, and the plots that they make."""
    folder.mkdir(exist_ok=True)
    found = json.dumps([row.to_json() for row in rows], indent=1)
    (folder / "results.json").write_text(f"{found}\n")
    if any(row.stored for row in rows):
        from plot import plot  # noqa: PLC0415  matplotlib takes its time

        plot(rows, folder)
    if any(row.workers for row in rows):
        from plot import plot_workers  # noqa: PLC0415  likewise

        plot_workers(rows, folder)


def arguments() -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    names = sorted({name for name, *_ in WORK})
    parser.add_argument("names", nargs="*", help=f"which, all by default: {', '.join(names)}")
    parser.add_argument("--quick", action="store_true", help="only to see that everything runs")
    parser.add_argument(
        "--merge", action="store_true", help="put what is run beside the results of before"
    )
    parser.add_argument(
        "--results", type=Path, help=f"where to write; default, if all was run: {RESULTS.name}"
    )
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(names):
        parser.error(f"no such benchmark: {', '.join(unknown)}")
    return asked


def run(name: str, options: list[str], *, is_quick: bool) -> list[Row]:
    """Return the rows that one benchmark hands over."""
    say(" ".join([name, *options]))
    done = subprocess.run(  # noqa: S603
        [sys.executable, HERE / f"{name}.py", *options],
        env=os.environ | ({"BENCH_QUICK": "1"} if is_quick else {}),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    found = [line for line in done.stdout.splitlines() if line.startswith(PREFIX)]
    if done.returncode or not found:
        return [Row(" ".join([name, *options]), note=FAILED)]
    return [of_json(row) for row in json.loads(found[-1].removeprefix(PREFIX))]


if __name__ == "__main__":
    sys.exit(main())
