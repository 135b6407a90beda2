"""The recorded source of groups: demonstrations that were written or sampled before."""

from __future__ import annotations

from collections.abc import Mapping

from rollout.collector import Keep
from rollout.errors import NoSignal
from rollout.prompting import Prompting
from rollout.tasks import TaskStream
from rollout.types import Group
from verifiers.types import Verdict

DEMONSTRATION = Verdict(reward=1.0, is_correct=True, scores=())


class RecordedGroups:
    """Each task's recorded completion as a group of one with reward 1, in the order of the stream."""

    def __init__(self, tasks: TaskStream, recorded: Mapping[str, str], prompting: Prompting) -> None:
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
                    f"step {version + 1}: the objective refused each of the {refused} recorded completions. Use an objective that "
                    "learns from demonstrations, such as sft."
                )
            position, task = self._tasks.next()
            self._tasks.finish(position)
            completion = self._prompting.recorded(task, self._recorded[task.id])
            group = Group(task, (completion,), (DEMONSTRATION,))
            if keep(group):
                taken.append(group)
                refused = 0
            else:
                refused += 1
        return taken

    def metrics(self) -> dict[str, float]:
        return {}

    async def close(self) -> None:
        pass
