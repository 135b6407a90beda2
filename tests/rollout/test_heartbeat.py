"""When a worker counts as hung, what is said of it then, and how many deaths are too many."""

from __future__ import annotations

import asyncio

import pytest

from rollout.errors import TooManyLosses, WorkerLost
from rollout.heartbeat import Deaths, WatchedWorker, within
from rollout.sampling import Sampling
from tests.fakes import FakeWorker, make_snapshot, make_task


async def sampled(worker: WatchedWorker) -> list[int]:
    finished = worker.stream(make_task(), Sampling(), n=4, seed=0)
    return [completion.index async for some in finished for completion in some]


async def test_a_worker_that_answers_is_left_in_peace():
    inner = FakeWorker()
    worker = WatchedWorker(inner, heartbeat_s=0.01)
    await worker.load(make_snapshot(0))
    await asyncio.sleep(0.05)
    assert await sampled(worker) == [2, 3, 0, 1]
    assert not inner.closed
    await worker.close()


async def test_what_a_hung_worker_was_doing_ends_and_says_that_it_hung():
    inner = FakeWorker()
    worker = WatchedWorker(inner, heartbeat_s=0.02)
    await worker.load(make_snapshot(0))
    inner.freeze()
    with pytest.raises(WorkerLost, match=r"more than 0.02 s to answer between two steps.*raise engine\.heartbeat_s"):
        await sampled(worker)
    assert inner.closed


async def test_a_worker_that_says_it_has_died_is_not_closed_by_the_heartbeat():
    """Its process may live, and start another engine."""
    inner = FakeWorker()
    worker = WatchedWorker(inner, heartbeat_s=0.02)
    inner.kill()
    await asyncio.sleep(0.05)
    assert not inner.closed
    await worker.close()


async def test_a_load_has_a_longer_deadline_and_a_heartbeat_does_not_cut_it_short():
    class Loading(FakeWorker):
        async def ping(self) -> None:
            await asyncio.sleep(60)

    inner = Loading(hold=(hold := asyncio.Event()))
    worker = WatchedWorker(inner, heartbeat_s=0.1)
    asyncio.get_running_loop().call_later(0.25, hold.set)
    await worker.load(make_snapshot(0))
    hold.clear()
    with pytest.raises(WorkerLost, match=r"more than 0.5 s to load version 1"):
        await worker.load(make_snapshot(1))
    assert await asyncio.wait_for(worker.revived(), 0.1) is None, "a worker that hangs is not asked to start its engine again"
    await worker.close()


async def test_a_timeout_of_the_call_itself_is_not_ours():
    async def fail() -> None:
        raise TimeoutError("the network")

    with pytest.raises(TimeoutError, match="the network"):
        await within(5, fail(), "to answer")


async def test_deaths_long_ago_are_forgiven_and_each_worker_has_its_own():
    deaths = Deaths(lambda index: "Killed", most=1, window_s=0.05)
    deaths.record(0, WorkerLost("gone"))
    deaths.record(1, WorkerLost("gone"))
    await asyncio.sleep(0.06)
    deaths.record(0, WorkerLost("gone"))
    with pytest.raises(TooManyLosses, match=r"(?s)worker 0 died 2 times .* so: gone\nThe last it wrote:\nKilled"):
        deaths.record(0, WorkerLost("gone"))
    assert deaths.total == 4
