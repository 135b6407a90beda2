"""The recorded source: demonstrations, labels and pairs in the order of the stream; and demonstrations beside samples."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from rollout.errors import NoSignal
from rollout.fields import Recorded
from rollout.recorded import RecordedGroups, beside_demonstration
from rollout.tasks import TaskStream
from rollout.types import Completion, Group
from tests.fakes import make_completion, make_group, make_tasks
from verifiers.types import Task


class Prompts:
    """Stands for Prompting: the tokens of a text are made up."""

    def recorded(self, task: Task, text: str) -> Completion:
        return dataclasses.replace(make_completion(text=text), behavior_logprobs=None, version_spans=())


def demonstrated(tasks: Sequence[Task]) -> dict[str, tuple[Recorded, ...]]:
    return {task.id: (Recorded(f"it is {task.reference}", 1.0),) for task in tasks}


def source(count: int = 5) -> tuple[TaskStream, RecordedGroups]:
    tasks = make_tasks(count)
    stream = TaskStream(tasks, seed=0)
    return stream, RecordedGroups(stream, demonstrated(tasks), Prompts())  # type: ignore[arg-type]


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
    with pytest.raises(NoSignal, match=r"step 3: the objective refused each of the 5 recorded groups\. Use an objective"):
        await groups.take(2, keep=lambda group: False, version=2)


@pytest.mark.parametrize(
    "recorded",
    [(Recorded("yes", 1.0), Recorded("no", 0.0)), (Recorded("no", 0.0),)],
    ids=["a pair", "an undesirable completion"],
)
async def test_a_group_holds_what_was_recorded_with_its_worth(recorded: tuple[Recorded, ...]):
    tasks = make_tasks(1)
    groups = RecordedGroups(TaskStream(tasks, seed=0), {"t0": recorded}, Prompts())  # type: ignore[arg-type]
    (group,) = await groups.take(1, keep=lambda group: True, version=0)
    assert [completion.text for completion in group.completions] == [each.text for each in recorded]
    assert [completion.index for completion in group.completions] == list(range(len(recorded)))
    assert group.scored_rewards == tuple(each.reward for each in recorded)
    assert [verdict.is_correct for verdict in group.verdicts] == [each.reward == 1 for each in recorded]


async def test_a_demonstration_stands_behind_the_samples_of_its_task_and_is_as_old_as_they_are():
    (task,) = make_tasks(1)

    async def rollout(task: Task) -> Group:
        return make_group([0.0, 1.0], task=task, version=7)

    group = await beside_demonstration(rollout, demonstrated([task]), Prompts())(task)  # type: ignore[arg-type]
    assert [completion.index for completion in group.completions] == [0, 1, 2]
    assert group.completions[2].text == "it is 1"
    assert group.completions[2].behavior_logprobs is None
    assert group.scored_rewards == (0.0, 1.0, 1.0)
    assert group.policy_version == 7
