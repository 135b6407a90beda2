"""What the collector keeps going, drops, hands out, and gives up on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from rollout.collector import Collector
from rollout.errors import NoSignal, TooManyUnscored
from rollout.tasks import TaskStream
from rollout.types import Group
from tests.fakes import make_group, make_tasks
from verifiers.types import Task


class Rollouts:
    """Rollouts that end when told to, or at once; each is a group of two with the rewards that `rewards(task)` says."""

    def __init__(self, *, rewards: Callable[[Task], Any] = lambda task: (1, 0), at_once: bool = True) -> None:
        self.rewards = rewards
        self.at_once = at_once
        self.version = 0
        self.started: list[str] = []
        self.cancelled: list[str] = []
        self.failures: dict[str, Exception] = {}
        self._ends: dict[str, asyncio.Event] = {}

    async def __call__(self, task: Task) -> Group:
        self.started.append(task.id)
        version = self.version
        try:
            await (asyncio.sleep(0) if self.at_once else self._end(task.id).wait())
        except asyncio.CancelledError:
            self.cancelled.append(task.id)
            raise
        if task.id in self.failures:
            raise self.failures[task.id]
        return make_group(self.rewards(task), task=task, version=version)

    def _end(self, task_id: str) -> asyncio.Event:
        return self._ends.setdefault(task_id, asyncio.Event())

    def end(self, *task_ids: str) -> None:
        for task_id in task_ids:
            self._end(task_id).set()


def everything(group: Group) -> bool:
    return True


def informative(group: Group) -> bool:
    return not group.is_flat


def ids(groups: list[Group]) -> list[str]:
    return [group.task.id for group in groups]


def stream(count: int = 100, seed: int = 0) -> TaskStream:
    return TaskStream(make_tasks(count), seed=seed)


def order(count: int, *, of: int = 100) -> list[str]:
    tasks = stream(of)
    return [tasks.next()[1].id for _ in range(count)]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


# In lock step


async def test_in_lock_step_nothing_is_in_flight_between_two_calls():
    tasks, rollouts = stream(), Rollouts()
    collector = Collector(rollouts, tasks)
    assert ids(await collector.take(4, keep=everything, version=0)) == order(4)
    assert ids(await collector.take(4, keep=everything, version=0)) == order(8)[4:]
    assert rollouts.started == order(8)
    assert tasks.cursor == (8, ())


@pytest.mark.parametrize("latest_first", [True, False])
async def test_in_lock_step_the_order_of_arrival_changes_nothing(latest_first: bool):
    """Also with refusals: every third task is flat, and its place is taken by the tasks that follow in the stream."""
    rollouts = Rollouts(rewards=lambda task: (0, 0) if int(task.id[1:]) % 3 == 0 else (1, 0), at_once=False)
    taking = asyncio.create_task(Collector(rollouts, stream()).take(8, keep=informative, version=0))
    while not taking.done():
        await settle()
        for task_id in sorted(rollouts.started, reverse=latest_first):
            rollouts.end(task_id)
            await settle()
    assert ids(taking.result()) == [i for i in order(40) if int(i[1:]) % 3][:8]


async def test_a_step_that_over_samples_takes_the_quickest_and_begins_with_the_others_next():
    tasks, rollouts = stream(), Rollouts(at_once=False)
    collector = Collector(rollouts, tasks, over_sample=1.5)
    taking = asyncio.create_task(collector.take(4, keep=everything, version=0))
    await settle()
    assert rollouts.started == order(6)
    rollouts.end(*order(6)[1:5])
    assert ids(await taking) == order(6)[1:5]
    assert sorted(rollouts.cancelled) == sorted([order(6)[0], order(6)[5]])
    assert collector.metrics()["collector/abandoned_groups"] == 2
    assert tasks.cursor == (6, (0, 5))
    rollouts.version = 1
    taking = asyncio.create_task(collector.take(4, keep=everything, version=1))
    await settle()
    assert rollouts.started[6:] == [order(6)[0], order(6)[5], *order(10)[6:]]
    rollouts.end(*order(10))
    assert len(await taking) == 4
    await collector.close()


async def test_refused_groups_are_counted_and_replaced_by_as_many():
    wrong = set(order(3))
    collector = Collector(Rollouts(rewards=lambda task: (0, 0) if task.id in wrong else (1, 0)), stream())
    await collector.take(4, keep=informative, version=0)
    metrics = collector.metrics()
    assert metrics["collector/sampled_groups"] == 7
    assert metrics["collector/refused_groups"] == 3
    assert metrics["collector/lag_mean"] == 0


async def test_a_group_with_fewer_than_two_scored_completions_is_dropped():
    odd = order(1)[0]
    collector = Collector(Rollouts(rewards=lambda task: (1, None) if task.id == odd else (1, 0)), stream(), max_unscored=0.2)
    taken = await collector.take(4, keep=everything, version=0)
    assert odd not in ids(taken)
    assert collector.metrics()["collector/unscored_groups"] == 1
    assert collector.metrics()["verify/unscored_fraction"] == pytest.approx(1 / 10)


async def test_a_group_of_one_needs_one_scored_completion():
    collector = Collector(Rollouts(rewards=lambda task: (0,)), stream())
    assert len(await collector.take(2, keep=everything, version=0)) == 2


# Giving up


async def test_no_signal_says_how_many_groups_were_what():
    right = set(order(3))
    rollouts = Rollouts(rewards=lambda task: (1, 1) if task.id in right else (0, 0))
    rollouts.version = 40
    with pytest.raises(NoSignal) as caught:
        await Collector(rollouts, stream(), max_tries=3).take(4, keep=informative, version=40)
    assert str(caught.value) == (
        "step 41: 12 groups sampled, 0 of 4 wanted could be taken (9 all wrong, 3 all right; dropped: 12 refused). "
        "Use easier tasks, or raise max_tries."
    )


async def test_no_signal_asks_for_harder_tasks_when_most_are_solved():
    with pytest.raises(NoSignal, match=r"\(0 all wrong, 8 all right; dropped: 8 refused\)\. Use harder tasks"):
        await Collector(Rollouts(rewards=lambda task: (1, 1)), stream(), max_tries=2).take(4, keep=informative, version=0)


async def test_never_more_than_max_tries_times_the_groups_wanted_are_sampled():
    informative_ones = set(order(3))
    rollouts = Rollouts(rewards=lambda task: (1, 0) if task.id in informative_ones else (0, 0))
    with pytest.raises(NoSignal, match=r"8 groups sampled, 3 of 4 wanted"):
        await Collector(rollouts, stream(), max_tries=2).take(4, keep=informative, version=0)
    assert len(rollouts.started) == 8


async def test_one_try_is_enough_when_every_group_is_kept():
    assert len(await Collector(Rollouts(), stream(), max_tries=1).take(4, keep=everything, version=0)) == 4


@pytest.mark.parametrize("max_lag", [0, 2])
async def test_a_judge_that_is_down_is_told_at_once(max_lag: int):
    """One step's worth of groups is enough to know: nothing is sampled again and again until max_tries."""
    rollouts = Rollouts(rewards=lambda task: (None, None))
    with pytest.raises(TooManyUnscored) as caught:
        await Collector(rollouts, stream(), max_lag=max_lag, max_tries=50).take(4, keep=informative, version=6)
    assert str(caught.value) == (
        "step 7: 8 of 8 completions could not be scored, more than max_unscored = 0.1 allows. "
        "The first cause: fake: the judge is down"
    )
    assert len(rollouts.started) == 4 * (1 + max_lag)


async def test_a_few_unscored_completions_are_allowed():
    odd = order(1)[0]
    rollouts = Rollouts(rewards=lambda task: (1, 0, None) if task.id == odd else (1, 0, 0))
    assert len(await Collector(rollouts, stream()).take(4, keep=everything, version=0)) == 4


@pytest.mark.parametrize("max_lag", [0, 1])
async def test_a_failed_rollout_is_raised_at_once_and_the_others_are_cancelled(max_lag: int):
    rollouts = Rollouts(at_once=False)
    last = order(4)[3]
    rollouts.failures[last] = ValueError("broken")
    tasks = stream()
    taking = asyncio.create_task(Collector(rollouts, tasks, max_lag=max_lag).take(4, keep=everything, version=0))
    await settle()
    rollouts.end(last)
    with pytest.raises(ValueError, match="broken"):
        await asyncio.wait_for(taking, 1)
    assert sorted(rollouts.cancelled) == sorted(set(rollouts.started) - {last})
    assert len(tasks.cursor.unfinished) == len(rollouts.started), "what was not learnt is sampled again after a resume"


@pytest.mark.parametrize("max_lag", [0, 1])
async def test_cancelling_a_take_leaves_nothing_running(max_lag: int):
    rollouts = Rollouts(at_once=False)
    taking = asyncio.create_task(Collector(rollouts, stream(), max_lag=max_lag).take(4, keep=everything, version=0))
    await settle()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    assert rollouts.cancelled == rollouts.started


# Running ahead


async def test_with_lag_k_rollouts_for_k_more_steps_are_kept_going():
    rollouts = Rollouts()
    collector = Collector(rollouts, stream(), max_lag=2)
    await collector.take(4, keep=everything, version=0)
    assert collector.metrics()["collector/in_flight_groups"] == 8
    await settle()
    assert len(rollouts.started) == 12, "what is done but not taken holds its place"
    await collector.close()


async def test_with_lag_a_step_waits_for_as_many_groups_as_it_wants_and_no_more():
    rollouts = Rollouts(at_once=False)
    taking = asyncio.create_task(Collector(rollouts, stream(), max_lag=1).take(2, keep=everything, version=0))
    await settle()
    rollouts.end(rollouts.started[3])
    await settle()
    assert not taking.done()
    rollouts.end(rollouts.started[1])
    taken = await asyncio.wait_for(taking, 1)
    assert set(ids(taken)) == {order(4)[1], order(4)[3]}


async def test_groups_older_than_the_lag_are_dropped_and_counted():
    rollouts = Rollouts()
    collector = Collector(rollouts, stream(), max_lag=1)
    await collector.take(2, keep=everything, version=0)
    await settle()
    rollouts.version = 2
    taken = await collector.take(2, keep=everything, version=2)
    assert [group.policy_version for group in taken] == [2, 2]
    assert collector.metrics()["collector/stale_groups"] == 2
    await collector.close()


async def test_groups_within_the_lag_are_learnt_from_and_their_lag_is_told():
    rollouts = Rollouts()
    collector = Collector(rollouts, stream(), max_lag=1)
    await collector.take(2, keep=everything, version=0)
    await settle()
    rollouts.version = 1
    assert [group.policy_version for group in await collector.take(2, keep=everything, version=1)] == [0, 0]
    assert collector.metrics()["collector/lag_mean"] == 1
    await collector.close()


async def test_weights_that_never_arrive_are_not_blamed_on_the_tasks():
    with pytest.raises(NoSignal, match=r"dropped: 32 stale\)\. Their weights were older than max_lag allows"):
        await Collector(Rollouts(), stream()).take(4, keep=everything, version=1)


async def test_what_is_done_but_not_taken_is_unfinished_in_a_checkpoint():
    rollouts, tasks = Rollouts(), stream()
    collector = Collector(rollouts, tasks, max_lag=1)
    taken = await collector.take(3, keep=everything, version=0)
    await settle()  # the three that run ahead are done now, and nobody has taken them
    assert ids(taken) == order(3)
    assert tasks.cursor == (6, (3, 4, 5))
    resumed = stream()
    resumed.rewind(tasks.cursor)
    again = await Collector(rollouts, resumed).take(3, keep=everything, version=0)
    assert ids(again) == order(6)[3:]
    await collector.close()


async def test_closing_abandons_what_is_in_flight_and_keeps_it_unfinished():
    rollouts, tasks = Rollouts(), stream()
    collector = Collector(rollouts, tasks, max_lag=1)
    await collector.take(2, keep=everything, version=0)
    rollouts.at_once = False
    await collector.close()
    assert tasks.cursor == (4, (2, 3))


async def test_the_collector_itself_takes_little_of_a_step():
    """64 groups a step, 4 steps ahead, ending one by one in the worst order."""
    rollouts = Rollouts(at_once=False)
    collector = Collector(rollouts, stream(1000), max_lag=4)
    started = asyncio.get_running_loop().time()
    taking = asyncio.create_task(collector.take(64, keep=everything, version=0))
    await settle()
    for task_id in reversed(list(rollouts.started)[:320]):
        rollouts.end(task_id)
        await asyncio.sleep(0)
    await taking
    await collector.close()
    assert asyncio.get_running_loop().time() - started < 2  # 0.05 s on an idle core
