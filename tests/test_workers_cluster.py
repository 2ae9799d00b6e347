"""Workers that are killed, and whose database ends, behave as one: the short form of cluster.py.

KVPERSIST_SEED, which a failure tells, has the hammer do the same again.
"""

from __future__ import annotations

import os
from itertools import islice
from typing import Any

import pytest
from cluster import Plan, Report, hammer, moves
from cluster_checker import History, Keyboard, Sent, check

SEED = int(os.environ.get("KVPERSIST_SEED", "1"))
USERS = 40
"""Fewer than in the long form, so that they meet as often."""


async def hammered(updates: int, *deeds: tuple[int, str], **options: Any) -> Report:
    """Hammer a cluster of four workers for a short time."""
    print(f"KVPERSIST_SEED={SEED}")  # noqa: T201  to repeat it
    return await hammer(Plan(islice(moves(SEED, USERS), updates), deeds, seed=SEED, **options))


@pytest.mark.parametrize(
    ("deduplicate", "end"), [(True, "restart"), (False, "crash")], ids=["once", "at least once"]
)
async def test_a_cluster_behaves_as_one(*, deduplicate: bool, end: str) -> None:
    """Whoever is killed meanwhile. Twice is handled, if at all, only what was sent twice."""
    deeds = (150, "kill"), (300, "cut"), (400, end), (600, "kill"), (700, "reset")
    report = await hammered(800, *deeds, deduplicate=deduplicate)
    assert report.wrong == []
    assert report.done["workers killed"] == 2
    assert report.done[f"deed: {end}"] == 1
    assert report.pressed["in another"] > 0
    assert report.done["conversations ended"] > 0


async def test_without_locks_it_does_not() -> None:
    """What the checker looks for is there to be found."""
    report = await hammered(400, naive=True)
    assert any(fault.startswith("lost") for fault in report.wrong)
    assert any(fault.startswith(("chat", "user", "bot")) for fault in report.wrong)


def _rows() -> dict[str, str]:
    return {
        "bot": '{"total":1,"user-1":1,"job-10":1}',
        "chat/1": """{
            "seen":[1,2,3,4,5,6,8],"count":7,"pressed":[[5,[4,2]],[6,null]],
            "paths":{"1":[[3,"outer","None","0"]]}
        }""",
        "user/1": """{
            "seen":[1,2,3,4,5,6,8],"count":7,"coins":93,"ledger":[[8,-7]],"edits":[9]
        }""",
        "user/2": '{"coins":107,"ledger":[[8,7]]}',
        "conversation/order/[1,1]": "0",
        **{f"update/{number}": "{}" for number in (1, 2, 3, 4, 5, 6, 8)},
    }


def _history() -> History:
    kinds = {1: "total", 2: "tally", 3: "order", 4: "once", 5: "press", 6: "press", 8: "give"}
    keyboard = Keyboard("abc", 4, is_once=True, message={"chat": {"id": 1}}, worker=1)
    history = History(keyboards=[keyboard])
    for at, (number, kind) in enumerate(kinds.items()):
        history.updates[number] = Sent(
            number, kind, 1, 1, coins=7, other=2, attempts=1, sent=2 * at, acknowledged=2 * at + 1,
            position=at + 1, button=2, keyboard=keyboard if kind == "press" else None,
        )  # fmt: skip
    for number, kind in ((9, "edit"), (10, "job")):
        history.edits[number] = Sent(number, kind, 1, 1, attempts=2, sent=90, acknowledged=91)
    return history


def test_what_is_right_is_not_complained_of() -> None:
    """The rows from which the next test makes wrong ones."""
    assert check(_history(), _rows(), deduplicate=True) == []


@pytest.mark.parametrize(
    ("key", "old", "new", "complaint"),
    [
        ("chat/1", '"seen":[1,', '"seen":[', "lost: update 1, total of user 1 in 1"),
        ("chat/1", "[1,2,", "[1,1,2,", "double: update 1, sent 1 times, handled 2 times"),
        ("chat/1", "[1,2,", "[1,7,2,", "update 7 was never sent"),
        ("chat/1", '"count":7', '"count":6', "chat/1: counted 6, seen 7"),
        ("chat/1", "[1,2,3", "[2,1,3", "chat/1: update 1 was told to be the 1th"),
        ("chat/1", "[1,2,3", "[2,1,3", "chat/1: 1 was over, and comes after 2"),
        ("chat/1", '"None","0"', '"\'pick\'","0"', "chat/1: step 0 of user 1 is"),
        ("chat/1", '[[3,"outer","None","0"]]', "[]", "chat/1: user 1 has made 0 steps, not 1"),
        ("chat/1", '"paths":{', '"paths":{"5":[],', "chat/1: user 5 has a path, and no"),
        ("chat/1", "[4,2]", "[4,1]", "chat/1: press 5 found [4, 1], not [4, 2]"),
        ("chat/1", "null", "[4,2]", "chat/1: press 6 found [4, 2], not None"),
        ("chat/1", "[6,null]", "[7,null]", "chat/1: 7 is no press"),
        ("chat/1", ",[6,null]", "", "chat/1: presses: 6 0 times, not 1"),
        ("conversation/order/[1,1]", "0", '"pick"', "[1,1]: in state 'pick', not 0"),
        ("conversation/order/[1,1]", "0", "", "conversation/order/[1,1]: in state None, not 0"),
        ("conversation/details/[1,2]", "", "0", "conversation/details/[1,2]: nobody's"),
        ("callback/abc", "", "{}", "callback/abc: kept"),
        ("user/1", '"seen":[1,', '"seen":[', "user/1: updates: 1 0 times, not 1"),
        ("user/1", '"count":7', '"count":8', "user/1: counted 8, seen 7"),
        ("user/1", '"edits":[9]', '"edits":[]', "user/1: edits: 9 0 times, not 1"),
        ("user/1", "[[8,-7]]", "[]", "user/1: coins: (8, -7) 0 times, not 1"),
        ("user/2", "107", "108", "user/2: has 108 coins, by the ledger 107"),
        ("user/2", "107", "108", "+1 coins in all"),
        ("bot", '"total":1', '"total":2', "bot: counted: total 2 times, not 1"),
        ("bot", ',"user-1":1', "", "bot: counted: user-1 0 times, not 1"),
        ("bot", ',"job-10":1', "", "bot: counted: job-10 0 times, not 1"),
        ("update/8", "{}", "", "records of updates: 8 0 times, not 1"),
        ("unheard/of", "", "{}", "unheard/of: unknown"),
    ],
)
def test_whatever_is_wrong_is_found(key: str, old: str, new: str, complaint: str) -> None:
    """One change of a row that is right is enough; an empty text is no row."""
    rows = _rows()
    text = rows.pop(key, "")
    assert old in text
    if changed := text.replace(old, new, 1) if old else new:
        rows[key] = changed
    assert any(complaint in fault for fault in check(_history(), rows, deduplicate=True))


def test_what_was_sent_once_is_never_handled_twice() -> None:
    """Also where what was sent again may be."""
    rows = {key: text for key, text in _rows().items() if not key.startswith("update/")}
    rows["bot"] = rows["bot"].replace('"total":1', '"total":2')
    for key in ("chat/1", "user/1"):
        text = rows[key].replace('"seen":[1,', '"seen":[1,1,').replace('"count":7', '"count":8')
        rows[key] = text
    history = _history()
    for sent in history.updates.values():
        sent.position = None
    (fault,) = check(history, rows, deduplicate=False)
    assert fault == "double: update 1, sent 1 times, handled 2 times"
    history.updates[1].attempts = 2
    assert check(history, rows, deduplicate=False) == []
