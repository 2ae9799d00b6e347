"""Values and rows that cannot be what they are, and what PTB gets to hear of them."""

from __future__ import annotations

from datetime import datetime, timezone
from pathlib import Path

import pytest
from bots import build
from handlers import ANY, conversation, remember, text
from storages import KV, SqliteStorage, rows_of, running

from kvpersist import (
    ConfigurationError,
    DecodeError,
    EncodeError,
    KVPersistence,
)


async def test_a_value_that_cannot_be_stored_fails_alone(kv: KV) -> None:
    """PTB's error handlers hear of it, its old row stays, its neighbours are written."""
    async with running(kv, text(remember)) as bot:
        for chat_id in (1, 2, 3):
            await bot.say("x", chat_id)
        await bot.save()
        bot.app.chat_data[2]["cart"] = [{"ok": 1}, {"bad": object()}]
        for chat_id in (1, 2, 3):
            await bot.say("y", chat_id)
        await bot.save()
        (error,) = bot.errors
        assert isinstance(error, EncodeError)
        assert (error.key, error.scope, error.path) == ("chat/2", "chat", '["cart"][1]["bad"]')
        bot.errors.clear()
        assert kv.rows["chat/1"] == kv.rows["chat/3"] == b'{"said":["x","y"]}'
        assert kv.rows["chat/2"] == b'{"said":["x"]}'
        assert kv.rows["user/2"] == b'{"said":["x","y"]}'
        del bot.app.chat_data[2]["cart"]
        bot.app.mark_data_for_update_persistence(chat_ids=2)
        await bot.save()
        assert kv.rows["chat/2"] == b'{"said":["x","y"]}'


NOW = datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=timezone.utc)
VALUES = [float("inf"), {1: "one"}, b"bytes", {1}, 2**70, "\ud800", 1j, -0.0, True, 10**18, NOW]


@pytest.mark.parametrize("value", [*VALUES, object()], ids=lambda value: type(value).__name__)
async def test_no_value_is_changed_silently(kv: KV, crash: bool, value: object) -> None:
    """What JSON has no word for comes back as it was, or is refused; never as something else."""
    async with running(kv, ANY, crash=crash) as bot:
        await bot.say("x")
        bot.app.chat_data[1]["value"] = [value]
        await bot.save()
        errors, bot.errors = bot.errors, []
        if errors:
            del bot.app.chat_data[1]["value"]
    async with running(kv) as bot:
        if not errors:
            assert repr(bot.app.chat_data[1]) == repr({"value": [value]})
            return
    (error,) = errors
    assert isinstance(error, EncodeError)
    assert (error.key, error.path.split("]")[0]) == ("chat/1", '["value"')


async def test_a_state_that_cannot_be_stored_fails_alone(kv: KV) -> None:
    """The error names the conversation; other conversations of the handler are written."""
    state = object()
    async with running(kv, conversation("order", 0, state)) as bot:
        await bot.say("/start", 1)
        await bot.say("/start", 2)
        await bot.save()
        await bot.say("x", 1)
        await bot.say("/start", 3)
        await bot.save()
        (error,) = bot.errors
        bot.errors.clear()
        assert isinstance(error, EncodeError)
        assert error.key == "conversation/order/[1,1]"
        assert set(rows_of(kv, "conversation/")) == {
            f"conversation/order/[{chat_id},{chat_id}]" for chat_id in (1, 2, 3)
        }


NO_JSON = {"chat/1": '{"broken"', "conversation/order/[1,1]": "{"}
"""What PostgreSQL does not take, whoever writes it."""
BROKEN = {
    "chat/1": '{"$broken": 1}',
    "chat/2": "[1]",
    "chat/word": "{}",
    "chat/01": "{}",
    "user/1": '{"x": {"$unknown": 1}}',
    "user/": "{}",
    "bot": '"text"',
    "conversation/order/[1,1]": '{"$:Unknown": 1}',
    "conversation/order/1": "0",
    "conversation/order/[1, 1]": "0",
    "callback/abc": "[]",
    "callback/abd": '{"position": 1, "access_time": "now", "buttons": {}, "queries": {}}',
}


@pytest.mark.parametrize(("key", "value"), BROKEN.items(), ids=list(BROKEN))
async def test_a_row_that_cannot_be_read_stops_the_start(kv: KV, key: str, value: str) -> None:
    """The error names the row; it stays as it is; another bot can have the rows afterwards."""
    await stop_the_start(kv, key, value)


@pytest.mark.parametrize(("key", "value"), NO_JSON.items(), ids=list(NO_JSON))
async def test_a_row_that_is_no_json_stops_the_start(tmp_path: Path, key: str, value: str) -> None:
    """Likewise."""
    await stop_the_start(SqliteStorage(tmp_path), key, value)


async def stop_the_start(storage: KV, key: str, value: str) -> None:
    """Have another program write a row, on which a start ends."""
    async with running(storage, text(remember)) as bot:
        await bot.say("x", 5)
    storage.write(key, value)
    before = storage.all_columns()
    failed = build(storage.persistence(), [conversation()], arbitrary_callback_data=True)
    with pytest.raises(DecodeError) as caught:
        await failed.app.initialize()
    assert caught.value.key == key
    assert key in str(caught.value)
    assert storage.all_columns() == before
    storage.write(key, None)
    async with running(storage, conversation(), arbitrary_callback_data=True) as bot:
        assert bot.app.chat_data[5] == {"said": ["x"]}


async def test_a_start_that_failed_can_be_tried_again(kv: KV) -> None:
    """The same application starts when the row has been mended."""
    async with running(kv, text(remember)) as bot:
        await bot.say("x", 5)
    kv.write("user/5", '{"$broken": 1}')
    bot = build(kv.persistence())
    with pytest.raises(DecodeError):
        await bot.app.initialize()
    kv.write("user/5", '{"mended": 1}')
    async with bot.app:
        assert bot.app.user_data[5] == {"mended": 1}


@pytest.mark.parametrize("interval", [0, 0.0, -1, float("nan"), float("-inf")])
def test_an_update_interval_at_which_ptb_would_spin_is_refused(
    tmp_path: Path, interval: float
) -> None:
    """PTB keeps a processor core busy at an interval of 0; the error says so, no file is made."""
    with pytest.raises(ConfigurationError, match="processor core"):
        KVPersistence(tmp_path / "bot.db", update_interval=interval)
    assert list(tmp_path.iterdir()) == []


def test_the_update_interval_is_what_was_asked_for(tmp_path: Path) -> None:
    """PTB finds the interval where it looks for it; a second unless the bot says otherwise."""
    assert KVPersistence(tmp_path / "bot.db").update_interval == 1.0
    assert KVPersistence(tmp_path / "bot.db", update_interval=0.25).update_interval == 0.25
