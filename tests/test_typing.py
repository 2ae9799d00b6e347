"""What a type checker knows of a bot is true of it when it runs."""

from __future__ import annotations

from pathlib import Path

from bots import Telegram, text_update
from telegram import Update
from telegram.ext import Application
from typed_bot import BotData, ChatData, TypedApplication, UserData, build


async def test_a_typed_bot_finds_its_own_classes_again(tmp_path: Path) -> None:
    """Data of a bot that passes ``mypy --strict`` has the classes that mypy was told of."""
    for visit in (1, 2):
        app = typed(tmp_path / "bot.db")
        async with app:
            await app.process_update(Update.de_json(text_update("hello"), app.bot))
            assert type(app.user_data[1]) is UserData
            assert type(app.chat_data[1]) is ChatData
            assert type(app.bot_data) is BotData
            assert app.chat_data[1].names == ["P"] * visit
            assert app.bot_data == {"last": f"Hello {visit}"}


def typed(path: Path) -> TypedApplication:
    """Return the bot, without a network."""
    telegram = Telegram()
    return build(
        path,
        Application.builder().token("1000:TEST").request(telegram).get_updates_request(telegram),
    )
