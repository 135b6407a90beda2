"""The recorded source of groups: demonstrations, labels and pairs that were written, sampled or judged before."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from rollout.collector import Keep, Rollout
from rollout.errors import NoSignal
from rollout.fields import Recorded
from rollout.judged import Judged
from rollout.prompting import Prompting
from rollout.tasks import TaskStream
from rollout.types import Group
from verifiers.types import Task, Verdict


class RecordedGroups:
    """Each task's recorded completions as a group, in the order of the stream: one completion, or the two of a pair."""

    def __init__(self, tasks: TaskStream, recorded: Mapping[str, Sequence[Recorded]], prompting: Prompting) -> None:
        self._tasks = tasks
        self._recorded = recorded
        self._prompting = prompting

    async def take(self, num_groups: int, *, keep: Keep, version: int) -> list[Group]:
        """Raises NoSignal when `keep` refuses as many groups in a row as there are."""
        taken: list[Group] = []
        refused = 0
        while len(taken) < num_groups:
            if refused >= len(self._recorded):
                raise NoSignal(
                    f"step {version + 1}: the objective refused each of the {refused} recorded groups. Use an objective that "
                    "learns from what they hold: sft from demonstrations, kto from labels, dpo from pairs."
                )
            position, task = self._tasks.next()
            self._tasks.finish(position)
            group = recorded_group(task, self._recorded[task.id], self._prompting)
            if keep(group):
                taken.append(group)
                refused = 0
            else:
                refused += 1
        return taken

    def metrics(self) -> dict[str, float]:
        return {}

    def finished(self) -> dict[int, Judged]:
        """Nothing is under way between two calls of `take`."""
        return {}

    async def close(self) -> None:
        pass


def recorded_group(task: Task, recorded: Sequence[Recorded], prompting: Prompting) -> Group:
    completions = [dataclasses.replace(prompting.recorded(task, each.text), index=i) for i, each in enumerate(recorded)]
    verdicts = [Verdict(each.reward, is_correct=each.reward == 1.0, scores=()) for each in recorded]
    return Group(task, tuple(completions), tuple(verdicts))


def beside_demonstration(rollout: Rollout, recorded: Mapping[str, Sequence[Recorded]], prompting: Prompting) -> Rollout:
    """Rollouts whose groups end with the recorded completion of their task: what self-play compares its samples with."""

    async def rollout_beside(task: Task) -> Group:
        group = await rollout(task)
        shown = recorded_group(task, recorded[task.id], prompting)
        behind = [dataclasses.replace(each, index=len(group.completions) + i) for i, each in enumerate(shown.completions)]
        return Group(task, (*group.completions, *behind), (*group.verdicts, *shown.verdicts))

    return rollout_beside
