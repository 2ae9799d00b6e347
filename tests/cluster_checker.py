"""What must be in the rows after a hammer has sent updates to workers: see cluster.py.

In the manner of Jepsen: what was acknowledged, and when, is the history; the rows are the outcome.
Each chat has noted its updates in the order in which they were handled. All else that is stored,
of users, of the bot, of conversations and keyboards, must follow from these notes.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from worker_process import (
    ANYWHERE,
    COINS,
    CONFIRM,
    DETAILS,
    DONE,
    END,
    MENU,
    PICK,
    TYPES,
    Step,
)

from kvpersist.codec import Codec

Rows: TypeAlias = Mapping[str, str]
WORDS: Final = ("order", "next", "back", "stop")
"""Commands of the conversation."""
SCOPES: Final = ("bot", "chat", "user", "callback", "conversation", "update")


@dataclass
class Keyboard:
    """One that an acknowledged update has sent."""

    name: str
    origin: int
    is_once: bool
    message: dict[str, Any]
    worker: int


@dataclass
class Sent:
    """One update, or one change of a web page's, and what is known of it.

    Attributes:
        number: Its id.
        kind: What it is to do.
        user: Who has sent it.
        chat: Where.
        coins: How many it gives.
        other: To whom.
        keyboard: Of which one it presses a button.
        button: Which one.
        attempts: How often it was sent.
        sent: The moment before it was sent first.
        acknowledged: The moment after it was acknowledged; None if it was not.
        position: Which update of its chat it was, as the bot has answered.
    """

    number: int
    kind: str
    user: int
    chat: int
    coins: int = 0
    other: int = 0
    keyboard: Keyboard | None = None
    button: int = 0
    attempts: int = 0
    sent: int = 0
    acknowledged: int | None = None
    position: int | None = None


@dataclass
class History:
    """All that was sent, by number. What is no update was acknowledged, and has one effect."""

    updates: dict[int, Sent] = field(default_factory=dict)
    edits: dict[int, Sent] = field(default_factory=dict)
    keyboards: list[Keyboard] = field(default_factory=list)


def check(history: History, rows: Rows, *, deduplicate: bool) -> list[str]:
    """Return what is wrong with the rows; it must be nothing.

    Args:
        history: What was sent.
        rows: What is stored, as of one moment after all of it was acknowledged.
        deduplicate: Whether no update may have been handled twice. Otherwise only one that was sent
            several times may, and not more often than that.
    """
    return [*_Checker(history, rows, deduplicate=deduplicate).problems()]


def outcome(rows: Rows) -> Counter[str]:
    """Return how much of what is worth a look has happened."""
    happened: Counter[str] = Counter()
    for key, text in rows.items():
        if key.startswith("chat/"):
            data = json.loads(text)
            seen = data.get("seen", ())
            happened["handled twice"] += len(seen) - len({*seen})
            for path in data.get("paths", {}).values():
                happened["steps of conversations"] += len(path)
                ends = [step for step in path if step[1:] == ["outer", repr(CONFIRM), repr(END)]]
                happened["conversations ended"] += len(ends)
    return happened


class _Checker:
    def __init__(self, history: History, rows: Rows, *, deduplicate: bool) -> None:
        self._history = history
        self._updates = history.updates
        self._rows = rows
        self._deduplicate = deduplicate
        self._chats = {chat: self._document("chat", chat) for chat in self._ids("chat")}
        self._users = {user: self._document("user", user) for user in self._ids("user")}
        self._times = Counter(
            number for data in self._chats.values() for number in data.get("seen", ())
        )

    def problems(self) -> Iterator[str]:
        """Yield all that is wrong."""
        yield from self._each_update()
        for chat, data in self._chats.items():
            yield from self._chat(chat, data)
            yield from self._order(chat, data)
            yield from self._conversations(chat, data)
            yield from self._pressed(chat, data)
        yield from self._all_users()
        yield from self._all_coins()
        yield from self._bot()
        yield from self._keys()

    def _document(self, scope: str, document_id: int) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self._rows[f"{scope}/{document_id}"])
        return document

    def _ids(self, scope: str) -> list[int]:
        keys = [key.partition("/") for key in self._rows]
        return [int(rest) for kind, _, rest in keys if kind == scope]

    def _each_update(self) -> Iterator[str]:
        """None is lost, none is double."""
        for number, sent in self._updates.items():
            times = self._times[number]
            if times == 0 and sent.acknowledged is not None:
                yield f"lost: update {number}, {sent.kind} of user {sent.user} in {sent.chat}"
            if times > (1 if self._deduplicate else sent.attempts):
                yield f"double: update {number}, sent {sent.attempts} times, handled {times} times"
        for number in self._times.keys() - self._updates.keys():
            yield f"update {number} was never sent"

    def _chat(self, chat: int, data: dict[str, Any]) -> Iterator[str]:
        """It has its own updates, has counted them, and answered what is stored."""
        seen = data.get("seen", [])
        if data.get("count", 0) != len(seen):
            yield f"chat/{chat}: counted {data.get('count')}, seen {len(seen)}"
        for number in {*seen} & self._updates.keys():
            sent = self._updates[number]
            if sent.chat != chat:
                yield f"chat/{chat}: has update {number} of {sent.chat}"
            elif sent.position is not None and seen[sent.position - 1 :][:1] != [number]:
                yield f"chat/{chat}: update {number} was told to be the {sent.position}th"

    def _order(self, chat: int, data: dict[str, Any]) -> Iterator[str]:
        """What was acknowledged before another was sent has been handled before that."""
        earliest: Sent | None = None  # to be acknowledged, of those that come later
        for number in reversed(dict.fromkeys(data.get("seen", ()))):
            if (sent := self._updates.get(number)) is None:
                continue
            if earliest is not None and (earliest.acknowledged or 0) < sent.sent:
                yield f"chat/{chat}: {earliest.number} was over, and comes after {number}"
            if sent.acknowledged is not None and (
                earliest is None or sent.acknowledged < (earliest.acknowledged or 0)
            ):
                earliest = sent

    def _conversations(self, chat: int, data: dict[str, Any]) -> Iterator[str]:
        """Each goes the way that its updates tell, and is in the state at the end of it."""
        paths = dict(data.get("paths", {}))
        models: dict[int, Conversation] = {}
        for number in data.get("seen", ()):
            sent = self._updates.get(number)
            if sent is not None and sent.kind in WORDS:
                models.setdefault(sent.user, Conversation()).hear(number, sent.kind)
        for user, model in models.items():
            yield from self._path(chat, user, paths.pop(str(user), []), model)
            for name, state in (("order", model.outer), ("details", model.inner)):
                row = self._rows.get(key := f"conversation/{name}/[{chat},{user}]")
                stored = None if row is None else _CODEC.decode(row.encode())
                if stored != state or type(stored) is not type(state):
                    yield f"{key}: in state {stored!r}, not {state!r}"
        for user in paths:
            yield f"chat/{chat}: user {user} has a path, and no conversation"
        for key in self._rows:
            scope, _, name = key.partition("/")
            at = name.partition("/")[2].strip("[]").split(",")
            if scope == "conversation" and at[0] == str(chat) and int(at[1]) not in models:
                yield f"{key}: nobody's"

    @staticmethod
    def _path(chat: int, user: int, path: list[object], model: Conversation) -> Iterator[str]:
        for at, (found, step) in enumerate(zip(path, model.path, strict=False)):
            if found != step:
                yield f"chat/{chat}: step {at} of user {user} is {found}, not {step}"
                return
        if len(path) != len(model.path):
            yield f"chat/{chat}: user {user} has made {len(path)} steps, not {len(model.path)}"

    def _pressed(self, chat: int, data: dict[str, Any]) -> Iterator[str]:
        """Each button was what it was sent as; of some keyboards the first press alone counts."""
        pressed: list[tuple[int, list[int] | None]] = data.get("pressed", [])
        used: set[str] = set()
        for number, found in pressed:
            sent = self._updates.get(number)
            if sent is None or sent.keyboard is None:
                yield f"chat/{chat}: {number} is no press"
                continue
            keyboard = sent.keyboard
            right = None if keyboard.name in used else [keyboard.origin, sent.button]
            if found != right:
                yield f"chat/{chat}: press {number} found {found}, not {right}"
            if keyboard.is_once:
                used.add(keyboard.name)
        times = Counter(number for number, _ in pressed)
        wanted = Counter(n for n in data.get("seen", ()) if self._kind(n) == "press")
        yield from _differences(f"chat/{chat}: presses", times, wanted)
        keyboards = [each for each in self._history.keyboards if each.message["chat"]["id"] == chat]
        for keyboard in keyboards:
            if (f"callback/{keyboard.name}" in self._rows) == (keyboard.name in used):
                yield f"callback/{keyboard.name}: {'kept' if keyboard.name in used else 'lost'}"

    def _all_users(self) -> Iterator[str]:
        """Each has its own updates, and the changes of the web page."""
        wanted: dict[int, Counter[int]] = {}
        for number, times in self._times.items():
            if (sent := self._updates.get(number)) is not None:
                wanted.setdefault(sent.user, Counter())[number] = times
        edits: dict[int, Counter[int]] = {}
        for number, sent in self._history.edits.items():
            if sent.kind == "edit":
                edits.setdefault(sent.user, Counter())[number] = 1
        for user in self._users.keys() | wanted.keys() | edits.keys():
            data = self._users.get(user, {})
            seen = Counter(data.get("seen", ()))
            yield from _differences(f"user/{user}: updates", seen, wanted.get(user, Counter()))
            if data.get("count", 0) != seen.total():
                yield f"user/{user}: counted {data.get('count')}, seen {seen.total()}"
            found = Counter(data.get("edits", ()))
            yield from _differences(f"user/{user}: edits", found, edits.get(user, Counter()))

    def _all_coins(self) -> Iterator[str]:
        """None is made, none is lost, and each has moved for a reason."""
        wanted: dict[int, Counter[tuple[int, int]]] = {}
        for number, times in self._times.items():
            if self._kind(number) == "give":
                sent = self._updates[number]
                for user, coins in ((sent.user, -sent.coins), (sent.other, sent.coins)):
                    wanted.setdefault(user, Counter())[number, coins] += times
        for user, data in self._users.items():
            ledger = Counter((number, coins) for number, coins in data.get("ledger", ()))
            yield from _differences(f"user/{user}: coins", ledger, wanted.get(user, Counter()))
            there = COINS + sum(coins * times for (_, coins), times in ledger.items())
            if data.get("coins", COINS) != there:
                yield f"user/{user}: has {data.get('coins')} coins, by the ledger {there}"
        change = sum(data.get("coins", COINS) - COINS for data in self._users.values())
        if change:
            yield f"{change:+} coins in all"

    def _bot(self) -> Iterator[str]:
        """It has counted each that was to be counted, whether under a lock or merged."""
        wanted: Counter[str] = Counter()
        for number, times in self._times.items():
            if self._kind(number) == "total":
                wanted["total"] += times
            elif self._kind(number) == "tally":
                wanted[f"user-{self._updates[number].user}"] += times
        for number, sent in self._history.edits.items():
            if sent.kind == "job":
                wanted[f"job-{number}"] = 1
        found: Counter[str] = Counter(json.loads(self._rows.get("bot", "{}")))
        yield from _differences("bot: counted", found, wanted)

    def _keys(self) -> Iterator[str]:
        """Each row has its reason, and each update that was handled its record, if asked for."""
        for key in self._rows:
            if key.partition("/")[0] not in SCOPES:
                yield f"{key}: unknown"
        recorded = Counter(self._ids("update"))
        handled = Counter({*self._times}) if self._deduplicate else Counter[int]()
        yield from _differences("records of updates", recorded, handled)

    def _kind(self, number: int) -> str:
        sent = self._updates.get(number)
        return "" if sent is None else sent.kind


_CODEC: Final = Codec(TYPES)


def _differences(what: str, found: Counter[Any], wanted: Counter[Any]) -> Iterator[str]:
    for key in found.keys() | wanted.keys():
        if found[key] != wanted[key]:
            yield f"{what}: {key} {found[key]} times, not {wanted[key]}"


@dataclass
class Conversation:
    """The way of one user in one chat, as it must be."""

    outer: object = None
    inner: object = None
    path: list[list[object]] = field(default_factory=list)

    def hear(self, number: int, word: str) -> None:
        """Take note of a command."""
        level, before = ("inner", self.inner) if self.outer == DETAILS else ("outer", self.outer)
        after = _STEPS.get((level, before, word))
        if after is None and word == "stop" and self.outer is not None:
            level, before, after = "outer", ANYWHERE, END
        if after is None:
            return
        self.path.append([number, level, repr(before), repr(after)])
        if level == "outer":
            self.outer = None if after == END else after
        elif after in {END, DONE}:
            self.inner, self.outer = None, PICK if after == END else CONFIRM
        else:
            self.inner = after


_SIZE, _COLOUR = Step.SIZE, Step.COLOUR
_STEPS: Final[dict[tuple[str, object, str], object]] = {
    ("outer", None, "order"): MENU,
    ("outer", MENU, "next"): PICK,
    ("outer", PICK, "next"): DETAILS,
    ("outer", PICK, "back"): MENU,
    ("outer", CONFIRM, "next"): END,
    ("outer", CONFIRM, "back"): DETAILS,
    ("inner", None, "next"): _SIZE,
    ("inner", _SIZE, "next"): _COLOUR,
    ("inner", _SIZE, "back"): END,
    ("inner", _COLOUR, "next"): DONE,
    ("inner", _COLOUR, "back"): _SIZE,
}
