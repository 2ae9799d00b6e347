"""watch: rows as they change, live."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from command import Make, documents, said

from kvpersist.cli import watching

ROWS = {"chat/1": '{"a":1}', "chat/2": "{}", "user/1": "{}"}


def when_it_looks(monkeypatch: pytest.MonkeyPatch, *steps: Any) -> None:
    """Have each wait between two looks do one of these steps."""
    turns = iter(steps)

    async def sleep(_: float) -> None:
        await asyncio.to_thread(next(turns))

    monkeypatch.setattr(watching.asyncio, "sleep", sleep)  # type: ignore[attr-defined]


def test_changes_are_shown(place: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that were written, made and removed; after so many it ends."""
    at = place(ROWS)

    def write() -> None:
        at.write("chat/1", '{"a":2}')
        at.write("chat/2", None)
        at.write("user/1", '{"a":3}')

    when_it_looks(monkeypatch, lambda: None, write)
    assert documents("watch", at.name, "chat", "--count", 2) == [
        {"key": "chat/1", "value": {"a": 2}, "version": 1, "updated_at": 0},
        {"key": "chat/2", "removed": True},
    ]
    when_it_looks(monkeypatch, lambda: at.write("chat/1", None), write)
    shown = said("watch", at.name, "--count", 2)
    assert shown.startswith("chat/1  removed\nchat/1  version 1\n")
    assert '{"a": 2}' in shown


def test_a_row_that_cannot_be_read_is_shown(place: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """As such."""
    at = place(ROWS)
    if hasattr(at, "path"):
        when_it_looks(monkeypatch, lambda: at.write("chat/3", "{"))
        assert "cannot be read" in said("watch", at.name, "--count", 1)
