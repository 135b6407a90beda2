"""Waiting for several things at once."""

from __future__ import annotations

import asyncio

import pytest

from rollout.waiting import all_of, to_the_end


async def test_all_results_come_in_order():
    async def later(value: int, turns: int) -> int:
        for _ in range(turns):
            await asyncio.sleep(0)
        return value

    assert await all_of([later(1, 3), later(2, 1), later(3, 0)]) == [1, 2, 3]
    assert await all_of([]) == []


async def test_the_first_failure_ends_the_others_before_it_is_raised():
    ended: list[str] = []

    async def slow() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            ended.append("slow")

    async def failing() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await all_of([slow(), failing(), slow()])
    assert ended == ["slow", "slow"]


async def test_a_cancellation_waits_for_work_that_must_end():
    began, ended = asyncio.Event(), asyncio.Event()

    async def work() -> str:
        began.set()
        await asyncio.sleep(0.02)
        ended.set()
        return "done"

    assert await to_the_end(work()) == "done"
    for event in (began, ended):
        event.clear()
    waiting = asyncio.create_task(to_the_end(work()))
    await began.wait()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert ended.is_set()
