"""A simulation of group commit: one seed, one history, without time, disk or threads.

Actors write, flush, close, scan and cancel each other, over a store that is slow, refuses, hangs
and breaks; event loops end in the middle, and others begin. Whoever acts waits a number of turns
that chance decides, so that a seed is an interleaving. What must hold is checked all the time.

    python tests/simulation.py SECONDS SEED

tries one seed after the other and prints what happened how often.
"""

from __future__ import annotations

import asyncio
import logging
import random
import selectors
import sys
import time
from asyncio import CancelledError
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from typing import Any, Final, TypeAlias

from kvpersist import OpenError, ReadError, UnavailableError, WriteError
from kvpersist.group_commit import LAST_RETRY_DELAY, GroupCommit
from kvpersist.stores import Row

Text: TypeAlias = "bytes | None"
"""What a row holds; None if there is none."""

FAULTS: Final = (
    "slow",
    "hangs",
    "open refused",
    "read refused",
    "write refused",
    "unavailable",
    "broken before it took effect",
    "broken after it took effect",
    "cancelled by the engine",
    "rescue refused",
)
"""What the store may do to its callers, each with a likelihood of its own in each history."""
DEEDS: Final = ("write", "flush", "close", "scan", "read", "forget", "cancel", "collect")
ENDS: Final = ("in peace", "closed", "cancelled", "abandoned")
"""How an event loop ends: as `asyncio.run` does that is interrupted, or just so."""
_MOST_TURNS: Final = 100_000
_HANG: Final = 100.0
_BOUND: Final = 20 * LAST_RETRY_DELAY
"""Simulated seconds in which everything must have ended once the store is well."""


class Clock(selectors.SelectSelector):
    """Says that the time has come, where an event loop would wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self._turns = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let the time pass for which there is nothing to do.

        Raises:
            RuntimeError: There will never be anything to do, or always, and it gets nowhere.
        """
        if timeout is None:
            raise RuntimeError("all wait, and nobody is left who would wake them")
        self._turns += 1
        if self._turns > _MOST_TURNS:
            raise RuntimeError("it goes on for ever")
        self.now += max(timeout, 0)
        return []


class Loop(asyncio.SelectorEventLoop):
    """An event loop that lives in simulated time."""

    def __init__(self) -> None:
        self._clock = Clock()
        super().__init__(self._clock)

    def time(self) -> float:
        """Return how much time has passed in here."""
        return self._clock.now


class History:
    """All that was handed in for one row, in order, and where in it the store is."""

    def __init__(self) -> None:
        self.texts: list[Text] = [None]
        self._at = 0

    def last(self) -> int:
        """Return the place of what was handed in last."""
        return len(self.texts) - 1

    def reaches(self, text: Text, least: int = 0) -> bool:
        """Whether the store may hold this now: not what is older than what it held before."""
        for place in range(max(self._at, least), len(self.texts)):
            if self.texts[place] == text:
                self._at = place
                return True
        return False


class World:
    """One history: what is handed in, by whom, what the store makes of it, and what was wrong."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311  it chooses moments, not secrets
        self.keys = [f"{'ab'[n % 2]}/{n}" for n in range(self.chance.choice([1, 2, 3, 4, 16]))]
        self.rows: dict[str, History] = defaultdict(History)
        self.store = self.chance.choice([SimulatedStore, RescuingStore])(self)
        self.commits = GroupCommit(self.store)
        self.tried: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._numbers = count()
        self._actors: list[asyncio.Task[None]] = []
        self._left: list[asyncio.Task[Any]] = []
        self._is_ending = False
        self._was_closed = False
        self._deeds = {deed: self.chance.random() ** 3 for deed in DEEDS} | {"write": 1.0}

    # What must hold.

    def say(self, text: str) -> None:
        """Note what must not be."""
        self.wrong.append(text)

    def look(self) -> None:
        """Compare what the group commit says of the rows with what the store holds."""
        for key, history in self.rows.items():
            if self.commits.is_pending(key):
                continue
            text = self.store.value(key)
            if text != history.texts[-1]:
                self.say(f"{key} is not pending, but {text!r} instead of {history.texts[-1]!r}")
            for other in {*history.texts[-8:]} - {text}:
                if other is not None and self.commits.holds(key, other):
                    self.say(f"{key} is said to hold {other!r}, but holds {text!r}")

    def stored(self, key: str, text: Text) -> None:
        """Look at what the store has just taken."""
        if not self.rows[key].reaches(text):
            self.say(f"{key}: {text!r} came after a newer value")

    def acknowledged(self, key: str, place: int) -> None:
        """Look whether the store holds what was handed in, or something newer."""
        if not self.rows[key].reaches(text := self.store.value(key), place):
            self.say(f"{key}: {self.rows[key].texts[place]!r} was lost, {text!r} is there")

    def places(self) -> dict[str, int]:
        """Return where in the history of each row its last value is."""
        return {key: history.last() for key, history in self.rows.items()}

    @contextmanager
    def refusing(self, keys: Collection[str]) -> Iterator[set[str]]:
        """Let rows be refused; give those that were, which must be among `keys`."""
        told: set[str] = set()
        try:
            yield told
        except WriteError as error:
            told |= {*error.keys}
            if not told or not told <= {*keys}:
                self.say(f"{error!r} is not about {keys}")
            if not isinstance(error.__cause__, CancelledError) and (
                id(error.__cause__) not in self.store.raised
            ):
                self.say(f"{error!r} was made up")
        except (OpenError, ReadError) as error:
            told |= {*self.keys}
            if id(error) not in self.store.raised:
                self.say(f"{error!r} was made up")
        self.look()

    # What is done.

    async def act(self) -> None:
        """Do one thing after the other, also after being cancelled."""
        for _ in range(self.chance.randrange(1, 8)):
            (deed,) = self.chance.choices([*self._deeds], [*self._deeds.values()])
            try:
                await self.pause()
                self.tried[deed] += 1
                await getattr(self, deed)()
            except CancelledError:
                self.look()
                if self._is_ending:
                    raise

    async def pause(self) -> None:
        """Let others have some turns, or some time."""
        for _ in range(self.chance.randrange(5)):
            await asyncio.sleep(0)
        if self.chance.random() < 0.1:
            await asyncio.sleep(self.chance.random() * 3)

    def some_text(self, key: str) -> Text:
        """Return something new mostly, or else what was there before."""
        kind = self.chance.random()
        if kind < 0.6:
            return b"%d" % next(self._numbers)
        return None if kind < 0.7 else self.chance.choice(self.rows[key].texts[-4:])

    def hand_in(self, key: str, text: Text) -> int:
        """Note that a value is handed in right now."""
        self.rows[key].texts.append(text)
        return self.rows[key].last()

    async def write(self) -> None:
        """Write some rows in one of the ways that there are."""
        keys = self.chance.sample(self.keys, self.chance.randint(1, min(3, len(self.keys))))
        if self.chance.random() < 0.05:
            keys = self.keys
        changes = {key: self.some_text(key) for key in keys}
        before = self.places()
        way = self.chance.choice(["write", "write_row", "write_all", "write_all others"])
        row = changes[keys[0]]
        if way == "write_row" and row is not None:
            changes = {keys[0]: row}
        elif way == "write_all others" and self.chance.random() < 0.3:
            changes = {}
        places = {key: self.hand_in(key, text) for key, text in changes.items()}
        with self.refusing(changes) as told:
            if way == "write_row" and row is not None:
                await self.commits.write_row(keys[0], row)
            elif way.startswith("write_all"):
                await self.commits.write_all(changes, others=way.endswith("others"))
            else:
                await self.commits.write(changes)
        for key in places.keys() - told:
            self.acknowledged(key, places[key])
        if way.endswith("others"):
            for key, place in before.items():
                if key not in told and self.commits.refusal(key) is None:
                    self.acknowledged(key, place)

    async def flush(self) -> None:
        """Write what is waiting; without an error all of it is stored."""
        await self._write_waiting(self.commits.flush())

    async def close(self) -> None:
        """Write what is waiting, while others go on writing, and close the store."""
        self._was_closed = True
        await self._write_waiting(self.commits.close())

    async def _write_waiting(self, writing: Coroutine[Any, Any, None]) -> None:
        before = self.places()
        with self.refusing(self.keys) as told:
            await writing
        if not told:
            for key, place in before.items():
                self.acknowledged(key, place)

    async def scan(self) -> None:
        """Load some rows as a bot does that starts; they are the newest."""
        before, prefix = self.places(), self.chance.choice(["", "a/", "b/"])
        found: dict[str, Text] = {}
        with self.refusing(self.keys) as told:
            async for page in self.commits.scan(prefix):
                for key, text in page:
                    found[key] = text
                    self.commits.remember(key, text)
        for key, place in before.items() if not told else ():
            if key.startswith(prefix) and found.get(key) not in self.rows[key].texts[place:]:
                self.say(f"{key}: {found.get(key)!r} was found, which is too old")

    async def read(self) -> None:
        """Load some rows as a bot does that loads lazily."""
        keys = self.chance.sample(self.keys, self.chance.randint(1, len(self.keys)))
        with self.refusing(()):
            for key, text in (await self.commits.read(keys)).items():
                self.commits.remember(key, text)

    async def forget(self) -> None:
        """Forget a row as a bot does that has too many in memory."""
        if not self.commits.is_pending(key := self.chance.choice(self.keys)):
            self.commits.forget(key)

    async def cancel(self) -> None:
        """Cancel somebody: an actor, or group commit's own task."""
        tasks = [task for task in asyncio.all_tasks() if task.get_name() == "kvpersist:commit"]
        if not tasks or self.chance.random() < 0.7:
            tasks = self._actors
        self.chance.choice(tasks).cancel()

    async def collect(self) -> None:
        """End what was left behind by an event loop, as the garbage collector does."""
        self.end_what_was_left()

    def end_what_was_left(self) -> None:
        """End the coroutines of event loops that have ended."""
        while self._left:
            coroutine = self._left.pop().get_coro()
            assert coroutine is not None
            coroutine.close()

    # Event loops.

    def live(self, end: str) -> None:
        """Let an event loop begin, some actors do something, and the loop end."""
        loop = Loop()
        loop.set_exception_handler(self._hear)
        self.tried[end] += 1
        try:
            self._is_ending = self._was_closed = False
            loop.run_until_complete(self._live(end))
            self._is_ending = True
            left = asyncio.all_tasks(loop)
            if end == "abandoned":
                self._left += sorted(left, key=lambda task: task.get_name())
            else:
                self._cancel_all(loop, left)
        finally:
            loop.close()
        if self.store.is_closed and self.chance.random() < 0.5:
            self._meddle()
        self.look()

    async def _live(self, end: str) -> None:
        self._actors = []
        for number in range(self.chance.randrange(1, 7)):
            self._actors.append(asyncio.create_task(self.act(), name=f"{next(self._numbers)}"))
            self._actors[number].add_done_callback(self._check_actor)
        if end in {"cancelled", "abandoned"}:
            await self.pause()
            return
        if end == "closed":
            await self.pause()
            await self.close()
        if end == "mended":
            await self.pause()
            self.store.is_well = True
        await asyncio.wait(self._actors)
        if end == "mended":
            await self._end()

    async def _end(self) -> None:
        """Check that what was refused is written by itself, and that nothing is left behind."""
        start = asyncio.get_running_loop().time()
        places = self.places()
        await self.commits.write_all({})
        await asyncio.sleep(_BOUND)
        assert asyncio.get_running_loop().time() - start < 2 * _BOUND
        if not self._was_closed and (self.commits._pending or self.commits._in_flight):
            self.say("nobody tries again")
        await self.commits.close()
        for key, place in places.items():
            self.acknowledged(key, place)
        commits = self.commits
        left = (commits._pending, commits._in_flight, commits._refused, commits._known)
        if any(left) or commits._this_commit or commits._next_commit or commits._retry:
            self.say(f"something is left: {left}")
        await asyncio.sleep(0)
        if tasks := asyncio.all_tasks() - {asyncio.current_task()}:
            self.say(f"tasks are left: {tasks}")

    def _check_actor(self, actor: asyncio.Task[None]) -> None:
        if not actor.cancelled() and (error := actor.exception()) is not None:
            self.say(f"{error!r}")

    def _cancel_all(self, loop: Loop, tasks: Collection[asyncio.Task[Any]]) -> None:
        for task in sorted(tasks, key=lambda task: task.get_name()):
            task.cancel()
        if tasks:
            loop.run_until_complete(asyncio.wait(tasks))
        loop.run_until_complete(loop.shutdown_asyncgens())

    def _meddle(self) -> None:
        """Change rows as another program does that has the store while it is closed."""
        self.store.write_left()
        for key in self.keys:
            if not self.commits.is_pending(key) and self.chance.random() < 0.5:
                text = self.chance.choice([None, b"%d" % next(self._numbers)])
                self.hand_in(key, text)
                self.store.put(key, text)

    def _hear(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        if "was destroyed but it is pending" not in context["message"]:
            self.say(f"{context}")


class SimulatedStore:
    """A store that does anything that its contract allows, and some things that it forbids."""

    def __init__(self, world: World) -> None:
        chance = world.chance
        self.rows: dict[str, bytes] = {}
        self.left: dict[str, Text] = {}
        """What was rescued, and is written by the next who opens it."""
        self.raised: dict[int, BaseException] = {}
        self.is_well = False
        self._world = world
        self._chance = chance
        self._odds = {fault: chance.choice([0, 0, 0.05, 0.3, 0.8]) for fault in FAULTS}
        self._odds["hangs"] /= 10
        most = chance.choice([0, 0, 0, 1, 2, len(world.keys)])
        self._poison = {*chance.sample(world.keys, min(most, len(world.keys)))}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened = 0
        self._applying: object = None
        self._rescuing: tuple[object, asyncio.Event] = None, asyncio.Event()
        self._begun: Mapping[str, Text] = {}
        """What may yet be written, or not, of a transaction that nobody waits for any more."""

    @property
    def is_closed(self) -> bool:
        """Whether anybody else may have it."""
        return self._loop is None

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        await self._take_time()
        await self._until_rescued()
        self._fail("open refused", OpenError("no such folder"))
        if self._loop is not loop:
            self._settle()
            self.write_left()
            self._loop, self._applying = loop, None
            self._opened += 1

    async def _until_rescued(self) -> None:
        loop, has_ended = self._rescuing
        if loop is asyncio.get_running_loop():
            await has_ended.wait()

    async def close(self) -> None:
        if self._applying is not None and self._loop is asyncio.get_running_loop():
            self._world.say("closed in a transaction")
        try:
            await self._take_time()
            await self._until_rescued()
        except CancelledError:  # which does not keep it from being closed
            self._give_up()
            raise
        self._give_up()

    def _give_up(self) -> None:
        self._settle()
        self._loop = None

    async def read(self, keys: Collection[str]) -> dict[str, bytes]:
        await self._take_time()
        self._check_open(self._opened, ReadError("not open"))
        opened = self._opened
        self._fail("read refused", ReadError("no answer"))
        found = {key: self.rows[key] for key in keys if key in self.rows}
        await self._take_time()
        self._check_open(opened, ReadError("closed meanwhile"))
        return found

    async def scan(self, prefix: str) -> AsyncIterator[Sequence[Row]]:
        after = ""
        self._check_open(self._opened, ReadError("not open"))
        while keys := sorted(key for key in self.rows if key.startswith(prefix) and key > after):
            page = await self.read(keys[:2])
            yield [*page.items()]
            after = keys[:2][-1]

    async def apply(self, changes: Mapping[str, bytes | None]) -> None:
        if self._applying is not None:
            self._world.say("two transactions at the same time")
        self._settle()
        begun = self._begun = self._applying = dict(changes)
        opened = self._opened
        try:
            await self._take_time()
            self._check_open(opened, UnavailableError("not open"))
            self._refuse(begun)
            self._settle(happens=True)
            await self._take_time()
            self._fail("broken after it took effect", ConnectionError("no answer"))
        except Exception:
            self._begun = {}
            raise
        except CancelledError:
            self._world.tried["cancelled transaction"] += 1
            if self._chance.random() < 0.5:
                self._settle()
            raise
        finally:
            if self._applying is begun:
                self._applying = None

    def value(self, key: str) -> Text:
        """Return what the next who opens it will find."""
        return self.left[key] if key in self.left else self.rows.get(key)

    def write_left(self) -> None:
        """Write what was rescued."""
        left, self.left = self.left, {}
        self._world.tried["rescued rows written"] += bool(left)
        for key, text in left.items():
            self.put(key, text)

    def put(self, key: str, text: Text) -> None:
        """Write one row."""
        self.rows.pop(key, None)
        if text is not None:
            self.rows[key] = text
        self._world.stored(key, text)

    def _settle(self, *, happens: bool | None = None) -> None:
        """Decide what becomes of a transaction."""
        begun, self._begun = self._begun, {}
        if begun and (self._chance.random() < 0.5 if happens is None else happens):
            self._world.tried["transaction"] += 1
            for key, text in begun.items():
                self.put(key, text)
        self._world.look()

    async def _take_time(self) -> None:
        for _ in range(self._chance.randrange(4)):
            await asyncio.sleep(0)
        if self._happens("slow"):
            await asyncio.sleep(self._chance.random() * 3)
        if self._happens("hangs"):
            await asyncio.sleep(_HANG)

    def _refuse(self, changes: Mapping[str, Text]) -> None:
        self._fail("unavailable", UnavailableError("locked"))
        self._fail("write refused", WriteError("full", keys=changes))
        self._fail("broken before it took effect", ZeroDivisionError("a bug"))
        if not self.is_well and self._poison & changes.keys():
            self._raise(WriteError("too large"))
        if self._happens("cancelled by the engine"):
            raise CancelledError

    def _check_open(self, opened: int, error: Exception) -> None:
        if self._opened != opened or self._loop is not asyncio.get_running_loop():
            self._raise(error)

    def _happens(self, fault: str) -> bool:
        happens = not self.is_well and self._chance.random() < self._odds[fault]
        self._world.tried[fault] += happens
        return happens

    def _fail(self, fault: str, error: Exception) -> None:
        if self._happens(fault):
            self._raise(error)

    def _raise(self, error: Exception) -> None:
        self.raised[id(error)] = error  # which keeps it, so that no other gets the same id
        raise error


class RescuingStore(SimulatedStore):
    """One that can keep rows elsewhere when it is closed."""

    async def rescue(self, changes: Mapping[str, Text]) -> str:
        self._check_open(self._opened, UnavailableError("not open"))
        if self._applying is not None:
            self._world.say("rows are rescued while others are written")
        rescued = dict(changes)
        self._give_up()
        loop = asyncio.get_running_loop()
        self._rescuing = loop, (has_ended := asyncio.Event())
        with suppress(CancelledError):
            await self._take_time()
        has_ended.set()
        self._fail("rescue refused", WriteError("no room"))
        self._world.tried["rescue"] += 1
        self.left |= rescued
        return "elsewhere"


def simulate(seed: int) -> Counter[str]:
    """Let one history happen; return what happened how often.

    Raises:
        AssertionError: Something was wrong.
    """
    world = World(seed)
    try:
        for end in world.chance.choices(ENDS, k=world.chance.randrange(4)):
            world.live(end)
        world.live("mended")
        world.end_what_was_left()
    except Exception as error:
        raise AssertionError(f"KVPERSIST_SEED={seed}: {error!r} {world.wrong}") from error
    assert not world.wrong, f"KVPERSIST_SEED={seed}: {world.wrong[:5]}"
    world.tried["history"] += 1
    return world.tried


def main() -> None:
    """Try one seed after the other for as long as the command line says."""
    seconds, seed = float(sys.argv[1]), int(sys.argv[2])
    logging.disable(logging.ERROR)
    say(f"histories of group commit, from seed {seed}, for {seconds:g} s")
    tried: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end or not tried:
        tried += simulate(seed)
        seed += 1
    say(f"seeds to {seed - 1}; how often what happened:")
    for what, times in sorted(tried.items(), key=lambda item: -item[1]):
        say(f"{times:>10} {what}")


def say(words: str) -> None:
    """Tell the person."""
    print(words, flush=True)  # noqa: T201  it talks to a person


if __name__ == "__main__":
    main()
