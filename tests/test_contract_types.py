"""Values of all types across a restart, through a real `Application` and real stores.

A bot that used PTB's `PicklePersistence` changes one line, names its classes, and behaves the same:
what can be asked of both is asked of both.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from bots import App, query_update
from codec_samples import TYPES, VALUES, Color, Level, Mode, Point, register_money, same
from handlers import END, conversation, step, text
from hypothesis import given, settings
from hypothesis import strategies as st
from storages import KV, Storage, running
from telegram import InlineKeyboardButton, InlineKeyboardMarkup, Message, Update, User
from telegram.ext import (
    BasePersistence,
    CallbackQueryHandler,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    PersistenceInput,
)

from kvpersist import KVPersistence


class Stage(Enum):
    """Where a customer is."""

    ITEM = "item"
    AMOUNT = "amount"


class Stop(NamedTuple):
    """Where a parcel goes by."""

    city: str
    on: date


@dataclass
class Purchase:
    """What a customer bought."""

    item: str
    price: Decimal
    at: datetime
    route: list[Stop] = field(default_factory=list)


@dataclass(frozen=True)
class Asked:
    """A state that knows what the question was about."""

    item: str
    stage: Stage = Stage.AMOUNT


class ChatData:
    """As in PTB's `contexttypesbot`: a plain class."""

    def __init__(self) -> None:
        self.clicks_per_message: defaultdict[int, int] = defaultdict(int)


class UserData(dict[str, Any]):
    """A dict with an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.visits: Counter[str] = Counter()


@dataclass
class BotData:
    """What the bot knows of all."""

    users: set[int] = field(default_factory=set)
    since: datetime | None = None


CUSTOM: ContextTypes[Any, Any, Any, Any] = ContextTypes(
    chat_data=ChatData, user_data=UserData, bot_data=BotData
)
CLASSES = (Stage, Stop, Purchase, Asked, Color, Level, Mode, Point)


@pytest.fixture
def typed(storage: Storage) -> Storage:
    """Give what lasts between two runs, of a bot that has named its classes where it must."""
    if isinstance(storage, KV):
        storage.types = CLASSES
    return storage


class AllTypes:
    """A bot that has named every class of the samples."""

    def __init__(self, kv: KV) -> None:
        self.kv = kv
        self.kv.types = (*TYPES,)

    def persistence(
        self,
        *,
        store_data: PersistenceInput | None = None,
        context_types: ContextTypes[Any, Any, Any, Any] | None = None,
    ) -> KVPersistence[Any, Any, Any]:
        persistence = self.kv.persistence(store_data=store_data, context_types=context_types)
        register_money(persistence.codec)
        return persistence

    async def crash(self, persistence: BasePersistence[Any, Any, Any]) -> None:
        await self.kv.crash(persistence)


def copyable(value: object) -> bool:
    """Whether PTB can hand the value over: it makes a deep copy, which not every value survives.

    A read-only view of a dict has none, and one of an object whose `__getstate__` returns None
    lacks its attributes.
    """
    with suppress(TypeError, AttributeError):
        return same(value, deepcopy(value))
    return False


@settings(max_examples=25, deadline=None)
@given(st.lists(VALUES.filter(copyable), min_size=1, max_size=12))
async def test_values_of_every_type_come_back_after_a_restart(kv: KV, values: list[Any]) -> None:
    """What a handler keeps, of whatever supported type, is there in the next run."""
    storage = AllTypes(kv)

    async def keep(_: Update, context: Any) -> None:
        for data in (context.chat_data, context.user_data, context.bot_data):
            data["kept"] = values
            data[1, "a"] = values[0]

    async with running(storage, text(keep)) as bot:
        await bot.say("keep")
    async with running(storage) as bot:
        app: App = bot.app
        for data in (app.chat_data[1], app.user_data[1], app.bot_data):
            assert same(data, {"kept": values, (1, "a"): values[0]})


@pytest.mark.parametrize(
    "states",
    [
        (("amount", 3), ("amount", ("nested", Stage.ITEM))),
        (Stage.ITEM, Stage.AMOUNT),
        (Level.LOW, Level.HIGH),
        (Mode.FAST, Color.RED, "RED"),
        (Point(1, 2), Asked("tea"), Asked("tea", Stage.ITEM)),
        (Stop("Ulm", date(2026, 1, 2)), frozenset({1, Stage.ITEM}), Decimal("1.50")),
        (None.__class__.__name__, 2**70, b"\0", datetime(2026, 1, 2, tzinfo=timezone.utc)),
    ],
    ids=range(7),
)
async def test_a_conversation_goes_on_in_a_state_of_any_type(
    typed: Storage, crash: bool, states: tuple[Any, ...]
) -> None:
    """A state is the key of a dict: it must come back as the very same key."""
    async with running(typed, conversation("order", *states), crash=crash) as bot:
        await bot.say("/start")
        await bot.save()
    for state in states:
        async with running(typed, conversation("order", *states), crash=crash) as bot:
            await bot.say("x")
            assert bot.answers() == [f"was at {state!r}"]
            await bot.save()


@pytest.mark.filterwarnings("ignore:If 'per_message=True'")  # and none with per_chat, if inline
async def test_conversations_of_messages_and_of_inline_messages_are_told_apart(
    typed: Storage, crash: bool
) -> None:
    """The key of a conversation has an int for a message, and a str for an inline one."""
    handler: ConversationHandler[Any] = ConversationHandler(
        entry_points=[CallbackQueryHandler(step(Stage.ITEM, "started"), "^start")],
        states={Stage.ITEM: [CallbackQueryHandler(step(END, "ended"), "^end")]},
        fallbacks=[],
        name="inline",
        persistent=True,
        per_chat=False,
        per_message=True,
    )
    inline = ["5", "$tuple", "a/b%", '["x"]']
    message = {"message_id": 5, "date": 0, "chat": {"id": 1, "type": "private"}, "text": "?"}
    async with running(typed, handler, crash=crash) as bot:
        await bot.receive(query_update("start", message=message))
        for identity in inline[1:]:
            await bot.receive(query_update("start", inline_message_id=identity))
        assert bot.answers() == ["started"] * 4
        await bot.save()
    async with running(typed, handler) as bot:
        await bot.receive(query_update("end", inline_message_id=inline[0]))
        assert bot.answers() == []
        await bot.receive(query_update("end", message=message))
        for identity in inline[1:]:
            await bot.receive(query_update("end", inline_message_id=identity))
        assert bot.answers() == ["ended"] * 4


async def test_a_button_carries_values_of_any_type(typed: Storage, crash: bool) -> None:
    """What a press brings after a restart is what the button was given."""
    data = [
        ("vote", Color.RED),
        Purchase("tea", Decimal("2.50"), datetime(2026, 1, 2, tzinfo=timezone.utc)),
        {Stage.ITEM: {1, 2}},
        Asked("tea"),
        User(5, "Ada", is_bot=False),
    ]
    presses = CallbackQueryHandler(step(None, "pressed"))
    async with running(typed, presses, arbitrary_callback_data=True, crash=crash) as bot:
        message = await bot.ask(*data)
        await bot.save()
    async with running(typed, presses, arbitrary_callback_data=True) as bot:
        for number, item in enumerate(data):
            query = await bot.press(message, number)
            assert type(query.data) is type(item)
            assert query.data == item


async def test_custom_context_types_need_no_listing(storage: Storage, crash: bool) -> None:
    """A bot in the shape of PTB's `contexttypesbot` counts on after each restart."""

    async def click(update: Update, context: Any) -> None:
        assert update.effective_user is not None
        context.chat_data.clicks_per_message[7] += 1
        # PicklePersistence compares what a dict holds, and so overlooks its attributes.
        context.user_data["last"] = (update.effective_user.id, update.update_id)
        context.user_data.visits[update.effective_user.first_name] += 1
        context.bot_data.users.add(update.effective_user.id)
        context.bot_data.since = context.bot_data.since or datetime(2026, 1, 2)  # noqa: DTZ001

    for visit in (1, 2, 3):
        async with running(storage, text(click), context_types=CUSTOM, crash=crash) as bot:
            assert bot.app.bot_data == BotData({1} if visit > 1 else set(), bot.app.bot_data.since)
            update = await bot.say("x")
            await bot.save()
            chat, user = bot.app.chat_data[1], bot.app.user_data[1]
            assert type(chat) is ChatData
            assert same(vars(chat), {"clicks_per_message": defaultdict(int, {7: visit})})
            assert type(user) is UserData
            assert same(dict(user), {"last": (1, update.update_id)})
            assert same(vars(user), {"visits": Counter(P=visit)})
            assert bot.app.bot_data == BotData({1}, datetime(2026, 1, 2))  # noqa: DTZ001
    if isinstance(storage, KV):
        assert storage.rows == {
            "bot": b'{"users":{"$set":[1]},"since":{"$datetime":"2026-01-02T00:00:00"}}',
            "chat/1": b'{"clicks_per_message":{"$defaultdict":["int",[[7,3]]]}}',
            "user/1": b'{"$:UserData":{"$base":{"last":{"$tuple":[1,%d]}},'
            b'"visits":{"$counter":{"P":3}}}}' % update.update_id,
        }


async def test_telegram_objects_come_back_for_the_bot_that_runs(
    typed: Storage, crash: bool
) -> None:
    """A message that a handler kept has its sender, its keyboard, and a bot to answer with."""
    keyboard = InlineKeyboardMarkup.from_button(InlineKeyboardButton("?", callback_data="x"))

    async def keep(update: Update, context: Any) -> None:
        context.chat_data["last"] = update.message
        context.bot_data[update.effective_user] = [update]

    async with running(typed, text(keep), crash=crash) as bot:
        update = await bot.say("hello")
        assert update.message is not None
        kept = Message.de_json(
            {**update.message.to_dict(), "reply_markup": keyboard.to_dict(), "novelty": [1]},
            bot.app.bot,
        )
        bot.app.chat_data[1]["all"] = (kept,)
        await bot.save()
    async with running(typed) as bot:
        data = bot.app.chat_data[1]
        (back,) = data["all"]
        assert back == kept
        assert back.to_dict() == kept.to_dict()
        assert back.reply_markup == keyboard
        assert dict(back.api_kwargs) == {"novelty": [1]}
        assert bot.app.bot_data == {update.effective_user: [update]}
        for value in _telegram_objects(back, data["last"]):
            assert value.get_bot() is bot.app.bot
        await data["last"].reply_text("and back")
        await back.from_user.send_message("you too")
        assert bot.answers() == ["and back", "you too"]


def _telegram_objects(*messages: Message) -> Iterator[Any]:
    for message in messages:
        yield from (message, message.from_user, message.chat)


async def shop_start(update: Update, context: Any) -> Any:
    """Begin; the greeting depends on what is known of the customer."""
    assert update.message is not None
    first = context.user_data.setdefault("first", update.message)
    await first.reply_text(f"What do you want, {first.from_user.first_name}?")
    return Stage.ITEM


async def shop_item(update: Update, context: Any) -> Any:
    """Take what is wanted; the state itself says what it is."""
    assert update.message is not None
    context.chat_data["times"] = (*context.chat_data.get("times", ()), update.message.date)
    await update.message.reply_text("How many?")
    return Asked("tea") if update.message.text == "tea" else ("asked", update.message.text)


def shop_amount(item: str) -> Any:
    """Return the handler of a state that knows the item."""

    async def take(update: Update, context: Any) -> Any:
        assert update.message is not None
        assert update.message.text is not None
        berlin = ZoneInfo("Europe/Berlin")
        route = [Stop("Ulm", context.chat_data["times"][-1].astimezone(berlin).date())]
        price = Decimal("1.10") * int(update.message.text)
        bought = Purchase(item, price, update.message.date + timedelta(days=1), route)
        context.user_data.setdefault("bought", []).append(bought)
        context.bot_data.setdefault("sold", defaultdict(int))[item, Stage.AMOUNT] += 1
        await update.message.reply_text(
            f"{context.user_data['bought']!r} {dict(context.bot_data['sold'])!r}"
        )
        return END

    return take


def shop() -> ConversationHandler[Any]:
    """Return a shop that keeps whatever Python has for it."""
    return ConversationHandler(
        entry_points=[CommandHandler("start", shop_start)],
        states={
            Stage.ITEM: [text(shop_item)],
            Asked("tea"): [text(shop_amount("tea"))],
            ("asked", "milk"): [text(shop_amount("milk"))],
        },
        fallbacks=[],
        name="shop",
        persistent=True,
    )


async def test_a_bot_that_used_pickle_changes_one_line(typed: Storage, crash: bool) -> None:
    """With a restart after each message the bot says the same with either persistence."""
    answers: list[str] = []
    for said in ("/start", "tea", "2", "/start", "milk", "3", "/start", "tea", "1"):
        async with running(typed, shop(), crash=crash) as bot:
            await bot.say(said)
            answers += bot.answers()
            await bot.save()
    at = datetime(1970, 1, 2, tzinfo=timezone.utc)
    route = [Stop("Ulm", date(1970, 1, 1))]
    bought = [
        Purchase("tea", Decimal("2.20"), at, route),
        Purchase("milk", Decimal("3.30"), at, route),
        Purchase("tea", Decimal("1.10"), at, route),
    ]
    tea, milk = ("tea", Stage.AMOUNT), ("milk", Stage.AMOUNT)
    results = [(bought[:1], {tea: 1}), (bought[:2], {tea: 1, milk: 1}), (bought, {tea: 2, milk: 1})]
    assert answers == [
        answer
        for purchases, sold in results
        for answer in ("What do you want, P?", "How many?", f"{purchases!r} {sold!r}")
    ]
    if isinstance(typed, KV):
        rows = {key: json.loads(value) for key, value in typed.rows.items()}
        assert rows["bot"]["sold"]["$defaultdict"][1][0] == [
            {"$tuple": ["tea", {"$:Stage": "AMOUNT"}]},
            2,
        ]
        assert rows["user/1"]["bought"][0]["$:Purchase"]["price"] == {"$decimal": "2.20"}
