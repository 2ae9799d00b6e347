"""Plots: the cost of a cycle against what is stored, and updates/s against workers."""

from __future__ import annotations

from pathlib import Path

from contenders import Documents, KVPersist, Limit
from matplotlib import rc_context
from matplotlib.figure import Figure
from row import Row

OURS = (KVPersist.name, Documents.name)


def plot(rows: list[Row], folder: Path) -> None:
    """Draw how many times as much as the limit a cycle costs; both axes are logarithmic."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        for name, cost in row.others.items() if row.stored else ():
            lines.setdefault(name, []).append((row.stored or 0, cost.median))
    figure = Figure(figsize=(8, 4.5))
    axes = figure.subplots()
    for name, points in sorted(lines.items(), key=lambda line: -max(line[1])[1]):
        style = "--" if name == Limit.name else "-"
        width = 3 if name in OURS else 1.2
        axes.plot(*zip(*sorted(set(points)), strict=True), style, marker="o", lw=width, label=name)
    axes.set(xscale="log", yscale="log", xlabel="stored chats of 0.8 KB", ylabel="× the limit")
    axes.set_title("Saving 100 chats that changed")
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    if lines:
        axes.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    _save(figure, folder / "cycle")


def plot_workers(rows: list[Row], folder: Path) -> None:
    """Draw how many times as many updates/s workers handle as one does."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    for row in rows:
        if row.workers:
            numbers = sorted(row.workers)
            reached = [row.workers[number].median for number in numbers]
            axes.plot(numbers, reached, marker="o", lw=2, label=_short(row.work))
            axes.plot(numbers, numbers, "--", color="grey", lw=1, zorder=0)
    axes.set(xlabel="workers", ylabel="× the updates/s of one", xticks=numbers)
    axes.set_title("Updates/s of many workers (dashed: linear)")
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    _save(figure, folder / "workers")


def _short(work: str) -> str:
    what, *_, how = work.removeprefix("updates whose handlers ").split(", ")
    return f"handlers {what}, {how.removesuffix(' in each process')}"


def _save(figure: Figure, path: Path) -> None:
    # Text stays text, and the same figures give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kvpersist"}):
        figure.savefig(path.with_suffix(".svg"), bbox_inches="tight", metadata={"Date": None})
    figure.savefig(path.with_suffix(".png"), bbox_inches="tight", dpi=120)
