"""Whose silence it is: a node's, this process's or the cluster's. In real time, a second at most each."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from cosched.cluster.silence import STEPS, Silent, answered

PATIENCE_S = 0.3
LATE_S = 0.02


async def there() -> bool:
    return True


def test_an_answer_is_handed_on_and_so_is_what_goes_wrong():
    async def late() -> str:
        await asyncio.sleep(PATIENCE_S / 2)
        return "it"

    async def broken() -> str:
        raise OSError("broken")

    assert asyncio.run(answered(late(), PATIENCE_S, there)) == "it"
    with pytest.raises(OSError, match="broken"):
        asyncio.run(answered(broken(), PATIENCE_S, there))


def test_who_says_nothing_is_found_and_not_listened_to_any_more():
    async def work() -> tuple[float, bool]:
        never: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        with pytest.raises(Silent):
            await answered(never, PATIENCE_S, there)
        return time.monotonic() - began, never.cancelled()

    took_s, is_cancelled = asyncio.run(work())
    assert took_s >= 0.9 * PATIENCE_S
    assert is_cancelled


@pytest.mark.parametrize("stall_s", [1.5 * PATIENCE_S, 3 * PATIENCE_S])
def test_a_process_that_stands_still_takes_no_answer_for_missing(stall_s: float):
    """The answer is there a little after this process goes on, as from a thread that stood still with it."""

    async def work() -> str:
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[str] = loop.create_future()
        late_s = PATIENCE_S / 4 + stall_s + LATE_S
        threading.Timer(late_s, lambda: loop.call_soon_threadsafe(answer.set_result, "it")).start()
        loop.call_later(PATIENCE_S / 4, time.sleep, stall_s)
        return await answered(answer, PATIENCE_S, there)

    assert asyncio.run(work()) == "it"


def test_while_the_cluster_is_away_silence_is_not_counted():
    async def work() -> tuple[str, int]:
        answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        looks = 0

        async def away_twice() -> bool:
            nonlocal looks
            looks += 1
            if looks == 2:  # it is there again, and the node answers within its patience from then on
                asyncio.get_running_loop().call_later(PATIENCE_S / STEPS * 5, answer.set_result, "it")
            return looks > 2

        return await answered(answer, PATIENCE_S, away_twice), looks

    assert asyncio.run(work()) == ("it", 2)


def test_a_node_that_is_silent_when_the_cluster_is_back_is_found():
    async def work() -> int:
        looks = 0

        async def away_once() -> bool:
            nonlocal looks
            looks += 1
            return looks > 1

        with pytest.raises(Silent):
            await answered(asyncio.get_running_loop().create_future(), PATIENCE_S, away_once)
        return looks

    assert asyncio.run(work()) == 2
