"""Telegram objects come back as PicklePersistence brings them back."""

from __future__ import annotations

import datetime as dt
import inspect
import pickle
import warnings
from copy import deepcopy
from typing import Any

import pytest
import telegram
from telegram import Bot, TelegramObject, constants
from telegram.ext import ExtBot

from kvpersist.codec import Codec, Named
from kvpersist.errors import ConfigurationError, DecodeError, EncodeError
from kvpersist.telegram_objects import TelegramObjects

BOT = ExtBot("1:x")
UTC = dt.timezone.utc
CHAT = telegram.Chat(1, "private")
USER = telegram.User(2, "Ada", is_bot=False)
MESSAGE = telegram.Message(
    5,
    dt.datetime(2026, 1, 2, tzinfo=UTC),
    CHAT,
    from_user=USER,
    text="hi",
    entities=[telegram.MessageEntity("bold", 0, 2)],
    location=telegram.Location(1.5, 2.5, live_period=dt.timedelta(seconds=60)),
    api_kwargs={"new_field": {"a": (1,)}},
)
CLASSES = sorted(
    (
        kind
        for kind in vars(telegram).values()
        if isinstance(kind, type) and issubclass(kind, TelegramObject) and not issubclass(kind, Bot)
    ),
    key=lambda kind: kind.__name__,
)


def codec(bot: Any = BOT, types: Any = ()) -> Codec:
    return Codec(types, extensions=[TelegramObjects(lambda: bot)])


CODEC = codec()
ATTEMPTS = 6


def state(value: Any) -> Any:
    """What pickle sees of a Telegram object, all the way down, without what is only cached."""
    if isinstance(value, TelegramObject):
        attributes = value.__getstate__()
        kept = {
            k: v for k, v in attributes.items() if not k.startswith(("_effective", "_decrypted"))
        }
        return type(value), {name: state(item) for name, item in kept.items()}
    if type(value) in {tuple, list}:
        return type(value), [state(item) for item in value]
    if type(value) is dict:
        return {name: state(item) for name, item in value.items()}
    if type(value).__name__ == "DefaultValue":
        return "default", value.value
    return type(value), value


def example(kind: type, attempt: int) -> Any:
    """Make an object of some values that its constructor accepts, or give up."""
    candidates: list[Any] = [
        *(1, "text", True, USER, (USER,), 1.5, dt.datetime(2026, 1, 2, tzinfo=UTC)),
        *(dt.timedelta(seconds=9), None, CHAT, ()),
    ]
    arguments = {
        name: candidates[(at * 7 + attempt) % len(candidates)]
        for at, (name, parameter) in enumerate(inspect.signature(kind).parameters.items())
        if name != "api_kwargs"
        and (parameter.default is parameter.empty or (at + attempt) % 3 == 0)
    }
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return kind(**arguments, api_kwargs={"later": attempt} if attempt % 2 else None)
    except Exception:  # noqa: BLE001  constructors raise what they like
        return None


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_telegram_class_comes_back_with_all_its_attributes(kind: type) -> None:
    """No class is named anywhere in kvpersist; all are found, and all attributes are kept."""
    tried = [value for attempt in range(ATTEMPTS) if (value := example(kind, attempt)) is not None]
    for value in tried:
        text = CODEC.encode(value)
        back = CODEC.decode(text)
        assert state(back) == state(value) == state(pickle.loads(pickle.dumps(value)))
        assert CODEC.encode(back) == text
        assert back.get_bot() is BOT


def test_most_classes_were_really_tried() -> None:
    """The test above is worth something."""
    tried = {kind for kind in CLASSES if any(example(kind, attempt) for attempt in range(ATTEMPTS))}
    assert len(tried) > 0.9 * len(CLASSES)


@pytest.mark.parametrize(
    "kind",
    [
        kind
        for kind in vars(constants).values()
        if isinstance(kind, type) and hasattr(kind, "__members__")
    ],
)
def test_every_constant_comes_back(kind: Any) -> None:
    """Enums of `telegram.constants` need no listing."""
    for member in kind:
        assert CODEC.decode(CODEC.encode(member)) is member


def test_a_message_comes_back_readable_and_equal() -> None:
    """What a handler keeps of an update is the same after a restart."""
    MESSAGE.set_bot(BOT)
    text = codec().encode({"last": MESSAGE, "list": [CHAT, (USER,)]})
    back = codec().decode(text)
    assert back["last"] == MESSAGE
    assert state(back["last"]) == state(MESSAGE)
    assert back["last"].location.get_bot() is BOT
    assert b'"text":"hi"' in text
    assert b"null" not in text
    with pytest.raises(AttributeError):
        back["last"].text = "changed"


def test_objects_are_restored_while_no_bot_runs() -> None:
    """The command line reads rows, too."""
    back = codec(None).decode(codec(None).encode(USER))
    assert back == USER
    with pytest.raises(RuntimeError):
        back.get_bot()


def test_the_bot_is_a_placeholder() -> None:
    """The token does not get into the database, and the running bot comes out of it."""
    text = codec().encode({"bot": BOT})
    assert text == b'{"bot":{"$telegram.Bot":null}}'
    assert codec().decode(text)["bot"] is BOT
    other = Bot("2:y")
    assert codec(other).decode(codec(other).encode(other)) is other
    with pytest.raises(EncodeError, match="not the one that is running"):
        codec().encode(other)
    with pytest.raises(DecodeError, match="no bot is running"):
        codec(None).decode(text)


def test_an_older_object_gets_new_attributes_and_keeps_old_ones() -> None:
    """Rows outlive releases of python-telegram-bot."""
    old = b'{"$telegram.User":{"id":2,"first_name":"Ada","is_bot":false,"gone":{"$tuple":[1]}}}'
    back = codec().decode(old)
    assert back == USER
    assert back.username is None
    assert dict(back.api_kwargs) == {"gone": (1,)}
    new = old.replace(b'"gone":{"$tuple":[1]}', b'"api_kwargs":{"username":"a"}')
    assert codec().decode(new).username == "a"
    voice = b'{"$telegram.Voice":{"file_id":"a","duration":{"$timedelta":[0,5,0]}}}'
    # From PTB 22.2 on it is a private attribute behind a property.
    assert dt.timedelta(seconds=5) in codec().decode(voice).__getstate__().values()


def test_names_in_a_row_reach_nothing_but_attributes() -> None:
    """No method or class can be replaced by what a row says."""
    text = b'{"$telegram.User":{"id":2,"__class__":1,"get_bot":2,"_bot":3,"__dict__":4}}'
    back = codec().decode(text)
    assert type(back) is telegram.User
    assert back.get_bot() is BOT
    assert set(back.api_kwargs) <= {"__class__", "get_bot", "__dict__"}


def test_a_class_of_the_users_that_derives_from_telegrams_is_listed() -> None:
    """Subclasses are never flattened, and have attributes of their own."""

    class Customer(telegram.User):
        rank: tuple[int, ...]

    customer = Customer(3, "Bob", is_bot=False)
    with customer._unfrozen():
        customer.rank = (1,)
    with pytest.raises(EncodeError, match="to types="):
        codec().encode(customer)
    back = codec(types=[Customer]).decode(codec(types=[Customer]).encode(customer))
    assert type(back) is Customer
    assert back.rank == (1,)


def test_all_that_a_class_of_the_users_adds_is_kept() -> None:
    """What is left out, or set past the class, is PTB's own alone; no code of the user's runs."""
    called = []

    class Customer(telegram.User):
        __slots__ = ("__dict__", "__pin", "empty", "visits")
        rank: Any = 5

        def __new__(cls, *_: Any) -> Any:
            raise AssertionError

        def __init__(self, *_: Any) -> None:
            called.append(self)

        @property
        def level(self) -> int:
            return 1

        @level.setter
        def level(self, _: int) -> None:
            raise AssertionError

    customer: Any = object.__new__(Customer)
    telegram.User.__init__(customer, 3, "Bob", is_bot=False)
    customer._Customer__pin = (7,)
    attributes = {"rank": None, "_cached_price": 1, "_effective_price": 2, "level": (3,)}
    with customer._unfrozen():
        customer.visits = None
        vars(customer).update(attributes)
    text = codec(types=[Named(Customer, "it")]).encode(customer)
    back = codec(types=[Named(Customer, "it")]).decode(text)
    assert vars(back) == attributes
    assert (back.rank, back._Customer__pin, back.visits) == (None, (7,), None)
    assert not hasattr(back, "empty")
    assert not called
    assert back == customer
    assert codec(types=[Named(Customer, "it")]).encode(back) == text
    with pytest.raises(AttributeError):
        back.first_name = "changed"


def test_a_class_of_the_users_with_hooks_of_pickles_is_refused() -> None:
    """Both PTB and the user would say what is stored."""

    class Customer(telegram.User):
        def __getstate__(self) -> Any:
            raise AssertionError

    with pytest.raises(ConfigurationError, match=r"__getstate__ of its own; use Codec\.register"):
        codec(types=[Customer])


def test_an_object_that_was_never_initialised_is_refused() -> None:
    """Its place is told, as for every value that cannot be stored."""
    odd = telegram.User(4, "Eve", is_bot=False)
    odd._id_attrs = [1]  # type: ignore[assignment]
    for user in (telegram.User.__new__(telegram.User), odd):
        with pytest.raises(EncodeError, match="must be complete") as caught:
            codec().encode({"user": user})
        assert caught.value.path == '["user"]'


def test_what_an_older_class_put_aside_reaches_no_name_but_its_own() -> None:
    """`api_kwargs` that are no attributes, or are methods or properties, stay where they are."""
    more = {"link": 1, "get_bot": 2, "bot": 3, "later": 4}
    user = telegram.User(4, "Eve", is_bot=False, api_kwargs=more)
    assert dict(codec().decode(codec().encode(user)).api_kwargs) == more


def test_identity_is_a_tuple() -> None:
    """A row cannot make objects that cannot be compared."""
    with pytest.raises(DecodeError, match="_id_attrs must be a tuple"):
        codec().decode(b'{"$telegram.User":{"id":1,"_id_attrs":[1]}}')


def test_identity_that_is_not_the_classes_own_is_stored() -> None:
    """Two objects that were equal are equal again, whatever made them so."""
    user = telegram.User(4, "Eve", is_bot=False)
    user._id_attrs = ("other",)
    text = codec().encode(user)
    assert b'"_id_attrs":{"$tuple":["other"]}' in text
    assert codec().decode(text)._id_attrs == ("other",)


def test_a_file_to_send_comes_back() -> None:
    """An InputFile is no Telegram object, but it is part of some."""
    back = codec().decode(codec().encode(telegram.InputFile(b"x", "a.txt")))
    assert (back.input_file_content, back.filename) == (b"x", "a.txt")


def test_a_deep_copy_is_stored_like_the_object() -> None:
    """PTB hands over deep copies, in which nothing is what it was."""
    content = telegram.InputTextMessageContent("a")
    assert codec().encode(deepcopy(content)) == codec().encode(content)
    assert "parse_mode" not in codec().encode(content).decode()
