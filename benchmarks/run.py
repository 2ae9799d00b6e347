"""Runs all benchmarks, one process each; prints the table, writes JSON and a plot."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from measure import RESULTS, Row, say

HERE = Path(__file__).parent
WORK = (
    ("cycle.py", "1000"),
    ("cycle.py", "10000"),
    ("cycle.py", "100000"),
    ("write_through.py",),
    ("callback.py",),
    ("stall.py",),
    ("load.py",),
    ("disk.py",),
)


def main() -> None:
    """Run what was asked for by name, or all."""
    rows: list[Row] = []
    for name, *arguments in WORK:
        if sys.argv[1:] and name.removesuffix(".py") not in sys.argv[1:]:
            continue
        say(f"{name} {' '.join(arguments)}")
        rows += run(name, arguments)
    rows += flatness(rows)
    print(table(rows))
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "results.json").write_text(json.dumps([row.to_json() for row in rows], indent=1))
    plot(rows)


def run(name: str, arguments: list[str]) -> list[Row]:
    """Return the rows that one benchmark hands over as its last line."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, HERE / name, *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("ROWS ")]
    if done.returncode or not lines:
        return [Row(f"{name} {' '.join(arguments)}", note="failed")]
    return [Row(**row) for row in json.loads(lines[-1].removeprefix("ROWS "))]


def flatness(rows: list[Row]) -> list[Row]:
    """Compare the cycle with a million stored with that of a thousand."""
    made = []
    for name in ("kvpersist", "kvpersist, documents"):
        took = {
            stored: row.times[name] for stored, row in cycles(rows).items() if name in row.times
        }
        if 1_000 in took and len(took) > 1:
            most = max(took)
            figure = took[most] / took[1_000]
            made.append(
                Row(f"{name}: 100 touched of {most:,} against of 1,000", figure, "<= 1.2", "x")
            )
    return made


def cycles(rows: list[Row]) -> dict[int, Row]:
    """Return the rows of the cycle with times, by how many were stored."""
    return {
        int(row.work.split(" of ")[1].split(", plain")[0].replace(",", "")): row
        for row in rows
        if row.work.endswith("plain dicts") and row.times
    }


def table(rows: list[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = ["| work | goal | reached | |", "|---|---|---|---|"]
    for row in rows:
        goal = row.goal.replace("<=", "≤").replace(">=", "≥")
        figure = "" if row.figure is None else f"{row.figure:.2f} {row.unit}"
        verdict = {True: "yes", False: "**no**", None: ""}[row.is_reached]
        lines.append(f"| {row.work} | {goal} | {figure} | {f'{verdict} {row.note}'.strip()} |")
    return "\n".join(lines)


def plot(rows: list[Row]) -> None:
    """Draw the cost of a cycle against what is stored, both axes logarithmic."""
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    from matplotlib import pyplot as plt  # noqa: PLC0415

    found = cycles(rows)
    if not found:
        return
    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name in dict.fromkeys(name for row in found.values() for name in row.times):
        points = sorted(
            (stored, row.times[name]) for stored, row in found.items() if name in row.times
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    axes.set(xscale="log", yscale="log", xlabel="stored chats of 0.8 KB", ylabel="ms a cycle")
    axes.set_title("update_persistence() with 100 touched chats")
    axes.legend()
    axes.grid(alpha=0.3)
    for kind in ("svg", "png"):
        figure.savefig(RESULTS / f"cycle.{kind}", bbox_inches="tight", dpi=120)


if __name__ == "__main__":
    main()
