"""The recorded source: demonstrations in the order of the stream."""

from __future__ import annotations

import pytest

from rollout.errors import NoSignal
from rollout.recorded import RecordedGroups
from rollout.tasks import TaskStream
from rollout.types import Completion
from tests.fakes import make_completion, make_tasks
from verifiers.types import Task


class Prompts:
    """Stands for Prompting: the tokens of a text are made up."""

    def recorded(self, task: Task, text: str) -> Completion:
        return make_completion(text=text)


def source(count: int = 5) -> tuple[TaskStream, RecordedGroups]:
    tasks = make_tasks(count)
    stream = TaskStream(tasks, seed=0)
    return stream, RecordedGroups(stream, {task.id: f"it is {task.reference}" for task in tasks}, Prompts())  # type: ignore[arg-type]


async def test_each_recorded_completion_is_a_group_of_one_with_reward_1():
    stream, groups = source()
    taken = await groups.take(5, keep=lambda group: True, version=0)
    assert {group.task.id for group in taken} == {f"t{i}" for i in range(5)}
    for group in taken:
        assert [c.text for c in group.completions] == [f"it is {group.task.reference}"]
        assert group.scored_rewards == (1.0,)
    assert stream.cursor == (5, ())


async def test_epochs_follow_one_another_and_a_rewound_stream_goes_on():
    stream, groups = source()
    await groups.take(3, keep=lambda group: True, version=0)
    resumed, again = source()
    resumed.rewind(stream.cursor)
    one = [group.task.id for group in await groups.take(7, keep=lambda group: True, version=1)]
    assert one == [group.task.id for group in await again.take(7, keep=lambda group: True, version=1)]


async def test_refused_groups_are_passed_over():
    _, groups = source()
    taken = await groups.take(6, keep=lambda group: group.task.id in ("t1", "t3"), version=0)
    assert {group.task.id for group in taken} == {"t1", "t3"}


async def test_an_objective_that_wants_none_of_them_is_told_so():
    _, groups = source()
    with pytest.raises(NoSignal, match=r"step 3: the objective refused each of the 5 recorded completions\. Use an objective"):
        await groups.take(2, keep=lambda group: False, version=2)
