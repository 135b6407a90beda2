"""The loop. There is one, whatever the objective, the source or the lag."""

from __future__ import annotations

from typing import TYPE_CHECKING

from grpo.metrics import group_metrics
from grpo.state import RunState
from rollout.judging import judged_group
from rollout.types import Group
from verifiers.types import Task

if TYPE_CHECKING:
    from grpo.run import Run


async def train(run: Run) -> RunState:
    """Train until the config's last step, from the newest whole checkpoint or from the start."""
    state = await run.checkpoints.restore(run.learner, run.tasks)  # step 0 for a new run
    await run.fleet.load(await run.learner.publish(state.step))

    async def rollout(task: Task) -> Group:
        finished = run.fleet.stream(task, n=run.config.group_size)  # sample
        return await judged_group(task, finished, run.verifiers.verify)  # verify

    source = run.source(rollout)  # Collector for live groups, RecordedGroups for recorded ones
    state = await run.begin(state)
    while not run.is_finished(state):
        groups = await source.take(run.config.groups_per_step, keep=run.objective.keep, version=state.step)
        examples = run.objective.credit(groups)  # advantages
        update = await run.learner.update(examples)  # update
        state = run.advance(state)
        if run.sync_is_due(state):
            await run.fleet.load(await run.learner.publish(state.step))  # sync
        await run.log_step(state, groups, source.metrics() | group_metrics(groups) | update.metrics)
        if run.evaluation_is_due(state):
            state = state.evaluated(await run.evaluate(state.step))
        if run.checkpoint_is_due(state):
            await run.save(state)
    return state
