"""migrate: from PicklePersistence's files, as PTB writes them, and back, with every type."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pickle
import re
import zoneinfo
from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from codec_samples import TYPES, VALUES, register_money, same
from command import File, documents, file_of, run, said, schema_of
from hypothesis import Phase, example, given, settings
from postgres_server import PostgresServer
from storages import IDS
from telegram import Chat, InputFile, Message
from telegram.constants import ChatAction
from telegram.ext import ExtBot, PicklePersistence

from kvpersist import Codec, KVPersistence, TransferError, pickles
from kvpersist.cli import migrating
from kvpersist.migration import Data, Rows, data_of
from kvpersist.stores.visitor import Digest
from kvpersist.telegram_objects import TelegramObjects


class Color(Enum):
    """A class of the bot's."""

    RED = 1


@dataclass
class Order:
    """Another one."""

    item: str
    notes: list[str] = field(default_factory=list)


class Pair(NamedTuple):
    """A third."""

    first: int
    second: object


class Cart(dict[str, int]):
    """A document of its own class."""


class Odd:
    """One that nobody names."""


TYPES_HERE = [Color, Order, Pair, Cart]
NAMED = ["--types", f"{__name__}:TYPES_HERE"]
MESSAGE = Message(7, datetime(2026, 1, 2, tzinfo=timezone.utc), Chat(5, "private"), text="hi")
USER = {
    "order": Order("tea", ["hot"]),
    "color": Color.RED,
    "pair": Pair(1, (2,)),
    "message": MESSAGE,
    "action": ChatAction.TYPING,
    "file": InputFile(b"x", "a.txt"),
    "none": None,
    "set": {1, 2},
    "when": datetime(2026, 10, 25, 2, 30, fold=1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
    "price": Decimal("1.50"),
    "part": Fraction(1, 3),
    "id": UUID(int=1),
    "delta": timedelta(1),
    "ordered": OrderedDict(a=1),
    "big": 2**70,
    (1, "x"): "a key of a tuple",
}
PTBS = ("file", "message")
CALLBACK = ([("5f", 1.5, {"a": ["vote", 3], "b": Order("rum")}), ("5e", 2.5, {})], {"98": "5f"})


async def pickled(path: Path, *, single_file: bool = True, **more: Any) -> None:
    """Have PTB write its files, with what more is to be in the chats."""
    persistence: PicklePersistence[Any, Any, Any] = PicklePersistence(
        path, single_file=single_file, on_flush=True
    )
    bot = ExtBot("1:x")
    persistence.set_bot(bot)
    message = deepcopy(MESSAGE)
    message.set_bot(bot)
    await persistence.update_user_data(5, {**USER, "message": message})
    for chat in IDS:
        await persistence.update_chat_data(chat, {"n": chat, **more})
    await persistence.update_bot_data({"title": "ü"})
    await persistence.update_callback_data(CALLBACK)
    await persistence.update_conversation("a/b", (5, 5), Color.RED)
    await persistence.update_conversation("a/b", (5, "x"), 0)
    await persistence.update_conversation("a/b", (6, 6), None)
    await persistence.flush()


def kvpersistence(path: Path) -> KVPersistence[Any, Any, Any]:
    """Return the persistence of the bot that was moved."""
    return KVPersistence(path, types=TYPES_HERE)


@pytest.mark.parametrize("single_file", [True, False])
async def test_all_is_moved_and_back(tmp_path: Path, *, single_file: bool) -> None:
    """What kvpersist loads is what PTB loaded, of the same types; then the other way round."""
    source = tmp_path / "old.pickle"
    await pickled(source, single_file=single_file)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    new = tmp_path / "bot.db"
    (done,) = await asyncio.to_thread(documents, "migrate", source, new, *NAMED)
    assert done == {"documents": 11, "left": 0, "to": str(new)}
    assert {name: (tmp_path / name).read_bytes() for name in before} == before

    persistence = kvpersistence(new)
    bot: Any = ExtBot("2:y")
    persistence.set_bot(bot)
    user = (await persistence.get_user_data())[5]
    assert user["file"].filename == "a.txt"
    assert user["message"].get_bot() is bot
    assert user["message"].to_dict() == MESSAGE.to_dict()
    assert [*user] == [*USER]
    assert [name for name in USER if name not in PTBS and not same(USER[name], user[name])] == []
    assert await persistence.get_chat_data() == {chat: {"n": chat} for chat in IDS}
    assert await persistence.get_bot_data() == {"title": "ü"}
    assert await persistence.get_callback_data() == CALLBACK
    assert await persistence.get_conversations("a/b") == {(5, 5): Color.RED, (5, "x"): 0}
    await persistence.flush()

    back = tmp_path / "back.pickle"
    five = [] if single_file else ["--five-files"]
    (done,) = await asyncio.to_thread(documents, "migrate", new, back, *NAMED, *five)
    assert done["documents"] == 11
    ptb: PicklePersistence[Any, Any, Any] = PicklePersistence(back, single_file=single_file)
    ptb.set_bot(bot)
    user = (await ptb.get_user_data())[5]
    assert user["message"].get_bot() is bot
    assert user["message"].to_dict() == MESSAGE.to_dict()
    assert [*user] == [*USER]
    assert [name for name in USER if name not in PTBS and not same(USER[name], user[name])] == []
    assert await ptb.get_chat_data() == {chat: {"n": chat} for chat in IDS}
    assert await ptb.get_bot_data() == {"title": "ü"}
    assert await ptb.get_callback_data() == CALLBACK
    assert await ptb.get_conversations("a/b") == {(5, 5): Color.RED, (5, "x"): 0}
    files = [path for path in tmp_path.iterdir() if path.name.startswith("back")]
    assert len(files) == (1 if single_file else 5)
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


CODEC = Codec(TYPES, extensions=[TelegramObjects(lambda: None)])
register_money(CODEC)
BOT: ExtBot[None] = ExtBot("1:x")


@settings(max_examples=60, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(VALUES)
@example(re.compile("a+", re.IGNORECASE))
def test_every_value_that_pickle_and_rows_keep_is_moved(value: Any) -> None:
    """By the reader that runs nothing, too: it makes the same as pickle does."""
    try:
        text = pickle.dumps(value)
        pickle.loads(text)
    except Exception:  # noqa: BLE001  pickle does not keep it
        return
    unpickler = pickles.Unpickler(io.BytesIO(text), [*TYPES, *_money()], BOT)
    found = unpickler.load()
    assert same(found, pickle.loads(text))
    data = Data(chat_data={1: {"v": found}}, conversations={"a": {(1,): found}})
    rows = Rows(data, CODEC, lambda kind: kind is dict)
    pages = asyncio.run(_all(rows))
    assert not rows.faults
    faults: list[Any] = []
    again = asyncio.run(data_of(_pages(pages), CODEC, faults))
    assert not faults
    assert same(again.chat_data, data.chat_data)


def _money() -> list[type]:
    from codec_samples import Money  # noqa: PLC0415

    return [Money]


async def _all(rows: Rows) -> list[Any]:
    return [page async for page in rows.pages()]


async def _pages(pages: list[Any]) -> Any:
    for page in pages:
        yield page


async def test_what_cannot_be_moved_is_told_with_its_path(tmp_path: Path) -> None:
    """And nothing is moved then, unless it may be left."""
    source, new = tmp_path / "old.pickle", tmp_path / "bot.db"
    await pickled(source, cart=[Odd()])
    refused = await asyncio.to_thread(said, "migrate", source, new, *NAMED, code=1)
    assert f'cannot be moved: chat/1 → ["cart"][0]: a value of type {__name__}.Odd' in refused
    assert f"--types {__name__}:Odd" in refused
    assert "5 rows cannot be moved, so nothing was written" in refused
    assert not new.exists()
    shown = await asyncio.to_thread(said, "migrate", source, new, *NAMED, "--leave")
    assert "5 rows were left" in shown
    assert "documents: 6, left: 5" in shown
    refused = await asyncio.to_thread(said, "migrate", source, tmp_path / "b.db", code=1)
    for name in ("Color", "Order", "Pair", "Odd"):
        assert f"--types {__name__}:{name}" in refused


def write(path: Path, content: object) -> Path:
    """Write a pickle that PTB has not written."""
    path.write_bytes(pickle.dumps(content))
    return path


def test_documents_of_a_class_must_be_named(tmp_path: Path) -> None:
    """Their row has no name of it, so that nobody would know."""
    data = {"user_data": {1: Cart(tea=2)}, "chat_data": {}, "conversations": {}}
    source = write(tmp_path / "old.pickle", data)
    refused = said("migrate", source, tmp_path / "bot.db", code=1)
    assert f"user/1: a document of the class {__name__}.Cart; name it" in refused
    run("migrate", source, tmp_path / "bot.db", *NAMED)
    assert [row[:2] for row in File(tmp_path).all_columns()] == [("user/1", '{"tea":2}')]


def test_many_documents_are_moved(tmp_path: Path) -> None:
    """In pages, and from a URL of a store back."""
    data = {"user_data": {n: {"n": n} for n in range(1200)}}
    source = write(tmp_path / "old.pickle", data)
    assert documents("migrate", source, tmp_path / "bot.db")[0]["documents"] == 1200


def test_a_store_in_postgres_is_moved_to_pickle(postgres: PostgresServer, tmp_path: Path) -> None:
    """As a file is."""
    at = schema_of(postgres, {"chat/1": '{"a":1}'})
    run("migrate", at.name, tmp_path / "new.pickle")
    with (tmp_path / "new.pickle").open("rb") as file:
        assert pickle.load(file)["chat_data"] == {1: {"a": 1}}


def test_what_workers_remember_of_updates_is_not_moved(tmp_path: Path) -> None:
    """Pickle has no place for it, and no bot that it is for."""
    at = file_of(tmp_path, {"chat/1": '{"a":1}', "update/77": "{}"})
    assert documents("migrate", at.name, "new.pickle") == [
        {"documents": 1, "left": 0, "to": "new.pickle"}
    ]


@dataclass
class Drifting:
    """Changes whenever it is read."""

    n: int = 0

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Count."""
        self.n = state["n"] + 1


def test_what_does_not_come_back_as_it_is_is_not_moved(tmp_path: Path) -> None:
    """Whatever its class does."""
    source = write(tmp_path / "old.pickle", {"chat_data": {1: {"d": Drifting()}}})
    types = ["--types", f"{__name__}:Drifting"]
    refused = said("migrate", source, tmp_path / "bot.db", *types, code=1)
    assert "chat/1: it would not come back as it is" in refused


def test_members_of_enums_are_read_by_name() -> None:
    """As some are pickled."""
    text = pickle.dumps(Looks(Color, "RED"))
    assert pickles.Unpickler(io.BytesIO(text), [Color], BOT).load() is Color.RED


def test_a_store_that_changes_meanwhile_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is compared once more when it has its name."""
    source = write(tmp_path / "old.pickle", {"chat_data": {1: {}}})
    monkeypatch.setattr(migrating, "Digest", Wrong)
    assert "has other rows" in said("migrate", source, tmp_path / "bot.db", code=1)


class Wrong(Digest):
    """Counts nothing."""

    def add(self, rows: object) -> None:
        """Do not."""


def test_a_file_that_cannot_be_opened_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the system says it."""
    source = write(tmp_path / "old.pickle", {"chat_data": {1: {}}})

    def fail(*_: object) -> None:
        raise PermissionError("no permission")

    monkeypatch.setattr(pickles, "Unpickler", fail)
    assert "no permission" in said("migrate", source, tmp_path / "bot.db", code=1)


def test_a_class_of_a_script_is_found(tmp_path: Path) -> None:
    """A bot that is run as a script has written ``__main__`` in its pickles."""
    text = pickle.dumps({"user_data": {1: {"o": Order("tea")}}, "chat_data": {}}, 2)
    text = text.replace(f"c{__name__}\nOrder".encode(), b"c__main__\nOrder")
    (tmp_path / "old.pickle").write_bytes(text)
    refused = said("migrate", tmp_path / "old.pickle", tmp_path / "bot.db", code=1)
    assert "--types YOUR_SCRIPT:Order" in refused
    run("migrate", tmp_path / "old.pickle", tmp_path / "bot.db", *NAMED)
    assert json.loads(File(tmp_path).all_columns()[0][1])["o"]["$:Order"]["item"] == "tea"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        ({"user_data": {"x": {}}}, "the id of a user must be an int"),
        ({"conversations": {"a": {(object,): 1}}}, "a value of type type"),
        ({"conversations": {"a": {(1,): object}}}, "a value of type type"),
        ({"callback_data": ([("k", 1.5, {"b": object})], {})}, "callback/k"),
        ({"chat_data": {1: {"t": type("Never", (), {})}}}, "cannot be read as a pickle"),
    ],
)
def test_what_has_no_row_is_told(data: dict[str, Any], reason: str, tmp_path: Path) -> None:
    """Keys, states and keyboards, too."""
    path = tmp_path / "old.pickle"
    try:
        write(path, data)
    except (pickle.PicklingError, AttributeError):
        path.write_bytes(b"\x80\x04cbuiltins\neval\n(R.")
        reason = "cannot be read as a pickle" if reason else reason
    assert reason in said("migrate", path, tmp_path / "bot.db", code=1)
    assert not (tmp_path / "bot.db").exists()


class Evil:
    """Runs a command when it is unpickled by pickle."""

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Touch a file."""
        return os.system, ("touch hacked",)


class Looks:
    """Asks for an attribute."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Call getattr."""
        return getattr, self.arguments


@pytest.mark.parametrize(
    "content",
    [Evil(), Looks(dict, "fromkeys"), Looks(Looks, "__reduce__"), Looks(Color, "mro")],
)
def test_nothing_in_a_pickle_is_run(content: object, tmp_path: Path) -> None:
    """What it names is not even imported."""
    data = {"user_data": {1: {"evil": content}}, "chat_data": {}, "conversations": {}}
    source = write(tmp_path / "old.pickle", data)
    assert "canno" in said("migrate", source, tmp_path / "bot.db", *NAMED, code=1)
    assert not Path("hacked").exists()


@pytest.mark.parametrize(
    "text",
    [
        b"\x80\x04\x8c\x05other\x85Q.",  # an object outside of the file, under another mark
        b"\x80\x04cbuiltins\neval\n(\x8c\x011tR.",
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        b"ctelegram._files.inputfile\nInputMedia\n.",
        b"\x80\x04ctelegram._user\nUser\n)\x81.",  # PTB's classes are made by its function alone
        b"",
        b"\x80\x04]",
        pickle.dumps([1]),
        pickle.dumps({"other": 1}),
        pickle.dumps({"user_data": [1]}),
        pickle.dumps({"conversations": {"a": 1}}),
        pickle.dumps({"callback_data": [1]}),
    ],
)
def test_what_is_no_pickle_of_ptb_is_refused(text: bytes, tmp_path: Path) -> None:
    """With the file, and what was found."""
    (tmp_path / "old.pickle").write_bytes(text)
    assert "old.pickle" in said(
        "migrate", tmp_path / "old.pickle", tmp_path / "bot.db", "--from", "pickle", code=1
    )
    assert not (tmp_path / "bot.db").exists()


def test_old_protocols_are_read() -> None:
    """Bytes, sets and ranges are written by functions there."""
    value = [b"\xff", {1}, range(3), bytearray(b"a"), 1j, Color.RED, Path("a")]
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        text = pickle.dumps(value, protocol)
        assert pickles.Unpickler(io.BytesIO(text), [Color], BOT).load() == value


def test_an_unknown_object_takes_whatever_it_gets() -> None:
    """A list, dict or set of a class that was not named, and one with a state."""
    text = pickle.dumps([Listed([1, 2]), Cart(a=1), Sets({1}), Order("a"), Listed([1])])
    unpickler = pickles.Unpickler(io.BytesIO(text), [], BOT)
    found = unpickler.load()
    assert all(isinstance(each, pickles.Unknown) for each in found)
    assert {name for _, name in unpickler.unknown} >= {"Listed", "Cart", "Order"}
    pickles.Unknown().add(1)


class Listed(list[int]):
    """A list of the bot's."""


class Sets(set[int]):
    """A set of the bot's."""


async def test_an_unknown_telegram_object_and_bot_are_told(tmp_path: Path) -> None:
    """A class that a newer PTB has, and a bot that is not the one that ran."""
    source = tmp_path / "old.pickle"
    await pickled(source)
    text = source.read_bytes().replace(b"\x8c\x0etelegram._user", b"\x8c\x0etelegram._uxxr")
    source.write_bytes(text.replace(b"telegram._message", b"telegram._massage"))
    refused = await asyncio.to_thread(said, "migrate", source, tmp_path / "bot.db", *NAMED, code=1)
    assert "telegram._massage.Message" in refused
    marks = {"user_data": {1: {"b": pickles._UNKNOWN_BOT}}}
    assert (
        pickles.Unpickler(io.BytesIO(pickle.dumps(marks)), [], BOT).persistent_load(
            pickles._UNKNOWN_BOT
        )
        is None
    )


async def test_rows_that_cannot_be_read_are_not_moved_back(tmp_path: Path) -> None:
    """They are told; or left, when that is asked for."""
    at = await asyncio.to_thread(
        file_of, tmp_path, {"chat/1": '{"o":{"$:Order":{"item":"tea"}}}', "bot": "{}", "x": "1"}
    )
    to = tmp_path / "new.pickle"
    refused = await asyncio.to_thread(said, "migrate", at.name, to, code=1)
    assert "chat/1" in refused
    assert "which is not listed" in refused
    assert "x: no document of kvpersist's" in refused
    assert not to.exists()
    refused = await asyncio.to_thread(said, "migrate", at.name, to, "--leave", code=1)
    assert "there is nothing to move" in refused
    await asyncio.to_thread(run, "migrate", at.name, to, "--leave", *NAMED)
    ptb: PicklePersistence[Any, Any, Any] = PicklePersistence(to)
    ptb.set_bot(BOT)
    found = await ptb.get_chat_data()
    assert found[1]["o"].item == "tea"


async def test_nothing_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And nothing half written."""
    at = await asyncio.to_thread(file_of, tmp_path, {"chat/1": '{"a":1}', "user/1": '{"a":1}'})
    to = tmp_path / "new.pickle"
    Path(f"{to}_chat_data").touch()
    assert "is not overwritten" in await asyncio.to_thread(said, "migrate", at.name, to, code=1)
    Path(f"{to}_chat_data").unlink()
    assert "must end with" in await asyncio.to_thread(said, "migrate", at.name, "x.db", code=2)
    syncs: Iterator[int] = iter(range(9))

    def fail(_: object) -> None:
        if next(syncs):
            raise OSError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(pickles, "sync", fail)
        five = await asyncio.to_thread(said, "migrate", at.name, to, "--five-files", code=1)
        assert "the disk is full" in five
    with monkeypatch.context() as patch:
        patch.setattr(pickles, "read", lambda *_: (Data(), set()))
        differs = await asyncio.to_thread(said, "migrate", at.name, to, code=1)
        assert "what was read again differs" in differs
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bot.db", "bot.db-lock"]
    source = tmp_path / "old.pickle"
    await pickled(source)
    refused = await asyncio.to_thread(said, "migrate", source, at.name, *NAMED, code=1)
    assert "has rows already" in refused


def test_a_source_that_is_missing_is_said(tmp_path: Path) -> None:
    """With the names that would be read."""
    assert "old_user_data" in said("migrate", tmp_path / "old", tmp_path / "bot.db", code=1)
    with pytest.raises(TransferError):
        pickles.find(tmp_path / "old")
