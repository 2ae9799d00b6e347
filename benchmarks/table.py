"""The rows as Markdown, and where it goes."""

from __future__ import annotations

from pathlib import Path

from row import FAILED, Row

_PAIR = ("kvpersist, documents", "kvpersist, plain dicts", "PicklePersistence")
BEGIN, END = "<!-- made by `make bench` -->", "<!-- until here -->"


def table(rows: list[Row]) -> str:
    """Return the rows that have a goal, or that failed, as a table."""
    lines = ["| work | goal | reached: median (quartiles) | |", "|---|---|---|---|"]
    for row in rows:
        if not row.goal and row.note != FAILED:
            continue
        goal = _signs(f"{row.goal} {row.unit}".strip())
        verdict = {True: "met", False: "**missed**", None: ""}[row.is_met]
        note = (
            verdict
            if verdict and "Pickle" in row.note
            else "; ".join(filter(None, [verdict, row.note]))
        )
        lines.append(f"| {row.work} | {goal} | {row.figure or ''} | {note} |")
    return "\n".join(lines)


def comparison(rows: list[Row]) -> str:
    """Return a list of what was compared with kvpersist, the cheapest first."""
    items = []
    for row in rows:
        if not row.others:
            continue
        unit = _signs(row.unit.partition(":")[0])
        best_first = sorted(
            row.others.items(), key=lambda one: one[1].median, reverse="updates/s" in unit
        )
        listed = "; ".join(f"{name} {figure}" for name, figure in best_first)
        note = f" ({row.note})" if row.note else ""
        items.append(f"- **{row.work}**, in {unit}{note}: {listed}.")
    return "\n".join(items)


def beside_pickle(rows: list[Row]) -> str:
    """Return what PTB's own persistence was measured at too, as a table."""
    lines = [f"| work | in | {' | '.join(_PAIR)} |", "|---|---|---|---|---|"]
    for row in rows:
        if "PicklePersistence" not in row.others:
            continue
        figures = (row.others[name].of_median() if name in row.others else "" for name in _PAIR)
        work = row.work.removesuffix(", plain dicts").removesuffix(", documents")
        note = f" ({row.note})" if row.note else ""
        lines.append(f"| {work} | {_signs(row.unit)}{note} | {' | '.join(figures)} |")
    return "\n".join(lines)


def put_into(page: Path, text: str) -> None:
    """Replace what was made before."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def _signs(text: str) -> str:
    return text.replace("<=", "≤").replace(">=", "≥").replace("× ", "× ", 1)
