"""The cost of a cycle against what is stored."""

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
    # Text stays text, and the same figures give the same file.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "kvpersist"}):
        figure.savefig(folder / "cycle.svg", bbox_inches="tight", metadata={"Date": None})
    figure.savefig(folder / "cycle.png", bbox_inches="tight", dpi=120)
