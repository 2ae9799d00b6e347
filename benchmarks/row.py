"""A line of the table: what was done, what it cost beside something else, and what the goal is."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

PREFIX = "ROWS "
"""Begins the line with which a benchmark hands over its rows."""
FAILED = "failed"
"""The note of a benchmark that handed over none."""


class Spread(NamedTuple):
    """The median of some figures, and between which quartiles half of them are."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        if self.low == self.high:
            return _digits(self.median)
        return f"{_digits(self.median)} ({_digits(self.low)}–{_digits(self.high)})"

    def of_median(self) -> str:
        """Return the median alone."""
        return _digits(self.median)


def spread(figures: Iterable[float]) -> Spread:
    """Return the median and the quartiles."""
    found = sorted(figures)
    if len(found) < 2:
        return Spread(found[0], found[0], found[0])
    low, _, high = statistics.quantiles(found, n=4, method="inclusive")
    return Spread(statistics.median(found), low, high)


@dataclass
class Row:
    """What was measured.

    Attributes:
        work: What was done.
        figure: What it cost, as `unit` says; None for a line that compares, or that failed.
        goal: The goal, with its comparison, for example ``<= 1.2``; empty if there is none.
        unit: What the figure is, for example ``ms``.
        others: The same figure of each contender, kvpersist too.
        note: What a reader must know.
        stored: How many chats were stored, where the plot shows `others`.
        workers: What so many workers reached, where the other plot shows it.
    """

    work: str
    figure: Spread | None = None
    goal: str = ""
    unit: str = ""
    others: dict[str, Spread] = field(default_factory=dict)
    note: str = ""
    stored: int | None = None
    workers: dict[int, Spread] = field(default_factory=dict)

    @property
    def is_met(self) -> bool | None:
        """Whether the median is at the goal; None without a goal."""
        if not self.goal:
            return None
        if self.figure is None:
            return False
        comparison, _, limit = self.goal.partition(" ")
        median = self.figure.median
        return median <= float(limit) if comparison == "<=" else median >= float(limit)

    def to_json(self) -> dict[str, Any]:
        """Return what `of_json` takes."""
        return {**asdict(self), "is_met": self.is_met}


def of_json(row: dict[str, Any]) -> Row:
    """Return a row that was JSON."""
    row = {name: value for name, value in row.items() if name != "is_met"}
    figure = row.pop("figure")
    others = {name: Spread(*other) for name, other in row.pop("others").items()}
    workers = {int(number): Spread(*each) for number, each in row.pop("workers", {}).items()}
    return Row(**row, figure=figure and Spread(*figure), others=others, workers=workers)


def report(rows: list[Row]) -> None:
    """Hand the rows to the program that started this one."""
    print(PREFIX + json.dumps([row.to_json() for row in rows]), flush=True)


def _digits(figure: float) -> str:
    """Return three digits, or all those before the point."""
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.3g}"
