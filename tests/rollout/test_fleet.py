"""Which worker samples what, what each of them holds, and what happens when they die."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from typing import Any

import pytest

from rollout.errors import SnapshotGone, TooManyLosses, WorkerLost
from rollout.fleet import Fleet
from rollout.sampling import Sampling, group_seed
from rollout.types import Snapshot
from tests.fakes import FakeWorker, make_snapshot, make_task, make_tasks


class Started:
    """Starts fake workers and keeps them: `started[i]` is the i-th, replacements included."""

    def __init__(self, make: Callable[[int], FakeWorker] = lambda index: FakeWorker()) -> None:
        self._make = make
        self.workers: list[FakeWorker] = []
        self.indices: list[int] = []
        self.discarded: list[int] = []

    async def __call__(self, index: int) -> FakeWorker:
        await asyncio.sleep(0)
        worker = self._make(len(self.workers))
        self.workers.append(worker)
        self.indices.append(index)
        return worker

    def discard(self, snapshot: Snapshot) -> None:
        self.discarded.append(snapshot.version)

    async def fleet(self, num_workers: int = 2, **options: Any) -> Fleet:
        fleet = Fleet(self, num_workers=num_workers, sampling=Sampling(), run_seed=7, discard=self.discard, **options)
        await fleet.start()
        await fleet.load(make_snapshot(0))
        return fleet


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


# Sampling


async def test_each_group_goes_to_the_worker_with_the_fewest_outstanding_tokens():
    hold = asyncio.Event()
    hold.set()
    started = Started(lambda index: FakeWorker(hold=hold))
    fleet = await started.fleet(num_workers=2)
    hold.clear()
    sampling = []
    for task, n in zip(make_tasks(4), (8, 2, 2, 8), strict=True):
        sampling.append(asyncio.create_task(fleet.sample(task, n=n)))
        await settle()
    hold.set()
    await asyncio.gather(*sampling)
    assert [call[0] for call in started.workers[0].sampled] == ["t0"]
    assert [call[0] for call in started.workers[1].sampled] == ["t1", "t2", "t3"]


async def test_the_seed_comes_from_run_version_and_task_so_the_number_of_workers_changes_nothing():
    tasks = make_tasks(6)
    groups = []
    for num_workers in (1, 3):
        fleet = await Started().fleet(num_workers)
        groups.append(await asyncio.gather(*(fleet.sample(task, n=4) for task in tasks)))
    assert groups[0] == groups[1]
    assert groups[0][2][0].seed == group_seed(7, 0, "t2")


async def test_a_setting_and_a_seed_may_be_given():
    started = Started()
    fleet = await started.fleet(1)
    completions = await fleet.sample(make_task(), n=3, sampling=Sampling(temperature=0), seed=5)
    assert started.workers[0].sampled == [("t", 3, 5)]
    assert len({completion.text for completion in completions}) == 1


async def test_every_worker_can_be_asked_however_much_it_has_to_do():
    started = Started()
    fleet = await started.fleet(3)
    hold = asyncio.create_task(fleet.sample(make_task("busy"), n=8))
    completions = await fleet.sample_each(make_task("probe"), sampling=Sampling(), seed=5)
    await hold
    assert [worker.sampled[-1] for worker in started.workers] == [("probe", 1, 5)] * 3
    assert len(completions) == 3
    started.workers[1].kill()
    assert len(await fleet.sample_each(make_task("probe"), sampling=Sampling(), seed=5)) == 3


# Sleep


async def test_a_load_wakes_the_workers():
    started = Started()
    fleet = await started.fleet(2)
    await fleet.sleep()
    assert [worker.is_asleep for worker in started.workers] == [True, True]
    await fleet.load(make_snapshot(1))
    completions = await fleet.sample(make_task(), n=2)
    assert [worker.loaded for worker in started.workers] == [[0, 1], [0, 1]]
    assert {completion.policy_version for completion in completions} == {1}


async def test_groups_that_come_without_a_load_wake_the_workers_once_with_the_weights_they_had():
    started = Started()
    fleet = await started.fleet(2)
    undisturbed = [await fleet.sample(task, n=3) for task in make_tasks(4)]
    await fleet.sleep()
    assert await asyncio.gather(*(fleet.sample(task, n=3) for task in make_tasks(4))) == undisturbed
    assert [worker.loaded for worker in started.workers] == [[0, 0], [0, 0]]
    assert started.discarded == []


async def test_workers_that_cannot_sleep_are_not_given_their_weights_again():
    started = Started()
    fleet = await started.fleet(2)
    for worker in started.workers:
        worker.can_sleep = False
    await fleet.sleep()
    await fleet.sample(make_task(), n=2)
    assert [worker.loaded for worker in started.workers] == [[0], [0]]


@pytest.mark.parametrize("is_loaded", [True, False], ids=["load", "group"])
async def test_a_worker_that_died_asleep_is_replaced_when_the_others_wake(is_loaded: bool):
    started = Started()
    fleet = await started.fleet(2)
    await fleet.sleep()
    started.workers[1].kill()
    await fleet.sleep()  # nobody minds: whoever has work for it finds out
    assert len(started.workers) == 2
    if is_loaded:
        await fleet.load(make_snapshot(1))
    assert len(await fleet.sample(make_task(), n=2)) == 2
    assert started.indices == [0, 1, 1]
    assert started.workers[2].loaded == [int(is_loaded)]
    assert fleet.metrics()["fleet/lost_workers"] == 1


async def test_a_worker_asleep_answers_its_heartbeats():
    started = Started()
    fleet = await started.fleet(1, heartbeat_s=0.05)
    await fleet.sleep()
    await asyncio.sleep(0.3)
    assert not started.workers[0].closed
    assert len(await fleet.sample(make_task(), n=1)) == 1
    await fleet.close()


async def test_workers_whose_weights_have_moved_on_sleep_until_the_next_come():
    started = Started()
    fleet = await started.fleet(1)
    await fleet.sleep()
    files = fleet.delivery

    class Gone:
        async def deliver(self, snapshot: Snapshot, workers: Any) -> dict[int, WorkerLost]:
            raise SnapshotGone("version 0 has moved on")

    fleet.delivery = Gone()
    sampling = asyncio.create_task(fleet.sample(make_task(), n=1))
    await settle()
    assert not sampling.done()
    fleet.delivery = files
    await fleet.load(make_snapshot(1))
    assert [completion.policy_version for completion in await sampling] == [1]


# Weights


async def test_every_worker_loads_and_the_snapshot_before_is_discarded():
    started = Started()
    fleet = await started.fleet(3)
    await fleet.load(make_snapshot(1))
    assert [worker.loaded for worker in started.workers] == [[0, 1]] * 3
    assert started.discarded == [0]
    await fleet.close()
    assert started.discarded == [0, 1]
    assert all(worker.closed for worker in started.workers)


async def test_a_snapshot_is_kept_until_every_worker_has_the_next():
    hold = asyncio.Event()
    hold.set()
    started = Started(lambda index: FakeWorker(hold=hold if index == 1 else None))
    fleet = await started.fleet(2)
    hold.clear()
    loading = asyncio.create_task(fleet.load(make_snapshot(1)))
    await settle()
    assert started.discarded == []
    hold.set()
    await loading
    assert started.discarded == [0]


async def test_a_load_that_fails_still_discards_what_nobody_will_load_again():
    started = Started()
    fleet = await started.fleet(1)

    async def fail(snapshot: Snapshot) -> None:
        raise RuntimeError("no room")

    started.workers[0].load = fail  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no room"):
        await fleet.load(make_snapshot(1))
    await fleet.close()
    assert started.discarded == [0, 1]


async def test_weights_wait_for_the_turns_under_way_only_where_they_shall():
    for publish, held in (("inflight", 0), ("wait", 2)):
        started = Started()
        fleet = await started.fleet(1, publish=publish)
        await fleet.load(make_snapshot(1))
        assert started.workers[0].held == held


# Losses


async def test_a_lost_group_is_sampled_again_with_the_same_result():
    undisturbed = await (await Started().fleet(1)).sample(make_task(), n=4)
    started = Started()
    fleet = await started.fleet(1)
    started.workers[0].kill()
    assert await fleet.sample(make_task(), n=4) == undisturbed
    assert started.workers[0].closed
    assert started.workers[1].loaded == [0]
    assert fleet.metrics()["fleet/lost_workers"] == 1


async def test_a_group_lost_half_way_is_given_on_once_and_whole():
    undisturbed = await (await Started().fleet(1)).sample(make_task(), n=4)
    started = Started()
    fleet = await started.fleet(1)
    given = []
    async for some in fleet.stream(make_task(), n=4):
        given.append([completion.index for completion in some])
        started.workers[0].kill()  # after its first half
    assert given == [[2, 3], [0, 1]]
    assert [worker.sampled for worker in started.workers] == [[("t", 4, undisturbed[0].seed)]] * 2
    assert fleet.metrics()["fleet/lost_workers"] == 1


async def test_whoever_stops_listening_leaves_no_load_behind():
    started = Started()
    fleet = await started.fleet(2)
    async with aclosing(fleet.stream(make_task(), n=4)) as finished:
        async for _ in finished:
            break
    assert fleet._workload.tokens == (0, 0)


async def test_a_worker_lost_under_many_groups_is_replaced_once():
    hold = asyncio.Event()
    hold.set()
    started = Started(lambda index: FakeWorker(hold=hold if index == 0 else None))
    fleet = await started.fleet(1)
    hold.clear()
    sampling = [asyncio.create_task(fleet.sample(task, n=2)) for task in make_tasks(20)]
    await settle()
    started.workers[0].kill()
    groups = await asyncio.gather(*sampling)
    assert [completion.index for group in groups for completion in group] == [0, 1] * 20
    assert started.indices == [0, 0]
    assert fleet.metrics()["fleet/lost_workers"] == 1


async def test_a_worker_lost_while_loading_is_replaced_by_one_with_the_new_weights():
    started = Started()
    fleet = await started.fleet(2)
    started.workers[1].kill()
    await fleet.load(make_snapshot(1))
    assert started.indices == [0, 1, 1]
    assert started.workers[2].loaded == [1]


async def test_weights_published_while_a_worker_is_replaced_reach_it():
    """Its replacement is busy with version 0 when version 1 comes: it must not be put to work before it holds version 1."""
    hold = asyncio.Event()
    started = Started(lambda index: FakeWorker(hold=hold if index == 1 else None))
    fleet = await started.fleet(1)
    started.workers[0].kill()
    sampling = asyncio.create_task(fleet.sample(make_task(), n=1))
    await settle()
    loading = asyncio.create_task(fleet.load(make_snapshot(1)))
    await settle()
    assert started.discarded == [], "version 0 is still being loaded"
    hold.set()
    await loading
    assert started.workers[1].loaded == [0, 1]
    assert [completion.policy_version for completion in await sampling] == [1]


async def test_a_replacement_that_dies_is_replaced_too_and_closed():
    started = Started(lambda index: FakeWorker())
    fleet = await started.fleet(1)
    started.workers[0].kill()
    made = started._make

    def dying_once(index: int) -> FakeWorker:
        worker = made(index)
        if index == 1:
            worker.kill()
        return worker

    started._make = dying_once
    assert len(await fleet.sample(make_task(), n=2)) == 2
    assert started.workers[1].closed
    assert len(started.workers) == 3


def stillborn(index: int) -> FakeWorker:
    worker = FakeWorker()
    worker.kill()
    return worker


async def test_a_worker_that_cannot_be_started_again_is_gone_and_the_others_go_on(caplog: pytest.LogCaptureFixture):
    undisturbed = await (await Started().fleet(1)).sample(make_task(), n=4)
    started = Started()
    fleet = await started.fleet(2)
    started._make = stillborn
    started.workers[0].kill()
    assert await fleet.sample(make_task(), n=4) == undisturbed
    await fleet.load(make_snapshot(1))
    assert [worker.loaded for worker in started.workers[:2]] == [[0], [0, 1]]
    assert "worker 0 was lost and could not be started again in 3 tries" in caplog.text


async def test_when_no_worker_is_left_the_run_is_told_why_with_its_last_words():
    started = Started()
    fleet = await started.fleet(2, last_words=lambda index: f"worker {index}: no room")
    started._make = stillborn
    for worker in started.workers:
        worker.kill()
    with pytest.raises(TooManyLosses, match=r"(?s)worker 1 was lost and could not be .* 3 tries: the fake.*\nworker 1: no room"):
        await fleet.sample(make_task(), n=2)
    assert all(worker.closed for worker in started.workers)
    with pytest.raises(TooManyLosses, match=r"no rollout worker is alive\. Resume the run"):
        await fleet.sample(make_task(), n=2)
    await fleet.close()


async def test_a_worker_that_keeps_dying_ends_the_run_with_its_last_words():
    started = Started()
    fleet = await started.fleet(1, last_words=lambda index: "Bus error")
    for task in make_tasks(10):
        started.workers[-1].kill()
        await fleet.sample(task, n=2)
    started.workers[-1].kill()
    with pytest.raises(TooManyLosses, match=r"(?s)worker 0 died 11 times within 30 minutes, the last time so: .*\nBus error"):
        await fleet.sample(make_task(), n=2)


async def test_while_a_worker_is_replaced_the_others_get_the_work():
    starting = asyncio.Event()
    started = Started()
    fleet = await started.fleet(2)

    async def slowly(index: int) -> FakeWorker:
        await starting.wait()
        return await started(index)

    fleet._start_worker = slowly
    started.workers[0].kill()
    lost = asyncio.create_task(fleet.sample(make_task("lost"), n=1))
    await settle()
    await asyncio.gather(*(fleet.sample(task, n=1) for task in make_tasks(5)))
    assert len(started.workers[1].sampled) == 5
    starting.set()
    assert len(await lost) == 1


@pytest.mark.parametrize("doing", ["sampling", "loading", "idle"])
async def test_a_worker_that_hangs_is_noticed_closed_and_replaced(doing: str):
    undisturbed = await (await Started().fleet(1)).sample(make_task(), n=4)
    started = Started()
    fleet = await started.fleet(1, heartbeat_s=0.02)
    started.workers[0].freeze()
    if doing == "loading":
        await fleet.load(make_snapshot(0))
    if doing == "idle":
        await asyncio.sleep(0.1)
        assert started.workers[0].closed
    assert await fleet.sample(make_task(), n=4) == undisturbed
    assert started.workers[0].closed
    assert fleet.metrics()["fleet/lost_workers"] == 1
    await fleet.close()


async def test_a_worker_whose_engine_died_is_kept_and_given_the_weights():
    class TwoLives(FakeWorker):
        async def revive(self) -> bool:
            self._dead.clear()
            return True

    undisturbed = await (await Started().fleet(1)).sample(make_task(), n=4)
    started = Started(lambda index: TwoLives())
    fleet = await started.fleet(1)
    started.workers[0].kill()
    assert await asyncio.gather(*(fleet.sample(make_task(), n=4) for _ in range(3))) == [undisturbed] * 3
    assert started.workers[0].loaded == [0, 0]
    assert not started.workers[0].closed
    assert fleet.metrics()["fleet/lost_workers"] == 1


async def test_a_start_that_hangs_is_tried_again():
    started = Started()
    fleet = await started.fleet(1, heartbeat_s=0.002)
    num_starts = 0

    async def hanging_once(index: int) -> FakeWorker:
        nonlocal num_starts
        num_starts += 1
        await asyncio.sleep(60 if num_starts == 1 else 0)
        return await started(index)

    fleet._start_worker = hanging_once
    started.workers[0].kill()
    assert len(await fleet.sample(make_task(), n=2)) == 2
    assert num_starts == 2
    await fleet.close()


async def test_a_group_that_kills_every_worker_gives_up():
    """Out of memory on one long prompt would otherwise go on for ever."""
    started = Started()
    fleet = await started.fleet(1)

    class Fragile(FakeWorker):
        async def stream(self, *args: object, **options: object):  # type: ignore[override]
            raise WorkerLost("out of memory")
            yield

    started._make = lambda index: Fragile()
    started.workers[0].kill()
    with pytest.raises(WorkerLost, match=r"task t: 3 rollout workers died while they sampled it\. The logs of the workers"):
        await fleet.sample(make_task(), n=2)


async def test_nothing_is_started_again_while_the_fleet_closes():
    hold = asyncio.Event()
    hold.set()
    started = Started(lambda index: FakeWorker(hold=hold))
    fleet = await started.fleet(1)
    hold.clear()
    sampling = asyncio.create_task(fleet.sample(make_task(), n=1))
    await settle()
    await fleet.close()
    started.workers[0].kill()
    with pytest.raises(WorkerLost):
        await sampling
    assert len(started.workers) == 1


async def test_workers_that_started_are_closed_when_another_did_not_start():
    started = Started()

    async def start(index: int) -> FakeWorker:
        if index == 1:
            await asyncio.sleep(0.01)
            raise RuntimeError("no GPU is left")
        return await started(index)

    fleet = Fleet(start, num_workers=2, sampling=Sampling(), run_seed=0, discard=started.discard)
    with suppress(RuntimeError):
        await fleet.start()
    await fleet.close()
    assert [worker.closed for worker in started.workers] == [True]
