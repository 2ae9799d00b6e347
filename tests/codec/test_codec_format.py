"""The format is what docs/format.md says, and what was once released is read for ever."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import codec_samples
import pytest
import telegram
from codec_samples import make_codec, same
from telegram import TelegramObject
from telegram.constants import ChatAction

from kvpersist.codec import Codec
from kvpersist.telegram_objects import TelegramObjects

ROOT = Path(__file__).parents[2]
FORMAT = (ROOT / "docs/format.md").read_text()
GOLDEN = sorted((ROOT / "tests/golden").glob("format-*.txt"))
BOT = telegram.Bot("1:x")
NAMES: dict[str, Any] = {
    **vars(telegram),
    **vars(codec_samples),
    "PosixPath": Path,
    "ChatAction": ChatAction,
    "BOT": BOT,
}


def make() -> Codec:
    return make_codec(extensions=[TelegramObjects(lambda: BOT)])


def table_rows(text: str) -> list[list[str]]:
    """Return the cells of all tables, without the headings."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines]
    cells = [[cell.strip().replace("\\|", "|") for cell in row] for row in rows]
    return [row for row in cells if row[0] not in {"tag", "class", "what", "type", "---"}]


def code(cell: str) -> str:
    return cell.strip("`")


def is_same(value: Any, back: Any) -> bool:
    """Compare Telegram objects, some of which are never equal, by their attributes."""
    if value is back:
        return True
    if isinstance(value, TelegramObject):
        value, back = ([type(each), each.to_dict()] for each in (value, back))
    return same(value, back)


EXAMPLES = [(code(row[2]), code(row[3])) for row in table_rows(FORMAT) if row[2]]


@pytest.mark.parametrize(("python", "stored"), EXAMPLES)
def test_each_example_is_stored_as_documented(python: str, stored: str) -> None:
    """The page shows what is really written, and it is read back."""
    value = eval(python, NAMES)
    assert make().encode(value).decode() == stored
    back = make().decode(stored.encode())
    assert is_same(value, back)
    assert make().encode(back).decode() == stored


def test_each_tag_is_documented_and_each_documented_tag_exists() -> None:
    """A tag that nobody has written down cannot be read by anybody else."""
    documented = {code(row[0]) for row in table_rows(FORMAT) if row[0].startswith("`$")}
    assert documented - {"$$…", "$windowspath"} == Codec().tags()


@pytest.mark.parametrize("release", GOLDEN, ids=lambda path: path.name)
def test_what_an_earlier_release_stored_is_read(release: Path) -> None:
    """Every text in the golden file of a release means what it meant then."""
    codec = make()
    for line in release.read_text().splitlines():
        python, stored = line.split("\t")
        value, back = eval(python, NAMES), codec.decode(stored.encode())
        assert codec.encode(value) == codec.encode(back), stored
        assert is_same(value, back)


def test_golden_files_have_every_tag() -> None:
    """No tag can change without a golden text failing."""
    stored = "".join(path.read_text() for path in GOLDEN)
    assert {tag for tag in Codec().tags() if f'"{tag}"' not in stored} == set()
