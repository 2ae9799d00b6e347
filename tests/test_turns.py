"""Who waits for a key gets it in turn, or hears that it takes too long; nobody loses a turn."""

from __future__ import annotations

import asyncio

import pytest

from kvpersist import LockError
from kvpersist.turns import Turns


async def test_they_come_in_the_order_in_which_they_asked() -> None:
    """Those who want the same; others do not wait for them."""
    turns = Turns(60)
    came: list[int] = []

    async def come(number: int, *keys: str) -> None:
        async with turns.take(keys):
            came.append(number)
            await asyncio.sleep(0)

    await asyncio.gather(*(come(number, "a", "b") for number in range(9)), come(9, "c", "c"))
    assert [number for number in came if number < 9] == [*range(9)]
    assert came.index(9) < 2


async def test_whoever_waits_too_long_is_told_and_holds_up_nobody() -> None:
    """What it had of other keys is given back."""
    turns = Turns(0.01)
    async with turns.take(["b"]):
        with pytest.raises(LockError) as caught:
            async with turns.take(["a", "b"]):
                pass
        assert caught.value.keys == ("b",)
        async with turns.take(["a"]):
            pass
    async with turns.take(["a", "b"]):
        pass


@pytest.mark.parametrize("is_handed_over", [False, True])
async def test_whoever_is_cancelled_while_it_waits_takes_nothing_away(
    *, is_handed_over: bool
) -> None:
    """Also if it was its turn in that very moment."""
    turns = Turns(60)

    async def wait() -> None:
        async with turns.take(["a"]):
            pass

    for turn in range(6):
        async with turns.take(["a"]):
            first, second = asyncio.create_task(wait()), asyncio.create_task(wait())
            for _ in range(3):
                await asyncio.sleep(0)
            if not is_handed_over:
                first.cancel()
        if is_handed_over:
            for _ in range(turn):
                await asyncio.sleep(0)
            first.cancel()
        await second
        await asyncio.gather(first, return_exceptions=True)
        await wait()


async def test_keys_that_nobody_wants_are_forgotten() -> None:
    """Memory does not grow with the chats there were."""
    turns = Turns(60)
    for number in range(100):
        async with turns.take([f"chat/{number}"]):
            pass
    assert len(turns._locks) == 0
