"""Accuracy on held-out tasks, through the same workers and verifiers that train."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from grpo.state import Evaluation
from rollout.fleet import Fleet
from rollout.sampling import Sampling, group_seed
from rollout.types import Completion
from rollout.waiting import all_of
from sandbox.errors import SystemFault
from verifiers.types import Task, Verdict

logger = logging.getLogger(__name__)


class Verifiers(Protocol):
    """What judges: a VerifierService, or a proxy of one."""

    async def verify(self, task: Task, completions: Sequence[Completion]) -> tuple[Verdict, ...]: ...


async def evaluate(
    tasks: Sequence[Task], *, fleet: Fleet, verifiers: Verifiers, sampling: Sampling, step: int, run_seed: int
) -> Evaluation:
    """One completion per task at the training temperature, and one greedy. The seeds are the same at every step.

    Unscored completions are left out of the accuracies. Raises SystemFault when no completion could be scored.
    """
    started = time.perf_counter()
    greedy = sampling.model_copy(update={"temperature": 0.0})

    async def judge(task: Task, setting: Sampling) -> tuple[Completion, Verdict]:
        seed = group_seed(run_seed, 0, f"evaluation/{task.id}")
        completions = await fleet.sample(task, n=1, sampling=setting, seed=seed)
        (verdict,) = await verifiers.verify(task, completions)
        return completions[0], verdict

    judged = await all_of(judge(task, setting) for setting in (sampling, greedy) for task in tasks)
    sampled, best = judged[: len(tasks)], judged[len(tasks) :]
    return Evaluation(
        step=step,
        num_tasks=len(tasks),
        sampled_accuracy=accuracy([verdict for _, verdict in sampled]),
        greedy_accuracy=accuracy([verdict for _, verdict in best]),
        length_mean=sum(completion.num_completion_tokens for completion, _ in sampled) / len(sampled),
        seconds=time.perf_counter() - started,
    )


def accuracy(verdicts: Sequence[Verdict]) -> float:
    """Share of correct among the scored. An unscored completion says nothing about the policy."""
    assert verdicts, "load_tasks leaves at least one task to evaluate on"
    scored = [verdict for verdict in verdicts if verdict.reward is not None]
    num_unscored = len(verdicts) - len(scored)
    cause = next((verdict.cause for verdict in verdicts if verdict.cause is not None), "")
    if not scored:
        raise SystemFault(f"none of the {len(verdicts)} held-out completions could be scored. The first cause: {cause}")
    if num_unscored:
        logger.warning("%d of %d held-out completions were not scored. The first cause: %s", num_unscored, len(verdicts), cause)
    return sum(verdict.is_correct for verdict in scored) / len(scored)
