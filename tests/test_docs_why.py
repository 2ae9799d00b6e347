"""docs/why.md says what `PicklePersistence` loses, and what was measured."""

from __future__ import annotations

import json
import pickle
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from claims import claims, exists
from telegram.ext import PicklePersistence

from kvpersist import EncodeError, KVPersistence, NotAStoreError, OpenError, StoreInUseError

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "why.md"
RAN: list[str] = []


async def write(path: Path, chat_id: int = 1, value: object = "kept") -> None:
    """Store a document as a bot of `PicklePersistence` does."""
    persistence = PicklePersistence(path)
    await persistence.get_chat_data()
    await persistence.update_chat_data(chat_id, {"value": value})


async def read(path: Path) -> Any:
    """Return what the next start finds."""
    return await PicklePersistence(path).get_chat_data()


async def test_the_file_is_emptied_first(tmp_path: Path) -> None:
    """While it is written there is nothing in it: a kill in that moment leaves nothing."""
    path = tmp_path / "bot.pickle"
    await write(path)
    sizes = []

    class Witness:
        def __reduce__(self) -> tuple[Any, ...]:
            sizes.append(path.stat().st_size)
            return (str, ())

    await write(path, 2, Witness())
    assert sizes == [0]


async def test_everything_is_written_for_each_chat(tmp_path: Path) -> None:
    """In the thread of the event loop; a run of three chats writes three times all there is."""
    written: list[bool] = []

    class Witness:
        def __reduce__(self) -> tuple[Any, ...]:
            is_main = threading.current_thread() is threading.main_thread()
            written.append(is_main)
            return (str, ())

    persistence = PicklePersistence(tmp_path / "bot.pickle")
    await persistence.update_chat_data(0, {"witness": Witness()})
    written.clear()
    for chat_id in (1, 2, 3):
        await persistence.update_chat_data(chat_id, {})
    assert written == [True] * 3


async def test_a_lambda_breaks_the_file(tmp_path: Path) -> None:
    """Of all chats."""
    path = tmp_path / "bot.pickle"
    await write(path)
    with pytest.raises((pickle.PicklingError, AttributeError)):
        await write(path, 2, lambda: None)
    with pytest.raises(TypeError):
        await read(path)


async def test_a_lambda_breaks_no_row(tmp_path: Path) -> None:
    """The error says where it is."""
    persistence = KVPersistence(tmp_path / "bot.db")
    await persistence.update_chat_data(2, {"value": "kept"})
    with pytest.raises(EncodeError, match="chat/2"):
        await persistence.update_chat_data(2, {"value": lambda: None})
    await persistence.flush()
    assert await persistence.get_chat_data() == {2: {"value": "kept"}}
    await persistence.flush()


async def test_what_cannot_be_opened_counts_as_empty(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Any `OSError`; the next write replaces what is there."""
    path = tmp_path / "bot.pickle"
    await write(path)

    def refuse(*_: object) -> None:
        raise PermissionError(path)

    persistence = PicklePersistence(path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert await persistence.get_chat_data() == {}
    await persistence.update_chat_data(2, {"value": "new"})
    assert await read(path) == {2: {"value": "new"}}


async def test_what_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    """It stays as it is."""
    (tmp_path / "bot.db").mkdir()
    with pytest.raises(OpenError):
        await KVPersistence(tmp_path / "bot.db").get_chat_data()
    (tmp_path / "other.db").write_text("not a database")
    with pytest.raises(NotAStoreError):
        await KVPersistence(tmp_path / "other.db").get_chat_data()
    assert (tmp_path / "other.db").read_text() == "not a database"


async def test_two_bots_overwrite_each_other(tmp_path: Path) -> None:
    """The last one to write wins, for all chats."""
    path = tmp_path / "bot.pickle"
    bots = [PicklePersistence(path) for _ in range(2)]
    for bot in bots:
        assert await bot.get_chat_data() == {}
    await bots[0].update_chat_data(1, {"value": "of the first"})
    await bots[1].update_chat_data(2, {"value": "of the second"})
    assert await read(path) == {2: {"value": "of the second"}}


async def test_a_second_bot_is_refused(tmp_path: Path) -> None:
    """At once."""
    first = KVPersistence(tmp_path / "bot.db")
    await first.get_chat_data()
    with pytest.raises(StoreInUseError):
        await KVPersistence(tmp_path / "bot.db").get_chat_data()
    await first.flush()


async def test_a_pickle_runs_code(tmp_path: Path) -> None:
    """Whoever can write the file decides which."""
    path = tmp_path / "bot.pickle"
    RAN.clear()
    path.write_bytes(
        b"c" + __name__.encode() + b"\nrun\n(Vcode\ntR0."  # a call of `run`, in pickle's words
    )
    with pytest.raises(TypeError):
        await read(path)
    assert RAN == ["code"]


def run(what: str) -> None:
    """Be run by a pickle."""
    RAN.append(what)


def test_the_interval_is_a_second(tmp_path: Path) -> None:
    """With PTB's own builder."""
    assert KVPersistence(tmp_path / "bot.db").update_interval == 1


def test_the_figures_are_those_that_were_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """`make bench` writes them here too."""
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])
    from row import of_json  # noqa: PLC0415
    from table import BEGIN, END, beside_pickle  # noqa: PLC0415

    measured = json.loads((ROOT / "benchmarks" / "results" / "results.json").read_text())
    _, _, rest = PAGE.read_text().partition(f"{BEGIN}\n")
    assert rest.partition(f"\n{END}")[0] == beside_pickle([of_json(row) for row in measured])


def test_what_is_lost_is_shown_by_tests() -> None:
    """Each row of that table names tests that exist."""
    rows = [(claim, tests) for claim, tests in claims(PAGE) if claim.count(" | ") == 2]
    assert len(rows) == 6
    for claim, tests in rows:
        assert len(tests) >= 2, claim
        assert all(exists(test, Path(__file__)) for test in tests), claim
